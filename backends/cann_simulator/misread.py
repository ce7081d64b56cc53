"""What the compiler does not read of a model, or reads otherwise: each rule whose effect is "wrong", as a change of the graph.

Where a rule says only that something is not supported, what comes out is a guess, and GUESSED names it. What nobody can compute from is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from porting.ascend.rules import Finding
from porting.backends.cann_simulator.machine import Refused
from porting.backends.cann_simulator.om_graph import CANNOT_LOAD, OmGraph, Types
from porting.onnx_facts import nodes_of

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True, eq=False)
class Place:
    """A node in its graph."""

    graph: OmGraph
    types: Types
    opset: int
    node: onnx.NodeProto

    def attribute(self, name: str, default: Any = None) -> Any:
        found = [helper.get_attribute_value(a) for a in self.node.attribute if a.name == name]
        return found[0] if found else default

    def drop(self, *names: str) -> None:
        kept = [a for a in self.node.attribute if a.name not in names]
        del self.node.attribute[:]
        self.node.attribute.extend(kept)

    def put(self, name: str, value: Any) -> None:
        self.drop(name)
        self.node.attribute.append(helper.make_attribute(name, value))

    def rank(self, place: int = 0) -> int | None:
        """As far as a fixed shape says."""
        shape = self.types.get(self.node.input[place], (0, None))[1]
        return None if shape is None else len(shape)

    def kind(self, place: int = 0) -> int:
        return self.types.get(self.node.input[place], (0, None))[0]

    def add(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> onnx.NodeProto:
        """A node in the place of this one. output: "" for a value of its own"""
        name = f"{self.node.name}/{kind}/{output or inputs[0]}"
        return helper.make_node(kind, list(inputs), [output or name], name=name, **attributes)

    def number(self, array: np.ndarray) -> onnx.NodeProto:
        name = f"{self.node.name}/number/{array.dtype}/{'_'.join(map(str, array.reshape(-1)[:8]))}"
        return helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(array))


Change = Callable[[Place], "list[onnx.NodeProto]"]


def _without(*names: str) -> Change:
    """Attributes that are not read."""

    def change(place: Place) -> list[onnx.NodeProto]:
        place.drop(*names)
        return [place.node]

    return change


def _always(name: str, value: Any) -> Change:
    def change(place: Place) -> list[onnx.NodeProto]:
        place.put(name, value)
        return [place.node]

    return change


def _without_input(at: int) -> Change:
    def change(place: Place) -> list[onnx.NodeProto]:
        kept = list(place.node.input[:at])
        while kept and not kept[-1]:
            kept.pop()
        del place.node.input[:]
        place.node.input.extend(kept)
        return [place.node]

    return change


def _finds_nothing(place: Place) -> list[onnx.NodeProto]:
    """No Inf and no NaN ever: IsInf that looks for neither sign."""
    made = helper.make_node("IsInf", place.node.input[:1], place.node.output, name=place.node.name)
    made.attribute.extend(helper.make_attribute(name, 0) for name in ("detect_negative", "detect_positive"))
    return [made]


def _real_division(place: Place) -> list[onnx.NodeProto]:
    """Integers divided as real numbers, and the quotient rounded to the nearest: how it becomes an integer again stands nowhere."""
    real = [place.add("Cast", [name], to=TensorProto.DOUBLE) for name in place.node.input]
    divided = place.add("Div", [node.output[0] for node in real])
    near = place.add("Round", [divided.output[0]])
    return [*real, divided, near, place.add("Cast", [near.output[0]], place.node.output[0], to=place.kind())]


def _mod_of_the_divisor(place: Place) -> list[onnx.NodeProto]:
    """x - floor(x / y) * y: the sign is the divisor's."""
    place.drop("fmod")
    if place.kind() not in _FLOATS:
        return [place.node]
    x, y = place.node.input
    divided = place.add("Div", [x, y])
    whole = place.add("Floor", [divided.output[0]])
    times = place.add("Mul", [whole.output[0], y])
    return [divided, whole, times, place.add("Sub", [x, times.output[0]], place.node.output[0])]


def _nothing_reduced(place: Place) -> list[onnx.NodeProto]:
    return [place.add("Identity", place.node.input[:1], place.node.output[0])]


def _from_the_start(place: Place) -> list[onnx.NodeProto]:
    """Places that count from the end are taken for 0: what a kernel makes of them stands nowhere."""
    indices = place.node.input[1]
    zero = place.number(np.asarray(0, np.int32 if place.kind(1) == TensorProto.INT32 else np.int64))
    clipped = place.add("Max", [indices, zero.output[0]])
    place.node.input[1] = clipped.output[0]
    return [zero, clipped, place.node]


def _along_one_axis(place: Place) -> list[onnx.NodeProto]:
    """Before opset 13 ONNX flattens from the axis on: here it is computed along that axis alone, the last where none is written."""
    rank = place.rank()
    axis = int(place.attribute("axis", -1))
    if rank is None:
        raise _undefined(place.node.name, "softmax-axis", "the rank of what it reads is not known")
    axis %= rank
    swapped = list(range(rank))
    swapped[axis], swapped[-1] = swapped[-1], swapped[axis]
    there = place.add("Transpose", place.node.input[:1], perm=swapped)
    made = place.add(place.node.op_type, [there.output[0]], axis=rank - 1)
    return [there, made, place.add("Transpose", [made.output[0]], place.node.output[0], perm=swapped)]


