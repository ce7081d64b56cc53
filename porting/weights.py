"""Weights that are produced a row stripe at a time, so that no tensor has to be in memory whole.

A `Stream` turns rows of the checkpoint into rows of one or more tensors of the graph (one for a plain weight, three for a
quantised one: codes, scales, zero points). `tensors_of` gives those outputs as onnx-ir tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from porting.dtypes import dtype_of
from porting.errors import CheckpointError
from porting.types import StoredTensor, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from porting.types import Checkpoint

STRIPE_BYTES = 8 << 20  # of output; large enough for full disk speed, small beside any tensor that matters; tests lower it

# safetensors spelling -> numpy dtype; block formats of GGUF decode to float32
NUMPY_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


class Stream:
    """Rows in, rows of one or more output tensors out.

    outputs:  one spec per tensor; all share axis 0 up to a constant factor: rows [a, b) of the stream are the bytes
              [a * row_bytes, b * row_bytes) of each output
    rows:     number of rows; a row is the least that has to fit in memory
    sources:  checkpoint tensors that are consumed
    stored:   where the only output already lies on disk byte for byte, if it does
    make:     (start, stop) -> one array per output; called through the method of that name, which checks what it gives
    infinite: whether Inf is a value like any other, as in the mask that an exporter stored; a trained weight is never infinite
    """

    def __init__(
        self,
        outputs: Sequence[TensorSpec],
        rows: int,
        sources: Sequence[str],
        make: Callable[[int, int], Sequence[np.ndarray]],
        stored: StoredTensor | None = None,
        infinite: bool = False,
    ) -> None:
        self.outputs = tuple(outputs)
        self.rows = rows
        self.sources = tuple(sources)
        self.stored = stored
        self.infinite = infinite
        self._make = make

    def make(self, start: int, stop: int) -> Sequence[np.ndarray]:
        """Rows [start, stop) of every output, in C order. Every weight passes here, linked or written, raw or quantised.

        raises: CheckpointError naming the tensor and the position of the first NaN or Inf
        """
        arrays = self._make(start, stop)
        for spec, array, row_bytes in zip(self.outputs, arrays, self.row_bytes(), strict=True):
            if array.dtype.name != spec.dtype or array.nbytes != row_bytes * (stop - start) or not array.flags.c_contiguous:
                raise AssertionError(f"rows [{start}, {stop}) of {spec} came as {array.dtype}{list(array.shape)}")
            self._require_finite(spec, array, start)
        return arrays

    def row_bytes(self) -> list[int]:
        """Bytes of one row of each output."""
        return [nbytes_of(spec) // max(self.rows, 1) for spec in self.outputs]

    def stripes(self, start: int = 0) -> Iterator[tuple[int, int, Sequence[np.ndarray]]]:
        """(first row, row after the last, one array per output), in order, from row `start` on."""
        step = max(1, STRIPE_BYTES // max(sum(self.row_bytes()), 1))
        for first in range(start, self.rows, step):
            stop = min(first + step, self.rows)
            yield first, stop, self.make(first, stop)

    def _require_finite(self, spec: TensorSpec, array: np.ndarray, start: int) -> None:
        if array.dtype.kind in "biu":
            return
        finite = is_finite(array)
        if self.infinite and not finite.all():
            finite = ~np.isnan(array)
        if finite.all():
            return
        bad = np.unravel_index(int(np.argmin(finite)), array.shape)
        position = [start + int(bad[0]), *(int(i) for i in bad[1:])] if bad else []
        raise CheckpointError(
            f"tensor {spec.name!r} holds {array[bad]} at {position}",
            where=", ".join(self.sources),
            next="the checkpoint is damaged, training diverged, or a value does not fit the precision",
        )


# all exponent bits set: NaN or Inf. numpy's and ml_dtypes' own isfinite are 4 to 5 times slower on 16 bits
EXPONENT_BITS = {"float16": 0x7C00, "bfloat16": 0x7F80}


def is_finite(array: np.ndarray) -> np.ndarray:
    """Which elements are neither NaN nor Inf; bool, of the array's shape. Floats of any width."""
    exponent = EXPONENT_BITS.get(array.dtype.name)
    if exponent is None:
        return np.isfinite(array)
    return (array.view(np.uint16) & 0x7FFF) < exponent


def nbytes_of(spec: TensorSpec) -> int:
    """Bytes of a tensor whose shape is all ints."""
    return math.prod(int(d) for d in spec.shape if d is not None) * np.dtype(dtype_of(spec.dtype)).itemsize


def source_stream(checkpoint: Checkpoint, name: str, dtype: str = "float32") -> Stream:
    """A checkpoint tensor as it is, decoded to `dtype`; `stored` is set when no byte has to change.

    raises: KeyError when the checkpoint has no such tensor
    """
    tensor = checkpoint.tensors[name]
    shape = tensor.shape or ()
    target = dtype_of(dtype)
    same = tensor.plain and NUMPY_DTYPES.get(tensor.dtype) == target

    def make(start: int, stop: int) -> tuple[np.ndarray]:
        with np.errstate(over="ignore"):  # Stream.make refuses the Inf, with its place
            return (np.asarray(checkpoint.rows(name, start, stop).astype(target, copy=False), order="C"),)

    rows = shape[0] if shape else 1
    return Stream([TensorSpec(name, dtype, shape)], rows, [name], make, tensor if same else None)


def array_stream(name: str, array: np.ndarray) -> Stream:
    """An array in memory that a pass has made, as a stream, so that it is written outside the graph. Inf is allowed."""
    whole: np.ndarray = np.ascontiguousarray(array).reshape(array.shape)  # ascontiguousarray makes a vector of a scalar

    def make(start: int, stop: int) -> tuple[np.ndarray]:
        return (whole[start:stop] if array.ndim else whole,)

    rows = len(array) if array.ndim else 1
    return Stream([TensorSpec(name, whole.dtype.name, whole.shape)], rows, [], make, infinite=True)


def tensors_of(stream: Stream) -> list[ir.LazyTensor]:
    """The outputs of a stream as onnx-ir tensors; `stream_of` finds the way back. Their values are read only when asked for."""
    import onnx_ir as ir  # half a second, which running a port does not need

    def tensor(index: int, spec: TensorSpec) -> ir.LazyTensor:
        def materialise() -> ir.Tensor:
            parts = [arrays[index] for _, _, arrays in stream.stripes()]
            shape = [int(d) for d in spec.shape if d is not None]
            whole = np.concatenate([p.reshape(-1) for p in parts]) if parts else np.empty(0, dtype_of(spec.dtype))
            return ir.Tensor(whole.reshape(shape), name=spec.name)

        lazy = ir.LazyTensor(
            materialise,
            dtype=ir.DataType.from_numpy(dtype_of(spec.dtype)),
            shape=ir.Shape(spec.shape),
            name=spec.name,
            cache=False,
        )
        lazy.meta["stream"] = (stream, index)
        return lazy

    return [tensor(i, spec) for i, spec in enumerate(stream.outputs)]


def stream_of(tensor: ir.TensorProtocol | None) -> tuple[Stream, int] | None:
    """The stream that a tensor comes from and its index there; None for an ordinary tensor."""
    meta = getattr(tensor, "meta", None)
    return meta.get("stream") if meta is not None else None
