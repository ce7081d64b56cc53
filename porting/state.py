"""The shapes of the buffers that a session keeps between runs; every backend allocates them in its own way."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from porting.dtypes import dtype_of
from porting.errors import InputError
from porting.types import Program, State


class Buffer(NamedTuple):
    """One piece of state: its dtype, its shape, and the axis that grows (None when none does)."""

    dtype: np.dtype
    shape: tuple[int, ...]
    axis: int | None


def state_buffers(program: Program, capacity: int, batch: int) -> dict[str, Buffer]:
    """Dtype and shape of every buffer, by input name of its pair.

    capacity: positions along the growing axis of each pair that has one
    batch:    size of the dimension that is named "batch", else of dimension 0 where that is not fixed
    raises:   InputError for a dimension that neither of them settles
    """
    specs = {spec.name: spec for spec in program.inputs}
    buffers = {}
    for pair in program.state.pairs:
        spec = specs[pair.input]
        named = "batch" in spec.shape
        sizes: list[int] = []
        for axis, dim in enumerate(spec.shape):
            if axis == pair.axis:
                sizes.append(capacity)
            elif dim == "batch" or (axis == 0 and not named and not isinstance(dim, int)):
                sizes.append(batch)
            elif isinstance(dim, int):
                sizes.append(dim)
            else:
                raise InputError(
                    f"state {spec} has no known size in dimension {axis}",
                    where="new_state",
                    next='fix the dimension in the graph, or call it "batch"',
                )
        buffers[pair.input] = Buffer(dtype_of(spec.dtype), tuple(sizes), pair.axis)
    return buffers


def filled(state: State, buffer: Buffer) -> tuple[slice, ...]:
    """The part of a buffer that `state` has filled: rows differ in length, so the longest decides."""
    stop = int(state.length.max(initial=0))
    return tuple(slice(0, stop) if axis == buffer.axis else slice(None) for axis in range(len(buffer.shape)))
