"""Programs as ONNX: making one from a file or bytes, and reading its graph without its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx

from porting.dtypes import STRING
from porting.errors import InputError
from porting.types import ANY_SHAPE, Program, StateSpec, TensorSpec

_NAMES: dict[int, str] = {  # onnx element type -> numpy's or ml_dtypes' name
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
    onnx.TensorProto.FLOAT8E5M2: "float8_e5m2",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT16: "int16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT64: "uint64",
    onnx.TensorProto.UINT32: "uint32",
    onnx.TensorProto.UINT16: "uint16",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.BOOL: "bool",
}
ELEMENT_TYPES = {name: element_type for element_type, name in _NAMES.items()}


def program_from_onnx(
    model: str | Path | bytes,
    *,
    state: StateSpec | None = None,
    defaults: Mapping[str, int | float] | None = None,
    min_runtime: Mapping[str, str] | None = None,
) -> Program:
    """A program from any ONNX model; inputs and outputs are read from its graph.

    model:  path of a file (external data beside or below it), or the bytes of a self-contained one
    raises: InputError for a file that is missing, no ONNX, or has an input or output that is no tensor of a known dtype and no
            sequence of such (maps, optionals, sparse tensors)
    """
    program = Program(model if isinstance(model, bytes) else Path(model), (), ())
    graph = _typed(read_model(program)).graph
    initial = {tensor.name for tensor in graph.initializer}
    return Program(
        program.model,
        tuple(_spec(value) for value in graph.input if value.name not in initial),
        tuple(_spec(value) for value in graph.output),
        state or StateSpec(),
        defaults or {},
        min_runtime or {},
    )


def read_model(program: Program) -> onnx.ModelProto:
    """The model of a program; external data stays where it is.

    raises: InputError for a file that is missing or no ONNX, and for bytes that are not self-contained: what a relative path
            in them would point to depends on the working directory
    """
    where = "a model in memory" if isinstance(program.model, bytes) else str(program.model)
    try:
        data = program.model if isinstance(program.model, bytes) else program.model.read_bytes()
        model = onnx.load_model_from_string(data)
    except OSError as error:
        raise InputError(f"the model cannot be read: {error.strerror or error}", where=where) from error
    except Exception as error:  # protobuf's DecodeError; its class differs between protobuf's implementations
        raise InputError("this is no ONNX model", where=where) from error
    if not model.graph.node and not model.graph.output:
        raise InputError("this is no ONNX model: it has no graph", where=where)
    if isinstance(program.model, bytes):
        outside = [tensor.name for tensor in _tensors(model.graph) if tensor.data_location == onnx.TensorProto.EXTERNAL]
        if outside:
            raise InputError(
                f"a model in memory keeps {len(outside)} tensors in other files, {outside[0]!r} first",
                where=where,
                next="give the path of the model instead",
            )
    return model


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of a control-flow node (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def node_label(node: onnx.NodeProto) -> str:
    """The node's name, or its first output where it has none."""
    return node.name or (node.output[0] if node.output else node.op_type)


def _tensors(graph: onnx.GraphProto) -> Iterable[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from (a.t for a in node.attribute if a.type == onnx.AttributeProto.TENSOR)
        for body in subgraphs(node):
            yield from _tensors(body)


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types of its outputs, which old exporters leave out and onnxruntime infers."""
    if all(value.type.WhichOneof("value") and _has_rank(value.type) for value in model.graph.output):
        return model
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception:  # too large to copy, or inconsistent: what is still missing is named by `_spec`
        return model


def _has_rank(kind: onnx.TypeProto) -> bool:
    return kind.WhichOneof("value") != "tensor_type" or kind.tensor_type.HasField("shape")


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    where = "model inputs and outputs"
    kind = value.type.WhichOneof("value")
    sequence = kind == "sequence_type"
    inner = value.type.sequence_type.elem_type if sequence else value.type
    inner_kind = inner.WhichOneof("value")
    if kind is None or inner_kind is None:
        raise InputError(f"{value.name!r} has no type", where=where, next="run ONNX shape inference")
    if inner_kind != "tensor_type":
        shown = inner_kind.removesuffix("_type").replace("_", " ")
        raise InputError(
            f"{value.name!r} is of type {f'sequence of {shown}' if sequence else shown}",
            where=where,
            next="tensors and sequences of tensors can be fed and returned; cut the graph before it (a classifier's ZipMap)",
        )
    tensor = inner.tensor_type
    if tensor.elem_type not in _NAMES and tensor.elem_type != onnx.TensorProto.STRING:
        known = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
        raise InputError(
            f"{value.name!r} has the dtype {known.get(tensor.elem_type, tensor.elem_type)}",
            where=where,
            next=f"cast it in the graph; known: {', '.join(sorted([*ELEMENT_TYPES, STRING]))}",
        )
    name = _NAMES.get(tensor.elem_type, STRING)
    if not tensor.HasField("shape"):
        return TensorSpec(value.name, f"sequence({name})" if sequence else name, () if sequence else ANY_SHAPE)
    return TensorSpec(value.name, f"sequence({name})" if sequence else name, tuple(_dim(d) for d in tensor.shape.dim))


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """Old exporters write -1 for a size that is not known; onnxruntime takes it so."""
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param or None
