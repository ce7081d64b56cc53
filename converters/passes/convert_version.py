"""Write a graph of opset 9 to 23 in opset 24, or in the newest opset that is exact and not slower for every node.

    Unsqueeze(x, axes=[0])  (opset 12)   ->   Unsqueeze(x, [0])  (opset 24)

All nodes or none: `obstacles` names the nodes that keep a graph below 24. Nodes keep their names; what changes is in version_steps.py.
Functions of the model's own have to be inlined before.
Bound: none needed, the operators compute the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from porting.types import Graph

from ..graph_builder import OPSET
from .infer_shapes import infer_shapes
from .rewriting import Names, bodies_of, copied
from .version_steps import ADAPTERS, Refused, needs_nothing, require_known, stop_of, versions

FIRST_OPSET = 9
SOFTMAX_OF_ONE_AXIS = 13  # the opset from which Softmax means what it does today; before, its conversion depends on ranks


def convert_version(graph: Graph, highest: int = OPSET) -> tuple[Graph, int]:
    """Count: nodes written otherwise, and one for the opset. Types and ranks must have been inferred.

    highest: the opset that is wanted; a graph above it stays
    """
    opset = graph.model.graph.opset_imports.get("", OPSET)
    target = min([highest, *(o.version - 1 for o in _obstacles(graph, highest))])
    if target <= opset:
        return graph, 0
    if opset < SOFTMAX_OF_ONE_AXIS:
        trial = copied(graph)
        _convert(trial.model, target)
        graph = _told_ranks(graph, infer_shapes(trial)[0])
    new = copied(graph)
    changed, _ = _convert(new.model, target)
    return new, changed


def obstacles(graph: Graph, highest: int = OPSET) -> list[str]:
    """The "name (operator): reason" of the nodes because of which the graph is below opset `highest`; [] when it is not."""
    return [str(o) for o in _obstacles(graph, highest)]


def _obstacles(graph: Graph, highest: int) -> list[_Obstacle]:
    if graph.model.graph.opset_imports.get("", OPSET) >= highest:
        return []
    return _convert(copied(graph).model, highest)[1]


@dataclass(frozen=True)
class _Obstacle:
    """version: the opset that cannot be reached"""

    version: int
    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


def _told_ranks(graph: Graph, converted: Graph) -> Graph:
    """The graph with the shapes that were worked out for its converted form: onnx infers more for the newest operators than for old ones."""
    new = copied(graph)
    for body, other in zip(bodies_of(new.model), bodies_of(converted.model), strict=True):
        shapes = {value.name: value.shape for node in other for value in node.outputs}
        for value in (v for node in body for v in node.outputs if v.shape is None):
            value.shape = shapes.get(value.name)
    return new


def _convert(model: ir.Model, target: int) -> tuple[int, list[_Obstacle]]:
    """Convert in place. (count, obstacles): with obstacles the model is of no use."""
    imports = model.graph.opset_imports
    opset = imports.get("", OPSET)
    if opset >= target:
        return 0, []
    if opset < FIRST_OPSET:
        return 0, [_Obstacle(opset + 1, f"opset {opset}", f"is below {FIRST_OPSET}")]
    if model.functions:
        return 0, [_Obstacle(opset + 1, f"function {f.name}", "is not inlined") for f in model.functions.values()]
    names = Names(model)
    changed, found = 0, []
    for body in bodies_of(model):
        for node in [n for n in body if not n.domain]:
            what = f"{node.name} ({node.op_type})"
            version, rewritten = opset + 1, False
            try:
                require_known(node, opset)
                for version in range(opset + 1, target + 1):
                    rewritten |= _raise_to(node, version, names)
                changed += rewritten
            except Refused as reason:
                found.append(_Obstacle(version, what, str(reason)))
    imports[""] = target
    return changed + 1, found


def _raise_to(node: ir.Node, version: int, names: Names) -> bool:
    """Take a node from the opset before to this one: whether it is written otherwise now. raises: Refused"""
    stop = stop_of(node)
    if stop is not None and stop.version == version:
        raise Refused(stop.reason)
    if version not in versions(node.op_type):
        return False
    adapter = ADAPTERS.get((node.op_type, version))
    if adapter is not None:
        adapter(node, names)
        return True
    if not needs_nothing(node.op_type, version):
        raise Refused(f"no way to opset {version}")
    return False
