"""Which passes bring a canonical graph to what Ascend's ONNX parser takes: one table, in order.

The parser (CANN 9.2 sources) looks every node up as "domain::opset::operator" with the opset that the model imports, has nothing of the
standard above 18 but Constant, no com.microsoft, no functions and no Loop; and it reads some attributes that a node has and not others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from porting.types import Graph

from ..infer_shapes import infer_shapes
from ..rewriting import ModelPass, copied
from .clean_imports import clean_imports

Compare = Callable[[str, Graph, Graph], None]

EXPAND: Sequence[tuple[str, ModelPass]] = ()  # operators that are not registered; opset of the graph as it came
# At opset 18 or below: attributes and forms that the parser reads otherwise than ONNX means them. Add new ones here, one a line.
REWRITE: Sequence[tuple[str, ModelPass]] = ()
FINISH: Sequence[tuple[str, ModelPass]] = (
    ("clean_imports", clean_imports),  # last: what is imported depends on the nodes that are left
)
PASSES: Sequence[tuple[str, ModelPass]] = (*EXPAND, *REWRITE, *FINISH)


def lower_for_ascend(graph: Graph, compare: Compare | None = None) -> tuple[Graph, list[dict[str, object]]]:
    """Run the passes, and work types and shapes out anew after each that changed something.

    compare: called as compare(name, before, after) when a pass changed something; raises UnsupportedModel where the outputs differ
    returns: the lowered graph, and [{"name", "changes", "rules"}] as port.json lists them: rules are the ids of those that a pass mends
    raises:  what `compare` raises
    """
    applied: list[dict[str, object]] = []
    before, graph = graph, copied(graph)
    for name, run in PASSES:
        changes = run.change(graph.model)
        if changes:
            infer_shapes.change(graph.model)
            if compare is not None:
                compare(name, before, graph)
                before = copied(graph)
        applied.append({"name": name, "changes": changes, "rules": _mended_by(name)})
    return graph, applied


def _mended_by(name: str) -> list[str]:
    return []
