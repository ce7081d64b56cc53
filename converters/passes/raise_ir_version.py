"""Write a model in the newest format that runtimes read.

Before version 4 of the format every initializer had to be an input as well, and runtimes let nobody feed those: they are inputs no longer.
"""

from __future__ import annotations

import onnx_ir as ir

from ..graph_builder import IR_VERSION
from .rewriting import ModelPass

INITIALIZERS_APART = 4


@ModelPass
def raise_ir_version(model: ir.Model) -> int:
    """Count: inputs removed, and one for the version. Source: ONNX IR specification."""
    version, changes = model.ir_version or 0, 0
    if version < INITIALIZERS_APART:
        for value in [v for v in model.graph.inputs if v.is_initializer()]:
            model.graph.inputs.remove(value)
            changes += 1
    if version < IR_VERSION:
        model.ir_version = IR_VERSION
        changes += 1
    return changes
