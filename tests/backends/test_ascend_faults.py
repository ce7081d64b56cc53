"""Route om over a simulated CANN on which things go wrong at random: no crash, nothing left on the device, no wrong output. Not hardware."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from porting.errors import PortingError
from porting.session import Session, open_session
from tests.backends.ascend_programs import NOTHING, SIM, X, left_behind, om_of, total

RUNS = 25  # of a session
KINDS = ("execute-failed", "timeout", "device-lost", "oom", "load-failed")
# what a session is fed that it must refuse
BAD = (
    {"x": X.astype(np.float64)},
    {"x": X[:1]},
    {"x": X[0]},
    {"y": X},
    {},
)


@dataclass
class Counted:
    """What came of the runs of all sessions."""

    good: int = 0
    refused: int = 0
    failed: int = 0
    unopened: int = 0
    lost: int = 0
    codes: set[int] = field(default_factory=set)


def some_faults(chosen: random.Random) -> str:
    """A few, most of them while it runs: the device is lost and runs time out seldom, as nothing follows them."""
    kinds = chosen.choices(KINDS, weights=(6, 1, 1, 3, 0.3), k=chosen.randrange(1, 5))
    return "+".join(f"{kind}@{chosen.randrange(1, {'oom': 12, 'load-failed': 3}.get(kind, RUNS))}" for kind in kinds)


def session_of_runs(seed: int, folder: Path, counted: Counted) -> None:
    """Every output is held against what numpy makes of the runs that were good; those that failed leave no mark."""
    chosen = random.Random(seed)
    report = folder / f"{seed}.json"
    options = f"{SIM},timeout=5,seed={seed},delay_us={chosen.choice((0, 0, 50))},faults={some_faults(chosen)},report={report}"
    try:
        with open_session(total(), options) as session:
            run_all(session, chosen, counted)
    except PortingError as error:
        counted.codes.add(error.exit_code)
        counted.unopened += 1
    if report.exists():
        assert left_behind(report) == NOTHING, options
        report.unlink()


def run_all(session: Session, chosen: random.Random, counted: Counted) -> None:
    state, sums, lost = None, np.zeros_like(X), False
    for _ in range(RUNS):
        fed = chosen.choice(BAD) if chosen.random() < 0.1 else {"x": np.float32(chosen.randrange(-9, 9)) + X}
        try:
            if state is None or chosen.random() < 0.05:
                state, sums = session.new_state(), np.zeros_like(X)
            found = session.run(fed, state)["y"]
        except PortingError as error:
            counted.codes.add(error.exit_code)
            bad = any(fed is one for one in BAD)
            counted.refused += bad
            counted.failed += not bad
            lost = lost or "was lost earlier" in error.what
            continue
        assert not lost, "a session whose device is lost gives nothing any more"
        assert not any(fed is one for one in BAD), "it was to be refused"
        sums = sums + fed["x"]
        np.testing.assert_array_equal(found, -sums)
        counted.good += 1
    counted.lost += lost


def corrupt_model(seed: int, good: bytes, folder: Path) -> None:
    """A compiled model that is cut short, or has a byte that is another: refused when it is opened."""
    chosen = random.Random(seed)
    at = chosen.randrange(len(good))
    if chosen.random() < 0.5:
        changed = good[:at]
    else:
        changed = good[:at] + bytes([good[at] ^ chosen.randrange(1, 256)]) + good[at + 1 :]
    path, report = folder / "m.om", folder / "om.json"
    path.write_bytes(changed)
    with pytest.raises(PortingError) as caught, open_session(total(), f"ascend-sim,om={path},report={report}"):
        pass
    assert caught.value.exit_code in (2, 3)
    assert left_behind(report) == NOTHING


def all_of(sessions: int, models: int, folder: Path) -> Counted:
    counted = Counted()
    for seed in range(sessions):
        session_of_runs(seed, folder, counted)
    good = om_of(total()).read_bytes()
    for seed in range(models):
        corrupt_model(seed, good, folder)
    with open_session(total(), SIM) as session:  # this process is as good as new
        np.testing.assert_array_equal(session.run({"x": X})["y"], -X)
    assert counted.codes <= {2, 3, 4}
    return counted


def test_a_hundred_runs_with_random_faults(tmp_path: Path) -> None:
    counted = all_of(5, 2, tmp_path)
    assert counted.good > 20 and counted.failed > 3, counted


@pytest.mark.slow
def test_a_thousand_runs_with_random_faults(tmp_path: Path) -> None:
    counted = all_of(58, 12, tmp_path)
    assert counted.good + counted.refused + counted.failed >= 1000, counted
    assert counted.good > 300 and counted.failed > 100 and counted.refused > 30 and counted.lost > 3 and counted.unopened > 3, (
        counted
    )
