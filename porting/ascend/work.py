"""How much a node computes, from shapes alone: what share of a model an operator off the fast path has."""

from __future__ import annotations

import math

from porting.ascend.graph_facts import NodeFacts, ValueFacts


def multiplications(node: NodeFacts) -> float:
    """Multiplications of a node, at least one for each element that it writes. A free dimension counts as 1: shares, not totals, are meant."""
    written = sum(_elements(value) for value in node.outputs)
    if node.domain or not node.inputs or node.inputs[0] is None:
        return float(written)
    first, second = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    if node.op == "MatMul" and second is not None and first.shape:
        return float(written * _size(first.shape[-1]))
    if node.op == "Gemm" and second is not None and second.shape:
        return float(written * _size(second.shape[1 if node.attributes.get("transB") else 0]))
    if node.op in ("Conv", "ConvTranspose") and second is not None and second.shape:
        kernel = math.prod(_size(d) for d in second.shape[1:])
        return float(kernel * (written if node.op == "Conv" else _elements(first)))
    if node.op in ("LSTM", "GRU", "RNN") and second is not None and second.shape and first.shape:
        steps = math.prod(_size(d) for d in first.shape[:2])
        recurrent = node.inputs[2] if len(node.inputs) > 2 else None
        return float(steps * (_elements(second) + (_elements(recurrent) if recurrent is not None else 0)))
    return float(written)


def share_of(nodes: list[NodeFacts], everything: list[NodeFacts]) -> float:
    """The share of `nodes` in the work of all, 0 to 1."""
    total = sum(multiplications(node) for node in everything)
    return sum(multiplications(node) for node in nodes) / total if total else 0.0


def _elements(value: ValueFacts) -> int:
    return math.prod(_size(d) for d in value.shape) if value.shape is not None else 1


def _size(dim: int | str | None) -> int:
    return dim if isinstance(dim, int) else 1
