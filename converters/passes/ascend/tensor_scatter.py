"""TensorScatter -> Where over positions when one is written, ScatterND when more are.

    one position       ->   Where(positions == write_index, update, cache)
    several            ->   ScatterND(cache as rows, number of the row of (b, .., write_index + s), update)

Why: an operator of opset 24; CANN's parser has nothing of the standard above 18.

Rows are counted from 0 up and none is written twice, so that a ScatterND without a reduction, with indices that are not negative, does it:
what CANN's published limits ask for.

Refuses (leaves the node) when the rank is not known, an axis between the batch and the positions, or one behind them, is not fixed.
Bound: none needed, numbers are moved.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .making import Maker, Refused, dimension, fixed, node_pass, rank_of

SELECTED = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.INT32)  # CANN's Where


def _tensor_scatter(make: Maker) -> ir.Value:
    """cache (B, .., M, ..), update (B, .., S, ..), write_indices (B,): where each row of the batch begins to write."""
    cache, update, begin = make.input(0), make.input(1), make.optional(2)
    rank, mode = rank_of(cache), make.text("mode", "linear")
    axis = make.int("axis", -2) % rank
    if axis == 0 or mode not in ("linear", "circular"):
        raise Refused(f"axis {axis}, mode {mode}")
    first = make.constant(np.zeros(1, np.int64)) if begin is None else begin
    if dimension(update, axis) == 1 and cache.dtype in SELECTED:
        return _where(make, cache, update, make.unsqueeze(first, *range(1, rank)), axis, mode)
    return _scatter(make, cache, update, first, axis, mode)


def _where(make: Maker, cache: ir.Value, update: ir.Value, begin: ir.Value, axis: int, mode: str) -> ir.Value:
    """begin (B, 1, ..)."""
    count = make.size(cache, axis)
    positions = make.unsqueeze(make.range(count), *range(1, rank_of(cache) - axis))  # (M, 1, ..)
    written = _wrapped(make, begin, count) if mode == "circular" else begin
    return make("Where", make("Equal", positions, written), update, cache)


def _scatter(make: Maker, cache: ir.Value, update: ir.Value, begin: ir.Value, axis: int, mode: str) -> ir.Value:
    rank = rank_of(cache)
    between, width = [fixed(cache, i) for i in range(1, axis)], math.prod(fixed(cache, i) for i in range(axis + 1, rank))
    count = make.size(cache, axis)
    steps = make.range(make.size(update, axis))  # (S,)
    place = make("Add", make.unsqueeze(begin, *range(1, axis + 1)), steps)  # (B, 1, .., S)
    if mode == "circular":
        place = _wrapped(make, place, count)
    blocks = math.prod(between)
    block = np.arange(blocks, dtype=np.int64).reshape(*between, 1)  # (.., 1)
    rows_of_batch = make.size(cache if make.optional(2) is None or dimension(cache, 0) is not None else begin, 0)
    batch = make.unsqueeze(make.range(rows_of_batch), *range(1, axis + 1))  # (B, 1, .., 1)
    above = make("Add", make("Mul", batch, make.number(blocks)), make.constant(block))
    rows = make("Add", make("Mul", above, count), place)  # (B, .., S)
    written = make("ScatterND", make.reshape(cache, -1, width), make.reshape(rows, -1, 1), make.reshape(update, -1, width))
    return make("Reshape", written, _shape(make, cache))


def _shape(make: Maker, cache: ir.Value) -> ir.Value:
    sizes = [dimension(cache, axis) for axis in range(rank_of(cache))]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes) - 1 or 0 in known:
        return make("Shape", cache)
    return make.ints(*(-1 if size is None else size for size in sizes))


def _wrapped(make: Maker, place: ir.Value, count: ir.Value) -> ir.Value:
    """place modulo count. CANN's Mod takes int32, and no int64."""
    narrow = [make("Cast", value, to=int(ir.DataType.INT32)) for value in (place, count)]
    return make("Cast", make("Mod", *narrow), to=int(ir.DataType.INT64))


tensor_scatter = node_pass(
    {("", "TensorScatter"): _tensor_scatter},
    "Rewrite every one. Count: nodes rewritten. Source: ONNX TensorScatter-24.",
)
