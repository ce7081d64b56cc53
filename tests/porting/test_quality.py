"""Quality of a language model's port: exact KL, its lower bound from a golden, agreement, and limits with sources."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.errors import InputError, UsageError
from porting.numerics.quality import (
    LIMITS_FILE,
    Divergence,
    coarse_kl,
    first_divergence,
    kl_divergence,
    margins,
    quality_limits,
    top1_agreement,
)
from porting.verdict import Check

TABLE = json.loads(LIMITS_FILE.read_text(encoding="utf-8"))


def logits_pair(seed: int, positions: int, vocabulary: int, noise: float, spread: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((positions, vocabulary)) * spread
    return reference, reference + noise * rng.standard_normal(reference.shape)


def top_of(reference: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.argsort(-reference, axis=-1)[:, :k]
    peak = reference.max(-1)
    return ids, np.take_along_axis(reference, ids, -1), peak + np.log(np.exp(reference - peak[:, None]).sum(-1))


def test_kl_of_a_distribution_worked_out_by_hand():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    expected = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert kl_divergence(np.log(p) + 7, np.log(q) - 3) == pytest.approx([expected])
    assert kl_divergence(np.log(p), np.log(p)) == pytest.approx([0.0], abs=1e-16)


def test_kl_is_directed_reference_first():
    p, q = np.log([0.9, 0.1]), np.log([0.5, 0.5])
    assert kl_divergence(p, q)[0] == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert kl_divergence(p, q)[0] != pytest.approx(kl_divergence(q, p)[0])


def test_kl_keeps_the_leading_axes_as_positions_and_blocks_agree():
    a, b = logits_pair(0, 2 * 37, 50, 0.1, 3)
    whole = kl_divergence(a.reshape(2, 37, 50), b.reshape(2, 37, 50))
    assert whole == pytest.approx([kl_divergence(x, y)[0] for x, y in zip(a, b, strict=True)], rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.floats(0, 5), st.floats(0.01, 20), st.data())
def test_coarse_kl_is_a_lower_bound_and_exact_on_the_whole_vocabulary(seed, vocabulary, noise, spread, data):
    reference, candidate = logits_pair(seed, 3, vocabulary, noise, spread)
    exact = kl_divergence(reference, candidate)
    k = data.draw(st.integers(1, vocabulary))
    # 1e-12: float64 rounding of sums over at most 40 terms of size at most about 100
    assert (coarse_kl(*top_of(reference, k), candidate) <= exact + 1e-12 * (1 + exact)).all()
    assert coarse_kl(*top_of(reference, vocabulary), candidate) == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_coarse_kl_grows_with_k_and_sees_a_shift_into_the_rest():
    reference, candidate = logits_pair(1, 8, 1000, 0.5, 3)
    values = [coarse_kl(*top_of(reference, k), candidate).mean() for k in (1, 8, 64, 512, 1000)]
    assert values == sorted(values)
    assert values[2] > 0.25 * values[-1]  # 64 of 1000 tokens already show a good part of it
    raised = reference.copy()
    raised[:, np.argsort(reference[0])[:900]] += 9
    assert coarse_kl(*top_of(reference, 8), raised).mean() > 0.1


@pytest.mark.parametrize("measure", [kl_divergence, lambda r, c: coarse_kl(*top_of(r, 4), c)])
def test_nan_and_excluded_tokens_in_the_candidate_never_look_good(measure):
    reference, candidate = logits_pair(2, 3, 10, 0.1, 1)
    candidate[0, 9] = np.nan
    candidate[1, 9] = np.inf
    candidate[2, reference[2].argmax()] = -np.inf
    found = measure(reference, candidate)
    assert math.isnan(found[0])
    assert math.isnan(found[1])
    assert found[2] == math.inf
    assert Check.at_most("mean KL", float(found.mean()), 1.0, "logits").verdict == "fail"


def test_a_reference_with_nan_is_refused():
    reference, candidate = logits_pair(3, 3, 10, 0.1, 1)
    reference[2, 0] = np.nan
    with pytest.raises(InputError, match=r"positions 0 to 2 hold NaN"):
        kl_divergence(reference, candidate)


def test_tokens_that_the_reference_excludes_do_not_count():
    reference, candidate = np.array([[0.0, 1.0, -np.inf]]), np.array([[0.0, 1.0, -30.0]])
    assert kl_divergence(reference, candidate) == pytest.approx([0.0], abs=1e-12)


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [(np.zeros((2, 3)), np.zeros((2, 4))), (np.zeros((0, 3)), np.zeros((0, 3))), (np.float64(1), np.float64(1))],
)
def test_logits_that_do_not_fit(reference, candidate):
    for measure in (kl_divergence, top1_agreement):
        with pytest.raises(InputError, match="do not fit"):
            measure(reference, candidate)


@pytest.mark.parametrize("ids", [[[0, 0]], [[0, 5]], [[-1, 0]]])
def test_top_ids_that_do_not_fit(ids):
    with pytest.raises(InputError, match="not distinct tokens below 5"):
        coarse_kl(np.array(ids), np.zeros((1, 2)), np.zeros(1), np.zeros((1, 5)))


def test_top1_agreement_and_margins():
    reference = np.array([[1.0, 3.0, 2.5], [5.0, 1.0, 0.0], [0.0, 0.0, 1.0], [4.0, 0.0, 0.0]])
    candidate = np.array([[1.0, 2.0, 2.5], [5.0, 1.0, 0.0], [0.0, 0.0, np.nan], [9.0, 0.0, 8.0]])
    assert top1_agreement(reference, candidate) == 0.5  # the row with NaN does not agree, though argmax points at it
    assert margins(reference).tolist() == [0.5, 4.0, 1.0, 4.0]


def test_first_divergence():
    assert first_divergence([1, 2, 3], [1, 2, 3], [1.0, 1.0, 1.0]) is None
    assert first_divergence([1, 2, 3], [1, 9, 3], [1.0, 0.25, 1.0]) == Divergence(1, 2, 9, 0.25)
    assert first_divergence([1, 2, 3], [1, 2], [1.0, 1.0, 0.5]) == Divergence(2, 3, None, 0.5)
    longer = first_divergence([1], [1, 2], [1.0])
    assert (longer.position, longer.reference_token, longer.token) == (1, None, 2)
    with pytest.raises(InputError, match="2 tokens and 1 margins"):
        first_divergence([1, 2], [1, 2], [1.0])


# --- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int4", "w8a8"])
def test_every_limit_follows_from_its_published_row(precision):
    row = TABLE["precisions"][precision]
    published, factor = row["published"], row["kl_factor"]
    assert row["mean_kl"] == pytest.approx(published["mean_kl"] * factor, rel=1e-3)
    flips = (1 - published["top1_agreement"]) * math.sqrt(factor)
    assert 1 - row["top1_agreement"] == pytest.approx(flips, rel=1e-2)
    assert TABLE["sources"][row["source"]].keys() == {"title", "section", "setting"}
    assert len(row["why"]) > 80
    limits = quality_limits(precision)
    assert (limits.mean_kl, limits.top1_agreement) == pytest.approx((row["mean_kl"], row["top1_agreement"]))
    assert not limits.overridden


def test_fp32_agreement_follows_from_the_fp16_row():
    fp16 = TABLE["precisions"]["fp16"]["published"]
    flips = (1 - fp16["top1_agreement"]) * math.sqrt(5e-7 / fp16["mean_kl"])
    assert 1 - TABLE["precisions"]["fp32"]["top1_agreement"] == pytest.approx(flips, rel=0.1)


def test_hoeffding_bound_behind_the_fp32_limit_holds():
    reference, _ = logits_pair(4, 50, 300, 0, 5)
    signs = np.random.default_rng(5).choice([-1, 1], reference.shape)
    assert kl_divergence(reference, reference + 1e-3 * signs).max() <= TABLE["precisions"]["fp32"]["mean_kl"]


def test_small_models_get_the_room_of_the_scaling_law_and_large_ones_none():
    small, large = quality_limits("int4", parameters=135_000_000), quality_limits("int4", parameters=70_000_000_000)
    assert small.mean_kl == pytest.approx(0.031273 * (8.03e9 / 135e6) ** 0.2261)
    assert 0.07 < small.mean_kl < 0.09
    # noise grows with the root of the KL, and differing tokens with the noise
    assert 1 - small.top1_agreement == pytest.approx((1 - 0.91901) * (8.03e9 / 135e6) ** (0.2261 / 2))
    assert large.mean_kl == quality_limits("int4").mean_kl
    assert "135M parameters" in small.derivation
    assert quality_limits("fp32", parameters=135_000_000).mean_kl == quality_limits("fp32").mean_kl


def test_what_was_measured_on_smollm2_falls_on_the_right_side():
    """1,024 positions of SmolLM2-135M-Instruct in torch: KL and agreement of each form against fp32."""
    measured = [("fp16", 2.2e-5, 0.9971, True), ("bf16", 1.28e-3, 0.9697, True), ("int8", 4.72e-3, 0.9492, True)]
    measured += [("int4", 0.515, 0.5391, False), ("int4", 0.410, 0.6064, False), ("w8a8", 4.5e-2, 0.8506, False)]
    for precision, kl, agreement, holds in measured:
        limits = quality_limits(precision, parameters=134_515_008)
        assert (kl <= limits.mean_kl) is holds
        assert (agreement >= limits.agreement_floor(1024)) is holds


def test_few_positions_get_the_allowance_of_a_coin_count():
    limits = quality_limits("int8")
    assert limits.agreement_floor(10**8) == pytest.approx(limits.top1_agreement, abs=1e-4)
    rng = np.random.default_rng(0)
    refused = (rng.binomial(96, limits.top1_agreement, 20_000) / 96 < limits.agreement_floor(96)).mean()
    assert 0.002 < refused < 0.03  # 1 % by the normal approximation; the binomial over 96 positions is skewed and coarse


def test_an_override_is_marked_and_repeated():
    limits = quality_limits("int4", override={"mean_kl": 0.5})
    assert limits.mean_kl == 0.5
    assert limits.overridden == {"mean_kl": pytest.approx(0.031273)}
    assert "OVERRIDDEN by the caller: mean_kl 0.5 instead of 0.03127" in limits.derivation


@pytest.mark.parametrize(
    "override", [{"kl": 1.0}, {"mean_kl": math.nan}, {"mean_kl": math.inf}, {"mean_kl": -1.0}, {"top1_agreement": 1.5}]
)
def test_overrides_that_are_no_limits(override):
    with pytest.raises(UsageError):
        quality_limits("int4", override=override)


def test_a_precision_without_limits():
    with pytest.raises(UsageError, match="no quality limits for precision 'int3'") as caught:
        quality_limits("int3")
    assert "int4" in caught.value.next
