"""AveragePool and MaxPool with what the parser does not read written out.

    auto_pad=SAME_LOWER                    ->   pads
    AveragePool, count_include_pad, pads   ->   AveragePool(Pad(x, pads)) without pads
    count_include_pad without pads         ->   taken off: there is nothing to count
    dilations of 1                         ->   taken off

Why: SAME_LOWER only draws a warning from CANN's plugin, dilations have no handling, and a document calls count_include_pad unsupported.

Left alone: SAME_LOWER with strides over an axis that is not fixed, count_include_pad with ceil_mode, whose last windows reach behind the padding,
and dilations over 1.
Bound: none needed, the bits are the same: zeros are added to sums.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..rewriting import ModelPass, Names, ints_of
from .explicit_pads import auto_pad_of, explicit_pads
from .in_place import drop, in_place, write
from .making import Maker, rank_of, rewriting

ALL_MODES = 11  # Pad takes its numbers as an input from it on


def _padding_apart(make: Maker) -> ir.Value | None:
    node = make.node
    if not make.int("count_include_pad", 0) or make.int("ceil_mode", 0):
        return None
    pads = explicit_pads(node)
    if pads is None or not any(pads):
        return None
    x, half = make.input(0), len(pads) // 2
    rank_of(x)
    padded = make("Pad", x, make.constant(np.asarray([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)), mode="constant")
    strides = ints_of(node, "strides") or [1] * half
    return make("AveragePool", padded, kernel_shape=ints_of(node, "kernel_shape"), strides=strides)


def _write_out(node: ir.Node, _names: Names, _opset: int) -> bool:
    changed = False
    if auto_pad_of(node) == "SAME_LOWER":
        pads = explicit_pads(node)
        if pads is not None:
            drop(node, "ceil_mode", "auto_pad")  # SAME has its own count of windows
            changed = write(node, pads=pads)
    if set(ints_of(node, "dilations")) == {1} and node.op_type == "AveragePool":
        changed = drop(node, "dilations") or changed
    ceil = "ceil_mode" in node.attributes and node.attributes["ceil_mode"].as_int()
    if "count_include_pad" in node.attributes and not ceil:
        counted, pads = node.attributes["count_include_pad"].as_int(), explicit_pads(node)
        if not counted or (pads is not None and not any(pads)):
            changed = drop(node, "count_include_pad") or changed
    return changed


_WRITE = in_place({"AveragePool": _write_out, "MaxPool": _write_out}, "")


@ModelPass
def avg_pool(model: ir.Model) -> int:
    """Count: nodes rewritten or written out. Source: ONNX AveragePool-11, MaxPool-12."""
    return rewriting({("", "AveragePool"): _padding_apart}, ALL_MODES)(model) + _WRITE.change(model)
