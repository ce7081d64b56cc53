"""A port read back as a checkpoint: its weights under their upstream names, dequantised where the port holds codes.

This is how a port's fidelity is judged: the canonical fp32 graph is built again from what lies in the port, not from what was meant.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from porting.errors import PortError
from porting.port_folder import MODEL, Port
from porting.registry import load_architecture
from porting.types import StoredTensor
from porting.weights import Stream, dtype_of

from ..passes.quantize_linear import dequantize_rows

CODES, SCALES, POINTS = ".codes", ".scales", ".zero_points"
HEAD = "lm_head.weight"  # of an architecture that does not say otherwise


class PortCheckpoint:
    """The Checkpoint protocol over a port's folder."""

    format = "port"

    def __init__(self, port: Port) -> None:
        self.path = port.path
        self.config = dict(port.manifest["config"])
        self.files = [port.path / entry["path"] for entry in port.manifest["files"]]
        self._port = port
        model = ir.load(port.path / MODEL)
        self._raw = {
            name: value.const_value
            for name, value in model.graph.initializers.items()
            if isinstance(value.const_value, ir.ExternalTensor)
        }
        self._bits = {
            str(n.inputs[1].name).removesuffix(CODES): (n.attributes["bits"].as_int(), n.attributes["K"].as_int())
            for n in model.graph
            if n.op_type == "MatMulNBits" and n.inputs[1] is not None
        }
        self._codes = {name: name for name in self._bits}  # upstream name -> prefix of its codes
        head = getattr(load_architecture(str(port.manifest["architecture"])), "HEAD", HEAD)
        for name in set(self._bits) & set(self._raw):  # a tied head: the embedding is kept as it was, the head holds codes
            self._codes[head] = self._codes.pop(name)
            self.config["tie_word_embeddings"] = False
        self._folded = {n: np.asarray(v, np.float32) for n, v in port.manifest["tensors"].get("folded", {}).items()}
        plain = {*self._folded, *(n for n in self._raw if not n.endswith((CODES, SCALES, POINTS)))}
        self.tensors: Mapping[str, StoredTensor] = {name: self._stored(name) for name in sorted(plain | set(self._codes))}

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), float32, codes decoded by the operator's own definition."""
        if name in self._codes:
            held = self._codes[name]
            bits, n_in = self._bits[held]
            points = self._read(held + POINTS, start, stop) if held + POINTS in self._raw else None
            return dequantize_rows(
                self._read(held + CODES, start, stop), self._read(held + SCALES, start, stop), points, n_in, bits
            )
        return self._plain(name, start, stop)

    def error_in_half_steps(self, name: str, source: Stream) -> float:
        """The largest |held - source| of a tensor in halves of its code's step; of plain tensors 0 when equal, else infinity.

        A tied embedding is compared where it is kept plain, and its head where it is held as codes. A tensor that is not held at all, or
        in another shape, is infinitely far off.
        """
        plain = name in self._folded or name in self._raw
        coded = [shown for shown, held in self._codes.items() if held == name]
        shapes = [self.tensors[shown].shape for shown in [*([name] if plain else []), *coded]]
        if not shapes or any(shape != source.outputs[0].shape for shape in shapes):
            return float("inf")
        worst = 0.0
        for start, stop, (wanted,) in source.stripes():
            if plain and not np.array_equal(self._plain(name, start, stop), wanted):
                return float("inf")
            for shown in coded:
                error = np.abs(self.rows(shown, start, stop) - wanted)  # (rows, n_in)
                steps = self._read(name + SCALES, start, stop)  # (rows, blocks)
                half = np.repeat(steps / 2, self._block(name), axis=1)[:, : error.shape[1]]
                found = float((error / half).max())
                worst = found if not found <= worst else worst  # a NaN stays
        return worst

    def side_files(self) -> Mapping[str, bytes]:
        return {}

    def _plain(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._folded[name][start:stop] if name in self._folded else self._read(name, start, stop)

    def _block(self, held: str) -> int:
        codes = self._raw[held + CODES].shape.numpy()
        return codes[2] * 8 // self._bits[held][0]

    def _stored(self, name: str) -> StoredTensor:
        if name in self._codes:
            held = self._codes[name]
            bits, columns = self._bits[held]
            rows = self._raw[held + CODES].shape.numpy()[0]
            return StoredTensor(name, f"INT{bits}", (rows, columns), self.path, 0, 0, plain=False)
        if name in self._folded:
            return StoredTensor(name, "F32", self._folded[name].shape, self.path, 0, 0, plain=False)
        tensor = self._raw[name]
        shape = tensor.shape.numpy()
        plain = tensor.dtype == ir.DataType.FLOAT
        file = self.path / str(tensor.location)
        return StoredTensor(
            name, "F32" if plain else str(tensor.dtype), shape, file, tensor.offset or 0, tensor.length or 0, plain
        )

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        tensor = self._raw[name]
        shape = tensor.shape.numpy()
        dtype = dtype_of(tensor.dtype.numpy().name)
        row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        size = row * (stop - start) if shape else dtype.itemsize
        data = _pread(self.path / str(tensor.location), (tensor.offset or 0) + start * row, size)
        return np.frombuffer(data, dtype).reshape((stop - start, *shape[1:]) if shape else ())


def _pread(path: Path, offset: int, size: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(fd, size, offset)
    finally:
        os.close(fd)
    if len(data) != size:
        raise PortError(f"{path.name} ends at {offset + len(data)}, {offset + size} expected", where=str(path.parent))
    return data
