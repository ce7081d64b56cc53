"""A Loop of a fixed number of trips, written out; every other one stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.unroll_loop import MOST_TRIPS, unroll_loop
from porting.converters.passes.constants_to_initializers import constants_to_initializers
from porting.types import Graph
from tests.ascend.lowering_checks import kinds, read, require_lowered
from tests.graph_bits import whole

TRUE = np.array(True)


def looped(trips: int, opset: int = 18, go_on: str = "more = Identity(go)") -> Graph:
    """Two carried values and one that is collected, with a weight and a captured value in the body; one is carried as it is."""
    graph = read(
        f"""(float[2, 3] x) => (float[2, 3] y, float[2, 3] same, float[{trips}, 2, 3] all) {{
            c = Exp(x)
            y, same, all = Loop (n, t, x, c) <
                body = step (int64 i, bool go, float[2, 3] h, float[2, 3] k) => (bool more, float[2, 3] u, float[2, 3] k2, float[2, 3] s) {{
                    {go_on} w = Constant<value_float = 0.5>() f = Cast<to = 1>(i)
                    a = Mul(h, w) b = Add(a, f) u = Add(b, c) k2 = Identity(k) s = Tanh(u)
                }} >
        }}""",
        opset,
        n=np.array(trips, np.int64),
        t=TRUE,
    )
    constants_to_initializers.change(graph.model)
    return graph


X = {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}


@given(
    st.integers(1, 6),
    st.sampled_from([13, 16, 18, 21]),
    st.sampled_from(["more = Identity(go)", "more = Constant<value = bool {1}>()"]),
)
@settings(max_examples=15, deadline=None)
def test_every_trip_is_there(trips: int, opset: int, go_on: str) -> None:
    lowered = require_lowered(unroll_loop, looped(trips, opset, go_on), X)
    assert kinds(lowered)["Tanh"] == trips and "Loop" not in kinds(lowered)


def test_constants_of_the_body_are_there_once() -> None:
    lowered, _ = unroll_loop(looped(5))
    halves = [v for v in lowered.model.graph.initializers.values() if v.dtype is not None and v.dtype.numpy() == np.float32]
    assert len(halves) == 1


def test_a_loop_in_a_loop_and_a_branch_in_it() -> None:
    graph = read(
        """(float[3] x, bool c) => (float[3] y) {
            y = Loop (n, t, x) <
                body = outer (int64 i, bool go, float[3] h) => (bool more, float[3] u) {
                    more = Identity(go)
                    d = Loop (m, t, h) <
                        body = inner (int64 j, bool go2, float[3] g) => (bool more2, float[3] v) { more2 = Identity(go2) v = Sin(g) } >
                    u = If (c) < then_branch = yes () => (float[3] p) { p = Add(d, h) }, else_branch = no () => (float[3] q) { q = Sub(d, x) } >
                } >
        }""",
        18,
        n=np.array(2, np.int64),
        m=np.array(3, np.int64),
        t=TRUE,
    )
    feeds = {"x": X["x"][0], "c": np.array(False)}
    lowered = require_lowered(
        unroll_loop, graph, feeds, changes=3, branches=False
    )  # the outer one, and the inner one of each trip
    assert kinds(lowered)["Sin"] == 6 and kinds(lowered)["If"] == 2


def test_a_loop_whose_results_are_what_it_was_given() -> None:
    """A state that is never changed, of which the graph's own input is the result."""
    graph = read(
        """(float[3] x) => (float[3] y) {
            y = Loop (n, t, x) < body = step (int64 i, bool go, float[3] h) => (bool more, float[3] u) { more = Identity(go) u = Identity(h) } >
        }""",
        18,
        n=np.array(2, np.int64),
        t=TRUE,
    )
    require_lowered(unroll_loop, graph, {"x": X["x"][0]}, branches=False)


BODY = "body = step (int64 i, bool go, float[3] h) => (bool more, float[3] u) { %s u = Sin(h) }"


@pytest.mark.parametrize(
    ("inputs", "trips", "step"),
    [
        ("float[3] x, int64 n", None, "more = Identity(go)"),  # fed
        ("float[3] x", MOST_TRIPS + 1, "more = Identity(go)"),
        ("float[3] x", 0, "more = Identity(go)"),
        ("float[3] x", 3, "z = ReduceSum<keepdims = 0>(h) more = Greater(z, z)"),  # stops when it likes
    ],
)
def test_it_leaves_what_is_not_fixed(inputs: str, trips: int | None, step: str) -> None:
    weights = {} if trips is None else {"n": np.array(trips, np.int64)}
    graph = read(f"({inputs}) => (float[3] y) {{ y = Loop (n, t, x) < {BODY % step} > }}", 18, t=TRUE, **weights)
    lowered, changes = unroll_loop(graph)
    assert changes == 0 and whole(lowered) == whole(graph)
