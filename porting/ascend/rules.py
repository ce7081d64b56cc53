"""What documents and open sources of CANN say of a graph: a base of rules, one record a rule, in data/rules.json. Nothing here ran on hardware.

A record holds the fields of Rule. Its `match` says where the rule speaks; everything in it has to hold:

    op             one operator or several; left out: any
    domain         "" (ai.onnx) unless said, one or several, "*" for any
    opset          [lowest, highest] of what the model imports of the domain, null for open
    registered     false: Ascend's parser has no entry for exactly this operator, domain and opset (data/operators.json). Where several rules
                   with this key match a node, the first in the file speaks: those that name operators stand before those that do not
    attributes     {name: condition on the attribute}
    inputs         {"0": condition on the value, "any": ...}, outputs the same
    values         a condition that any input or output meets
    inside         true, or operators of the control flow that the node lies in
    sized_by_values  true: an output's size hangs on numbers that are fed
    sizes_outputs    true: and so does the size of an output of the graph
    precision      the port is made in one of these
    when           names of functions in rule_predicates.py, for what cannot be said so
    graph          conditions on the graph as a whole, one finding for all: imports ([lowest, highest] number), opset and ir_version (the same),
                   functions (true), external_keys (condition), inputs, outputs (condition on a value; inputs also "none"), when, precision

Conditions on an attribute or a number: is, not, in, not_in, present, over, below; `default` is what an attribute that is not written means;
of a list of numbers `over`, `below`, `is` and `in` hold when they do for any of them, `not` and `not_in` too.
Conditions on a value: present, used, constant, dtype, not_dtype, rank ([lowest, highest]), ranked, zero_dim, and of a small constant read (it
is one), infinite, and `numbers`, a condition on them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from porting.ascend.graph_facts import GraphFacts, NodeFacts
from porting.ascend.operators import is_registered
from porting.ascend.rule_matching import graph_matches, node_matches
from porting.ascend.soc import FAMILIES, Soc, release_order

EFFECTS = ("refuses", "wrong", "ai_cpu", "slow", "unknown")
PROBED = "probed on hardware"
CONFIDENCES = ("documented", "read in source", "inferred", PROBED)


@dataclass(frozen=True)
class Rule:
    """What an Ascend SoC makes of some graphs, as far as a source says.

    effect:       "refuses" (at compile time or when run), "wrong" (in silence), "ai_cpu" (off the fast path, in silence), "slow",
                  "unknown" (sources differ, or are silent where it matters)
    code:         the vendor's code for it, None where no source names one
    says:         what happens, in a sentence
    rewrite:      the pass of converters/passes/ascend that mends it
    why:          why there is none; of a rule with a pass: what the pass needs, and why it may have left the node as it is
    families:     those that it holds for, all unless said
    since, until: the first and last release that it is known to hold for; None: unknown, taken to be every one
    source:       where it stands
    confidence:   one of CONFIDENCES
    match:        where the rule speaks, see above
    """

    id: str
    effect: str
    code: str | None
    says: str
    rewrite: str | None
    why: str
    families: tuple[str, ...]
    since: str | None
    until: str | None
    source: str
    confidence: str
    match: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Finding:
    """A rule that speaks of a graph.

    node:   the node's name, "" for the graph itself
    op:     its operator, with the domain where there is one; "" for the graph
    detail: what there matched, and the releases that the rule is known for
    mended_by: what took it away where that was not the rule's pass
    """

    rule: Rule
    node: str
    op: str
    detail: str
    mended_by: str = ""

    @property
    def rewrite(self) -> str | None:
        """What mends it, or did."""
        return self.mended_by or self.rule.rewrite


@cache
def rules() -> tuple[Rule, ...]:
    """The base, in the order of the file."""
    records = json.loads((Path(__file__).parent / "data" / "rules.json").read_text(encoding="utf-8"))["rules"]
    return tuple(_rule(record) for record in records)


def judge(
    facts: GraphFacts, soc: Soc, cann: str | None = None, without: Collection[str] = (), *, precision: str = "fp32"
) -> list[Finding]:
    """Every rule that speaks of a graph: those of the graph first, then node by node, in the order of the base.

    cann:      a known release (find_cann); None: any, so that rules of some releases hold too, and say of which
    without:   ids of rules that are left out
    precision: what the port is made in
    """
    chosen = _chosen(soc.family, cann, frozenset(without), precision)
    found = [
        Finding(r, "", "", _detail(r, told))
        for r in chosen.of_graphs
        if (told := graph_matches(r.match["graph"], facts)) is not None
    ]
    for node in facts.nodes:
        op = f"{node.domain}::{node.op}" if node.domain else node.op
        found += [Finding(rule, node.name, op, _detail(rule, told)) for rule, told in _speaking(node, chosen)]
    return found


@dataclass(frozen=True)
class _Chosen:
    """Rules that hold for a SoC, a release and a precision, by the operator they speak of, with their places in the base.

    unregistered: those that ask whether the parser has an entry; the first that matches speaks
    """

    of_graphs: tuple[Rule, ...]
    by_op: Mapping[str, Sequence[tuple[int, Rule]]]
    anywhere: Sequence[tuple[int, Rule]]
    unregistered: Mapping[str, Sequence[tuple[int, Rule]]]
    unregistered_anywhere: Sequence[tuple[int, Rule]]


@lru_cache(maxsize=32)
def _chosen(family: str, cann: str | None, without: frozenset[str], precision: str) -> _Chosen:
    of_graphs: list[Rule] = []
    tables: tuple[dict[str, list[tuple[int, Rule]]], ...] = ({}, {})
    anywhere: tuple[list[tuple[int, Rule]], ...] = ([], [])
    for place, rule in enumerate(rules()):
        match = rule.match.get("graph", rule.match)
        precisions = match.get("precision")
        if rule.id in without or family not in rule.families or not _holds_for(rule, cann):
            continue
        if precisions is not None and precision not in precisions:
            continue
        if "graph" in rule.match:
            of_graphs.append(rule)
            continue
        asks = int("registered" in match)
        if "op" not in match:
            anywhere[asks].append((place, rule))
        for op in several(match.get("op", ())):
            tables[asks].setdefault(op, []).append((place, rule))
    return _Chosen(tuple(of_graphs), tables[0], anywhere[0], tables[1], anywhere[1])


def _speaking(node: NodeFacts, chosen: _Chosen) -> Iterator[tuple[Rule, list[str]]]:
    found = []
    for place, rule in (*chosen.by_op.get(node.op, ()), *chosen.anywhere):
        told = node_matches(rule.match, node)
        if told is not None:
            found.append((place, rule, told))
    if not is_registered(node.op, node.domain, node.opset):
        asked = sorted((*chosen.unregistered.get(node.op, ()), *chosen.unregistered_anywhere), key=lambda pair: pair[0])
        for place, rule in asked:
            told = node_matches(rule.match, node)
            if told is not None:
                found.append((place, rule, [f"{node.domain or 'ai.onnx'}::{node.opset}::{node.op} has no entry", *told]))
                break
    return iter([(rule, told) for _, rule, told in sorted(found, key=lambda one: one[0])])


def several(value: Any) -> Sequence[Any]:
    """One or several, as records spell it."""
    return (value,) if isinstance(value, str) else value


def _holds_for(rule: Rule, cann: str | None) -> bool:
    if cann is None:
        return True
    first, last = (None if r is None else release_order(r) for r in (rule.since, rule.until))
    order = release_order(cann)
    return (first is None or first <= order) and (last is None or order <= last)


def _detail(rule: Rule, told: Sequence[str]) -> str:
    bounds = [f"from CANN {rule.since} on"] if rule.since else []
    bounds += [f"up to CANN {rule.until}"] if rule.until else []
    return "; ".join((*filter(None, told), *([" ".join(bounds)] if bounds else ())))


def _rule(record: Mapping[str, Any]) -> Rule:
    return Rule(
        id=record["id"],
        effect=record["effect"],
        code=record.get("code"),
        says=record["says"],
        rewrite=record.get("rewrite"),
        why=record.get("why", ""),
        families=tuple(record.get("families", FAMILIES)),
        since=record.get("since"),
        until=record.get("until"),
        source=record["source"],
        confidence=record["confidence"],
        match=record["match"],
    )
