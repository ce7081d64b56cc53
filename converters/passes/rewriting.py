"""What every pass here does with a graph: copy it, match small patterns, take out what is no longer used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from porting.types import Graph

from ..graph_builder import MODULE


def copied(graph: Graph) -> Graph:
    """The same graph with its own nodes and values; the weights are shared."""
    return replace(graph, model=graph.model.clone())


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
    """The graph without nodes and initializers that lead nowhere; inputs stay as they are."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    return replace(graph, model=RemoveUnusedNodesPass()(graph.model).model)
