"""What rules can ask about a graph: operators, attributes, dtypes, shapes and small constants. No weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from porting.ascend.sizes import Sizes
from porting.types import Graph

if TYPE_CHECKING:
    import onnx_ir as ir

SMALL = 1024  # elements of a constant that is looked at
SMALL_FLOATS = (
    16  # the same of floats that lie outside the graph: bounds, scales and padding are fewer, and a weight of a layer is more
)
OUTSIDE_BYTES = 1024  # initializers above it lie outside model.onnx


@dataclass(frozen=True, eq=False)
class ValueFacts:
    """A tensor.

    dtype:       numpy's name, "string", "int4" and the like; "sequence(float32)", "optional(float32)"; None where it is unknown
    shape:       ints are fixed, strings are named, None is unknown; None when not even the rank is known
    constant:    the numbers, of a constant of at most SMALL elements
    is_constant: whether the numbers are known before the model runs; a graph input that has a default is one for Ascend's parser
    used:        whether a node or the graph's caller reads it
    """

    name: str
    dtype: str | None = None
    shape: tuple[int | str | None, ...] | None = None
    constant: np.ndarray | None = None
    is_constant: bool = False
    used: bool = True

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)


@dataclass(frozen=True)
class BodyFacts:
    """The body of a control flow, as the attribute of its node.

    returned:        outer values that the body gives back without a node of its own
    captured_deeper: outer values that only bodies inside this one read
    outside:         initializers too large to lie in model.onnx
    """

    returned: tuple[str, ...] = ()
    captured_deeper: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class NodeFacts:
    """A node.

    domain:          "" for ai.onnx
    opset:           what the model imports of the domain, 0 where it imports nothing. Where nodes keep a model from opset 18 (lower_opset marks
                     them), the others count as they could be written there
    held:            why this node keeps its model from opset 18, "" where it does not
    inputs:          None where an input is left out
    outputs:         a name of "" where an output is left out
    attributes:      as written; tensors are ValueFacts, bodies are BodyFacts
    inside:          operators of the control flow around the node, outer before inner
    sized_by_values: whether an output's size hangs on numbers that are fed, not on their shapes alone
    sizes_outputs:   outputs of the graph whose size hangs on what this node makes of numbers
    """

    name: str
    op: str
    domain: str
    opset: int
    inputs: tuple[ValueFacts | None, ...]
    outputs: tuple[ValueFacts, ...]
    attributes: Mapping[str, Any]
    inside: tuple[str, ...] = ()
    sized_by_values: bool = False
    held: str = ""
    sizes_outputs: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class GraphFacts:
    """A graph. Nodes of local functions are not listed.

    opsets:        domain -> version, "" for ai.onnx
    nodes:         outer before inner, in order
    external_keys: keys of external data as the file spells them, () where weights come as streams
    functions:     domain::name of local functions
    ir_version:    None where it is unknown
    """

    opsets: Mapping[str, int]
    nodes: tuple[NodeFacts, ...]
    inputs: tuple[ValueFacts, ...] = ()
    outputs: tuple[ValueFacts, ...] = ()
    external_keys: frozenset[str] = frozenset()
    functions: tuple[str, ...] = ()
    ir_version: int | None = None


def facts_of(graph: Graph) -> GraphFacts:
    """What there is to know of a graph, its weights apart."""
    from porting.converters.passes.ascend.lower_opset import obstacles

    model = graph.model
    opsets = _opsets(model.opset_imports)
    named = frozenset(d.value for v in model.graph.inputs for d in v.shape or () if not isinstance(d, int) and d.value)
    reading = _Reading(opsets, {}, Sizes(named=named), bool(obstacles(model)))
    nodes = _with_reach(list(reading.nodes(model.graph, ())), reading.sizes, model.graph.outputs)
    functions = tuple(f"{domain or 'ai.onnx'}::{name}" for domain, name, *_ in model.functions)
    inputs, outputs = (tuple(reading.value(v) for v in values) for values in (model.graph.inputs, model.graph.outputs))
    return GraphFacts(reading.opsets, nodes, inputs, outputs, frozenset(), functions, model.ir_version)


def _with_reach(nodes: Sequence[tuple[ir.Node, NodeFacts]], sizes: Sizes, outputs: Sequence[ir.Value]) -> tuple[NodeFacts, ...]:
    reached: dict[ir.Node, tuple[str, ...]] = {}
    for value in outputs:
        for maker in sizes.makers.get(value, ()):
            reached[maker] = (*reached.get(maker, ()), value.name or "")
    return tuple(replace(facts, sizes_outputs=reached[node]) if node in reached else facts for node, facts in nodes)


def _opsets(imports: Mapping[str, int]) -> dict[str, int]:
    return {"" if domain == "ai.onnx" else domain: version for domain, version in imports.items()}


@dataclass
class _Reading:
    """Values are described once, however many nodes read them."""

    opsets: Mapping[str, int]
    known: dict[ir.Value, ValueFacts]
    sizes: Sizes
    held: bool  # whether nodes keep the model from opset 18

    def nodes(self, body: ir.Graph, inside: tuple[str, ...]) -> Iterator[tuple[ir.Node, NodeFacts]]:
        self.sizes.enter(body)
        for node in body:
            inner = [facts for held in _bodies(node) for facts in self.nodes(held, (*inside, node.op_type))]
            yield node, self.node(node, inside)
            yield from inner

    def node(self, node: ir.Node, inside: tuple[str, ...]) -> NodeFacts:
        from porting.converters.passes.ascend.lower_opset import HIGHEST_OPSET, OBSTACLE

        domain = "" if node.domain == "ai.onnx" else node.domain
        reason = node.metadata_props.get(OBSTACLE, "")
        free = self.held and not reason and not domain
        return NodeFacts(
            node.name or "",
            node.op_type,
            domain,
            HIGHEST_OPSET if free else self.opsets.get(domain, 0),
            tuple(None if v is None else self.value(v) for v in node.inputs),
            tuple(self.value(v) for v in node.outputs),
            {a.name: _attribute(a, node) for a in node.attributes.values() if not a.is_ref()},
            inside,
            self.sizes.follow(node),
            reason,
        )

    def value(self, value: ir.Value) -> ValueFacts:
        found = self.known.get(value)
        if found is None:
            tensor = _tensor(value)
            shape = value.shape if value.shape is not None else getattr(tensor, "shape", None)
            found = self.known[value] = ValueFacts(
                value.name or "",
                _dtype(value, tensor),
                None if shape is None else tuple(d if isinstance(d, int) else d.value for d in shape),
                _small(tensor),
                tensor is not None,
                bool(value.uses()) or value.is_graph_output(),
            )
        return found


def _tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The numbers of a value that are known, also of a graph input that has a default: Ascend's parser takes it for a constant."""
    if value.const_value is not None:
        return value.const_value
    node = value.producer()
    if node is None or (node.op_type, node.domain, len(node.outputs), len(node.attributes)) != ("Constant", "", 1, 1):
        return None
    import onnx_ir as ir

    return ir.convenience.get_const_tensor(value)


