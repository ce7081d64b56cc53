"""TopK -> TopK with axis, largest and sorted written, the axis counted from the front.

Why: a document of CANN describes sorted=1 as ascending order, and none says what a node means that leaves an attribute out. Which of
two equal numbers comes first is not documented either, so that indices of ties stay a doubt that no form of the graph takes away.

Left alone: an axis from the end where the rank is not known.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from ..rewriting import Names
from .in_place import in_place, write, write_absent


def _write_attributes(node: ir.Node, _names: Names, opset: int) -> bool:
    changed = write_absent(node, axis=-1, **({"largest": 1, "sorted": 1} if opset >= 11 else {}))
    x = node.inputs[0]
    axis = node.attributes["axis"].as_int()
    if axis < 0 and x is not None and x.shape is not None:
        changed = write(node, axis=axis + len(x.shape)) or changed
    return changed


top_k = in_place({"TopK": _write_attributes}, "Write what is left out. Count: nodes. Source: ONNX TopK-11.")
