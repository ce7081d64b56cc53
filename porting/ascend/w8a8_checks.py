"""Is a W8A8 port right, and is it good? Two questions, never one for the other.

fidelity: layers of the reference graph against what the nodes of the deploy graph say, bit by bit, on what these layers read (vendor_integers.py)
quality:  every output against the float32 original's, on inputs that were not calibrated on where there are some

What W8A8 may cost is an analysis, not a measurement. A layer that rounds two operands to int8 adds to its output, as a share of that output's mean
square, what rounding adds to each operand: a step is range / 255, its rounding has a variance of step^2 / 12 (Widrow & Kollar, Quantization Noise,
2008), and n Gaussian numbers range over about 2 sqrt(2 ln n) standard deviations (Leadbetter, Lindgren & Rootzen 1983): 2 ln n / (3 * 255^2). For
activations that is taken 2.5 times: real ones have outliers, by as much as limits.json has measured for language models (precisions.int8). No noise
is forgotten on the way to an output, and none is amplified: the layers on the longest path add up. A network that amplifies fails, as it should.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from porting.ascend.activations import runs
from porting.ascend.calibration import Cases, giving
from porting.ascend.graph_at_hand import AtHand
from porting.ascend.vendor_integers import VendorLayer, computed, vendor_layers
from porting.errors import InputError
from porting.graph_outputs import Expected, ExpectedArray
from porting.numerics.quality import quality_limits
from porting.verdict import Check, printable

FIDELITY = "fidelity"  # how the names of these checks begin
FEW = 4  # layers that are worked out anew
STEPS = 255  # of int8, from end to end
ACTIVATIONS, WEIGHTS = 1 << 20, 1 << 10  # numbers that share a step: of a tensor of activations, of a channel
OUTLIERS = 2.5
INTEGER_PRODUCTS = ("ConvInteger", "MatMulInteger")
DERIVATION = (
    f"sqrt(layers on the longest path * noise of one): 2 ln n / (3 * {STEPS}^2) of two operands in int8, n = 2^20 activations, {OUTLIERS} times for "
    "their outliers, and n = 2^10 weights"
)


def gaussian_noise(numbers: int) -> float:
    """Mean square of what int8 takes from Gaussian numbers that share a step, as a share of theirs."""
    return 2 * math.log(numbers) / (3 * STEPS**2)


LAYER_NOISE = OUTLIERS * gaussian_noise(ACTIVATIONS) + gaussian_noise(WEIGHTS)


def error_limit(layers: int) -> float:
    """Relative L2 error of an output behind so many layers."""
    return math.sqrt(layers * LAYER_NOISE)


# --- fidelity -----------------------------------------------------------------------------------------------------


def integer_checks(reference: AtHand, deploy: AtHand, cases: Cases) -> list[Check]:
    """A few layers, on the first case. raises: InputError for a deploy graph in a form that is not covered"""
    layers = vendor_layers(deploy.model)
    if not layers:
        return [Check(f"{FIDELITY}: layers in integers", "fail", 0, "some", "the deploy graph")]
    present = {name for node in reference.model.graph.node for name in node.output}
    missing = [layer.name for layer in layers if layer.output not in present]
    checks = [
        Check.equal(
            f"{FIDELITY}: layers of the deploy graph that the reference graph does not have",
            len(missing),
            0,
            printable(missing[0]) if missing else f"{len(layers)} layers",
        )
    ]
    if missing:
        return checks
    fed = {value.name for value in reference.model.graph.input}
    for layer in _few(layers, deploy):
        names = [layer.output] if layer.input in fed else [layer.output, layer.input]
        values = next(iter(runs(giving(reference.model, names), reference, cases[:1])))
        expected = computed(layer, deploy, {**cases[0], **values}[layer.input])
        found = values[layer.output]
        differing = found.size if found.shape != expected.shape else int(np.count_nonzero(found != expected))
        checks.append(
            Check.equal(
                f"{FIDELITY}: elements of {layer.product.op_type} in integers that differ from the vendor's formulas",
                differing,
                0,
                printable(layer.name),
                f"{found.size} elements; AscendQuant, {layer.product.op_type} and AscendDequant worked out in exact arithmetic",
            )
        )
    return checks


def _few(layers: Sequence[VendorLayer], deploy: AtHand) -> list[VendorLayer]:
    """The first and the last, the one with the largest weight, and the first of every kind, up to FEW."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in deploy.model.graph.initializer}
    largest = max(layers, key=lambda layer: sizes.get(layer.product.input[1], 0))
    kinds = {layer.product.op_type: layer for layer in reversed(layers)}
    chosen = {id(layer): layer for layer in (layers[0], largest, layers[-1], *kinds.values())}
    return list(chosen.values())[: max(FEW, len(kinds))]


