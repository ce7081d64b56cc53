"""Which passes make a target graph: one table per kind of target and precision, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from porting.errors import UsageError, nearest
from porting.types import Graph

from .attention_to_gqa import attention_to_gqa
from .linear_to_fused import linear_to_fused
from .quantize_linear import SCHEMES, quantize_linear, require_quantized
from .scatter_nd_in_order import scatter_nd_in_order

Pass = Callable[[Graph], tuple[Graph, int]]


ONNXRUNTIME: dict[str, Sequence[tuple[str, Pass]]] = {
    "fp32": (
        ("scatter_nd_in_order", scatter_nd_in_order),  # of graphs from elsewhere
        ("attention_to_gqa", attention_to_gqa),
        ("linear_to_fused", linear_to_fused),  # last: it hides the MatMul that quantisation looks for
    ),
    "int8": (
        ("attention_to_gqa", attention_to_gqa),
        ("quantize_linear_int8", partial(quantize_linear, scheme=SCHEMES["int8"])),
    ),
    "int4": (
        ("attention_to_gqa", attention_to_gqa),
        ("quantize_linear_int4", partial(quantize_linear, scheme=SCHEMES["int4"])),
    ),
}
ONNXRUNTIME["source"] = ONNXRUNTIME["fp32"]  # a graph that keeps its own dtypes
# precision -> what must hold of a graph that has been through its whole table
FINISHED: dict[str, Callable[[Graph], None]] = dict.fromkeys(SCHEMES, require_quantized)
TABLES = {"cpu": ONNXRUNTIME, "cuda": ONNXRUNTIME}


def passes_for(target_kind: str, precision: str) -> Sequence[tuple[str, Pass]]:
    """(name, pass) in order.

    raises: UsageError when the target does not take the precision
    """
    table = TABLES.get(target_kind)
    if table is None:
        raise UsageError(f"no passes for target kind {target_kind!r}", next=nearest(target_kind, list(TABLES)))
    if precision not in table:
        raise UsageError(
            f"target {target_kind!r} has no precision {precision!r}", where="--precision", next=nearest(precision, list(table))
        )
    return table[precision]


def lower(
    graph: Graph, target_kind: str, precision: str, stop_after: str | None = None
) -> tuple[Graph, list[dict[str, object]]]:
    """Run the passes; `stop_after` ends with the pass of that name.

    returns: the target graph, and [{"name", "changes"}] as port.json lists them
    raises:  UsageError for an unknown precision or pass name, UnsupportedModel when the passes left something undone
    """
    table = passes_for(target_kind, precision)
    if stop_after is not None and stop_after not in [name for name, _ in table]:
        raise UsageError(f"no pass {stop_after!r}", where="--stop-after", next=nearest(stop_after, [n for n, _ in table]))
    applied: list[dict[str, object]] = []
    for name, run in table:
        graph, changes = run(graph)
        applied.append({"name": name, "changes": changes})
        if name == stop_after:
            return graph, applied
    if precision in FINISHED:
        FINISHED[precision](graph)
    return graph, applied
