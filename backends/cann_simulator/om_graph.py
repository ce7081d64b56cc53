"""The graph of a compiled model while it is made: a message without its large weights, and those as arrays that nothing copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from porting.backends.cann_simulator.machine import Refused
from porting.backends.cann_simulator.om_file import ALIGNED, Om
from porting.onnx_facts import nodes_of

INLINE_BYTES = 8 << 10  # smaller tensors stay in the graph: rules and the inference of shapes read sizes, axes and bounds
PLACE = "om"  # where the graph says that its weights lie
CANNOT_LOAD = 500002  # GE failure; E10041 says what it is

Types = dict[str, "tuple[int, tuple[int, ...] | None]"]


@dataclass(eq=False)
class OmGraph:
    """
    proto:   the model; weights of the main graph above INLINE_BYTES are external data without numbers
    weights: those, by name
    external_keys: by which the file says where its weights lie
    """

    proto: onnx.ModelProto
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    external_keys: frozenset[str] = frozenset()

    def array(self, tensor: onnx.TensorProto) -> np.ndarray:
        return self.weights[tensor.name] if tensor.name in self.weights else numpy_helper.to_array(tensor)

    def constant(self, name: str) -> np.ndarray | None:
        """The numbers of a small initializer or of a Constant; None for anything else."""
        for tensor in self.proto.graph.initializer:
            if tensor.name == name and name not in self.weights:
                return numpy_helper.to_array(tensor)
        for _, node in nodes_of(self.proto.graph):
            if name in node.output and node.op_type == "Constant":
                values = [a.t for a in node.attribute if a.name == "value"]
                return numpy_helper.to_array(values[0]) if values else None
        return None

    def set_weight(self, name: str, array: np.ndarray) -> None:
        """Another array in the place of a weight."""
        place = next(i for i, t in enumerate(self.proto.graph.initializer) if t.name == name)
        if name in self.weights:
            self.weights[name] = array
            self.proto.graph.initializer[place].CopyFrom(_placeholder(name, array))
        else:
            self.proto.graph.initializer[place].CopyFrom(numpy_helper.from_array(array, name))

    def add_weight(self, name: str, array: np.ndarray) -> None:
        """A weight that the graph did not have."""
        large = array.nbytes > INLINE_BYTES
        if large:
            self.weights[name] = array
        self.proto.graph.initializer.append(_placeholder(name, array) if large else numpy_helper.from_array(array, name))

    def take_out(self) -> None:
        """Initializers of the main graph that are large become weights."""
        for tensor in self.proto.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type == TensorProto.STRING:
                continue
            if tensor.ByteSize() > INLINE_BYTES:
                self.weights[tensor.name] = array = numpy_helper.to_array(tensor)
                tensor.CopyFrom(_placeholder(tensor.name, array, tensor.data_type))

    def drop_unread(self) -> None:
        """Weights that no node reads any more."""
        _drop_unread(self.proto.graph)

    def packed(self) -> tuple[bytes, list[bytes | memoryview]]:
        """The graph that says where each weight lies, and the weights with what is between them."""
        made = onnx.ModelProto()
        made.CopyFrom(self.proto)
        pieces: list[bytes | memoryview] = []
        at = 0
        _drop_unread(made.graph)
        for tensor in made.graph.initializer:
            if tensor.name not in self.weights:
                continue
            array = np.ascontiguousarray(self.weights[tensor.name])
            _set_place(tensor, at, array.nbytes)
            pieces.append(memoryview(array.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
            gap = -array.nbytes % ALIGNED
            pieces += [bytes(gap)] if gap else []
            at += array.nbytes + gap
        return made.SerializeToString(deterministic=True), pieces


def om_graph(model: bytes | onnx.ModelProto, folder: Path | None = None) -> OmGraph:
    """
    folder: what the places of external data are relative to; None: there may be none
    raises: Refused, E10041, for what is no ONNX, and for weights that are not there
    """
    proto = model if isinstance(model, onnx.ModelProto) else _parsed(model)
    outside = [t for t in (*proto.graph.initializer, *_inner_tensors(proto.graph)) if t.data_location == TensorProto.EXTERNAL]
    made = OmGraph(proto, external_keys=frozenset(entry.key for tensor in outside for entry in tensor.external_data))
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            array = _from_file(tensor, folder)
            if array.nbytes <= INLINE_BYTES:
                tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), tensor.name))
            else:
                made.weights[tensor.name] = array
                tensor.CopyFrom(_placeholder(tensor.name, array, tensor.data_type))
    for tensor in _inner_tensors(proto.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(_from_file(tensor, folder)), tensor.name))
    try:
        made.take_out()
        for tensor in (*proto.graph.initializer, *_inner_tensors(proto.graph)):
            if tensor.name not in made.weights:
                numpy_helper.to_array(tensor)  # as many numbers as it says
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise Refused(CANNOT_LOAD, f"E10041: a tensor of the model is none: {str(error)[:200]}", True) from error
    _name_nodes(proto.graph)
    return made


def open_session(om: Om, threads: int = 0) -> tuple[Any, list[Any]]:
    """An onnxruntime session on the CPU that reads the weights where they lie, and what has to live as long as it.

    raises: whatever onnxruntime raises for a graph that it cannot run
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    proto = onnx.load_model_from_string(om.graph)
    names, values = [], []
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            names.append(tensor.name)
            values.append(onnxruntime.OrtValue.ortvalue_from_numpy(_view(tensor, om.weights)))
    if names:
        options.add_external_initializers(names, values)
    return onnxruntime.InferenceSession(om.graph, options, providers=["CPUExecutionProvider"]), values


