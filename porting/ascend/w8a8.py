"""A float32 graph that is lowered for Ascend, in W8A8: calibrated, decided layer by layer, and written twice.

    graph ── calibrate ── decide ──┬── deploy graph: the vendor's operators, for ATC
                                   └── reference graph: ONNX's own, the same integers, which runs here and is what is compared

Nothing of this was run on hardware, or went through ATC.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np

from porting.ascend.activations import runs
from porting.ascend.calibration import LEAST_ERROR, Cases, Range, calibrate, giving, grouped, require_calibration
from porting.ascend.graph_at_hand import at_hand
from porting.ascend.int8_numbers import Product, quantised_product, sqnr_db
from porting.errors import InputError, UnsupportedModel, UsageError, nearest
from porting.types import Graph
from porting.verdict import printable

if TYPE_CHECKING:
    from porting.converters.passes.ascend.quantisable import Layer
    from porting.converters.passes.ascend.quantise_w8a8 import Decision

# Measured, output against float32 on pictures and sentences that were not calibrated on: efficientnet-lite0, 24 pictures, min-max 17.2 dB and
# least-error 17.4 dB, the same class in 23 either way; all-MiniLM-L6-v2, 6 sentences, 17.8 dB and 18.1 dB.
# First and last layer are quantised like the others: the first in float brings 2.4 dB to efficientnet-lite0 (19.8 dB), and no other class, and
# 0.1 dB to MiniLM; the last 0.0 dB to both. The report shows which layer loses most by itself.
DEFAULT_CLIP = LEAST_ERROR
SHOWN_NAMES = 8
REPORT_CASES = 8  # on which the layers are compared; all take part in the calibration
NOTES = (
    "W8A8: AscendQuant and AscendDequant as AMCT writes them, read in its sources and in those of ATC's parser; inferred: that the compiler's "
    "correction of the bias for the offset is exact. Never run on hardware",
    "W8A8: what a device rounds to fp16 around the integers (its scales have 19 bits there) is not modelled",
    "W8A8: AMCT's page on quantize_model (CANN 9.1) lists every product; the README of the AscendQuant kernel (ops-nn, 9.2 in development) lists "
    "Ascend 950 alone: on A2, A3 and 310P it hangs on kernels that lie in the toolkit, which nothing here has read",
)


@dataclass(frozen=True, eq=False)
class Quantised:
    """
    reference: what runs here
    deploy:    what ATC gets
    decisions: layers that are quantised
    report:    one table per layer, in the order of the graph; JSON types only
    notes:     what the user should be told
    """

    reference: Graph
    deploy: Graph
    decisions: Sequence[Decision]
    report: list[dict[str, Any]]
    notes: tuple[str, ...]


def quantised(source: Any, cases: Cases, keep_float: Sequence[str] = (), clip: str = DEFAULT_CLIP) -> Quantised:
    """Quantise a lowered graph.

    source:     the Graph, or what judged it (its `lowered`)
    cases:      inputs to calibrate on: input -> array
    keep_float: names of nodes that stay in float
    clip:       see `Range.step`
    raises:     InputError (no cases, NaN or Inf, nothing but zeros before a layer), UsageError (a name that no layer has), UnsupportedModel (nothing that can be quantised)
    """
    from porting.converters.passes.ascend.quantisable import quantisable
    from porting.converters.passes.ascend.quantise_w8a8 import deploy_graph, reference_graph

    graph: Graph = source if isinstance(source, Graph) else source.lowered
    require_calibration(cases)
    layers, kept = quantisable(graph)
    _require_names(keep_float, [*(layer.name for layer in layers), *kept])
    kept.update((name, "asked for: --keep-float") for name in keep_float)
    layers = [layer for layer in layers if layer.name not in kept]
    ranges = calibrate(graph, cases, list(dict.fromkeys(layer.input for layer in layers)))
    _require_known(layers, ranges)
    decisions, refused = decided(layers, ranges, clip)
    kept.update(refused)
    if not decisions:
        why = "; ".join(f"{printable(name, 80)}: {reason}" for name, reason in list(kept.items())[:3])
        raise UnsupportedModel(
            "no layer can be quantised" + (f": {why}" if why else ": there is no Conv, Gemm or MatMul with a constant"),
            where="w8a8",
            next="-p fp16",
        )
    reference = reference_graph(graph, decisions)
    report = _report(graph, decisions, ranges, reference, cases[:REPORT_CASES])
    report += [{"node": name, "quantised": False, "reason": reason} for name, reason in kept.items()]
    order = {str(node.name): place for place, node in enumerate(graph.model.graph)}
    report.sort(key=lambda one: order.get(one["node"], len(order)))
    notes = (*NOTES, *(note for one in decisions if (note := _of_one_number(one.layer, ranges[one.layer.input]))))
    return Quantised(reference, deploy_graph(graph, decisions), decisions, report, notes)


def decided(layers: Sequence[Layer], ranges: Mapping[str, Range], clip: str) -> tuple[list[Decision], dict[str, str]]:
    """All constants of every layer, and why some have none: name -> reason."""
    from porting.converters.passes.ascend.quantise_w8a8 import Decision

    decisions, refused = [], {}
    for layer in layers:
        try:
            step = ranges[layer.input].step(layer.symmetric, clip)
            weight, bias = layer.constants()
            decisions.append(Decision(layer, step, quantised_product(weight, layer.axis, layer.one_scale, bias, step)))
        except InputError as error:
            refused[layer.name] = error.what
    return decisions, refused


def _require_known(layers: Sequence[Layer], ranges: Mapping[str, Range]) -> None:
    """raises: InputError for a layer that read nothing but zeros, of which no step follows"""
    dead = [layer.name for layer in layers if ranges[layer.input].low == ranges[layer.input].high == 0]
    if dead:
        others = f", and {len(dead) - 1} layers more" if len(dead) > 1 else ""
        raise InputError(
            f"layer {printable(dead[0])!r} reads nothing but zeros on every calibration input{others}: no scale follows from that",
            where="--calibration",
            next=f"calibrate on inputs as in use; a layer that reads zeros there too stays in float with --keep-float {printable(dead[0], 80)}",
        )


def _of_one_number(layer: Layer, numbers: Range) -> str | None:
    """What to say of a layer whose range is that of one number."""
    if numbers.low != numbers.high:
        return None
    return (
        f"W8A8: layer {printable(layer.name, 80)} read {numbers.low:.6g} and no other number on every calibration input: its scale is a guess "
        "for any other; calibrate on inputs as in use, or keep it in float (--keep-float)"
    )


def _require_names(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, SHOWN_NAMES) or known[:SHOWN_NAMES]
            raise UsageError(
                f"no Conv, Gemm or MatMul is called {printable(name)!r}",
                where="--keep-float",
                next=nearest(name, [printable(one, 80) for one in near]),
            )


# --- report -------------------------------------------------------------------------------------------------------


@dataclass
class _Sums:
    """Squares of a layer's output in float, and of what the quantised network is off there."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, wanted: np.ndarray, got: np.ndarray) -> None:
        wide = wanted.astype(np.float64)
        self.signal += float((wide**2).sum())
        self.noise += float(((got.astype(np.float64) - wide) ** 2).sum())


