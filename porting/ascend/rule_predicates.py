"""Conditions of rules that need arithmetic. Each takes the facts and gives what it found, None where it does not hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from porting.ascend.graph_facts import GraphFacts, NodeFacts


def duplicate_names(facts: GraphFacts) -> str | None:
    counts = Counter(node.name for node in facts.nodes if node.name)
    return next((f"{count} nodes are called {name!r}" for name, count in counts.most_common(1) if count > 1), None)


OF_NODES: Mapping[str, Callable[[NodeFacts], str | None]] = {}
OF_GRAPHS: Mapping[str, Callable[[GraphFacts], str | None]] = {"duplicate_names": duplicate_names}
