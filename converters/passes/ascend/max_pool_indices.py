"""MaxPool whose output Indices nobody reads -> MaxPool with one output; storage_order, which is about Indices alone, goes too.

Why: CANN's parser fails on the second output and on storage_order=1.

Left alone: a MaxPool whose Indices are read.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from ..rewriting import Names
from .in_place import drop, in_place


def _drop_indices(node: ir.Node, _names: Names, _opset: int) -> bool:
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    changed = len(node.outputs) > 1
    if changed:
        node.resize_outputs(1)
    return drop(node, "storage_order") or changed


max_pool_indices = in_place({"MaxPool": _drop_indices}, "Drop what is not read. Count: nodes. Source: ONNX MaxPool-12.")
