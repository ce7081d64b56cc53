"""Work out the type and shape of every value anew, from the inputs of the graph alone.

What a file declares about its inner values is often stale (a batch of 1 that was made dynamic later, a graph cut in two), so a declared
shape of an inner value is never believed, only that of an input, which the runtime enforces; names of dimensions are kept, no pass here
concludes anything from them. A declared type is believed where the producer is unknown to ONNX (contrib operators).

Pools with ceil_mode below opset 22 have the windows that runtimes compute, see pool_windows.py.

An output keeps its declared dimensions unless they are shown to be wrong or can be told more exactly.

Weights are not read: all but small ones stand in the model that is inferred as names with a type and a shape.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx import shape_inference

from .pool_windows import write_counts
from .rewriting import ModelPass, bodies_in, bodies_of, shape_of

READ_BYTES = 1024  # a shape, axes or sizes that inference has to know the numbers of
KNOWN_DOMAINS = ("", "ai.onnx.ml")
DECLARED = "porting.declared"  # of an output, in its meta: whether a file's word is all that says one of its sizes
Dimensions = tuple[int | str | None, ...] | None  # None: the rank is not known
Described = tuple[ir.TypeProtocol | None, Dimensions]


@ModelPass
def infer_shapes(model: ir.Model) -> int:
    """Count: values whose type or shape is now said otherwise. Source: onnx.shape_inference, data propagation on."""
    before = {value: _described(value) for value in _inner_values(model)}
    outputs = {value: _described(value) for value in model.graph.outputs if value.producer() is not None}
    for value in before:
        value.shape = None
        node = value.producer()
        if node is None or node.domain in KNOWN_DOMAINS:
            value.type = value.type if value.is_graph_input() else None
    _infer_into(model)
    for value, (kind, declared) in before.items():
        value.type = value.type or kind
        value.shape = _named(value, declared)
    for output, (_, declared) in outputs.items():
        if output.uses():  # read inside too: a size that is declared wrongly would be folded into what comes after
            output.shape = _named(output, declared)
            continue
        found = _described(output)[1]
        merged = _merged(declared, found)
        output.shape = None if merged is None else ir.Shape(merged)
        node = output.producer()
        known = node is not None and node.domain in KNOWN_DOMAINS
        output.meta[DECLARED] = known and merged != found and any(isinstance(d, int) for d in merged or ())
    now = {value: _described(value) for value in (*before, *outputs)}
    return sum(1 for value, was in {**before, **outputs}.items() if not _same(was, now[value]))


def _inner_values(model: ir.Model) -> Iterator[ir.Value]:
    """Results of nodes and inputs of bodies: all whose shape is worked out."""
    for body in bodies_of(model):
        if body is not model.graph:
            yield from body.inputs
        for node in body:
            yield from (v for v in node.outputs if v.name)


def _described(value: ir.Value) -> Described:
    if value.shape is None:
        return value.type, None
    return value.type, tuple(d if isinstance(d, int) else d.value for d in value.shape)


def _same(a: Described, b: Described) -> bool:
    return a[1] == b[1] and (a[0] is b[0] or a[0] == b[0])


def _named(value: ir.Value, declared: Dimensions) -> ir.Shape | None:
    """The shape of an inner value, with the declared names of dimensions that are not known: a runtime fuses what is named alike."""
    if declared is None or (value.shape is None and not value.is_graph_input()):
        return value.shape
    if value.shape is None:  # of a loop's body: a runtime wants the rank of what it hands in
        return ir.Shape([None] * len(declared))
    if len(value.shape) != len(declared):
        return value.shape
    _, found = _described(value)
    return ir.Shape([said if d is None and isinstance(said, str) else d for d, said in zip(found or (), declared, strict=True)])


def _merged(declared: Dimensions, inferred: Dimensions) -> Dimensions:
    """Dimensions of an output: what is inferred, and the declared ones where nothing was."""
    if inferred is None or declared is None or len(declared) != len(inferred):
        return inferred if inferred is not None else declared
    return tuple(
        said if found is None or (isinstance(said, str) and isinstance(found, str)) else found
        for said, found in zip(declared, inferred, strict=True)
    )


def _infer_into(model: ir.Model) -> None:
    """Set types and shapes of what onnx finds. Leaves all as it is when it finds nothing for the whole model."""
    weights = [v for body in bodies_of(model) for v in body.initializers.values()]
    tensors = [v.const_value for v in weights]
    for value in weights:
        value.const_value = _stand_in(value)
    proto = ir.serde.serialize_model(model)
    for value, tensor in zip(weights, tensors, strict=True):
        value.const_value = tensor
    try:
        inferred = _inferred(proto)
        while write_counts(proto, inferred):  # a pool may read another
            inferred = _inferred(proto)
    except shape_inference.InferenceError:
        return
    symbols = {d.value for v in model.graph.inputs for d in v.shape or () if not isinstance(d, int)}
    _take_over(model.graph, inferred.graph, symbols)


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    return shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)


def _stand_in(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor itself when it is small, else one with its type and shape and no data."""
    tensor = value.const_value
    if tensor is None or tensor.nbytes <= READ_BYTES:
        return tensor
    return ir.ExternalTensor("-", 0, tensor.nbytes, tensor.dtype, shape=shape_of(tensor), name=str(value.name), base_dir="")


def _take_over(body: ir.Graph, proto: onnx.GraphProto, symbols: set[str | None]) -> None:
    found = {v.name: v.type for v in (*proto.input, *proto.value_info, *proto.output)}
    values = [v for node in body for v in node.outputs] + list(body.inputs)
    for value in values:
        inferred = found.get(str(value.name))
        if inferred is None or (value.is_graph_input() and value.shape is not None):
            continue
        kind, dims = _read(inferred, symbols)
        if kind is not None:
            value.type = kind
        if dims is not None:
            value.shape = ir.Shape(dims)
    for node, node_proto in zip(body, proto.node, strict=True):
        protos = [g for a in node_proto.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]
        for inner, inner_proto in zip(bodies_in(node), protos, strict=True):
            _take_over(inner, inner_proto, symbols)


def _read(inferred: onnx.TypeProto, symbols: set[str | None]) -> tuple[ir.TypeProtocol | None, list[int | str | None] | None]:
    """What onnx says of a value. It makes up symbols of its own, numbered by where they come, which are no names to keep."""
    if inferred.WhichOneof("value") != "tensor_type":
        shape = ir.serde.deserialize_type_proto_for_shape(inferred)
        dims = None if shape is None else [d if isinstance(d, int) else d.value for d in shape]
        kind: ir.TypeProtocol | None = ir.serde.deserialize_type_proto_for_type(inferred)
    else:  # most are: read here: serde takes several times as long
        tensor = inferred.tensor_type
        kind = ir.TensorType(ir.DataType(tensor.elem_type))
        dims = [_size(d) for d in tensor.shape.dim] if tensor.HasField("shape") else None
    return kind, None if dims is None else [d if isinstance(d, int) or d in symbols else None for d in dims]


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    which = dim.WhichOneof("value")
    return dim.dim_value if which == "dim_value" else dim.dim_param if which == "dim_param" else None
