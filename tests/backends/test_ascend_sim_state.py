"""State that stays on the simulated device: carried from run to run, read, restarted, dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from porting.errors import InputError
from porting.session import open_session
from tests.backends.ascend_programs import NOTHING, SIM, X, cache, left_behind, total


def test_two_streams_of_one_session_do_not_mix(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with open_session(total(), f"{SIM},seed=3,delay_us=500,report={report}") as session:
        one, other = session.new_state(), session.new_state()
        for step in range(1, 5):
            np.testing.assert_array_equal(session.run({"x": X}, one)["y"], -X * step)
            np.testing.assert_array_equal(session.run({"x": 2 * X}, other)["y"], -2 * X * step)
        np.testing.assert_array_equal(session.run({"x": X})["y"], -X)  # without one it starts from zeros
    assert left_behind(report) == NOTHING


def test_a_state_is_read_and_goes_on_elsewhere() -> None:
    with open_session(total(), SIM) as session:
        state = session.new_state()
        session.run({"x": X}, state)
        kept = session.read_state(state)
        np.testing.assert_array_equal(kept["h"], X)
        session.run({"x": X}, state)
        np.testing.assert_array_equal(kept["h"], X)  # an array of its own
    with open_session(total(), SIM) as session:
        again = session.new_state(initial=kept)
        np.testing.assert_array_equal(session.run({"x": X}, again)["y"], -2 * X)


def test_states_that_are_dropped_give_their_memory_back(tmp_path: Path) -> None:
    """A state takes two buffers; 300 of them at once would be more than this device has."""
    report = tmp_path / "report.json"
    with open_session(total(), f"{SIM},memory=32KiB,report={report}") as session:
        for _ in range(300):
            state = session.new_state()
            assert session.run({"x": X}, state)["y"][1, 3] == -7
            del state  # the last reference: no cycle keeps it until the collector comes
    assert left_behind(report) == NOTHING


def test_a_static_cache_fills_rewinds_and_ends(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    steps = np.random.default_rng(5).integers(-9, 9, (8, 3)).astype(np.float32)
    with open_session(cache(), f"{SIM},report={report}") as session:
        state = session.new_state()
        assert state.capacity == 8
        for place, step in enumerate(steps):
            sums = session.run({"x": step.reshape(1, 1, 3)}, state)["sums"]
            np.testing.assert_array_equal(sums[0], steps[: place + 1].sum(0))
        with pytest.raises(InputError, match="the cache has 8 positions, and 9 are needed"):
            session.run({"x": steps[0].reshape(1, 1, 3)}, state)
        np.testing.assert_array_equal(session.read_state(state)["past"][0], steps)
        state.length = state.length - 5
        np.testing.assert_array_equal(session.read_state(state)["past"][0], steps[:3])
        restarted = session.new_state(initial=session.read_state(state))
        sums = session.run({"x": steps[7].reshape(1, 1, 3)}, restarted)["sums"]
        np.testing.assert_array_equal(sums[0], steps[:3].sum(0) + steps[7])
    assert left_behind(report) == NOTHING
