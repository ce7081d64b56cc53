"""The file of --insert_op_conf, written and read: a small part of protobuf's text format.

    aipp_op {
        aipp_mode: static
        related_input_rank: 0
        input_format: RGB888_U8
        ...
    }

All that counts is written: a field that is left out has a default that is not always nothing (output_bias is 16, 128, 128). The reader takes what
`atc` takes of it for mode static: comments, fields in any order, true and false, names of enumerations; a field that it does not know, one that
comes twice, and one that is reserved and set are errors. Channel counts are not in the file: they are those of the model's input.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from porting.ascend.aipp import LARGEST_HALF, LARGEST_PADDING, LARGEST_SIDE, MATRIX_RANGE, SOURCES, AippOp
from porting.ascend.colours import Colour
from porting.ascend.preprocessing import Padding
from porting.errors import InputError, nearest
from porting.verdict import printable

MAX_TEXT = 1 << 20  # characters
MAX_OPS = 64
_TOKEN = re.compile(r"\s+|#[^\n]*|(?P<word>[A-Za-z_][A-Za-z_0-9]*)|(?P<number>[-+]?[0-9.][0-9.eE+-]*)|(?P<sign>[{}:;,])")
_SIDES = ("left", "right", "top", "bottom")
_PER_CHANNEL = ("mean_chn", "min_chn", "var_reci_chn")
_MATRIX = [f"matrix_r{row}c{column}" for row in range(3) for column in range(3)]


@dataclass(frozen=True)
class Field:
    """kind: "int", "float", "bool", "format" or "mode"; default: what atc takes where it is left out, None where it has to be there"""

    kind: str
    default: Any
    low: float = 0.0
    high: float = 0.0


# the defaults of a conversion are YUV420SP_U8 to BGR [documented]; GE's source has others for other formats, so that here a conversion names all
FIELDS: Mapping[str, Field] = {
    "aipp_mode": Field("mode", None),
    "related_input_rank": Field("int", 0, 0, 1 << 16),
    "input_format": Field("format", None),
    "src_image_size_w": Field("int", 0, 0, LARGEST_SIDE),
    "src_image_size_h": Field("int", 0, 0, LARGEST_SIDE),
    "crop": Field("bool", False),
    "load_start_pos_w": Field("int", 0, 0, LARGEST_SIDE - 1),
    "load_start_pos_h": Field("int", 0, 0, LARGEST_SIDE - 1),
    "crop_size_w": Field("int", 0, 0, LARGEST_SIDE),
    "crop_size_h": Field("int", 0, 0, LARGEST_SIDE),
    "padding": Field("bool", False),
    **{f"{side}_padding_size": Field("int", 0, 0, LARGEST_PADDING) for side in _SIDES},
    "padding_value": Field("float", 0.0, -LARGEST_HALF, LARGEST_HALF),
    "csc_switch": Field("bool", False),
    "rbuv_swap_switch": Field("bool", False),
    **{name: Field("int", None, *MATRIX_RANGE) for name in _MATRIX},
    **{f"input_bias_{i}": Field("int", None, 0, 255) for i in range(3)},
    **{f"output_bias_{i}": Field("int", None, 0, 255) for i in range(3)},
    **{f"mean_chn_{i}": Field("int", 0, 0, 255) for i in range(4)},
    **{f"min_chn_{i}": Field("float", 0.0, 0, 255) for i in range(4)},
    **{f"var_reci_chn_{i}": Field("float", 1.0, -LARGEST_HALF, LARGEST_HALF) for i in range(4)},
}
_KNOWN: Mapping[str, Mapping[str, Any]] = {
    "mode": {"static": "static"},
    "format": {name: name for name in SOURCES},
    "bool": {"true": True, "false": False, "1": True, "0": False},
}
RESERVED = ("resize", "ax_swap_switch", "single_line_mode", "support_rotation")  # may be there as false


def aipp_text(ops: Sequence[AippOp]) -> str:
    """The file's content."""
    return "".join(
        f"aipp_op {{\n{''.join(f'    {name}: {_shown(value)}{chr(10)}' for name, value in _fields(op))}}}\n" for op in ops
    )


