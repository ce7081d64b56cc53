"""The error analysis against experiments that do not use it: correct runs stay under the bound, a 1 % fault does not."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from porting.errors import InputError, UsageError
from porting.numerics.bounds import (
    INTEGER_LEVELS,
    UNIT_ROUNDOFF,
    activation_quantisation_bound,
    combined,
    rounding_bound,
    unit_roundoff,
)

ROWS = 32


def weights_of(seed: int, layers: int, n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, n)).astype(np.float32) / np.float32(math.sqrt(n)) for _ in range(layers)]


def chain(x: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    for w in weights:
        x = x @ w.astype(x.dtype)
    return x


def residual(x: np.ndarray, weights: list[np.ndarray], quantise=lambda x: x) -> np.ndarray:
    """Pre-norm blocks of two products each, as a decoder layer's halves."""
    for first, second in zip(weights[::2], weights[1::2], strict=True):
        normed = x / np.sqrt((x * x).mean(-1, keepdims=True))
        hidden = np.tanh(quantise(normed) @ first.astype(x.dtype))
        x = x + quantise(hidden) @ second.astype(x.dtype)
    return x


def relative_l2(reference: np.ndarray, candidate: np.ndarray) -> float:
    gap = candidate.astype(np.float64) - reference
    return float(np.linalg.norm(gap) / np.linalg.norm(reference))


def inputs(n: int) -> np.ndarray:
    return np.random.default_rng(99).standard_normal((ROWS, n)).astype(np.float32)


@pytest.mark.parametrize(("n", "layers"), [(64, 1), (64, 12), (256, 8), (1024, 4), (4096, 2)])
def test_float32_chains_stay_under_the_bound_and_near_it(n, layers):
    weights = weights_of(n, layers, n)
    error = relative_l2(chain(inputs(n).astype(np.float64), weights), chain(inputs(n), weights))
    bound = rounding_bound([n] * layers, UNIT_ROUNDOFF["float32"], reference_roundoff=UNIT_ROUNDOFF["float64"])
    assert error < bound.value
    assert bound.value < 100 * error  # not vacuous: two orders of magnitude at most, most of it BLAS's blocked sums


@pytest.mark.parametrize(("n", "blocks"), [(64, 8), (256, 24), (512, 8)])
def test_float32_residual_networks_stay_under_the_bound_and_near_it(n, blocks):
    weights = weights_of(n, 2 * blocks, n)
    error = relative_l2(residual(inputs(n).astype(np.float64), weights), residual(inputs(n), weights))
    bound = rounding_bound(
        [n] * (2 * blocks), UNIT_ROUNDOFF["float32"], reference_roundoff=UNIT_ROUNDOFF["float64"], residual_blocks=blocks
    )
    assert error < bound.value < 100 * error


@pytest.mark.parametrize(("dtype", "name"), [(np.float16, "float16"), (ml_dtypes.bfloat16, "bfloat16")])
def test_16_bit_storage_with_float32_sums_stays_under_the_bound_and_near_it(dtype, name):
    n, layers = 256, 10
    weights = [w.astype(dtype).astype(np.float32) for w in weights_of(7, layers, n)]
    x = inputs(n).astype(dtype).astype(np.float32)
    exact = chain(x.astype(np.float64), weights)
    for w in weights:
        x = (x @ w).astype(dtype).astype(np.float32)
    error = relative_l2(exact, x)
    bound = rounding_bound(
        [n] * layers,
        UNIT_ROUNDOFF["float32"],
        storage_roundoff=UNIT_ROUNDOFF[name],
        reference_roundoff=UNIT_ROUNDOFF["float64"],
    )
    assert error < bound.value < 20 * error


@pytest.mark.parametrize("network", [chain, residual])
def test_a_one_percent_fault_in_one_of_many_weights_exceeds_the_bound(network):
    n, layers = 256, 24
    weights = weights_of(3, layers, n)
    blocks = layers // 2 if network is residual else 0
    bound = rounding_bound([n] * layers, UNIT_ROUNDOFF["float32"], residual_blocks=blocks)
    reference = network(inputs(n).astype(np.float64), weights)
    faults = np.random.default_rng(11).choice(layers, 6, replace=False)
    for at in faults:
        faulty = [w * np.float32(1.01) if i == at else w for i, w in enumerate(weights)]
        assert relative_l2(reference, network(inputs(n), faulty)) > bound.value


