"""RNN step by step, against onnxruntime's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.rnn import rnn
from tests.ascend.lowering_checks import FLOAT32, kinds, read, require_lowered
from tests.graph_bits import whole

# Up to 6 steps of sums of 9 products, each rounded in another order; Relu lets what came before grow to about 20 times an input.
BOUND = 64 * FLOAT32


@given(
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from(["forward", "reverse", "bidirectional"]),
    st.lists(st.sampled_from(["Tanh", "Relu", "Sigmoid"]), min_size=2, max_size=2),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_every_step(steps: int, batch: int, direction: str, names: list[str], bias: bool, begun: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 2 if direction == "bidirectional" else 1

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.5).astype(np.float32)

    weights = {"w": weight(count, 4, 3), "r": weight(count, 4, 4), "b": weight(count, 8), "h": weight(count, batch, 4)}
    activations = ", ".join(f'"{name}"' for name in names[:count])
    text = (
        f'(float[{steps}, B, 3] x) => (float y, float z) {{ y, z = RNN<direction = "{direction}", hidden_size = 4,'
        f" activations = [{activations}]>(x, w, r, {'b' if bias else ''}, , {'h' if begun else ''}) }}"
    )
    lowered = require_lowered(rnn, read(text, 18, **weights), {"x": weight(steps, batch, 3) * 2}, BOUND)
    assert "RNN" not in kinds(lowered)


@pytest.mark.parametrize(
    "text",
    [
        "(float[T, 1, 3] x) => (float y) { y = RNN<hidden_size = 4>(x, w, r) }",
        "(float[129, 1, 3] x) => (float y) { y = RNN<hidden_size = 4>(x, w, r) }",
        '(float[2, 1, 3] x) => (float y) { y = RNN<hidden_size = 4, activations = ["Elu"]>(x, w, r) }',
    ],
)
def test_it_leaves_the_others(text: str) -> None:
    graph = read(text, 18, w=np.ones((1, 4, 3), np.float32), r=np.ones((1, 4, 4), np.float32))
    lowered, changes = rnn(graph)
    assert changes == 0 and whole(lowered) == whole(graph)
