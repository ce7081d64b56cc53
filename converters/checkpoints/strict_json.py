"""JSON from files that may be damaged or hostile: one object, UTF-8, every key once, no NaN or Infinity."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from porting.errors import CheckpointError

STRING_OR_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)', re.DOTALL)


class _Refused(Exception):
    """Raised inside the JSON decoder: (what, the next step)."""


def parse_object(data: bytes, path: Path, part: str = "") -> dict[str, Any]:
    """The JSON object that `data` is.

    path:   the file it comes from, for messages; part: which part of that file, when not all of it
    raises: CheckpointError with line and column: not UTF-8, not JSON, not an object, a key given twice, NaN or Infinity,
            text that UTF-8 cannot hold, nesting or a number too large to take
    """
    found: dict[str, Any] = _parsed(data, path, part, dict)
    return found


def parse_list(data: bytes, path: Path) -> list[Any]:
    """The JSON array that `data` is; as `parse_object` otherwise. raises: CheckpointError"""
    found: list[Any] = _parsed(data, path, "", list)
    return found


def _parsed(data: bytes, path: Path, part: str, kind: type) -> Any:
    wanted = "object" if kind is dict else "array"
    label = f"{path.name} ({part})" if part else path.name

    def refuse(what: str, todo: str = "fetch the file again or repair it") -> CheckpointError:
        return CheckpointError(f"{label} {what}", where=str(path), next=todo)

    if not data:
        raise refuse(f"is empty: expected a JSON {wanted}, got 0 bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse(f"is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}") from error
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise refuse(f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except _Refused as error:
        raise refuse(f"{error.args[0]}{_place_of_constant(text, error.args[0])}", error.args[1]) from error
    except (RecursionError, ValueError) as error:  # ValueError: an integer of more digits than Python converts
        raise refuse(f"is not usable JSON: {str(error).partition(';')[0]}") from error
    if not isinstance(value, kind):
        raise refuse(f"holds the wrong kind of JSON: expected an {wanted}, got {type(value).__name__}")
    if "\\u" in text and not _encodable(value):
        raise refuse("holds text that is not Unicode: half of a surrogate pair")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Refused(f"gives the key {key!r} twice", "keep the one that is meant; parsers differ in which they take")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise _Refused(f"holds {name}, which is not JSON", "replace it by a number or null")


def _place_of_constant(text: str, what: str) -> str:
    """` at line L, column C` of the constant that was refused, empty for another reason."""
    if not what.startswith("holds "):
        return ""
    place = next((m.start() for m in STRING_OR_CONSTANT.finditer(text) if m.group(1)), 0)
    return f" at line {text.count(chr(10), 0, place) + 1}, column {place - text.rfind(chr(10), 0, place)}"


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
