"""Operators of onnxruntime's own domain in the standard's, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.linear_contrib import linear_contrib
from porting.converters.passes.rewriting import bodies_of
from tests.ascend.lowering_checks import FLOAT32, read, require_lowered
from tests.graph_bits import whole

BOUND = 32 * FLOAT32  # sums of up to 20 products in two orders; erf and tanh of two implementations


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def require(text: str, feeds: dict[str, Any], changes: int = 1, opset: int = 17, **weights: np.ndarray) -> None:
    lowered = require_lowered(linear_contrib, read(text, opset, contrib=True, **weights), feeds, BOUND, changes)
    assert {node.domain for body in bodies_of(lowered.model) for node in body} == {""}


@given(
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 0.25]),
    st.integers(2, 4),
    st.sampled_from([13, 17, 18]),
    st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_fused_mat_mul(first: bool, second: bool, alpha: float, rank: int, opset: int, seed: int) -> None:
    outer = [2, 3][: rank - 2]
    a, b = [*outer, *((7, 5) if first else (5, 7))], [*outer, *((4, 7) if second else (7, 4))]
    node = f"com.microsoft.FusedMatMul<transA = {int(first)}, transB = {int(second)}, alpha = {alpha}>(a, b)"
    text = f"(float[{', '.join(map(str, a))}] a, float[{', '.join(map(str, b))}] b) => (float y) {{ y = {node} }}"
    require(text, {"a": numbers(seed, *a), "b": numbers(seed + 1, *b)}, opset=opset)


@pytest.mark.parametrize("node", ["Gelu(x)", "BiasGelu(x, b)", "FastGelu(x)", "FastGelu(x, b)", "QuickGelu<alpha = 1.3>(x)"])
def test_activations(node: str) -> None:
    text = f"(float[N, 3, 8] x) => (float[N, 3, 8] y) {{ y = com.microsoft.{node} }}"
    require(text, {"x": numbers(0, 2, 3, 8) * 3}, b=numbers(1, 8))


@given(st.booleans(), st.booleans(), st.booleans(), st.sampled_from([13, 17]), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_skip_layer_normalization(simplified: bool, bias: bool, summed: bool, opset: int, seed: int) -> None:
    """The sum is the fourth output; types behind a contrib operator are not known before it is rewritten: a second one follows."""
    inputs = ("x, k, g" if simplified else "x, k, g, e") + (", b" if bias else "")
    kind = f"com.microsoft.Skip{'Simplified' if simplified else ''}LayerNormalization<epsilon = 0.001>"
    text = (
        f"(float[2, 3, 8] x, float[2, 3, 8] k) => (float[2, 3, 8] z{', float[2, 3, 8] t' if summed else ''})"
        f" {{ y{', , , t' if summed else ''} = {kind}({inputs}) z = {kind}({inputs.replace('x', 'y')}) }}"
    )
    weights = {name: numbers(seed + i, 8) for i, name in enumerate("geb")}
    require(text, {"x": numbers(seed + 5, 2, 3, 8), "k": numbers(seed + 6, 2, 3, 8)}, 2, opset, **weights)


def test_simplified_layer_normalization_of_the_standard_domain() -> None:
    """onnxruntime has it under the standard's name, which a checker refuses."""
    graph = read(
        "(float[2, 8] x) => (float[2, 8] y) { y = SimplifiedLayerNormalization<axis = -1, epsilon = 0.001>(x, g) }",
        17,
        g=numbers(0, 8),
    )
    require_lowered(linear_contrib, graph, {"x": numbers(1, 2, 8)}, BOUND)


@pytest.mark.parametrize(
    "activation", ['"Relu"', '"Sigmoid"', '"LeakyRelu", activation_params = [0.3]', '"Clip", activation_params = [0.0, 0.5]']
)
@pytest.mark.parametrize("inputs", ["x, w", "x, w, b", "x, w, b, r"])
def test_fused_conv(activation: str, inputs: str) -> None:
    text = (
        "(float[1, 3, 6, 6] x, float[1, 4, 6, 6] r) => (float[1, 4, 6, 6] y)"
        f" {{ y = com.microsoft.FusedConv<activation = {activation}, pads = [1, 1, 1, 1]>({inputs}) }}"
    )
    feeds = {"x": numbers(0, 1, 3, 6, 6), "r": numbers(1, 1, 4, 6, 6)}
    require(text, feeds, w=numbers(2, 4, 3, 3, 3), b=numbers(3, 4))


def test_fused_gemm() -> None:
    text = (
        "(float[3, 5] x) => (float[3, 4] y) "
        '{ y = com.microsoft.FusedGemm<activation = "LeakyRelu", activation_alpha = 0.2, transB = 1, alpha = 0.5>(x, w, b) }'
    )
    require(text, {"x": numbers(0, 3, 5)}, w=numbers(1, 4, 5), b=numbers(2, 4))


@pytest.mark.parametrize("attributes", ["", "<interleaved = 1>", "<num_heads = 2, rotary_embedding_dim = 4>"])
def test_rotary_embedding(attributes: str) -> None:
    half = 2 if "dim" in attributes else 4
    text = f"(float[2, 5, 16] x, int64[2, 5] p) => (float[2, 5, 16] y) {{ y = com.microsoft.RotaryEmbedding{attributes}(x, p, c, s) }}"
    feeds = {"x": numbers(0, 2, 5, 16), "p": np.random.default_rng(0).integers(0, 9, (2, 5))}
    require(text, feeds, c=numbers(1, 9, half), s=numbers(2, 9, half))


@pytest.mark.parametrize(
    "text",
    [
        "(float[2, 3, 4] a, float[2, 4, 5] b) => (float y) { y = com.microsoft.FusedMatMul<transBatchA = 1>(a, b) }",
        "(float[2, 8] x, float[2, 8] k, float[8] g) => (float y, float m) { y, m = com.microsoft.SkipLayerNormalization(x, k, g) }",
        "(float[2, 8] x) => (float y) { y = com.microsoft.Inverse(x) }",
        "(float[2, 8] x) => (float y) { y = Relu(x) }",
    ],
)
def test_it_leaves_the_others(text: str) -> None:
    graph = read(text, 17, contrib=True)
    lowered, changes = linear_contrib(graph)
    assert changes == 0 and whole(lowered) == whole(graph)