def _dtype(value: ir.Value, tensor: ir.TensorProtocol | None) -> str | None:
    import onnx_ir as ir

    if value.type is None:
        return None if tensor is None else _name(tensor.dtype)
    name = _name(value.type.dtype)
    wrapper = {ir.SequenceType: "sequence", ir.OptionalType: "optional", ir.SparseTensorType: "sparse"}.get(type(value.type))
    return name if wrapper is None else f"{wrapper}({name})"


def _name(dtype: ir.DataType) -> str | None:
    if dtype.name in ("UNDEFINED", "STRING"):
        return {"UNDEFINED": None, "STRING": "string"}[dtype.name]
    return dtype.numpy().name


def _small(tensor: ir.TensorProtocol | None) -> np.ndarray | None:
    import onnx_ir as ir

    if tensor is None or tensor.dtype == ir.DataType.STRING:
        return None
    elements = math.prod(d if isinstance(d, int) else SMALL + 1 for d in tensor.shape)
    lies_outside = isinstance(tensor, (ir.LazyTensor, ir.ExternalTensor)) and not tensor.dtype.is_integer()
    if elements > (SMALL_FLOATS if lies_outside else SMALL):
        return None
    return tensor.numpy()


def _attribute(attribute: ir.Attr, node: ir.Node) -> Any:
    import onnx_ir as ir

    kind = attribute.type
    if kind == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return ValueFacts(tensor.name or "", _name(tensor.dtype), tuple(tensor.shape), _small(tensor), True)  # type: ignore[arg-type]
    if kind == ir.AttributeType.GRAPH:
        return _body(attribute.as_graph())
    if kind in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
        return attribute.value
    if kind in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return tuple(attribute.value)
    return kind.name.lower()


def _bodies(node: ir.Node) -> Sequence[ir.Graph]:
    import onnx_ir as ir

    return [a.as_graph() for a in node.attributes.values() if not a.is_ref() and a.type == ir.AttributeType.GRAPH]


def _body(body: ir.Graph) -> BodyFacts:
    own = {*body.inputs, *body.initializers.values(), *(v for node in body for v in node.outputs)}
    here = {v for node in body for v in node.inputs if v is not None} - own
    deeper = {v for node in body for inner in _bodies(node) for v in _read_in(inner)} - own - here
    return BodyFacts(
        tuple(str(v.name) for v in body.outputs if v not in own),
        tuple(sorted(str(v.name) for v in deeper)),
        tuple(n for n, v in body.initializers.items() if v.const_value is not None and v.const_value.nbytes > OUTSIDE_BYTES),
    )


def _read_in(body: ir.Graph) -> set[ir.Value]:
    """What the nodes of a body and of those inside it read and it does not make itself."""
    own = {*body.inputs, *body.initializers.values(), *(v for node in body for v in node.outputs)}
    read = {v for node in body for v in node.inputs if v is not None} | set(body.outputs)
    return (read | {v for node in body for inner in _bodies(node) for v in _read_in(inner)}) - own
