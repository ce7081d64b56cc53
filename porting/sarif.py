"""Findings as SARIF 2.1.0 (OASIS), the form that code hosts and editors show.

What is found lies in a graph, not at a line of text: each result names the model's file and, as a logical location, the node.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import porting

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = ("error", "warning", "note", "none")


@dataclass(frozen=True)
class SarifRule:
    """What may be found. properties: JSON types only"""

    id: str
    says: str
    properties: Mapping[str, Any]


@dataclass(frozen=True)
class SarifResult:
    """One thing that was found. level: one of LEVELS; node: "" for the graph as a whole"""

    rule: str
    level: str
    message: str
    node: str


def to_sarif(rules: Iterable[SarifRule], results: Sequence[SarifResult], model: str, evidence_level: str) -> bytes:
    """One run. model: what was looked at, as a user names it; evidence_level: of the verdict. returns: UTF-8 JSON"""
    listed = {rule.id: rule for rule in rules}
    places = {identifier: index for index, identifier in enumerate(listed)}
    run = {
        "tool": {
            "driver": {
                "name": "porting",
                "version": porting.__version__,
                "rules": [
                    {"id": r.id, "shortDescription": {"text": r.says}, "properties": dict(r.properties)}
                    for r in listed.values()
                ],
            }
        },
        "properties": {"evidence_level": evidence_level},
        "results": [_result(one, places[one.rule], model) for one in results],
    }
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False).encode()


def _result(one: SarifResult, index: int, model: str) -> dict[str, Any]:
    if one.level not in LEVELS:
        raise ValueError(f"a level is one of {LEVELS}, not {one.level!r}")
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": _uri(model)}}}
    if one.node:
        location["logicalLocations"] = [{"name": one.node, "kind": "node"}]
    return {
        "ruleId": one.rule,
        "ruleIndex": index,
        "level": one.level,
        "message": {"text": one.message},
        "locations": [location],
    }


def _uri(path: str) -> str:
    from urllib.parse import quote

    return quote(path, safe="/.-_~")
