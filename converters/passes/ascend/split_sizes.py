"""Split(num_outputs) or without sizes -> Split with sizes, where the axis has a fixed size.

Why: CANN's parser takes num_outputs only where it equals the number of outputs and divides the axis, and has to know the axis.

Left alone: an axis that is not fixed, or too short for a last part.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..rewriting import Names
from .in_place import constant_for, drop, in_place, set_input, write
from .making import dimension

SIZES_AS_INPUT = 13


def _write_sizes(node: ir.Node, names: Names, opset: int) -> bool:
    x = node.inputs[0]
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    size = dimension(x, axis) if x is not None else None
    given = "split" in node.attributes or (len(node.inputs) > 1 and node.inputs[1] is not None)
    if given or size is None:
        return False
    parts = len(node.outputs)
    most = -(-size // parts)
    sizes = [most] * (parts - 1) + [size - most * (parts - 1)]
    if sizes[-1] <= 0:
        return False
    if opset >= SIZES_AS_INPUT:
        set_input(node, 1, constant_for(node, names, "sizes", np.asarray(sizes, np.int64)))
    else:
        write(node, split=sizes)
    drop(node, "num_outputs")
    return True


split_sizes = in_place({"Split": _write_sizes}, "Write the sizes. Count: nodes. Source: ONNX Split-18.")
