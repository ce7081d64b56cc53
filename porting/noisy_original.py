"""A graph whose operators err at random by the size of their roundings, ready to run: see numerics/graph_noise.py."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from porting.backends.onnx_program import ELEMENT_TYPES, subgraphs
from porting.cuts import Cut
from porting.errors import PortingError
from porting.numerics.graph_noise import DRAW, summed, with_noise
from porting.onnx_facts import force, nodes_of
from porting.original_onnx import is_plain, open_untouched, run_as_values, spec_of

_INLINE_BYTES = 4096  # larger initializers are not needed to infer shapes
_THEIR_NAMES = {"float": "float32", "double": "float64"}

Types = dict[str, tuple[int, "tuple[int, ...] | None"]]


class NoisyOriginal:
    """An .onnx file with random errors after every operator that rounds; every run draws anew, the same in every process."""

    def __init__(
        self, path: Path, feeds: Mapping[str, Any], forced: Mapping[str, bool] | None = None, cut: Cut | None = None
    ) -> None:
        """
        feeds:  whose shapes say how long the sums are
        cut:    as OnnxOriginal takes it
        raises: InputError, RuntimeFailed, OutOfResources
        """
        from porting.converters.checkpoints.onnx_file import read_proto, weights_folder

        proto = read_proto(path, cut)
        force(proto.graph, forced or {})
        folder = weights_folder(path)
        noisy = with_noise(proto, types_of(proto, folder, feeds))
        self._session, _ = open_untouched(noisy.SerializeToString(), folder)
        self._counts = any(tensor.name == DRAW for tensor in noisy.graph.initializer)
        self._draws = 0
        self._inputs = tuple(spec_of(value) for value in self._session.get_inputs())
        self._outputs = tuple(spec_of(value) for value in self._session.get_outputs())
        self._plain = is_plain((*self._inputs, *self._outputs))

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        draw = {DRAW: np.asarray(self._draws)} if self._counts else {}
        self._draws += 1
        names = [spec.name for spec in self._outputs]
        if self._plain:
            return dict(zip(names, self._session.run(names, {**feeds, **draw}), strict=True))
        return dict(zip(names, run_as_values(self._session, self._inputs, self._outputs, feeds, draw), strict=True))


def types_of(model: onnx.ModelProto, folder: Path, feeds: Mapping[str, Any]) -> Types:
    """Element type and, where it can be inferred, shape of every value, when inputs have the shapes of `feeds`.

    onnxruntime says it for the main graph, its own operators included; onnx for the bodies of control flow.
    """
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    for value in sized.graph.input:
        if value.name in feeds and value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.Clear()
            for size in np.shape(feeds[value.name]):
                value.type.tensor_type.shape.dim.add(dim_value=size)
    found = _said_by_onnxruntime(sized, folder)
    _without_weights(sized.graph)
    with suppress(Exception):  # a graph that onnx cannot infer through: what is written in it has to do
        sized = onnx.shape_inference.infer_shapes(sized, data_prop=True)
    _collect(sized.graph, found)
    return found


def _said_by_onnxruntime(model: onnx.ModelProto, folder: Path) -> Types:
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    known = {value.name for value in asked.graph.output}
    for name in {name: None for node in asked.graph.node for name in node.output if name and name not in known}:
        asked.graph.output.append(onnx.ValueInfoProto(name=name))
    try:
        session, _ = open_untouched(asked.SerializeToString(), folder)
    except PortingError:  # it cannot give some inner value out; the graph itself may still run
        return {}
    found: Types = {}
    for value in session.get_outputs():
        if value.type.startswith("tensor("):
            element = value.type[len("tensor(") : -1]
            shape = tuple(d for d in value.shape if isinstance(d, int))
            kind = ELEMENT_TYPES.get(_THEIR_NAMES.get(element, element), 0)
            found[value.name] = (kind, shape if len(shape) == len(value.shape) else None)
    return found


def _without_weights(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        if tensor.ByteSize() > _INLINE_BYTES:
            for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"):
                tensor.ClearField(name)  # type: ignore[arg-type]
    for node in graph.node:
        for body in subgraphs(node):
            _without_weights(body)


def _collect(graph: onnx.GraphProto, found: Types) -> None:
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and tensor.elem_type:
            shape = tuple(d.dim_value for d in tensor.shape.dim if d.HasField("dim_value"))
            whole = tensor.HasField("shape") and len(shape) == len(tensor.shape.dim)
            if found.get(value.name, (0, None))[1] is None:
                found[value.name] = (tensor.elem_type, shape if whole else None)
    for tensor in graph.initializer:
        found[tensor.name] = (tensor.data_type, tuple(tensor.dims))
    for node in graph.node:
        for body in subgraphs(node):
            _collect(body, found)


def lengths_of(path: Path, feeds: Mapping[str, Any]) -> list[int]:
    """How many terms each operator of a file sums, of those that sum."""
    from porting.converters.checkpoints.onnx_file import read_proto, weights_folder

    proto = read_proto(path)
    types = types_of(proto, weights_folder(path), feeds)
    shapes = {name: shape for name, (_, shape) in types.items() if shape is not None}
    return [n for _, node in nodes_of(proto.graph) if (n := summed(node, shapes)) > 1]
