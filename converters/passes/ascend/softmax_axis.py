"""Softmax, LogSoftmax and Hardmax mean what their parser makes of them: over one axis, which is written.

    below opset 13: Softmax(x, axis=k), over all axes from k on  ->   Reshape(Softmax(Flatten(x, k), axis=1), Shape(x))
    from 13 on:     Softmax(x)                                   ->   Softmax(x, axis=-1)

Why: CANN's parser makes a softmax over the single axis of every one, and its documents say that the axis is -1 where it is left out.

Left alone: nothing. Below 13 the last axis alone needs nothing but to be written.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from ..rewriting import ModelPass
from .in_place import standard_nodes, write_absent
from .making import Maker, rewriting

OPERATORS = ("Softmax", "LogSoftmax", "Hardmax")
ONE_AXIS = 13  # the opset from which on it is over one axis


def _over_the_rest(make: Maker) -> ir.Value | None:
    x, axis = make.input(0), make.int("axis", 1)
    rank = len(x.shape) if x.shape is not None else None
    if rank is not None and axis in (rank - 1, -1):
        return None
    flat = make("Flatten", x, axis=axis)
    flat.shape = ir.Shape([None, None])
    result = make(make.node.op_type, flat, axis=1)
    return make("Reshape", result, make("Shape", x))


@ModelPass
def softmax_axis(model: ir.Model) -> int:
    """Count: nodes rewritten or written out. Source: ONNX Softmax-1, -11, -13, and those of the other two."""
    opset = model.graph.opset_imports.get("", 0)
    changes = 0
    if opset < ONE_AXIS:
        changes += rewriting({("", op_type): _over_the_rest for op_type in OPERATORS}, lowest_opset=9)(model)
    for node in standard_nodes(model, *OPERATORS):
        changes += write_absent(node, axis=1 if opset < ONE_AXIS else -1)
    return changes
