"""RNN over few fixed steps -> MatMul, Add and the activation, step by step.

    h = f(x[t] @ W^T + Wb + h @ R^T + Rb)      for every t, and from the end for the reverse direction

Why: CANN's parser has LSTM and GRU, and RNN at no opset.

Left alone: steps that are no fixed number or more than recurrent_steps.MOST_STEPS; activations but Sigmoid, Tanh and Relu.
Bound: as of lstm_layout.
"""

from __future__ import annotations

import onnx_ir as ir

from .making import Maker, node_pass
from .recurrent_steps import Direction, Given, Steps, by_batch, by_steps, swapped

USUAL = ("Tanh",)


def _rnn(make: Maker) -> list[ir.Value | None]:
    batches = bool(make.int("layout", 0))
    x, state = make.input(0), make.optional(5)
    if batches:
        x, state = swapped(make, x), by_steps(make, state)
    given = Given(x, make.input(1), make.input(2), make.optional(3), make.optional(4), state)
    made = Steps(make, given, 1, USUAL).run(_step)[:2]
    return by_batch(make, made) if batches else made


def _step(
    steps: Steps, own: Direction, projected: ir.Value, state: ir.Value | None, _cell: ir.Value | None
) -> tuple[ir.Value, ir.Value | None]:
    (f,) = own.activations
    return steps.activated(f, steps.plus(projected, steps.recurrence(own, state))), None


rnn = node_pass({("", "RNN"): _rnn}, "Rewrite every one. Count: nodes rewritten. Source: ONNX RNN-14.")
