"""ArgMax(x, select_last_index=1) -> (n - 1) - ArgMax(x backwards), n the fixed size of the axis. ArgMin the same.

Why: CANN's parser refuses select_last_index=1.

Left alone: an axis that is not fixed.
Bound: none needed, the bits are the same, but among NaN: which place a runtime gives for them depends on the order in which it looks, ONNX says
nothing of it, and the order is turned round here. The port tells it, see NOTE.
"""

from __future__ import annotations

import onnx_ir as ir

from .making import Maker, fixed, node_pass

NOTE = "ArgMax and ArgMin with select_last_index look from the other end: where an axis holds NaN, they may give another place than before"


def _last(make: Maker) -> ir.Value | None:
    if not make.int("select_last_index", 0):
        return None
    x, axis = make.input(0), make.int("axis", 0)
    size = fixed(x, axis)
    backwards = make("Gather", x, make.ints(*reversed(range(size))), axis=axis)
    first = make(make.node.op_type, backwards, axis=axis, keepdims=make.int("keepdims", 1))
    return make("Sub", make.number(size - 1), first)


arg_max_last = node_pass(
    {("", "ArgMax"): _last, ("", "ArgMin"): _last}, "Rewrite those. Count: nodes rewritten. Source: ONNX ArgMax-13."
)