def _fields(op: AippOp) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [
        ("aipp_mode", "static"),
        ("related_input_rank", op.rank),
        ("input_format", op.input_format),
        ("src_image_size_w", op.src[0]),
        ("src_image_size_h", op.src[1]),
        ("crop", op.crop is not None),
    ]
    if op.crop is not None:
        found += zip(("load_start_pos_w", "load_start_pos_h", "crop_size_w", "crop_size_h"), op.crop, strict=True)
    found += [("rbuv_swap_switch", op.swap), ("csc_switch", op.colour is not None)]
    if op.colour is not None:
        found += zip(_MATRIX, (n for row in op.colour.matrix for n in row), strict=True)
        found += [(f"input_bias_{i}", n) for i, n in enumerate(op.colour.input_bias)]
        found += [(f"output_bias_{i}", n) for i, n in enumerate(op.colour.output_bias)]
    for name, numbers in zip(_PER_CHANNEL, (op.mean_chn, op.min_chn, op.var_reci_chn), strict=True):
        found += [(f"{name}_{i}", n) for i, n in enumerate(numbers)]
    found.append(("padding", op.padding is not None))
    if op.padding is not None:
        found += [(f"{side}_padding_size", getattr(op.padding, side)) for side in _SIDES]
        found.append(("padding_value", op.padding.value))
    return found


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(np.float32(value)) if isinstance(value, float) else str(value)  # the shortest digits that float32 reads back


# --- back ---------------------------------------------------------------------------------------------------------


def parse_aipp(text: str, channels: Sequence[int], where: str = "insert_op_conf") -> tuple[AippOp, ...]:
    """The entries of a file.

    channels: of each input of the model, in order; 0 for one that is no image
    raises:   InputError for what is no such file, or has numbers out of range
    """
    if len(text) > MAX_TEXT:
        raise InputError(f"the file has more than {MAX_TEXT} characters", where=where)
    ops = tuple(_op(fields, channels, where) for fields in _messages(_tokens(text, where), where))
    if len({op.rank for op in ops}) != len(ops):
        raise InputError("two aipp_op are about one input (ATC: E10052)", where=where)
    return ops


def _tokens(text: str, where: str) -> list[str]:
    found, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            line = text.count("\n", 0, place) + 1
            raise InputError(f"line {line}: {printable(text[place : place + 20], 40)!r} is not understood", where=where)
        if match.lastgroup is not None:
            found.append(match.group())
        place = match.end()
    return found


def _messages(tokens: list[str], where: str) -> list[dict[str, str]]:
    """Field -> its value as written, an aipp_op each."""
    messages: list[dict[str, str]] = []
    left = tokens[::-1]  # the next one last
    while left:
        head = left.pop()
        if left and left[-1] == ":":
            left.pop()
        brace = left.pop() if left else ""
        if (head, brace) != ("aipp_op", "{") or len(messages) == MAX_OPS:
            raise InputError(f"expected at most {MAX_OPS} times aipp_op {{ ... }}, got {printable(head, 40)!r}", where=where)
        messages.append(_message(left, where))
    if not messages:
        raise InputError("the file has no aipp_op", where=where)
    return messages


def _message(left: list[str], where: str) -> dict[str, str]:
    """The fields to the closing brace, which are taken off `left`."""
    fields: dict[str, str] = {}
    while left and left[-1] != "}":
        name, colon, value = ([left.pop() for _ in range(3)]) if len(left) >= 3 else ("", "", "")
        if not name.isidentifier() or colon != ":" or value in ("{", "}", ":", ";", ","):
            raise InputError(f"expected field: value, got {printable(f'{name}{colon}{value}', 60)!r}", where=where)
        if name in fields:
            raise InputError(f"{printable(name, 60)} comes twice", where=where)
        fields[name] = value
        if left and left[-1] in (";", ","):
            left.pop()
    if not left:
        raise InputError("an aipp_op has no end", where=where)
    left.pop()
    return fields


def _op(written: Mapping[str, str], channels: Sequence[int], where: str) -> AippOp:
    for name in RESERVED:
        if written.get(name, "false") not in ("false", "0"):
            raise InputError(f"{name} is reserved, and does nothing that is documented", where=where, next="leave it out")
    for name in written:
        if name not in FIELDS and name not in RESERVED:
            raise InputError(f"unknown field {printable(name, 60)!r}", where=where, next=nearest(name, list(FIELDS)))
    optional = {name for name, field in FIELDS.items() if field.kind not in ("mode", "format") and field.default is None}
    value = {name: _value(name, written.get(name), name in optional, where) for name in FIELDS}
    rank, source = value["related_input_rank"], value["input_format"]
    count = channels[rank] if rank < len(channels) else 0
    _require_channels(value, count, f"{where}: input {rank}")
    _require_size(value, where)
    mean, least, factor = (tuple(value[f"{kind}_{i}"] for i in range(count)) for kind in _PER_CHANNEL)
    padding = Padding(
        value["left_padding_size"],
        value["right_padding_size"],
        value["top_padding_size"],
        value["bottom_padding_size"],
        value["padding_value"],
    )
    return AippOp(
        rank,
        source,
        (value["src_image_size_w"], value["src_image_size_h"]),
        count,
        mean,
        least,
        factor,
        value["rbuv_swap_switch"],
        _crop(value, where),
        _colour(value, where),
        padding if value["padding"] else None,
    )


