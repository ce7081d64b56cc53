"""Write a graph of opset 9 to 23 in opset 24, where that is exact for every node; else leave it at its opset.

    Unsqueeze(x, axes=[0])  (opset 12)   ->   Unsqueeze(x, [0])  (opset 24)

All or nothing: `obstacles` names the nodes that stand in the way. Nodes keep their names; what changes is in version_steps.py.
Functions of the model's own have to be inlined before.
Bound: none needed, the operators compute the same.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from porting.types import Graph

from ..graph_builder import IR_VERSION, OPSET
from .infer_shapes import infer_shapes
from .rewriting import Names, bodies_of, copied
from .version_steps import ADAPTERS, MEANING, Refused, needs_nothing, steps

FIRST_OPSET = 9
SOFTMAX_OF_ONE_AXIS = 13  # the opset from which Softmax means what it does today; before, its conversion depends on ranks


def convert_version(graph: Graph) -> tuple[Graph, int]:
    """Count: nodes written otherwise, and one for the opset. Types and ranks must have been inferred."""
    new = copied(graph)
    if graph.model.graph.opset_imports.get("", OPSET) < SOFTMAX_OF_ONE_AXIS and not _convert(new.model)[1]:
        new = _told_ranks(graph, infer_shapes(new)[0])
    changed, refused = _convert(new.model)
    return (graph, 0) if refused else (new, changed)


def obstacles(graph: Graph) -> list[str]:
    """ "name (operator): reason" of the nodes because of which the graph stays at its opset; [] when it does not."""
    return _convert(copied(graph).model)[1]


def _told_ranks(graph: Graph, converted: Graph) -> Graph:
    """The graph with the shapes that were worked out for its converted form: onnx infers more for the newest operators than for old ones."""
    new = copied(graph)
    for body, other in zip(bodies_of(new.model), bodies_of(converted.model), strict=True):
        shapes = {value.name: value.shape for node in other for value in node.outputs}
        for value in (v for node in body for v in node.outputs if v.shape is None):
            value.shape = shapes.get(value.name)
    return new


def raise_ir_version(graph: Graph) -> tuple[Graph, int]:
    """Write the model in the newest format that runtimes read.

    Before version 4 every initializer had to be an input as well, and runtimes let nobody feed those: they are inputs no longer.
    Count: inputs removed, and one for the version.
    """
    new = copied(graph)
    model, changes = new.model, 0
    if (model.ir_version or 0) < 4:
        for value in [v for v in model.graph.inputs if v.is_initializer()]:
            model.graph.inputs.remove(value)
            changes += 1
    if (model.ir_version or 0) < IR_VERSION:
        model.ir_version = IR_VERSION
        changes += 1
    return new, changes


def _convert(model: ir.Model) -> tuple[int, list[str]]:
    """Convert in place. (count, obstacles): the model is of no use when there are obstacles."""
    imports = model.graph.opset_imports
    opset = imports.get("", OPSET)
    if opset >= OPSET:
        return 0, []
    if opset < FIRST_OPSET:
        return 0, [f"opset {opset} is below {FIRST_OPSET}"]
    if model.functions:
        return 0, [f"function {f.name} is not inlined" for f in model.functions.values()]
    names = Names(model)
    changed, refused = 0, []
    for body in bodies_of(model):
        for node in [n for n in body if not n.domain]:
            try:
                changed += _convert_node(node, opset, names)
            except Refused as reason:
                refused.append(f"{node.name} ({node.op_type}): {reason}")
    imports[""] = OPSET
    return changed + 1, refused


def _convert_node(node: ir.Node, opset: int, names: Names) -> bool:
    """Take a node up step by step. raises: Refused"""
    changed = False
    for version in range(opset + 1, OPSET + 1):
        kind = node.op_type
        if version not in steps(kind, opset, OPSET):
            continue
        if (kind, version) in MEANING:
            raise Refused(MEANING[kind, version])
        if (kind, version) in ADAPTERS:
            ADAPTERS[kind, version](node, names)
            changed = True
        elif not needs_nothing(kind, version):
            raise Refused(f"no way from the version before to {version}")
    unknown = set(node.attributes) - set(onnx.defs.get_schema(node.op_type, OPSET, "").attributes)
    if unknown:
        raise Refused(f"attribute {', '.join(sorted(unknown))} is not in the newest version")
    return changed