def _two_last_axes(place: Place) -> list[onnx.NodeProto]:
    """nearest moves along height and width only."""
    shape = place.types.get(place.node.input[0], (0, None))[1]
    sizes = len(place.node.input) > 3 and bool(place.node.input[3])
    at = 3 if sizes else 2 if place.opset >= 11 else 1
    wanted = place.graph.constant(place.node.input[at])
    if wanted is None or shape is None or len(shape) != 4 or wanted.size != 4:
        raise _undefined(place.node.name, "resize-nearest-space", "what it makes of another rank stands nowhere")
    kept = shape[:2] if sizes else (1, 1)
    changed = np.concatenate([np.asarray(kept, wanted.dtype), wanted[2:]])
    number = place.number(changed)
    place.node.input[at] = number.output[0]
    return [number, place.node]


def _undefined(node: str, rule: str, why: str) -> Refused:
    return Refused(CANNOT_LOAD, f"E19999: node {node[:200]!r}: {why} ({rule}): the simulator refuses what it cannot compute")


MISREAD: Mapping[str, Change] = {
    "saturation": _finds_nothing,
    "cast-saturate": _without("saturate"),
    "integer-division": _real_division,
    "shape-slice": _without("start", "end"),
    "mod-fmod": _mod_of_the_divisor,
    "gemm-alpha": _without("alpha"),
    "lstm-layout": _without("layout"),
    "lstm-activations": _without("activations", "activation_alpha", "activation_beta"),
    "lstm-clip": _without("clip"),
    "lstm-input-forget": _without("input_forget"),
    "gru-layout": _without("layout"),
    "gru-activations": _without("activations", "activation_alpha", "activation_beta"),
    "gru-clip": _without("clip"),
    "gru-reset": _without("linear_before_reset"),
    "resize-nearest": _always("nearest_mode", "round_prefer_ceil"),
    "resize-nearest-space": _two_last_axes,
    "resize-cubic-coefficient": _without("cubic_coeff_a"),
    "resize-exclude-outside": _without("exclude_outside"),
    "resize-crop": _without("extrapolation_value"),
    "resize-antialias": _without("antialias"),
    "resize-axes": _without("axes"),
    "resize-aspect-ratio": _without("keep_aspect_ratio_policy"),
    "pad-axes": _without_input(3),
    "reduce-axes": _nothing_reduced,
    "negative-indices": _from_the_start,
    "scatter-nd-reduction": _always("reduction", "none"),
    "batch-norm-epsilon": _always("epsilon", 1e-4),
    "dropout-training": _without_input(2),
    "softmax-axis": _along_one_axis,
    "average-pool-same-lower": _always("auto_pad", "SAME_UPPER"),
    "average-pool-dilations": _without("dilations"),
    "lp-pool": _without("ceil_mode"),
    "lp-pool-dilations": _without("dilations"),
}
# what comes out is undefined: nothing can be computed from it
UNDEFINED: Mapping[str, str] = {
    "cast-undefined": "it is cast to a dtype that the graph engine does not have",
    "constant-form": "the constant is empty",
    "dropout-mask": "nothing makes the mask",
    "average-pool-ceil-window": "a window lies in padding alone",
    "max-pool-ceil-window": "a window lies in padding alone",
}
# of the graph as a whole
OF_GRAPHS = ("input-default", "input-unranked")
GUESSED: Mapping[str, str] = {
    "integer-division": "how a quotient of integers becomes one",
    "negative-indices": "which element an index below 0 reads",
    "average-pool-same-lower": "where the odd row of padding goes",
    "reduce-axes": "what an operator that reduces along no axis does to the elements",
    "resize-nearest-space": "what becomes of the other axes",
}


def misread(graph: OmGraph, types: Types, opset: int, findings: Iterable[Finding]) -> list[tuple[str, str]]:
    """Change a graph to what the compiler makes of it.

    returns: node and rule of each change
    raises:  Refused where nothing can be computed from what it makes
    """
    done: list[tuple[str, str]] = []
    by_node: dict[str, list[str]] = {}
    for finding in findings:
        if finding.node:
            by_node.setdefault(finding.node, []).append(finding.rule.id)
        else:
            _change_inputs(graph, finding.rule.id)
            done.append(("", finding.rule.id))
    if by_node:
        for body in {id(body): body for body, _ in nodes_of(graph.proto.graph)}.values():
            _change_body(body, graph, types, opset, by_node, done)
    return done


def _change_body(
    body: onnx.GraphProto, graph: OmGraph, types: Types, opset: int, by_node: Mapping[str, list[str]], done: list[Any]
) -> None:
    if not any(node.name in by_node for node in body.node):
        return
    made: list[onnx.NodeProto] = []
    for original in body.node:
        nodes = [original]
        for rule in by_node.get(original.name, ()):
            if rule in UNDEFINED:
                raise _undefined(original.name, rule, UNDEFINED[rule])
            target = next((node for node in nodes if node.op_type == original.op_type), None)
            if target is None:  # another rule took it away
                continue
            at = nodes.index(target)
            try:
                nodes[at : at + 1] = MISREAD[rule](Place(graph, types, opset, target))
            except (ValueError, IndexError, TypeError) as error:  # an attribute or input that is none
                raise Refused(CANNOT_LOAD, f"E11010: node {original.name[:200]!r}: {str(error)[:200]}") from error
            done.append((original.name, rule))
        made += nodes
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in made]
    del body.node[:]
    body.node.extend(kept)


def _change_inputs(graph: OmGraph, rule: str) -> None:
    """An input with a default is a constant; one without a shape is a scalar."""
    body = graph.proto.graph
    if rule == "input-default":
        known = {tensor.name for tensor in body.initializer}
        kept = [value for value in body.input if value.name not in known]
        del body.input[:]
        body.input.extend(kept)
    elif rule == "input-unranked":
        for value in body.input:
            if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
                value.type.tensor_type.shape.SetInParent()
    else:
        raise Refused(CANNOT_LOAD, f"E19999: what the compiler makes of {rule!r} is not simulated")
