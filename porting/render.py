"""What a person sees in the terminal. Names that come from a model are data: plain text cells, never markup."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from porting.cuts import CUT_HERE, spelled
from porting.render_findings import HEADINGS, fact_lines, finding_rows
from porting.verdict import Check, Verdict, printable

WIDTH = 118


def verdict_text(verdict: Verdict) -> str:
    """The verdict line first, then the checks, then how to run it again."""
    rows = [(c.verdict.upper(), c.name, number(c.value), number(c.bound), c.where) for c in verdict.checks]
    parts = [verdict.line(), "", table(("", "check", "value", "bound", "where"), rows)]
    facts = [f"evidence: {verdict.evidence_level}, compared with: {verdict.reference}"]
    if "compared_with" in verdict.details:
        facts[0] += f" ({printable(str(verdict.details['compared_with']))})"
    missed = verdict.details.get("not_reached")
    if missed:
        longest = verdict.details.get("longest_case")
        of = f" (longest: {longest} positions)" if longest is not None else ""
        facts.append(f"NOT shown by these inputs{of}: {printable('; '.join(map(str, missed)))}")
    unset = verdict.details.get("weights_missing")
    if unset:
        facts.append(f"NOT in the weights file, left as the factory made them: {printable(', '.join(map(str, unset)))}")
    fixed = verdict.details.get("constant_inputs")
    if fixed:
        facts.append(f"constants of the port, though the file lets a caller feed them: {printable(', '.join(map(str, fixed)))}")
    facts += cut_lines(verdict.details)
    lost = verdict.details.get("loses_most")
    if lost:
        facts.append(
            f"in W8A8 these lose most by themselves (--keep-float NODE): {', '.join(printable(str(n), 100) for n in lost)}"
        )
    findings = finding_rows(verdict.details)
    if findings:
        parts += ["", table(HEADINGS, findings)]
    facts += fact_lines(verdict.details)
    facts += memory_lines(verdict.details.get("memory"))
    forecast = verdict.details.get("forecast")
    if isinstance(forecast, str):
        facts.append(f"forecast of overflows: {printable(forecast, 200)}")
    handoff = verdict.details.get("handoff")
    if handoff:
        facts.append(f"for the compiler: {printable(str(handoff), 400)}")
    seconds = float(verdict.details.get("total_seconds", verdict.seconds))
    facts.append(f"{seconds:.1f} s, peak memory {verdict.peak_rss_bytes / 2**20:.0f} MiB")
    again = verdict.details.get("again")
    if again:
        facts.append(f"again: {printable(str(again))}")
    return "\n".join([*parts, *facts])


def cut_lines(details: Mapping[str, Any]) -> list[str]:
    """What a file was cut down to, and how one that is blocked could be."""
    found = []
    if details.get("fixed_inputs"):
        fixed = ", ".join(f"{name} = {spelled(value)}" for name, value in details["fixed_inputs"].items())
        found.append(f"fixed inputs: {printable(fixed, 400)}")
    if details.get("cut_outputs"):
        found.append(f"cut off behind {printable(', '.join(map(str, details['cut_outputs'])), 400)}")
    if details.get("cut_inputs"):
        found.append(f"inputs that nothing needs any more: {printable(', '.join(map(str, details['cut_inputs'])), 400)}")
    if details.get("cut_here"):
        found.append(f"{CUT_HERE} {printable(shlex.join(details['cut_here']), 1000)}")
    return found


def memory_lines(memory: Mapping[str, Any] | None) -> list[str]:
    """How much memory a card needs at least, and how many cards of each size that is."""
    if memory is None:
        return []
    fullest = max((a["bytes"] for a in memory["activations"].values()), default=0)
    parts = f"weights {_mib(memory['weights'])}, cache {_mib(memory['cache'])}, activations {_mib(fullest)}"
    cards = [f"{b['bytes'] / 2**30:.3g} GiB: {b['cards_at_least']}" for b in memory["boards"]]
    unsized = memory["values_left_out"]
    return [
        f"memory: at least {_mib(memory['at_least'])} ({parts}); not in it: {', '.join(memory['unknown'])}"
        + (f"; and {unsized} values whose size is left open: give the gears" if unsized else ""),
        f"cards at least, by memory: {', '.join(cards)}"
        if cards
        else "cards: how much memory they have is not known: --device-memory SIZE",
    ]


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def number(value: Check | float | int | str | None) -> str:
    """A check's value or bound, short."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else printable(str(value))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        drawn.add_column(heading, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(printable(str(cell))) for cell in row))
    console = Console(file=StringIO(), width=WIDTH, color_system=None, highlight=False)
    console.print(drawn)
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).strip("\n")