def _report(
    graph: Graph, decisions: Sequence[Decision], ranges: Mapping[str, Range], reference: Graph, cases: Cases
) -> list[dict[str, Any]]:
    """Layer by layer: in the quantised network, with what the layers before it lost, and alone, on what it reads in float."""
    from porting.converters.passes.ascend.quantise_w8a8 import side_by_side

    outputs = [one.layer.output for one in decisions]
    in_place, alone = {name: _Sums() for name in outputs}, {name: _Sums() for name in outputs}
    both, beside = side_by_side(graph, decisions)
    with at_hand(both) as plain, at_hand(reference) as integers:
        for names in grouped(plain.model, outputs):
            wanted_runs = runs(giving(plain.model, [*names, *(beside[name] for name in names)]), plain, cases)
            found_runs = runs(giving(integers.model, names), integers, cases)
            for wanted, found in zip(wanted_runs, found_runs, strict=True):
                for name in names:
                    in_place[name].add(wanted[name], found[name])
                    alone[name].add(wanted[name], wanted[beside[name]])
    return [_row(one, ranges[one.layer.input], in_place[one.layer.output], alone[one.layer.output]) for one in decisions]


def _row(one: Decision, numbers: Range, in_place: _Sums, alone: _Sums) -> dict[str, Any]:
    layer, step = one.layer, one.step
    return {
        "node": layer.name,
        "op": layer.op,
        "quantised": True,
        "sqnr_db": _plain(sqnr_db(in_place.signal, in_place.noise)),
        "alone_sqnr_db": _plain(sqnr_db(alone.signal, alone.noise)),
        "weight_sqnr_db": _plain(_weight_sqnr(layer, one.product)),
        "clipped_share": numbers.clipped(step),
        "range": [numbers.low, numbers.high],
        "step": step.size,
        "offset": step.offset,
        "weight_scales": int(one.product.weight_scale.size),
        "one_number_only": numbers.low == numbers.high,
    }


def _weight_sqnr(layer: Layer, product: Product) -> float:
    weight = layer.constants()[0].astype(np.float64)
    shape = [1] * weight.ndim
    shape[layer.axis] = -1
    back = product.weight * product.weight_scale.astype(np.float64).reshape(shape)
    return sqnr_db(float((weight**2).sum()), float(((back - weight) ** 2).sum()))


def _plain(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)
