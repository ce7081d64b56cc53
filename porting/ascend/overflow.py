"""Will fp16 or bf16 hold what a model computes? A forecast from real activations, run on the CPU; nothing of it ran on Ascend.

    as it is                    what every value is                              -> which nodes overflow, which lose everything
    rounded, range and all      every node stores in the narrow format           -> what the outputs become
    rounded, without the range  the same significand, float32's range            -> what the significand alone costs

The outputs hold when the range costs no more than the significand does. Nodes that are kept compute and store in float32; with those that a
first forecast names kept, a second one shows whether that is enough. Sums inside a node are not seen: kernels accumulate as they like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from porting.ascend.activations import Cases, observed, require_feeds, runs
from porting.ascend.branches_taken import grouped_by_branches
from porting.ascend.graph_at_hand import AtHand, at_hand
from porting.ascend.half_formats import FORMATS, Format, Magnitudes
from porting.ascend.overflow_places import NodeForecast, Unseen, node_forecasts, unseen
from porting.ascend.precision import cannot_keep
from porting.ascend.rounded_graph import FIRST_OPSET, Rounding, Types, computes, float_inputs, rounded
from porting.ascend.soc import Soc
from porting.ascend.whole_numbers import integer_carriers
from porting.backends.onnx_program import node_label
from porting.errors import InputError, UnsupportedModel, UsageError, nearest
from porting.graph_outputs import is_exact, relative_error
from porting.onnx_facts import nodes_of, valued_names
from porting.types import Graph, Program
from porting.verdict import printable

# Share of an output that the significand alone may cost: beyond it the format is no form of this model on these inputs, whatever its range does.
# source: the models of tests/zoo, of which trained ones on inputs that mean something lose 5 % at most, and noise or cancellation 15 % and more
MOST_BY_ROUNDING = 0.1
SLACK = 2.0  # the range may cost as much again as the significand does: beyond that it is the range that decides
NOT_MODELLED = "kernels' inner precision, fusion and the order of sums are not modelled"


@dataclass(frozen=True)
class OutputForecast:
    """An output of the rounded graph against the float32 one, the worst over the cases.

    error:       relative L2; of integers and booleans the share of elements that differ
    significand: the same when only the significand is shortened
    bound:       what `error` may be: the range may cost as much again as the significand does, or typically would
    """

    name: str
    error: float
    significand: float
    bound: float

    @property
    def holds(self) -> bool:
        return self.error <= self.bound and not self.undecided

    @property
    def undecided(self) -> bool:
        """Whether the significand alone changes so much that a bound made from it would let anything pass."""
        return self.significand > MOST_BY_ROUNDING


@dataclass(frozen=True)
class Weight:
    """A float32 constant that the format changes beyond rounding: clipped, or gone."""

    name: str
    found: Magnitudes

    @property
    def clipped(self) -> int:
        """Elements that ATC's is_weight_clip, on by default, makes the largest number of the format."""
        return self.found.too_large + self.found.infinite


