"""Expand(x, computed shape) whose result has a fixed shape -> Expand(x, that shape).

Why: documents of CANN want a constant shape.

Left alone: a result with a dimension that is not fixed, or that is declared as an output's and hangs on numbers that are fed.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..infer_shapes import DECLARED
from ..rewriting import Names
from .in_place import constant_for, dimensions, in_place, numbers, set_input


def _write_shape(node: ir.Node, names: Names, _opset: int) -> bool:
    sizes = dimensions(node.outputs[0])
    if numbers(node.inputs[1]) is not None or sizes is None:
        return False
    if node.outputs[0].meta.get(DECLARED):
        return False
    set_input(node, 1, constant_for(node, names, "shape", np.asarray(sizes, np.int64)))
    return True


expand_constant = in_place({"Expand": _write_shape}, "Write fixed shapes. Count: nodes. Source: ONNX Expand-13.")
