"""Indices that count from the end -> indices that count from the front.

    constant   ->   the same with n added to those below 0, n the size of the axis
    computed   ->   Where(i < 0, i + n, i), in int32, which the documents of Where name; cast back for GatherND and ScatterND

Of Gather, GatherElements, ScatterElements, GatherND and ScatterND.

Why: documents of CANN say that negative indices are not supported, and nothing checks them.

Left alone: indices that are known not to be negative; a GatherND or ScatterND whose number of indexed axes is not known, a Gather whose axis
counts from the end of an unknown rank.
Bound: none needed, the bits are the same. An index that is out of range, which is an error in ONNX, stays one that no axis has, but for 64-bit
numbers that int32 does not hold.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .in_place import numbers
from .magnitudes import UNSIGNED
from .making import Maker, Refused, dimension, fixed, node_pass, rank_of
from .nonnegative import is_nonnegative

MANY = ("GatherND", "ScatterND")  # a row of indices names several axes


def _indexed(make: Maker) -> ir.Value | None:
    data, indices = make.input(0), make.input(1)
    kind = indices.dtype
    if kind in UNSIGNED:
        return None
    axes = _axes(make, data, indices)
    if is_nonnegative(indices, index=[dimension(data, axis) for axis in axes]):
        return None
    if kind not in (ir.DataType.INT32, ir.DataType.INT64):
        raise Refused(f"indices of {kind}")
    known = numbers(indices)
    if known is not None and all(dimension(data, axis) is not None for axis in axes):
        counts = [fixed(data, axis) for axis in axes]
        sizes = np.asarray(counts if make.node.op_type in MANY else counts[0], known.dtype)
        wrapped = make.constant(np.where(known < 0, known + sizes, known).astype(known.dtype))
    else:
        small = make.cast(indices, ir.DataType.INT32, kind)
        size = _sizes(make, data, axes)
        zero = make.constant(np.asarray(0, np.int32))
        wrapped = make("Where", make("Less", small, zero), make("Add", small, size), small)
        if make.node.op_type in MANY:
            wrapped = make("Cast", wrapped, to=int(ir.DataType.INT64))
    return make(make.node.op_type, data, wrapped, *list(make.node.inputs)[2:], **_attributes(make))


def _axes(make: Maker, data: ir.Value, indices: ir.Value) -> list[int]:
    """Axes of data that the last axis of indices names, or the only one."""
    if make.node.op_type in MANY:
        first = make.int("batch_dims", 0)
        return list(range(first, first + fixed(indices, rank_of(indices) - 1)))
    axis = make.int("axis", 0)
    return [axis if axis >= 0 else axis + rank_of(data)]


def _sizes(make: Maker, data: ir.Value, axes: list[int]) -> ir.Value:
    """int32: how long the axes are; () for one that is indexed alone, so that it fits indices of any rank."""
    known = [dimension(data, axis) for axis in axes]
    alone = make.node.op_type not in MANY
    if None not in known:
        return make.constant(np.asarray(known[0] if alone else known, np.int32))
    wanted = make.number(axes[0]) if alone else make.ints(*axes)
    return make("Cast", make("Gather", make("Shape", data), wanted, axis=0), to=int(ir.DataType.INT32))


def _attributes(make: Maker) -> dict[str, int | str]:
    written: dict[str, int | str] = {}
    for name in make.node.attributes:
        written[name] = make.text(name, "") if name == "reduction" else make.int(name, 0)
    return written


negative_indices = node_pass(
    {("", op): _indexed for op in ("Gather", "GatherElements", "ScatterElements", *MANY)},
    "Rewrite what may count from the end. Count: nodes rewritten. Source: ONNX Gather-13, ScatterND-18.",
)
