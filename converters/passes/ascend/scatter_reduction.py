"""ScatterND and ScatterElements with a reduction.

    constant indices, none twice   ->   Scatter(data, indices, op(Gather(data, indices), updates)) without a reduction
    ScatterND of a fixed shape     ->   ScatterElements(data as (places, rest), place of each row, updates) with the reduction

op is Add, Mul, Max or Min.

Why: CANN before 2026-08 ignores the reduction of a ScatterND, later ones refuse mul; that of a ScatterElements is passed on.

Left alone: a ScatterElements whose indices are computed or hold one twice; a ScatterND of a shape that is not fixed.
Bound: none needed, the bits are the same: updates are added in the order in which they stand.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .in_place import dimensions, numbers
from .making import Maker, Refused, node_pass

OPERATORS = {"add": "Add", "mul": "Mul", "max": "Max", "min": "Min"}


def _reduction(make: Maker) -> str | None:
    how = make.text("reduction", "none")
    return how if how != "none" else None


def _scatter_nd(make: Maker) -> ir.Value | None:
    how = _reduction(make)
    if how is None:
        return None
    data, indices, updates = make.input(0), make.input(1), make.input(2)
    sizes = dimensions(data)
    if sizes is None:
        raise Refused("the shape of the data is not fixed")
    known = numbers(indices)
    if known is not None and len(_rows(known, sizes)) == math.prod(known.shape[:-1]):
        return make("ScatterND", data, indices, make(OPERATORS[how], make("GatherND", data, indices), updates))
    depth = indices.shape[-1] if indices.shape else None
    if not isinstance(depth, int):
        raise Refused("how many axes the indices name is not known")
    return _as_elements(make, sizes, depth, how)


def _rows(indices: np.ndarray, sizes: list[int]) -> set[tuple[int, ...]]:
    depth = indices.shape[-1]
    return {tuple(int(i) % size for i, size in zip(row, sizes, strict=False)) for row in indices.reshape(-1, depth)}


def _as_elements(make: Maker, sizes: list[int], depth: int, how: str) -> ir.Value:
    """data (d1 .. dr), indices (.., k)  ->  data (d1 * .. * dk, dk+1 * .. * dr)."""
    width, strides = math.prod(sizes[depth:]), [math.prod(sizes[axis + 1 : depth]) for axis in range(depth)]
    rows = make("Reshape", make.input(1), make.ints(-1, depth))
    small = make("Cast", rows, to=int(ir.DataType.INT32))
    zero, counts = make.constant(np.asarray(0, np.int32)), make.constant(np.asarray(sizes[:depth], np.int32))
    ahead = make("Cast", make("Where", make("Less", small, zero), make("Add", small, counts), small), to=int(ir.DataType.INT64))
    places = make("ReduceSum", make("Mul", ahead, make.ints(*strides)), make.ints(1), keepdims=1)  # (N, 1)
    updates = make("Reshape", make.input(2), make.ints(-1, width))
    flat = make("Reshape", make.input(0), make.ints(-1, width))
    spread = make("Add", places, make.constant(np.zeros((1, width), np.int64)))  # (N, rest)
    result = make("ScatterElements", flat, spread, updates, axis=0, reduction=how)
    return make("Reshape", result, make.ints(*sizes))


def _scatter_elements(make: Maker) -> ir.Value | None:
    how = _reduction(make)
    data, indices, updates = make.input(0), make.input(1), make.input(2)
    known, sizes, axis = numbers(indices), dimensions(data), make.int("axis", 0)
    if how is None or known is None or sizes is None:
        return None
    ahead = np.where(known < 0, known + sizes[axis], known)
    if any(len(set(line)) < len(line) for line in np.moveaxis(ahead, axis, -1).reshape(-1, known.shape[axis]).tolist()):
        return None
    changed = make(OPERATORS[how], make("GatherElements", data, indices, axis=axis), updates)
    return make("ScatterElements", data, indices, changed, axis=axis)


scatter_reduction = node_pass(
    {("", "ScatterND"): _scatter_nd, ("", "ScatterElements"): _scatter_elements},
    "Rewrite those. Count: nodes rewritten. Source: ONNX ScatterND-18, ScatterElements-18.",
    16,
)
