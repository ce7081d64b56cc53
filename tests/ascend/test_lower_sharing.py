"""Integers that are computed twice are computed once; floats keep the names of what they compute."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.share_integers import share_integers
from porting.converters.passes.ascend.sizes_of_inputs import sizes_of_inputs
from porting.converters.passes.infer_shapes import infer_shapes
from tests.ascend.lowering_checks import kinds, read, require_lowered
from tests.graph_bits import whole


@given(
    st.lists(
        st.tuples(st.sampled_from(["Add", "Mul", "Sub", "Max"]), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12
    )
)
@settings(max_examples=40, deadline=None)
def test_every_number_is_there_once(steps: list[tuple[str, int, int]]) -> None:
    """Random chains over two inputs and equal constants under different names, each result an output by way of a float."""
    names = ["x", "y", "c1", "c2"]
    lines, keys, distinct = [], ["x", "y", "c", "c"], set()
    for number, (kind, a, b) in enumerate(steps):
        a, b = a % len(names), b % len(names)
        lines.append(f"v{number} = {kind}({names[a]}, {names[b]})")
        names.append(f"v{number}")
        keys.append(f"{kind}({keys[a]}, {keys[b]})")
        distinct.add(keys[-1])
    outputs = [f"f{i}" for i in range(len(steps))]
    lines += [f"f{i} = Cast<to = 1>(v{i})" for i in range(len(steps))]
    text = f"(int64[2] x, int64[2] y) => ({', '.join(f'float[2] {o}' for o in outputs)}) {{ {' '.join(lines)} }}"
    constant = np.array([3, 5], np.int64)
    graph = read(text, 18, c1=constant, c2=constant.copy())
    feeds = {"x": np.array([1, 2]), "y": np.array([7, -4])}
    require_lowered(share_integers, graph, feeds, changes=len(steps) - len(distinct))


def test_what_differs_stays_apart() -> None:
    """By an attribute, by a constant's shape or type; floats, random numbers and outputs at any rate."""
    graph = read(
        """(float[2, 3] x, int64[2, 3] i) => (float[2, 3] y, int64 a, int64 b, int64[2, 3] o, int64[2, 3] p, bool[2, 3] q) {
            u = Exp(x) v = Exp(x) y = Add(u, v)
            s = Shape<start = 0>(x) t = Shape<start = 1>(x) a = ReduceSum<keepdims = 0>(s) b = ReduceSum<keepdims = 0>(t)
            o = Add(i, one) p = Add(i, ones)
            r = RandomUniformLike(x) w = RandomUniformLike(x) g = Greater(r, w) q = Not(g)
        }""",
        18,
        one=np.array(1, np.int64),
        ones=np.array([1], np.int64),
    )
    lowered, changes = share_integers(graph)
    assert changes == 0 and whole(lowered) == whole(graph) and kinds(lowered)["Exp"] == 2


def test_twice_in_the_main_graph_and_once_in_a_branch() -> None:
    """A branch does not look outside: each body shares its own."""
    graph = read(
        """(int64[2] x, bool c) => (float[2] y) {
            a = Add(x, x) b = Add(x, x) m = Mul(a, b) f = Cast<to = 1>(m)
            y = If (c) < then_branch = t () => (float[2] p) { d = Add(x, x) e = Cast<to = 1>(d) p = Add(e, f) },
                         else_branch = e () => (float[2] q) { q = Neg(f) } >
        }""",
        18,
    )
    lowered = require_lowered(share_integers, graph, {"x": np.array([2, 3]), "c": np.array(True)}, changes=1, branches=False)
    assert kinds(lowered)["Mul"] == 1


@given(st.lists(st.integers(-3, 2), min_size=1, max_size=4), st.booleans(), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_sizes_are_read_off_the_input_that_has_their_name(axes: list[int], scalar: bool, rows: int, length: int) -> None:
    """(n, s) ids and a (n, s, 3) value behind them: each size of the value, by any axis, from either end."""
    lines = ["e = Unsqueeze(ids, last) f = Cast<to = 1>(e) h = Expand(f, three)"]
    outputs = []
    for number in range(len(axes)):
        lines.append(f"s{number} = Shape(h) g{number} = Gather(s{number}, at{number}) y{number} = Cast<to = 1>(g{number})")
        outputs.append(f"float{'' if scalar else '[1]'} y{number}")
    text = f"(int64[n, s] ids) => ({', '.join(outputs)}) {{ {' '.join(lines)} }}"
    given_axes = {f"at{i}": np.array(axis if scalar else [axis], np.int64) for i, axis in enumerate(axes)}
    graph = read(text, 18, last=np.array([2], np.int64), three=np.array([1, 1, 3], np.int64), **given_axes)
    graph, _ = infer_shapes(graph)
    named = sum(axis % 3 != 2 for axis in axes)
    feeds = {"ids": np.ones((rows, length), np.int64)}
    require_lowered(sizes_of_inputs, graph, feeds, changes=named, branches=False)


def test_sizes_without_a_name_of_an_input_stay() -> None:
    graph = read(
        """(float[n, s] x, int64[k] i) => (float y, float z) {
            p = NonZero(x) a = Shape(p) b = Gather(a, one) y = Cast<to = 1>(b)
            q = Shape(x) r = Gather(q, one) z = Cast<to = 1>(r)
        }""",
        18,
        one=np.array(1, np.int64),
    )
    graph, _ = infer_shapes(graph)
    lowered, changes = sizes_of_inputs(graph)
    assert changes == 0 and whole(lowered) == whole(graph)
