"""LayerNormalization below opset 17 -> ReduceMean, Sub, Mul, ReduceMean, Add, Sqrt, Div, Mul, Add.

Why: CANN's parser has it at 17 and 18. Below it is no operator of ONNX's, but onnxruntime's optimiser writes it into files of any opset, and
such a file cannot be raised.

Refuses (leaves the node) at opset 17 and above, when types are not known, or the mean or the deviation is read too.
Bound: the operator's definition; a runtime's own kernel sums in another order.
"""

from __future__ import annotations

import onnx_ir as ir

from .making import Maker, Refused, float_type, node_pass
from .rms_normalization import last_axes, normalised

STANDARD = 17  # the opset that has it


def layer_normalization_of(
    make: Maker, x: ir.Value, kind: ir.DataType, axes: list[int], epsilon: float, scale: ir.Value, bias: ir.Value | None
) -> ir.Value:
    """The primitives. kind: the type of x, which may be a value made just now"""
    wide = make.cast(x, ir.DataType.FLOAT, kind)
    centred = make("Sub", wide, make.reduce("ReduceMean", wide, axes))
    normal = make.cast(normalised(make, centred, ir.DataType.FLOAT, axes, epsilon), kind, ir.DataType.FLOAT)
    scaled = make("Mul", normal, scale)
    return scaled if bias is None else make("Add", scaled, bias)


def _layer_normalization(make: Maker) -> ir.Value:
    x, scale = make.input(0), make.input(1)
    kind = float_type(x)
    if make.opset >= STANDARD or kind == ir.DataType.DOUBLE or make.used(1) or make.used(2) or float_type(scale) != kind:
        raise Refused("is standard, or not of float32")
    axes = last_axes(make.int("axis", -1), x)
    return layer_normalization_of(make, x, kind, axes, make.float("epsilon", 1e-5), scale, make.optional(2))


layer_normalization = node_pass(
    {("", "LayerNormalization"): _layer_normalization},
    "Rewrite every one. Count: nodes rewritten. Source: ONNX LayerNormalization-17.",
)
