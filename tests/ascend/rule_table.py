"""Rule -> (a graph that it speaks of, one beside it that it does not): those that `porting probe` compiles, and of what it does not probe others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from porting.ascend.graph_facts import GraphFacts
from porting.ascend.probe_graphs import ProbeGraph
from porting.ascend.probe_table import NOT_PROBED, pair_of
from porting.ascend.rules import Rule, rules
from tests.ascend.rule_cases import D2, D4, One, floats, ints, made_if

RELU = One("Relu")
CHIPS = {
    "310": "Ascend310",
    "310P": "Ascend310P3",
    "310B": "Ascend310B1",
    "910A": "Ascend910A",
    "A2": "Ascend910B3",
    "950": "Ascend950PR_9599",
}


@dataclass(frozen=True)
class Placed:
    """A graph, and what it is judged for."""

    graph: ProbeGraph
    soc: str
    cann: str | None
    precision: str

    def facts(self) -> GraphFacts:
        return self.graph.facts


Case = One | Placed | GraphFacts


def _placed(rule: Rule) -> tuple[Case, Case]:
    """Where the rule speaks: on one of its chips (an A2 where it may be), in its last release, in its precision."""
    pair = pair_of(rule)
    assert not isinstance(pair, str)
    soc = CHIPS["A2" if "A2" in rule.families else next(family for family in CHIPS if family in rule.families)]
    precision = rule.match.get("graph", rule.match).get("precision", ["fp32"])[0]
    hit, miss = (Placed(graph, soc, rule.until, precision) for graph in pair)
    return hit, replace(miss, precision="fp16") if pair[0] is pair[1] else miss


UNPROBED: Mapping[str, tuple[Case, Case]] = {
    "output-names": (replace(RELU, change={"outputs": (replace(RELU.facts().outputs[0], name="y:0"),)}), RELU),
    "cast-saturate": (One("Cast", [D2], {"saturate": 0}), One("Cast", [D2], {"saturate": 1})),
    "fp16-documented": (One("MatMul", [D2, D2]), One("MatMul", [D2, D2], soc="Ascend310P3")),
    "indices-unknown": (One("ScatterND", [D2, "int64[1,1]", D2]), One("ScatterND", [D2, ints(1).reshape(1, 1), D2])),
    "if-returns-outer": (made_if(returned=True), made_if()),
    "resize-sizes": (
        One("Resize", [D4, None, None, "int64[4]"], {"mode": "linear"}, [D4]),
        One("Resize", [D4, None, floats(1, 1, 2, 2)], {"mode": "linear"}, [D4]),
    ),
    "sized-by-values": (One("NonZero", outputs=["int64[2,n]"]), One("Reshape", [D2, ints(3, 2)], outputs=["float32[3,2]"])),
}
assert set(UNPROBED) == set(NOT_PROBED)
CASES: Mapping[str, tuple[Case, Case]] = {
    rule.id: UNPROBED[rule.id] if rule.id in UNPROBED else _placed(rule) for rule in rules()
}
