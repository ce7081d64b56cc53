"""What `porting check` found, for the terminal: a row for each rule, what the port is compiled in, and what else whoever reads it should know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from porting.verdict import printable

NAMED = 3  # nodes of a rule
STATUS = {"blocks": "BLOCKS", "mended": "mended", "noted": "noted"}
HEADINGS = ("", "rule", "nodes", "what the device does", "what mends it, or why nothing does", "known from")


def finding_rows(details: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each rule and status, what blocks first; cells as HEADINGS."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    order = {status: number for number, status in enumerate(STATUS)}
    for finding in sorted(details.get("findings", ()), key=lambda f: order[f["status"]]):
        groups.setdefault((finding["status"], finding["rule"]), []).append(finding)
    return [_row(status, found) for (status, _), found in groups.items()]


def _row(status: str, found: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    first = found[0]
    names = ", ".join(printable(f["node"] or "the graph", 60) for f in found[:NAMED])
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    code = f" ({first['code']})" if first["code"] else ""
    if status == "mended":
        helps = f"rewritten by {first['rewrite']}"
    elif first["rewrite"]:
        helps = f"{first['rewrite']} cannot here" + (f": {first['why']}" if first["why"] else "")
    else:
        helps = first["why"] or ""
    effect = f"{first['effect'].replace('_', ' ')}{code}: {first['says']}"
    return STATUS[status], first["rule"], f"{len(found)}: {names}{more}", effect, helps, first["confidence"]


def fact_lines(details: Mapping[str, Any]) -> list[str]:
    """Portability, precision mode, AI CPU and notes; empty for a verdict that says nothing of a compiler."""
    if "portability" not in details:
        return []
    rewrites = ", ".join(f"{name} {count}" for name, count in details.get("rewrites", {}).items())
    lines = [
        f"{details['portability']}"
        + (f" ({rewrites})" if rewrites else "")
        + f", for {details['soc']} ({details['family']}); {details['sources']}",
        f"compiled in {details['precision']}: {details['precision_mode']}; " + "; ".join(map(str, details["precision_notes"])),
    ]
    lines.append(_placement(details["ai_cpu"]))
    if facts := details.get("facts"):
        lines.append(f"facts: {printable(str(facts['said']), 400)}")
    if left_open := details.get("left_open"):
        lines.append(f"sizes left open: {left_open}")
    return [*lines, *(f"note: {printable(str(note), 300)}" for note in details.get("notes", ()))]


def _placement(placed: Mapping[str, Any]) -> str:
    """What is predicted to run on the AI CPU, and how little is known of the rest."""
    if placed["nodes"]:
        share = placed["share_of_multiplications"]
        said = "an unknown share" if share is None else f"{share:.1%}"
        names = ", ".join(printable(str(name), 60) for name in placed["nodes"][:NAMED])
        more = f" and {len(placed['nodes']) - NAMED} more" if len(placed["nodes"]) > NAMED else ""
        found = f"{len(placed['nodes'])} nodes with {said} of the multiplications: {names}{more}"
    else:
        found = "no node"
    unknown = (
        f"of {placed['kinds_without_a_source']} of the {placed['kinds']} kinds of operators here no source says where they run"
    )
    return f"predicted on the AI CPU, a quiet fallback: {found} (by the rules {', '.join(placed['rules'])}; {unknown})"
