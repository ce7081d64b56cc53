"""MaxPool and AveragePool with ceil_mode, whose last window lies in the padding alone -> the same without that window.

    pads=[1, 1, 1, 1], ceil_mode=1    ->    pads=[1, 1, 0, 0]

Why: a document says that such a window gives 0, 65504, NaN or Inf; ONNX has no such window.

Left alone: an axis that is not fixed; strides wider than windows beside an axis whose last window reaches behind the padding.
Bound: none needed, the bits are the same: the padding that goes is read by the window alone that was left out.
"""

from __future__ import annotations

import onnx_ir as ir

from ..pool_windows import Axis, axes_of
from ..rewriting import Names
from .in_place import drop, in_place, write
from .making import dimension


def _end_before(node: ir.Node, _names: Names, _opset: int) -> bool:
    written = {a.name: a.value for a in node.attributes.values()}
    axes = axes_of(written)
    sizes = [] if axes is None or node.inputs[0] is None else [dimension(node.inputs[0], i + 2) for i in range(len(axes))]
    known = [(axis, size) for axis, size in zip(axes or (), sizes, strict=True) if size is not None]
    if not known or len(known) != len(sizes) or all(axis.kept(size) == axis.counted(size) for axis, size in known):
        return False
    ends = [axis.end_of_last(n) if axis.kept(n) != axis.counted(n) else axis.end for axis, n in known]
    shorter = [Axis(axis.window, axis.stride, axis.begin, end) for (axis, _), end in zip(known, ends, strict=True)]
    whole = [(n + a.begin + a.end - a.window) // a.stride + 1 for a, (_, n) in zip(shorter, known, strict=True)]
    wanted = [axis.kept(n) for axis, n in known]
    if whole == wanted:
        drop(node, "ceil_mode", "auto_pad")
    elif [a.counted(n) for a, (_, n) in zip(shorter, known, strict=True)] != wanted:
        return False
    return write(node, pads=[*(a.begin for a in shorter), *(a.end for a in shorter)]) or whole == wanted


pool_windows = in_place(
    {"MaxPool": _end_before, "AveragePool": _end_before},
    "Take padding away that only a window reads that there is not. Count: nodes. Source: ONNX MaxPool-22, AveragePool-22.",
)
