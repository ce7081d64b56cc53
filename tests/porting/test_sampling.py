"""Sampling: the same tokens with the same probabilities as transformers' processors, and a fixed draw for a seed."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from porting.errors import InputError, RuntimeFailed, UsageError
from porting.generation.sampling import SamplingSettings, candidates, next_token, settings_for

# Few distinct values, so that ties and -inf are common
LOGIT = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 30.0, -np.inf]),
    st.floats(-40, 40, width=32, allow_nan=False),
)
ROWS = st.lists(LOGIT, min_size=1, max_size=40).filter(lambda row: max(row) > -np.inf)
# A cumulative float32 softmax of up to 40 terms is off by at most 40 roundings of 2**-24, doubled for exp's own error.
BOUNDARY = 2 * 40 * 2.0**-24


def of_transformers(row: np.ndarray, history: list[int], wanted: SamplingSettings) -> torch.Tensor:
    """Scores after transformers' processors in the order of its generate(). returns: (vocab,) float32"""
    processors = LogitsProcessorList()
    if wanted.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(float(wanted.repetition_penalty)))
    processors.append(TemperatureLogitsWarper(float(wanted.temperature)))
    if wanted.top_k:
        processors.append(TopKLogitsWarper(wanted.top_k))
    if wanted.top_p < 1:
        processors.append(TopPLogitsWarper(wanted.top_p))
    return processors(torch.tensor([history], dtype=torch.int64), torch.from_numpy(row.copy())[None])[0]


@settings(max_examples=150, deadline=None)
@given(
    ROWS,
    st.lists(st.integers(0, 39), min_size=1, max_size=8),
    st.sampled_from([0.3, 0.7, 1.0, 1.7]),
    st.integers(0, 45),
    st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    st.sampled_from([1.0, 1.3, 0.8]),
)
@example([1.0, 1.0, 1.0, 1.0], [0], 1.0, 2, 0.5, 1.0)
@example([0.0, 1.9498767387766532e-34], [0], 0.3, 0, 0.05, 1.0)  # logits that differ, probabilities that do not
def test_kept_tokens_and_probabilities_are_those_of_transformers(row, history, temperature, top_k, top_p, penalty):
    logits = np.array(row, np.float32)
    history = [i % len(row) for i in history]
    wanted = SamplingSettings(temperature, top_k, top_p, penalty)
    expected = torch.softmax(of_transformers(logits, history, wanted).double(), 0).numpy()
    ids, probabilities = candidates(logits, np.array(history), wanted)
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert (np.diff(ids) > 0).all()
    if top_p < 1:
        before = of_transformers(logits, history, SamplingSettings(temperature, top_k, 1.0, penalty)).double()
        rising = torch.sort(torch.softmax(before, 0)).values.cumsum(0).numpy()[:-1]
        assume(not (np.abs(rising - (1 - top_p)) < BOUNDARY).any())  # there rounding alone decides
        # torch's sort leaves open which of equal logits goes, so the kept ones are compared by value
        assert len(ids) == np.count_nonzero(expected)
        expected_of_kept = np.sort(expected[expected > 0])
        np.testing.assert_allclose(np.sort(probabilities), expected_of_kept, rtol=1e-5)
        changed = set(ids) ^ set(np.flatnonzero(expected))
        scores = before.numpy()
        assert len({float(scores[i]) for i in changed}) <= 1
    else:
        assert ids.tolist() == np.flatnonzero(expected).tolist()
        # the float32 scores are the same bits, so only the two softmaxes in double precision can differ
        np.testing.assert_allclose(probabilities, expected[ids], rtol=1e-12)


def test_of_equal_logits_top_p_keeps_the_lower_ids():
    ids, probabilities = candidates(np.zeros(10, np.float32), np.array([0]), SamplingSettings(1.0, top_p=0.35))
    assert ids.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(probabilities, 0.25)


def test_top_p_over_a_large_vocabulary_keeps_the_smallest_sufficient_set():
    logits = np.random.default_rng(7).normal(0, 4, 50_000).astype(np.float32)
    ids, _ = candidates(logits, np.array([0]), SamplingSettings(1.0, top_p=0.9))
    weights = np.exp(logits.astype(np.float64))
    sums = np.cumsum(np.sort(weights / weights.sum())[::-1])
    assert len(ids) == np.searchsorted(sums, 0.9) + 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("row", [[1.0, np.nan, 3.0], [np.nan] * 3, [1.0, np.inf], [-np.inf, -np.inf], [-np.inf, np.nan]])
def test_broken_logits_are_never_sampled(row, temperature):
    for extra in ({}, {"repetition_penalty": 1.2}) if temperature == 0 else ({}, {"top_k": 1}, {"top_p": 0.5}):
        wanted = SamplingSettings(temperature, **extra)
        with pytest.raises(RuntimeFailed, match="cannot be sampled"):
            next_token(np.array(row, np.float32), np.array([0]), wanted, wanted.rng())


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_greedy_takes_the_highest_logit_of_the_lowest_id(row):
    wanted = SamplingSettings()
    assert next_token(np.array(row, np.float32), np.array([0]), wanted, wanted.rng()) == row.index(max(row))


