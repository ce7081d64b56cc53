"""How the rule base is followed where a probe has seen an NPU: by `check` only facts of hardware, by the simulator any.

the device does as the rule says       the rule stands, probed on hardware
the device takes it, and is right      the rule blocks no more, and the report names the facts that refute it
the device does worse                  the rule blocks
simulated, undecided, not probed       nothing changes; simulated facts are told as such
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from porting.ascend.facts_file import CONFIRMED, OVERFLOW, REFUTED, Fact, Facts
from porting.ascend.precision import Mode
from porting.ascend.rules import PROBED, Finding, Rule
from porting.ascend.soc import Soc
from porting.errors import UsageError

INFINITE, SATURATED = "infinity", "largest number"  # how an overflow may go
BLOCKS_PRECISION = {"fp32": "fp32-cube", "bf16": "bf16-precision"}  # the rule that a mode's blocker is about
WHERE = "--facts"


def require_fitting(facts: Facts, soc: Soc, cann: str | None) -> str:
    """What is to be said of facts for a SoC and a release. raises: UsageError for those of another chip, or another release than was named"""
    if facts.soc != soc.name:
        raise UsageError(
            f"these are facts of an {facts.soc}, and the target is {soc.name}",
            where=f"{WHERE} {facts.path}",
            next=f"--target {facts.soc}, or probe an {soc.name}",
        )
    if cann is not None and facts.cann != cann:
        raise UsageError(
            f"these are facts of CANN {facts.cann or facts.found or 'of an unknown release'}, and --cann is {cann}",
            where=f"{WHERE} {facts.path}",
            next="leave --cann out, or probe with that release",
        )
    notes = [] if facts.is_hardware else ["they show nothing of the chip, and change nothing"]
    if cann is None:
        notes.append(f"seen with CANN {facts.cann or facts.found or 'of an unknown release'} only: another release may differ")
    return "; ".join((facts.named(), *notes))


def followed(findings: Iterable[Finding], facts: Facts | None) -> list[Finding]:
    """Findings as facts about the chip leave them."""
    if facts is None:
        return list(findings)
    return [_followed(finding, facts) for finding in findings]


def _followed(finding: Finding, facts: Facts) -> Finding:
    fact = facts.by_rule.get(finding.rule.id)
    if fact is None or fact.verdict not in (CONFIRMED, REFUTED):
        return finding
    if not facts.is_hardware:
        said = f"simulated: {facts.named()} have it {fact.verdict}, which shows nothing of the chip"
        return replace(finding, detail="; ".join(filter(None, (finding.detail, said))))
    return replace(finding, rule=_probed(finding.rule, fact, facts))


def _probed(rule: Rule, fact: Fact, facts: Facts) -> Rule:
    code = rule.code or fact.code_seen or None if fact.seen == "refuses" else None
    source = f"{rule.source}; {facts.named()}"
    if fact.verdict == CONFIRMED and fact.seen == rule.effect:
        return replace(rule, confidence=PROBED, source=source)
    said = f"{rule.says}: {fact.verdict} by {facts.named()}: {fact.text}"
    return replace(rule, effect=fact.seen, code=code, says=said, confidence=PROBED, source=source)


def mode_with(mode: Mode, facts: Facts | None, precision: str) -> Mode:
    """A mode that a rule blocks, where facts of hardware refute the rule."""
    rule = BLOCKS_PRECISION.get(precision, "")
    fact = None if facts is None or not facts.is_hardware else facts.by_rule.get(rule)
    if facts is None or fact is None or not mode.blocker or (fact.verdict, fact.seen) != (REFUTED, "none"):
        return mode
    note = f"{mode.blocker}: refuted by {facts.named()}"
    return replace(
        mode, blocker="", next="", notes=(*mode.notes, note), confidence=PROBED, source=f"{mode.source}; {facts.named()}"
    )


def soc_with(soc: Soc, facts: Facts | None, *, simulated: bool = False) -> Soc:
    """A chip whose overflow was seen. simulated: follow simulated facts too"""
    fact = None if facts is None else facts.by_trap.get(OVERFLOW)
    if facts is None or fact is None or not (facts.is_hardware or simulated) or fact.verdict == "not probed":
        return soc
    if fact.seen not in (INFINITE, SATURATED):
        return soc
    saturates = fact.seen == SATURATED
    note = () if saturates == soc.saturates else (f"overflow of fp16 gives the {fact.seen}, by {facts.named()}",)
    return replace(soc, saturates=saturates, notes=(*soc.notes, *note))


def followed_by_simulator(
    findings: Iterable[Finding], facts: Facts | None, misread: Collection[str], shown: Collection[str]
) -> Iterator[Finding]:
    """Findings as the simulator goes by them, whatever the level of the facts.

    misread: rules that it knows a wrong result for; what else comes out wrong it refuses, because nothing says how
    shown:   rules that leave open what its arithmetic does anyway
    """
    for finding in findings:
        rule = finding.rule
        fact = None if facts is None else facts.by_rule.get(rule.id)
        if (
            fact is None
            or fact.verdict not in (CONFIRMED, REFUTED)
            or fact.seen == rule.effect
            or (fact.seen == "wrong" and rule.id in shown)
        ):
            yield finding
        elif fact.seen != "none":
            unknown = fact.seen == "wrong" and rule.id not in misread
            effect, code = ("refuses", None) if unknown else (fact.seen, fact.code_seen or None)
            more = (
                ": facts say that it comes out wrong, and not how: the simulator refuses what it cannot compute"
                if unknown
                else ""
            )
            yield replace(
                finding, rule=replace(rule, effect=effect, code=code, says=f"{rule.says}{more}", confidence="inferred")
            )
