"""Traps of operators that move numbers: what is ignored or refused is gone, and no bit is another."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.empty_parts import empty_parts
from porting.converters.passes.ascend.expand_constant import expand_constant
from porting.converters.passes.ascend.pad_axes import pad_axes
from porting.converters.passes.ascend.pad_value import pad_value
from porting.converters.passes.ascend.reduce_axes import reduce_axes
from porting.converters.passes.ascend.shape_slice import shape_slice
from porting.converters.passes.ascend.slice_steps import places, slice_steps
from porting.converters.passes.ascend.split_sizes import split_sizes
from porting.converters.passes.ascend.transpose_perm import transpose_perm
from porting.types import Graph
from tests.ascend.lowering_checks import kinds, read, require_lowered
from tests.graph_bits import whole

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)
FEW = settings(max_examples=25, deadline=None)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def shape_text(sizes: list[int], free: bool) -> str:
    return ", ".join(f"d{i}" if free else str(size) for i, size in enumerate(sizes))


def only(graph: Graph, kind: str) -> Any:
    found = [node for node in graph.model.graph if node.op_type == kind]
    assert len(found) == 1
    return found[0]


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@FEW
@given(SIZES, st.booleans())
def test_transpose_has_a_perm(sizes: list[int], free: bool) -> None:
    graph = read(f"(float[{shape_text(sizes, free)}] x) => (float y) {{ y = Transpose(x) }}", 18)
    lowered = require_lowered(transpose_perm, graph, {"x": random(*sizes)})
    assert list(only(lowered, "Transpose").attributes["perm"].as_ints()) == list(reversed(range(len(sizes))))


def test_transpose_of_unknown_rank_is_left() -> None:
    graph = read("(float[a, b] x, int64[k] s) => (float y) { r = Reshape(x, s) y = Transpose(r) }", 18)
    assert transpose_perm(graph)[1] == 0


@FEW
@example([2, 3, 4], 3, 0, -1)
@example([2, 3, 4], 2, 1, 3)
@given(SIZES, st.sampled_from([0, 1, 2]), st.integers(-5, 5), st.integers(-5, 5) | st.none())
def test_shape_has_neither_start_nor_end(sizes: list[int], fixed: int, start: int, end: int | None) -> None:
    dims = ", ".join(str(s) if i < fixed else f"d{i}" for i, s in enumerate(sizes))
    written = f"start={start}" + ("" if end is None else f", end={end}")
    graph = read(f"(float[{dims}] x) => (int64 y) {{ y = Shape<{written}>(x) }}", 18)
    lowered = require_lowered(shape_slice, graph, {"x": random(*sizes)})
    assert all(not node.attributes.get("start") and not node.attributes.get("end") for node in lowered.model.graph)
    assert "Slice" not in kinds(lowered)


BOUNDS = st.sampled_from([-(1 << 62), -7, -3, -2, -1, 0, 1, 2, 3, 7, (1 << 62)])


@FEW
@given(SIZES, st.booleans(), st.data())
def test_slices_are_of_two_axes_or_more_with_a_last_step_of_one(sizes: list[int], free: bool, data: st.DataObject) -> None:
    rank = len(sizes)
    axes = data.draw(st.lists(st.sampled_from(range(rank)), min_size=1, max_size=rank, unique=True))
    steps = [data.draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in axes]
    weights = {
        "starts": ints(*(data.draw(BOUNDS) for _ in axes)),
        "ends": ints(*(data.draw(BOUNDS) for _ in axes)),
        "axes": ints(*(a - rank if data.draw(st.booleans()) else a for a in axes)),
        "steps": ints(*steps),
    }
    trap = rank == 1 or any(s != 1 and a == rank - 1 for s, a in zip(steps, axes, strict=True))
    text = f"(float[{shape_text(sizes, free)}] x) => (float y) {{ y = Slice(x, starts, ends, axes, steps) }}"
    lowered = require_lowered(slice_steps, read(text, 18, **weights), {"x": random(*sizes)}, changes=int(trap))
    for node in lowered.model.graph:
        if node.op_type == "Slice" and trap:
            value = node.inputs[0]
            assert value is not None and value.shape is not None and len(value.shape) > 1
            assert len(value.shape) - 1 not in node.inputs[3].const_value.numpy()  # type: ignore[union-attr]


def test_places_of_a_slice() -> None:
    """Against a Slice that is fed its numbers."""
    text = "(float[n] x, int64[1] a, int64[1] b, int64[1] axes, int64[1] c) => (float y) { y = Slice(x, a, b, axes, c) }"
    session = onnxruntime.InferenceSession(whole(read(text, 17)), providers=["CPUExecutionProvider"])
    bounds = [-(1 << 62), *range(-5, 6), 1 << 62]
    for size, a, b, step in product((1, 3, 4), bounds, bounds, (1, 2, -1, -2, -7)):
        feeds = {"x": np.arange(size, dtype=np.float32), "a": ints(a), "b": ints(b), "axes": ints(0), "c": ints(step)}
        assert session.run(None, feeds)[0].tolist() == places(a, b, step, size), (size, a, b, step)


def test_a_vector_is_sliced_by_numbers_that_are_fed() -> None:
    text = "(float[n] x, int64[1] a, int64[1] b) => (float y) { y = Slice(x, a, b) }"
    for a, b in ((0, 3), (-2, 100), (4, 1)):
        feeds = {"x": random(6), "a": ints(a), "b": ints(b)}
        require_lowered(slice_steps, read(text, 17), feeds)


@FEW
@given(st.integers(1, 12), st.integers(1, 5), st.booleans())
def test_split_has_sizes(size: int, parts: int, free: bool) -> None:
    most = -(-size // parts)
    good = not free and size - most * (parts - 1) > 0
    outputs = [f"y{i}" for i in range(parts)]
    text = (
        f"(float[2, {'n' if free else size}] x) => ({', '.join(f'float {y}' for y in outputs)}) "
        f"{{ {', '.join(outputs)} = Split<axis=-1, num_outputs={parts}>(x) }}"
    )
    graph = read(text, 18)
    if not good:  # onnxruntime has no parts of a negative size either
        assert split_sizes(graph)[1] == 0
        return
    lowered = require_lowered(split_sizes, graph, {"x": random(2, size)})
    node = only(lowered, "Split")
    assert "num_outputs" not in node.attributes and node.inputs[1].const_value.numpy().sum() == size


def test_split_below_13_has_sizes_as_an_attribute() -> None:
    graph = read("(float[6] x) => (float y, float z) { y, z = Split(x) }", 12)
    assert list(only(require_lowered(split_sizes, graph, {"x": random(6)}), "Split").attributes["split"].as_ints()) == [3, 3]


@FEW
@given(st.booleans())
def test_expand_to_what_is_known_is_by_a_constant(free: bool) -> None:
    text = f"(float[1, 3] x, float[{'n' if free else 4}, 3] like) => (float y) {{ s = Shape(like) y = Expand(x, s) }}"
    graph = read(text, 18)
    lowered = require_lowered(expand_constant, graph, {"x": random(1, 3), "like": random(4, 3)}, changes=int(not free))
    assert free or only(lowered, "Expand").inputs[1].const_value.numpy().tolist() == [4, 3]


def test_expand_to_what_is_fed_stays() -> None:
    """Its declared shape is that of one feed of many."""
    graph = read("(float[1, 3] x, int64[2] s) => (float[4, 3] y) { y = Expand(x, s) }", 18)
    require_lowered(expand_constant, graph, {"x": random(1, 3), "s": ints(2, 3)}, changes=0)


@FEW
@given(SIZES, st.booleans(), st.data())
def test_pads_are_of_all_axes(sizes: list[int], fed: bool, data: st.DataObject) -> None:
    rank = len(sizes)
    axes = data.draw(st.lists(st.sampled_from(range(rank)), max_size=rank, unique=True))
    pads = ints(*(data.draw(st.integers(0, 2)) for _ in range(2 * len(axes))))
    weights = {"axes": ints(*(a - rank if data.draw(st.booleans()) else a for a in axes)), "c": np.array(0, np.float32)}
    given_pads = "" if not fed else f", int64[{2 * len(axes)}] pads"
    text = f"(float[{shape_text(sizes, False)}] x{given_pads}) => (float y) {{ y = Pad(x, pads, c, axes) }}"
    graph = read(text, 18, **weights, **({} if fed else {"pads": pads}))
    lowered = require_lowered(pad_axes, graph, {"x": random(*sizes), "pads": pads})
    assert len([v for v in only(lowered, "Pad").inputs if v is not None]) == 3


@FEW
@given(
    SIZES,
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.5, -np.inf, np.nan]),
    st.booleans(),
    st.data(),
)
def test_pads_with_a_number_go_through_where(
    sizes: list[int], free: bool, fed: bool, value: float, given_value: bool, data: st.DataObject
) -> None:
    low = -1 if min(sizes) > 2 else 0
    pads = ints(*(data.draw(st.integers(low, 2)) for _ in range(2 * len(sizes))))
    c = np.array(value, np.float32)
    more = (f", int64[{len(pads)}] pads" if fed else "") + (", float c" if given_value else "")
    text = f"(float[{shape_text(sizes, free)}] x{more}) => (float y) {{ y = Pad(x, pads, c) }}"
    weights = {**({} if fed else {"pads": pads}), **({} if given_value else {"c": c})}
    lowered = require_lowered(pad_value, read(text, 17, **weights), {"x": random(*sizes), "pads": pads, "c": c})
    assert all(len(node.inputs) == 2 for node in lowered.model.graph if node.op_type == "Pad")


@pytest.mark.parametrize("given_value", ["", ", zero"])
def test_pads_with_zero_are_left(given_value: str) -> None:
    graph = read(f"(float[2] x) => (float y) {{ y = Pad(x, p{given_value}) }}", 17, p=ints(1, 1), zero=np.array(0, np.float32))
    assert pad_value(graph)[1] == 0


@FEW
@given(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(0, 1))
def test_parts_without_elements_go(sizes: list[int], axis: int) -> None:
    names = [f"x{i}" for i in range(len(sizes))]
    shapes = [(size, 3) if axis == 0 else (3, size) for size in sizes]
    inputs = ", ".join(f"float[{a}, {b}] {name}" for name, (a, b) in zip(names, shapes, strict=True))
    graph = read(f"({inputs}) => (float y) {{ y = Concat<axis={axis}>({', '.join(names)}) }}", 17)
    feeds = {name: random(*shape) for name, shape in zip(names, shapes, strict=True)}
    lowered = require_lowered(empty_parts, graph, feeds, changes=int(0 in sizes and any(sizes)))
    assert not any(sizes) or sum(kinds(lowered).values()) == 1
    left = [value for node in lowered.model.graph for value in node.inputs if value is not None]
    assert not any(sizes) or len(left) == sum(size > 0 for size in sizes)


KINDS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp", "ReduceL2", "ReduceSumSquare")


@FEW
@given(SIZES, st.sampled_from(KINDS), st.sampled_from([12, 17, 18]), st.booleans(), st.booleans(), st.booleans())
def test_reductions_have_axes(sizes: list[int], kind: str, opset: int, keep: bool, empty: bool, noop: bool) -> None:
    as_input = opset >= 18 or (opset >= 13 and kind == "ReduceSum")
    written = f"keepdims={int(keep)}" + (f", noop_with_empty_axes={int(noop)}" if as_input else "")
    given_axes = ", axes" if as_input and empty else ""
    graph = read(
        f"(float[{shape_text(sizes, True)}] x) => (float y) {{ y = {kind}<{written}>(x{given_axes}) }}", opset, axes=ints()
    )
    left = as_input and noop and kind in ("ReduceL2", "ReduceSumSquare")
    if left:
        assert reduce_axes(graph)[1] == 0
        return
    lowered = require_lowered(reduce_axes, graph, {"x": random(*sizes)})
    if as_input and noop:
        assert set(kinds(lowered)) == {"Identity"}
    elif as_input:
        assert only(lowered, kind).inputs[1].const_value.numpy().tolist() == list(range(len(sizes)))
    else:
        assert list(only(lowered, kind).attributes["axes"].as_ints()) == list(range(len(sizes)))
