"""Where nodes run: on the AI Core, or, where the rule base says so, on the AI CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from porting.ascend.rules import Finding

AI_CORE, AI_CPU = "AI Core", "AI CPU"


@dataclass(frozen=True)
class Placement:
    """
    nodes:  of the model, before the compiler changes any
    ai_cpu: those that run on the AI CPU
    """

    nodes: int
    ai_cpu: tuple[str, ...]

    def shown(self, device: str) -> Mapping[str, int]:
        """Placement as sessions report it -> nodes. device: its name, "ascend-sim:0"."""
        counts = {device: self.nodes - len(self.ai_cpu), f"{device} {AI_CPU}": len(self.ai_cpu)}
        return {place: count for place, count in counts.items() if count}


def ai_cpu_nodes(findings: Iterable[Finding]) -> tuple[str, ...]:
    """In order, each once."""
    return tuple(dict.fromkeys(f.node for f in findings if f.rule.effect == "ai_cpu" and f.node))
