"""Traps of indices: those that count from the end, batches, reductions of scatters, ties of an ArgMax."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx.reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import porting
from porting.ascend.handoff import handoffs_of
from porting.converters.passes.ascend.arg_max_last import NOTE, arg_max_last
from porting.converters.passes.ascend.gather_nd_batch import gather_nd_batch
from porting.converters.passes.ascend.negative_indices import negative_indices
from porting.converters.passes.ascend.scatter_reduction import scatter_reduction
from porting.converters.passes.ascend.top_k import top_k
from tests.ascend.lowering_checks import kinds, read, require_lowered
from tests.graph_bits import run, whole

FEW = settings(max_examples=25, deadline=None)
TYPES = {"int64": np.int64, "int32": np.int32}
SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def dims(sizes: Sequence[int], free: bool, letter: str = "d") -> str:
    if not sizes:
        return ""  # a scalar
    return "[" + ", ".join(f"{letter}{i}" if free else str(size) for i, size in enumerate(sizes)) + "]"


@st.composite
def indexed(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, Any], bool]:
    """(text, weights, feeds, whether the pass has something to do)"""
    sizes, kind = draw(SIZES), draw(st.sampled_from(["Gather", "GatherElements", "ScatterElements", "GatherND", "ScatterND"]))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    free, fed, below = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    dtype = "int64" if kind.endswith("ND") else draw(st.sampled_from(list(TYPES)))
    axis = draw(st.integers(-len(sizes), len(sizes) - 1))
    if kind.endswith("ND"):
        depth = draw(st.integers(1, len(sizes)))
        columns = [rng.choice(size, min(2, min(sizes[:depth])), replace=False) for size in sizes[:depth]]
        indices = np.stack(columns, -1)
        indices = indices - (np.array(sizes[:depth]) if below else 0)
    else:
        shape = tuple(draw(st.lists(st.integers(1, 3), max_size=2))) if kind == "Gather" else tuple(sizes)
        indices = rng.integers(0, sizes[axis], shape) - (sizes[axis] if below else 0)
        if kind == "ScatterElements":  # no place twice
            indices = np.argsort(rng.standard_normal(sizes), axis) - (sizes[axis] if below else 0)
    indices = np.asarray(indices, TYPES[dtype])
    written = f"<axis={axis}>" if not kind.endswith("ND") else ""
    updates = ""
    feeds: dict[str, Any] = {"x": random(*sizes), "i": indices}
    if kind.startswith("Scatter"):
        shape = (*indices.shape[:-1], *sizes[indices.shape[-1] :]) if kind == "ScatterND" else indices.shape
        feeds["u"], updates = random(*shape), ", u"
    inputs = [f"float{dims(sizes, free)} x"]
    inputs += [f"{dtype}{dims(indices.shape, False)} i"] if fed else []
    inputs += [f"float{dims(feeds['u'].shape, False)} u"] if updates else []
    text = f"({', '.join(inputs)}) => (float y) {{ y = {kind}{written}(x, i{updates}) }}"
    return text, ({} if fed else {"i": indices}), feeds, fed or below


@FEW
@given(indexed())
def test_indices_count_from_the_front(case: tuple[str, dict[str, Any], dict[str, Any], bool]) -> None:
    text, weights, feeds, todo = case
    graph = read(text, 17, **weights)
    lowered = require_lowered(negative_indices, graph, feeds, changes=int(todo))
    for value in lowered.model.graph.initializers.values():
        assert not todo or value.dtype.name not in TYPES or value.const_value.numpy().min() >= 0  # type: ignore[union-attr]


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("fed", [False, True])
@pytest.mark.parametrize(
    ("axis", "kind"), [(1, "Gather"), (-1, "Gather"), (2, "GatherElements"), (-2, "GatherElements"), (1, "ScatterElements")]
)
def test_the_size_that_is_added_is_that_of_the_axis(axis: int, kind: str, fed: bool, free: bool) -> None:
    sizes = (2, 5, 3)
    shape = (2,) if kind == "Gather" else sizes
    i = np.resize(np.array([-1, -2], np.int64), shape)
    if kind == "ScatterElements":
        i = np.argsort(random(*sizes), axis) - sizes[axis]
    feeds = {"x": random(*sizes), "i": i, "u": random(*sizes)}
    inputs = [f"float{dims(sizes, free)} x", *([f"int64{dims(shape, False)} i"] if fed else [])]
    inputs += ["float[2, 5, 3] u"] if kind == "ScatterElements" else []
    text = f"({', '.join(inputs)}) => (float y) {{ y = {kind}<axis={axis}>(x, i{', u' if kind == 'ScatterElements' else ''}) }}"
    lowered = require_lowered(negative_indices, read(text, 17, **({} if fed else {"i": i})), feeds)
    if not fed and not free:
        node = next(node for node in lowered.model.graph if node.op_type == kind)
        constant = node.inputs[1].const_value if node.inputs[1] is not None else None
        assert constant is not None and np.array_equal(constant.numpy(), i + sizes[axis])


@pytest.mark.parametrize(
    "made",
    [
        "i = ArgMax<axis=0, keepdims=0>(x)",
        "s = Shape(x) i = Gather<axis=0>(s, one)",
        "v, i = TopK<axis=0>(x, k)",
        "i = NonZero(x)",
    ],
)
def test_indices_that_are_places_stay(made: str) -> None:
    graph = read(
        f"(float[5, 3] x) => (float y) {{ {made} y = Gather(big, i) }}",
        17,
        one=np.array([1], np.int64),
        k=np.array([2], np.int64),
        big=random(9, 2),
    )
    assert negative_indices(graph)[1] == 0


@pytest.mark.parametrize(
    "made",
    [
        "p = ArgMax<axis=0, keepdims=0>(x) i = Neg(p)",
        "s = Shape(x) i = Sub(s, k)",
        "v, p = TopK<axis=0>(x, k) i = Cast<to=7>(v)",
    ],
)
def test_indices_that_may_be_negative_are_brought_forward(made: str) -> None:
    graph = read(
        f"(float[5, 3] x) => (float y) {{ {made} y = Gather(big, i) }}", 17, k=np.array([2], np.int64), big=random(9, 2)
    )
    require_lowered(negative_indices, graph, {"x": random(5, 3) - 1})


@FEW
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.data())
def test_gather_nd_names_its_batch(batch: int, n: int, depth: int, data: st.DataObject) -> None:
    sizes = [2, 3, 2, 3, 2][: batch + depth + 1]
    indices = np.random.default_rng(n).integers(0, 2, (*sizes[:batch], n, depth)).astype(np.int64)
    text = (
        f"(float{dims(sizes, data.draw(st.booleans()))} x, int64{dims(indices.shape, False)} i) => (float y) "
        f"{{ y = GatherND<batch_dims={batch}>(x, i) }}"
    )
    lowered = require_lowered(gather_nd_batch, read(text, 17), {"x": random(*sizes), "i": indices})
    assert all("batch_dims" not in node.attributes for node in lowered.model.graph)


@FEW
@given(SIZES, st.sampled_from(["add", "mul", "max", "min"]), st.booleans(), st.booleans(), st.integers(0, 99), st.data())
def test_scatter_nd_reduces_elsewhere(
    sizes: list[int], how: str, fed: bool, twice: bool, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    depth = data.draw(st.integers(1, len(sizes)))
    rows = 5 if twice else min(sizes)
    columns = [rng.integers(0, s, rows) if twice else rng.choice(s, rows, replace=False) for s in sizes[:depth]]
    indices = np.stack(columns, -1).astype(np.int64)
    indices[0] -= np.array(sizes[:depth])
    updates = random(rows, *sizes[depth:])
    more = f", int64{dims(indices.shape, False)} i" if fed else ""
    text = (
        f"(float{dims(sizes, False)} x, float{dims(updates.shape, False)} u{more}) => (float y) "
        f'{{ y = ScatterND<reduction="{how}">(x, i, u) }}'
    )
    graph = read(text, 18, **({} if fed else {"i": indices}))
    lowered = require_lowered(scatter_reduction, graph, {"x": random(*sizes), "u": updates, "i": indices})
    assert all(node.op_type != "ScatterND" or "reduction" not in node.attributes for node in lowered.model.graph)
    assert fed or twice or kinds(lowered)["ScatterND"] == 1


@FEW
@given(st.sampled_from(["add", "mul", "max", "min"]), st.booleans(), st.integers(0, 1))
def test_scatter_elements_reduces_where_no_place_is_twice(how: str, twice: bool, axis: int) -> None:
    indices = np.argsort(random(3, 3), axis)
    if twice:
        indices[:] = 1
    text = f'(float[3, 3] x, float[3, 3] u) => (float y) {{ y = ScatterElements<axis={axis}, reduction="{how}">(x, i, u) }}'
    graph = read(text, 18, i=indices)
    feeds = {"x": random(3, 3), "u": random(3, 3)[::-1].copy()}
    require_lowered(scatter_reduction, graph, feeds, changes=int(not twice))


@FEW
@given(st.sampled_from(["ArgMax", "ArgMin"]), st.integers(-2, 1), st.integers(0, 1), st.integers(0, 99))
def test_the_last_of_equal_numbers(kind: str, axis: int, keep: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(0, 3, (4, 5)).astype(np.float32)
    text = f"(float[4, 5] x) => (int64 y) {{ y = {kind}<axis={axis}, keepdims={keep}, select_last_index=1>(x) }}"
    lowered = require_lowered(arg_max_last, read(text, 17), {"x": x})
    assert all(not node.attributes.get("select_last_index") for node in lowered.model.graph)


def test_a_port_tells_that_the_order_among_nan_is_not_kept(tmp_path: Path) -> None:
    graph = read("(float[2, 5] x) => (int64 y) { y = ArgMax<axis=1, select_last_index=1>(x) }", 17)
    x = np.array([[1, 1, 1, 1, np.nan], [2, 2, 1, 2, 0]], np.float32)
    before, after = (run(whole(one), {"x": x})[0] for one in (graph, arg_max_last(graph)[0]))
    assert before[0] != after[0] and before[1] == after[1] == 3  # among NaN alone
    (tmp_path / "m.onnx").write_bytes(whole(graph))
    porting.convert(tmp_path / "m.onnx", tmp_path / "m.port", "Ascend310P3")
    assert NOTE in handoffs_of(tmp_path / "m.port")[0].manifest["notes"]
    assert NOTE in porting.check(tmp_path / "m.onnx", "Ascend310P3").details["notes"]


def test_top_k_says_everything() -> None:
    graph = read("(float[2, 5] x) => (float v, int64 i) { v, i = TopK(x, k) }", 17, k=np.array([3], np.int64))
    lowered = require_lowered(top_k, graph, {"x": random(2, 5)})
    node = next(iter(lowered.model.graph))
    assert {name: a.as_int() for name, a in node.attributes.items()} == {"axis": 1, "largest": 1, "sorted": 1}
    assert (
        onnx.reference.ReferenceEvaluator(whole(graph)).run(None, {"x": random(2, 5)})[1].tolist()
        == run(whole(lowered), {"x": random(2, 5)})[1].tolist()
    )


@pytest.mark.parametrize(
    ("bound", "added", "index"), [(5, -8, [0, 1, 4, 5, 9, 2]), (0, 3, [-5, -1, 2, -10, 0, 9]), (-2, 10, [-1, -2, -3, 3, 0, 9])]
)
def test_another_choice_than_the_wrap_of_an_index_is_none(bound: int, added: int, index: list[int]) -> None:
    """Of ten rows: what comes out may still count from the end."""
    text = "(float[10, 3] t, int32[6] i) => (float y) { n = Less(i, b) s = Add(i, a) w = Where(n, s, i) y = Gather(t, w) }"
    graph = read(text, 17, b=np.array(bound, np.int32), a=np.array(added, np.int32))
    feeds = {"t": np.arange(30, dtype=np.float32).reshape(10, 3), "i": np.array(index, np.int32)}
    require_lowered(negative_indices, graph, feeds)
