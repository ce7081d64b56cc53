"""Expand(x, computed shape) whose result has a fixed shape -> Expand(x, that shape).

Why: documents of CANN want a constant shape.

Left alone: a result with a dimension that is not fixed, or that is declared as an output's and hangs on numbers that are fed.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..rewriting import Names, frozen
from .in_place import constant_for, dimensions, in_place, numbers, set_input


def _write_shape(node: ir.Node, names: Names, _opset: int) -> bool:
    sizes = dimensions(node.outputs[0])
    if numbers(node.inputs[1]) is not None or sizes is None:
        return False
    if node.outputs[0].is_graph_output() and not _follows_from_shapes(node.inputs[1]):
        return False
    set_input(node, 1, constant_for(node, names, "shape", np.asarray(sizes, np.int64)))
    return True


def _follows_from_shapes(value: ir.Value | None) -> bool:
    """Whether constants and the shapes of values alone say its numbers."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if value is None or value in seen or frozen(value) is not None:
            continue
        seen.add(value)
        node = value.producer()
        if node is None or not node.inputs or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
            return False
        if node.op_type not in ("Shape", "Size"):
            waiting += node.inputs
    return True


expand_constant = in_place({"Expand": _write_shape}, "Write fixed shapes. Count: nodes. Source: ONNX Expand-13.")
