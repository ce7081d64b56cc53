"""RMSNormalization -> Mul, ReduceMean, Add, Sqrt, Div, Mul.

    x / Sqrt(ReduceMean(x * x) + epsilon) * scale        between casts to float32 where x is of another type (stash_type)

Why: an operator of opset 23; CANN's parser has nothing of the standard above 18, and its NPURmsNorm is of another domain.

Refuses (leaves the node) when types are not known, or the axis counts from the front and the rank is not known.
Bound: the operator's definition; a runtime's own kernel sums in another order.
"""

from __future__ import annotations

import onnx_ir as ir

from .making import Maker, Refused, float_type, node_pass, rank_of


def normalised(make: Maker, x: ir.Value, kind: ir.DataType, axes: list[int], epsilon: float) -> ir.Value:
    """x divided by the root of its mean square over the last axes, in float32 and brought back. kind: the type of x"""
    wide = make.cast(x, ir.DataType.FLOAT, kind)
    square = make.reduce("ReduceMean", make("Mul", wide, wide), axes)
    root = make("Sqrt", make("Add", square, make.scalar(epsilon, ir.DataType.FLOAT)))
    return make.cast(make("Div", wide, root), kind, ir.DataType.FLOAT)


def last_axes(axis: int, value: ir.Value) -> list[int]:
    """The axes from `axis` to the last, counted from the end. raises: Refused"""
    return list(range(axis if axis < 0 else axis - rank_of(value), 0))


def rms_normalization_of(make: Maker) -> ir.Value:
    """What RMSNormalization and SimplifiedLayerNormalization compute, which are written alike."""
    x, scale = make.input(0), make.input(1)
    kind = float_type(x)
    if float_type(scale) != kind or make.int("stash_type", 1) != ir.DataType.FLOAT or make.used(1):
        raise Refused("computed in another type than float32")
    axes = last_axes(make.int("axis", -1), x)
    return make("Mul", normalised(make, x, kind, axes, make.float("epsilon", 1e-5)), scale)


rms_normalization = node_pass(
    {("", "RMSNormalization"): rms_normalization_of},
    "Rewrite every one. Count: nodes rewritten. Source: ONNX RMSNormalization-23.",
)
