"""Small .onnx files for tests, valid and broken, and what a port of one has to hold."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import porting
from porting.converters.checkpoints.onnx_file import OnnxFile
from porting.errors import PortingError
from porting.port_writer import Source, write_port

node = helper.make_node
MANIFEST: dict[str, Any] = {"kind": "graph", "architecture": "", "target": "cpu", "config": {}, "tensors": {}, "passes": []}
MANIFEST |= {"precision": "fp32", "min_runtime": {}}
BIG = (40, 30)  # float32: 4,800 bytes, above INLINE_BYTES


def value(name: str, shape: Sequence[Any] | None = (2, 3), dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def raw_dims(name: str, dims: Sequence[Any]) -> onnx.ValueInfoProto:
    """Dimensions as they are given: helper.make_tensor_value_info corrects them."""
    made = value(name, None)
    made.type.tensor_type.shape.SetInParent()
    for dim in dims:
        added = made.type.tensor_type.shape.dim.add()
        if isinstance(dim, str):
            added.dim_param = dim
        elif dim is not None:
            added.dim_value = dim
    return made


def tensor(name: str, array: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def weight(name: str, shape: Sequence[int] = BIG, seed: int = 0) -> onnx.TensorProto:
    return tensor(name, np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32))


def external(name: str, location: str, shape: Sequence[int] = BIG, **place: Any) -> onnx.TensorProto:
    """A float32 tensor elsewhere."""
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, entry in {"location": location, **place}.items():
        made.external_data.add(key=key, value=str(entry))
    return made


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    tensors: Sequence[onnx.TensorProto] = (),
    opsets: Sequence[tuple[str, int]] = (("", 17),),
    ir_version: int = 8,
    functions: Sequence[onnx.FunctionProto] = (),
    **graph: Any,
) -> onnx.ModelProto:
    """x -> nodes -> y, both float32[2, 3] unless told."""
    body = helper.make_graph(nodes, "tiny", inputs or [value("x")], outputs or [value("y")], list(tensors), **graph)
    imports = [helper.make_opsetid(*entry) for entry in opsets]
    made = helper.make_model(body, opset_imports=imports, functions=functions, producer_name="hand")
    made.ir_version = ir_version
    return made


def relu(source: str = "x", target: str = "y", **more: Any) -> onnx.NodeProto:
    return node("Relu", [source], [target], **more)


def add_weight(**more: Any) -> onnx.ModelProto:
    """y = x + w, w above INLINE_BYTES."""
    more.setdefault("tensors", [weight("w")])
    return model([node("Add", ["x", "w"], ["y"])], [value("x", BIG)], [value("y", BIG)], **more)


def branch(nodes: Sequence[onnx.NodeProto], output: str, tensors: Sequence[onnx.TensorProto] = ()) -> onnx.GraphProto:
    return helper.make_graph(nodes, "branch", [], [value(output, None)], list(tensors))


def choice(then: onnx.GraphProto, other: onnx.GraphProto | None = None, output: str = "y", **more: Any) -> onnx.NodeProto:
    return node("If", ["c"], [output], then_branch=then, else_branch=other or then, **more)


YES = tensor("c", np.array(True))


def saved(folder: Path, made: onnx.ModelProto | bytes, name: str = "m.onnx") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path


def feeds_of(source: OnnxFile, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {spec.name: [d if isinstance(d, int) else 3 for d in spec.shape] for spec in source.inputs}
    return {spec.name: rng.integers(-9, 9, shapes[spec.name]).astype(spec.dtype) for spec in source.inputs}


def plain_run(path: Path, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The untouched file in onnxruntime, as the backend would set it up."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_ported(path: Path, folder: Path, **options: Any) -> porting.port_folder.Port:
    """A port of the file, opened and run, gives what the file gives, bit for bit. Returns the port."""
    expected = plain_run(path, feeds_of(OnnxFile(path)))  # before: nothing that porting does may break the file
    with contextlib.closing(OnnxFile(path)) as source:
        destination = folder / "made.port"
        port = write_port(
            source.graph(), destination, MANIFEST, Source(source.format, tuple(source.files)), force=True, **options
        )
        feeds = feeds_of(source)
    with porting.load(destination, "cpu,optimization=off") as session:
        got = session.run(feeds)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, strict=True)
    again = plain_run(path, feeds)
    assert all(np.array_equal(again[name], expected[name]) for name in expected)
    return port


def refused(path: Path, kind: type[PortingError], *parts: str) -> PortingError:
    """The error of opening a file; every part is in what it says, and it says where and what next."""
    with pytest.raises(kind) as caught:
        OnnxFile(path).graph()
    assert type(caught.value) is kind and caught.value.exit_code == 2
    assert caught.value.where and caught.value.next
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    return caught.value


def changed(array: Any = None, **fields: Any) -> onnx.TensorProto:
    made = tensor("w", np.ones((2, 3), np.float32) if array is None else array)
    for key, entry in fields.items():
        if isinstance(entry, list):
            del getattr(made, key)[:]
            getattr(made, key).extend(entry)
        else:
            setattr(made, key, entry)
    return made
