"""The distance of embeddings, and where its limits come from."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from porting.converters.passes.quantize_linear import INT8, dequantize_rows, quantize_rows
from porting.errors import InputError, UsageError
from porting.numerics.embedding_quality import cosine_distance, embedding_limit
from porting.numerics.quality import LIMITS_FILE


def test_known_angles() -> None:
    a = np.array([[1, 0], [1, 0], [3, 0], [0, 0], [0, 0], [1, 1]], np.float32)
    b = np.array([[2, 0], [0, 5], [-1, 0], [1, 0], [0, 0], [1, 0]], np.float32)
    np.testing.assert_allclose(cosine_distance(a, b), [0, 1, 2, 1, 0, 1 - np.sqrt(0.5)], atol=1e-15)


@given(st.integers(0, 2**32 - 1), st.floats(1e-4, 1e-2))
def test_it_is_half_the_square_of_a_relative_error(seed: int, error: float) -> None:
    """Of an error at a right angle, as noise in many dimensions is: 1 - 1 / sqrt(1 + e^2) = e^2 / 2 - 3 e^4 / 8."""
    rng = np.random.default_rng(seed)
    a, noise = rng.normal(size=(2, 3, 64))
    noise -= (noise * a).sum(-1, keepdims=True) / (a * a).sum(-1, keepdims=True) * a
    noise *= error * np.linalg.norm(a, axis=-1, keepdims=True) / np.linalg.norm(noise, axis=-1, keepdims=True)
    np.testing.assert_allclose(cosine_distance(a, a + noise), error**2 / 2, rtol=error**2 + 1e-6)


def test_padding_does_not_count_and_nan_is_not_hidden() -> None:
    a = np.ones((2, 3, 4))
    b = a.copy()
    b[1, 2] = np.nan
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    assert cosine_distance(a, b, mask).shape == (5,) and np.isfinite(cosine_distance(a, b, mask)).all()
    assert np.isnan(cosine_distance(a, b)).sum() == 1
    for args in ((a, b[:1]), (a, b, mask[:1]), (a, b, np.zeros((2, 3)))):
        with pytest.raises(InputError):
            cosine_distance(*args)


def test_the_table_follows_from_what_it_cites() -> None:
    table = json.loads(LIMITS_FILE.read_text())
    rows, published = table["embedding"], table["precisions"]
    weights = np.random.default_rng(0).normal(size=(3000, 384)).astype(np.float32)
    codes, scales = quantize_rows(weights, INT8)
    noise = np.square(dequantize_rows(codes, scales, None, 384, 8) - weights).mean() / np.square(weights).mean()
    assert rows["noise_of_weights"]["int8"] == pytest.approx(noise, rel=0.01)
    assert rows["per_layer"]["int8"] == pytest.approx(2 * 3.5 * rows["noise_of_weights"]["int8"], rel=0.01)
    ratio = published["int4"]["published"]["mean_kl"] / published["int8"]["published"]["mean_kl"]
    assert rows["per_layer"]["int4"] == pytest.approx(2 * rows["noise_of_weights"]["int8"] * ratio, rel=0.01)


def test_limits_grow_with_the_layers_and_say_when_they_are_replaced() -> None:
    assert embedding_limit("int8", 12).distance == pytest.approx(2 * embedding_limit("int8", 6).distance)
    assert embedding_limit("fp32", 12).distance == 5e-7
    replaced = embedding_limit("int4", 6, override=0.1)
    assert replaced.distance == 0.1 and "OVERRIDDEN" in replaced.derivation and "0.00792" in replaced.derivation
    for wrong in (("int3", 6, None), ("int8", 0, None), ("int8", 6, -1.0), ("int8", 6, float("nan"))):
        with pytest.raises(UsageError):
            embedding_limit(*wrong)