def _require_channels(value: Mapping[str, Any], count: int, where: str) -> None:
    """The model's channels are those of the image, or of the conversion; the first of YUV420SP_U8 alone is its gray."""
    source = value["input_format"]
    possible = (1,) if source == "YUV400_U8" else (1, 3) if value["csc_switch"] or source == "YUV420SP_U8" else (3,)
    if count not in possible:
        raise InputError(f"the model's input has {count or 'no'} channels, {source} makes {possible[-1]}", where=where)
    names = [f"{kind}_{i}" for kind in _PER_CHANNEL for i in range(count, 4)]
    idle = [name for name in names if value[name] != FIELDS[name].default]
    if idle:
        raise InputError(f"{idle[0]} is set, and the model's input has {count} channels", where=where)
    if source == "YUV400_U8" and (value["csc_switch"] or value["rbuv_swap_switch"]):
        raise InputError("YUV400_U8 has no colours to convert or swap", where=where)


def _require_size(value: Mapping[str, Any], where: str) -> None:
    width, height = value["src_image_size_w"], value["src_image_size_h"]
    if (width == 0) != (height == 0) or width == 1:
        raise InputError(
            f"src_image_size of {width} x {height}", where=where, next="a width from 2, or both 0: as the model says"
        )
    if not width and (value["crop"] or value["padding"]):
        raise InputError("crop and padding need src_image_size_w and src_image_size_h", where=where)
    if value["input_format"] == "YUV420SP_U8" and (width % 2 or height % 2):
        raise InputError(f"YUV420SP_U8 of {width} x {height} pixels: both sides are even", where=where)


def _crop(value: Mapping[str, Any], where: str) -> tuple[int, int, int, int] | None:
    if not value["crop"]:
        return None
    left, top, width, height = (value[name] for name in ("load_start_pos_w", "load_start_pos_h", "crop_size_w", "crop_size_h"))
    if not width or not height:
        raise InputError("a crop without a size is not read here", where=where, next="write crop_size_w and crop_size_h")
    if left + width > value["src_image_size_w"] or top + height > value["src_image_size_h"]:
        raise InputError("the crop reaches beyond src_image_size", where=where)
    if value["input_format"] == "YUV420SP_U8" and any(n % 2 for n in (left, top, width, height)):
        raise InputError("a crop of YUV420SP_U8 has even sides and starts", where=where)
    return left, top, width, height


def _colour(value: Mapping[str, Any], where: str) -> Colour | None:
    if not value["csc_switch"]:
        return None
    names = [*_MATRIX, *(f"{kind}_{i}" for kind in ("input_bias", "output_bias") for i in range(3))]
    missing = [name for name in names if value[name] is None]
    if missing:
        raise InputError(f"csc_switch is on, and {missing[0]} is left out: its default hangs on the version", where=where)
    numbers = [value[name] for name in names]
    rows = [tuple(numbers[i : i + 3]) for i in range(0, 15, 3)]
    return Colour((rows[0], rows[1], rows[2]), rows[3], rows[4])


def _value(name: str, written: str | None, optional: bool, where: str) -> Any:
    field = FIELDS[name]
    if written is None:
        if field.default is None and not optional:
            raise InputError(f"{name} is missing", where=where)
        return field.default
    known = _KNOWN.get(field.kind)
    if known is not None:
        if written not in known:
            raise InputError(f"{name}: {printable(written, 40)!r} is not one of {', '.join(known)}", where=where)
        return known[written]
    number = _number(written, field.kind)
    if number is None or not field.low <= number <= field.high:
        raise InputError(
            f"{name}: {printable(written, 40)!r} is no {field.kind} from {field.low:g} to {field.high:g}", where=where
        )
    return number


def _number(written: str, kind: str) -> int | float | None:
    try:
        number = float(np.float32(written)) if kind == "float" else int(written) if len(written) < 12 else None
    except ValueError:
        return None
    return number if number is None or math.isfinite(number) else None
