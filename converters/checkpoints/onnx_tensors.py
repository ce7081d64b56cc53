"""The tensors of an .onnx file: where their bytes lie, whether they fit dtype and shape, and how they enter a graph.

Large ones become streams that stay where they lie, in an external file or in the .onnx file itself. Embedded bytes begin anywhere:
onnxruntime 1.31 takes external data at any offset, with the same results and the same speed (Conv, depthwise Conv, MatMul, Gemm,
Gather, Add, fp16 MatMul, MatMulInteger and int64 at offsets 0, 64, 8, 4, 2, 1 and 3 past a multiple of 64, one thread, with and without
pre-packing: 8.3 to 8.7 and 9.3 to 10.0 ms, without order), so they are linked like any other and never copied for their alignment.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
import onnx_ir as ir

from porting.errors import CheckpointError, UnsupportedModel
from porting.external_data import MAX_NUMBER_DIGITS
from porting.types import StoredTensor, TensorSpec
from porting.weights import NUMPY_DTYPES, Stream, array_stream, tensors_of

from .files import OpenFiles, open_to_read, read_exactly, unreadable
from .onnx_wire import FETCH_AGAIN, INLINE_BYTES

MAX_NBYTES = 2**63 - 1
MAX_DENSE_BYTES = 256 << 20  # of all sparse tensors, which are written out in full; onnxruntime does the same
DATA_FIELDS = ("raw_data", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
# what ONNX says of where a tensor lies, and the weights in its own order that onnxruntime may write beside it, which nobody needs
PLACE_KEYS = frozenset({"location", "offset", "length", "checksum"})
PREPACKED = "prepacked_"
HASHED_AT_ONCE = 16 << 20
NEWER_THAN_IR_13 = ("FLOAT6E2M3", "FLOAT6E3M2")
SPELLINGS = {dtype: spelling for spelling, dtype in NUMPY_DTYPES.items()}
TAKE_AGAIN = "take the model again from where it came, with all its files"


class TensorFiles:
    """An .onnx file and the files beside it that hold its tensors.

    used:     every file that a tensor was found in, besides the .onnx file
    unlinked: those that get no second name. Where a tensor inside a node (in the body of an If, in an attribute) is external data,
              onnxruntime 1.31 refuses a file with several hard links, so a link would break the original: its files are copied
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.used: dict[Path, None] = {}
        self.unlinked: set[Path] = set()
        self._dense_bytes = 0
        self._found: dict[str, tuple[Path, int]] = {}
        self._open = OpenFiles()

    def read(self, stored: StoredTensor, start: int, stop: int) -> np.ndarray:
        """Bytes [start, stop) of a tensor, (stop - start,) uint8. raises: CheckpointError, UsageError after close()"""
        return self._open.read(stored.file, stored.offset + start, stop - start)

    def close(self) -> None:
        """Safe to call twice."""
        self._open.close()

    def stored(self, tensor: onnx.TensorProto, where: str) -> StoredTensor | None:
        """Where a tensor's bytes lie outside the message; None for one whose data is in it. Checked either way.

        raises: CheckpointError (dtype, shape and bytes do not fit, external data is missing, too short or outside the folder),
                UnsupportedModel (a dtype that only newer runtimes know)
        """
        where = f"{where}, tensor {tensor.name!r}"
        dtype = _dtype(tensor, where)
        if tensor.HasField("segment"):
            raise CheckpointError("a tensor is cut into segments, which onnxruntime does not read", where=where)
        if any(d < 0 for d in tensor.dims) or math.prod(d for d in tensor.dims if d) * 16 > MAX_NBYTES:
            raise CheckpointError(f"a tensor has the shape {_short(list(tensor.dims))}", where=where, next=FETCH_AGAIN)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return self._external(tensor, dtype, where)
        _require_data(tensor, dtype, where)
        del tensor.external_data[:]  # left over from when it was: onnxruntime goes by data_location
        return None

    def values(self, tensor: onnx.TensorProto, where: str) -> np.ndarray:
        """A small tensor as numpy, wherever it lies. raises: as `stored`"""
        stored = self.stored(tensor, where)
        return ir.serde.deserialize_tensor(tensor if stored is None else self._embedded(stored, tensor.data_type)).numpy()

    def require_inside(self, tensor: onnx.TensorProto, where: str) -> None:
        """`stored` for a tensor inside a node."""
        stored = self.stored(tensor, where)
        if stored is not None and stored.file in self.used:
            self.unlinked.add(stored.file)

    def in_graph(self, tensor: ir.TensorProtocol, name: str, inside: bool = False) -> ir.TensorProtocol:
        """A tensor of a checked model as the graph holds it: a stream above INLINE_BYTES, in memory below.

        inside: whether it is to stay inside a node, and so may not be linked (see `unlinked`)

        Strings, complex numbers and what takes less than a byte stay in the graph whatever their size: they have no stream.
        """
        dtype = tensor.dtype
        streamed = dtype != ir.DataType.STRING and not dtype.name.startswith("COMPLEX") and dtype.bitwidth >= 8
        if not isinstance(tensor, ir.ExternalTensor):
            if streamed and tensor.nbytes > INLINE_BYTES:
                return tensors_of(array_stream(name, tensor.numpy()))[0]
            return tensor
        shape = tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]
        file, _ = self._file(str(tensor.location), str(self.path))
        numpy_dtype, nbytes = dtype.numpy(), _nbytes(dtype, shape)
        spelling = SPELLINGS.get(numpy_dtype, numpy_dtype.name.upper())
        stored = StoredTensor(name, spelling, shape, file, tensor.offset or 0, nbytes)
        if streamed and nbytes > INLINE_BYTES:
            return tensors_of(self._stream(stored, numpy_dtype, not inside and file not in self.unlinked))[0]
        return ir.serde.deserialize_tensor(self._embedded(stored, dtype.value))

    def dense(self, sparse: onnx.SparseTensorProto, where: str) -> onnx.TensorProto:
        """A sparse tensor written out. raises: CheckpointError, UnsupportedModel (too large)"""
        name, dims = sparse.values.name, list(sparse.dims)
        where = f"{where}, sparse tensor {name!r}"
        full = onnx.TensorProto(name=name, data_type=sparse.values.data_type, dims=dims)
        dtype = _dtype(full, where)
        if any(d <= 0 for d in dims) or math.prod(dims) * 16 > MAX_NBYTES:
            raise CheckpointError(f"a sparse tensor has the shape {_short(dims)}", where=where, next=FETCH_AGAIN)
        if dtype != ir.DataType.STRING:
            self._dense_bytes += _nbytes(dtype, dims)
        if dtype == ir.DataType.STRING or self._dense_bytes > MAX_DENSE_BYTES:
            raise UnsupportedModel(
                f"a sparse tensor of {dtype.name}{dims} cannot be written out: {MAX_DENSE_BYTES:,} bytes in all, and no strings",
                where=where,
                next="store it as an ordinary tensor",
            )
        values, places = self.values(sparse.values, where), self.values(sparse.indices, where)
        if places.ndim == 2 and places.shape[1] == len(dims) and ((places >= 0) & (places < dims)).all():
            places = np.ravel_multi_index(tuple(places.T), tuple(dims))
        if values.ndim != 1 or places.shape != values.shape or not ((places >= 0) & (places < math.prod(dims))).all():
            raise CheckpointError("the places of a sparse tensor do not fit its shape", where=where, next=FETCH_AGAIN)
        array = np.zeros(math.prod(dims), values.dtype)
        array[places] = values
        tensor = ir.serde.serialize_tensor(ir.Tensor(array.reshape(dims), dtype=dtype, name=name))
        assert isinstance(tensor, onnx.TensorProto)
        return tensor

    def _stream(self, stored: StoredTensor, dtype: np.dtype, link: bool) -> Stream:
        rows, inner = stored.shape[0], stored.shape[1:]
        row_bytes = stored.nbytes // rows

        def make(start: int, stop: int) -> tuple[np.ndarray]:
            return (self.read(stored, start * row_bytes, stop * row_bytes).view(dtype).reshape(stop - start, *inner),)

        spec = TensorSpec(stored.name, dtype.name, stored.shape)
        return Stream([spec], rows, [stored.name], make, stored if link else None, infinite=True)

    def embed(self, tensor: onnx.TensorProto) -> None:
        """Put the bytes of a checked tensor that lie in the .onnx file itself back into the message."""
        stored = self.stored(tensor, str(self.path))
        if stored is not None and stored.file not in self.used:
            tensor.CopyFrom(self._embedded(stored, tensor.data_type))

    def place_in(self, tensor: onnx.TensorProto, folder: Path) -> None:
        """Say of a checked tensor where it lies as seen from a folder, past all links. Nothing of one whose data is in the message."""
        stored = self.stored(tensor, str(self.path))
        if stored is not None:
            (place,) = (entry for entry in tensor.external_data if entry.key == "location")
            place.value = Path(os.path.relpath(stored.file, folder)).as_posix()

    def _embedded(self, stored: StoredTensor, data_type: int) -> onnx.TensorProto:
        raw = self.read(stored, 0, stored.nbytes).tobytes()
        return onnx.TensorProto(name=stored.name, data_type=data_type, dims=stored.shape, raw_data=raw)

    def _external(self, tensor: onnx.TensorProto, dtype: ir.DataType, where: str) -> StoredTensor:
        keys = [entry.key for entry in tensor.external_data]
        place = {entry.key: entry.value for entry in tensor.external_data}
        if len(keys) != len(place) or "location" not in place or tensor.HasField("raw_data"):
            raise CheckpointError(
                "a tensor's bytes are said to lie in several places, or in none", where=where, next=FETCH_AGAIN
            )
        unknown = sorted(key for key in keys if key not in PLACE_KEYS and not key.startswith(PREPACKED))
        if unknown:
            raise CheckpointError(
                f"a tensor's external data has the unknown key {unknown[0][:200]!r}, which onnxruntime refuses",
                where=where,
                next=f"known: {', '.join(sorted(PLACE_KEYS))}",
            )
        if dtype == ir.DataType.STRING:
            raise CheckpointError("a tensor of strings cannot be external data", where=where, next=FETCH_AGAIN)
        nbytes, shape = _nbytes(dtype, tensor.dims), tuple(tensor.dims)
        offset, length = _size(place, "offset", 0, where), _size(place, "length", nbytes, where)
        if length != nbytes:
            raise CheckpointError(
                f"a tensor of {dtype.name}{list(shape)} takes {nbytes:,} bytes, {length:,} are given",
                where=where,
                next=FETCH_AGAIN,
            )
        file, size = self._file(place["location"], where)
        if offset + nbytes > size:
            raise CheckpointError(
                f"{place['location'][:200]!r} is too short: the tensor ends at byte {offset + nbytes:,}, the file has {size:,}",
                where=where,
                next=TAKE_AGAIN,
            )
        if "checksum" in place:
            _require_checksum(file, place["checksum"], where)
        return StoredTensor(tensor.name, dtype.name, shape, file, offset, nbytes)

    def _file(self, location: str, where: str) -> tuple[Path, int]:
        """The regular file that `location` names, and its size.

        Symbolic links are followed as onnxruntime 1.31 does: inside the folder, and from the folder of the file to the folder that
        the .onnx file itself is a link into, which is how download caches keep models.
        """
        if location in self._found:
            return self._found[location]
        pure = PurePosixPath(location)
        if not location or pure.is_absolute() or ".." in pure.parts or "\0" in location:
            raise CheckpointError(
                f"external data must lie in the folder of {self.path.name}, and is said to be in {location[:200]!r}",
                where=where,
                next="do not trust where this model came from; onnx.save(..., location=NAME) writes a name without a folder",
            )
        try:
            real = Path(os.path.realpath(self.path.parent / location, strict=True))
            found = real.stat()
        except FileNotFoundError as error:
            raise CheckpointError(
                f"external data is missing: {location[:200]!r} is not beside {self.path.name}", where=where, next=TAKE_AGAIN
            ) from error
        except OSError as error:
            why = unreadable(self.path.parent / location, error)
            raise CheckpointError(f"external data: {why.what}", where=where, next=why.next) from error
        folders = (os.path.realpath(self.path.parent), os.path.dirname(os.path.realpath(self.path)))
        if not any(real.is_relative_to(folder) for folder in folders):
            raise CheckpointError(
                f"external data must lie in the folder of {self.path.name}; {location[:200]!r} is a symbolic link that leaves it",
                where=where,
                next="copy the file to where the link is: `cp -rL`",
            )
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"external data must be in a file; {location[:200]!r} is none", where=where, next=TAKE_AGAIN)
        self._found[location] = real, found.st_size
        if location != self.path.name:
            self.used[real] = None
        return real, found.st_size


