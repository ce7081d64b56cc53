"""Swish -> Mul(x, Sigmoid(alpha * x)).

Why: an operator of opset 24; CANN's parser has nothing of the standard above 18.

Refuses (leaves the node) when the type of its input is not known.
Bound: the operator's definition; a runtime's own kernel may round in other places, by a few units in the last place.
"""

from __future__ import annotations

import onnx_ir as ir

from .making import Maker, float_type, node_pass


def swish_of(make: Maker, x: ir.Value, alpha: float) -> ir.Value:
    """x * sigmoid(alpha * x)."""
    kind = float_type(x)
    return make("Mul", x, make("Sigmoid", x if alpha == 1 else make("Mul", x, make.scalar(alpha, kind))))


def _swish(make: Maker) -> ir.Value:
    return swish_of(make, make.input(0), make.float("alpha", 1.0))


swish = node_pass({("", "Swish"): _swish}, "Rewrite every one. Count: nodes rewritten. Source: ONNX Swish-24.")
