"""The session a user holds: one interface over every backend.

It checks feeds once (names, dtypes, shapes, ranges), fills in defaults, converts DLPack arrays in and out, and keeps the length and the capacity of a state.
Backends behind it trust what they get (porting/types.py, BackendSession).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from porting.devices import Device, parse_device
from porting.dtypes import dtype_of
from porting.errors import DeviceUnavailable, InputError, RuntimeFailed, UsageError, nearest
from porting.registry import load_backend
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
        self._specs = {i.name: (dtype_of(i.dtype), i.shape, _fixed(i)) for i in self.inputs}
        self._batch_axes = [(i.name, i.shape.index("batch")) for i in self.inputs if "batch" in i.shape]
        defaults = {name: self._default(name, value) for name, value in program.defaults.items()}
        self._defaults = {name: array for name, array in defaults.items() if not self._symbols(name)}
        self._unfed = {name: array for name, array in defaults.items() if self._symbols(name)}
        self._ranges = [(name, *self._range(name, bounds)) for name, bounds in program.ranges.items()]

    @property
    def placement(self) -> Mapping[str, str]:
        """Node name -> device where it really runs."""
        return self._session.placement

    def new_state(self, capacity: int = CAPACITY_STEP, batch: int = 1) -> State:
        """Empty state for `batch` rows; it grows by itself when a run needs more than `capacity` positions.

        raises: UsageError when the program keeps no state
        """
        if not self.program.state.pairs:
            raise UsageError("this program keeps no state", next="call run(feeds) without a state")
        state = self._session.new_state(capacity if self.program.state.length else 0, batch)
        state.owner = weakref.ref(self)
        return state

    def run(self, feeds: Mapping[str, Array], state: State | None = None) -> dict[str, Array]:
        """Run once.

        feeds:   input name -> array; numpy, or anything that speaks DLPack. Inputs with a default may be left out
        state:   from new_state of this session; updated in place and advanced. Without one a program with state starts from
                 an empty one
        returns: output name -> array of the kind that was fed, state left out
        raises:  InputError for a wrong name, dtype, rank or fixed dimension, for a number outside the range of its input,
                 for no rows or no positions to advance by, and for a length of the state above what was written;
                 UsageError for a state of another session; RuntimeFailed when the device breaks
        """
        if self._closed:
            raise UsageError("the session is closed")
        arrays, foreign = self._checked(feeds)
        if self.program.state.pairs:
            outputs = self._run_with_state(arrays, state)
        elif state is None:
            outputs = self._session.run(arrays)
        else:
            raise UsageError("this program keeps no state", where="session.run", next="call run(feeds) without a state")
        return {k: foreign(v) for k, v in outputs.items()} if foreign else outputs

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
            state = self._session.new_state(step if spec.length else 0, batch)
        elif state.owner is None or state.owner() is not self:
            raise UsageError(
                "the state was made by another session; a state belongs to the session that made it",
                where="session.run",
                next="make one with new_state() of this session",
            )
        if spec.length is None:
            return self._session.run(arrays, state)
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

    def _batch(self, arrays: dict[str, np.ndarray]) -> int:
        """Rows of this run: the dimension called "batch", else dimension 0 of the input that the state advances by."""
        for name, axis in self._batch_axes:
            if name in arrays:
                return arrays[name].shape[axis]
        advance = self.program.state.advance
        array = arrays[advance[0]] if advance else next(iter(arrays.values()))
        return array.shape[0] if array.ndim else 1

    def _make_room(self, state: State, step: int) -> None:
        needed = int(state.length.max(initial=0)) + step
        if needed > state.capacity:
            wanted = max(needed, state.capacity + state.capacity // 2)
            capacity = -(-wanted // CAPACITY_STEP) * CAPACITY_STEP
            grown = self._session.new_state(capacity, len(state.length), grown_from=state)
            state.buffers, state.capacity = grown.buffers, grown.capacity

    def _checked(self, feeds: Mapping[str, Array]) -> tuple[dict[str, np.ndarray], Any]:
        """Feeds with defaults, and the function that turns outputs into the caller's kind of array (None for numpy).

        On the hot path of every run, a few microseconds beside a tiny graph: benchmarks/session_overhead.py.
        """
        foreign = None
        arrays = self._defaults.copy()
        specs = self._specs
        for name, value in feeds.items():
            wanted = specs.get(name)
            if wanted is None:
                raise self._unknown_input(name)
            if type(value) is not np.ndarray:
                value, back = _to_numpy(name, value)
                foreign = foreign or back
            dtype, dims, fixed = wanted
            shape = value.shape
            if value.dtype != dtype or len(shape) != len(dims):
                raise self._misfit(name, value)
            for axis, size in fixed:
                if shape[axis] != size:
                    raise self._misfit(name, value)
            arrays[name] = value if value.flags.c_contiguous else np.ascontiguousarray(value)
        if len(arrays) != len(specs):
            self._fill(arrays)
        if len(arrays) != len(specs):
            missing = [str(i) for i in self.inputs if i.name not in arrays]
            raise InputError(f"inputs not fed: {'; '.join(missing)}", where="session.run")
        for name, low, high in self._ranges:
            value = arrays[name]
            if value.size == 1:  # a decode step: no reduction
                if not low <= value.item() < high:
                    raise _out_of_range(name, value, low, high)
            elif value.size and (np.minimum.reduce(value, axis=None) < low or np.maximum.reduce(value, axis=None) >= high):
                raise _out_of_range(name, value, low, high)
        return arrays, foreign

    def _default(self, name: str, value: int | float) -> np.ndarray:
        if name not in self._specs:
            raise InputError(f"a default is given for {name!r}, which is no input", next=nearest(name, list(self._specs)))
        dtype, shape, _ = self._specs[name]
        elsewhere = {d for i in self.inputs if i.name not in self.program.defaults for d in i.shape if isinstance(d, str)}
        if any(not isinstance(dim, int) and dim not in elsewhere for dim in shape):
            raise InputError(
                f"input {name!r} has a default and a shape that is not fixed by other inputs: {list(shape)}", where="program"
            )
        return np.full([dim if isinstance(dim, int) else 1 for dim in shape], value, dtype)

    def _symbols(self, name: str) -> set[str]:
        return {dim for dim in self._specs[name][1] if isinstance(dim, str)}

    def _fill(self, arrays: dict[str, np.ndarray]) -> None:
        """Add the defaults whose shape follows from what was fed: a mask of as many ones as there are tokens."""
        sizes = {d: n for i in self.inputs if i.name in arrays for d, n in zip(i.shape, arrays[i.name].shape, strict=True)}
        for name, value in self._unfed.items():
            if name not in arrays and self._symbols(name) <= sizes.keys():
                shape = [sizes.get(dim, dim) for dim in self._specs[name][1]]
                arrays[name] = np.ascontiguousarray(np.broadcast_to(value, shape))

    def _range(self, name: str, bounds: tuple[int, int]) -> tuple[int, int]:
        if name not in self._specs:
            raise InputError(f"a range is given for {name!r}, which is no input", next=nearest(name, list(self._specs)))
        dtype = self._specs[name][0]
        if dtype.kind not in "iu":
            raise InputError(f"input {name!r} has a range and no integers: {dtype}", where="program")
        return bounds

    def _nothing_to_run(self, array: np.ndarray) -> InputError:
        assert self.program.state.advance is not None
        name, axis = self.program.state.advance
        return InputError(
            f"input {name!r} has nothing to run: expected at least 1 row and 1 position along axis {axis}, "
            f"got {array.dtype}[{', '.join(map(str, array.shape))}]",
            where="session.run",
            next="feed at least one position; leave empty batches out",
        )

    def _unknown_input(self, name: str) -> InputError:
        hidden = [p.input for p in self.program.state.pairs] + [self.program.state.length]
        if name in hidden:
            return InputError(
                f"{name!r} is state, which the session feeds itself", where="session.run", next="pass a state from new_state()"
            )
        return InputError(f"unknown input {name!r}", where="session.run", next=nearest(str(name), list(self._specs)))

    def _misfit(self, name: str, value: np.ndarray) -> InputError:
        wanted = next(i for i in self.inputs if i.name == name)
        got = f"{value.dtype}[{', '.join(map(str, value.shape))}]"
        return InputError(
            f"input does not fit: expected {wanted}, got {got}",
            where="session.run",
            next="cast or reshape it; nothing is converted silently",
        )


def _out_of_range(name: str, value: np.ndarray, low: int, high: int) -> InputError:
    place = tuple(np.argwhere((value < low) | (value >= high))[0].tolist())
    at = f" at [{', '.join(map(str, place))}]" if place else ""
    return InputError(
        f"input {name!r} is out of range: expected {low} to {high - 1}, got {value[place]}{at}",
        where="session.run",
        next=f"feed {name!r} numbers from {low} to {high - 1}; nothing is clipped or wrapped around",
    )


def _fixed(spec: TensorSpec) -> tuple[tuple[int, int], ...]:
    """(axis, size) of the dimensions that cannot vary."""
    return tuple((axis, dim) for axis, dim in enumerate(spec.shape) if isinstance(dim, int))


def _to_numpy(name: str, value: Any) -> tuple[np.ndarray, Any]:
    """A DLPack array as numpy, and the function that turns numpy back into its kind (None for numpy's own).

    raises: InputError for what is no array: numbers and lists have no dtype of their own
    """
    if isinstance(value, np.ndarray):
        return np.asarray(value), None
    if not hasattr(value, "__dlpack__"):
        raise InputError(
            f"input {name!r} is a {type(value).__name__}",
            where="session.run",
            next="feed a numpy array or one that speaks DLPack",
        )
    module = sys.modules[type(value).__module__.partition(".")[0]]  # torch, for a torch.nn.parameter.Parameter too
    if not hasattr(module, "from_dlpack"):
        raise InputError(
            f"input {name!r}: {module.__name__} has no from_dlpack", where="session.run", next="feed a numpy array"
        )
    if module.__name__ == "torch" and str(value.dtype) == "torch.bfloat16":  # numpy's DLPack knows no bfloat16
        bits = value.detach().cpu().contiguous().view(module.int16)
        array = np.from_dlpack(bits).view(dtype_of("bfloat16"))
    else:
        detached = value.detach() if hasattr(value, "detach") else value
        try:
            array = np.from_dlpack(detached.cpu() if hasattr(detached, "cpu") else detached)
        except (BufferError, RuntimeError, TypeError) as error:
            raise InputError(
                f"input {name!r} cannot be read through DLPack: {error}", where="session.run", next="feed a numpy array"
            ) from error

    def back(result: np.ndarray) -> Any:
        if result.dtype == dtype_of("bfloat16"):
            return module.from_dlpack(result.view(np.int16)).view(module.bfloat16)
        return module.from_dlpack(result if result.flags.writeable else result.copy())  # DLPack refuses read-only arrays

    return array, back


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
    """Open a port on disk on a device.

    raises: PortError (damaged, incomplete, too new), DeviceUnavailable, UsageError
    """
    from porting.port_folder import open_port

    return open_session(open_port(port).program(), device)


__all__ = ["CAPACITY_STEP", "Session", "State", "TensorSpec", "load", "open_session", "prepare_checked"]
