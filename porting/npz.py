"""Reading and writing .npz: numbers and, where asked for, text; every size checked before it is believed, any name an array may have.

numpy's own reader makes an array of whatever size a header claims, and its writer has arguments that collide with the names of arrays.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from porting.errors import InputError
from porting.verdict import printable

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(path: str | Path, *, text: bool = False) -> dict[str, np.ndarray]:
    """Name -> array of every member.

    text:   whether arrays of unicode strings are taken too; they come as object arrays of str
    raises: InputError for what is no .npz of plain numbers (and text), naming the array
    """
    next_step = "an .npz with one array of numbers per name, as numpy.savez writes it"
    try:
        with zipfile.ZipFile(path) as archive:
            return {info.filename.removesuffix(".npy"): _array(archive, info, text) for info in archive.infolist()}
    except _NotAnArray as error:
        raise InputError(f"array {error.name!r} cannot be read: {error}", where=str(path), next=next_step) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(path), next=next_step) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        # ValueError: a damaged entry; NotImplementedError: a compression that zipfile has not; RuntimeError: encrypted
        raise InputError(f"not an .npz: {error}", where=str(path), next=next_step) from error


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write in one step: at no moment is there half a file at `path`.

    arrays: of numbers, or object arrays of str
    raises: OSError; InputError for strings that the format cannot hold
    """
    arrays = {name: _unicode(name, array) if array.dtype.kind == "O" else array for name, array in arrays.items()}
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.new")
    try:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class _NotAnArray(Exception):
    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = printable(name)


def _unicode(name: str, array: np.ndarray) -> np.ndarray:
    """Strings in numpy's fixed width, which drops NUL characters at the end: such strings are refused."""
    fixed = array.astype(str)
    if (fixed.astype(object) != array).any():
        raise InputError(
            f"array {printable(name)!r} has a string that ends in a NUL character",
            where="writing .npz",
            next="strip it in the graph",
        )
    return fixed


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, text: bool) -> np.ndarray:
    """One member. source: numpy.lib.format, "Format Version 1.0" and "2.0" """
    data = archive.read(info)
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"format version {version}")
        shape, fortran, dtype = _HEADERS[version](stream)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:  # the header is a Python literal
        raise _NotAnArray(info.filename, f"no array of numpy: {printable(str(error))}") from error
    if dtype.kind not in "biufc" and not (text and dtype.kind == "U" and dtype.itemsize):
        raise _NotAnArray(info.filename, f"dtype {printable(str(dtype))} is no number")
    if any(type(n) is not int or n < 0 for n in shape):
        raise _NotAnArray(info.filename, f"shape {printable(str(shape))}")
    held, wanted = len(data) - stream.tell(), math.prod(shape) * dtype.itemsize
    if held != wanted:
        raise _NotAnArray(info.filename, f"the header says {wanted} bytes, the file holds {held}")
    array = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    array = array.astype(dtype.newbyteorder("="), copy=not array.flags.aligned)
    return _texts(info.filename, array) if dtype.kind == "U" else array


def _texts(name: str, array: np.ndarray) -> np.ndarray:
    """An array of unicode strings as objects, after a look at its code points: numpy believes any 32 bits."""
    points = np.ascontiguousarray(array).reshape(-1).view(np.uint32)
    if points.size and (int(points.max()) > 0x10FFFF or ((points >= 0xD800) & (points < 0xE000)).any()):
        raise _NotAnArray(name, "it holds code points that are no characters")
    return array.astype(object)