@pytest.mark.parametrize("heavy_tailed", [False, True])
@pytest.mark.parametrize("block", [16, 32, 128, 256])
def test_int8_activations_stay_under_the_bound_and_near_it(block, heavy_tailed):
    n, blocks = 512, 12
    weights = weights_of(5, 2 * blocks, n)
    x = inputs(n).astype(np.float64)
    if heavy_tailed:
        x[:, ::97] *= 20  # outlier channels, 20 times the rest, as LLM.int8() found them

    def quantise(values: np.ndarray) -> np.ndarray:
        parts = values.reshape(ROWS, -1, block)
        step = np.abs(parts).max(-1, keepdims=True) / INTEGER_LEVELS["int8"]
        return (np.rint(parts / step) * step).reshape(values.shape)

    error = relative_l2(residual(x, weights), residual(x, weights, quantise))
    bound = activation_quantisation_bound(2 * blocks, block, residual_blocks=blocks)
    assert error < bound.value < 20 * error


def test_the_crest_factor_never_exceeds_what_any_values_can_have():
    lonely = activation_quantisation_bound(1, 32, outlier_allowance=100)
    assert lonely.value == pytest.approx(math.sqrt(32) / (127 * math.sqrt(12)))
    x = np.zeros(32)
    x[3] = 1
    assert np.abs(x).max() / np.sqrt((x * x).mean()) == pytest.approx(math.sqrt(32))


def test_what_was_measured_on_smollm2():
    """Relative L2 error of SmolLM2-135M's logits in torch: 60 residual blocks of 3.5 products of length 576 or 1536, and a head.

    float32 against float64 1.28e-6; int8 activations alone 2.10e-2 (block 32) and 2.66e-2 (block 64); bf16 1.23e-2;
    fp16 1.59e-3; the smallest of nine 1 % faults 3.6e-4.
    """
    lengths = [576] * 180 + [1536] * 30
    shape = {"residual_blocks": 60, "final": [576]}
    fp32 = rounding_bound(lengths, UNIT_ROUNDOFF["float32"], **shape)
    assert 1.28e-6 < fp32.value < 3.6e-4 / 5
    for name, measured in (("bfloat16", 1.23e-2), ("float16", 1.59e-3)):
        stored = rounding_bound(lengths, UNIT_ROUNDOFF["float32"], storage_roundoff=UNIT_ROUNDOFF[name], **shape)
        assert measured < stored.value < 20 * measured
    for block, measured in ((32, 2.10e-2), (64, 2.66e-2)):
        quantised = activation_quantisation_bound(210, block, residual_blocks=60, final=1)
        assert measured < quantised.value < 5 * measured


def test_bounds_grow_with_what_they_should_grow_with():
    u = UNIT_ROUNDOFF["float32"]
    base = rounding_bound([256] * 4, u).value
    assert rounding_bound([256] * 4, u, reference_roundoff=2.0**-53).value == pytest.approx(base / math.sqrt(2), rel=1e-6)
    assert rounding_bound([1024] * 4, u).value == pytest.approx(2 * base, rel=0.01)
    assert rounding_bound([256] * 16, u).value == pytest.approx(2 * base)
    assert rounding_bound([256] * 4, u, amplification=3).value == pytest.approx(3 * base)
    assert rounding_bound([256] * 4, u, residual_blocks=4).value == pytest.approx(
        base * math.sqrt((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    )
    assert combined(rounding_bound([1], u), rounding_bound([1], u)).value == pytest.approx(
        math.sqrt(2) * rounding_bound([1], u).value
    )


def test_the_derivation_says_everything_that_went_in():
    text = rounding_bound([576, 1536], 2.0**-24, storage_roundoff=2.0**-8, residual_blocks=2, amplification=2.5).derivation
    for part in (
        "2 matrix products of length 576 to 1536",
        "u = 6e-08",
        "u = 0.0039",
        "lambda = 3.26",
        "H(2) / 2",
        "amplification 2.5",
    ):
        assert part in text
    text = activation_quantisation_bound(4, 32, outlier_allowance=1.5).derivation
    assert "outlier allowance 1.5" in text
    assert "crest factor 3.95" in text


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"])
def test_unit_roundoffs_are_half_the_formats_spacing_at_one(name):
    assert unit_roundoff(name) == float(ml_dtypes.finfo(name).eps) / 2


def test_what_cannot_be_bounded():
    with pytest.raises(UsageError, match="no unit roundoff for 'int7'"):
        unit_roundoff("int7")
    for call in (
        lambda: rounding_bound([], 2.0**-24),
        lambda: rounding_bound([0], 2.0**-24),
        lambda: rounding_bound([8], 0.0),
        lambda: rounding_bound([8], math.nan),
        lambda: rounding_bound([8], 2.0**-24, amplification=math.inf),
        lambda: activation_quantisation_bound(4, 1),
        lambda: activation_quantisation_bound(0, 32),
        lambda: activation_quantisation_bound(4, 32, outlier_allowance=math.nan),
        lambda: combined(),
    ):
        with pytest.raises(InputError):
            call()
