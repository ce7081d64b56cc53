"""Programs as ONNX: making one from a file or bytes, and reading its graph without its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx

from porting.errors import InputError
from porting.types import Program, StateSpec, TensorSpec

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
    raises: InputError for a file that is missing, no ONNX, or has inputs that are no dense tensors of a known dtype
    """
    program = Program(model if isinstance(model, bytes) else Path(model), (), ())
    graph = read_model(program).graph
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


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type not in _NAMES:
        raise InputError(
            f"{value.name!r} is no dense tensor of a known dtype",
            where="model inputs and outputs",
            next="sequences, maps, strings and sub-byte types cannot be fed or returned",
        )
    if not tensor.HasField("shape"):
        raise InputError(f"{value.name!r} has no known rank", where="model inputs and outputs", next="run ONNX shape inference")
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)
    return TensorSpec(value.name, _NAMES[tensor.elem_type], shape)
