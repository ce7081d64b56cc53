"""RMSNormalization, LayerNormalization, GroupNormalization, ReduceL1 and ReduceL2, against onnxruntime's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.group_normalization import group_normalization
from porting.converters.passes.ascend.layer_normalization import layer_normalization
from porting.converters.passes.ascend.reduce_norms import reduce_norms
from porting.converters.passes.ascend.rms_normalization import rms_normalization
from porting.converters.passes.rewriting import ModelPass
from tests.ascend.lowering_checks import FLOAT32, kinds, read, require_lowered
from tests.graph_bits import whole

BOUND = 32 * FLOAT32  # means of up to 625 numbers, summed in two orders, of numbers whose mean is up to their size


def numbers(seed: int, *shape: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) + shift).astype(np.float32)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(-4, 3),
    st.booleans(),
    st.sampled_from([1e-5, 1e-2]),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_rms_normalization(shape: list[int], axis: int, free: bool, epsilon: float, seed: int) -> None:
    axis = max(-len(shape), min(axis, len(shape) - 1))
    dims = ", ".join("N" if free and i == 0 and axis % len(shape) else str(d) for i, d in enumerate(shape))
    scale = shape[axis % len(shape) :]
    text = (
        f"(float[{dims}] x, float[{', '.join(map(str, scale))}] s) => (float y)"
        f" {{ y = RMSNormalization<axis = {axis}, epsilon = {epsilon}>(x, s) }}"
    )
    lowered = require_lowered(
        rms_normalization, read(text, 23), {"x": numbers(seed, *shape), "s": numbers(seed + 1, *scale)}, BOUND
    )
    assert kinds(lowered)["ReduceMean"] == 1


def test_half_numbers_are_squared_in_float32() -> None:
    """300 squared is beyond fp16."""
    x = {"x": (numbers(0, 2, 8) * 300).astype(np.float16), "s": numbers(1, 8).astype(np.float16)}
    graph = read("(float16[2, 8] x, float16[8] s) => (float16[2, 8] y) { y = RMSNormalization(x, s) }", 23)
    lowered = require_lowered(rms_normalization, graph, x, 2 * 2.0**-10)
    assert kinds(lowered)["Cast"] == 2


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.integers(2, 6),
    st.booleans(),
    st.sampled_from([13, 16]),
    st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_layer_normalization_below_its_opset(outer: list[int], size: int, bias: bool, opset: int, seed: int) -> None:
    """onnxruntime's optimiser writes it into files of opset 13."""
    shape = [*outer, size]
    dims = ", ".join(map(str, shape))
    text = f"(float[{dims}] x) => (float[{dims}] y) {{ y = LayerNormalization<axis = -1>(x, s{', b' if bias else ''}) }}"
    graph = read(text, opset, s=numbers(seed, size), b=numbers(seed + 1, size))
    lowered = require_lowered(layer_normalization, graph, {"x": numbers(seed + 2, *shape, shift=1.0)}, BOUND)
    assert "LayerNormalization" not in kinds(lowered)


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.lists(st.integers(2, 5), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 99),
)
@example(batch=1, groups=1, each=1, rest=[2], free=False, seed=72)
@settings(max_examples=30, deadline=None)
def test_group_normalization(batch: int, groups: int, each: int, rest: list[int], free: bool, seed: int) -> None:
    """Per channel from opset 21 on."""
    shape = [batch, groups * each, *rest]
    dims = ", ".join(["N" if free else str(batch), *map(str, shape[1:-1]), "W" if free else str(shape[-1])])
    text = f"(float[{dims}] x) => (float y) {{ y = GroupNormalization<num_groups = {groups}, epsilon = 0.001>(x, s, b) }}"
    graph = read(text, 21, s=numbers(seed, shape[1]), b=numbers(seed + 1, shape[1]))
    x = numbers(seed + 2, *shape, shift=0.5)
    grouped = x.reshape(batch * groups, -1).astype(np.float64)
    lost = np.abs(grouped).max(1) / np.sqrt(
        grouped.var(1) + 0.001
    )  # digits that go with the mean, where a group's numbers lie near each other
    lowered = require_lowered(group_normalization, graph, {"x": x}, BOUND * max(1.0, lost.max()))
    assert kinds(lowered)["InstanceNormalization"] == 1


def test_group_normalization_per_group() -> None:
    """The form of opset 18, which onnxruntime computes by its definition."""
    graph = read(
        "(float[2, 6, 4] x) => (float[2, 6, 4] y) { y = GroupNormalization<num_groups = 3>(x, s, b) }",
        18,
        s=numbers(0, 3),
        b=numbers(1, 3),
    )
    require_lowered(group_normalization, graph, {"x": numbers(2, 2, 6, 4)}, BOUND)


@given(
    st.sampled_from(["ReduceL1", "ReduceL2"]),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.sets(st.integers(-4, 3), max_size=3),
    st.integers(0, 1),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_norms(kind: str, shape: list[int], axes: set[int], keepdims: int, seed: int) -> None:
    places = sorted({a % len(shape) for a in axes})
    dims = ", ".join(map(str, shape))
    text = f"(float[{dims}] x) => (float y) {{ y = {kind}<keepdims = {keepdims}>(x{', a' if places else ''}) }}"
    graph = read(text, 18, a=np.array(places, np.int64))
    lowered = require_lowered(reduce_norms, graph, {"x": numbers(seed, *shape)}, BOUND)
    assert kinds(lowered)["ReduceSum"] == 1


@pytest.mark.parametrize(
    ("change", "text", "opset"),
    [
        (rms_normalization, "(double[2, 3] x, float[3] s) => (float y) { y = RMSNormalization(x, s) }", 23),
        (layer_normalization, "(float[2, 3] x, float[3] s) => (float y) { y = LayerNormalization(x, s) }", 17),
        (layer_normalization, "(float[2, 3] x, float[3] s) => (float y, float m) { y, m = LayerNormalization(x, s) }", 13),
        (group_normalization, "(float x, float[3] s) => (float y) { y = GroupNormalization<num_groups = 1>(x, s, s) }", 21),
        (reduce_norms, "(float[2, 3] x) => (float y) { y = ReduceL2<axes = [1]>(x) }", 17),
        (reduce_norms, "(int32[2, 3] x) => (int32 y) { y = ReduceL2(x) }", 18),
        (reduce_norms, "(float[2, 3] x, int64[N] a) => (float y) { y = ReduceL1<noop_with_empty_axes = 1>(x, a) }", 18),
        (reduce_norms, "(float[2, 3] x) => (float y) { y = ReduceMax(x) }", 18),
    ],
)
def test_others_stay(change: ModelPass, text: str, opset: int) -> None:
    graph = read(text, opset)
    lowered, changes = change(graph)
    assert changes == 0 and whole(lowered) == whole(graph)
