"""Take out what nothing reads: nodes, initializers, and opset imports of domains that no node is of.

    x ─ Relu ─ y (output)                  x ─ Relu ─ y
    x ─ Exp  ─ z (nobody reads it)   ->
    imports: "", ai.onnx.training          imports: ""

Inputs and outputs of the graph stay, read or not.
"""

from __future__ import annotations

from porting.types import Graph

from .rewriting import bodies_of, copied, remove_dead


def remove_unused(graph: Graph) -> tuple[Graph, int]:
    """Count: nodes, initializers and imports removed."""
    new = copied(graph)
    changes = remove_dead(new.model)
    used = {"", *(node.domain for body in bodies_of(new.model) for node in body)}
    for function in new.model.functions.values():
        used |= {function.domain, *(node.domain for node in function.all_nodes())}
    imports = new.model.graph.opset_imports
    for domain in [d for d in imports if d not in used]:
        del imports[domain]
        changes += 1
    return new, changes
