"""How numbers become int8, and what is refused because no integers stand for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from porting.ascend.int8_numbers import (
    BIAS_HIGHEST,
    dequantised_activations,
    packed,
    quantised_activations,
    quantised_product,
    sqnr_db,
    step_for,
)
from porting.errors import InputError

FEW = settings(max_examples=60, deadline=None)
ends = st.floats(-1e4, 1e4, width=32)


@FEW
@given(ends, ends, st.booleans(), arrays.arrays(np.float32, 50, elements=st.floats(-3e4, 3e4, width=32)))
def test_half_a_step_inside_the_range_and_the_ends_outside(a: float, b: float, symmetric: bool, x: np.ndarray) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    if 0 < high - low < 1e-3:
        return
    step = step_for(low, high, symmetric)
    q = quantised_activations(x, step)
    back = dequantised_activations(q, step).astype(np.float64)
    inside = (x >= step.lowest) & (x <= step.highest)
    # scale and its inverse are float32, and so is the product: three roundings, each of a part in 2**24, of at most 256 steps
    slack = step.size * (0.5 + 256 * 3 * 2.0**-23)
    assert np.all(np.abs(back - x)[inside] <= slack)
    assert np.all(q[x > step.highest] == 127) and np.all(q[x < step.lowest] == -128)
    assert quantised_activations(np.zeros(1, np.float32), step)[0] == step.offset


@FEW
@given(ends, ends, st.booleans())
def test_the_whole_range_is_covered_to_half_a_step(a: float, b: float, symmetric: bool) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    if high - low < 1e-3:
        return
    step = step_for(low, high, symmetric)
    slack = step.size * (0.5 + 1e-4)
    assert step.lowest <= low + slack and step.highest >= high - slack
    assert -128 <= step.offset <= 127 and (not symmetric or step.offset == 0)


def test_zeros_alone_have_a_step() -> None:
    assert step_for(0.0, 0.0, False).offset == 0
    assert step_for(3.5, 3.5, False).highest == pytest.approx(3.5)  # a constant: zero is in the range


@pytest.mark.parametrize(("low", "high"), [(math.nan, 1.0), (-math.inf, 1.0), (0.0, 1e-38), (-3e38, 3e38)])
def test_ranges_without_a_step(low: float, high: float) -> None:
    if high == 3e38:  # the width leaves float32, the step does not
        assert math.isfinite(step_for(low, high, False).inverse)
        return
    with pytest.raises(InputError):
        step_for(low, high, False)


@FEW
@given(
    arrays.arrays(np.float32, (4, 9), elements=st.floats(-100, 100, width=32)),
    arrays.arrays(np.float32, 4, elements=st.floats(-1000, 1000, width=32)),
    st.booleans(),
)
def test_weights_and_bias_are_off_by_half_a_step_of_their_channel(w: np.ndarray, bias: np.ndarray, one_scale: bool) -> None:
    step = step_for(-1.0, 2.0, False)
    made = quantised_product(w, 0, one_scale, bias, step)
    back = made.weight * made.weight_scale.astype(np.float64)[:, None]
    assert np.all(np.abs(back - w) <= made.weight_scale[:, None] * 0.50001)
    assert made.weight.min(initial=0) >= -127
    whole = made.deq_scale.astype(np.float64) * (1 if made.ratio is None else made.ratio.astype(np.float64))
    assert made.bias is not None
    assert np.all(np.abs(made.bias * whole - bias) <= whole * 0.5001 + np.abs(bias) * 2.0**-21)
    assert (made.deq_scale.size == 1) == one_scale
    np.testing.assert_allclose(np.broadcast_to(whole, (4,)), made.weight_scale.astype(np.float64) * step.size, rtol=1e-6)


def test_a_channel_of_zeros_is_zeros() -> None:
    w = np.array([[0, 0], [1, -2]], np.float32)
    made = quantised_product(w, 0, False, None, step_for(-1.0, 1.0, True))
    assert made.weight.tolist() == [[0, 0], [64, -127]] and made.weight_scale[0] == 1
    assert np.isfinite(made.deq_scale).all() and made.bias is None


def test_a_tiny_channel_gives_way_to_its_bias() -> None:
    w = np.array([[1e-30, 0], [1, -2]], np.float32)
    made = quantised_product(w, 0, False, np.array([5.0, 1.0], np.float32), step_for(-1.0, 1.0, True))
    assert made.bias is not None and abs(int(made.bias[0])) <= BIAS_HIGHEST + 1
    assert made.bias[0] * float(made.deq_scale[0]) == pytest.approx(5.0, rel=1e-6)


def test_sums_that_may_leave_int32_are_refused() -> None:
    w = np.ones((1, 70_000), np.float32)
    with pytest.raises(InputError, match="int32"):
        quantised_product(w, 0, False, None, step_for(0.0, 1.0, False))
    quantised_product(w[:, :60_000], 0, False, None, step_for(0.0, 1.0, False))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="NaN or Inf"):
        quantised_product(np.array([[bad, 1]], np.float32), 0, False, None, step_for(0.0, 1.0, False))
    with pytest.raises(InputError, match="NaN or Inf"):
        quantised_product(np.ones((1, 1), np.float32), 0, False, np.array([bad], np.float32), step_for(0.0, 1.0, False))


def test_the_parameter_of_ascend_dequant_holds_the_bits_of_a_float() -> None:
    # 0.5 is 0x3F000000 in IEEE 754
    assert packed(np.array([0.5, 1.0], np.float32)).tolist() == [0x3F000000, 0x3F800000]
    assert packed(np.array([0.5], np.float32)).dtype == np.uint64


def test_sqnr_of_nothing() -> None:
    assert sqnr_db(1.0, 0.0) == math.inf and sqnr_db(0.0, 1.0) == -math.inf and sqnr_db(100.0, 1.0) == pytest.approx(20)
