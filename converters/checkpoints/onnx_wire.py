"""An .onnx file read without its large weights: the bytes of the protobuf are walked, and what is large stays where it lies.

Every `raw_data` above a limit becomes external data of the file itself (location = the file's own name, offset, length), which is
ordinary ONNX: onnxruntime and onnx read it like any other external data. Nothing else of the message changes.

Source: protobuf's encoding guide (wire types 0, 1, 2 and 5; no field of ONNX is a group) and onnx-ml.proto for the field numbers,
taken from onnx's own descriptors. Its limits are protobuf's: 2 GiB a file, 100 messages deep.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import onnx
from google.protobuf.message import DecodeError

from porting.errors import CheckpointError, UnsupportedModel
from porting.external_data import CARRIERS

from .files import open_to_read, read_exactly

INLINE_BYTES = 1024  # what is smaller stays in the graph: shapes, axes, scales
MAX_FILE_BYTES = 2**31 - 1  # protobuf's
MAX_DEPTH = 100  # messages inside each other; protobuf's own default
WINDOW_BYTES = 1 << 20
LFS_POINTER = b"version https://git-lfs"
FETCH_AGAIN = "the file is damaged, cut off or no ONNX model; fetch it again"

# message -> {field number: message inside}, for the fields that can hold a tensor
INSIDE = {
    kind: {f.number: f.message_type.name for f in found.fields if f.message_type and f.message_type.name in CARRIERS}
    for kind in CARRIERS
    if (found := onnx.ModelProto.DESCRIPTOR.file.message_types_by_name.get(kind)) is not None
}
RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


def parse_model(path: Path) -> onnx.ModelProto:
    """The model in a file, every embedded tensor above INLINE_BYTES left in the file.

    raises: CheckpointError (missing, unreadable, empty, cut short, no protobuf, text that is no UTF-8), UnsupportedModel (2 GiB)
    """
    try:
        path.name.encode()
    except UnicodeEncodeError as error:
        raise CheckpointError("the file's name is no text", where=repr(str(path)), next="rename it") from error
    fd, size = open_to_read(path)
    try:
        if size == 0:
            raise CheckpointError(f"{path.name} is empty", where=str(path), next=FETCH_AGAIN)
        if size > MAX_FILE_BYTES:
            raise UnsupportedModel(
                f"{path.name} has {size:,} bytes; protobuf, and with it onnxruntime, reads at most {MAX_FILE_BYTES:,}",
                where=str(path),
                next="save it with its weights as external data: onnx.save(model, path, save_as_external_data=True)",
            )
        start = read_exactly(fd, 0, min(size, len(LFS_POINTER)), path).tobytes()
        if start == LFS_POINTER:
            raise CheckpointError(
                f"{path.name} is a Git LFS pointer, not the model",
                where=str(path),
                next="fetch the file itself: `git lfs pull`",
            )
        slim = b"".join(_Walk(path, fd).without_weights("ModelProto", 0, size, 0))
    finally:
        os.close(fd)
    try:
        model = onnx.ModelProto.FromString(slim)
    except DecodeError as error:
        raise CheckpointError(f"{path.name} is no ONNX model: {error}", where=str(path), next=FETCH_AGAIN) from error
    _require_text(model, path)
    return model


class _Walk:
    """One pass over the file. Only tags, lengths and what is small are read."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path, self._fd = path, fd
        self._size = os.fstat(fd).st_size
        self._window, self._window_start = b"", 0

    def without_weights(self, kind: str, start: int, end: int, depth: int) -> list[bytes]:
        """The bytes of a message of type `kind` at [start, end), large raw_data replaced. Pieces to be joined.

        raises: CheckpointError
        """
        if depth > MAX_DEPTH:
            self._refuse(start, f"messages lie more than {MAX_DEPTH} deep")
        pieces: list[bytes] = []
        places: list[bytes] = []  # at the end: exporters write data_location = DEFAULT after raw_data, and the last one counts
        kept, position = start, start  # [kept, position) is to be copied
        while position < end:
            field_start = position
            tag, position = self._varint(position, end)
            number, wire = tag >> 3, tag & 7
            if wire == 2:
                length, body = self._varint(position, end)
                position = body + length
                if position > end:
                    self._cut(field_start, position, end, depth)
                large = length > INLINE_BYTES
                if large and kind == "TensorProto" and number == RAW_DATA:
                    pieces.append(self._bytes(kept, field_start))
                    places.append(self._place(body, length))
                    kept = position
                elif large and number in INSIDE[kind]:
                    inner = self.without_weights(INSIDE[kind][number], body, position, depth + 1)
                    pieces += [self._bytes(kept, field_start), _varint(tag), _varint(sum(map(len, inner))), *inner]
                    kept = position
            elif wire == 0:
                _, position = self._varint(position, end)
            elif wire in (1, 5):
                position += 8 if wire == 1 else 4
                if position > end:
                    self._cut(field_start, position, end, depth)
            else:
                self._refuse(field_start, f"wire type {wire} does not occur in ONNX")
            if number == 0:
                self._refuse(field_start, "a field has the number 0")
        return [*pieces, self._bytes(kept, end), *places]

    def _place(self, offset: int, length: int) -> bytes:
        """The fields of a TensorProto that stand for its raw_data."""
        tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", self._path.name), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        return tensor.SerializeToString()

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        """(value, position after it)"""
        value = 0
        for i in range(10):
            if position + i >= end:
                self._cut(position, position + i + 1, end, 0 if end == self._size else 1)
            byte = self._byte(position + i)
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                return value, position + i + 1
        self._refuse(position, "a number is longer than 10 bytes")

    def _byte(self, position: int) -> int:
        index = position - self._window_start
        if not 0 <= index < len(self._window):
            count = min(WINDOW_BYTES, self._size - position)
            self._window = read_exactly(self._fd, position, count, self._path).tobytes()
            self._window_start, index = position, 0
        return self._window[index]

    def _bytes(self, start: int, end: int) -> bytes:
        first = start - self._window_start
        if first >= 0 and end - self._window_start <= len(self._window):
            return self._window[first : first + end - start]
        return read_exactly(self._fd, start, end - start, self._path).tobytes()

    def _cut(self, start: int, needed: int, end: int, depth: int) -> NoReturn:
        if depth == 0:  # of the file, not of a message inside it
            raise CheckpointError(
                f"{self._path.name} is cut short or no ONNX model: what begins at byte {start} ends at {needed}, the file at {end}",
                where=str(self._path),
                next=FETCH_AGAIN,
            )
        self._refuse(start, f"a field ends at byte {needed}, the message that holds it at {end}")

    def _refuse(self, position: int, what: str) -> NoReturn:
        raise CheckpointError(
            f"{self._path.name} is no ONNX model: {what}", where=f"{self._path}, byte {position}", next=FETCH_AGAIN
        )


def _varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _require_text(model: onnx.ModelProto, path: Path) -> None:
    """Every string is UTF-8: protobuf gives the others as bytes, which no one after this expects. raises: CheckpointError"""
    pending = [model]
    while pending:
        message = pending.pop()
        for field, value in message.ListFields():
            many = value if field.is_repeated else [value]
            if field.type == field.TYPE_MESSAGE:
                pending.extend(many)
            elif field.type == field.TYPE_STRING and any(isinstance(text, bytes) for text in many):
                raise CheckpointError(
                    f"{path.name} has a {field.name} that is no UTF-8 text", where=str(path), next=FETCH_AGAIN
                )
