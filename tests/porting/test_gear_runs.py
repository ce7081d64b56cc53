"""Runs of a port that knows a few shapes only: prompts in pieces, what is padded, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.errors import InputError
from porting.gear_runs import LOGITS, TOKENS, fitting, gear_of, padded, pieces, run_tokens
from porting.types import Program, State, StatePair, StateSpec, TensorSpec

GEARS = ({"x": (1, 8), "m": (1,)}, {"x": (4, 16), "m": (1,)})


def test_a_prompt_goes_into_the_smallest_bucket_that_holds_it() -> None:
    assert pieces(16, 0, 256, (1, 16, 64)) == ((16, 16),)
    assert pieces(17, 0, 256, (1, 16, 64)) == ((17, 64),)
    assert pieces(130, 0, 256, (1, 16, 64)) == ((64, 64), (64, 64), (2, 16))
    assert pieces(1, 255, 256, (1, 16, 64)) == ((1, 1),)
    assert pieces(3, 0, 256, (1,)) == ((1, 1),) * 3
    # padding to 64 would reach beyond the cache
    assert pieces(20, 230, 256, (1, 16, 64)) == ((16, 16), *(((1, 1),) * 4))
    with pytest.raises(InputError, match="a cache of 256"):
        pieces(2, 255, 256, (1, 16))
    with pytest.raises(InputError, match="no gear is as short"):
        pieces(2, 250, 256, (16,))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.sets(st.integers(2, 300), max_size=4), st.integers(0, 300), st.integers(1, 300))
def test_pieces_are_the_prompt_and_stay_inside_the_cache(capacity: int, buckets: set[int], filled: int, length: int) -> None:
    lengths = (1, *sorted(b for b in buckets if b <= capacity))
    if filled + length > capacity:
        with pytest.raises(InputError):
            pieces(length, filled, capacity, lengths)
        return
    found = pieces(length, filled, capacity, lengths)
    assert sum(piece.tokens for piece in found) == length
    for piece in found:
        assert 1 <= piece.tokens <= piece.bucket and piece.bucket in lengths and filled + piece.bucket <= capacity
        filled += piece.tokens
    assert all(piece.tokens == piece.bucket for piece in found[:-1])


def test_padding_is_not_seen_and_is_overwritten() -> None:
    """The rules by a cache and a causal sum in numpy: pieces with padding give what the whole prompt gives."""
    ids = np.random.default_rng(0).integers(1, 100, (1, 29))
    cache, filled, rows = np.full(64, 10**9), 0, []
    for tokens, bucket in pieces(29, 0, 64, (1, 4, 8)):
        fed = padded(ids[:, filled : filled + tokens], bucket, padding=77)
        cache[filled : filled + bucket] = fed[0]
        rows += [cache[: filled + i + 1].sum() for i in range(bucket)][:tokens]
        filled += tokens
    assert rows == np.cumsum(ids[0]).tolist()


def test_padded_refuses_what_does_not_fit() -> None:
    assert padded(np.array([[5, 6]]), 4).tolist() == [[5, 6, 0, 0]]
    with pytest.raises(InputError):
        padded(np.array([[5, 6]]), 1)


def test_the_gear_of_a_run_and_the_smallest_that_holds_it() -> None:
    assert gear_of(GEARS, {"x": (4, 16)}) == GEARS[1]
    with pytest.raises(
        InputError, match=r"no gear has the shapes x \[4, 8\]; the port was compiled for x \[1, 8\], m \[1\] \| x \[4, 16\]"
    ):
        gear_of(GEARS, {"x": (4, 8)})
    assert fitting(GEARS, {"x": (1, 5)}) == GEARS[0] and fitting(GEARS, {"x": (2, 5)}) == GEARS[1]
    with pytest.raises(InputError, match="no gear holds"):
        fitting(GEARS, {"x": (1, 17)})


class FakeSession:
    """A port whose runs add what they are fed, padding included, to the length, as a session does; logits are sums of all that is seen."""

    def __init__(self, capacity: int, buckets: tuple[int, ...]) -> None:
        shape = (1, 1, capacity, 1)
        inputs = (TensorSpec(TOKENS, "int64", (1, "n")), TensorSpec("k", "float32", shape), TensorSpec("at", "int64", (1,)))
        state = StateSpec((StatePair("k", "k2", 2),), "at", (TOKENS, 1))
        self.program = Program(b"", inputs, (), state, gears=tuple({TOKENS: (1, n)} for n in buckets))
        self.cache, self.ran = np.full(capacity, 10**9), []  # type: ignore[var-annotated]

    def run(self, feeds: dict[str, np.ndarray], state: State) -> dict[str, np.ndarray]:
        (fed,) = feeds[TOKENS]
        filled = int(state.length[0])
        self.ran.append(len(fed))
        self.cache[filled : filled + len(fed)] = fed
        state.length = state.length + len(fed)
        return {LOGITS: np.array([self.cache[: filled + i + 1].sum() for i in range(len(fed))]).reshape(1, -1, 1)}


@pytest.mark.parametrize("bucket", [4, 16, 64, 512, 4096])
@pytest.mark.parametrize("used", [1, 3])
def test_the_length_after_a_piece_counts_no_padding(bucket: int, used: int) -> None:
    """Of every bucket, or the next tokens see the padding, and the cache is full before it is."""
    session = FakeSession(bucket + 8, (bucket,))
    state = State({}, np.zeros(1, np.int64), bucket + 8)
    ids = np.arange(1, 9).reshape(1, 8)
    first = run_tokens(session, ids[:, :used], state)  # type: ignore[arg-type]
    assert session.ran == [bucket] and state.length.tolist() == [used]
    second = run_tokens(session, ids[:, used : used + 2], state)  # type: ignore[arg-type]
    assert state.length.tolist() == [used + 2]
    assert np.concatenate([first, second], 1).reshape(-1).tolist() == np.cumsum(ids[0, : used + 2]).tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.sets(st.integers(2, 100), max_size=3))
def test_prompts_one_after_another_are_one_prompt(prompts: list[int], buckets: set[int]) -> None:
    session = FakeSession(310, (1, *sorted(buckets)))
    state = State({}, np.zeros(1, np.int64), 310)
    ids = np.random.default_rng(sum(prompts)).integers(1, 100, (1, sum(prompts)))
    ends = np.cumsum(prompts)
    got = [run_tokens(session, ids[:, end - n : end], state) for n, end in zip(prompts, ends, strict=True)]  # type: ignore[arg-type]
    assert np.concatenate(got, 1).reshape(-1).tolist() == np.cumsum(ids[0]).tolist() and state.length.tolist() == [sum(prompts)]
