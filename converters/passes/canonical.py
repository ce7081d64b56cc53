"""Bring any ONNX graph to the canonical form of this project, without changing a result.

Constants are initializers, shapes are known as far as they can be, nothing is left to compute that is known beforehand, nodes that do nothing
are gone, and the graph is of opset 24, or of the newest that is exact and as fast for every node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from porting.errors import UnsupportedModel
from porting.types import Graph

from ..graph_builder import OPSET
from .constants_to_initializers import constants_to_initializers
from .convert_version import convert_version, obstacles
from .drop_identities import drop_identities
from .fold_constants import fold_constants
from .infer_shapes import infer_shapes
from .inline_if import inline_if
from .raise_ir_version import raise_ir_version
from .remove_unused import remove_unused
from .rewriting import ModelPass, copied
from .scalar_inputs import scalar_inputs
from .tables import Pass

SIMPLIFY: Sequence[tuple[str, ModelPass]] = (
    ("raise_ir_version", raise_ir_version),  # first: which initializers can be fed depends on it
    ("constants_to_initializers", constants_to_initializers),
    ("remove_unused", remove_unused),
    ("infer_shapes", infer_shapes),
    ("scalar_inputs", scalar_inputs),
    ("fold_constants", fold_constants),  # needs shapes
    ("inline_if", inline_if),  # folding decides conditions
    ("drop_identities", drop_identities),  # last: inlining leaves identities behind
)
CANONICAL: Sequence[tuple[str, Pass]] = (*SIMPLIFY, ("convert_version", convert_version))
MOST_ROUNDS = 50  # each round folds at least one node more, and a chain of shapes that needs more than a few has not been seen
REASONS = 5  # obstacles that are listed


def canonical(graph: Graph, highest: int = OPSET) -> tuple[Graph, list[dict[str, object]]]:
    """Run the table until nothing changes.

    highest: the opset that a graph below it is raised to
    returns: the canonical graph, and [{"name", "changes"}] as port.json lists them, one entry per pass with what all rounds changed;
             convert_version also has "opset", that of the graph now, and when it is below `highest` "kept", the nodes that are in the way
    raises:  UnsupportedModel when the passes do not come to an end
    """
    counts: Counter[str] = Counter()
    graph = copied(graph)
    _simplify(graph.model, counts)
    graph, counts["convert_version"] = convert_version(graph, highest)  # once ranks and constants are known
    if counts["convert_version"]:
        _simplify(graph.model, counts)
    applied: list[dict[str, object]] = [{"name": name, "changes": counts[name]} for name, _ in CANONICAL]
    applied[-1]["opset"] = graph.model.graph.opset_imports.get("")
    kept = obstacles(graph, highest)
    if kept:
        applied[-1]["kept"] = [*kept[:REASONS], *([f"and {len(kept) - REASONS} more"] if len(kept) > REASONS else [])]
    return graph, applied


def _simplify(model: ir.Model, counts: Counter[str]) -> None:
    for _ in range(MOST_ROUNDS):
        before = counts.total()
        for name, run in SIMPLIFY:
            counts[name] += run.change(model)
        if counts.total() == before:
            return
    raise UnsupportedModel(f"the graph still changes after {MOST_ROUNDS} rounds of passes", where="canonical form")