@dataclass(frozen=True, eq=False)
class Forecast:
    """
    precision:      "fp16" or "bf16"
    saturates:      what becomes of an overflow: True: the largest number, and NaN becomes 0; False: Inf; None: unknown, taken to be Inf
    kept:           nodes that computed in float32
    cannot_be_kept: nodes that should be or were asked to be, and cannot on this SoC -> why
    nodes:          every node of the main graph, and of the branches that were taken, that computes, in order
    outputs:        what became of the outputs
    weights:        constants that are clipped or vanish
    unseen:         what the forecast does not look into
    notes:          for the report
    integers:       nodes that carry integers in floats: see whole_numbers.py
    """

    precision: str
    saturates: bool | None
    kept: tuple[str, ...]
    cannot_be_kept: Mapping[str, str]
    nodes: tuple[NodeForecast, ...]
    outputs: tuple[OutputForecast, ...]
    weights: tuple[Weight, ...]
    unseen: tuple[Unseen, ...]
    notes: tuple[str, ...]
    integers: tuple[str, ...] = ()

    @property
    def inexact(self) -> tuple[str, ...]:
        """Nodes that carry integers and are not kept: whatever these inputs show, others may come out one off."""
        return tuple(name for name in self.integers if name not in self.kept)

    @property
    def overflows(self) -> tuple[NodeForecast, ...]:
        """Nodes that are not kept and whose numbers, in float32, the format cannot hold; if none, those that come to it by rounding."""
        found = tuple(n for n in self.nodes if n.overflows)
        return found or tuple(n for n in self.nodes if n.driven_over)

    @property
    def lost(self) -> tuple[NodeForecast, ...]:
        """Nodes that are not kept and one of whose values, or a constant that they read, vanishes or becomes subnormal as a whole."""
        return tuple(n for n in self.nodes if n.loses)

    @property
    def passes(self) -> bool:
        return not self.overflows and not self.inexact and all(output.holds for output in self.outputs)

    @property
    def to_keep(self) -> tuple[str, ...]:
        """What should compute in float32, in order: what is kept already, what overflows, what carries integers, and what is lost where outputs do not hold."""
        wanted = {*self.kept, *self.integers, *(n.name for n in self.overflows)}
        if not all(output.holds for output in self.outputs):
            wanted.update(n.name for n in self.lost)
        return tuple(n.name for n in self.nodes if n.name in wanted and n.name not in self.cannot_be_kept)

    def content(self) -> dict[str, Any]:
        """For the report: JSON types only, what is notable of the nodes."""
        return {
            "precision": self.precision,
            "passes": self.passes,
            "overflow_becomes": {True: "the largest number", False: "Inf", None: "unknown"}[self.saturates],
            "kept": list(self.kept),
            "to_keep": list(self.to_keep),
            "cannot_be_kept": dict(self.cannot_be_kept),
            "overflows": [n.content() for n in self.overflows],
            "lost": [n.content() for n in self.lost],
            "carry_integers": list(self.integers),
            "masks": [n.name for n in self.nodes if n.mask],
            "outputs": [_json_output(o) for o in self.outputs],
            "weights": [
                {"name": w.name, "clipped": w.clipped, "zeros": w.found.zeros, "largest": w.found.largest} for w in self.weights
            ],
            "unseen": [{"node": u.node, "op": u.op, "why": u.why, "reaches": u.reaches} for u in self.unseen],
            "notes": list(self.notes),
        }


def forecast(
    source: Graph | Program,
    feeds: Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]],
    keep: Collection[str] = (),
    *,
    soc: Soc | None = None,
    precision: str = "fp16",
) -> Forecast:
    """Run a float32 graph on inputs and see what fp16 or bf16 makes of it.

    feeds:  one case or several, each with an array for every input, state included
    keep:   names of nodes that compute and store in float32; those that cannot on `soc` are rounded all the same, and named
    soc:    decides what overflow becomes and what can be kept; without one it becomes Inf, and everything can
    raises: UsageError (unknown precision or node), UnsupportedModel (opset below 13, no float32), InputError (feeds), RuntimeFailed, OutOfResources
    """
    with forecasts(source, feeds, soc=soc, precision=precision) as run:
        return run(keep)


@contextmanager
def forecasts(
    source: Graph | Program,
    feeds: Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]],
    *,
    soc: Soc | None = None,
    precision: str = "fp16",
) -> Iterator[Callable[[Collection[str]], Forecast]]:
    """`forecast` for several choices of nodes to keep: what the values are in float32 is looked at once. Arguments, raises: as `forecast`"""
    if precision not in FORMATS:
        raise UsageError(f"no forecast for {precision!r}", where="precision", next=nearest(precision, list(FORMATS)))
    cases = [feeds] if isinstance(feeds, Mapping) else list(feeds)
    with at_hand(source) as graph:
        _require_opset(graph.model)
        require_feeds(graph.model, cases)
        operators = {node_label(node): node.op_type for _, node in nodes_of(graph.model.graph)}
        order = {name: number for number, name in enumerate(operators)}
        groups = [_Group(taken, group, soc, precision) for taken, group in grouped_by_branches(graph, cases)]
        _require_finite([case for group in groups for case in group.observed.outputs])

        def run(keep: Collection[str]) -> Forecast:
            _require_nodes(keep, operators)
            refused = {name: why for name in keep if soc and (why := cannot_keep(soc, operators[name]))}
            kept = frozenset(keep) - refused.keys()
            return merged([group.forecast(kept, refused) for group in groups], order)

        yield run


