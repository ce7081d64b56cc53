"""Gelu and Swish, against onnxruntime's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.gelu import gelu
from porting.converters.passes.ascend.swish import swish
from porting.converters.passes.rewriting import ModelPass
from tests.ascend.lowering_checks import FLOAT32, in_branches, kinds, read, require_lowered
from tests.graph_bits import run, whole

BOUND = 8 * FLOAT32  # one rounding per operator, and erf, tanh and exp of two implementations
NODES: list[tuple[ModelPass, str, int]] = [
    (gelu, "Gelu", 20),
    (gelu, 'Gelu<approximate = "tanh">', 20),
    (swish, "Swish", 24),
    (swish, "Swish<alpha = 1.702>", 24),
]


@pytest.mark.parametrize(("change", "node", "opset"), NODES)
@given(st.lists(st.integers(1, 5), max_size=4), st.sampled_from([0.1, 3.0, 100.0]), st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_of_every_shape_and_size(change: ModelPass, node: str, opset: int, shape: list[int], size: float, seed: int) -> None:
    x = np.asarray(np.random.default_rng(seed).standard_normal(shape) * size, np.float32)
    dims = f"[{', '.join(map(str, shape))}]" if shape else ""
    lowered = require_lowered(change, read(f"(float{dims} x) => (float y) {{ y = {node}(x) }}", opset), {"x": x}, BOUND)
    assert not set(kinds(lowered)) & {"Gelu", "Swish"}


@pytest.mark.parametrize(("change", "node", "opset"), NODES)
def test_half_numbers_stay_finite_at_both_ends(change: ModelPass, node: str, opset: int) -> None:
    """The square leaves fp16 at 256: tanh is at its limit long before."""
    x = np.array([-60000, -300, -41, -1, 0, 1, 41, 300, 60000], np.float16)
    graph = read(f"(float16[9] x) => (float16[9] y) {{ y = {node}(x) }}", opset)
    lowered, _ = change(graph)
    (got,) = run(whole(lowered), {"x": x})
    assert np.isfinite(got).all()
    wide, _ = change(read(f"(float[9] x) => (float[9] y) {{ y = {node}(x) }}", opset))
    (wanted,) = run(whole(wide), {"x": x.astype(np.float32)})
    np.testing.assert_allclose(got.astype(np.float32), wanted, rtol=8 * 2.0**-10, atol=8 * 2.0**-10)


@pytest.mark.parametrize("change", [gelu, swish])
def test_others_stay(change: ModelPass) -> None:
    graph = in_branches(read("(float[3] x) => (float[3] y) { y = Sigmoid(x) }", 24))
    lowered, changes = change(graph)
    assert changes == 0 and whole(lowered) == whole(graph)
