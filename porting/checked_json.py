"""Values out of a JSON file that somebody else wrote: each is checked before it is used.

Every function takes the value as json gave it and `where` it stood, and raises InputError naming what was expected there.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import numpy as np

from porting.dtypes import dtype_of
from porting.errors import InputError
from porting.verdict import printable

MAX_ARRAY_BYTES = 16 << 20
MAX_NAME = 512  # characters
MAX_RANK = 16


def object_with(value: Any, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    """An object with exactly these keys."""
    if not isinstance(value, dict):
        raise InputError(f"expected an object, got {type(value).__name__}", where=where)
    for problem, names in (("unknown", set(value) - set(keys)), ("missing", set(keys) - set(value))):
        if names:
            raise InputError(f"{problem} key {printable(min(names), 60)!r}", where=where)
    return value


def text(value: Any, where: str) -> str:
    """A string of bounded length."""
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise InputError(f"expected a text of at most {MAX_NAME} characters, got {type(value).__name__}", where=where)
    return value


def table(value: Any, where: str) -> dict[str, Any]:
    """An object whose keys are names; its values are still to be checked."""
    if not isinstance(value, dict):
        raise InputError(f"expected an object, got {type(value).__name__}", where=where)
    for name in value:
        text(name, where)
    return value


def integer(value: Any, low: int, high: int, where: str) -> int:
    """An integer in [low, high]; true is none."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        shown = value if isinstance(value, int) and abs(value) < 1 << 63 else type(value).__name__
        raise InputError(f"expected an integer in [{low}, {high}], got {shown}", where=where)
    return value


def shape_of(value: Any, most: int, where: str) -> tuple[int, ...]:
    """A tensor's shape of at most `most` elements."""
    if not isinstance(value, list) or len(value) > MAX_RANK:
        raise InputError(f"expected a shape of at most {MAX_RANK} axes", where=where)
    shape = tuple(integer(n, 0, most, where) for n in value)
    if math.prod(shape) > most:
        raise InputError(f"shape {list(shape)} has more than {most} elements", where=where)
    return shape


def dtype_name(value: Any, known: tuple[str, ...], where: str) -> str:
    """A dtype's name out of a fixed list: names from a file never reach numpy unchecked."""
    if value not in known:
        raise InputError(f"dtype {printable(str(value), 60)!r} is not one of {', '.join(known)}", where=where)
    return value


def decoded(value: Any, dtype: str, count: int, where: str) -> np.ndarray:
    """`count` little-endian numbers from base64, as (count,); the text's length is checked before anything is decoded."""
    kind = dtype_of(dtype)
    nbytes = count * kind.itemsize
    if nbytes > MAX_ARRAY_BYTES or not isinstance(value, str) or len(value) != -(-nbytes // 3) * 4:
        raise InputError(f"expected {count} {dtype} in base64", where=where)
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"not base64: {error}", where=where) from error
    if len(raw) != nbytes:
        raise InputError(f"expected {nbytes} bytes in base64, got {len(raw)}", where=where)
    return np.frombuffer(raw, kind.newbyteorder("<")).astype(kind)
