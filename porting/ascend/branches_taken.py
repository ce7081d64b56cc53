"""A graph whose Ifs are replaced by the branches that given inputs take, so that what lies in them can be looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from porting.ascend.activations import runs
from porting.ascend.graph_at_hand import AtHand
from porting.backends.onnx_program import node_label

Cases = Sequence[Mapping[str, np.ndarray]]


def grouped_by_branches(source: AtHand, cases: Cases) -> list[tuple[AtHand, list[Mapping[str, np.ndarray]]]]:
    """The cases that take the same branches together, with the graph of those; one group where the main graph has no If.

    Ifs in the body of a Loop or Scan stay. raises: as `runs`
    """
    groups: dict[tuple[tuple[str, bool], ...], tuple[AtHand, list[Mapping[str, np.ndarray]]]] = {}
    if not _ifs(source.model.graph):
        return [(source, list(cases))]
    for case in cases:
        taken: dict[str, bool] = {}
        at = source
        while _ifs(at.model.graph):
            conditions = _conditions(at, case)
            taken |= conditions
            at = AtHand(_inlined(at.model, conditions), at.folder)
        groups.setdefault(tuple(sorted(taken.items())), (at, []))[1].append(case)
    return list(groups.values())


def _ifs(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == "If" and node.domain in ("", "ai.onnx")]


def _conditions(source: AtHand, case: Mapping[str, np.ndarray]) -> dict[str, bool]:
    """What each If of the main graph is asked."""
    asked = onnx.ModelProto()
    asked.CopyFrom(source.model)
    del asked.graph.output[:]
    given = {node_label(node): f"porting/condition/{number}" for number, node in enumerate(_ifs(asked.graph))}
    for node in _ifs(asked.graph):
        output = given[node_label(node)]
        asked.graph.node.append(helper.make_node("Identity", [node.input[0]], [output], name=output))
        asked.graph.output.append(helper.make_tensor_value_info(output, onnx.TensorProto.BOOL, None))
    values: dict[str, Any] = next(runs(asked, source, [case]))
    return {label: bool(np.asarray(values[output]).reshape(-1)[0]) for label, output in given.items()}


def _inlined(model: onnx.ModelProto, conditions: Mapping[str, bool]) -> onnx.ModelProto:
    new = onnx.ModelProto()
    new.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    for node in new.graph.node:
        if node_label(node) not in conditions:
            nodes.append(node)
            continue
        wanted = "then_branch" if conditions[node_label(node)] else "else_branch"
        branch = next(a.g for a in node.attribute if a.name == wanted)
        new.graph.initializer.extend(branch.initializer)
        nodes += branch.node
        for inner, outer in zip(branch.output, node.output, strict=True):
            if outer:
                nodes.append(helper.make_node("Identity", [inner.name], [outer], name=f"{node_label(node)}/{outer}"))
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del new.graph.node[:]
    new.graph.node.extend(kept)
    return new
