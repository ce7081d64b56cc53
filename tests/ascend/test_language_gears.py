"""Prefill in buckets and decoding, over a cache of one size."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.ascend.language_gears import LanguageGears, language_gears, language_gears_from_json, padded
from porting.ascend.soc import find_soc
from porting.errors import InputError, UsageError
from porting.types import TensorSpec

SOC = find_soc("Ascend310P3")
INPUTS = (
    TensorSpec("input_ids", "int64", ("batch", "sequence")),
    TensorSpec("past_length", "int64", ("batch",)),
    TensorSpec("past.0.key", "float32", ("batch", 2, "capacity", 8)),
)


def made(capacity: int = 256, buckets: tuple[int, ...] = (16, 64), batch: int = 1) -> LanguageGears:
    return language_gears(INPUTS, SOC, capacity, buckets, batch)


def test_decode_and_buckets_are_gears_of_one_capacity() -> None:
    gears = made(buckets=(64, 16)).gears
    assert gears.options["input_shape"] == "input_ids:1,-1;past_length:1;past.0.key:1,2,256,8"
    assert gears.options["dynamic_dims"] == "1;16;64"
    assert [gear["input_ids"] for gear in gears.shapes] == [(1, 1), (1, 16), (1, 64)]


def test_without_buckets_there_is_one_shape() -> None:
    alone = made(buckets=(), batch=3)
    assert alone.gears.kind == "fixed" and alone.gears.shapes[0]["past.0.key"] == (3, 2, 256, 8)
    assert alone.pieces(3) == ((1, 1),) * 3


def test_a_prompt_goes_into_the_smallest_bucket_that_holds_it() -> None:
    gears = made()
    assert gears.pieces(16) == ((16, 16),)
    assert gears.pieces(17) == ((17, 64),)
    assert gears.pieces(130) == ((64, 64), (64, 64), (2, 16))
    assert gears.pieces(1, filled=255) == ((1, 1),)
    assert gears.pieces(20, filled=230) == (
        (16, 16),
        (1, 1),
        (1, 1),
        (1, 1),
        (1, 1),
    )  # padding to 64 would reach beyond the cache
    with pytest.raises(InputError, match="a cache of 256"):
        gears.pieces(2, filled=255)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.sets(st.integers(2, 300), max_size=4), st.integers(0, 300), st.integers(1, 300))
def test_pieces_are_the_prompt_and_stay_inside_the_cache(capacity: int, buckets: set[int], filled: int, length: int) -> None:
    fitting = tuple(b for b in buckets if b <= capacity)
    gears = made(capacity, fitting)
    if filled + length > capacity:
        with pytest.raises(InputError):
            gears.pieces(length, filled)
        return
    pieces = gears.pieces(length, filled)
    assert sum(piece.tokens for piece in pieces) == length
    for piece in pieces:
        assert 1 <= piece.tokens <= piece.bucket and piece.bucket in (1, *fitting) and filled + piece.bucket <= capacity
        filled += piece.tokens
    assert all(piece.tokens == piece.bucket for piece in pieces[:-1])


def test_padding_is_not_seen_and_is_overwritten() -> None:
    """The rules by a cache and a causal sum in numpy: pieces with padding give what the whole prompt gives."""
    gears, rng = made(64, (4, 8)), np.random.default_rng(0)
    ids = rng.integers(1, 100, (1, 29))
    cache, filled, rows = np.full(64, 10**9), 0, []
    for tokens, bucket in gears.pieces(29):
        fed = padded(ids[:, filled : filled + tokens], bucket, padding=77)
        cache[filled : filled + bucket] = fed[0]
        sums = [cache[: filled + i + 1].sum() for i in range(bucket)]
        rows += sums[:tokens]
        filled += tokens
    assert rows == np.cumsum(ids[0]).tolist()


@pytest.mark.parametrize(
    ("capacity", "buckets", "batch"), [(0, (), 1), (8, (9,), 1), (8, (1,), 1), (8, (4, 4), 1), (8, (), 0), (8, (4,) * 300, 1)]
)
def test_numbers_that_cannot_be_meant(capacity: int, buckets: tuple[int, ...], batch: int) -> None:
    with pytest.raises(UsageError):
        made(capacity, buckets, batch)


def test_json() -> None:
    gears = made()
    stored = json.loads(json.dumps(gears.to_json()))
    assert language_gears_from_json(stored, INPUTS, SOC) == gears
    for wrong in (
        {**stored, "more": 1},
        {**stored, "buckets": [1]},
        {**stored, "buckets": [16, 16]},
        {**stored, "capacity": "8"},
        {},
        None,
    ):
        with pytest.raises(InputError):
            language_gears_from_json(wrong, INPUTS, SOC)


def test_padded_refuses_what_does_not_fit() -> None:
    assert padded(np.array([[5, 6]]), 4).tolist() == [[5, 6, 0, 0]]
    with pytest.raises(InputError):
        padded(np.array([[5, 6]]), 1)
