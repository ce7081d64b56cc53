"""What a graph was before a pass that changes it in place: its nodes, constants and types, noted without a copy. No weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

if TYPE_CHECKING:
    import onnx_ir as ir

SMALL_BYTES = 4096  # constants up to here are told apart by their numbers, others by what holds them
Dims = tuple[int | str | None, ...]


@dataclass(frozen=True, eq=False)
class NodeRecord:
    """A node.

    key:        equal for nodes that compute the same of the same values, their names and bodies apart
    attributes: those that are no graphs
    """

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, ir.Attr]
    bodies: Mapping[str, BodyRecord]
    key: tuple[Any, ...]

    def reads(self) -> set[str]:
        """Names of all that it and its bodies take from the graph that it lies in."""
        return set(filter(None, self.inputs)).union(*(body.captured() for body in self.bodies.values()))


@dataclass(eq=False)
class BodyRecord:
    """A graph, or the body of a control flow.

    types:   value -> its type as onnx spells it and its dimensions; None each where it is not known
    outer:   the graph around it
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    outer: BodyRecord | None
    nodes: list[NodeRecord] = field(default_factory=list)
    constants: dict[str, ir.TensorProtocol] = field(default_factory=dict)
    types: dict[str, tuple[onnx.TypeProto | None, Dims | None]] = field(default_factory=dict)
    maker: dict[str, int] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        return 0 if self.outer is None else self.outer.depth + 1

    def own(self, name: str) -> bool:
        return name in self.maker or name in self.constants or name in self.inputs

    def home(self, name: str) -> BodyRecord | None:
        """The body that a name belongs to, as seen from here."""
        body: BodyRecord | None = self
        while body is not None and not body.own(name):
            body = body.outer
        return body

    def constant(self, name: str) -> ir.TensorProtocol | None:
        home = self.home(name)
        return None if home is None else home.constants.get(name)

    def type_of(self, name: str) -> tuple[onnx.TypeProto | None, Dims | None]:
        home = self.home(name)
        return (None, None) if home is None else home.types.get(name, (None, None))

    def captured(self) -> set[str]:
        read = set(self.outputs).union(*(node.reads() for node in self.nodes))
        return {name for name in read if not self.own(name)}


@dataclass(frozen=True, eq=False)
class ModelRecord:
    """opsets: domain -> version; "" for the standard"""

    body: BodyRecord
    opsets: Mapping[str, int]


def record_of(model: ir.Model) -> ModelRecord:
    """Note a model. Its tensors are shared, and not read but for small ones."""
    opsets = {"" if domain == "ai.onnx" else domain: version for domain, version in model.opset_imports.items()}
    return ModelRecord(_body(model.graph, None, opsets), opsets)


def _body(graph: ir.Graph, outer: BodyRecord | None, opsets: Mapping[str, int]) -> BodyRecord:
    fed = {str(value.name) for value in graph.inputs}
    body = BodyRecord(tuple(str(v.name) for v in graph.inputs), tuple(str(v.name) for v in graph.outputs), outer)
    for name, value in graph.initializers.items():
        if value.const_value is not None and name not in fed:
            body.constants[name] = value.const_value
    for value in graph.inputs:
        body.types[str(value.name)] = _type(value)
    for node in graph:
        for value in node.outputs:
            if value.name:
                body.maker[value.name] = len(body.nodes)
                body.types[value.name] = _type(value)
        body.nodes.append(_node(node, body, opsets))
    return body


def _node(node: ir.Node, body: BodyRecord, opsets: Mapping[str, int]) -> NodeRecord:
    import onnx_ir as ir

    plain: dict[str, ir.Attr] = {}
    bodies: dict[str, BodyRecord] = {}
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            bodies[name] = _body(attribute.as_graph(), body, opsets)
        else:
            plain[name] = attribute
    inputs = tuple("" if v is None else str(v.name) for v in node.inputs)
    outputs = tuple(v.name or "" for v in node.outputs)
    # what changed in control flow from one opset to another is the types that it takes
    version = 0 if bodies else _since(node.op_type, node.domain, opsets.get(node.domain, 0))
    written = tuple(sorted((name, _written(attribute)) for name, attribute in plain.items()))
    key = (node.op_type, node.domain, version, inputs, outputs, written, tuple(sorted(bodies)))
    return NodeRecord(str(node.name), node.op_type, node.domain, inputs, outputs, plain, bodies, key)


@lru_cache(maxsize=4096)
def _since(op: str, domain: str, opset: int) -> int:
    """At which opset an operator came to mean what it means at `opset`."""
    try:
        return int(onnx.defs.get_schema(op, opset, domain).since_version)
    except onnx.defs.SchemaError:
        return opset


def _written(attribute: ir.Attr) -> tuple[str, Any]:
    import onnx_ir as ir

    if attribute.type == ir.AttributeType.TENSOR:
        return "TENSOR", identity(attribute.as_tensor())
    value = attribute.value
    return attribute.type.name, repr(tuple(value)) if isinstance(value, (list, tuple)) else repr(value)


def identity(tensor: ir.TensorProtocol) -> tuple[Any, ...]:
    """Equal for tensors of equal numbers, of large ones only where they are one object."""
    import onnx_ir as ir

    if tensor.nbytes > SMALL_BYTES or tensor.dtype == ir.DataType.STRING:
        return (tensor.dtype.name, tuple(tensor.shape), id(tensor))
    return (tensor.dtype.name, tuple(tensor.shape), np.ascontiguousarray(tensor.numpy()).tobytes())


def _type(value: ir.Value) -> tuple[onnx.TypeProto | None, Dims | None]:
    import onnx_ir as ir

    known = None if value.type is None or value.dtype == ir.DataType.UNDEFINED else ir.serde.serialize_type(value.type)
    if value.shape is None:
        return known, None
    return known, tuple(d if isinstance(d, int) else d.value for d in value.shape)
