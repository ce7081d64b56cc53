"""GRU with linear_before_reset, layout, activations or clip -> the usual GRU, or its steps in primitives.

    linear_before_reset=1   ->   n = tanh(x Wh + Wbh + r * (h Rh + Rbh)), h = (1 - z) * n + z * h of every step
    activations, clip       ->   the same, with r * h before Rh where linear_before_reset=0
    layout=1                ->   Transpose, GRU, Transpose

Why: CANN's plugin reads hidden_size and direction alone. Every GRU that PyTorch exports has linear_before_reset=1.

Left alone: steps that are no fixed number or more than recurrent_steps.MOST_STEPS; activations but Sigmoid, Tanh and Relu.
Bound: as of lstm_layout.
"""

from __future__ import annotations

import onnx_ir as ir

from .making import Maker, node_pass
from .recurrent_steps import Direction, Given, Steps, as_usual, by_batch, by_steps, swapped

USUAL = ("Sigmoid", "Tanh")
NOT_READ = ("layout", "clip", "linear_before_reset", "activations", "activation_alpha", "activation_beta")


def _gru(make: Maker) -> list[ir.Value | None] | None:
    attributes = make.node.attributes
    if not set(NOT_READ) & set(attributes):
        return None
    batches = bool(make.int("layout", 0))
    x, state = make.input(0), make.optional(5)
    if batches:
        x, state = swapped(make, x), by_steps(make, state)
    given = Given(x, make.input(1), make.input(2), make.optional(3), make.optional(4), state)
    if as_usual(make, USUAL) and "clip" not in attributes and not make.int("linear_before_reset", 0):
        made = _usual(make, given)
    else:
        made = Steps(make, given, 3, USUAL).run(_step)[:2]
    return by_batch(make, made) if batches else made


def _usual(make: Maker, given: Given) -> list[ir.Value | None]:
    inputs = [given.x, given.weights, given.recurrent, given.bias, given.lengths, given.state]
    while inputs[-1] is None:
        inputs.pop()
    kept = {"direction": make.text("direction", "forward"), "hidden_size": make.int("hidden_size", 0)}
    made = make.several("GRU", 2, *inputs, **{name: value for name, value in kept.items() if value})
    return [value if make.used(place) else None for place, value in enumerate(made)]


def _step(
    steps: Steps, own: Direction, projected: ir.Value, state: ir.Value | None, _cell: ir.Value | None
) -> tuple[ir.Value, ir.Value | None]:
    make, (f, g) = steps.make, own.activations
    recurrent = steps.recurrence(own, state)
    gates = steps.gate(projected, 0, 1)
    if recurrent is not None:
        gates = make("Add", gates, _gates_of(steps, recurrent, 0, 1))
    both = steps.activated(f, gates)
    z, r = steps.gate(both, 0), steps.gate(both, 1)
    linear = steps.gate(projected, 2)
    if make.int("linear_before_reset", 0):
        if recurrent is not None:
            linear = make("Add", linear, make("Mul", r, _gates_of(steps, recurrent, 2, 2)))
    else:
        if state is not None:
            part = make.part(own.recurrent, 2 * steps.size, 3 * steps.size, 2)
            linear = make("Add", linear, make("MatMul", make("Mul", r, state), part))
        if own.recurrent_bias is not None:
            linear = make("Add", linear, _gates_of(steps, own.recurrent_bias, 2, 2))
    fresh = make("Mul", steps.but(z), steps.activated(g, linear))
    return (fresh if state is None else make("Add", fresh, make("Mul", z, state))), None


def _gates_of(steps: Steps, value: ir.Value, first: int, last: int) -> ir.Value:
    """Of (1, B, 3*H), or of a bias (1, 3*H)."""
    return steps.make.part(value, first * steps.size, (last + 1) * steps.size, -1)


gru_reset = node_pass({("", "GRU"): _gru}, "Rewrite those. Count: nodes rewritten. Source: ONNX GRU-14.")
