"""BatchNormalization, InstanceNormalization, LayerNormalization -> the same with epsilon written.

Why: CANN documents 1e-4 as the epsilon of a BatchNormalization that has none, where ONNX has 1e-5.

Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from ..rewriting import Names
from .in_place import in_place, write_absent

EPSILON = 1e-5


def _write_epsilon(node: ir.Node, _names: Names, _opset: int) -> bool:
    return write_absent(node, epsilon=EPSILON)


batch_norm_epsilon = in_place(
    dict.fromkeys(("BatchNormalization", "InstanceNormalization", "LayerNormalization"), _write_epsilon),
    "Write every epsilon. Count: nodes. Source: ONNX BatchNormalization-15, InstanceNormalization-6, LayerNormalization-17.",
)
