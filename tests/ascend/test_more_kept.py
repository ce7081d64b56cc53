"""Which nodes outputs hang on: the fewest that were found by trying, and always a choice that passes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.ascend import more_kept
from porting.ascend.more_kept import fewest_kept
from porting.ascend.overflow import Forecast, OutputForecast, forecast
from porting.ascend.soc import find_soc
from tests.overflowing_models import feeds, mlp, program

NAMES = [f"n{i:03}" for i in range(200)]
PLAIN = forecast(program(mlp()), feeds(), soc=find_soc("Ascend910B3"), precision="bf16")  # nothing overflows


def of(kept: Collection[str], loss: float) -> Forecast:
    return replace(PLAIN, kept=tuple(kept), outputs=(OutputForecast("y", loss, loss, max(2 * loss, 0.01)),))


@given(st.sets(st.sampled_from(NAMES), min_size=1, max_size=4), st.sets(st.sampled_from(NAMES), max_size=3))
@settings(max_examples=50, deadline=None)
def test_the_fewest_are_found(needed: set[str], before: set[str]) -> None:
    before -= {min(needed)}
    tried: list[frozenset[str]] = []

    def run(keep: Collection[str]) -> Forecast:
        tried.append(frozenset(keep))
        return of(keep, 1e-4 if needed <= set(keep) else 0.9)

    found = fewest_kept(run, of(sorted(before), 0.9), NAMES)
    assert found.kept == tuple(name for name in NAMES if name in needed | before) or len(tried) >= more_kept.TRIALS
    assert found.kept is not None and needed | before <= set(found.kept) and len(tried) <= more_kept.TRIALS + 2
    assert len(set(tried)) == len(tried), "no choice is forecast twice"


def test_what_keeping_everything_does_not_mend() -> None:
    found = fewest_kept(lambda keep: of(keep, 0.9), of((), 0.9), NAMES[:5])
    assert found.kept is None and "all 5 nodes kept" in found.note


@pytest.mark.parametrize(("limit", "number"), [("TRIALS", 3), ("NODES", 20), ("SECONDS", 0.0)])
def test_a_search_that_ends_early_says_so_and_still_passes(limit: str, number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(more_kept, limit, number)

    def run(keep: Collection[str]) -> Forecast:
        return of(keep, 1e-4 if "n077" in keep else 0.9)

    found = fewest_kept(run, of((), 0.9), NAMES)
    assert found.kept is not None and run(found.kept).passes and "not searched to the end" in found.note


def test_a_loss_that_only_just_passes_is_not_taken_where_a_better_one_is_there() -> None:
    """Every node costs a little: with all let go 9 % would be lost, which passes by itself."""
    found = fewest_kept(lambda keep: of(keep, 1e-4 + 0.09 * (1 - len(keep) / 8)), of((), 0.9), NAMES[:8])
    assert found.kept == tuple(NAMES[:8])