def test_greedy_applies_the_penalty_to_positive_and_negative_logits():
    wanted = SamplingSettings(repetition_penalty=2.0)
    assert next_token(np.array([4.0, 3.0], np.float32), np.array([0, 0]), wanted, wanted.rng()) == 1
    assert next_token(np.array([-1.0, -1.5], np.float32), np.array([0]), wanted, wanted.rng()) == 1


def test_greedy_neither_copies_nor_changes_the_logits():
    logits = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
    kept = logits.copy()
    wanted = SamplingSettings()
    rng = wanted.rng()
    tracemalloc.start()
    next_token(logits, np.array([0]), wanted, rng)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000  # a copy would take 4 MiB
    np.testing.assert_array_equal(logits, kept)


def test_sampling_leaves_the_logits_as_they_are():
    logits = np.random.default_rng(0).normal(size=100).astype(np.float32)
    kept = logits.copy()
    wanted = SamplingSettings(0.7, 10, 0.9, 1.3)
    next_token(logits, np.arange(50), wanted, wanted.rng())
    np.testing.assert_array_equal(logits, kept)


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    wanted = SamplingSettings(1.0, seed=11)
    rng = wanted.rng()
    draws = 20_000
    counts = np.bincount([next_token(logits, np.array([0]), wanted, rng) for _ in range(draws)], minlength=4)
    expected = draws * np.array([0.5, 0.3, 0.15, 0.05])
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 16.27  # 3 degrees of freedom, p = 0.001; the seed is fixed


@pytest.mark.parametrize(("drawn", "token"), [(0.0, 1), (np.nextafter(0.5, 0), 1), (0.5, 3), (np.nextafter(1.0, 0), 3)])
def test_every_draw_from_zero_to_below_one_falls_on_a_token(drawn, token):
    class Fixed:
        def random(self):
            return drawn

    logits = np.array([-np.inf, 2, -np.inf, 2, -np.inf], np.float32)
    assert next_token(logits, np.array([0]), SamplingSettings(1.0), Fixed()) == token


def test_a_seed_gives_these_tokens_on_every_platform():
    logits = (np.arange(1000, dtype=np.float32) * np.float32(7.3)) % np.float32(11)
    wanted = SamplingSettings(0.8, 200, 0.95, 1.1, seed=2026)
    rng = wanted.rng()
    drawn = [next_token(logits, np.arange(20), wanted, rng) for _ in range(8)]
    assert drawn == [223, 666, 461, 360, 351, 785, 895, 223]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, math.nan, math.inf, 1e-4, 1e4, "1", None, True]),
        ("top_k", [-1, 1.0, math.nan, "5", True, None]),
        ("top_p", [0, 0.0, -0.5, 1.01, math.nan, math.inf, "x", False, None]),
        ("repetition_penalty", [0, -1.0, math.nan, math.inf, 1e3, "x", None]),
        ("seed", [-1, 2**64, 0.5, math.nan, "x", None]),
    ],
)
def test_settings_out_of_range_are_refused_with_the_range(name, values):
    for value in values:
        with pytest.raises(UsageError, match=rf"{name} is .*(?s:.*)allowed: \w+"):
            SamplingSettings(**{name: value})


RECOMMENDED = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}


def test_recommended_values_count_only_for_who_asks_for_sampling():
    assert settings_for(RECOMMENDED, seed=3) == SamplingSettings(seed=3)
    assert settings_for(RECOMMENDED, temperature=0.0, seed=3) == SamplingSettings(seed=3)
    assert settings_for(RECOMMENDED, repetition_penalty=1.2, seed=3) == SamplingSettings(repetition_penalty=1.2, seed=3)
    assert settings_for(RECOMMENDED, temperature=0.9, seed=3) == SamplingSettings(0.9, 20, 0.95, 1.05, 3)
    assert settings_for(RECOMMENDED, top_p=0.5, seed=3) == SamplingSettings(0.6, 20, 0.5, 1.05, 3)
    assert settings_for({}, top_k=5, seed=3) == SamplingSettings(1.0, 5, seed=3)
    assert settings_for({"temperature": None, "top_k": None}, top_p=0.5, seed=3) == SamplingSettings(1.0, top_p=0.5, seed=3)


def test_without_a_seed_one_is_drawn_and_told():
    drawn = {settings_for({}, temperature=1.0).seed for _ in range(5)}
    assert len(drawn) == 5


def test_what_would_have_no_effect_is_refused():
    with pytest.raises(UsageError, match="top_k and top_p would have no effect"):
        settings_for({}, temperature=0, top_k=5, top_p=0.5)


def test_a_damaged_recommendation_is_the_files_fault_and_the_users_value_is_hers():
    with pytest.raises(InputError, match="top_p is 'high'") as caught:
        settings_for({"top_p": "high"}, temperature=1.0)
    assert caught.value.where == "generation_config.json"
    assert settings_for({"top_p": "high"}, temperature=1.0, top_p=0.5, seed=0).top_p == 0.5
    with pytest.raises(UsageError, match="temperature is nan"):
        settings_for(RECOMMENDED, temperature=math.nan)
