"""Take out what nothing reads: nodes, initializers, and opset imports of domains that no node is of.

    x ─ Relu ─ y (output)                  x ─ Relu ─ y
    x ─ Exp  ─ z (nobody reads it)   ->
    imports: "", ai.onnx.training          imports: ""

Inputs and outputs of the graph stay, read or not.
"""

from __future__ import annotations

import onnx_ir as ir

from .rewriting import ModelPass, bodies_of, remove_dead


@ModelPass
def remove_unused(model: ir.Model) -> int:
    """Count: nodes, initializers and imports removed."""
    changes = remove_dead(model)
    used = {"", *(node.domain for body in bodies_of(model) for node in body)}
    for function in model.functions.values():
        used |= {function.domain, *(node.domain for node in function.all_nodes())}
    imports = model.graph.opset_imports
    for domain in [d for d in imports if d not in used]:
        del imports[domain]
        changes += 1
    return changes