def _require_checksum(file: Path, wanted: str, where: str) -> None:
    """The SHA1 of a whole file, as ONNX defines a tensor's checksum. onnxruntime does not look at it. raises: CheckpointError"""
    try:
        found = file.stat()
    except OSError as error:
        raise unreadable(file, error) from error
    got = _sha1(file, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    if got != wanted.lower():
        raise CheckpointError(
            f"{file.name} is not the file that the model was saved with: its SHA1 is {got}, the checksum says {wanted[:80]!r}",
            where=where,
            next=TAKE_AGAIN,
        )


@lru_cache(maxsize=1024)
def _sha1(file: Path, version: tuple[int, ...]) -> str:
    """Read once, however many tensors lie in it and however often the model is opened.

    version: changes whenever the file does
    """
    digest = hashlib.sha1(usedforsecurity=False)
    fd, size = open_to_read(file)
    try:
        for start in range(0, size, HASHED_AT_ONCE):
            digest.update(read_exactly(fd, start, min(HASHED_AT_ONCE, size - start), file).data)
    finally:
        os.close(fd)
    return digest.hexdigest()


def _dtype(tensor: onnx.TensorProto, where: str) -> ir.DataType:
    known = {d.value: d for d in ir.DataType}
    dtype = known.get(tensor.data_type, ir.DataType.UNDEFINED)
    if dtype == ir.DataType.UNDEFINED:
        raise CheckpointError(f"a tensor has the unknown dtype {tensor.data_type}", where=where, next=FETCH_AGAIN)
    if dtype.name in NEWER_THAN_IR_13:
        raise UnsupportedModel(f"a tensor has the dtype {dtype.name}, which onnxruntime does not know", where=where)
    return dtype


def _nbytes(dtype: ir.DataType, shape: Mapping[int, int] | tuple[int, ...] | list[int]) -> int:
    return -(-math.prod(shape) * dtype.bitwidth // 8)


def _size(place: Mapping[str, str], key: str, default: int, where: str) -> int:
    text = place.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER_DIGITS):
        raise CheckpointError(f"a tensor's {key} is {text[:40]!r}, which is no size", where=where, next=FETCH_AGAIN)
    return int(text)


def _require_data(tensor: onnx.TensorProto, dtype: ir.DataType, where: str) -> None:
    """The bytes in the message are in one field, and fit dtype and shape. raises: CheckpointError"""
    filled = [name for name in DATA_FIELDS if (tensor.HasField(name) if name == "raw_data" else len(getattr(tensor, name)))]
    if len(filled) > 1:
        raise CheckpointError(f"a tensor's data lies in several fields: {', '.join(filled)}", where=where, next=FETCH_AGAIN)
    if tensor.HasField("raw_data") and dtype != ir.DataType.STRING:
        needed, got, unit = _nbytes(dtype, list(tensor.dims)), len(tensor.raw_data), "bytes"
    else:
        count = math.prod(tensor.dims)
        if dtype.name.startswith("COMPLEX"):
            count *= 2
        elif dtype != ir.DataType.STRING and dtype.bitwidth < 8:
            count = -(-count * dtype.bitwidth // 8)
        needed, unit = count, "numbers"
        got = len(getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type)))
    if needed != got:
        raise CheckpointError(
            f"a tensor of {dtype.name}{_short(list(tensor.dims))} takes {needed:,} {unit}, {got:,} are there",
            where=where,
            next=FETCH_AGAIN,
        )


def _short(value: list[int]) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
