"""What every pass here does with a graph: copy it, match small patterns, take out what is no longer used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import update_wrapper
from typing import Any

import onnx_ir as ir

from porting.types import Graph

from ..graph_builder import MODULE


def copied(graph: Graph) -> Graph:
    """The same graph with its own nodes and values; the weights are shared."""
    return replace(graph, model=graph.model.clone())


class ModelPass:
    """A pass made of a function that changes a model in place and counts what it changed.

    Called with a graph it works on a copy, as every pass does; a table that runs many in a row copies once and calls `change`.
    """

    def __init__(self, change: Callable[[ir.Model], int]) -> None:
        self.change = change
        update_wrapper(self, change)

    def __call__(self, graph: Graph) -> tuple[Graph, int]:
        new = copied(graph)
        return new, self.change(new.model)


def made_by(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """The node that produces `value`, if it is of that kind."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and node.domain == domain else None


def only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    """The single node that reads `value`, if it is one and of that kind."""
    users = list(value.uses())
    return users[0].node if len(users) == 1 and users[0].node.op_type == op_type and not value.is_graph_output() else None


def weight_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer."""
    return value.const_value if value is not None and value.is_initializer() else None


def ints_of(node: ir.Node, attribute: str) -> list[int]:
    """An attribute that is a list of integers; [] when the node has none."""
    return list(node.attributes[attribute].as_ints()) if attribute in node.attributes else []


def constant_of(value: ir.Value | None) -> list[int]:
    """The elements of a small 1-D integer constant; [] when it is something else."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return (
        tensor.numpy().tolist() if tensor is not None and tensor.dtype == ir.DataType.INT64 and len(tensor.shape) == 1 else []
    )


def node_like(
    old: ir.Node,
    op_type: str,
    inputs: Iterable[ir.Value | None],
    *,
    domain: str = "",
    outputs: int = 1,
    suffix: str = "",
    **attributes: Any,
) -> ir.Node:
    """A new node before `old` in its graph that keeps its name and provenance."""
    assert old.graph is not None
    node = ir.Node(
        domain,
        op_type,
        list(inputs),
        attributes=ir.convenience.convert_attributes(attributes) if attributes else (),
        num_outputs=outputs,
        name=f"{old.name}{suffix}",
        metadata_props={MODULE: old.metadata_props.get(MODULE, "")},
    )
    for i, output in enumerate(node.outputs):
        output.name = f"{node.name}.{i}" if i else f"{node.name}.out"
    old.graph.insert_before(old, node)
    return node


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Everyone who read `old` reads `new`; if `old` was a graph output, `new` is it now, name, type and shape included."""
    if old.is_graph_output():
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.name = f"{old.name}.replaced"
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def pruned(graph: Graph) -> Graph:
    """The graph without nodes and initializers that lead nowhere; inputs stay as they are. Changes `graph` itself."""
    remove_dead(graph.model)
    return graph


def remove_dead(model: ir.Model) -> int:
    """Take nodes and initializers that lead nowhere out of the graph and the bodies of its control flow; how many there were.

    onnx-ir's own pass also takes `training_mode` off a BatchNormalization, which changes what it computes, and leaves the
    initializers of bodies.
    """
    removed = _remove_dead_nodes(model.graph)
    for body in bodies_of(model):
        kept = {*body.inputs, *body.outputs}
        for value in list(body.initializers.values()):
            if not value.uses() and value not in kept:
                del body.initializers[str(value.name)]
                removed += 1
    return removed


def _remove_dead_nodes(body: ir.Graph) -> int:
    kept = set(body.outputs)
    removed = 0
    for node in reversed(body):
        if any(output.uses() or output in kept for output in node.outputs):
            removed += sum(_remove_dead_nodes(inner) for inner in bodies_in(node))
        else:
            remove_node(node)
            removed += 1
    return removed


def remove_node(node: ir.Node) -> None:
    """Take a node that nobody reads out of its graph; what its bodies read is not read by them any more."""
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    waiting = list(bodies_in(node))
    while waiting:
        for inner in waiting.pop():
            for place in range(len(inner.inputs)):
                inner.replace_input_with(place, None)
            waiting += bodies_in(inner)


CONTROL_FLOW = frozenset(
    ("If", "Loop", "Scan", "SequenceMap")
)  # of ai.onnx, all that hold graphs; of other domains nobody knows


def bodies_in(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that a node of control flow holds, not those inside them."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def bodies_of(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph and the body of every control flow, outer before inner."""
    waiting = [model.graph]
    while waiting:
        body = waiting.pop()
        yield body
        waiting += [inner for node in body if node.op_type in CONTROL_FLOW or node.domain for inner in bodies_in(node)]


def frozen(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a value that nobody can feed: an initializer that is no input of its graph."""
    if value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value


def shape_of(tensor: ir.TensorProtocol) -> ir.Shape:
    """The shape of a tensor, for a value of its own."""
    return ir.Shape([int(d) for d in tensor.shape if isinstance(d, int)])


def new_initializer(body: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """An initializer of `body`; the caller sees to it that the name is free."""
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape_of(tensor), const_value=tensor)
    body.register_initializer(value)
    return value


class Names:
    """Names of nodes and values that are free in a whole model, so that nothing new hides something in an outer graph."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str] = set()
        for body in bodies_of(model):
            self._taken.update(str(v.name) for v in (*body.inputs, *body.initializers.values()))
            for node in body:
                self._taken.add(str(node.name))
                self._taken.update(str(v.name) for v in node.outputs)

    def free(self, name: str) -> str:
        """`name`, with a number behind it if it is taken; it is taken from now on."""
        candidate, n = name, 1
        while candidate in self._taken:
            n += 1
            candidate = f"{name}_{n}"
        self._taken.add(candidate)
        return candidate
