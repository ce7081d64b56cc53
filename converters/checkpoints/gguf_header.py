"""The header of a GGUF file, every number checked before it is used.

Source: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3, little-endian: magic, version, two counts, the metadata
as (key, type, value), the tensor table, then padding and the data. Block sizes: gguf 0.19, GGML_QUANT_SIZES.

Why not gguf.GGUFReader (0.19, measured on SmolLM2-135M, 49,152 tokens and 48,900 merges): it makes numpy objects per array
element, 2.0 s and 165 MB where this takes 0.08 s and 11 MB; and it trusts counts: an array that claims 2**40 elements kept
it growing by 90 MB/s until it was killed, and a string that claims 2**40 bytes was taken as whatever followed, without an error.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from porting.errors import CheckpointError, UnsupportedModel
from porting.types import StoredTensor

from .files import open_to_read, read_exactly

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 100_000_000  # the largest vocabularies known take about 20 MB
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32
CHUNK_BYTES = 1 << 20  # read at a time
FETCH_AGAIN = "the file is damaged or cut off; fetch it again"

# ggml's number of a tensor type -> name, elements per block, bytes per block: the types that are decoded
BLOCKS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
BLOCK_SIZES = {name: (elements, nbytes) for name, elements, nbytes in BLOCKS.values()}

# number of a metadata type -> numpy's name; the other three are BOOL, STRING and ARRAY
NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
BOOL, STRING, ARRAY = 7, 8, 9

Value = bool | int | float | str | list[str] | np.ndarray  # an array of numbers or bools is a 1-D ndarray


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its data.

    metadata: key -> value, in file order
    tensors:  GGUF's name -> where it lies, in file order; shapes are outermost first (the file has them reversed)
    """

    version: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, StoredTensor]


