"""Will a model port to an Ascend SoC? Judged against documents and sources, on no device: what they refuse, what they get wrong, what mends it.

The graph is judged twice, as it comes and as the passes leave it. What only the first shows is mended; what the second still shows blocks.
An .onnx file is judged as it lies on the disk too: what only the file shows was mended by reading it, or by the canonical passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from porting.ascend.cuts import advice
from porting.ascend.facts_file import Facts
from porting.ascend.file_facts import FileFacts
from porting.ascend.graph_facts import GraphFacts, facts_of
from porting.ascend.pass_comparison import PassComparison
from porting.ascend.precision import Mode, cube_takes_fp32, in_release, mode_for
from porting.ascend.probe_facts import followed, mode_with, soc_with
from porting.ascend.rules import Finding, judge, rules, several
from porting.ascend.soc import Soc
from porting.ascend.work import share_of
from porting.conversion import Canonical
from porting.errors import UnsupportedModel, UsageError
from porting.targets import Target, find_target
from porting.types import Graph
from porting.verdict import Check, Verdict, printable

BLOCKING = ("refuses", "wrong")
HALVES = {"float16": "fp16", "bfloat16": "bf16"}
SOURCE = "source"  # the precision that a graph has by itself
PORTABLE, REWRITTEN, BLOCKED = "portable", "portable after rewrites", "blocked"
EVERY_VERSION = "no --cann: judged against sources of CANN 9.2 in development and documents of 8.0 to 9.1; a release may differ"
NAMED = 5  # nodes that a check names


@dataclass(frozen=True, eq=False)
class Judged:
    """A graph before and after the passes for Ascend, and what the sources say of both.

    mended, blocking, noted: findings that the passes took away, that stand in the way, and that are only told
    applied:                 the passes, as port.json lists them
    cut:                     options that cut off what is in the way, where it comes last
    """

    soc: Soc
    cann: str | None
    precision: str
    mode: Mode
    lowered: Graph
    facts: GraphFacts
    applied: Sequence[Mapping[str, Any]]
    mended: Sequence[Finding]
    blocking: Sequence[Finding]
    noted: Sequence[Finding]
    cut: Sequence[str] = ()

    @property
    def portability(self) -> str:
        return BLOCKED if self.blocking or self.mode.blocker else REWRITTEN if self.mended else PORTABLE

    def require_portable(self) -> None:
        """raises: UnsupportedModel naming what blocks"""
        failed = [one for one in checks_of(self) if one.verdict != "pass"]
        if failed:
            raise UnsupportedModel(
                f"blocked for {self.soc.name}: {failed[0].sentence()}"
                + (f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""),
                where=failed[0].where,
                next="; ".join(filter(None, (advice(self.cut), failed[0].detail)))
                or "`porting check` lists everything that is in the way",
            )

    def manifest(self) -> dict[str, Any]:
        """What port.json keeps: JSON types only."""
        return {
            "soc": self.soc.name,
            "cann": self.cann,
            "precision": self.precision,
            "precision_mode": self.mode.argument,
            "portability": self.portability,
            "mended": sorted({f.rule.id for f in self.mended}),
            "noted": sorted({f.rule.id for f in self.noted}),
        }


def judged(
    graph: Graph,
    soc: Soc,
    cann: str | None = None,
    precision: str | None = "fp32",
    *,
    compared: bool = False,
    file: FileFacts | None = None,
    probed: Facts | None = None,
) -> Judged:
    """Judge a canonical graph, lower it, and judge what came out. No weight is read that no pass changes.

    precision: what it is to be compiled in; "source" for what the graph computes in, None for that where it is half floats that the SoC takes,
               and else for the default of the SoC
    compared: whether what each pass changes is run before and after it, see pass_comparison.py; UnsupportedModel where a result is another
    file: what the .onnx file that the graph was read from says of itself; None where it comes from none
    probed: what a probe saw of this chip: it decides rules, and which of two overflows the chip has
    """
    from porting.converters.passes.ascend.tables import lower_for_ascend

    soc = soc_with(soc, probed)
    plain = facts_of(graph)
    stored = stored_precision(plain)
    precision = precision or default_precision(soc, stored)
    wanted = stored if precision == SOURCE else precision

    def spoken(facts: GraphFacts) -> list[Finding]:
        return followed(judge(facts, soc, cann, precision=wanted), probed)

    before = spoken(plain)
    lowered, applied = lower_for_ascend(graph, PassComparison() if compared else None)
    facts = facts_of(lowered)
    after = spoken(facts)
    left = {(f.rule.id, f.node) for f in after}
    mended = [f for f in before if _is_mended(f) and (f.rule.id, f.node) not in left]
    if file is not None:
        mended += mended_in_file(file, {f.rule.id for f in (*before, *after)}, spoken(file.facts))
    blocking = [f for f in after if f.rule.effect in BLOCKING]
    noted = [f for f in after if f.rule.effect not in BLOCKING]
    mode = in_release(mode_with(mode_for(soc, wanted, stored=stored_precision(facts)), probed, wanted), cann)
    return Judged(soc, cann, wanted, mode, lowered, facts, applied, mended, blocking, noted)


def mended_in_file(file: FileFacts, spoken: Collection[str], found: Sequence[Finding]) -> list[Finding]:
    """What rules say of a file as it lies on the disk, and of the graph that was made of it no more.

    spoken: rules that speak of that graph, before or after the passes for Ascend
    found:  what they say of the file
    """
    return [replace(f, mended_by=file.mended_by(f.rule.id)) for f in found if _is_mended(f) and f.rule.id not in spoken]


def _is_mended(finding: Finding) -> bool:
    """Whether what a rule says of a node is mended where it speaks of it no more: also what sources leave open, if a pass is there for it."""
    rule = finding.rule
    return rule.effect in BLOCKING or (rule.effect == "unknown" and bool(finding.node and rule.rewrite))


def default_precision(soc: Soc, stored: str = "fp32") -> str:
    """What the graph computes in, where that is half floats that the SoC takes; else fp32, or fp16 where its matrix unit takes nothing else."""
    if stored == "fp16" or (stored == "bf16" and soc.bf16):
        return stored
    return "fp16" if cube_takes_fp32(soc) is False else "fp32"


def stored_precision(facts: GraphFacts) -> str:
    """What a graph computes in by itself: "fp16" or "bf16" where no node gives another float, Casts apart; else "fp32"."""
    floats = {
        out.dtype
        for node in facts.nodes
        if node.op not in ("Cast", "Constant")
        for out in node.outputs
        if out.dtype in HALVES or out.dtype in ("float32", "float64")
    }
    return HALVES[floats.pop()] if len(floats) == 1 and floats <= HALVES.keys() else "fp32"


NOT_COMPARED = ", and no rewrite was run: `porting port` and `convert` compare each with what it changed"


def verdict_of(
    result: Judged, command: str, source: str, target: Target, seconds: float, more: Sequence[Check] = ()
) -> Verdict:
    """What the rules alone say, and checks that were made elsewhere: level "static"."""
    return Verdict.from_checks(
        command,
        [*checks_of(result), *more],
        evidence_level="static",
        reference="upstream",
        source=source,
        target=target.name,
        device="none",
        seconds=round(seconds, 3),
        details={
            "portability": result.portability,
            **details_of(result),
            "notes": list(
                dict.fromkeys((*target.notes, *result.soc.notes, *(str(p["note"]) for p in result.applied if "note" in p)))
            ),
        },
        not_shown="nothing ran on Ascend" + (NOT_COMPARED if command == "check" and result.portability == REWRITTEN else ""),
    )


def ascend_target(name: str) -> Target:
    """raises: UsageError for a target that is none"""
    wanted = find_target(name)
    if wanted.kind != "ascend":
        raise UsageError(
            f"`check` judges what a vendor's compiler will say, and {wanted.name} has none",
            where="--target",
            next=f"`porting port SOURCE -o PORT --target {wanted.name}` converts and validates it right away",
        )
    return wanted


def source_name(canonical: Canonical) -> str:
    return Path(canonical.source.path).name or canonical.architecture


def checks_of(result: Judged) -> list[Check]:
    """One check for each rule that blocks, and one that says how many nodes were looked at."""
    by_rule: dict[str, list[Finding]] = {}
    for finding in sorted(
        result.blocking, key=lambda f: f.node == ""
    ):  # nodes first: what is said of the graph follows from them
        by_rule.setdefault(finding.rule.id, []).append(finding)
    checks = [blocker(findings) for findings in by_rule.values()]
    if result.mode.blocker:
        detail = f"{result.mode.source}; {result.mode.confidence}" + (f"; {result.mode.next}" if result.mode.next else "")
        checks.append(
            Check(f"{result.precision} on {result.soc.name}", "fail", result.mode.blocker, None, result.mode.argument, detail)
        )
    if not checks:
        where = f"{len(result.facts.nodes)} nodes, {result.soc.name}, {'CANN ' + result.cann if result.cann else 'no CANN release given'}"
        checks.append(Check.equal("nodes that these sources refuse or compute wrongly", 0, 0, where))
    return checks


def blocker(findings: Sequence[Finding]) -> Check:
    """The check that fails for what one rule says of several nodes."""
    rule = findings[0].rule
    code = f" ({rule.code})" if rule.code else ""
    names = [printable(f.node or "the graph", 80) for f in findings[:NAMED]]
    more = f" and {len(findings) - NAMED} more" if len(findings) > NAMED else ""
    helps = f"rewritten by {rule.rewrite}, which cannot here: {rule.why}" if rule.rewrite else rule.why
    detail = f"{rule.says}; {helps}; {rule.confidence}: {rule.source}"
    return Check(f"{rule.id}{code}: nodes", "fail", len(findings), 0, f"{', '.join(names)}{more}", detail)


def details_of(result: Judged) -> dict[str, Any]:
    """What the report lists: JSON types only."""
    ai_cpu = {f.node for f in result.noted if f.rule.effect == "ai_cpu"}
    nodes = [node for node in result.facts.nodes if node.name in ai_cpu]
    return {
        "soc": result.soc.name,
        "family": result.soc.family,
        "cann": result.cann,
        "sources": EVERY_VERSION if result.cann is None else _of_release(result),
        "precision": result.precision,
        "precision_mode": result.mode.argument,
        "precision_notes": [*result.mode.notes, f"{result.mode.confidence}: {result.mode.source}"],
        "findings": [
            finding_content(f, status)
            for status, found in (("blocks", result.blocking), ("mended", result.mended), ("noted", result.noted))
            for f in found
        ],
        "cut_here": list(result.cut),
        "rewrites": dict(Counter(f.rewrite or "lower_opset" for f in result.mended)),
        "passes": [dict(one) for one in result.applied if one["changes"]],
        "ai_cpu": {
            "nodes": sorted(ai_cpu),
            "share_of_multiplications": share_of(nodes, list(result.facts.nodes)),
            **_placement_known(result),
        },
    }


def _of_release(result: Judged) -> str:
    """What a release decides: most rules come from sources that name none."""
    speaking = {f.rule.id: f.rule for f in (*result.blocking, *result.mended, *result.noted)}
    silent = sum(rule.since is None and rule.until is None for rule in speaking.values())
    said = (
        f"of the {len(speaking)} that speak here {silent} come from sources that name no release, and are taken to hold for it"
    )
    return f"rules that hold for CANN {result.cann}; {said}"


def _placement_known(result: Judged) -> dict[str, Any]:
    """How far the prediction reaches: rules that place operators on the AI CPU, and kinds of operators of which no source says where they run."""
    placing = [r for r in rules() if r.effect == "ai_cpu" and result.soc.family in r.families]
    named = {op for rule in placing for op in several(rule.match.get("op", ()))}
    kinds = {node.op for node in result.facts.nodes}
    return {"rules": [rule.id for rule in placing], "kinds": len(kinds), "kinds_without_a_source": len(kinds - named)}


def finding_content(finding: Finding, status: str) -> dict[str, Any]:
    rule = finding.rule
    return {
        "status": status,
        "node": finding.node,
        "op": finding.op,
        "rule": rule.id,
        "effect": rule.effect,
        "code": rule.code,
        "says": rule.says,
        "detail": finding.detail,
        "rewrite": finding.rewrite,
        "why": "" if status == "mended" else rule.why,
        "since": rule.since,
        "until": rule.until,
        "confidence": rule.confidence,
        "source": rule.source,
    }
