"""What a session lets through to a backend: names, dtypes, shapes and ranges of feeds, and the defaults of what was not fed.

Numbers with a known rank take the hot path, a few microseconds in every run (benchmarks/session_overhead.py); strings, sequences and
inputs of unknown rank have functions of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from porting.dtypes import STRING, dtype_of, sequence_element
from porting.errors import InputError, nearest
from porting.gear_runs import gear_of
from porting.state import is_name
from porting.types import ANY_SHAPE, Array, Limit, Program, TensorSpec
from porting.verdict import printable

WHERE = "session.run"
LYING = (
    "the model says by the name {symbol} that they are equal: if they are not meant to be, give its inputs different names there "
    "(dim_param in the .onnx file, the names of --input or dynamic of a torch module) and port it again"
)


class FeedChecks:
    """The inputs of a program that the caller feeds, and what may be fed to each.

    inputs: their specs, state left out
    raises: InputError for defaults and ranges that cannot be meant
    """

    def __init__(self, program: Program, inputs: tuple[TensorSpec, ...]) -> None:
        self._program = program
        self._inputs = {i.name: i for i in inputs}
        plain = [i for i in inputs if i.dtype != STRING and sequence_element(i.dtype) is None and i.shape != ANY_SHAPE]
        self._specs = {i.name: (dtype_of(i.dtype), i.shape, _fixed(i)) for i in plain}
        self._agree = list(_agreements(inputs))
        defaults = {name: self._default(name, value) for name, value in program.defaults.items()}
        self._defaults = {name: array for name, array in defaults.items() if not self._symbols(name)}
        self._unfed = {name: array for name, array in defaults.items() if self._symbols(name)}
        self._ranges = [(name, *self._range(name, bounds)) for name, bounds in program.ranges.items()]
        self._limits = [(name, self._limit(name, limit)) for name, limit in program.limits.items()]
        self._gears = [{name: shape for name, shape in gear.items() if name in self._specs} for gear in program.gears]

    def checked(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Any], Callable[[Any], Any] | None]:
        """Feeds with defaults, and the function that turns outputs into the caller's kind of array (None for numpy).

        raises: InputError
        """
        foreign = None
        arrays: dict[str, Any] = self._defaults.copy()
        specs = self._specs
        for name, value in feeds.items():
            wanted = specs.get(name)
            if wanted is None:
                arrays[name], back = self._special(name, value)
                foreign = foreign or back
                continue
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
        if len(arrays) != len(self._inputs):
            self._fill(arrays)
        if len(arrays) != len(self._inputs):
            missing = [str(spec) for name, spec in self._inputs.items() if name not in arrays]
            raise InputError(f"inputs not fed: {'; '.join(missing)}", where=WHERE)
        for symbol, name, axis, other, other_axis in self._agree:
            if arrays[name].shape[axis] != arrays[other].shape[other_axis]:
                raise _disagreement(symbol, name, arrays[name], other, arrays[other])
        if self._gears:
            gear_of(self._gears, {name: arrays[name].shape for name in self._gears[0]})
        for name, limit in self._limits:
            if arrays[name].shape[limit.axis] > limit.most:
                _require_length(name, arrays[name], limit)
        for name, low, high in self._ranges:
            value = arrays[name]
            if value.size == 1:  # a decode step: no reduction
                if not low <= value.item() < high:
                    raise _out_of_range(name, value, low, high)
            elif value.size and (np.minimum.reduce(value, axis=None) < low or np.maximum.reduce(value, axis=None) >= high):
                raise _out_of_range(name, value, low, high)
        return arrays, foreign

    # --- what is off the hot path -------------------------------------------------------------------------------------

    def _special(self, name: str, value: Any) -> tuple[Any, Callable[[Any], Any] | None]:
        """A string, a sequence, or an array of unknown rank, checked."""
        spec = self._inputs.get(name)
        if spec is None:
            raise self._unknown_input(name)
        element = sequence_element(spec.dtype)
        if element is None:
            return _element(spec, name, value)
        if not isinstance(value, (list, tuple)):
            raise InputError(
                f"input {name!r} is a {type(value).__name__}: expected {spec}", where=WHERE, next="feed a list of arrays"
            )
        inner = TensorSpec(name, element, spec.shape or ANY_SHAPE)
        pairs = [_element(inner, f"{name}[{i}]", part) for i, part in enumerate(value)]
        return [array for array, _ in pairs], next((back for _, back in pairs if back), None)

    def _default(self, name: str, value: int | float) -> np.ndarray:
        if name not in self._inputs:
            raise InputError(f"a default is given for {name!r}, which is no input", next=nearest(name, list(self._inputs)))
        if name not in self._specs:
            raise InputError(f"a default is given for {self._inputs[name]}, which is no array of numbers", where="program")
        dtype, shape, _ = self._specs[name]
        given = [spec for other, spec in self._inputs.items() if other not in self._program.defaults and other in self._specs]
        elsewhere = {d for spec in given for d in spec.shape if isinstance(d, str)}
        if any(not isinstance(dim, int) and dim not in elsewhere for dim in shape):
            raise InputError(
                f"input {name!r} has a default and a shape that is not fixed by other inputs: {list(shape)}", where="program"
            )
        return np.full([dim if isinstance(dim, int) else 1 for dim in shape], value, dtype)

    def _symbols(self, name: str) -> set[str]:
        return {dim for dim in self._specs[name][1] if isinstance(dim, str)}

    def _fill(self, arrays: dict[str, Any]) -> None:
        """Add the defaults whose shape follows from what was fed: a mask of as many ones as there are tokens."""
        fed = [(dims, arrays[name].shape) for name, (_, dims, _) in self._specs.items() if name in arrays]
        sizes: dict[Any, int] = {dim: size for dims, shape in fed for dim, size in zip(dims, shape, strict=True)}
        for name, value in self._unfed.items():
            if name not in arrays and self._symbols(name) <= sizes.keys():
                shape = [dim if isinstance(dim, int) else sizes[dim] for dim in self._specs[name][1]]
                arrays[name] = np.ascontiguousarray(np.broadcast_to(value, shape))

    def _range(self, name: str, bounds: tuple[int, int]) -> tuple[int, int]:
        if name not in self._inputs:
            raise InputError(f"a range is given for {name!r}, which is no input", next=nearest(name, list(self._inputs)))
        dtype = self._inputs[name].dtype
        if name not in self._specs or self._specs[name][0].kind not in "iu":
            raise InputError(f"input {name!r} has a range and no integers: {dtype}", where="program")
        return bounds

    def _limit(self, name: str, limit: Limit) -> Limit:
        if name not in self._specs or not 0 <= limit.axis < len(self._specs[name][1]):
            raise InputError(
                f"a limit is given for axis {limit.axis} of {name!r}, which is no input with that axis", where="program"
            )
        return limit

    def _unknown_input(self, name: str) -> InputError:
        hidden = [p.input for p in self._program.state.pairs] + [self._program.state.length]
        if name in hidden:
            return InputError(
                f"{name!r} is state, which the session feeds itself",
                where=WHERE,
                next="pass a state from new_state(); new_state(initial={...}) starts it from arrays",
            )
        return InputError(f"unknown input {name!r}", where=WHERE, next=nearest(str(name), list(self._inputs)))

    def _misfit(self, name: str, value: np.ndarray) -> InputError:
        return _misfit(self._inputs[name], name, value)


def _element(spec: TensorSpec, label: str, value: Any) -> tuple[np.ndarray, Callable[[Any], Any] | None]:
    """One array for `spec`: numbers of any rank that fits, or strings as an object array. label: what messages call it"""
    if type(value) is np.ndarray:
        array, back = value, None
    else:
        array, back = _to_numpy(label, value)
    if spec.dtype == STRING:
        array = _strings(spec, label, array)
    elif array.dtype != dtype_of(spec.dtype):
        raise _misfit(spec, label, array)
    known = spec.shape != ANY_SHAPE
    if known and (array.ndim != len(spec.shape) or any(array.shape[axis] != size for axis, size in _fixed(spec))):
        raise _misfit(spec, label, array)
    return np.asarray(array, order="C"), back


def _strings(spec: TensorSpec, label: str, array: np.ndarray) -> np.ndarray:
    """An array of text as an array of str objects. Bytes and numbers are refused: a runtime would write them out its own way."""
    if array.dtype.kind not in "UOT":
        raise _misfit(spec, label, array)
    array = array.astype(object, copy=False)
    for place, text in enumerate(array.flat):
        at = f"{label}{[int(n) for n in np.unravel_index(place, array.shape)]}" if array.ndim else label
        if not isinstance(text, str):
            raise InputError(f"{at} is a {type(text).__name__}, expected str", where=WHERE, next="feed an array of str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{at} is no text: {error}", where=WHERE, next="feed strings that UTF-8 can hold") from error
    return array


def _misfit(wanted: TensorSpec, label: str, value: np.ndarray) -> InputError:
    got = f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    named = str(wanted) if label == wanted.name else f"{label} of {wanted}"
    if wanted.dtype == STRING:
        how = "feed an array of str" if value.dtype.kind not in "UOT" else "reshape it"
    elif value.dtype != dtype_of(wanted.dtype):
        scalar = dtype_of(wanted.dtype).type  # numpy.float32, ml_dtypes.bfloat16
        how = f"cast it with .astype({scalar.__module__}.{scalar.__name__}) if that is what you mean"
    else:
        how = "reshape it"
    return InputError(
        f"input does not fit: expected {named}, got {got}", where=WHERE, next=f"{how}; nothing is converted silently"
    )


def _agreements(inputs: tuple[TensorSpec, ...]) -> list[tuple[str, str, int, str, int]]:
    """(symbol, input, axis, other input, axis) for every place after the first where a named dimension occurs."""
    first: dict[str, tuple[str, int]] = {}
    found = []
    for spec in inputs:
        if sequence_element(spec.dtype) is None and spec.shape != ANY_SHAPE:
            for axis, dim in enumerate(spec.shape):
                if isinstance(dim, str) and is_name(dim):
                    name, place = first.setdefault(dim, (spec.name, axis))
                    if (name, place) != (spec.name, axis):
                        found.append((dim, name, place, spec.name, axis))
    return found


def _disagreement(symbol: str, name: str, value: np.ndarray, other: str, value_of_other: np.ndarray) -> InputError:
    if name == other:
        shown = f"the axes of {name} {list(value.shape)} that are {symbol} differ"
    else:
        shown = f"{name} {list(value.shape)} and {other} {list(value_of_other.shape)} disagree about {symbol}"
    return InputError(shown, where=WHERE, next=f"feed arrays of one size there; {LYING.format(symbol=printable(symbol))}")


def _require_length(name: str, value: np.ndarray, limit: Limit) -> None:
    """raises: InputError"""
    counted = np.ones_like(value, bool) if limit.ignored is None else value != limit.ignored
    length = int(counted.sum(limit.axis).max(initial=0))
    if length > limit.most:
        but = "" if limit.ignored is None else f" that are not {limit.ignored}"
        raise InputError(
            f"input {name!r} is too long: {length} along axis {limit.axis}{but}, at most {limit.most} ({printable(limit.reason)})",
            where=WHERE,
            next=f"cut it to {limit.most}, or run it in pieces; nothing is cut silently",
        )


def _out_of_range(name: str, value: np.ndarray, low: int, high: int) -> InputError:
    place = tuple(np.argwhere((value < low) | (value >= high))[0].tolist())
    at = f" at [{', '.join(map(str, place))}]" if place else ""
    return InputError(
        f"input {name!r} is out of range: expected {low} to {high - 1}, got {value[place]}{at}",
        where=WHERE,
        next=f"feed {name!r} numbers from {low} to {high - 1}; nothing is clipped or wrapped around",
    )


def _fixed(spec: TensorSpec) -> tuple[tuple[int, int], ...]:
    """(axis, size) of the dimensions that cannot vary."""
    return tuple((axis, dim) for axis, dim in enumerate(spec.shape) if isinstance(dim, int))


def _to_numpy(name: str, value: Any) -> tuple[np.ndarray, Any]:
    """A DLPack array as numpy, and the function that turns numpy back into its kind (None for numpy's own).

    raises: InputError for what is no array: numbers and lists have no dtype of their own
    """
    if isinstance(value, (np.ndarray, np.generic)):
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
