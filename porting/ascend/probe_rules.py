"""What a graph and its control, compiled and run, show of a rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from porting.ascend.checking import default_precision
from porting.ascend.facts_file import NONE, NOT_PROBED, RULE, UNDECIDED, Fact, verdict_of
from porting.ascend.probe_graphs import ProbeGraph
from porting.ascend.probe_place import Seen
from porting.ascend.probe_plain import Pair
from porting.ascend.probe_table import pair_of
from porting.ascend.rules import Finding, Rule, judge
from porting.ascend.soc import Soc, release_order
from porting.verdict import printable

MODES = {"fp32": "origin", "fp16": "fp16", "bf16": "mixed_bfloat16"}
IN_HALF = ("infinite-constant",)  # what overflows in fp16 shows these
# of the largest output: roundings of fp16, and of float32 that is shortened to 11 bits, stay below, what is computed otherwise lies above
ROUNDED, OTHERWISE = 2.0**-6, 2.0**-4
SHOWN = 8  # numbers in a fact


@dataclass(frozen=True, eq=False)
class RuleTest:
    """A rule, its graphs, and what they are compiled in."""

    rule: Rule
    pair: Pair
    precision: str
    control_precision: str

    def options(self, control: bool) -> dict[str, str]:
        """Of atc."""
        return {"precision_mode_v2": MODES[self.control_precision if control else self.precision]}


def test_of(rule: Rule, soc: Soc, cann: str | None) -> RuleTest | Fact:
    """How a rule is probed on a chip, or why not."""
    if soc.family not in rule.families:
        return _not_probed(rule, f"it is said of {', '.join(rule.families)}, and {soc.name} is of {soc.family}")
    orders = [None if bound is None else release_order(bound) for bound in (rule.since, rule.until)]
    here = None if cann is None else release_order(cann)
    if here is not None and ((orders[0] is not None and here < orders[0]) or (orders[1] is not None and here > orders[1])):
        bounds = " ".join(filter(None, (rule.since and f"from {rule.since} on", rule.until and f"up to {rule.until}")))
        return _not_probed(rule, f"it is said of CANN {bounds}, and this is {cann}")
    pair = pair_of(rule)
    if isinstance(pair, str):
        return _not_probed(rule, pair)
    base = "fp16" if rule.id in IN_HALF else default_precision(soc)
    named = rule.match.get("graph", rule.match).get("precision", [base])
    precision = base if base in named else next((p for p in named if p in MODES), base)
    return RuleTest(rule, pair, precision, base if pair[0] is pair[1] else precision)


def _not_probed(rule: Rule, why: str) -> Fact:
    return Fact(rule.id, RULE, NOT_PROBED, rule.effect, code=rule.code or "", why=why)


def fact_of(test: RuleTest, hit: Seen, control: Seen, soc: Soc, cann: str | None, unmodelled: str) -> Fact:
    """unmodelled: why what was seen shows nothing, "" where it does"""
    rule = test.rule
    seen, text, numbers = _effect(test.pair[0], rule, hit)
    why = _undecided(test, seen, hit, control, soc, cann)
    if not seen and not why:
        why = text
    if unmodelled:
        why = f"{unmodelled}; measured: {seen or 'nothing'}" + (f"; {why}" if why else "")
    return Fact(
        rule.id,
        RULE,
        UNDECIDED if why else verdict_of(rule.effect, seen),
        rule.effect,
        "" if why else seen,
        rule.code or "",
        rule.code if rule.code and rule.code in hit.codes else hit.code,
        printable(text, 600),
        printable(why, 600),
        numbers,
    )


def _effect(graph: ProbeGraph, rule: Rule, seen: Seen) -> tuple[str, str, tuple[float, ...]]:
    """(effect, what was seen, numbers that came out); an effect of "" where that cannot be told."""
    said = seen.sentence()
    if not seen.answered:
        return "", said, ()
    if not seen.ran:
        return "refuses", said, ()
    if seen.misfit:
        return "wrong", said, ()
    if rule.effect == "ai_cpu":
        if seen.ai_cpu is None:
            return "", "it runs; where, AscendCL does not say", ()
        return ("ai_cpu" if seen.ai_cpu else NONE), f"{len(seen.ai_cpu)} nodes on the AI CPU", ()
    effect, told = numbers_say(graph, seen.outputs)
    return effect, f"{said}; {told}", shown(seen.outputs)


def _undecided(test: RuleTest, seen: str, hit: Seen, control: Seen, soc: Soc, cann: str | None) -> str:
    """Why what was seen is not the rule's doing, "" where it may be."""
    if seen in ("", NONE):
        return ""
    if not control.ran or control.misfit:
        return f"the control beside it fails too: {control.sentence()}"
    effect, told = numbers_say(test.pair[1], control.outputs)
    if effect == "wrong":
        return f"the control beside it comes out wrong too: {told}"
    rivals = [f.rule for f in _others(test, soc, cann) if f.rule.effect == seen and not _told_apart(test.rule, f, hit)]
    return f"another rule says so of this graph: {', '.join(sorted({r.id for r in rivals}))}" if rivals else ""


