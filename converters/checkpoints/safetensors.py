"""The header of a safetensors file, every number checked before it is used.

Source: the section "Format" of the README of safetensors 0.8.0: 8 bytes little-endian N, N bytes of JSON that begin with
`{`, then the data; offsets count from the end of the header; no key twice; the tensors cover the data without overlap
or hole. The limit of 100 MB for N is that package's. Its Python API shows no offsets, hence this reader.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from porting.errors import CheckpointError
from porting.types import StoredTensor
from porting.weights import NUMPY_DTYPES

from .files import open_to_read, read_exactly
from .strict_json import parse_object

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
MAX_DIMS = 32  # what every numpy that we support can hold
MAX_NBYTES = 2**63 - 1
ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
FETCH_AGAIN = "the file is damaged or cut off; fetch it again"


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, in file order; no tensor data is read.

    raises: CheckpointError for a file that cannot be read or does not keep to the format (see the module's source)
    """
    fd, size = open_to_read(path)
    try:
        if size < LENGTH_BYTES:
            raise _damaged(path, f"is not a safetensors file: expected at least {LENGTH_BYTES} bytes, got {size}")
        header_bytes = int.from_bytes(read_exactly(fd, 0, LENGTH_BYTES, path).tobytes(), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise _damaged(path, f"declares a header of {header_bytes} bytes; the format allows {MAX_HEADER_BYTES}")
        if LENGTH_BYTES + header_bytes > size:
            raise _damaged(path, f"declares a header of {header_bytes} bytes, but the file has {size} bytes in all")
        raw = read_exactly(fd, LENGTH_BYTES, header_bytes, path).tobytes()
    finally:
        os.close(fd)
    if raw[:1] != b"{":
        raise _damaged(path, f"is not a safetensors file: expected its header to begin with '{{', got {raw[:1]!r}")
    header = parse_object(raw, path, "header")
    _check_metadata(path, header.pop("__metadata__", {}))
    data_start = LENGTH_BYTES + header_bytes
    tensors = [_stored_tensor(path, name, entry, data_start, size - data_start) for name, entry in header.items()]
    tensors.sort(key=lambda t: (t.offset, t.nbytes))
    _check_coverage(path, tensors, data_start, size)
    return {t.name: t for t in tensors}


def _damaged(path: Path, what: str, tensor: str = "") -> CheckpointError:
    where = f"{path}, tensor {tensor!r}" if tensor else str(path)
    return CheckpointError(f"{path.name} {what}", where=where, next=FETCH_AGAIN)


def _check_metadata(path: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "has a __metadata__ that is not a map of text to text")


def _stored_tensor(path: Path, name: str, entry: Any, data_start: int, data_bytes: int) -> StoredTensor:
    """One entry of the header, checked by itself; offsets become offsets in the file."""
    if not isinstance(entry, dict) or entry.keys() != ENTRY_KEYS:
        got = ", ".join(sorted(entry)) if isinstance(entry, dict) else type(entry).__name__
        raise _damaged(path, f"describes a tensor by {got or 'nothing'}; expected {', '.join(sorted(ENTRY_KEYS))}", name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in NUMPY_DTYPES:
        raise _damaged(path, f"has a tensor of dtype {dtype!r}; expected one of {', '.join(NUMPY_DTYPES)}", name)
    itemsize = NUMPY_DTYPES[dtype].itemsize
    # zeros left out of the product: an empty tensor such as (0, 2**62) has no bytes, and still no array can have that shape
    if not _are_sizes(shape) or len(shape) > MAX_DIMS or math.prod(d for d in shape if d) * itemsize > MAX_NBYTES:
        raise _damaged(path, f"has a tensor of shape {_short(shape)}; expected at most {MAX_DIMS} sane integers >= 0", name)
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(
            path, f"has a tensor with data_offsets {_short(offsets)}; expected [begin, end], 0 <= begin <= end", name
        )
    begin, end = offsets
    if end > data_bytes:
        raise _damaged(path, f"has a tensor that ends at byte {end} of the data, of which there are {data_bytes}", name)
    if end - begin != math.prod(shape) * itemsize:
        raise _damaged(
            path, f"gives a tensor {end - begin} bytes; {dtype}{_short(shape)} takes {math.prod(shape) * itemsize}", name
        )
    return StoredTensor(name, dtype, tuple(shape), path, data_start + begin, end - begin)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= MAX_NBYTES for n in value)  # bool is no size


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


def _check_coverage(path: Path, tensors: list[StoredTensor], data_start: int, size: int) -> None:
    """The tensors, sorted by offset, follow each other from the start of the data to the end of the file."""
    position, before = data_start, "the header"
    for tensor in tensors:
        if tensor.offset != position:
            kind = "overlaps" if tensor.offset < position else "leaves a hole after"
            raise _damaged(
                path,
                f"has a tensor that {kind} {before}: expected it at byte {position} of the file, got {tensor.offset}",
                tensor.name,
            )
        position, before = tensor.offset + tensor.nbytes, repr(tensor.name)
    if position != size:
        raise _damaged(path, f"has {size} bytes, but its tensors end at byte {position}")
