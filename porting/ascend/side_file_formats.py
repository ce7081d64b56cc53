"""The files by which ATC is told of exceptions from its precision mode, as texts: a writer and a reader of each.

    keep_dtype        a name a line, or OpType::Type: keeps the dtype that the graph has
    customize_dtypes  name::InputDtype:float32,OutputDtype:float32, or OpType::Type:InputDtype:...; wins over the mode and over keep_dtype
    modify_mixlist    {"black-list": {"to-add": [types]}}: types that the mixed modes do not lower
    op_precision_mode [ByOpType] and [ByNodeName], name=mode: how kernels compute inside

Source: ATC's pages on the four options (hicann/ge, docs of the 9.2 development state), and its reader of keep_dtype (attr_options): lines are
trimmed, a name is compared with the node's own and with the one that it had in the .onnx, and one that is not found is a warning there, and
E10042 in older sources. Types are those of the graph engine. Nothing here was given to an atc.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from porting.ascend.precision import CUSTOMIZE_DTYPES, KEEP_DTYPE, MODIFY_MIXLIST, OP_PRECISION_MODE
from porting.errors import InputError

HIGH_PRECISION, PLAIN_FP32 = "high_precision", "enable_float_32_execution"
OP_MODES = frozenset(
    (HIGH_PRECISION, "high_performance", "super_performance", "keep_fp16", PLAIN_FP32, "support_out_of_bound_index")
) | {"enable_hi_float_32_execution"}
_TYPE = "OpType::"
_ENGINE_TYPE = re.compile(r"[A-Z][a-zA-Z0-9]*")


@dataclass(frozen=True)
class Custom:
    """A line of customize_dtypes. key: a node's name, or OpType::Type"""

    key: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def unsayable(name: str) -> str:
    if not name or name != name.strip() or not name.isprintable():
        return "its name does not fit on a line: it is empty, or has blanks at its ends or control characters"
    if "::" in name or "=" in name or name[0] in "[#;":
        return "its name has characters that mean something else in these files"
    return ""


def _require_sayable(names: Iterable[str], where: str) -> None:
    for name in names:
        reason = unsayable(name)
        if reason:
            raise InputError(f"{name!r}: {reason}", where=where, next="rename the node")


def _require_type(name: str, where: str) -> None:
    if not _ENGINE_TYPE.fullmatch(name):
        raise InputError(f"{name!r} is no operator type of the graph engine", where=where, next="types are in PascalCase")


def keep_dtype_text(names: Iterable[str] = (), types: Iterable[str] = ()) -> str:
    """raises: InputError for a name or type that cannot stand there; so do all writers here"""
    names, types = list(names), list(types)
    _require_sayable(names, KEEP_DTYPE)
    for kind in types:
        _require_type(kind, KEEP_DTYPE)
    return "".join(f"{line}\n" for line in (*names, *(_TYPE + kind for kind in types)))


def read_keep_dtype(text: str) -> tuple[list[str], list[str]]:
    """Names and types. raises: InputError for what is not of the format; so do all readers here"""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    names = [line for line in lines if not line.startswith(_TYPE)]
    types = [line.removeprefix(_TYPE) for line in lines if line.startswith(_TYPE)]
    _require_sayable(names, KEEP_DTYPE)
    for kind in types:
        _require_type(kind, KEEP_DTYPE)
    return names, types


def customize_dtypes_text(lines: Iterable[Custom]) -> str:
    made = []
    for line in lines:
        is_type = line.key.startswith(_TYPE)
        if is_type:
            _require_type(line.key.removeprefix(_TYPE), CUSTOMIZE_DTYPES)
        else:
            _require_sayable([line.key], CUSTOMIZE_DTYPES)
        dtypes = f"InputDtype:{','.join(line.inputs)},OutputDtype:{','.join(line.outputs)}"
        made.append(f"{line.key}{':' if is_type else '::'}{dtypes}\n")
    return "".join(made)


def read_customize_dtypes(text: str) -> list[Custom]:
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        key, sign, rest = line.partition(":InputDtype:" if line.startswith(_TYPE) else "::InputDtype:")
        inputs, also, outputs = rest.partition(",OutputDtype:")
        if not (key and sign and also and inputs and outputs):
            raise InputError(
                f"{line[:200]!r} names no dtypes", where=CUSTOMIZE_DTYPES, next="name::InputDtype:...,OutputDtype:..."
            )
        made = Custom(key, tuple(inputs.split(",")), tuple(outputs.split(",")))
        customize_dtypes_text([made])
        found.append(made)
    return found


def mixlist_text(black: Iterable[str] = (), white: Iterable[str] = ()) -> str:
    """black: types to take out of what is lowered; white: types to put in"""
    lists = {"black-list": list(black), "white-list": list(white)}
    for kind in (*lists["black-list"], *lists["white-list"]):
        _require_type(kind, MODIFY_MIXLIST)
    return json.dumps({name: {"to-add": types} for name, types in lists.items() if types}, indent=2) + "\n"


def read_mixlist(text: str) -> dict[str, dict[str, list[str]]]:
    """list -> "to-add" and "to-remove" -> types."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("this is no JSON", where=MODIFY_MIXLIST) from error
    if not isinstance(content, dict) or set(content) - {"black-list", "white-list"}:
        raise InputError("this is no object of black-list and white-list", where=MODIFY_MIXLIST)
    for changes in content.values():
        if not isinstance(changes, dict) or set(changes) - {"to-add", "to-remove"}:
            raise InputError("a list has other keys than to-add and to-remove", where=MODIFY_MIXLIST)
        for types in changes.values():
            if not isinstance(types, list) or not all(isinstance(kind, str) for kind in types):
                raise InputError("types are a list of texts", where=MODIFY_MIXLIST)
            for kind in types:
                _require_type(kind, MODIFY_MIXLIST)
    return content


def op_precision_text(by_type: Mapping[str, str] | None = None, by_name: Mapping[str, str] | None = None) -> str:
    by_type, by_name = by_type or {}, by_name or {}
    for kind in by_type:
        _require_type(kind, OP_PRECISION_MODE)
    _require_sayable(by_name, OP_PRECISION_MODE)
    _require_modes((*by_type.values(), *by_name.values()))
    sections = [("ByOpType", by_type), ("ByNodeName", by_name)]
    return "\n".join(f"[{title}]\n" + "".join(f"{k}={m}\n" for k, m in lines.items()) for title, lines in sections if lines)


def read_op_precision(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Modes by type, and by name."""
    sections: dict[str, dict[str, str]] = {"[ByOpType]": {}, "[ByNodeName]": {}}
    current: dict[str, str] | None = None
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("["):
            if line not in sections:
                raise InputError(f"{line[:200]!r} is no section", where=OP_PRECISION_MODE, next=", ".join(sections))
            current = sections[line]
            continue
        key, sign, mode = line.partition("=")
        if current is None or not sign:
            raise InputError(f"{line[:200]!r} is no name=mode in a section", where=OP_PRECISION_MODE)
        current[key.strip()] = mode.strip()
    by_type, by_name = sections.values()
    op_precision_text(by_type, by_name)
    return by_type, by_name


def _require_modes(modes: Iterable[str]) -> None:
    for mode in modes:
        if mode not in OP_MODES:
            raise InputError(
                f"no precision mode of an operator is called {mode!r}",
                where=OP_PRECISION_MODE,
                next=", ".join(sorted(OP_MODES)),
            )
