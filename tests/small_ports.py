"""Small checkpoints and graphs for tests of the port on disk, and children that can be killed."""

from __future__ import annotations

import json
import os
import pickle
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from porting.converters.checkpoints.folder import FolderCheckpoint
from porting.converters.passes.quantize_linear import INT4, quantized_stream
from porting.port_folder import Port
from porting.port_writer import Source, write_port
from porting.types import Graph
from porting.weights import Stream, source_stream, tensors_of

T = TypeVar("T")

SPELLINGS = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int64): "I64",
}
MANIFEST = {
    "kind": "test",
    "architecture": "Test",
    "config": {},
    "target": "cpu",
    "precision": "fp32",
    "tensors": {},
    "passes": [],
    "min_runtime": {"onnxruntime": "1.28"},
}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A safetensors file, header padded to 8 bytes as the package does."""
    header, end = {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": SPELLINGS[array.dtype], "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in tensors.values()))


def random_tensors(sizes: Mapping[str, tuple[int, ...]], dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal random numbers."""
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape)).astype(dtype) for name, shape in sizes.items()}


def write_folder(folder: Path, tensors: Mapping[str, np.ndarray], name: str = "model.safetensors") -> Path:
    """A Hugging Face folder with one file of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"architectures": ["Test"]}')
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    write_safetensors(folder / name, tensors)
    return folder


def graph_of(streams: list[Stream]) -> Graph:
    """A graph that gives every weight back: output `out.NAME` = Identity(NAME)."""
    values, nodes, outputs = [], [], []
    for stream in streams:
        for tensor in tensors_of(stream):
            value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
            node = ir.node("Identity", [value])
            node.outputs[0].name = f"out.{tensor.name}"
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(tensor.dtype), tensor.shape
            values.append(value)
            nodes.append(node)
            outputs.append(node.outputs[0])
    body = ir.Graph([], outputs, nodes=nodes, initializers=values, opset_imports={"": 21}, name="weights")
    return Graph(ir.Model(body, ir_version=10))


def convert_folder(
    folder: Path, destination: Path, *, quantize: bool = False, dtype: str = "float32", manifest: Any = None, **options: Any
) -> Port:
    """`write_port` of all tensors of a folder; `quantize` makes three outputs of every matrix."""
    with FolderCheckpoint(folder) as checkpoint:
        streams = [source_stream(checkpoint, name, dtype) for name in checkpoint.tensors]
        if quantize:
            streams = [quantized_stream(s, INT4) if len(s.outputs[0].shape) == 2 else s for s in streams]
        source = Source(checkpoint.format, tuple(checkpoint.files), dict(checkpoint.side_files()))
        return write_port(graph_of(streams), destination, {**MANIFEST, **(manifest or {})}, source, **options)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def start_child(function: Callable[[], Any]) -> int:
    """Fork a child that runs `function` and exits with 0, or 1 when it raised. Returns its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def in_child(function: Callable[[], T]) -> T:
    """The result of `function()`, or its exception, from a forked child: what it does to its process stays there."""
    reader, writer = os.pipe()

    def run() -> None:
        try:
            outcome = (True, function())
        except BaseException as error:
            outcome = (False, error)
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(outcome, pipe)

    child = start_child(run)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    succeeded, value = pickle.loads(data)
    if succeeded:
        return value
    raise value
