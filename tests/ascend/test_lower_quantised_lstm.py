"""DynamicQuantizeLSTM in primitives, against onnxruntime's kernel on one thread: a number that is quantised otherwise shows as a jump."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.dynamic_quantize_lstm import dynamic_quantize_lstm
from porting.types import Graph
from tests.ascend.lowering_checks import FLOAT32, kinds, read, require_lowered
from tests.graph_bits import run, whole

BOUND = 64 * FLOAT32  # sigmoid and tanh of up to a dozen steps, which onnxruntime's kernel computes in other vectors
INTEGERS = {"int8": (np.int8, -64, 64), "uint8": (np.uint8, 0, 128)}  # of 7 bits: see test_lower_dequantize.py


def layer(
    rng: np.random.Generator,
    steps: object = 3,
    batch: int = 2,
    inputs: int = 5,
    hidden: int = 4,
    direction: str = "forward",
    kind: str = "int8",
    channels: bool = False,
    given: str = "",
    outputs: str = "y, h, c",
    more: str = "",
    largest: float = 0.02,
) -> tuple[Graph, dict[str, Any]]:
    """given: names of optional inputs, of b (bias), h (state), c (cell), p (peepholes)"""
    ways = 2 if direction == "bidirectional" else 1
    dtype, low, high = INTEGERS[kind]
    scales = (ways, 4 * hidden) if channels else (ways,)
    # onnxruntime takes one zero for all channels of all directions, or one a direction
    zero = rng.integers(60, 70, (1, 1) if channels else scales) if kind == "uint8" else np.zeros(1)
    weights: dict[str, np.ndarray] = {
        "w": rng.integers(low, high, (ways, inputs, 4 * hidden)).astype(dtype),
        "r": rng.integers(low, high, (ways, hidden, 4 * hidden)).astype(dtype),
        "ws": rng.uniform(largest / 10, largest, scales).astype(np.float32),
        "rs": rng.uniform(largest / 10, largest, scales).astype(np.float32),
        "wz": np.broadcast_to(zero, scales).astype(dtype),
        "rz": np.broadcast_to(zero, scales).astype(dtype),
    }
    optional = {"b": (ways, 8 * hidden), "h0": (ways, batch, hidden), "c0": (ways, batch, hidden), "p": (ways, 3 * hidden)}
    weights |= {n: rng.standard_normal(s).astype(np.float32) for n, s in optional.items() if n[0] in given}
    names = {n: n if n[0] in given else "" for n in optional}
    text = (
        f"(float[{steps}, {batch}, {inputs}] x) => (float[{steps}, {ways}, {batch}, {hidden}] y, float[{ways}, {batch}, {hidden}] h, "
        f"float[{ways}, {batch}, {hidden}] c) {{ {outputs} = com.microsoft.DynamicQuantizeLSTM<hidden_size = {hidden}, direction = "
        f'"{direction}"{more}>(x, w, r, {names["b"]}, , {names["h0"]}, {names["c0"]}, {names["p"]}, ws, wz, rs, rz) }}'
    )
    graph = read(text, 17, contrib=True, **weights)
    shape = (steps if isinstance(steps, int) else 3, batch, inputs)
    return graph, {"x": (rng.standard_normal(shape) * 2).astype(np.float32)}


@given(
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 8),
    st.sampled_from(["forward", "reverse", "bidirectional"]),
    st.sampled_from(sorted(INTEGERS)),
    st.booleans(),
    st.sampled_from(["", "b", "bh", "bhc", "hcp", "bhcp"]),
    st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_a_layer(
    steps: int, batch: int, inputs: int, hidden: int, direction: str, kind: str, channels: bool, given: str, seed: int
) -> None:
    graph, feeds = layer(np.random.default_rng(seed), steps, batch, inputs, hidden, direction, kind, channels, given)
    lowered = require_lowered(dynamic_quantize_lstm, graph, feeds, BOUND, branches=False)
    assert not {node.domain for node in lowered.model.graph} - {""}


@pytest.mark.parametrize("more", [", clip = 0.3", ", input_forget = 1", ', activations = ["Relu", "Tanh", "Sigmoid"]'])
def test_attributes_of_an_lstm(more: str) -> None:
    graph, feeds = layer(np.random.default_rng(1), given="bhc", more=more)
    require_lowered(dynamic_quantize_lstm, graph, feeds, BOUND, branches=False)


def test_sums_beyond_24_bits_are_exact() -> None:
    """1400 products of up to 255 and 64."""
    graph, feeds = layer(np.random.default_rng(2), 2, 1, 1400, 3, given="b", largest=1e-3)
    lowered = require_lowered(dynamic_quantize_lstm, graph, feeds, BOUND, branches=False)
    assert kinds(lowered)["Cast"] > 2, "in parts, which are added as integers"


def test_it_is_quantised() -> None:
    """Float weights in an LSTM are something else, by far more than the bound."""
    graph, feeds = layer(np.random.default_rng(3), 4, 2, given="b")
    (quantised, *_) = run(whole(graph), feeds)
    moved = {"x": feeds["x"] * np.float32(1.003)}
    (other, *_) = run(whole(graph), moved)
    lowered, _ = dynamic_quantize_lstm(graph)
    assert 0 < np.abs(quantised - other).max() < 0.1
    np.testing.assert_allclose(run(whole(lowered), moved)[0], other, atol=1e-5)


def test_zeros_are_quantised_too() -> None:
    graph, feeds = layer(np.random.default_rng(4), given="b")
    require_lowered(dynamic_quantize_lstm, graph, {"x": np.zeros_like(feeds["x"])}, BOUND, branches=False)


@pytest.mark.parametrize("steps", ["T", 200])
def test_it_leaves_what_has_too_many_steps_or_unknown_ones(steps: object) -> None:
    graph, _ = layer(np.random.default_rng(5), steps)
    lowered, changes = dynamic_quantize_lstm(graph)
    assert changes == 0 and whole(lowered) == whole(graph)


def test_a_layer_behind_another() -> None:
    """What the second one is fed has no known sizes before the first is rewritten."""
    graph, feeds = layer(np.random.default_rng(6), 3, 2, 4, 4)
    text = (
        "(float[3, 2, 4] x) => (float[3, 1, 2, 4] y) { a = com.microsoft.DynamicQuantizeLSTM<hidden_size = 4>(x, w, r, , , , , , ws, wz, rs, rz)"
        " s = Squeeze(a, one) y = com.microsoft.DynamicQuantizeLSTM<hidden_size = 4>(s, w, r, , , , , , ws, wz, rs, rz) }"
    )
    weights = {n: v.const_value.numpy() for n, v in graph.model.graph.initializers.items() if v.const_value is not None}
    both = read(text, 17, contrib=True, one=np.array([1]), **weights)
    require_lowered(dynamic_quantize_lstm, both, feeds, BOUND, changes=2, branches=False)