def read_header(path: Path) -> Header:
    """Metadata and tensor table of a GGUF file; no tensor data is read.

    raises: CheckpointError for a file that cannot be read or does not keep to the format, UnsupportedModel for a tensor type
            that is not decoded
    """
    fd, size = open_to_read(path)
    try:
        cursor = _Cursor(fd, size, path)
        version = _version(cursor)
        tensor_count, key_count = cursor.number("<u8", "the tensor count"), cursor.number("<u8", "the metadata count")
        cursor.require_room(key_count, 13, "metadata keys")  # a key of no bytes, its type, a value of one byte
        metadata: dict[str, Value] = {}
        for _ in range(key_count):
            key = cursor.text("a metadata key")
            if key in metadata:
                raise cursor.damaged(f"gives the metadata key {key!r} twice")
            metadata[key] = _value(cursor, key)
        cursor.require_room(tensor_count, 36, "tensors")  # no name, one dimension
        table = [_tensor_entry(cursor) for _ in range(tensor_count)]
        alignment = _alignment(cursor, metadata)
        data_start = -(-cursor.position // alignment) * alignment
    finally:
        os.close(fd)
    tensors: dict[str, StoredTensor] = {}
    for entry in table:
        if entry[0] in tensors:
            raise _damaged(path, f"gives the tensor {entry[0]!r} twice")
        tensors[entry[0]] = _stored_tensor(path, entry, alignment, data_start, size)
    _require_no_overlap(path, tensors)
    return Header(version, metadata, tensors)


def _damaged(path: Path, what: str, where: str = "") -> CheckpointError:
    return CheckpointError(f"{path.name} {what}", where=f"{path}, {where}" if where else str(path), next=FETCH_AGAIN)


class _Cursor:
    """A place in the header that only moves on, after checking that the file holds what is asked for."""

    def __init__(self, fd: int, size: int, path: Path) -> None:
        self.path = path
        self.size = size
        self._fd = fd
        self._chunk = b""
        self._chunk_start = 0
        self._at = 0  # in the chunk

    @property
    def position(self) -> int:
        """Bytes from the start of the file."""
        return self._chunk_start + self._at

    def damaged(self, what: str) -> CheckpointError:
        return _damaged(self.path, what, f"byte {self.position}")

    def take(self, nbytes: int, what: str) -> bytes:
        """The next `nbytes` bytes."""
        end = self._at + nbytes
        if end > len(self._chunk):
            self.require_room(nbytes, 1, f"bytes of {what}")
            if self.position + nbytes > MAX_HEADER_BYTES:
                raise self.damaged(f"has a header of more than {MAX_HEADER_BYTES} bytes, the most that is taken")
            start = self.position
            wanted = min(max(nbytes, CHUNK_BYTES), self.size - start)
            self._chunk, self._chunk_start, self._at = read_exactly(self._fd, start, wanted, self.path).tobytes(), start, 0
            end = nbytes
        piece = self._chunk[self._at : end]
        self._at = end
        return piece

    def require_room(self, count: int, nbytes_each: int, what: str) -> None:
        """Refuse a count that the rest of the file cannot hold."""
        left = self.size - self.position
        if count * nbytes_each > left:
            raise self.damaged(f"claims {count} {what}, but ends {left} bytes later")

    def number(self, dtype: str, what: str) -> Any:
        """The next number as a Python int or float."""
        kind = np.dtype(dtype)
        return np.frombuffer(self.take(kind.itemsize, what), kind)[0].item()

    def text(self, what: str) -> str:
        """The next string: its length in 8 bytes, then UTF-8."""
        (nbytes,) = _LENGTH.unpack(self.take(8, what))
        raw = self.take(nbytes, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"has {what} that is not UTF-8") from error


_LENGTH = struct.Struct("<Q")


def _version(cursor: _Cursor) -> int:
    magic = cursor.take(len(MAGIC), "the magic") if cursor.size >= len(MAGIC) else b""
    if magic != MAGIC:
        got = f"got {magic!r}" if magic else f"the file has {cursor.size} bytes"
        raise cursor.damaged(f"is not a GGUF file: expected it to begin with {MAGIC!r}, {got}")
    version: int = cursor.number("<u4", "the version")
    if version in VERSIONS:
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in range(1, 1 << 16):
        raise CheckpointError(
            f"{cursor.path.name} is big-endian, which is not read",
            where=str(cursor.path),
            next="convert it to little-endian with gguf's `gguf-convert-endian`",
        )
    raise CheckpointError(
        f"{cursor.path.name} is GGUF version {version}; versions 2 and 3 are read",
        where=str(cursor.path),
        next="convert the model again with a current llama.cpp" if version < 2 else "update porting",
    )


def _value(cursor: _Cursor, key: str) -> Value:
    """One metadata value, its type number included."""
    what = f"metadata {key!r}"
    kind = cursor.number("<u4", what)
    if kind in NUMBERS:
        return cursor.number(NUMBERS[kind], what)
    if kind == STRING:
        return cursor.text(what)
    if kind == BOOL:
        return bool(_bools(cursor, 1, what)[0])
    if kind != ARRAY:
        raise cursor.damaged(f"gives {what} the unknown type {kind}")
    element, count = cursor.number("<u4", what), cursor.number("<u8", what)
    if element == STRING:
        cursor.require_room(count, 8, f"strings in {what}")
        return [cursor.text(what) for _ in range(count)]
    if element == BOOL:
        return _bools(cursor, count, what)
    if element not in NUMBERS:  # nested arrays are in the specification, but nobody writes them
        raise cursor.damaged(f"gives {what} an array of the unknown type {element}")
    dtype = np.dtype(NUMBERS[element])
    cursor.require_room(count, dtype.itemsize, f"numbers in {what}")
    return np.frombuffer(cursor.take(count * dtype.itemsize, what), dtype)


def _bools(cursor: _Cursor, count: int, what: str) -> np.ndarray:
    cursor.require_room(count, 1, f"bools in {what}")
    raw = np.frombuffer(cursor.take(count, what), np.uint8)
    if (raw > 1).any():
        raise cursor.damaged(f"has a bool in {what} that is neither 0 nor 1")
    return raw.astype(np.bool_)


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape with the outermost first, type number, offset in the data)."""
    name = cursor.text("a tensor name")
    what = f"tensor {name!r}"
    dims = cursor.number("<u4", what)
    if not 1 <= dims <= MAX_DIMS:
        raise cursor.damaged(f"gives {what} {dims} dimensions; 1 to {MAX_DIMS} are possible")
    shape = tuple(np.frombuffer(cursor.take(8 * dims, what), "<u8")[::-1].tolist())
    if 0 in shape:
        raise cursor.damaged(f"gives {what} the shape {shape}, without an element")
    return name, shape, cursor.number("<u4", what), cursor.number("<u8", what)


def _alignment(cursor: _Cursor, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.damaged(f"has general.alignment {value!r}; expected a power of two up to {MAX_ALIGNMENT}")
    return value


def _stored_tensor(
    path: Path, entry: tuple[str, tuple[int, ...], int, int], alignment: int, data_start: int, size: int
) -> StoredTensor:
    """One entry of the table, checked by itself; the offset becomes one in the file."""
    name, shape, number, offset = entry
    where = f"tensor {name!r}"
    if number not in BLOCKS:
        raise UnsupportedModel(
            f"tensor {name!r} has the type {_type_name(number)}, which is not decoded",
            where=str(path),
            next=f"use a file with the types {', '.join(BLOCK_SIZES)}",
        )
    dtype, elements, block_bytes = BLOCKS[number]
    if shape[-1] % elements:
        raise _damaged(path, f"has rows of {shape[-1]} elements, not a multiple of {dtype}'s block of {elements}", where)
    nbytes = math.prod(shape) // elements * block_bytes
    if offset % alignment:
        raise _damaged(path, f"puts a tensor at offset {offset}, not a multiple of the alignment {alignment}", where)
    if data_start + offset + nbytes > size:
        raise _damaged(
            path, f"has a tensor that ends at byte {data_start + offset + nbytes} of the file, which has {size}", where
        )
    return StoredTensor(name, dtype, shape, path, data_start + offset, nbytes, plain=elements == 1)


def _type_name(number: int) -> str:
    """ggml's name of a tensor type, or its number when gguf is not installed or does not know it."""
    try:
        from gguf import GGMLQuantizationType

        return GGMLQuantizationType(number).name
    except (ImportError, ValueError):
        return f"number {number}"


def _require_no_overlap(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    ordered = sorted(tensors.values(), key=lambda t: t.offset)
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise _damaged(path, f"has a tensor that overlaps {before.name!r} at byte {after.offset}", f"tensor {after.name!r}")
