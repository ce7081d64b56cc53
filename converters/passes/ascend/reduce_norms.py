"""ReduceL1 -> ReduceSum(Abs(x)), ReduceL2 -> Sqrt(ReduceSum(x * x)).

Why: CANN's parser has both at opsets 8 to 17 only, where the axes are an attribute.

Refuses (leaves the node) below opset 18, when no axes may mean that nothing is reduced, and a ReduceL2 of integers.
Bound: ReduceL1 sums the same numbers; of ReduceL2 a runtime's own kernel may sum in another order.
"""

from __future__ import annotations

import onnx_ir as ir

from .making import AXES_AS_INPUT, Maker, Refused, float_type, node_pass


def _sum(make: Maker, x: ir.Value) -> ir.Value:
    axes = make.optional(1)
    if make.int("noop_with_empty_axes", 0):
        tensor = axes.const_value if axes is not None else None
        if tensor is None or tensor.size == 0:
            raise Refused("may reduce nothing")
    return make("ReduceSum", x, *([] if axes is None else [axes]), keepdims=make.int("keepdims", 1))


def _l1(make: Maker) -> ir.Value:
    return _sum(make, make("Abs", make.input(0)))


def _l2(make: Maker) -> ir.Value:
    x = make.input(0)
    float_type(x)
    return make("Sqrt", _sum(make, make("Mul", x, x)))


reduce_norms = node_pass(
    {("", "ReduceL1"): _l1, ("", "ReduceL2"): _l2},
    "Rewrite every one. Count: nodes rewritten. Source: ONNX ReduceL1-18, ReduceL2-18.",
    AXES_AS_INPUT,
)
