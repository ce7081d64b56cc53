"""The tensors of a pytorch_model.bin, found without torch and without executing anything.

Such a file is a zip archive of uncompressed entries: `NAME/data.pkl` describes the state dict, `NAME/data/KEY` are the
storages; before torch 1.6 it was pickles and storages one after another (torch_legacy.py). The pickle is not given to `pickle`: `pickle_machine` knows the operations that a state dict of
plain tensors needs and executes nothing; what it may "call" is the three names below, which give descriptions of tensors.

Source: torch 2.13.0, torch/serialization.py (`_save`, `_load`) and torch/_utils.py (`_rebuild_tensor_v2`); pickle protocols
2 to 4 as documented in CPython's pickletools.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from porting.errors import CheckpointError
from porting.types import StoredTensor
from porting.weights import NUMPY_DTYPES

from .files import open_to_read, read_exactly
from .pickle_machine import Global, Opaque, PickleRefused, state_of
from .torch_legacy import TorchLegacy
from .torch_zip import PICKLE_START, Entry, TorchZip

MAX_DIMS = 32
SPARSE_READ_BYTES = 1 << 20  # a strided part this small is read in one piece even if most of it is not needed
MAX_SIZE = 2**63 - 1
STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
ORDERED_DICT = Global("collections", "OrderedDict")
PARAMETER = Global("torch._utils", "_rebuild_parameter")
TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
WRAPPERS = ("state_dict", "model_state_dict")
SAVE_SAFELY = "save the state dict as safetensors where you trust the file: safetensors.torch.save_file(state_dict, ...)"


@dataclass(frozen=True)
class StridedTensor(StoredTensor):
    """A tensor whose elements do not lie in C order, so `plain` is False.

    strides: elements from one index to the next, per axis; every one of an axis longer than 1 is >= 1
    nbytes:  bytes from its first to its last element, those of others between them included
    """

    plain: bool = False
    strides: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Storage:
    """A storage that the pickle refers to: its entry in the archive and how many elements it holds."""

    entry: Entry
    dtype: str
    numel: int


@dataclass(frozen=True)
class _Nameless:
    """A tensor before the state dict gives it its name."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a pytorch_model.bin; no tensor data is read. Tensors that share a storage point at the same bytes.

    A state dict inside {"state_dict": ...} or {"model_state_dict": ...} is unwrapped.
    raises: CheckpointError when it cannot be read, is damaged, or holds code or anything but tensors by name;
            UnsupportedModel for TorchScript and big-endian files
    """
    top = _read(path, ())
    return {name: _named(path, name, value) for name, value in _state_dict(path, top).items()}


def read_torch_object(path: Path, harmless: Collection[Global]) -> Any:
    """All that a torch file holds, nested as it is in dicts, lists and tuples; every tensor is a StoredTensor named by its path.

    harmless: classes and functions whose objects may occur; an Opaque takes the place of each
    raises:   as `read_torch_file`, which takes tensors by name only
    """
    try:
        return _described(path, "", _read(path, harmless))
    except RecursionError as error:
        raise CheckpointError(f"{path.name} nests its contents too deeply", where=str(path), next=SAVE_SAFELY) from error


def _described(path: Path, name: str, value: Any) -> Any:
    if isinstance(value, _Nameless):
        return _named(path, name, value)
    if isinstance(value, dict):
        return {key: _described(path, f"{name}.{key}" if name else str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, Opaque):
        return type(value)([_described(path, f"{name}.{i}", item) for i, item in enumerate(value)])
    return value


def _read(path: Path, harmless: Collection[Global]) -> Any:
    archive = TorchLegacy(path, STORAGES) if _is_pickle(path) else TorchZip(path)
    builder = _Builder(path, archive, harmless)
    try:
        return state_of(archive.pickle_bytes(), builder.call, builder.storage)
    except PickleRefused as error:
        todo = SAVE_SAFELY if error.is_code else "the file is damaged; fetch it again"
        raise CheckpointError(f"{path.name} {error}", where=f"{path}, {archive.root}/data.pkl", next=todo) from error


def _is_pickle(path: Path) -> bool:
    fd, size = open_to_read(path)
    try:
        return read_exactly(fd, 0, min(size, len(PICKLE_START)), path).tobytes() == PICKLE_START
    finally:
        os.close(fd)


class _Builder:
    """What the pickle may call, and what it may refer to."""

    def __init__(self, path: Path, archive: TorchZip | TorchLegacy, harmless: Collection[Global] = ()) -> None:
        self.path = path
        self.archive = archive
        self.harmless = harmless

    def call(self, function: Global, args: tuple[Any, ...]) -> Any:
        """The result of `function(*args)`, which is never really called.

        raises: PickleRefused for any other function and for arguments that torch does not write
        """
        if function == ORDERED_DICT and args == ():
            return {}
        if function == PARAMETER and len(args) == 3 and isinstance(args[0], _Nameless):
            _require(args[2] in ({}, None), "has a parameter with hooks, which are code", is_code=True)
            return args[0]
        if function == TENSOR and len(args) in (6, 7):
            return self._tensor(*args)
        if function in (ORDERED_DICT, PARAMETER, TENSOR):
            raise PickleRefused(f"calls {function} with arguments that torch does not write")
        if function in self.harmless:
            return Opaque(function)
        raise PickleRefused(
            f"is code, not data: it calls {function}, which a state dict of plain tensors does not need", is_code=True
        )

    def storage(self, reference: Any) -> _Storage:
        """The storage behind ("storage", type, key, location, number of elements), in old files with None for "no view" behind."""
        parts = reference[:5] if isinstance(reference, tuple) and reference[5:] in ((), (None,)) else ()
        _require(len(parts) == 5 and parts[0] == "storage", "refers to something that is not a storage")
        _, kind, key, location, numel = parts
        _require(isinstance(kind, Global) and isinstance(key, str) and isinstance(location, str), "has a malformed storage")
        if kind.module != "torch" or kind.name not in STORAGES:
            known = ", ".join(STORAGES)
            raise PickleRefused(f"has a storage of type {kind}; expected one of torch's {known}", True)
        dtype = STORAGES[kind.name]
        entry = self.archive.entries.get(f"{self.archive.root}/data/{key}")
        if entry is None:
            raise PickleRefused(f"refers to storage {key[:80]!r}, which the archive does not have")
        _require(_is_size(numel), f"gives storage {key[:80]!r} a number of elements that is none")
        expected = numel * NUMPY_DTYPES[dtype].itemsize
        _require(
            entry.nbytes == expected,
            f"declares storage {key[:80]!r} as {numel} elements of {dtype}, {expected} bytes; its entry has {entry.nbytes}",
        )
        return _Storage(entry, dtype, numel)

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, flags: Any = None
    ) -> _Nameless:
        _require(isinstance(storage, _Storage), "has a tensor without a storage")
        _require(hooks in ({}, None), "has a tensor with hooks, which are code", is_code=True)
        _require(not flags, "has a tensor with the conjugate or negative bit, which is not covered")
        sizes = all(isinstance(s, tuple) and len(s) <= MAX_DIMS and all(map(_is_size, s)) for s in (shape, strides))
        _require(
            _is_size(offset) and sizes and len(shape) == len(strides), "has a tensor of malformed offset, shape or strides"
        )
        itemsize = NUMPY_DTYPES[storage.dtype].itemsize
        _require(math.prod(n for n in shape if n) * itemsize <= MAX_SIZE, f"has a tensor of impossible shape {shape}")
        if math.prod(shape):
            last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
            _require(
                last < storage.numel,
                f"has a tensor of shape {shape}, strides {strides}, offset {offset} in a storage of {storage.numel} elements",
            )
            # more elements than the storage has, or a stride of 0: an expanded view, which could claim terabytes of a byte
            overlaps = math.prod(shape) > storage.numel or any(s == 0 for n, s in zip(shape, strides, strict=True) if n > 1)
            _require(not overlaps, f"has a tensor whose elements overlap: shape {shape}, strides {strides}; not covered")
        return _Nameless(storage, offset, shape, strides)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_SIZE  # bool is no size


def _require(holds: bool, what: str, is_code: bool = False) -> None:
    if not holds:
        raise PickleRefused(what, is_code)


def _state_dict(path: Path, top: Any) -> dict[str, _Nameless]:
    """The map from name to tensor that `top` is, or wraps."""
    for wrapper in WRAPPERS:
        if isinstance(top, dict) and isinstance(top.get(wrapper), dict):
            top = top[wrapper]
    if not isinstance(top, dict):
        raise CheckpointError(
            f"{path.name} holds no state dict: expected tensors by name, got {type(top).__name__.lstrip('_')}",
            where=str(path),
            next=SAVE_SAFELY,
        )
    others = [str(key) for key, value in top.items() if not (isinstance(key, str) and isinstance(value, _Nameless))]
    if others:
        shown = ", ".join(repr(k[:80]) for k in others[:10]) + (f" and {len(others) - 10} more" if len(others) > 10 else "")
        raise CheckpointError(
            f"{path.name} holds more than tensors by name; not tensors: {shown}",
            where=str(path),
            next=f"{SAVE_SAFELY}; a training checkpoint's optimiser state does not belong there",
        )
    return top


def _named(path: Path, name: str, tensor: _Nameless) -> StoredTensor:
    """Where the tensor lies in the file."""
    storage, shape = tensor.storage, tensor.shape
    itemsize = NUMPY_DTYPES[storage.dtype].itemsize
    count = math.prod(shape)
    offset = storage.entry.offset + tensor.offset * itemsize if count else storage.entry.offset
    if count == 0 or _is_c_order(shape, tensor.strides):
        return StoredTensor(name, storage.dtype, shape, path, offset, count * itemsize)
    span = 1 + sum((n - 1) * s for n, s in zip(shape, tensor.strides, strict=True))
    return StridedTensor(name, storage.dtype, shape, path, offset, span * itemsize, strides=tensor.strides)


def _is_c_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:  # the stride of an axis of one index is never used
            return False
        expected *= size
    return True


def strided_rows(tensor: StridedTensor, start: int, stop: int, read: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Rows [start, stop) of a tensor that does not lie in C order, as a C-contiguous array of the stored dtype.

    read:    (offset in the file, bytes) -> (bytes,) uint8; asked for at most twice the bytes of the result, or 1 MiB, at once
    """
    dtype = NUMPY_DTYPES[tensor.dtype]
    shape = (stop - start, *tensor.shape[1:])
    by_stride = sorted(range(len(shape)), key=lambda axis: tensor.strides[axis], reverse=True)
    in_file_order = np.empty([shape[axis] for axis in by_stride], dtype)

    def fill(part: np.ndarray, offset: int, strides: list[int]) -> None:
        """Fill `part`, whose first element is at `offset` in the file; one read if it lies dense enough, else one per index."""
        span = 1 + sum((n - 1) * s for n, s in zip(part.shape, strides, strict=True))
        if span <= 2 * part.size or span * dtype.itemsize <= SPARSE_READ_BYTES:
            elements = read(offset, span * dtype.itemsize).view(dtype)
            part[...] = np.lib.stride_tricks.as_strided(elements, part.shape, [s * dtype.itemsize for s in strides])
            return
        for i in range(part.shape[0]):
            fill(part[i : i + 1].reshape(part.shape[1:]), offset + i * strides[0] * dtype.itemsize, strides[1:])

    if in_file_order.size:
        fill(
            in_file_order,
            tensor.offset + start * tensor.strides[0] * dtype.itemsize,
            [tensor.strides[axis] for axis in by_stride],
        )
    return np.ascontiguousarray(in_file_order.transpose(np.argsort(by_stride)))
