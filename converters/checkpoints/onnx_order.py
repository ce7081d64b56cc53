"""Putting the message of an .onnx file in order, without changing what it computes: names, spellings, the order of nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TypeAlias

import onnx

from porting.errors import CheckpointError

Body: TypeAlias = "onnx.GraphProto | onnx.FunctionProto"  # what has nodes
UNKNOWN_DIMS = frozenset({"-1", "?", "None", ""})


def subgraphs_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The bodies of a control-flow node."""
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]


def bodies(*owners: Body) -> Iterator[Body]:
    """These and all subgraphs in them, depth first, in the file's order."""
    pending: list[Body] = [*owners]
    while pending:
        owner = pending.pop(0)
        yield owner
        pending[:0] = [g for node in owner.node for g in subgraphs_of(node)]


def put_in_order(model: onnx.ModelProto) -> None:
    """Every node named, "ai.onnx" spelled "", unknown dimensions unset, each output listed once, no plan for several devices."""
    del model.configuration[:]
    for owner in bodies(model.graph, *model.functions):
        for node in owner.node:
            node.domain = standard(node.domain)
            del node.device_configurations[:]
        if isinstance(owner, onnx.GraphProto):
            _clean(owner)
    for function in model.functions:
        function.domain = standard(function.domain)
    _name_nodes(model)
    _list_outputs_once(model.graph)


def standard(domain: str) -> str:
    """A domain as this package spells it."""
    return "" if domain == "ai.onnx" else domain


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own, those in subgraphs and functions included. The first of several with one name keeps it."""
    nodes = [node for owner in bodies(model.graph, *model.functions) for node in owner.node]
    taken = {node.name for node in nodes if node.name}
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    for node in nodes:
        if not node.name or node.name in seen:
            base = node.name or f"{node.op_type}/{next(filter(None, node.output), '')}"
            name = base
            while name in taken:
                counts[base] += 1
                name = f"{base}_{counts[base] + 1}"
            taken.add(name)
            node.name = name
        seen.add(node.name)


def _clean(graph: onnx.GraphProto) -> None:
    """Unset the dimensions that are unknown, however they are spelled."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type
        while kind.HasField("sequence_type") or kind.HasField("optional_type"):
            kind = kind.sequence_type.elem_type if kind.HasField("sequence_type") else kind.optional_type.elem_type
        for dim in kind.tensor_type.shape.dim if kind.HasField("tensor_type") else ():
            if dim.dim_value < 0 or (dim.HasField("dim_param") and dim.dim_param in UNKNOWN_DIMS):
                dim.ClearField("dim_value")
                dim.ClearField("dim_param")


def _list_outputs_once(graph: onnx.GraphProto) -> None:
    """Of the whole model, whose outputs go by name; those of a subgraph go by position and may be one value twice."""
    first: dict[str, int] = {}
    for index, value in enumerate(graph.output):
        first.setdefault(value.name, index)
    kept = [onnx.ValueInfoProto.FromString(graph.output[index].SerializeToString()) for index in first.values()]
    if len(kept) < len(graph.output):
        del graph.output[:]
        graph.output.extend(kept)


def sort(owner: Body, makers: dict[str, int], reads: list[set[str]], where: str) -> None:
    """Nodes in an order in which each comes after what it reads, the file's own where it does. raises: CheckpointError for a cycle"""
    needs = [{makers[name] for name in wanted} for wanted in reads]
    if all(max(found, default=-1) < index for index, found in enumerate(needs)):
        return
    users: list[list[int]] = [[] for _ in needs]
    for index, found in enumerate(needs):
        for maker in found:
            users[maker].append(index)
    open_needs = [len(found) for found in needs]
    order = [index for index, count in enumerate(open_needs) if count == 0]
    for index in order:
        for user in users[index]:
            open_needs[user] -= 1
            if open_needs[user] == 0:
                order.append(user)
    if len(order) < len(needs):
        stuck = [owner.node[i].name for i, count in enumerate(open_needs) if count]
        raise CheckpointError(
            f"the graph is cyclic: {len(stuck)} nodes wait for each other", where=f"{where}, nodes {', '.join(stuck[:5])}"
        )
    nodes = [onnx.NodeProto.FromString(owner.node[i].SerializeToString()) for i in order]
    del owner.node[:]
    owner.node.extend(nodes)
