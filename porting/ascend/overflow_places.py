"""Which nodes a narrow format does not hold: what they give, what they read, and what lies inside them where nobody looked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx
from onnx import TensorProto

from porting.ascend.half_formats import Format, Magnitudes
from porting.ascend.rounded_graph import Types, computes, float_inputs
from porting.backends.onnx_program import node_label, subgraphs
from porting.onnx_facts import nodes_of, valued_names

# through these a mask of large negative numbers comes to the Softmax that it is made for
_MASK_MOVES = frozenset(
    ("Add", "Where", "Mul", "Sub", "Cast", "Concat", "Expand", "Gather", "Identity", "Max", "Min", "Reshape")
) | frozenset(("Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"))
_MATRIX = frozenset(("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN"))
_SUMS = frozenset(
    ("ReduceSum", "ReduceMean", "GlobalAveragePool", "AveragePool", "CumSum", "Sum", "Mean", "ReduceL1", "ReduceLogSum")
)
_SQUARES = frozenset(
    (
        "LayerNormalization",
        "InstanceNormalization",
        "ReduceL2",
        "ReduceSumSquare",
        "LpNormalization",
        "GlobalLpPool",
        "LpPool",
        "LRN",
    )
) | frozenset(("MeanVarianceNormalization", "GroupNormalization", "RMSNormalization"))
_OTHER_FLOATS: dict[int, str] = {TensorProto.DOUBLE: "float64", TensorProto.BFLOAT16: "bfloat16"}  # fp16 modes lower them too
_EXPONENTIALS = frozenset(("Softmax", "LogSoftmax", "ReduceLogSumExp"))


@dataclass(frozen=True)
class NodeForecast:
    """A node, and what a format makes of its numbers.

    found:      what it gave in float32, all float outputs together
    driven:     whether the rounded run went over here first: a magnitude, before it was rounded, that the format does not hold, or NaN
    reads:      values that it reads and the format does not hold
    vanishing:  values that it reads, constants included, of which nothing is left as a normal number
    kept:       whether it computed in float32
    mask:       whether all that is too large is negative and goes to a Softmax: minus a lot is what it was meant to be
    """

    name: str
    op: str
    found: Magnitudes
    driven: bool
    reads: tuple[str, ...]
    vanishing: tuple[str, ...]
    kept: bool
    mask: bool

    @property
    def overflows(self) -> bool:
        return not self.kept and ((self.found.too_large > 0 and not self.mask) or bool(self.reads))

    @property
    def driven_over(self) -> bool:
        """Whether only the rounded run goes over."""
        return not self.kept and not self.mask and self.driven and not self.found.infinite

    @property
    def loses(self) -> bool:
        return not self.kept and (self.found.is_lost or bool(self.vanishing))

    def with_more(self, other: NodeForecast) -> NodeForecast:
        """The same node on other cases."""
        return replace(
            self,
            found=self.found + other.found,
            driven=self.driven or other.driven,
            reads=tuple(dict.fromkeys((*self.reads, *other.reads))),
            vanishing=tuple(dict.fromkeys((*self.vanishing, *other.vanishing))),
            mask=(self.mask or not self.found.too_large)
            and (other.mask or not other.found.too_large)
            and (self.mask or other.mask),
        )

    def content(self) -> dict[str, Any]:
        return {
            "node": self.name,
            "op": self.op,
            "largest": self.found.largest,
            "too_large": self.found.too_large,
            "elements": self.found.elements,
            "zero_share": self.found.zero_share,
            "lost_share": self.found.lost_share,
            "infinite": self.found.infinite,
            "nan": self.found.nan,
            "reads_too_large": list(self.reads),
            "reads_vanishing": list(self.vanishing),
            "kept": self.kept,
        }


@dataclass(frozen=True)
class Unseen:
    """What a forecast does not look into.

    reaches: the magnitude that an accumulator of the narrow format would have to hold, as far as it follows from what was seen; None: unknown
    """

    node: str
    op: str
    why: str
    reaches: float | None = None


def node_forecasts(
    graph: onnx.GraphProto,
    types: Types,
    found: Mapping[str, Magnitudes],
    peaks: Mapping[str, float],
    kept: frozenset[str],
    form: Format,
) -> list[NodeForecast]:
    """Every node of the main graph that computes.

    peaks: the largest magnitude of a value in the rounded run, before it was rounded; Inf also for NaN
    """
    valued = valued_names(graph)
    masks = _masks(graph, found, form)
    over = {value for value, peak in peaks.items() if peak >= form.overflows_from}
    result = []
    for node in graph.node:
        if not computes(node, valued):
            continue
        name = node_label(node)
        read = [value for _, value in float_inputs(node, types) if value in found]
        given = [value for value in node.output if value in found]
        too_large = [value for value in given if found[value].too_large]
        result.append(
            NodeForecast(
                name,
                node.op_type,
                sum((found[value] for value in given), Magnitudes()),
                any(value in over for value in given) and not any(value in over for value in read),
                tuple(value for value in dict.fromkeys(read) if found[value].too_large and value not in masks),
                tuple(value for value in dict.fromkeys(read) if found[value].is_lost),
                name in kept,
                bool(too_large) and all(value in masks for value in too_large),
            )
        )
    return result


def _masks(graph: onnx.GraphProto, found: Mapping[str, Magnitudes], form: Format) -> set[str]:
    """Values that go nowhere but, added or chosen, into a Softmax, and of which only negative numbers are too large."""
    ends = {output.name for output in graph.output}
    for node in graph.node:
        for body in subgraphs(node):  # nobody followed them there
            ends.update(name for _, inner in nodes_of(body) for name in inner.input)
    to_softmax: set[str] = set()
    elsewhere: set[str] = set(ends)
    for node in reversed(graph.node):
        leads = node.op_type in ("Softmax", "LogSoftmax") or (
            node.op_type in _MASK_MOVES and all(name in to_softmax and name not in elsewhere for name in node.output)
        )
        (to_softmax if leads else elsewhere).update(node.input)
    return {name for name in to_softmax - elsewhere if name in found and found[name].highest < form.overflows_from}


def unseen(graph: onnx.GraphProto, types: Types, found: Mapping[str, Magnitudes], form: Format) -> Iterator[Unseen]:
    """Sums inside nodes, bodies of control flow, and floats that are not float32 and do not stay what they are."""
    valued = valued_names(graph)
    others = {number: name for number, name in _OTHER_FLOATS.items() if name != form.name}
    for node in graph.node:
        name = node_label(node)
        bodies = list(subgraphs(node))
        if bodies:
            inner = sum(1 for body in bodies for _ in nodes_of(body))
            yield Unseen(name, node.op_type, f"{inner} nodes in its bodies are rounded, and their numbers are not looked at")
        elif other := next((others[t] for t in (types.get(value, (0,))[0] for value in node.output) if t in others), ""):
            yield Unseen(name, node.op_type, f"it computes in {other}, and only float32 is looked at")
        elif computes(node, valued) and node.op_type in _MATRIX | _SUMS | _SQUARES | _EXPONENTIALS:
            yield Unseen(name, node.op_type, "how its kernel accumulates is unknown", _reaches(node, types, found))


def _reaches(node: onnx.NodeProto, types: Types, found: Mapping[str, Magnitudes]) -> float | None:
    read = found.get(node.input[0])
    given = found.get(node.output[0])
    if read is None or given is None or node.op_type in _MATRIX | _EXPONENTIALS or not given.elements:
        return None
    if node.op_type in _SQUARES:
        return read.largest**2
    if node.op_type in ("ReduceMean", "GlobalAveragePool"):
        return given.largest * math.ceil(read.elements / given.elements)
    return given.largest
