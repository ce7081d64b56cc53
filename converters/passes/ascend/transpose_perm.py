"""Transpose without perm -> Transpose(perm=[r-1 .. 0]), which is what it means.

Why: CANN's parser has no default for perm and refuses the node.

Left alone: an input whose rank is not known, or is 0.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from ..rewriting import Names
from .in_place import in_place, write_absent


def _write_perm(node: ir.Node, _names: Names, _opset: int) -> bool:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return bool(shape) and shape is not None and write_absent(node, perm=list(reversed(range(len(shape)))))


transpose_perm = in_place({"Transpose": _write_perm}, "Write every perm. Count: nodes. Source: ONNX Transpose-13.")
