"""Take opset imports that no node needs out of a model, and import the standard as "".

    opset_import: ["" : 18, "com.microsoft" : 1], no node of com.microsoft   ->   opset_import: ["" : 18]

Why: before CANN's parser of 2026-07-25 (hicann/ge 74f8167a4) a model with more than one import in which a node has an empty domain ends with
E16005, and every exporter writes empty domains.

Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from ..rewriting import ModelPass, bodies_of

STANDARD = "ai.onnx"


@ModelPass
def clean_imports(model: ir.Model) -> int:
    """Count: imports taken out or written otherwise. Nodes of "ai.onnx" are of "" already: onnx-ir reads them so."""
    imports = model.graph.opset_imports
    changes = 0
    if STANDARD in imports:
        imports.setdefault("", imports[STANDARD])
        del imports[STANDARD]
        changes += 1
    used = {node.domain for body in bodies_of(model) for node in body}
    for domain in sorted(set(imports) - used - {""}):
        del imports[domain]
        changes += 1
    return changes
