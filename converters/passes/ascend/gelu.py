"""Gelu -> Mul, Erf (or Tanh), Add.

    Gelu(x)                   ->   (0.5 * x) * (1 + Erf(x * sqrt(1/2)))
    Gelu(x, approximate=tanh) ->   (0.5 * x) * (1 + Tanh(x * (a + b * x * x)))      a = sqrt(2/pi), b = 0.044715 * a

Why: an operator of opset 20; CANN's parser has nothing of the standard above 18, and its GELU (NPUGeluV2) is another's domain.

x * x stands where the standard has x^3: the cube leaves fp16 at 41, the square at 256, and both give tanh its limits from there on.

Refuses (leaves the node) when the type of its input is not known or another approximation is asked for.
Bound: the operator's definition; a runtime's own kernel rounds in other places, by a few units in the last place of 1 + erf times x.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from .making import Maker, Refused, float_type, node_pass

A = math.sqrt(2 / math.pi)
B = 0.044715 * A


def gelu_of(make: Maker, x: ir.Value, kind: ir.DataType) -> ir.Value:
    """The exact form. kind: the type of x, which may be a value made just now"""
    half = make("Mul", x, make.scalar(0.5, kind))
    error = make("Erf", make("Mul", x, make.scalar(math.sqrt(0.5), kind)))
    return make("Mul", half, make("Add", error, make.scalar(1, kind)))


def tanh_gelu_of(make: Maker, x: ir.Value, kind: ir.DataType) -> ir.Value:
    """The form that tanh approximates."""
    half = make("Mul", x, make.scalar(0.5, kind))
    slope = make("Add", make("Mul", make("Mul", x, x), make.scalar(B, kind)), make.scalar(A, kind))
    return make("Mul", half, make("Add", make("Tanh", make("Mul", x, slope)), make.scalar(1, kind)))


def _gelu(make: Maker) -> ir.Value:
    x, how = make.input(0), make.text("approximate", "none")
    kind = float_type(x)
    if how not in ("none", "tanh"):
        raise Refused(f"approximate={how}")
    return (gelu_of if how == "none" else tanh_gelu_of)(make, x, kind)


gelu = node_pass({("", "Gelu"): _gelu}, "Rewrite every one. Count: nodes rewritten. Source: ONNX Gelu-20.")
