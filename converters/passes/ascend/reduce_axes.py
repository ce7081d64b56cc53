"""Reduce*(x) over all axes -> Reduce*(x, axes = [0 .. r-1]); with noop_with_empty_axes -> Identity.

Why: documents of CANN say that nothing is reduced where axes is empty, and an older form of the plugin ignores noop_with_empty_axes.

Left alone: axes that are computed; an input whose rank is not known; with noop_with_empty_axes those that change what they do not reduce
(ReduceL1, ReduceL2, ReduceSumSquare, ReduceLogSum), for which runtimes differ.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from .in_place import integers
from .making import AXES_AS_INPUT, Maker, Refused, node_pass, rank_of

UNCHANGED = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp")
OPERATORS = (*UNCHANGED, "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")
SUM_AXES_AS_INPUT = 13


def _reduce(make: Maker) -> ir.Value | None:
    node, op_type = make.node, make.node.op_type
    as_input = make.opset >= (SUM_AXES_AS_INPUT if op_type == "ReduceSum" else AXES_AS_INPUT)
    given = make.optional(1)
    axes = (
        integers(given) if given is not None else list(node.attributes["axes"].as_ints()) if "axes" in node.attributes else []
    )
    if axes is None:
        raise Refused("the axes are computed")
    if axes:
        return None
    x = make.input(0)
    if make.int("noop_with_empty_axes", 0):
        if op_type not in UNCHANGED:
            raise Refused("runtimes differ in what it means")
        return make("Identity", x)
    rank = rank_of(x)
    if rank == 0:
        if op_type not in UNCHANGED:
            raise Refused("there is no axis")
        return make("Identity", x)
    keep = make.int("keepdims", 1)
    every = list(range(rank))
    return make(op_type, x, make.ints(*every), keepdims=keep) if as_input else make(op_type, x, axes=every, keepdims=keep)


reduce_axes = node_pass(
    {("", op_type): _reduce for op_type in OPERATORS}, "Write all axes. Count: nodes rewritten. Source: ONNX ReduceSum-13.", 9
)
