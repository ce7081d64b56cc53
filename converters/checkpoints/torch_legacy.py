"""torch's format before 1.6: pickles one after another, then the storages. Read as the zip format is, without executing anything.

    pickle of MAGIC, of PROTOCOL, of a dict about the machine, of the object, of the storages' keys; then for each key
    8 bytes with its number of elements, little-endian, and the elements

Source: torch 2.13.0, torch/serialization.py (`_legacy_save`, `_legacy_load`) and torch/csrc/generic/serialization.cpp.
"""

from __future__ import annotations

import io
import os
import pickletools
from contextlib import suppress
from pathlib import Path
from typing import Any

from porting.errors import CheckpointError, UnsupportedModel
from porting.weights import NUMPY_DTYPES

from .files import open_to_read, read_exactly
from .pickle_machine import MAX_OPERATIONS, Global, Opaque, PickleRefused, state_of
from .torch_zip import MAX_PICKLE_BYTES, RESAVE, Entry

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
PICKLES = 5
COUNT_BYTES = 8


class TorchLegacy:
    """The pickle and the storages of an old file, as `torch_zip.TorchZip` gives those of a new one.

    root:    stands for the archive's folder in names
    entries: "ROOT/data/KEY" -> where the elements of a storage lie; all inside the file, none over another
    raises:  CheckpointError (no file of torch's, cut off, damaged), UnsupportedModel (big-endian)
    """

    root = "legacy"

    def __init__(self, path: Path, storages: dict[str, str]) -> None:
        """storages: name of a torch storage class -> dtype in safetensors' spelling"""
        self.path = path
        fd, size = open_to_read(path)
        try:
            head = read_exactly(fd, 0, min(size, MAX_PICKLE_BYTES), path).tobytes()
            magic, protocol, machine, self._object, keys, end = self._pickles(head)
            if _plain(magic) != MAGIC or _plain(protocol) != PROTOCOL:
                raise self._damaged("is a pickle, and none that torch.save wrote")
            known = _plain(machine)
            if not isinstance(known, dict) or known.get("little_endian") is not True:
                raise UnsupportedModel(f"{path.name} was written on a big-endian machine", where=str(path), next=RESAVE)
            self.entries = self._entries(fd, size, end, _plain(keys), _numbers(self._object, storages))
        finally:
            os.close(fd)

    def pickle_bytes(self) -> bytes:
        """The pickle of the object."""
        return self._object

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path.name} {what}", where=str(self.path), next="the file is damaged or no torch checkpoint; fetch it again"
        )

    def _pickles(self, head: bytes) -> tuple[bytes, bytes, bytes, bytes, bytes, int]:
        """The five pickles, and the byte after them."""
        stream, found = io.BytesIO(head), []
        try:
            for _ in range(PICKLES):
                start = stream.tell()
                for count, _ in enumerate(pickletools.genops(stream)):
                    if count >= MAX_OPERATIONS:
                        raise ValueError(f"more than {MAX_OPERATIONS} operations")
                found.append(head[start : stream.tell()])
        except (ValueError, IndexError, KeyError, OverflowError, UnicodeError, MemoryError) as error:
            raise self._damaged(f"is a pickle, and none that torch.save wrote whole: {str(error)[:200]}") from error
        return found[0], found[1], found[2], found[3], found[4], stream.tell()

    def _entries(self, fd: int, size: int, at: int, keys: Any, numbers: dict[str, tuple[int, int]]) -> dict[str, Entry]:
        """Where the storages lie, in the order of `keys`; numbers: key -> (elements, bytes of each)."""
        entries: dict[str, Entry] = {}
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
            raise self._damaged("has no list of storages")
        for key in keys:
            if key not in numbers:
                break  # what follows cannot be found; the object's pickle is refused, or needs none of it
            count, itemsize = numbers[key]
            written = int.from_bytes(read_exactly(fd, at, COUNT_BYTES, self.path).tobytes(), "little")
            if written != count or count * itemsize > size - at - COUNT_BYTES:
                raise self._damaged(f"declares storage {key[:80]!r} as {count} elements, and has {written} or is cut off")
            entries[f"{self.root}/data/{key}"] = Entry(at + COUNT_BYTES, count * itemsize)
            at += COUNT_BYTES + count * itemsize
        return entries


def _plain(data: bytes) -> Any:
    """The value of a pickle of plain values; None for any other."""

    def refuse(*_: Any) -> Any:
        raise PickleRefused("is no plain value")

    try:
        return state_of(data, refuse, refuse)
    except PickleRefused:
        return None


def _numbers(data: bytes, storages: dict[str, str]) -> dict[str, tuple[int, int]]:
    """Key of each storage that the object refers to -> (elements, bytes of each), as far as the pickle can be followed."""
    found: dict[str, tuple[int, int]] = {}

    def call(function: Global, args: tuple[Any, ...]) -> Any:
        return {} if function.name == "OrderedDict" else Opaque(function)

    def refer(reference: Any) -> Any:
        if isinstance(reference, tuple) and len(reference) >= 5 and isinstance(reference[1], Global):
            dtype, key, count = storages.get(reference[1].name), reference[2], reference[4]
            if dtype is not None and isinstance(key, str) and type(count) is int and count >= 0:
                found.setdefault(key, (count, NUMPY_DTYPES[dtype].itemsize))
        return Opaque(Global("torch", "storage"))

    with suppress(PickleRefused):  # with its reason it is refused when it is read for its tensors
        state_of(data, call, refer)
    return found