class _Group:
    """Cases that take the same branches, and their graph: without an If, but in loops."""

    def __init__(self, graph: AtHand, cases: Cases, soc: Soc | None, precision: str) -> None:
        from porting.noisy_original import types_of

        self.graph, self.cases, self.soc, self.precision = graph, cases, soc, precision
        self.form = FORMATS[precision]
        self.types = types_of(graph.model, graph.folder, cases[0])
        self.integers = integer_carriers(graph.model.graph, self.types)
        if not self.integers:  # those may be of doubles alone
            _require_float32(graph.model.graph, self.types)
        self.observed = observed(graph, self.types, cases, self.form)

    def forecast(self, kept: frozenset[str], refused: Mapping[str, str]) -> Forecast:
        form, types, found, soc = self.form, self.types, self.observed, self.soc
        trial = Rounding(form, kept, bool(soc and soc.saturates))
        peaks, ended = _trial(self.graph, types, trial, self.cases, [name for name, size in found.sizes.items() if size])
        _, shortened = _trial(self.graph, types, Rounding(form, kept, ranged=False), self.cases, [])
        body = self.graph.model.graph
        nodes = node_forecasts(body, types, found.found, peaks, kept, form)
        cannot = {n.name: why for n in nodes if n.overflows and soc and (why := cannot_keep(soc, n.op))}
        typical = form.unit_roundoff * math.sqrt(_depth(body))
        return Forecast(
            self.precision,
            soc.saturates if soc else None,
            tuple(kept),
            {**refused, **cannot},
            tuple(nodes),
            tuple(_outputs(found.outputs, ended, shortened, typical)),
            tuple(_weights(body, types, kept, found.found)),
            tuple(unseen(body, types, found.found, form)),
            tuple(_notes(found.outputs, found.found, soc, form)),
            self.integers,
        )


def _require_finite(outputs: Sequence[Mapping[str, Any]]) -> None:
    """Some number of every output is finite in some case. raises: InputError"""
    for name, first in outputs[0].items():
        arrays = [case[name] for case in outputs if isinstance(case[name], np.ndarray) and case[name].dtype.kind == "f"]
        if isinstance(first, np.ndarray) and any(a.size for a in arrays) and not any(np.isfinite(a).any() for a in arrays):
            raise InputError(
                f"these inputs show nothing: output {printable(name, 60)!r} is nowhere finite in float32",
                where="forecast",
                next="give others",
            )


def merged(found: Sequence[Forecast], order: Mapping[str, int]) -> Forecast:
    """Of the same graph on cases that take different branches. order: node -> its place, for those that only some took"""
    nodes: dict[str, NodeForecast] = {}
    outputs: dict[str, OutputForecast] = {}
    for one in found:
        for node in one.nodes:
            nodes[node.name] = nodes[node.name].with_more(node) if node.name in nodes else node
        for output in one.outputs:
            other = outputs.get(output.name, output)
            outputs[output.name] = max(output, other, key=lambda o: (not o.holds, o.error))
    first = found[0]
    return replace(
        first,
        kept=tuple(sorted(first.kept, key=lambda name: order[name])),
        cannot_be_kept={name: why for one in found for name, why in one.cannot_be_kept.items()},
        nodes=tuple(sorted(nodes.values(), key=lambda node: order.get(node.name, len(order)))),
        outputs=tuple(outputs.values()),
        weights=tuple({weight.name: weight for one in found for weight in one.weights}.values()),
        unseen=tuple({one_unseen.node: one_unseen for one in found for one_unseen in one.unseen}.values()),
        notes=tuple(dict.fromkeys(note for one in found for note in one.notes)),
        integers=tuple(sorted({name for one in found for name in one.integers}, key=lambda name: order.get(name, len(order)))),
    )


def _require_opset(model: onnx.ModelProto) -> None:
    opset = max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)
    if opset < FIRST_OPSET:
        raise UnsupportedModel(
            f"the graph is of opset {opset}, and roundings are put into graphs of opset {FIRST_OPSET} and later",
            where="forecast",
            next="give the graph that was lowered for Ascend",
        )


def _require_float32(graph: onnx.GraphProto, types: Types) -> None:
    valued = valued_names(graph)
    made = [types.get(name, (0,))[0] for _, node in nodes_of(graph) if computes(node, valued) for name in node.output]
    if TensorProto.FLOAT not in made and any(
        kind in (TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT16) for kind in made
    ):
        raise UnsupportedModel(
            "nothing in the graph computes in float32, and a forecast is made of that",
            where="forecast",
            next="give the model in float32, or leave its floats what they are",
        )


def _require_nodes(keep: Collection[str], operators: Mapping[str, str]) -> None:
    for name in keep:
        if name not in operators:
            raise UsageError(f"no node is called {name!r}", where="nodes to keep in fp32", next=_near(name, operators))


