"""The session a user holds: one interface over every backend.

It checks feeds once (porting/feed_checks.py), converts DLPack arrays in and out, and keeps the length and the capacity of a state.
Backends behind it trust what they get (porting/types.py, BackendSession).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from porting.devices import Device, parse_device
from porting.errors import DeviceUnavailable, InputError, RuntimeFailed, UsageError, nearest
from porting.feed_checks import FeedChecks
from porting.gear_runs import fixed_capacity
from porting.registry import load_backend
from porting.state import batch_place, state_from_arrays
from porting.types import Array, Backend, BackendSession, Program, State, TensorSpec

CAPACITY_STEP = 256  # positions; a cache grows by half of itself, rounded up to this


class Session:
    """A program on a device.

    inputs, outputs: specs of what the caller feeds and gets, state left out
    device:          the device that runs it, as `placement` shows node by node
    """

    def __init__(self, program: Program, backend_session: BackendSession, device: Device) -> None:
        self.program = program
        self.device = device
        self._session = backend_session
        self._closed = False
        state = program.state
        hidden_in = {p.input for p in state.pairs} | ({state.length} if state.length else set())
        hidden_out = {p.output for p in state.pairs}
        self.inputs = tuple(i for i in program.inputs if i.name not in hidden_in)
        self.outputs = tuple(o for o in program.outputs if o.name not in hidden_out)
        _require_pairs(program)
        self._checked = FeedChecks(program, self.inputs).checked
        self._keeps_state = bool(state.pairs)
        self._appended = {pair.input: pair.appended for pair in state.pairs if pair.appended is not None}
        self._rows = batch_place(program, self.inputs)
        self._fixed_rows = self._rows_of_the_graph()
        self._capacity = fixed_capacity(program) if program.state.length else None

    @property
    def placement(self) -> Mapping[str, str]:
        """Node name -> device where it really runs."""
        return self._session.placement

    def new_state(
        self, capacity: int = CAPACITY_STEP, batch: int | None = None, initial: Mapping[str, np.ndarray] | None = None
    ) -> State:
        """A state for `batch` rows, of zeros or started from arrays; it grows by itself when a run needs more than `capacity` positions.

        Where the graph itself says how many rows or positions it has, it has these, and no more.

        batch:   None takes it from `initial`, else from the graph, else 1; porting/state.py says which dimension it is
        initial: numpy arrays by input name, as `read_state` gives them; what is left out is zeros
        raises:  UsageError when the program keeps no state; InputError for arrays that do not fit, and where the size of a buffer
                 is not known without an array
        """
        if not self.program.state.pairs:
            raise UsageError("this program keeps no state", next="call run(feeds) without a state")
        if batch is not None and (isinstance(batch, bool) or not isinstance(batch, (int, np.integer)) or batch < 0):
            raise InputError(
                f"a state has a whole number of rows, got batch={batch!r}", where="new_state", next="give the rows that are fed"
            )
        source = state_from_arrays(self.program, initial, batch) if initial else None
        rows = (self._fixed_rows or 1 if batch is None else batch) if source is None else len(source.length)
        if self._fixed_rows not in (None, rows):
            raise InputError(f"the graph was made for {self._fixed_rows} rows, not {rows}", where="new_state")
        wanted = max(capacity, source.capacity if source else 0) if self.program.state.length else 0
        if self._capacity is not None:
            self._require_capacity(source.capacity if source else 0)
            wanted = self._capacity
        state = self._session.new_state(wanted, rows, *([source] if source else []))
        state.owner = weakref.ref(self)
        state.appended = bool(self._appended) and source is not None
        return state

    def rows(self, feeds: Mapping[str, Array]) -> int:
        """How many rows a run on `feeds` has, as far as its state is concerned: what `new_state(batch=...)` takes."""
        return self._batch(self._checked(feeds)[0])

    def read_state(self, state: State) -> dict[str, np.ndarray]:
        """What a state holds, as arrays that `new_state(initial=...)` takes: to keep a stream over a restart, or to look at it.

        returns: input name -> array; along a growing axis what is filled, and then the length under its own input name too
        raises:  UsageError for a state of another session
        """
        self._require_mine(state)
        self._rewind_appended(state)
        arrays = self._session.read_state(state)
        stop = int(state.length.max(initial=0))
        cut = {p.input: () if p.axis is None else (*[slice(None)] * p.axis, slice(stop)) for p in self.program.state.pairs}
        found = {name: arrays[name][place] for name, place in cut.items()}
        if self.program.state.length:
            found[self.program.state.length] = np.array(state.length)
        return found

    def run(self, feeds: Mapping[str, Array], state: State | None = None) -> dict[str, Array]:
        """Run once.

        feeds:   input name -> array; numpy, or anything that speaks DLPack; strings are arrays of str, a sequence is a list of
                 arrays. Inputs with a default may be left out
        state:   from new_state of this session; updated in place and advanced. Without one a program with state starts from
                 an empty one
        returns: output name -> array of the kind that was fed, state left out
        raises:  InputError for a wrong name, dtype, rank or fixed dimension, for sizes that disagree about a named dimension,
                 for a number outside the range of its input, for no rows or no positions to advance by, for a state of other
                 rows, and for a length of the state above what was written;
                 UsageError for a state of another session; RuntimeFailed when the device breaks
        """
        if self._closed:
            raise UsageError("the session is closed")
        arrays, foreign = self._checked(feeds)
        if self._keeps_state:
            outputs = self._run_with_state(arrays, state)
        elif state is None:
            outputs = self._session.run(arrays)
        else:
            raise UsageError("this program keeps no state", where="session.run", next="call run(feeds) without a state")
        return {k: _in_kind(foreign, v) for k, v in outputs.items()} if foreign else outputs

    def close(self) -> None:
        """Release the device. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._session.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run_with_state(self, arrays: dict[str, np.ndarray], state: State | None) -> dict[str, np.ndarray]:
        spec = self.program.state
        step = arrays[spec.advance[0]].shape[spec.advance[1]] if spec.advance else 0
        batch = self._batch(arrays)
        if spec.advance and (step < 1 or batch < 1):
            raise self._nothing_to_run(arrays[spec.advance[0]])
        if state is None:
            state = self._session.new_state((self._capacity or step) if spec.length else 0, batch)
        else:
            self._require_mine(state)
        if spec.length is None:
            if self._rows and self._rows[2] and len(state.written) != batch:
                raise InputError(
                    f"the state is for {len(state.written)} rows, {self._rows[0]!r} has {batch} along axis {self._rows[1]}",
                    where="session.run",
                    next=f"make it with new_state(batch={batch})",
                )
            self._rewind_appended(state)
            outputs = self._session.run(arrays, state)
            state.appended = bool(self._appended)
            return outputs
        length = self._checked_length(state, batch)
        state.length = length
        self._make_room(state, step)
        # from here on what lies beyond `length` is another history, or half written should the run fail
        state.written = length.copy()
        arrays[spec.length] = length
        outputs = self._session.run(arrays, state)
        state.length = length + step
        state.written = length + step
        return outputs

    def _checked_length(self, state: State, batch: int) -> np.ndarray:
        """The length of a state that `batch` rows are to be run with. raises: InputError"""
        length, written = np.asarray(state.length), state.written
        rows = (batch,)
        if length.dtype != np.int64 or length.shape != rows or written.shape != rows or length.min(initial=0) < 0:
            made = f" for a state of {len(written)} rows" if written.shape != rows else ""
            raise InputError(
                f"a state for {batch} rows needs a length of {batch} int64 numbers from 0 up, "
                f"got {length.dtype}{list(length.shape)}{made}: {length}",
                where="session.run",
                next="make the state with new_state(batch=...); lower its length to rewind, change nothing else",
            )
        if (length > written).any():
            row = int((length > written).argmax())
            raise InputError(
                f"the state's length is {length[row]} in row {row}, where {written[row]} positions were written",
                where="session.run",
                next="lower its length to rewind; only a run raises it",
            )
        return length

    def appended_length(self, state: State) -> np.ndarray:
        """Positions in each row of a state that runs append to, (batch,) int64; what `state.length` gives.

        raises: InputError where its pieces hold different numbers of them
        """
        arrays = self._session.read_state(state)
        sizes = {name: arrays[name].shape[axis] for name, axis in self._appended.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(
                f"the state has no one length: {', '.join(f'{name} {size}' for name, size in sizes.items())}",
                where="state.length",
                next="cut what read_state gives, and go on from new_state(initial=...)",
            )
        return np.full(len(state.written), next(iter(sizes.values())), np.int64)

    def _rewind_appended(self, state: State) -> None:
        """Cut buffers that runs append to where the caller has lowered the length. raises: InputError"""
        if not self._appended or state.appended or np.array_equal(state.length, state.written):
            return
        length = self._checked_length(state, len(state.written))
        if length.min() != length.max():
            raise InputError(
                f"rows of this state are filled alike, got the lengths {length}",
                where="state.length",
                next="lower all rows by as much; a state for each row can go back by itself",
            )
        stop = int(length[0])
        arrays = self._session.read_state(state)
        kept = {
            n: a[(*[slice(None)] * self._appended[n], slice(stop))] if n in self._appended else a for n, a in arrays.items()
        }
        source = State({name: np.ascontiguousarray(array) for name, array in kept.items()}, np.zeros(len(length), np.int64), 0)
        state.buffers = self._session.new_state(0, len(length), source).buffers
        state.written = length.copy()

    def _require_mine(self, state: State) -> None:
        if state.owner is None or state.owner() is not self:
            raise UsageError(
                "the state was made by another session; a state belongs to the session that made it",
                where="session.run",
                next="make one with new_state() of this session",
            )

    def _batch(self, arrays: dict[str, np.ndarray]) -> int:
        """Rows of this run."""
        return int(arrays[self._rows[0]].shape[self._rows[1]]) if self._rows else 1

    def _make_room(self, state: State, step: int) -> None:
        needed = int(state.length.max(initial=0)) + step
        if self._capacity is not None:
            self._require_capacity(needed)
        if needed > state.capacity:
            wanted = max(needed, state.capacity + state.capacity // 2)
            capacity = -(-wanted // CAPACITY_STEP) * CAPACITY_STEP
            grown = self._session.new_state(capacity, len(state.length), grown_from=state)
            state.buffers, state.capacity = grown.buffers, grown.capacity

    def _require_capacity(self, needed: int) -> None:
        """raises: InputError for more positions than the graph has, where their number is written into it"""
        assert self._capacity is not None
        if needed > self._capacity:
            raise InputError(
                f"the cache has {self._capacity} positions, and {needed} are needed: the graph was made for that many",
                where="session.run",
                next='shorten the text, or convert with more: --gears "capacity=..."',
            )

    def _rows_of_the_graph(self) -> int | None:
        """Rows that are written into the graph; None where they are the caller's to choose."""
        if not self._keeps_state or self._rows is None or not self._rows[2]:
            return None
        name, axis, _ = self._rows
        size = next(spec for spec in self.inputs if spec.name == name).shape[axis]
        return size if isinstance(size, int) else None

    def _nothing_to_run(self, array: np.ndarray) -> InputError:
        assert self.program.state.advance is not None
        name, axis = self.program.state.advance
        return InputError(
            f"input {name!r} has nothing to run: expected at least 1 row and 1 position along axis {axis}, "
            f"got {array.dtype}[{', '.join(map(str, array.shape))}]",
            where="session.run",
            next="feed at least one position; leave empty batches out",
        )


def _in_kind(back: Callable[[Any], Any], value: Any) -> Any:
    """An output in the caller's kind of array; strings stay numpy's, for nobody else has them."""
    if isinstance(value, list):
        return [_in_kind(back, part) for part in value]
    return value if value.dtype.kind == "O" else back(value)


def _require_pairs(program: Program) -> None:
    """State pairs name an input and an output of one dtype. raises: InputError"""
    inputs, outputs = ({spec.name: spec for spec in specs} for specs in (program.inputs, program.outputs))
    for pair in program.state.pairs:
        for name, known, kind in ((pair.input, inputs, "input"), (pair.output, outputs, "output")):
            if name not in known:
                raise InputError(f"state names {name!r}, which is no {kind}", where="program", next=nearest(name, list(known)))
        if inputs[pair.input].dtype != outputs[pair.output].dtype:
            raise InputError(f"state goes from {outputs[pair.output]} to {inputs[pair.input]}: two dtypes", where="program")
        if pair.appended is not None and not 0 <= pair.appended < len(inputs[pair.input].shape):
            raise InputError(f"state {inputs[pair.input]} has no axis {pair.appended} to append to", where="program")


def open_session(program: Program, device: str | Device = "cpu") -> Session:
    """Prepare a program on a device.

    device: `name[:index][,option=value]...`; `process=worker` runs the backend in a process of its own;
            `a-or-b` takes the first of both that is usable, nothing else ever falls back
    raises: UsageError (unknown device or option), DeviceUnavailable, RuntimeFailed (nodes that it cannot take), InputError
    """
    wanted = parse_device(device) if isinstance(device, str) else device
    options = dict(wanted.options)
    in_worker = options.pop("process", "here")
    if in_worker not in ("here", "worker"):
        raise UsageError(f"unknown process={in_worker!r}", where=f"device {wanted}", next="known: here, worker")
    refused: list[str] = []
    next_step = ""
    for name in wanted.alternatives:
        backend: Backend = load_backend(name)
        available = backend.probe()
        if not available.usable:
            refused.append(f"{name}: {available.reason}")
            next_step = available.next
            continue
        chosen = Device(name, wanted.index, options)
        if in_worker == "worker":
            from porting.worker import WorkerSession

            return Session(program, WorkerSession(chosen, program), chosen)
        return Session(program, prepare_checked(backend, program, chosen), chosen)
    raise DeviceUnavailable(
        f"device {str(wanted)!r} is not available: {'; '.join(refused)}",
        where="probe",
        next=next_step or "`porting doctor` lists every device",
    )


def prepare_checked(backend: Backend, program: Program, device: Device) -> BackendSession:
    """`backend.prepare`, after asking which nodes it cannot take."""
    unsupported = backend.unsupported(program)
    if unsupported:
        shown = "; ".join(f"{u.node} ({u.domain or 'ai.onnx'}::{u.op_type}): {u.reason}" for u in unsupported[:5])
        more = f" and {len(unsupported) - 5} more" if len(unsupported) > 5 else ""
        raise RuntimeFailed(f"{device} cannot take {len(unsupported)} nodes: {shown}{more}", where="prepare")
    return backend.prepare(program, {**device.options, "index": str(device.index)})


def load(port: str | Path, device: str = "cpu") -> Session:
    """Open a port on disk on a device. Where its compiled model makes its numbers from uint8 images by itself (AIPP), it is fed those.

    raises: PortError (damaged, incomplete, too new), DeviceUnavailable, UsageError
    """
    from porting.pixel_inputs import program_on
    from porting.port_folder import open_port

    return open_session(program_on(open_port(port), device), device)


__all__ = ["CAPACITY_STEP", "Session", "State", "TensorSpec", "load", "open_session", "prepare_checked"]
