"""LSTM with layout, activations, clip or input_forget -> the usual LSTM, or its steps in primitives.

    layout=1                              ->   Transpose, LSTM, Transpose
    activations, clip, input_forget       ->   i, o, f, c of every step: MatMul, Add, Clip, the activations
    the usual activations, written        ->   not written

Why: CANN's plugin reads direction alone, and computes the usual LSTM by steps whatever the node says.

Left alone: steps that are no fixed number or more than recurrent_steps.MOST_STEPS; activations but Sigmoid, Tanh and Relu.
Bound: none needed for layout, the bits are the same. Of steps the operator's definition; a runtime sums in another order and has its own
approximations of tanh, which for states below 1 are some units in the last place a step.
"""

from __future__ import annotations

import onnx_ir as ir

from .making import Maker, node_pass
from .recurrent_steps import Direction, Given, Steps, as_usual, by_batch, by_steps, swapped

USUAL = ("Sigmoid", "Tanh", "Tanh")
NOT_READ = ("layout", "clip", "input_forget", "activations", "activation_alpha", "activation_beta")


def _lstm(make: Maker) -> list[ir.Value | None] | None:
    attributes = make.node.attributes
    if not set(NOT_READ) & set(attributes):
        return None
    batches = bool(make.int("layout", 0))
    x, state, cell = make.input(0), make.optional(5), make.optional(6)
    if batches:
        x, state, cell = swapped(make, x), by_steps(make, state), by_steps(make, cell)
    given = Given(x, make.input(1), make.input(2), make.optional(3), make.optional(4), state, cell, make.optional(7))
    if as_usual(make, USUAL) and "clip" not in attributes and not make.int("input_forget", 0):
        made = _usual(make, given)
    else:
        made = Steps(make, given, 4, USUAL).run(_step)
    return by_batch(make, made) if batches else made


def _usual(make: Maker, given: Given) -> list[ir.Value | None]:
    inputs = [given.x, given.weights, given.recurrent, given.bias, given.lengths, given.state, given.cell, given.peepholes]
    while inputs[-1] is None:
        inputs.pop()
    kept = {"direction": make.text("direction", "forward"), "hidden_size": make.int("hidden_size", 0)}
    made = make.several("LSTM", 3, *inputs, **{name: value for name, value in kept.items() if value})
    return [value if make.used(place) else None for place, value in enumerate(made)]


def _step(
    steps: Steps, own: Direction, projected: ir.Value, state: ir.Value | None, cell: ir.Value | None
) -> tuple[ir.Value, ir.Value | None]:
    return lstm_gates(steps, own, steps.plus(projected, steps.recurrence(own, state)), cell)


def lstm_gates(steps: Steps, own: Direction, total: ir.Value, cell: ir.Value | None) -> tuple[ir.Value, ir.Value]:
    """The next state and cell, each (1, B, H), from what the gates are given (1, B, 4*H) in the order i o f c."""
    make, (f, g, h) = steps.make, own.activations
    i, o, forget, c = (steps.gate(total, n) for n in range(4))
    if own.peepholes is not None and cell is not None:
        i, forget = (make("Add", v, make("Mul", own.peepholes[n], cell)) for v, n in ((i, 0), (forget, 2)))
    i = steps.activated(f, i)
    forget = steps.but(i) if make.int("input_forget", 0) else steps.activated(f, forget)
    fresh = make("Mul", i, steps.activated(g, c))
    new_cell = fresh if cell is None else make("Add", make("Mul", forget, cell), fresh)
    if own.peepholes is not None:
        o = make("Add", o, make("Mul", own.peepholes[1], new_cell))
    return make("Mul", steps.activated(f, o), make(h, new_cell)), new_cell


lstm_layout = node_pass({("", "LSTM"): _lstm}, "Rewrite those. Count: nodes rewritten. Source: ONNX LSTM-14.")
