"""DynamicQuantizeLSTM (com.microsoft) over few fixed steps -> its steps in float32 primitives, with the numbers of its integers.

    what x is quantised by  =  one scale and zero for all steps:  (max - min) / 255, with 0 among the numbers
    gates of x              =  MatMul(q(x) - zero, w - zero of w) * (scale of x * scale of w)
    each step               =  the same of the state before it, with a scale of its own, added; then the bias; then as LSTM

Why: CANN's parser knows nothing of com.microsoft. Float weights in an LSTM would compute something else: activations are quantised here.
Integers of 8 bits, their products and sums below 2^24 are exact in float32. They are divided by 2^8, and the scales multiplied by it, which
changes no bit in float32 and keeps sums of a thousand products inside fp16; a device that computes in that rounds them.

Refuses (leaves the node) when steps or sizes are not fixed, there are more than MOST_STEPS steps (each is some forty nodes), lengths of sequences
are given, the weights' zeros are not known, or an activation is one that recurrent_steps.py does not have.
Bound: none on one thread of onnxruntime, where all operations are in the same order. On several threads onnxruntime gives each thread some rows of
the batch and quantises those by themselves, so that what it computes for a batch depends on the machine; of a single row it does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..infer_shapes import infer_shapes
from ..rewriting import ModelPass, frozen
from .dequantize import FLOAT, exact_parts, is_zero, quantisation, sum_of_parts
from .lstm_layout import USUAL, lstm_gates
from .making import Maker, Refused, fixed, rank_of, rewriting
from .recurrent_steps import Direction, Given, Steps

MICROSOFT = "com.microsoft"
UNIT = 256.0  # integers of 8 bits over it are below 1


@dataclass(frozen=True)
class Weights:
    """Of one direction. integers: (1, K, 4*H) less their zero, in UNITs; scale: (1,) or (1, 4*H), of a UNIT; largest: of the integers"""

    integers: ir.Value
    scale: ir.Value
    inner: int
    largest: int


class QuantisedSteps(Steps):
    """Steps whose products are of integers."""

    def __init__(self, make: Maker, given: Given) -> None:
        super().__init__(make, given, 4, USUAL)
        self._x = self._shifted(given.x, 3)
        self._recurrent: dict[int, Weights] = {}

    def width(self, given: Given) -> int:
        return fixed(given.recurrent, 1)

    def direction(self, which: int) -> Direction:
        make, width = self.make, self.gates * self.size
        projected = self._product(*self._x, self._weights(which, 1, 8))
        recurrent = self._weights(which, 2, 10)
        bias = None
        if self.given.bias is not None:
            both = make.part(self.given.bias, which, which + 1, 0)
            bias = make("Add", make.part(both, 0, width, 1), make.part(both, width, 2 * width, 1))
        own = Direction(projected, recurrent.integers, bias, self.peepholes(which), self.activations_of_one(which))
        self._recurrent[id(own)] = recurrent
        return own

    def step(self, projected: ir.Value, state: ir.Value | None, own: Direction) -> ir.Value:
        """(1, B, 4*H) that the gates are given."""
        total = projected
        if state is not None:
            total = self.make("Add", total, self._product(*self._shifted(state, 3), self._recurrent[id(own)]))
        return self.plus(total, own.recurrent_bias)

    def _weights(self, which: int, place: int, scale: int) -> Weights:
        make, stored = self.make, self.make.input(place)
        zero = make.input(scale + 1)
        integers = make("Cast", make.part(stored, which, which + 1, 0), to=int(FLOAT))
        if not is_zero(zero):
            if frozen(zero) is None:
                raise Refused("zeros of weights that are not known")
            own = make("Cast", make.part(zero, which, which + 1, 0), to=int(FLOAT))
            integers = make("Sub", integers, own)
        if stored.dtype not in (ir.DataType.UINT8, ir.DataType.INT8):
            raise Refused(f"weights of {stored.dtype}")
        largest = 128 if is_zero(zero) and stored.dtype == ir.DataType.INT8 else 255
        scale_of_one = make.part(make.input(scale), which, which + 1, 0)
        return Weights(*self._in_units(integers, scale_of_one), fixed(stored, 1), largest)

    def _shifted(self, x: ir.Value, rank: int) -> tuple[ir.Value, ir.Value]:
        """x as integers less their zero, in UNITs; and the scale of one."""
        make = self.make
        scale, zero = quantisation(make, x, rank)
        places = make("Add", make("Round", make("Div", x, scale)), zero)
        whole = make("Clip", places, make.scalar(0, FLOAT), make.scalar(255, FLOAT))
        return self._in_units(make("Sub", whole, zero), scale)

    def _in_units(self, integers: ir.Value, scale: ir.Value) -> tuple[ir.Value, ir.Value]:
        make = self.make
        return make("Mul", integers, make.scalar(1 / UNIT, FLOAT)), make("Mul", scale, make.scalar(UNIT, FLOAT))

    def _product(self, shifted: ir.Value, scale: ir.Value, weights: Weights) -> ir.Value:
        make = self.make
        parts = exact_parts(weights.inner, 1, 255 * weights.largest)
        if len(parts) == 1:
            sums = make("MatMul", shifted, weights.integers)
        else:  # integers again, since a sum of two may have more bits than float32
            unit = make.scalar(UNIT * UNIT, FLOAT)
            cut = [(make.part(shifted, *part, 2), make.part(weights.integers, *part, 1)) for part in parts]
            whole = sum_of_parts(make, [make("Mul", make("MatMul", *pair), unit) for pair in cut])
            sums = make("Mul", make("Cast", whole, to=int(FLOAT)), make.scalar(1 / (UNIT * UNIT), FLOAT))
        return make("Mul", sums, make("Mul", scale, weights.scale))


def _step(
    steps: Steps, own: Direction, projected: ir.Value, state: ir.Value | None, cell: ir.Value | None
) -> tuple[ir.Value, ir.Value | None]:
    assert isinstance(steps, QuantisedSteps)
    return lstm_gates(steps, own, steps.step(projected, state, own), cell)


def _lstm(make: Maker) -> list[ir.Value | None]:
    x = make.input(0)
    if x.dtype != FLOAT or rank_of(x) != 3 or make.int("layout", 0) or make.optional(4) is not None:
        raise Refused("of other types, by batches, or with lengths")
    if make.int("hidden_size", 0) not in (0, fixed(make.input(2), 1)):
        raise Refused("hidden_size is not that of the weights")
    recurrent = make.input(2)  # (D, H, 4*H), where LSTM has (D, 4*H, H)
    given = Given(x, make.input(1), recurrent, make.optional(3), None, make.optional(5), make.optional(6), make.optional(7))
    return QuantisedSteps(make, given).run(_step)


_sweep = rewriting({(MICROSOFT, "DynamicQuantizeLSTM"): _lstm})


@ModelPass
def dynamic_quantize_lstm(model: ir.Model) -> int:
    """Rewrite those. Count: nodes rewritten. Sizes behind one are known once it is rewritten. Source: onnxruntime ContribOperators.md and
    contrib_ops/cpu/quantization/dynamic_quantize_lstm.cc."""
    total = 0
    while changes := _sweep(model):
        total += changes
        infer_shapes.change(model)
    return total
