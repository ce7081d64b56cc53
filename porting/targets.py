"""What a port can be made for: `cpu`, `cuda`, or an Ascend SoC as the vendor spells it. The table is targets.json."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from porting.errors import UsageError, nearest

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4", "w8a8")
DEFAULT_ASCEND = "Ascend910B3"
LISTED = 12  # targets in a message
SOLD_AS = {"ascend910c": "Ascend910_93"}  # a name on the box -> how the soc_versions of such chips begin


@dataclass(frozen=True)
class Target:
    """A target.

    kind:       "cpu", "cuda" or "ascend"
    memory:     bytes of one device, None where the table does not say
    precisions: those that `convert` can write for it
    notes:      what the user should be told about the choice
    """

    name: str
    kind: str
    memory: int | None
    precisions: tuple[str, ...]
    notes: tuple[str, ...] = ()


@cache
def _table() -> Mapping[str, Mapping[str, Any]]:
    return json.loads(Path(__file__).with_name("targets.json").read_text(encoding="utf-8"))["targets"]


def find_target(name: str) -> Target:
    """Look a target up, case-insensitively. raises: UsageError with the nearest name"""
    notes = []
    if name.lower() == "ascend":
        name = DEFAULT_ASCEND
        notes.append(f"'ascend' stands for {DEFAULT_ASCEND}")
    spelled = {k.lower(): k for k in _table()}.get(name.lower())
    if spelled is None:
        raise UsageError(f"unknown target {name!r}", where="--target", next=_known(name))
    if spelled == "Ascend910B":
        notes.append(
            "Ascend910B without a digit is the first-generation 910, which has no bf16; the A2 chips are Ascend910B1 to B4"
        )
    row = _table()[spelled]
    memory = None if row["memory_gib"] is None else int(row["memory_gib"] * 2**30)
    return Target(spelled, row["kind"], memory, tuple(row.get("precisions", ())), tuple(notes))


def _known(name: str) -> str:
    """What may have been meant: all chips of a name that several have, else the nearest target in any case."""
    socs = [target for target in _table() if target not in ("cpu", "cuda")]
    sold = SOLD_AS.get(name.lower(), name).lower()
    meant = [soc for soc in socs if len(sold) >= len("ascend") and soc.lower().startswith(sold)]
    if meant:
        more = f" and {len(meant) - LISTED} more" if len(meant) > LISTED else ""
        return f"a soc_version says which one: {', '.join(meant[:LISTED])}{more} (`npu-smi info` on the machine shows it)"
    shorthand = ["ascend"] if len(name) <= len("ascend") + 1 else []  # every SoC begins so: no hint for a long name
    spelled = {target.lower(): target for target in (*shorthand, *_table())}
    close = difflib.get_close_matches(name.lower(), list(spelled), n=1)
    hint = f"did you mean {spelled[close[0]]!r}? " if close else ""
    return f"{hint}known: cpu, cuda, ascend, and {len(socs)} Ascend SoCs, such as Ascend310P3, Ascend910B3, Ascend950PR_9599"


def resolve_precision(target: Target, precision: str | None, stored: set[str]) -> str:
    """The precision to write: what was asked for, `source` for the checkpoint's own, or fp32.

    stored: dtypes of the checkpoint's tensors
    raises: UsageError when the target does not take it
    """
    wanted = stored_precision(stored) if precision == "source" else precision or "fp32"
    if wanted not in target.precisions:
        raise UsageError(
            f"target {target.name} is not written in {wanted!r}", where="--precision", next=nearest(wanted, target.precisions)
        )
    return wanted


def stored_precision(stored: set[str]) -> str:
    """The one precision that a checkpoint's dtypes amount to. raises: UsageError for a mixture"""
    kinds = {{"F32": "fp32", "F16": "fp16", "BF16": "bf16"}.get(d, d) for d in stored}
    if len(kinds) != 1:
        raise UsageError(
            f"the checkpoint mixes {', '.join(sorted(kinds))}: `source` names no single precision",
            where="--precision",
            next="name one: fp32, int8, int4",
        )
    return kinds.pop()


def all_targets() -> list[Target]:
    """Every target of the table, in its order."""
    return [find_target(name) for name in _table()]
