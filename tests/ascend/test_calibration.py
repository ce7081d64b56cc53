"""What calibration sees of a graph's values, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from porting.ascend import calibration
from porting.ascend.calibration import CLIPS, LEAST_ERROR, MIN_MAX, Range, calibrate
from porting.ascend.int8_numbers import dequantised_activations, quantised_activations
from porting.errors import InputError
from porting.types import Graph
from tests.ascend.lowering_checks import read

FEW = settings(max_examples=40, deadline=None)


def graph() -> Graph:
    return read(
        "(float[2, 3] x) => (float[2, 3] y) { a = Mul(x, two) b = Log(a) y = Add(b, two) }",
        17,
        two=np.array(2, np.float32),
    )


def cases(*numbers: float) -> list[dict[str, np.ndarray]]:
    return [{"x": np.full((2, 3), number, np.float32)} for number in numbers]


@FEW
@given(st.lists(arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=4))
def test_a_range_counts_every_number_where_it_is(parts: Sequence[np.ndarray]) -> None:
    found = Range()
    for part in parts:
        found.add(part)
    whole = np.concatenate(parts)
    assert (found.low, found.high) == (whole.min(), whole.max())
    assert found.counts.sum() == whole.size
    width = 2.0**found.exponent
    expected = np.zeros_like(found.counts)
    np.add.at(
        expected, np.clip(np.floor(whole.astype(np.float64) / width).astype(int) + calibration.HALF, 0, expected.size - 1), 1
    )
    assert np.array_equal(found.counts, expected)


@FEW
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_least_error_loses_no_more_than_min_max(seed: int, symmetric: bool) -> None:
    rng = np.random.default_rng(seed)
    numbers = (rng.standard_normal(2000) * rng.choice([1, 30], 2000, p=[0.999, 0.001])).astype(np.float32)
    found = Range()
    found.add(numbers)
    lost = {}
    for clip in CLIPS:
        step = found.step(symmetric, clip)
        back = dequantised_activations(quantised_activations(numbers, step), step)
        lost[clip] = float(((back - numbers).astype(np.float64) ** 2).sum())
        outside = np.mean((numbers < step.lowest - step.size / 2) | (numbers > step.highest + step.size / 2))
        assert abs(found.clipped(step) - outside) <= 0.002
    assert lost[LEAST_ERROR] <= lost[MIN_MAX] * 1.02  # the histogram knows numbers to a sixteenth of a step


def test_an_outlier_is_clipped_where_that_costs_less() -> None:
    numbers = np.concatenate([np.random.default_rng(0).standard_normal(100_000), [40.0]]).astype(np.float32)
    found = Range()
    found.add(numbers)
    assert found.step(False, LEAST_ERROR).highest < 36 < found.step(False, MIN_MAX).highest
    assert found.clipped(found.step(False, MIN_MAX)) == 0


def test_inner_values_and_inputs_over_all_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    found = calibrate(graph(), cases(1, 4), ["x", "a", "b"])
    assert (found["x"].low, found["x"].high) == (1, 4)
    assert (found["a"].low, found["a"].high) == (2, 8)
    assert found["b"].counts.sum() == 12
    monkeypatch.setattr(calibration, "SLICE_BYTES", 8)  # every value by itself
    again = calibrate(graph(), cases(1, 4), ["x", "a", "b"])
    assert all(np.array_equal(again[name].counts, found[name].counts) for name in found)


def test_no_inputs_to_calibrate_on() -> None:
    with pytest.raises(InputError, match="needs inputs") as error:
        calibrate(graph(), [], ["a"])
    assert "--calibration" in error.value.next


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_case_that_is_not_finite_is_named(bad: float) -> None:
    with pytest.raises(InputError, match=r"input 'x' holds (nan|inf) at \[0, 0\] in calibration case 1"):
        calibrate(graph(), cases(1, bad), ["a"])


def test_a_node_that_gives_nan_is_named() -> None:
    with pytest.raises(InputError, match=r"node 'Log_1' \(Log\) gives nan at \[0, 0\] in calibration case 1"):
        calibrate(graph(), cases(1, -1), ["a", "b"])
    calibrate(graph(), cases(1, -1), ["a"])  # nobody reads it as integers


def test_feeds_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="no input 'z'"):
        calibrate(graph(), [{"x": np.ones((2, 3), np.float32), "z": np.ones(1, np.float32)}], ["a"])
    with pytest.raises(InputError, match="'x' is not fed"):
        calibrate(graph(), [{}], ["a"])
    with pytest.raises(InputError, match="does not take the feeds"):
        calibrate(graph(), [{"x": np.ones((2, 4), np.float32)}], ["a"])
