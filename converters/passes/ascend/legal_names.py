"""Names of nodes that are unique, not empty, and without the signs that ATC's options and side files split at.

    ":", ";", ",", quotes, backslash, white space   ->   "_"

Why: ATC refuses two nodes of one name (E13009), and --out_nodes, --keep_dtype and the like separate at these signs.

Left alone: names of inputs, outputs and values in between. Those of inputs and outputs are what users feed and read by.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import re

import onnx_ir as ir

from ..rewriting import ModelPass, bodies_of

SPLIT_AT = re.compile(r"[:;,\s\"'\\]")


@ModelPass
def legal_names(model: ir.Model) -> int:
    """Count: nodes renamed. The first of several of one name keeps it."""
    nodes = [node for body in bodies_of(model) for node in body]
    taken = {node.name for node in nodes}
    seen: set[str] = set()
    changes = 0
    for node in nodes:
        old = node.name or ""
        name = SPLIT_AT.sub("_", old) or node.op_type
        if name != old or name in seen:
            name = _free(name, taken)
        seen.add(name)
        if name != old:
            node.name = name
            taken.add(name)
            changes += 1
    return changes


def _free(name: str, taken: set[str | None]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate
