"""Tensor differences: the right number, at the right place, and no number where there is none."""

from __future__ import annotations

import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from porting.errors import InputError
from porting.numerics import metrics
from porting.numerics.metrics import compare, require_informative


def test_a_known_difference():
    reference = np.array([[3.0, 4.0], [0.0, 12.0]], np.float32)
    candidate = np.array([[3.0, 4.0], [1.0, 12.0]], np.float32)
    found = compare(reference, candidate)
    assert (found.max_abs, found.worst, found.mismatches) == (1.0, (1, 0), 1)
    assert found.rel_l2 == pytest.approx(1 / 13)
    assert found.sqnr_db == pytest.approx(20 * math.log10(13))
    assert found.cosine == pytest.approx(169 / (13 * math.sqrt(170)))
    assert found.floor == pytest.approx(6.5)  # the reference's root mean square
    assert found.max_rel == pytest.approx(1 / 6.5)
    assert found.where("logits") == "logits[1, 0]"
    assert (found.worst_reference, found.worst_candidate) == (0.0, 1.0)


def test_equal_tensors():
    x = np.linspace(-1, 1, 70).astype(np.float16)
    found = compare(x, x.copy())
    assert (found.max_abs, found.max_rel, found.rel_l2, found.cosine, found.mismatches) == (0, 0, 0, 1, 0)
    assert found.sqnr_db == math.inf


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(2, 300), elements=st.floats(-1e3, 1e3, width=32)),
    hnp.arrays(np.float32, st.integers(2, 300), elements=st.floats(-1e3, 1e3, width=32)),
)
def test_agrees_with_the_formulas_in_one_piece(a, b):
    size = min(len(a), len(b))
    a, b = a[:size], b[:size]
    if a.min() == a.max():
        return
    found = compare(a, b)
    x, y = a.astype(np.float64), b.astype(np.float64)
    assert found.max_abs == np.abs(y - x).max()
    assert found.rel_l2 == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-12)
    if np.linalg.norm(y) > 1e-30 and found.mismatches:
        assert found.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-12)


def test_blocks_and_strides_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((7, 11, 13)).astype(np.float32)
    b = a + rng.standard_normal(a.shape).astype(np.float32) * 1e-3
    whole = compare(a, b)
    monkeypatch.setattr(metrics, "BLOCK", 10)
    blocked = compare(a, b)
    turned = compare(a.transpose(2, 0, 1), b.transpose(2, 0, 1))
    assert blocked.worst == whole.worst
    assert (turned.worst[1], turned.worst[2], turned.worst[0]) == whole.worst
    for other in (blocked, turned):
        assert other.max_abs == whole.max_abs
        assert other.rel_l2 == pytest.approx(whole.rel_l2, rel=1e-12)


def test_nan_in_the_candidate_is_reported_and_spoils_every_number():
    a = np.arange(100, dtype=np.float32)
    b = a.copy()
    b[[40, 70]] = np.nan
    b[10] += 5
    found = compare(a, b)
    assert (found.candidate_nan, found.worst, found.mismatches) == (2, (40,), 3)
    assert math.isnan(found.max_abs)
    assert math.isnan(found.max_rel)
    assert math.isnan(found.rel_l2)
    assert math.isnan(found.cosine)
    assert found.sqnr_db == -math.inf


def test_infinities():
    a = np.array([1.0, 2.0, -np.inf], np.float32)
    same = compare(a, a.copy())
    assert (same.max_abs, same.rel_l2, same.reference_inf, same.candidate_inf) == (0, 0, 1, 1)
    b = np.array([1.0, np.inf, -np.inf], np.float32)
    other = compare(a, b)
    assert (other.max_abs, other.worst, other.candidate_inf, other.rel_l2) == (math.inf, (1,), 2, math.inf)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64, np.bool_])
def test_integers_and_booleans_are_exact(dtype):
    a = np.array([0, 1, 1, 0], dtype)
    b = np.array([1, 1, 0, 0], dtype)
    found = compare(a, b)
    assert (found.mismatches, found.max_abs, found.worst) == (2, 1, (0,))


def test_large_integers_do_not_round_to_equal():
    a = np.array([0, 2**62], np.int64)
    assert compare(a, a + np.array([0, 1])).max_abs == 1
    ends = np.array([np.iinfo(np.int64).min, np.iinfo(np.int64).max])
    assert compare(ends, ends[::-1].copy()).max_abs == pytest.approx(2.0**64)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4])
def test_every_real_dtype(dtype):
    a = np.array([1, 2, 3, -4]).astype(dtype)
    b = np.array([1, 2, 3, -5]).astype(dtype)
    assert compare(a, b).max_abs == 1


def test_extreme_magnitudes_neither_overflow_nor_vanish():
    for scale in (1e300, 1e-300):
        a = np.array([1.0, 2.0]) * scale
        assert compare(a, a * 1.01).rel_l2 == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("reference", "candidate", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), r"shape differs: expected \(2, 3\), got \(3, 2\)"),
        (np.zeros(2, np.float32), np.zeros(2, np.float16), "dtype differs: expected float32, got float16"),
        (np.array([1, np.nan]), np.ones(2), "holds NaN: these inputs show nothing"),
        (np.zeros(3), np.zeros(3), "is 0 everywhere"),
        (np.full(3, -np.inf), np.full(3, -np.inf), "is -inf everywhere"),
        (np.zeros((0, 4)), np.zeros((0, 4)), "is empty"),
        (np.array(["a", "b"]), np.array(["a", "b"]), "is not a real number"),
        (np.array([1j, 2]), np.array([1j, 2]), "is not a real number"),
        (np.array([None, 1]), np.array([None, 1]), "is not a real number"),
        (np.zeros(2, [("x", "f4")]), np.zeros(2, [("x", "f4")]), "is not a real number"),
    ],
)
def test_what_cannot_be_compared_is_an_error(reference, candidate, message):
    with pytest.raises(InputError, match=message):
        compare(reference, candidate, name="logits")


def test_one_element_is_not_a_constant():
    require_informative(np.array([3.0]), "loss")
    assert compare(np.array([3.0]), np.array([4.0])).max_abs == 1


def test_memory_stays_bounded():
    a = np.random.default_rng(0).standard_normal(2_000_000).astype(np.float32).reshape(1000, 2000)
    b = a * np.float32(1.001)
    tracemalloc.start()
    compare(a.T, b.T)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < a.nbytes  # 8 MB of input; the blocks need about 5 MB in all
