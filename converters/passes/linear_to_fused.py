"""MatMul(x, Transpose(W)) -> com.microsoft.FusedMatMul(x, W, transB=1).

Reads W as the checkpoint stores it, (out, in), so that the port can point at the checkpoint's own bytes. onnxruntime would fold the
transposition into private memory instead (713 MB for SmolLM2). Same speed as the pre-packed form for one position.

Refuses when W is not a float32 initializer of rank 2 (the CPU kernel takes no other type), or is transposed otherwise.
Bound: the same float32 products, summed in another order.
"""

from __future__ import annotations

import onnx_ir as ir

from porting.types import Graph

from .attention_to_gqa import MICROSOFT
from .rewriting import copied, ints_of, made_by, node_like, pruned, take_over, weight_of


def linear_to_fused(graph: Graph) -> tuple[Graph, int]:
    """Rewrite every linear layer. Source: onnxruntime ContribOperators.md, FusedMatMul."""
    new = copied(graph)
    body = new.model.graph
    changes = 0
    for node in [n for n in body if n.op_type == "MatMul" and n.domain == ""]:
        transpose = made_by(node.inputs[1], "Transpose")
        weight = weight_of(transpose.inputs[0]) if transpose is not None and ints_of(transpose, "perm") == [1, 0] else None
        if transpose is None or weight is None or weight.dtype != ir.DataType.FLOAT:
            continue
        fused = node_like(node, "FusedMatMul", [node.inputs[0], transpose.inputs[0]], domain=MICROSOFT, transB=1)
        take_over(node.outputs[0], fused.outputs[0])
        changes += 1
    if changes:
        body.opset_imports[MICROSOFT] = 1
        new = pruned(new)
    return new, changes
