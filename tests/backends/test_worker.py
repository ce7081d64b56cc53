"""The worker process: what crosses the border, what happens when either side dies, what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from porting.backends.null import NullSession
from porting.errors import InputError, RuntimeFailed, UsageError
from porting.session import Session, open_session
from porting.worker import Arena, WorkerSession, _Child
from tests.backends.contract import program
from tests.backends.stateful import _sums_program

NEGATE = "(float[N,4] x) => (float[N,4] y) { [neg] y = Neg(x) }"
# minutes of work unless it is stopped
ENDLESS = (
    "(float[2,2] x, int64 n, bool go) => (float[2,2] y) "
    "{ y = Loop(n, go, x) <body = b (int64 i, bool c, float[2,2] h) => (bool d, float[2,2] k) { d = Identity(c) k = MatMul(h, h) }> }"
)
X = np.ones((2, 4), np.float32)


def worker_of(session: Session) -> WorkerSession:
    assert isinstance(session._session, WorkerSession)
    return session._session


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process ends within `seconds`; a zombie has ended."""
    for _ in range(int(seconds / 0.05)):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def shared_session():
    with open_session(program(NEGATE), "cpu,process=worker") as session:
        yield session


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_arena_carries_any_array_and_grows() -> None:
    import ml_dtypes

    writer = Arena.create()
    reader = Arena(os.dup(writer.fd))
    for size in (3, 0, 5000, 2):
        arrays = {
            "f": np.arange(size, dtype=np.float32),
            "scalar": np.array(7, np.int64),
            "empty": np.zeros((2, 0, 3), bool),
            "b": np.arange(size).astype(ml_dtypes.bfloat16).reshape(size, 1),
        }
        for name, got in reader.read(writer.write(arrays)).items():
            assert got.dtype == arrays[name].dtype
            np.testing.assert_array_equal(got, arrays[name])
    reader.close()
    writer.close()


def test_runs_of_growing_and_shrinking_size(shared_session: Session) -> None:
    for rows in (1, 100_000, 3, 0, 200_000):
        x = np.full((rows, 4), rows, np.float32)
        np.testing.assert_array_equal(shared_session.run({"x": x})["y"], -x)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_keep_class_where_and_next() -> None:
    with pytest.raises(UsageError, match="has no option 'thread'") as caught:
        open_session(program(NEGATE), "cpu,process=worker,thread=2")
    assert caught.value.where == "--device cpu,thread=2"
    assert "did you mean 'threads'" in caught.value.next


def test_failed_run_leaves_the_worker_usable() -> None:
    graph = "(float[A] x, float[B] y) => (float[C] z) { [both] z = Add(x, y) }"
    with open_session(program(graph), "cpu,process=worker") as session:
        with pytest.raises(RuntimeFailed, match="broadcast") as caught:
            session.run({"x": np.ones(2, np.float32), "y": np.ones(3, np.float32)})
        assert "node 'both'" in caught.value.where
        with pytest.raises(InputError):
            session.run({"x": np.ones(2, np.float32)})
        assert session.run({"x": np.ones(2, np.float32), "y": np.ones(2, np.float32)})["z"].tolist() == [2, 2]


# --- endings ----------------------------------------------------------------------------------------------------------


def test_killed_worker_is_named_by_its_signal() -> None:
    session = open_session(program(NEGATE), "cpu,process=worker")
    worker = worker_of(session)
    os.kill(worker._child.pid, signal.SIGKILL)
    with pytest.raises(RuntimeFailed, match="worker process of cpu was killed by SIGKILL during run"):
        session.run({"x": X})
    with pytest.raises(RuntimeFailed, match="worker process is gone"):
        session.run({"x": X})
    session.close()


def test_ctrl_c_that_the_parent_survives_leaves_an_idle_worker_alone(shared_session: Session) -> None:
    os.kill(worker_of(shared_session)._child.pid, signal.SIGINT)  # a terminal sends it to the whole group
    time.sleep(0.1)
    assert shared_session.run({"x": X})["y"].tolist() == (-X).tolist()


def test_worker_that_crashes_while_it_computes_is_no_hang() -> None:
    session = open_session(program(ENDLESS), "cpu,process=worker,threads=1")
    pid = worker_of(session)._child.pid
    threading.Timer(0.3, os.kill, (pid, signal.SIGSEGV)).start()
    with pytest.raises(RuntimeFailed, match="killed by SIGSEGV during run"):
        session.run({"x": np.zeros((2, 2), np.float32), "n": np.array(1 << 40), "go": np.array(True)})
    session.close()
    assert gone(pid)


def test_close_twice_leaves_no_process_and_no_memory() -> None:
    before = set(os.listdir("/proc/self/fd"))
    shm = set(os.listdir("/dev/shm"))
    session = open_session(_sums_program(), "cpu,process=worker")
    session.run({"x": np.ones((1, 2, 3), np.float32)}, session.new_state(4))
    worker = worker_of(session)
    session.close()
    assert worker._child.returncode == 0
    session.close()
    worker.close()
    assert set(os.listdir("/proc/self/fd")) == before
    assert set(os.listdir("/dev/shm")) <= shm


def test_session_that_is_dropped_unclosed_ends_its_worker() -> None:
    pid = worker_of(open_session(program(NEGATE), "cpu,process=worker"))._child.pid
    assert gone(pid)


def test_states_that_are_dropped_are_freed_in_the_worker() -> None:
    with open_session(_sums_program(), "cpu,process=worker") as session:
        worker = worker_of(session)
        for _ in range(5):
            session.new_state(4)
        session.run({"x": np.ones((1, 2, 3), np.float32)})
        numbers = session.new_state(4).buffers["worker"].number
        assert numbers == 7  # five dropped, the one of run() without a state, this one
        assert worker._dropped == [7]  # the others were told to the child along the way


def test_backend_in_the_worker_sees_how_far_the_state_is_filled() -> None:
    class Spy(NullSession):
        seen = None

        def run(self, feeds, state=None):
            self.seen = state.length
            return super().run(feeds, state)

    child = _Child(Arena.create(), Arena.create())
    child._session, child._length = Spy(_sums_program()), "length"
    number, _ = child.new_state(8, 2, None)
    feeds = {"x": np.ones((2, 1, 3), np.float32), "length": np.array([4, 2])}
    child.run(child._feeds.write(feeds), number)
    assert child._session.seen.tolist() == [4, 2]


PARENT = """
import os, sys, numpy as np
from porting.session import open_session
from tests.backends.contract import program
from tests.backends.test_worker import ENDLESS
session = open_session(program(ENDLESS), "cpu,process=worker,threads=1")
print(session._session._child.pid, flush=True)
try:
    session.run({"x": np.zeros((2, 2), np.float32), "n": np.array(1 << 40), "go": np.array(True)})
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=lambda s: s.name)
def test_worker_ends_with_its_parent_even_while_it_computes(end: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=Path(__file__).parents[2]
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    if end == signal.SIGINT:
        os.killpg(parent.pid, end)  # a terminal sends Ctrl-C to the whole group
        assert parent.stdout.readline() == "interrupted\n"
        assert parent.wait(10) == 130
    else:
        parent.kill()
        parent.wait(10)
    parent.stdout.close()
    assert gone(pid, 15)


def test_what_the_backend_prints_stays_out_of_the_parents_stdout(shared_session: Session) -> None:
    files = Path(f"/proc/{worker_of(shared_session)._child.pid}/fd")
    assert os.readlink(files / "1") == os.readlink(files / "2") == os.readlink("/proc/self/fd/2")
    assert os.readlink(files / "1") != os.readlink("/proc/self/fd/1")