def types_of(graph: OmGraph, opened: bool = True) -> Types:
    """Element type of every value that has one, and its shape where that is fixed.

    opened: whether onnxruntime is asked where onnx does not know
    """
    sized = _inferred(graph.proto)
    found: Types = {}
    _collect(sized.graph, found)
    untyped = [n for _, node in nodes_of(graph.proto.graph) for n in node.output if n and n not in found]
    if untyped and opened:
        found.update(_said_by_runtime(graph, [n for node in graph.proto.graph.node for n in node.output if n in set(untyped)]))
    return found


def set_shapes(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], names: str = "") -> None:
    """Give inputs a shape, -1 free; what is declared of other values is forgotten: it may be stale. names: of free dimensions"""
    for value in proto.graph.input:
        if value.name in shapes:
            shape = value.type.tensor_type.shape
            shape.Clear()
            value.type.tensor_type.shape.SetInParent()
            for axis, size in enumerate(shapes[value.name]):
                dim = shape.dim.add()
                if size >= 0:
                    dim.dim_value = size
                else:
                    dim.dim_param = names or f"{value.name}_{axis}"


def forget_shapes(graph: onnx.GraphProto) -> None:
    """What a file says of its inner values and outputs is worked out anew, types of what onnx does not know apart."""
    del graph.value_info[:]
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def output_dims(
    proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], strict: bool = False
) -> tuple[tuple[int, ...], ...]:
    """Dims of the outputs for inputs of these shapes, -1 where they are not known; (-1,) where the rank is not. raises: onnx's own errors"""
    sized = onnx.ModelProto()
    sized.CopyFrom(proto)
    set_shapes(sized, shapes)
    forget_shapes(sized.graph)
    for node in sized.graph.node:  # onnx's inference makes nothing of axes that are left out
        if node.op_type == "MeanVarianceNormalization" and not node.attribute:
            node.attribute.append(onnx.helper.make_attribute("axes", [0, 2, 3]))
    if strict:  # apart: onnx fails where the numbers that it follows are no vector
        onnx.shape_inference.infer_shapes(sized, strict_mode=True)
    made = onnx.shape_inference.infer_shapes(sized, data_prop=True)
    return tuple(_dims(value) for value in made.graph.output)


# --- inside -------------------------------------------------------------------------------------------------------


def _parsed(model: bytes) -> onnx.ModelProto:
    try:
        proto = onnx.load_model_from_string(model)
    except Exception as error:  # protobuf's DecodeError; its class differs between protobuf's implementations
        raise Refused(CANNOT_LOAD, "E10041: the model cannot be loaded: this is no ONNX", True) from error
    if not proto.graph.node and not proto.graph.output:
        raise Refused(CANNOT_LOAD, "E16004: the model has no graph", True)
    return proto