def _others(test: RuleTest, soc: Soc, cann: str | None) -> list[Finding]:
    return [f for f in judge(test.pair[0].facts, soc, cann, precision=test.precision) if f.rule.id != test.rule.id]


def _told_apart(rule: Rule, rival: Finding, hit: Seen) -> bool:
    """By the code that was seen; or there is nothing to tell apart, where both say the same of one entry of the parser."""
    if rule.code and rule.code in hit.codes:
        return rival.rule.code != rule.code or rule.id == "local-functions"  # a call of a function is a node without an entry
    return False


# --- numbers ------------------------------------------------------------------------------------------------------


def numbers_say(graph: ProbeGraph, outputs: Sequence[np.ndarray]) -> tuple[str, str]:
    """(NONE, "wrong" or "", in words): what came out, held against what ONNX says."""
    try:
        misread = graph.misread()
        expected = None if graph.random else graph.computed()
    except Exception as error:  # a runtime's own classes: it does not take the graph
        return "", f"what it should give is not known here: {type(error).__name__}"
    if misread is not None:
        same = all(_distance(got, want) <= ROUNDED for got, want in zip(outputs, misread, strict=True))
        return ("wrong", "it computes what the rule says") if same else ("", "it computes something else than the rule says")
    if expected is None:
        return NONE, "its numbers are random"
    shapes = [tuple(np.shape(a)) for a in outputs], [tuple(np.shape(a)) for a in expected]
    if shapes[0] != shapes[1]:
        return "wrong", f"shapes {shapes[0]}, and ONNX says {shapes[1]}"
    far = max((_distance(got, want) for got, want in zip(outputs, expected, strict=True)), default=0.0)
    if far <= ROUNDED:
        return NONE, f"it computes what ONNX says, to {far:.1e} of the largest number"
    if far < OTHERWISE:
        return "", f"it is off by {far:.1e} of the largest number: more than roundings, less than another computation"
    return "wrong", f"it is off by {far:.1e} of the largest number"


def _distance(got: Any, want: Any) -> float:
    """Largest difference, as a part of the largest number; inf where NaN or Inf stand elsewhere."""
    got, want = (np.asarray(a) for a in (got, want))
    if got.shape != want.shape:
        return float("inf")
    if not got.size:
        return 0.0
    kind = np.complex128 if "c" in (got.dtype.kind, want.dtype.kind) else np.float64
    got, want = got.astype(kind), want.astype(kind)
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    largest = float(np.abs(want[finite]).max())
    return float(np.abs(got[finite] - want[finite]).max()) / (largest or 1.0)


def shown(outputs: Sequence[np.ndarray]) -> tuple[float, ...]:
    """The first numbers that came out."""
    flat = [np.asarray(a).reshape(-1)[:SHOWN] for a in outputs if np.asarray(a).dtype.kind not in "cOSU"]
    return tuple(float(n) for array in flat for n in array)[:SHOWN]
