"""Which operators Ascend's ONNX parser has an entry for, and what they become in its graph engine. The table is data/operators.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ANY = "any"  # the parser takes the operator whatever the opset


@cache
def _table() -> Mapping[str, Mapping[str, Any]]:
    return json.loads((Path(__file__).parent / "data" / "operators.json").read_text(encoding="utf-8"))["operators"]


@cache
def _opsets(op: str, domain: str) -> frozenset[int] | None:
    """Versions with an entry, None for every one."""
    spelled = _table().get(domain, {}).get(op, {}).get("opsets", "")
    if spelled == ANY:
        return None
    versions: set[int] = set()
    for piece in filter(None, spelled.split(",")):
        first, _, last = piece.partition("-")
        versions.update(range(int(first), int(last or first) + 1))
    return frozenset(versions)


def is_registered(op: str, domain: str, opset: int) -> bool:
    """Whether the parser finds `domain::opset::op`. It looks for exactly that: there is no falling back to an older version."""
    versions = _opsets(op, domain)
    return versions is None or opset in versions


def registered_opsets(op: str, domain: str = "") -> frozenset[int] | None:
    """The versions with an entry; empty where there is none, None where any will do."""
    return _opsets(op, domain)


def engine_types(op: str, domain: str = "") -> tuple[str, ...]:
    """Operator types of the graph engine that the parser makes of it, as ATC's files of exceptions name them; () where unknown."""
    return tuple(_table().get(domain, {}).get(op, {}).get("engine", ()))
