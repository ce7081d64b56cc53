"""Cast(saturate) to anything but 8-bit floats -> Cast without it.

Why: the attribute came with opset 19 and means something for 8-bit floats only; CANN's parser does not read it and knows no opset above 18.

Left alone: a Cast to an 8-bit float, which the parser has no type for.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from ..rewriting import Names
from .in_place import drop, in_place

EIGHT_BITS = tuple(int(kind) for kind in ir.DataType if kind.name.startswith("FLOAT8"))


def _drop_saturate(node: ir.Node, _names: Names, _opset: int) -> bool:
    if node.op_type == "Cast":
        eight_bits = node.attributes["to"].as_int() in EIGHT_BITS
    else:
        like = node.inputs[1]
        eight_bits = like is None or like.dtype is None or int(like.dtype) in EIGHT_BITS
    return not eight_bits and drop(node, "saturate")


cast_saturate = in_place(
    {"Cast": _drop_saturate, "CastLike": _drop_saturate}, "Take it off. Count: nodes. Source: ONNX Cast-19, CastLike-19."
)
