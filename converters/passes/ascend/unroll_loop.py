"""Loop with a fixed number of trips -> its body, that many times.

    Loop(3, true, h){h = f(i, h); scan s}   ->   f(0, ·), f(1, ·), f(2, ·);   s: Concat of the three

Why: CANN's parser has no Loop, and visits no body but that of If.

Nodes of trip t are called "loop/t/node"; constants of the body are shared by all trips.

Refuses (leaves the node) when the number of trips is not a constant, is 0 or above MOST_TRIPS, the condition to go on is not shown to stay true,
or more than MOST_NODES would come of it.
Bound: none needed, the operators are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..rewriting import ModelPass, Names, bodies_in, bodies_of, frozen, made_by
from .making import Maker

MOST_TRIPS = 256
MOST_NODES = 20_000  # in all bodies together: a compiler that takes minutes for thousands of nodes takes hours for more


@ModelPass
def unroll_loop(model: ir.Model) -> int:
    """Count: Loops that are gone, those in the body of one once for every trip. Source: ONNX Loop-24."""
    changes = 0
    opset = model.graph.opset_imports.get("", 0)
    while (node := _fixed(model)) is not None:
        _unroll(node, Names(model), opset)
        changes += 1
    return changes


def _fixed(model: ir.Model) -> ir.Node | None:
    for body in bodies_of(model):
        for node in body:
            if node.op_type == "Loop" and not node.domain and _trips(node) is not None:
                return node
    return None


def _trips(node: ir.Node) -> int | None:
    """How often the body runs, None where that is not known or too often."""
    count, first = frozen(node.inputs[0]), node.inputs[1]
    if count is None or (first is not None and not _is_true(first)):
        return None
    body, trips = node.attributes["body"].as_graph(), int(count.numpy().reshape(-1)[0])
    if not 1 <= trips <= MOST_TRIPS or trips * _size(body) > MOST_NODES:
        return None
    go_on = body.outputs[0]
    while (step := made_by(go_on, "Identity")) is not None and step.inputs[0] is not None:
        go_on = step.inputs[0]
    return trips if go_on is body.inputs[1] or _is_true(go_on) else None


def _is_true(value: ir.Value) -> bool:
    constant = made_by(value, "Constant")  # an output of a body is no initializer
    tensor = frozen(value)
    if constant is not None and "value" in constant.attributes:
        tensor = constant.attributes["value"].as_tensor()
    return tensor is not None and bool(tensor.numpy().all())


def _size(body: ir.Graph) -> int:
    return sum(1 + sum(map(_size, bodies_in(node))) for node in body)


def _unroll(node: ir.Node, names: Names, opset: int) -> None:
    trips, body = _trips(node), node.attributes["body"].as_graph()
    assert trips is not None and node.graph is not None
    make = Maker(node, names, opset)
    _share_constants(node, body, names)
    carried = len(body.inputs) - 2
    state: list[ir.Value] = [v for v in node.inputs[2:] if v is not None]
    scanned: list[list[ir.Value]] = [[] for _ in body.outputs[1 + carried :]]
    true = make.constant(np.asarray(True))
    for trip in range(trips):
        results = _one_trip(node, body, [make.number(trip), true, *state], f"{node.name}/{trip}", names)
        state = results[1 : 1 + carried]
        for values, value in zip(scanned, results[1 + carried :], strict=True):
            values.append(make.unsqueeze(value, 0))
    body.outputs.clear()
    make.replace_by([*state, *(make("Concat", *values, axis=0) for values in scanned)])


def _share_constants(node: ir.Node, body: ir.Graph, names: Names) -> None:
    """Constants of the body become constants of the graph around it."""
    assert isinstance(node.graph, ir.Graph)
    for value in list(body.initializers.values()):
        del body.initializers[str(value.name)]
        value.name = names.free(f"{node.name}/{value.name}")
        node.graph.register_initializer(value)


def _one_trip(node: ir.Node, body: ir.Graph, given: list[ir.Value], prefix: str, names: Names) -> list[ir.Value]:
    """A copy of the body in front of the loop, with its inputs given; what it results in."""
    assert node.graph is not None
    copy = body.clone(allow_outer_scope_values=True)
    results = list(copy.outputs)
    copy.outputs.clear()
    replaced = dict(zip(copy.inputs, given, strict=True))
    for old, new in replaced.items():
        old.replace_all_uses_with(new)
    moved = list(copy)
    copy.remove(moved)
    node.graph.insert_before(node, moved)
    for inner in moved:
        _rename(inner, prefix, names)
    return [replaced.get(value, value) for value in results]


def _rename(node: ir.Node, prefix: str, names: Names) -> None:
    node.name = names.free(f"{prefix}/{node.name}")
    for value in node.outputs:
        value.name = names.free(f"{prefix}/{value.name}") if value.name else value.name
    for body in bodies_in(node):
        for value in list(body.initializers.values()):
            del body.initializers[str(value.name)]
            value.name = names.free(f"{prefix}/{value.name}")
            body.register_initializer(value)
        for value in body.inputs:
            value.name = names.free(f"{prefix}/{value.name}")
        for inner in body:
            _rename(inner, prefix, names)
