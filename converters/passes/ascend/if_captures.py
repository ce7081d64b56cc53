"""Bodies of If that read and return what lies outside of them through nodes of their own.

    a branch that returns an outer tensor           ->   a branch that returns Identity of it
    an outer tensor that only inner branches read   ->   Identity of it in the branch between, which they read

Why: CANN's parser makes inputs of an If of what nodes in its branches read; what else a branch may reach outside is not obviously handled.

Left alone: nothing.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ..rewriting import ModelPass, Names, bodies_in


@ModelPass
def if_captures(model: ir.Model) -> int:
    """Count: Identity nodes put in. Source: ONNX If-16."""
    names = Names(model)
    return sum(_in_branches(body, names) for body in _branches(model.graph))


def _branches(body: ir.Graph) -> Iterator[ir.Graph]:
    """Every branch of every If below, outer before inner."""
    for node in body:
        for inner in bodies_in(node):
            if node.op_type == "If" and node.domain == "":
                yield inner
            yield from _branches(inner)


def _in_branches(branch: ir.Graph, names: Names) -> int:
    changes = 0
    for place, output in enumerate(list(branch.outputs)):
        if not _is_of(output, branch):
            branch.outputs[place] = _copied(branch, output, names, first=False)
            changes += 1
    read = {value for node in branch for value in node.inputs if value is not None}
    deeper = [node for node in branch if any(True for _ in bodies_in(node))]
    wanted: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    for holder in deeper:
        for body in bodies_in(holder):
            _collect(body, {branch}, wanted)
    for value, uses in wanted.items():
        if value in read:
            continue
        copy = _copied(branch, value, names, first=True)
        for node, place in uses:
            node.replace_input_with(place, copy)
        changes += 1
    return changes


def _collect(body: ir.Graph, inside: set[ir.Graph], wanted: dict[ir.Value, list[tuple[ir.Node, int]]]) -> None:
    """Uses below of values that lie outside of every graph in `inside`."""
    inside = inside | {body}
    for node in body:
        for place, value in enumerate(node.inputs):
            if value is not None and not any(_is_of(value, graph) for graph in inside):
                wanted.setdefault(value, []).append((node, place))
        for inner in bodies_in(node):
            _collect(inner, inside, wanted)


def _is_of(value: ir.Value, graph: ir.Graph) -> bool:
    node = value.producer()
    return (value.graph if node is None else node.graph) is graph  # an output of a graph belongs to that one too


def _copied(branch: ir.Graph, value: ir.Value, names: Names, first: bool) -> ir.Value:
    name = names.free(f"{value.name}.inside")
    copy = ir.Value(name=name, type=value.type, shape=value.shape)
    node = ir.Node("", "Identity", [value], outputs=[copy], name=names.free(f"{value.name}/Identity"))
    if first and len(branch):
        branch.insert_before(branch[0], node)
    else:
        branch.append(node)
    return copy