# --- quality ------------------------------------------------------------------------------------------------------


@dataclass
class Loss:
    """One output over all cases.

    squares, least:  sums of squared relative errors, of floats; of an estimate from a golden the most and the least
    cases:           how many there were
    elements, wrong: of integers, booleans and texts: how many, and how many differ
    same, rows:      along the last axis of a float output: how many rows there are, and where the largest element is in the same place
    problem:         why it cannot be compared
    undecided:       why what was compared says nothing
    worst:           relative error and place of the worst case
    """

    squares: float = 0.0
    least: float = 0.0
    cases: int = 0
    elements: int = 0
    wrong: int = 0
    same: int = 0
    rows: int = 0
    problem: str = ""
    undecided: str = ""
    worst: tuple[float, str] = (-1.0, "")

    def add(self, expected: Expected, got: np.ndarray, place: str) -> None:
        found = expected.compare(place, got)
        self.problem, self.undecided = self.problem or found.problem, self.undecided or found.undecided
        self.cases += 1
        if expected.exact:
            self.elements, self.wrong = self.elements + got.size, self.wrong + int(min(found.value, got.size))
        elif not found.problem:
            self.squares += found.value**2
            self.least += (found.value if found.least is None else found.least) ** 2
            self.worst = max(self.worst, (found.value, place))
            if isinstance(expected, ExpectedArray) and got.ndim and got.shape[-1] > 1:
                same = expected.array.argmax(-1) == got.argmax(-1)
                self.rows, self.same = self.rows + same.size, self.same + int(same.sum())


def quality_check(output: str, loss: Loss, layers: int) -> Check:
    """What W8A8 costs one output, against its limit. layers: in integers, on the longest path to it"""
    where = printable(loss.worst[1] or output)
    if loss.problem:
        return Check(f"quality: {output}", "fail", printable(loss.problem), None, where)
    if loss.undecided:
        return Check(f"quality: {output}", "error", None, None, where, loss.undecided)
    if loss.elements:
        limits = quality_limits("w8a8")
        share, floor = 1 - loss.wrong / loss.elements, limits.agreement_floor(loss.elements)
        return Check.at_least(
            f"quality: share of equal elements of {output}", share, floor, f"{loss.elements} elements", limits.derivation
        )
    error, least = (math.sqrt(total / max(loss.cases, 1)) for total in (loss.squares, loss.least))
    detail = f"{layers} layers; {DERIVATION}"
    if loss.rows:
        detail = f"the largest element is in the same place in {loss.same} of {loss.rows} rows; {detail}"
    name = f"quality: relative error of {output} in W8A8, root mean square of {loss.cases} cases"
    if least <= error_limit(layers) < error:
        why = f"the golden keeps a sketch, by which it is {least:.1e} to {error:.1e}; validate against the source"
        return Check(name, "error", error, error_limit(layers), where, f"{why}. {detail}")
    return Check.at_most(name, error, error_limit(layers), where, detail)


def depths(model: onnx.ModelProto) -> dict[str, int]:
    """Output of a reference graph -> layers in integers on the longest path to it."""
    depth: dict[str, int] = {}
    for node in model.graph.node:
        behind = max((depth.get(name, 0) for name in _read(node)), default=0)
        for name in node.output:
            depth[name] = behind + (node.op_type in INTEGER_PRODUCTS)
    return {value.name: depth.get(value.name, 0) for value in model.graph.output}


def _read(node: onnx.NodeProto) -> list[str]:
    """Inputs of a node, and what its bodies read."""
    found = list(node.input)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            found += [name for inner in body.node for name in _read(inner)]
    return found


def require_state_free(pairs: Sequence[object]) -> None:
    """raises: InputError for a model that carries state, which the calibration does not"""
    if pairs:
        raise InputError(
            "W8A8 is for models without state: calibration runs each case alone", where="--precision", next="-p fp16"
        )
