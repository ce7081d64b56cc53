"""The buffers that a session keeps between runs: their shapes, and what a state is made from. Every backend allocates them in its own way.

Which size of a state is "the batch" (`new_state(batch=...)`, or read off the feeds):
1. the dimension called "batch"; else the one name that the state shares with the inputs that are fed, whatever it is ("N", "batch_size");
2. where a buffer has no such dimension, its one dimension that is not fixed: unnamed, or named like nothing that is fed ("unk__12").
3. The dimension along which runs append (StatePair.appended) is not asked for: it starts empty.
A state with further free dimensions is started from arrays: `new_state(initial={...})`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from porting.dtypes import STRING, dtype_of, sequence_element
from porting.errors import InputError, nearest
from porting.types import ANY_SHAPE, Program, State, TensorSpec

# what exporters write where they mean "unknown": it says nothing about sizes being equal
_NO_NAME = re.compile(r"[\W\d_]*|none|unk|unknown|undefined|dyn|dynamic|any|var|variable", re.IGNORECASE)


class Buffer(NamedTuple):
    """One piece of state: its dtype, its shape, and the axis that grows (None when none does)."""

    dtype: np.dtype
    shape: tuple[int, ...]
    axis: int | None


def is_name(dim: object) -> bool:
    """Whether a dimension has a name that means the same size wherever it occurs: "batch", not "?", "-1" or "unknown"."""
    return isinstance(dim, str) and _NO_NAME.fullmatch(dim) is None


def state_buffers(program: Program, capacity: int, batch: int, like: State | None = None) -> dict[str, Buffer]:
    """Dtype and shape of every buffer, by input name of its pair.

    capacity: positions along the growing axis of each pair that has one
    batch:    rows, see the top of this file
    like:     a state whose numpy arrays settle sizes: `grown_from` of the contract
    raises:   InputError for a dimension that nothing settles, and for state that is no array of numbers
    """
    specs = {spec.name: spec for spec in program.inputs}
    symbol = batch_symbol(program)
    buffers = {}
    for pair in program.state.pairs:
        spec = specs[pair.input]
        if spec.dtype == STRING or sequence_element(spec.dtype) is not None or spec.shape == ANY_SHAPE:
            raise InputError(f"state {spec} is no array of numbers with a known rank", where="new_state")
        given = like.buffers.get(pair.input) if like else None
        if isinstance(given, np.ndarray):
            shape = tuple(capacity if axis == pair.axis else size for axis, size in enumerate(given.shape))
        else:
            grown = capacity if pair.axis is not None else 0
            shape = tuple(_size(spec, pair.positions, axis, symbol, grown, batch) for axis in range(len(spec.shape)))
        buffers[pair.input] = Buffer(dtype_of(spec.dtype), shape, pair.axis)
    return buffers


def _size(spec: TensorSpec, growing: int | None, axis: int, symbol: str | None, capacity: int, batch: int) -> int:
    dim = spec.shape[axis]
    if isinstance(dim, int):
        return dim
    if axis == growing:
        return capacity
    if axis == _batch_axis(spec, growing, symbol):
        return batch
    raise InputError(
        f"state {spec} has no known size in dimension {axis}",
        where="new_state",
        next=f'start it from an array: new_state(initial={{{spec.name!r}: ...}}); or name the batch dimension "batch" in the graph',
    )


def _batch_axis(spec: TensorSpec, growing: int | None, symbol: str | None) -> int | None:
    """The axis of a piece of state that counts rows; None when every size is fixed, or several could be it."""
    if symbol is not None and symbol in spec.shape:
        return spec.shape.index(symbol)
    free = [axis for axis, dim in enumerate(spec.shape) if axis != growing and not isinstance(dim, int)]
    return free[0] if len(free) == 1 else None


def batch_symbol(program: Program) -> str | None:
    """The name of the dimension that counts the rows of a state; None when it has no name that a fed input shares."""
    pairs = {pair.input: pair for pair in program.state.pairs}
    hidden = {*pairs, program.state.length}
    fed = {dim for spec in program.inputs if spec.name not in hidden for dim in spec.shape if is_name(dim)}
    shared = dict.fromkeys(
        dim
        for spec in program.inputs
        if spec.name in pairs
        for axis, dim in enumerate(spec.shape)
        if is_name(dim) and axis != pairs[spec.name].positions and (dim in fed or dim == "batch")
    )
    if "batch" in shared:
        return "batch"
    return str(next(iter(shared))) if len(shared) == 1 else None


def batch_place(program: Program, inputs: tuple[TensorSpec, ...]) -> tuple[str, int, bool] | None:
    """(fed input, axis, certain) that says how many rows a run has; None when no feed does.

    Certain where the state shares its name, or where the graph says what the state advances by; otherwise dimension 0 of the first fed
    input where that is not fixed: true of most models, and a caller whose model is another passes a state from new_state(batch=...).
    """
    symbol = batch_symbol(program)
    for spec in inputs:
        if symbol is not None and symbol in spec.shape:
            return spec.name, spec.shape.index(symbol), True
    if program.state.advance:
        return program.state.advance[0], 0, True
    pairs = {pair.input: pair.positions for pair in program.state.pairs}
    if all(_batch_axis(spec, pairs[spec.name], symbol) is None for spec in program.inputs if spec.name in pairs):
        return None
    for spec in inputs:
        if (
            spec.shape
            and spec.shape != ANY_SHAPE
            and sequence_element(spec.dtype) is None
            and not isinstance(spec.shape[0], int)
        ):
            return spec.name, 0, False
    return None


def filled(state: State, buffer: Buffer) -> tuple[slice, ...]:
    """The part of a buffer that `state` has filled: rows differ in length, so the longest decides."""
    stop = int(state.length.max(initial=0))
    return tuple(slice(0, stop) if axis == buffer.axis else slice(None) for axis in range(len(buffer.shape)))


def state_from_arrays(program: Program, initial: Mapping[str, Any], batch: int | None) -> State:
    """A state on no device, whose buffers are the arrays given: what `new_state` copies onto one.

    initial: input name of a pair -> array; along a growing axis the positions that are filled. The length input may be among them,
             else every position counts in every row. What is left out is zeros
    batch:   rows, None when the arrays say it
    raises:  InputError
    """
    spec_of = {spec.name: spec for spec in program.inputs}
    growing = {pair.input: pair.axis for pair in program.state.pairs}
    appended = {pair.input: pair.appended for pair in program.state.pairs if pair.appended is not None}
    length_name, symbol = program.state.length, batch_symbol(program)
    rows: dict[str, int] = {} if batch is None else {"batch=": batch}
    positions: dict[str, int] = {}
    buffers = {}
    for name, array in initial.items():
        if name not in growing and name != length_name:
            known = [*growing, *([length_name] if length_name else [])]
            raise InputError(f"{name!r} is no state", where="new_state", next=nearest(str(name), known))
        spec = spec_of[name]
        _require_fit(spec, growing.get(name), array)
        axis = 0 if name == length_name else _batch_axis(spec, appended.get(name, growing[name]), symbol)
        if axis is not None:
            rows[name] = array.shape[axis]
        if name != length_name:
            buffers[name] = array
            grows = growing[name]
            if grows is not None:
                positions[name] = array.shape[grows]
    for sizes, what in ((rows, "rows"), (positions, "positions")):
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise InputError(f"the arrays disagree about the number of {what}: {shown}", where="new_state")
    count = next(iter(rows.values()), 1)
    filled_to = next(iter(positions.values()), 0)
    given = initial.get(length_name) if length_name else None
    length = np.full(count, filled_to, np.int64) if given is None else np.array(given)
    some_filled = any(buffers[name].shape[axis] for name, axis in appended.items() if name in buffers)
    left_out = some_filled and not appended.keys() <= buffers.keys()
    if left_out or (positions.keys() != {name for name in growing if growing[name] is not None} and filled_to):
        raise InputError("all buffers that grow are needed together, or none", where="new_state")
    if length.min(initial=0) < 0 or length.max(initial=0) > filled_to:
        raise InputError(f"the length {length} is outside the {filled_to} positions given", where="new_state")
    source = State(buffers, length, filled_to)
    for name, buffer in state_buffers(program, filled_to, count, source).items():
        buffers.setdefault(name, np.zeros(buffer.shape, buffer.dtype))
    return source


def _require_fit(spec: TensorSpec, growing: int | None, array: Any) -> None:
    """raises: InputError for what is no array of this dtype, rank and fixed sizes"""
    fits = isinstance(array, np.ndarray) and array.dtype == dtype_of(spec.dtype) and array.ndim == len(spec.shape)
    if not fits or any(isinstance(d, int) and i != growing and array.shape[i] != d for i, d in enumerate(spec.shape)):
        got = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        raise InputError(f"state does not fit: expected {spec}, got {got}", where="new_state", next="cast or reshape it")
