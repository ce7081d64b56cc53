"""What a session refuses because a runtime would answer wrongly or break on it: ids outside the vocabulary, a length nobody wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import timeit
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import BOUND, make, token_ids

from porting.conversion import convert
from porting.errors import InputError, PortError, UsageError
from porting.port_folder import open_port
from porting.session import Session, load, open_session
from porting.types import Program
from tests.backends.contract import program
from tests.backends.stateful import _lstm_program, _sums_program

VOCAB = 101  # of tests/tiny.py


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guards")
    make(folder, "LlamaForCausalLM")
    return convert(folder, folder / "port").path


@pytest.fixture(scope="module")
def session(port: Path) -> Session:
    return load(port)


def ids(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int64)


# --- ranges -----------------------------------------------------------------------------------------------------------


def test_a_port_says_what_its_inputs_may_hold(port: Path) -> None:
    assert json.loads((port / "port.json").read_text())["ranges"] == {"input_ids": [0, VOCAB], "logits_to_keep": [0, 2**31]}
    assert open_port(port).program().ranges == {"input_ids": (0, VOCAB), "logits_to_keep": (0, 2**31)}


@pytest.mark.parametrize(
    ("feeds", "got"),
    [
        ({"input_ids": ids([1, -1, 3])}, r"'input_ids' is out of range: expected 0 to 100, got -1 at \[0, 1\]"),
        ({"input_ids": ids([1, 2], [3, VOCAB])}, r"'input_ids' is out of range: expected 0 to 100, got 101 at \[1, 1\]"),
        ({"input_ids": ids([-1])}, r"'input_ids' .* got -1 at \[0, 0\]"),
        ({"input_ids": ids([VOCAB])}, r"'input_ids' .* got 101 at \[0, 0\]"),
        ({"input_ids": ids([2**63 - 1, -(2**63)])}, r"'input_ids' .* got 9223372036854775807 at \[0, 0\]"),
        ({"input_ids": ids([1]), "logits_to_keep": np.array(-1)}, r"'logits_to_keep' .* expected 0 to 2147483647, got -1$"),
        ({"input_ids": ids([1]), "logits_to_keep": np.array(2**31)}, r"'logits_to_keep' .* got 2147483648$"),
        ({"input_ids": np.zeros((1, 0), np.int64)}, r"'input_ids' has nothing to run: .* got int64\[1, 0\]"),
        ({"input_ids": np.zeros((0, 3), np.int64)}, r"'input_ids' has nothing to run: .* got int64\[0, 3\]"),
    ],
)
def test_what_the_runtime_would_wrap_or_break_on_is_refused(session: Session, feeds: dict, got: str) -> None:
    state = session.new_state(8, len(feeds["input_ids"]))
    for kept in (None, state):
        with pytest.raises(InputError) as caught:
            session.run(feeds, kept)
        assert caught.match(got.replace("$", r"(\n|$)"))
        assert caught.value.exit_code == 2
        assert caught.value.where == "session.run" and caught.value.next
    assert state.length.tolist() == [0] * len(feeds["input_ids"])


def test_the_ends_of_a_range_are_in_it(session: Session) -> None:
    for feeds in ({"input_ids": ids([0, VOCAB - 1])}, {"input_ids": ids([0])}, {"input_ids": ids([VOCAB - 1])}):
        assert np.isfinite(session.run({**feeds, "logits_to_keep": np.array(2**31 - 1)})["logits"]).all()


def test_the_command_says_it_too(port: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", input_ids=ids([1, -1, 3]))
    command = [sys.executable, "-m", "porting", "run", port, "--input", tmp_path / "x.npz", "-o", tmp_path / "y.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'input_ids' is out of range" in done.stderr and "next:" in done.stderr
    assert not (tmp_path / "y.npz").exists()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6), st.sampled_from(["int32", "int64"]))
def test_numbers_are_refused_exactly_when_one_is_outside(numbers: list[int], dtype: str) -> None:
    text = (
        "(int32[N] x) => (int32[N] y) { y = Identity(x) }"
        if dtype == "int32"
        else "(int64[N] x) => (int64[N] y) { y = Neg(x) }"
    )
    with open_session(replace(program(text), ranges={"x": (-5, 1 << 30)}), "null") as opened:
        feeds = {"x": np.array(numbers, dtype)}
        if all(-5 <= n < 1 << 30 for n in numbers):
            opened.run(feeds)  # an empty array too: it holds nothing that is outside
        else:
            with pytest.raises(InputError, match="expected -5 to 1073741823"):
                opened.run(feeds)


@pytest.mark.parametrize(("name", "message"), [("q", "'q', which is no input"), ("x", "no integers: float32")])
def test_ranges_that_cannot_be_meant(name: str, message: str) -> None:
    wanted = program("(float[N,4] x) => (float[N,4] y) { y = Neg(x) }")
    with pytest.raises(InputError, match=message):
        open_session(replace(wanted, ranges={name: (0, 4)}), "null")


def test_a_decode_step_hardly_pays_for_the_check() -> None:
    """About 0.2 us for one token, 3 us for a batch; the bar of 5 us each leaves room for a slow machine."""
    plain = program("(int64[B,S] x) => (int64[B,S] y) { y = Neg(x) }")
    with open_session(plain, "null") as without, open_session(replace(plain, ranges={"x": (0, 50)}), "null") as checked:
        for feeds in ({"x": ids([3])}, {"x": ids(*[[3]] * 8)}):
            took = [
                min(timeit.repeat(lambda s=s, f=feeds: s._checked(f), number=500, repeat=9)) / 500 for s in (without, checked)
            ]
            assert took[1] - took[0] < 5e-6


# --- ranges in port.json ----------------------------------------------------------------------------------------------


def rewritten(port: Path, folder: Path, ranges: object) -> Path:
    """The same port with other ranges; None takes them out."""
    manifest = json.loads((port / "port.json").read_text())
    del manifest["ranges"]
    copy = Path(shutil.copytree(port, folder / "copy"))
    (copy / "port.json").write_text(json.dumps(manifest if ranges is None else {**manifest, "ranges": ranges}))
    return copy


def test_a_port_from_before_ranges_opens(port: Path, tmp_path: Path, session: Session) -> None:
    older = rewritten(port, tmp_path, None)
    assert open_port(older).program().ranges == {}
    feeds = {"input_ids": token_ids(1, 5)}
    with load(older) as opened:
        np.testing.assert_array_equal(opened.run(feeds)["logits"], session.run(feeds)["logits"])


@pytest.mark.parametrize(
    "ranges",
    [
        7,
        [],
        "x",
        {"input_ids": 3},
        {"input_ids": [0]},
        {"input_ids": [0, 1.5]},
        {"input_ids": [True, 2]},
        {"input_ids": [3, 3]},
    ],
    ids=str,
)
def test_malformed_ranges_are_a_port_error(port: Path, tmp_path: Path, ranges: object) -> None:
    with pytest.raises(PortError, match="malformed"):
        open_port(rewritten(port, tmp_path, ranges))


# --- the length of a state --------------------------------------------------------------------------------------------


def test_a_length_above_what_was_written_is_refused(session: Session) -> None:
    state = session.new_state(64)
    session.run({"input_ids": ids([1, 2, 3])}, state)
    state.length = np.array([50])
    with pytest.raises(InputError, match=r"length is 50 in row 0, where 3 positions were written") as caught:
        session.run({"input_ids": ids([4])}, state)
    assert "lower its length to rewind" in caught.value.next
    state.length = np.array([3])
    session.run({"input_ids": ids([4])}, state)
    assert state.length.tolist() == [4]


def test_a_length_raised_in_place_is_refused(session: Session) -> None:
    state = session.new_state(64)
    session.run({"input_ids": ids([1, 2, 3])}, state)
    state.length += 1
    with pytest.raises(InputError, match="length is 4 in row 0, where 3"):
        session.run({"input_ids": ids([4])}, state)
    fresh = session.new_state(64)
    fresh.length[0] = 1
    with pytest.raises(InputError, match="length is 1 in row 0, where 0"):
        session.run({"input_ids": ids([4])}, fresh)


def test_a_rewind_may_be_taken_back_until_something_is_written(session: Session) -> None:
    tokens = token_ids(1, 8)
    whole = session.run({"input_ids": tokens})["logits"]
    state = session.new_state(64)
    session.run({"input_ids": tokens[:, :6]}, state)
    state.length = np.array([2])
    state.length = np.array([6])
    got = session.run({"input_ids": tokens[:, 6:7]}, state)["logits"]
    np.testing.assert_allclose(got[0, 0], whole[0, 6], rtol=0, atol=BOUND)
    state.length = np.array([2])
    session.run({"input_ids": tokens[:, 2:3]}, state)  # now 3: what lies behind is another history
    state.length = np.array([6])
    with pytest.raises(InputError, match="length is 6 in row 0, where 3"):
        session.run({"input_ids": tokens[:, 6:7]}, state)
    state.length = np.array([3])
    got = session.run({"input_ids": tokens[:, 3:]}, state)["logits"]
    np.testing.assert_allclose(got[0], whole[0, 3:], rtol=0, atol=BOUND)


def test_each_row_has_its_own_limit_and_keeps_it_as_the_cache_grows(session: Session) -> None:
    tokens = token_ids(2, 12)
    state = session.new_state(8, batch=2)
    session.run({"input_ids": tokens[:, :7]}, state)
    state.length = np.array([7, 4])
    for i in range(3):  # grows at the second of them
        session.run({"input_ids": tokens[:, 7 + i : 8 + i]}, state)
    assert state.capacity > 8
    for lengths, row in (([10, 8], 1), ([11, 7], 0)):
        state.length = np.array(lengths)
        with pytest.raises(InputError, match=f"length is {lengths[row]} in row {row}"):
            session.run({"input_ids": tokens[:, 10:11]}, state)
    state.length = np.array([10, 7])
    session.run({"input_ids": tokens[:, 10:11]}, state)
    assert state.length.tolist() == [11, 8]


def test_a_run_that_breaks_takes_back_what_it_may_have_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_session(_sums_program(), "null") as opened:
        state = opened.new_state(8)
        opened.run({"x": np.ones((1, 5, 3), np.float32)}, state)
        state.length = np.array([2])
        with monkeypatch.context() as broken:
            broken.setattr(opened._session, "run", lambda feeds, state: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                opened.run({"x": np.ones((1, 1, 3), np.float32)}, state)
        state.length += 1  # in place: the record is another array
        with pytest.raises(InputError, match="length is 3 in row 0, where 2"):
            opened.run({"x": np.ones((1, 1, 3), np.float32)}, state)
        state.length = np.array([2])
        opened.run({"x": np.ones((1, 1, 3), np.float32)}, state)
        assert state.length.tolist() == [3]


def test_a_state_for_other_rows_is_refused(session: Session) -> None:
    state = session.new_state(8, batch=2)
    state.length = np.array([0])
    with pytest.raises(InputError, match=r"a state for 1 rows needs .* for a state of 2 rows"):
        session.run({"input_ids": ids([1])}, state)


# --- whose state it is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "null", "cpu,process=worker"])
@pytest.mark.parametrize("made", [_sums_program, _lstm_program])
def test_a_state_of_another_session_is_refused(device: str, made) -> None:
    wanted: Program = made()
    with open_session(wanted, device) as one, open_session(wanted, device) as other:
        state = one.new_state(4)
        feeds = {"x": np.ones((1, 1, 3), np.float32)}
        with pytest.raises(UsageError, match="a state belongs to the session that made it"):
            other.run(feeds, state)
        one.run(feeds, state)


def test_a_state_does_not_keep_its_session_alive() -> None:
    opened = open_session(_sums_program(), "null")
    state = opened.new_state(4)
    assert state.owner is not None and state.owner() is opened
    del opened
    assert state.owner() is None
