"""Where nothing overflows any more and an output still does not hold: which nodes it hangs on, found by trying.

    everything kept that can be  ->  holds?  no: keeping does not mend it
                                            yes: groups of nodes are let go, halves of those whose loss the output does not bear, and so on

What is found are nodes whose rounding the outputs do not bear: differences of large numbers, integers beyond 2048. Every step is a forecast of
its own, so that what comes out is one that holds, however early the search ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from porting.ascend.overflow import Forecast

TRIALS = 48  # forecasts, each two runs of the model a case; one node in a thousand takes about 20
NODES = 30_000  # that all of them together may run: of a large model there are fewer, and more stays kept than has to
SECONDS = 120.0  # the end in any case; what it ends hangs on the machine, and so it is far off


@dataclass(frozen=True)
class Search:
    """
    kept: what has to stay; None where keeping does not mend it
    note: for the report
    """

    kept: tuple[str, ...] | None
    note: str


def fewest_kept(run: Callable[[Collection[str]], Forecast], now: Forecast, may_be_kept: Sequence[str]) -> Search:
    """Look for the nodes that have to be kept so that the forecast passes.

    run:         the forecast of a choice
    now:         that of what is kept already, which does not pass
    may_be_kept: in order, what is kept already included: it stays
    """
    start = time.monotonic()
    free = tuple(name for name in may_be_kept if name not in now.kept)
    best = run(may_be_kept) if free else now
    if not best.passes:
        return Search(None, f"outputs do not hold with all {len(may_be_kept)} nodes kept that can be kept in fp32 either")
    bounds = {output.name: output.bound for output in best.outputs}
    trials = min(TRIALS, max(1, NODES // max(1, len(now.nodes))))
    kept, groups, tried = frozenset(may_be_kept), [*_halves(free)], {frozenset(now.kept): False}
    while groups and len(tried) <= trials and time.monotonic() - start < SECONDS:
        group = groups.pop()
        without = kept - frozenset(group)
        if without not in tried:
            tried[without] = _as_good(run([name for name in may_be_kept if name in without]), bounds)
        if tried[without]:
            kept = without
        elif len(group) > 1:
            groups += _halves(group)
    ended = "" if not groups else f"; not searched to the end: {len(tried)} forecasts"
    more = len(kept) - len(now.kept)
    return Search(
        tuple(name for name in may_be_kept if name in kept),
        f"outputs hang on the rounding of {more} nodes that overflow nowhere: kept in fp32 too{ended}",
    )


def _as_good(found: Forecast, bounds: dict[str, float]) -> bool:
    """Whether it passes, and rounding costs what it costs at best, not the most that is let pass."""
    return found.passes and all(output.significand <= bounds[output.name] for output in found.outputs)


def _halves(group: Sequence[str]) -> list[Sequence[str]]:
    middle = len(group) // 2
    return [half for half in (group[:middle], group[middle:]) if half]