def _from_file(tensor: onnx.TensorProto, folder: Path | None) -> np.ndarray:
    place = {entry.key: entry.value for entry in tensor.external_data}
    missing = f"E10041: the weight {tensor.name[:200]!r} lies in {place.get('location', 'no file')[:200]!r}"
    if folder is None:
        raise Refused(CANNOT_LOAD, f"{missing}, and a model in memory has no files beside it", True)
    path = (folder / place.get("location", "")).resolve()
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    shape = tuple(tensor.dims)
    try:
        if folder.resolve() not in path.parents:
            raise ValueError("it leaves the folder of the model")
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", int(place.get("offset", 0)), shape)
    except (OSError, ValueError) as error:
        raise Refused(CANNOT_LOAD, f"{missing}: {str(error)[:200]}", True) from error


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {name for _, node in nodes_of(graph) for name in node.input} | {value.name for value in graph.output}
    read |= {value.name for _, node in nodes_of(graph) for a in node.attribute for value in a.g.output}
    for place in reversed([i for i, tensor in enumerate(graph.initializer) if tensor.name not in read]):
        del graph.initializer[place]


def _placeholder(name: str, array: np.ndarray, kind: int = 0) -> onnx.TensorProto:
    kind = kind or onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    made = onnx.TensorProto(name=name, data_type=kind, dims=array.shape)
    _set_place(made, 0, array.nbytes)
    return made


def _set_place(tensor: onnx.TensorProto, offset: int, nbytes: int) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", PLACE), ("offset", offset), ("length", nbytes)):
        tensor.external_data.add(key=key, value=str(value))


def _view(tensor: onnx.TensorProto, weights: memoryview) -> np.ndarray:
    place = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(place["offset"]), int(place["length"])
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return np.frombuffer(weights[offset : offset + length], dtype).reshape(tuple(tensor.dims))


def _inner_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Tensors in attributes and in the bodies of control flow."""
    for body, node in nodes_of(graph):
        yield from (a.t for a in node.attribute if a.type == onnx.AttributeProto.TENSOR)
        if body is not graph:
            yield from body.initializer


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Nodes without a name get one: rules and files of exceptions speak of nodes by name."""
    taken = {node.name for _, node in nodes_of(graph)}
    for _, node in nodes_of(graph):
        if not node.name:
            wanted = next((name for name in node.output if name), node.op_type)
            while wanted in taken:
                wanted = f"{wanted}_"
            taken.add(wanted)
            node.name = wanted


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # a graph that onnx cannot infer through: what is written in it has to do
        return proto


def _collect(graph: onnx.GraphProto, found: Types) -> None:
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and tensor.elem_type:
            dims = _dims(value)
            found[value.name] = (tensor.elem_type, dims if tensor.HasField("shape") and -1 not in dims else None)
        elif value.type.WhichOneof("value") not in (None, "tensor_type"):
            found[value.name] = (0, None)  # a sequence or the like: no numbers of its own
    for tensor in graph.initializer:
        found[tensor.name] = (tensor.data_type, tuple(tensor.dims))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _collect(attribute.g, found)


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    if not value.type.tensor_type.HasField("shape"):
        return (-1,)
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)


def _said_by_runtime(graph: OmGraph, names: list[str]) -> Types:
    asked = OmGraph(onnx.ModelProto(), graph.weights)
    asked.proto.CopyFrom(graph.proto)
    known = {value.name for value in asked.proto.graph.output}
    asked.proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    packed, pieces = asked.packed()
    try:
        session, _ = open_session(Om(None, packed, memoryview(b"".join(pieces))))  # type: ignore[arg-type]
    except Exception:  # it cannot give some inner value out; the graph itself may still run
        return {}
    said = {"float": TensorProto.FLOAT, "double": TensorProto.DOUBLE}
    found: Types = {}
    for value in session.get_outputs():
        if value.name in names and value.type.startswith("tensor("):
            element = value.type[len("tensor(") : -1]
            found[value.name] = (said.get(element) or TensorProto.DataType.Value(element.upper()), None)
    return found
