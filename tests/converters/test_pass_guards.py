"""Conditions of single passes that few graphs reach: each graph here runs in onnxruntime before and after, and gives the same bits, or the same error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graph_bits import run, same_bits, whole, written

from porting.converters.passes.convert_version import convert_version
from porting.converters.passes.drop_identities import drop_identities
from porting.converters.passes.fold_constants import fold_constants
from porting.converters.passes.infer_shapes import infer_shapes
from porting.types import Graph

RNG = np.random.default_rng(0)
FAR = 2**63 - 1


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def outputs(graph: Graph, feeds: dict[str, np.ndarray]) -> list[Any]:
    return run(whole(graph), feeds)


def require_same(before: Graph, after: Graph, feeds: dict[str, np.ndarray]) -> None:
    for old, new in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        assert same_bits(old, new)


def held(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.model.graph]


@pytest.mark.parametrize(
    ("starts", "ends", "axes"),
    [
        ([0, 2], [FAR, FAR], [0, 1]),  # one start alone is 0
        ([2, 0], [FAR, FAR], [0, 1]),
        ([0, 0], [FAR, 3], [0, 1]),  # one end alone is far
        ([0, 0], [3, FAR], [0, 1]),
        ([0], [6], [1]),  # an end within
        ([0], [2**31 - 2], [1]),  # not known to be beyond
    ],
)
def test_a_slice_of_a_part_stays(starts: list[int], ends: list[int], axes: list[int]) -> None:
    given = {"s": np.array(starts), "e": np.array(ends), "a": np.array(axes)}
    graph = written("(float[N, M] x) => (float y) { h = Neg(x) k = Slice(h, s, e, a) y = Neg(k) }", 17, **given)
    after, changes = drop_identities(infer_shapes(graph)[0])
    assert not changes and "Slice" in held(after)
    require_same(graph, after, {"x": f32(4, 9)})


def test_a_slice_by_attributes_of_a_part_stays() -> None:
    text = (
        "(float[N, M] x) => (float y) { h = Neg(x) k = Slice<starts = [0, 2], ends = [2147483647, 2147483647]>(h) y = Neg(k) }"
    )
    graph = written(text, 9)
    after, changes = drop_identities(infer_shapes(graph)[0])
    assert not changes
    require_same(graph, after, {"x": f32(4, 9)})


def test_a_slice_of_everything_goes() -> None:
    given = {"s": np.array([0, 0]), "e": np.array([FAR, 2**31 - 1]), "a": np.array([0, 1])}
    graph = written("(float[N, M] x) => (float y) { h = Neg(x) k = Slice(h, s, e, a) y = Neg(k) }", 17, **given)
    after, changes = drop_identities(infer_shapes(graph)[0])
    assert changes == 1 and held(after) == ["Neg", "Neg"]
    require_same(graph, after, {"x": f32(4, 9)})


def test_a_reshape_of_nothing_whose_open_dimension_nothing_tells_stays() -> None:
    """With no elements -1 may be any number: onnxruntime refuses, and so does the graph afterwards."""
    graph = written("(float[N, M, 0] x) => (float y) { h = Neg(x) k = Reshape(h, t) y = Neg(k) }", 17, t=np.array([0, -1, 0]))
    after, changes = drop_identities(infer_shapes(graph)[0])
    assert not changes and "Reshape" in held(after)
    for either in (graph, after):
        with pytest.raises(Exception, match="product of 0"):
            outputs(either, {"x": f32(2, 3, 0)})


@pytest.mark.parametrize("end", [FAR, 2**31 - 1, -FAR - 1, -11])
def test_a_slice_backwards_is_left_to_the_runtime(end: int) -> None:
    """onnxruntime takes the largest numbers as an end that goes with the direction; the reference takes them as they are."""
    given = {"c": np.arange(10), "s": np.array([9]), "e": np.array([end]), "a": np.array([0]), "d": np.array([-1])}
    graph = written("(int64[N] x) => (int64 y) { k = Slice(c, s, e, a, d) y = Concat<axis = 0>(x, k) }", 17, **given)
    after, changes = fold_constants(infer_shapes(graph)[0])
    assert not changes and "Slice" in held(after)
    require_same(graph, after, {"x": np.array([5])})


def test_a_slice_forwards_is_folded() -> None:
    given = {"c": np.arange(10), "s": np.array([2]), "e": np.array([FAR]), "a": np.array([0]), "d": np.array([3])}
    graph = written("(int64[N] x) => (int64 y) { k = Slice(c, s, e, a, d) y = Concat<axis = 0>(x, k) }", 17, **given)
    after, changes = fold_constants(infer_shapes(graph)[0])
    assert changes == 1 and held(after) == ["Concat"]
    require_same(graph, after, {"x": np.array([5])})


@pytest.mark.parametrize(
    ("text", "opset", "reached", "feeds"),
    [
        pytest.param(
            "(float[1, 4, 8, 8] x, float[2, 4] r, int64[2] b) => (float y) {"
            " y = RoiAlign<output_height = 2, output_width = 3, spatial_scale = 0.7>(x, r, b) }",
            10,
            21,
            {"r": np.array([[0, 0, 5, 6], [1, 2, 9, 10]], np.float32), "b": np.zeros(2, np.int64)},
            id="coordinates that were not shifted by half a pixel",
        ),
        pytest.param(
            "(float[1, 8, 5, 1] x) => (float y) { y = DFT(x) }", 17, 24, {"x": f32(1, 8, 5, 1)}, id="DFT, default axis"
        ),
        pytest.param("(float[1, 8, 5, 1] x) => (float y) { y = DFT<axis = 2>(x) }", 17, 24, {"x": f32(1, 8, 5, 1)}, id="DFT"),
        pytest.param(
            "(float[1, 4, 8, 8] x) => (float y) { y = Pad<pads = [0, 0, 1, 2, 0, 0, 3, 0], value = -2.5>(x) }",
            9,
            24,
            {},
            id="Pad with a value",
        ),
        pytest.param(
            "(float16[1, 4, 8, 8] h) => (float16 y) { y = Pad<pads = [0, 0, 1, 2, 0, 0, 3, 0], value = 0.1>(h) }",
            9,
            24,
            {"h": f32(1, 4, 8, 8).astype(np.float16)},
            id="Pad of half numbers",
        ),
        pytest.param(
            "(float[1, 4, 8, 8] x) => (float y) { y = Pad<pads = [0, 0, 1, 2, 0, 0, 3, 0]>(x) }", 9, 24, {}, id="Pad without"
        ),
    ],
)
def test_an_operator_in_its_next_version(text: str, opset: int, reached: int, feeds: dict[str, np.ndarray]) -> None:
    graph = written(text, opset)
    after, changes = convert_version(infer_shapes(graph)[0])
    assert changes and after.model.graph.opset_imports[""] == reached
    given = {"x": f32(1, 4, 8, 8), **feeds}
    require_same(graph, after, given)
