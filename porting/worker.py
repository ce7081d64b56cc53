"""A backend in a process of its own, behind the same session: for runtimes with per-process options or libraries that clash.

The child is a fresh interpreter. Messages go through a socket; arrays go through two anonymous files in memory that both sides
map, one per direction, which only grow. Having no name, they vanish with the last process that maps them, however it ends.

    parent                             child
    WorkerSession._call  ── request ──>  main: serve until the socket closes
                         <── reply ───  ("ok", value) | ("error", kind, what, where, next) | ("bug", traceback)

State stays in the child; the parent holds a number for it. The child ends when the parent does, because the socket closes;
a thread watches for that while the backend is busy. It ignores Ctrl-C, which is the parent's to handle: an interrupted call
ends the child, since nobody would read its answer.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from porting import errors
from porting.devices import Device
from porting.dtypes import STRING, dtype_of
from porting.errors import DeviceUnavailable, OutOfResources, PortingError, RuntimeFailed
from porting.types import Program, State

ALIGNMENT = 64  # bytes; what vector kernels like best
POLL_SECONDS = 1.0  # how often a waiting parent looks whether the child still lives
CLOSE_SECONDS = 10.0  # grace for a backend that releases a device
ORPHAN_SECONDS = 1.0  # grace for a child whose parent is gone: nobody waits for its answer


# --- arrays through shared memory ---------------------------------------------------------------------------------


class Arena:
    """A file in memory that one process writes and the other reads; it only grows.

    A table says what lies in it, (name, entry) per value; an entry is (dtype, shape, offset in bytes) of an array, ("string", shape,
    texts), or ("sequence", entries).
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls) -> Arena:
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("porting-worker"))
        with tempfile.TemporaryFile() as file:  # no memfd outside Linux: a file without a name does the same
            return cls(os.dup(file.fileno()))

    def write(self, values: Mapping[str, Any]) -> list[tuple]:
        """Copy values in; returns their table."""
        arrays: list[tuple[np.ndarray, int]] = []
        table = []
        end = 0
        for name, value in values.items():
            entry, end = self._entry(value, end, arrays)
            table.append((name, entry))
        if end > os.fstat(self.fd).st_size:
            self._grow(end)
        for array, offset in arrays:
            self._value((array.dtype.name, array.shape, offset))[...] = array
        return table

    def _entry(self, value: Any, end: int, arrays: list[tuple[np.ndarray, int]]) -> tuple[tuple, int]:
        """What the table says of a value that may lie from `end` on, and where the next may; arrays to copy are added to `arrays`."""
        if isinstance(value, list):
            entries = []
            for part in value:
                entry, end = self._entry(part, end, arrays)
                entries.append(entry)
            return ("sequence", entries), end
        if value.dtype.kind == "O":  # strings have no bytes to map: they go with the table
            return (STRING, value.shape, value.ravel().tolist()), end
        arrays.append((value, end))
        return (value.dtype.name, value.shape, end), end + -(-value.nbytes // ALIGNMENT) * ALIGNMENT

    def read(self, table: list[tuple]) -> dict[str, Any]:
        """What a table lists; arrays are views that hold until the next write."""
        return {name: self._value(entry) for name, entry in table}

    def _value(self, entry: tuple) -> Any:
        if entry[0] == "sequence":
            return [self._value(part) for part in entry[1]]
        dtype, shape, place = entry
        if dtype == STRING:
            texts = np.empty(len(place), object)
            texts[:] = place
            return texts.reshape(shape)
        if 0 in shape:
            return np.empty(shape, dtype_of(dtype))
        size = os.fstat(self.fd).st_size
        if self._map is None or len(self._map) < size:
            self._map = mmap.mmap(self.fd, size)  # an older map lives on as long as a view of it does
        return np.ndarray(shape, dtype_of(dtype), self._map, place)

    def _grow(self, size: int) -> None:
        try:
            if hasattr(os, "posix_fallocate"):  # takes the memory now; else a full machine kills whoever writes to it first
                os.posix_fallocate(self.fd, 0, size)
            else:
                os.ftruncate(self.fd, size)
        except OSError as error:
            raise OutOfResources(
                f"memory ran out: {size >> 20} MiB to hand arrays to or from a worker: {error}",
                where="shared memory",
                next="use a smaller batch",
            ) from error

    def close(self) -> None:
        self._map = None
        os.close(self.fd)


# --- the parent's side ----------------------------------------------------------------------------------------------


class _StateHandle:
    """The number of a state in the child; the child is told when it is gone."""

    def __init__(self, number: int, dropped: list[int]) -> None:
        self.number = number
        weakref.finalize(self, dropped.append, number)


class WorkerSession:
    """A BackendSession whose backend runs in a child process. One call at a time; further threads wait.

    environment: variables that the child has beside those of this process, or in their place
    raises:      what the backend raises, as the same class; RuntimeFailed when the child dies
    """

    def __init__(self, device: Device, program: Program, environment: Mapping[str, str] | None = None) -> None:
        if os.name != "posix":
            raise DeviceUnavailable("process=worker needs Linux or macOS", where=f"device {device}")
        self._device = device
        self._lock = threading.Lock()
        self._dropped: list[int] = []
        self._feeds, self._outputs = Arena.create(), Arena.create()
        ours, theirs = socket.socketpair()
        fds = [theirs.fileno(), self._feeds.fd, self._outputs.fd]
        code = f"import sys; sys.path[:] = {sys.path!r}; from porting.worker import main; main(*{fds!r}, parent={os.getpid()})"
        variables = {**os.environ, **(environment or {})}
        self._child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=fds, env=variables)
        theirs.close()
        self._connection = Connection(ours.detach())
        self._closed = False
        self._finalizer = weakref.finalize(self, _end, self._child, self._connection, self._feeds, self._outputs)
        try:
            self.placement: Mapping[str, str] = self._call("prepare", device, program)
        except BaseException:
            self.close()
            raise

    def new_state(self, capacity: int, batch: int = 1, grown_from: State | None = None) -> State:
        with self._lock:
            self._require_alive()
            source: tuple | None = None
            if grown_from is not None:
                handle = grown_from.buffers.get("worker")
                kept = handle.number if isinstance(handle, _StateHandle) else self._feeds.write(grown_from.buffers)
                source = (kept, grown_from.length, grown_from.capacity)
            number, length = self._call_locked("new_state", capacity, batch, source)
        return State({"worker": _StateHandle(number, self._dropped)}, length, capacity)

    def run(self, feeds: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        number = None if state is None else state.buffers["worker"].number
        with self._lock:
            self._require_alive()  # before anything is written: the number of a closed file may be another's by now
            table = self._call_locked("run", self._feeds.write(feeds), number)
            return {name: _copied(value) for name, value in self._outputs.read(table).items()}

    def read_state(self, state: State) -> dict[str, np.ndarray]:
        with self._lock:
            table = self._call_locked("read_state", state.buffers["worker"].number)
            return {name: _copied(value) for name, value in self._outputs.read(table).items()}

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._finalizer()

    def _call(self, *request: Any) -> Any:
        with self._lock:
            return self._call_locked(*request)

    def _require_alive(self) -> None:
        if self._closed:
            raise RuntimeFailed("the worker process is gone, and its state with it", where=f"worker of {self._device}")

    def _call_locked(self, *request: Any) -> Any:
        self._require_alive()
        dropped = [self._dropped.pop() for _ in range(len(self._dropped))]
        try:
            self._connection.send((dropped, *request))
            while not self._connection.poll(POLL_SECONDS):
                if self._child.poll() is not None and not self._connection.poll(0):
                    raise EOFError
            reply = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._died(request[0]) from error
        except BaseException:  # Ctrl-C: the answer would be taken for that of the next call
            self._closed = True
            self._child.kill()
            self._finalizer()
            raise
        return _unwrap(reply, str(self._device))

    def _died(self, doing: str) -> PortingError:
        self._closed = True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(CLOSE_SECONDS)
        code = self._child.poll()
        self._finalizer()
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        return RuntimeFailed(
            f"the worker process of {self._device} {how} during {doing}",
            where=f"process {self._child.pid}",
            next="SIGKILL is mostly the kernel running out of memory" if code == -signal.SIGKILL else "see its stderr above",
        )


def _copied(value: Any) -> Any:
    return [_copied(part) for part in value] if isinstance(value, list) else value.copy()


def _end(child: subprocess.Popen, connection: Connection, *arenas: Arena) -> None:
    """Close the socket, which the child takes as its end, and wait; kill it when it does not go."""
    connection.close()
    try:
        child.wait(CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for arena in arenas:
        arena.close()


def _unwrap(reply: tuple, device: str) -> Any:
    if reply[0] == "ok":
        return reply[1]
    if reply[0] == "error":
        _, kind, what, where, next_step = reply
        raise getattr(errors, kind)(what, where=where, next=next_step)
    raise RuntimeError(f"bug in the worker of {device}:\n{reply[1]}")


# --- the child's side -----------------------------------------------------------------------------------------------

_serving = False


def in_worker() -> bool:
    """Whether this process is a worker: it serves one session, and its current folder and its environment are nobody else's."""
    return _serving


def main(socket_fd: int, feeds_fd: int, outputs_fd: int, *, parent: int) -> None:
    """Serve one backend session until the parent closes the socket."""
    global _serving
    _serving = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)  # what a vendor library prints must not end up in the parent's result
    connection = Connection(socket_fd)
    child = _Child(Arena(feeds_fd), Arena(outputs_fd))
    threading.Thread(target=_watch, args=(socket_fd, parent, child), daemon=True).start()
    try:
        while True:
            dropped, name, *arguments = connection.recv()
            connection.send(child.answer(dropped, name, arguments))
    except (EOFError, OSError):  # the parent closed its end, or is gone
        child.close()


def _watch(socket_fd: int, parent: int, child: _Child) -> None:
    """End this process when the parent is gone, also while the backend computes."""
    with socket.socket(fileno=os.dup(socket_fd)) as peek:
        while os.getppid() == parent:
            threading.Event().wait(POLL_SECONDS)
            try:
                if peek.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"":
                    break
            except BlockingIOError:
                continue
            except OSError:
                break
        threading.Event().wait(ORPHAN_SECONDS)
        if not child.busy:  # the main thread is on the orderly way out
            threading.Event().wait(CLOSE_SECONDS)
        os._exit(1)


class _Child:
    """The session in the child, and its states by number."""

    def __init__(self, feeds: Arena, outputs: Arena) -> None:
        self._feeds, self._outputs = feeds, outputs
        self._session: Any = None
        self._length: str | None = None  # name of the input that says how far a state is filled
        self._states: dict[int, State] = {}
        self._last = 0
        self.busy = False  # between a request and its answer

    def answer(self, dropped: list[int], name: str, arguments: list) -> tuple:
        try:
            for number in dropped:
                self._states.pop(number, None)
            calls: dict[str, Callable[..., Any]] = {
                "prepare": self.prepare,
                "new_state": self.new_state,
                "read_state": self.read_state,
                "run": self.run,
            }
            self.busy = True
            return "ok", calls[name](*arguments)
        except PortingError as error:
            kind = next(c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__)
            return "error", kind, error.what, error.where, error.next
        except MemoryError as error:
            return "error", "OutOfResources", f"memory ran out: {error}", "worker process", "use a smaller batch or capacity"
        except Exception:
            return "bug", traceback.format_exc()
        finally:
            self.busy = False

    def prepare(self, device: Device, program: Program) -> dict[str, str]:
        from porting.registry import load_backend
        from porting.session import prepare_checked

        backend = load_backend(device.name)
        available = backend.probe()  # again: what the parent's process can load is not what this one can
        if not available.usable:
            raise DeviceUnavailable(
                f"device {str(device)!r} is not available: {available.reason}", where="probe", next=available.next
            )
        self._session = prepare_checked(backend, program, device)
        self._length = program.state.length
        return dict(self._session.placement)

    def new_state(self, capacity: int, batch: int, source: tuple | None) -> tuple[int, np.ndarray]:
        """source: (number of a state here or the table of its arrays, length, capacity) of what it grows from"""
        grown_from = None
        if source is not None:
            kept, length, held = source
            if isinstance(kept, list):
                grown_from = State({name: _copied(value) for name, value in self._feeds.read(kept).items()}, length, held)
            else:
                grown_from = self._states[kept]
                grown_from.length = length
        state = self._session.new_state(capacity, batch, grown_from)
        self._last += 1
        self._states[self._last] = state
        return self._last, state.length

    def read_state(self, number: int) -> list[tuple]:
        return self._outputs.write(self._session.read_state(self._states[number]))

    def run(self, table: list[tuple], number: int | None) -> list[tuple]:
        feeds = self._feeds.read(table)
        if number is None:
            return self._outputs.write(self._session.run(feeds))
        state = self._states[number]
        if self._length:
            state.length = feeds[self._length].copy()
        return self._outputs.write(self._session.run(feeds, state))

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