def _near(name: str, operators: Mapping[str, str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(operators), n=1)
    return (
        f"did you mean {close[0]!r}?"
        if close
        else f"the graph has {len(operators)} nodes, the first is {next(iter(operators), '')!r}"
    )


def _trial(
    graph: AtHand, types: Types, rounding: Rounding, cases: Cases, peaks: Sequence[str]
) -> tuple[dict[str, float], list[dict[str, np.ndarray]]]:
    """Largest magnitudes before rounding, and the outputs of each case, of the rounded graph."""
    changed = rounded(graph.model, types, rounding, peaks)
    for output in changed.peaks:
        changed.model.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, []))
    largest: dict[str, float] = {}
    outputs = []
    for values in runs(changed.model, graph, cases):
        for output, name in changed.peaks.items():
            peak = float(values.pop(output))
            largest[name] = max(largest.get(name, 0.0), math.inf if math.isnan(peak) else peak)
        outputs.append(values)
    return largest, outputs


def _outputs(
    wanted: Sequence[Mapping[str, Any]],
    got: Sequence[Mapping[str, Any]],
    shortened: Sequence[Mapping[str, Any]],
    typical: float,
) -> Iterator[OutputForecast]:
    """typical: relative error of a number that went through the graph; what was measured is one draw, of an output of few elements a small one"""
    for name, first in wanted[0].items():
        if not isinstance(first, np.ndarray) or first.dtype.kind not in "fbiu":
            continue
        error, significand = (
            max(_worse(a[name], b[name]) for a, b in zip(wanted, other, strict=True)) for other in (got, shortened)
        )
        yield OutputForecast(name, error, significand, SLACK * max(significand, 0.0 if is_exact(first.dtype) else typical))


def _depth(graph: onnx.GraphProto) -> int:
    """Nodes that round on the longest path: relative errors of a chain add in quadrature (see numerics/bounds.py, 4)."""
    valued = valued_names(graph)
    depth: dict[str, int] = {}
    for node in graph.node:
        longest = max((depth.get(name, 0) for name in node.input), default=0) + (1 if computes(node, valued) else 0)
        depth.update((name, longest) for name in node.output)
    return max(depth.values(), default=0)


def _worse(wanted: np.ndarray, got: np.ndarray) -> float:
    """How far apart: inf where shapes differ or a number became none, or none a number."""
    if wanted.shape != got.shape:
        return math.inf
    if is_exact(wanted.dtype):
        return float(np.mean(wanted != got)) if wanted.size else 0.0
    if not np.array_equal(np.isnan(wanted), np.isnan(got)):
        return math.inf
    there = ~np.isnan(wanted)
    error = relative_error(wanted[there], got[there])
    return math.inf if math.isnan(error) else error


def _weights(graph: onnx.GraphProto, types: Types, kept: frozenset[str], found: Mapping[str, Magnitudes]) -> Iterator[Weight]:
    """Of those that a node reads in the narrow format."""
    valued = valued_names(graph)
    nodes = [node for _, node in nodes_of(graph) if computes(node, valued) and node_label(node) not in kept]
    read = {name for node in nodes for _, name in float_inputs(node, types)}
    bodies = {id(body): body for body in (graph, *(body for body, _ in nodes_of(graph)))}.values()
    for name in dict.fromkeys(tensor.name for body in bodies for tensor in body.initializer):
        held = found.get(name)
        if held is not None and name in read and (held.too_large or held.infinite or held.is_lost):
            yield Weight(name, held)


def _notes(
    outputs: Sequence[Mapping[str, Any]], found: Mapping[str, Magnitudes], soc: Soc | None, form: Format
) -> Iterator[str]:
    yield f"rounded to {form.name} where nodes store, run on the CPU; {NOT_MODELLED}"
    if soc is None or soc.saturates is None:
        yield "what an overflow becomes here is unknown: taken to be Inf"
    infinite = sum(1 for held in found.values() if held.infinite or held.nan)
    if infinite and soc is not None and soc.saturates:
        yield f"{infinite} values hold Inf or NaN in float32 already; {soc.name} makes the largest number of Inf, and 0 of NaN"
    arrays = [a for case in outputs for a in case.values() if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    if any(np.isnan(a).any() for a in arrays):
        yield "the outputs hold NaN in float32 already: there the forecast says nothing"


def _json_output(output: OutputForecast) -> dict[str, Any]:
    numbers = {"error": output.error, "significand": output.significand, "bound": output.bound}
    plain = {key: number if math.isfinite(number) else str(number) for key, number in numbers.items()}
    return {"name": output.name, "holds": output.holds, **plain}
