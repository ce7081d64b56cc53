"""Conv -> Conv with kernel_shape written, and pads in the place of auto_pad.

Why: CANN's parser refuses a Conv that has none of kernel_shape, pads, strides and dilations, and one in 3-D with auto_pad=SAME_*.

Left alone: weights whose shape is not known; auto_pad=SAME_* with strides over an axis that is not fixed.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from ..rewriting import Names
from .explicit_pads import auto_pad_of, explicit_pads, kernel_of
from .in_place import drop, in_place, write, write_absent


def _write_out(node: ir.Node, _names: Names, _opset: int) -> bool:
    kernel = kernel_of(node)
    if kernel is None:
        return False
    changed = write_absent(node, kernel_shape=kernel)
    pads = explicit_pads(node) if auto_pad_of(node) != "NOTSET" else None
    if pads is not None:
        write(node, pads=pads)
        changed = drop(node, "auto_pad")
    return changed


conv_kernel_shape = in_place({"Conv": _write_out}, "Write them. Count: nodes. Source: ONNX Conv-11.")
