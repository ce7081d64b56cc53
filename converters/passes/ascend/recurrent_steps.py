"""LSTM, GRU and RNN over few fixed steps in primitives: what lstm_layout and gru_reset fall back on, and rnn makes.

Shapes: x (T, B, I), weights (D, G*H, I), recurrent weights (D, G*H, H), bias (D, 2*G*H), lengths (B,), initial states (D, B, H), peepholes
(D, 3*H). D is 2 for both directions, else 1; G is 4 (i o f c) for LSTM, 3 (z r h) for GRU and 1 for RNN. Source: ONNX LSTM-14, GRU-14, RNN-14.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .making import Maker, Refused, fixed, float_type

MOST_STEPS = 128  # in all directions together: each is ten to twenty nodes
ACTIVATIONS = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu"}


@dataclass(frozen=True)
class Given:
    """What a node is given, in the layout by steps."""

    x: ir.Value
    weights: ir.Value
    recurrent: ir.Value
    bias: ir.Value | None
    lengths: ir.Value | None
    state: ir.Value | None
    cell: ir.Value | None = None
    peepholes: ir.Value | None = None


@dataclass(frozen=True)
class Direction:
    """One direction's own: what every step adds to, (T, B, G*H), and matrices that it reads."""

    projected: ir.Value
    recurrent: ir.Value  # (1, H, G*H)
    recurrent_bias: ir.Value | None  # (1, G*H)
    peepholes: Sequence[ir.Value] | None  # i o f, each (1, H)
    activations: Sequence[str]


# (make, direction, what step t projected (1, B, G*H), state and cell or None for zeros) -> the next state and cell
Step = Callable[["Steps", Direction, ir.Value, "ir.Value | None", "ir.Value | None"], "tuple[ir.Value, ir.Value | None]"]


class Steps:
    """Makes the steps of one node."""

    def __init__(self, make: Maker, given: Given, gates: int, usual: Sequence[str]) -> None:
        self.make, self.given, self.gates = make, given, gates
        self.kind = float_type(given.x)
        self.steps, self.size = fixed(given.x, 0), self.width(given)
        how = make.text("direction", "forward")
        self.backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[how]
        if self.steps * len(self.backwards) > MOST_STEPS:
            raise Refused(f"{self.steps} steps")
        self.activations = activations_of(make.node, list(usual) * len(self.backwards))
        clip = make.float("clip", 0.0) if "clip" in make.node.attributes else None
        self._bounds = None if clip is None else (make.scalar(-clip, self.kind), make.scalar(clip, self.kind))

    def width(self, given: Given) -> int:
        """H. raises: Refused"""
        return fixed(given.recurrent, 2)

    def run(self, step: Step) -> list[ir.Value | None]:
        """Y (T, D, B, H), Y_h (D, B, H), Y_c (D, B, H) of an LSTM; None for those that nobody reads."""
        every, states, cells = [], [], []
        for which, backwards in enumerate(self.backwards):
            made, state, cell = self._direction(which, backwards, step)
            every.append(made)
            states.append(state)
            cells.append(cell)
        make = self.make
        whole = [make("Unsqueeze", self._joined(made, 0), make.ints(1)) for made in every] if make.used(0) else []
        return [
            self._joined(whole, 1) if whole else None,
            self._joined(states, 0) if make.used(1) else None,
            self._joined([c for c in cells if c is not None], 0) if make.used(2) else None,
        ]

    def _direction(self, which: int, backwards: bool, step: Step) -> tuple[list[ir.Value], ir.Value, ir.Value | None]:
        """States after every step (1, B, H) in the order of x, and the last state and cell."""
        make, own = self.make, self.direction(which)
        state, cell = (None if v is None else make.part(v, which, which + 1, 0) for v in (self.given.state, self.given.cell))
        made: list[ir.Value] = []
        for t in reversed(range(self.steps)) if backwards else range(self.steps):
            new, new_cell = step(self, own, make.part(own.projected, t, t + 1, 0), state, cell)
            if self.given.lengths is None:
                state, cell = new, new_cell
                made.append(new)
                continue
            running = make("Less", make.constant(np.asarray(t, np.int32)), self.given.lengths)
            running = make("Unsqueeze", running, make.ints(0, 2))  # (1, B, 1)
            zero = make.scalar(0, self.kind)
            made.append(make("Where", running, new, zero))
            state = make("Where", running, new, zero if state is None else state)
            if new_cell is not None:
                cell = make("Where", running, new_cell, zero if cell is None else cell)
        if state is None:
            raise Refused("no steps")
        if self.given.lengths is not None:
            state = self._of_rows_that_ran(state, self.given.state)
            cell = None if cell is None else self._of_rows_that_ran(cell, self.given.cell)
        return (made[::-1] if backwards else made), state, cell

    def _of_rows_that_ran(self, last: ir.Value, initial: ir.Value | None) -> ir.Value:
        """0 for rows of no step, as onnxruntime has it, not what they began with; ONNX says nothing of them."""
        make, lengths = self.make, self.given.lengths
        if lengths is None or initial is None:
            return last
        ran = make("Unsqueeze", make("Less", make.constant(np.asarray(0, np.int32)), lengths), make.ints(0, 2))  # (1, B, 1)
        return make("Where", ran, last, make.scalar(0, self.kind))

    def direction(self, which: int) -> Direction:
        make, given, width = self.make, self.given, self.gates * self.size
        weights, recurrent = (
            make("Transpose", make.part(m, which, which + 1, 0), perm=[0, 2, 1]) for m in (given.weights, given.recurrent)
        )
        projected, recurrent_bias = make("MatMul", given.x, weights), None
        if given.bias is not None:
            bias = make.part(given.bias, which, which + 1, 0)  # (1, 2*G*H)
            projected = make("Add", projected, make.part(bias, 0, width, 1))
            recurrent_bias = make.part(bias, width, 2 * width, 1)
        return Direction(projected, recurrent, recurrent_bias, self.peepholes(which), self.activations_of_one(which))

    def peepholes(self, which: int) -> list[ir.Value] | None:
        """i o f of one direction, each (1, H)."""
        if self.given.peepholes is None:
            return None
        three = self.make.part(self.given.peepholes, which, which + 1, 0)
        return [self.make.part(three, i * self.size, (i + 1) * self.size, 1) for i in range(3)]

    def activations_of_one(self, which: int) -> list[str]:
        each = len(self.activations) // len(self.backwards)
        return self.activations[which * each : which * each + each]

    # --- parts of a step ----------------------------------------------------------------------------------------------

    def gate(self, value: ir.Value, first: int, last: int | None = None) -> ir.Value:
        """Gates first .. last of (1, B, G*H)."""
        return self.make.part(value, first * self.size, ((first if last is None else last) + 1) * self.size, 2)

    def recurrence(self, own: Direction, state: ir.Value | None) -> ir.Value | None:
        """h @ R^T + Rb (1, B, G*H), as far as there is something to add."""
        product = None if state is None else self.make("MatMul", state, own.recurrent)
        if product is None or own.recurrent_bias is None:
            return product if own.recurrent_bias is None else own.recurrent_bias
        return self.make("Add", product, own.recurrent_bias)

    def plus(self, value: ir.Value, more: ir.Value | None) -> ir.Value:
        return value if more is None else self.make("Add", value, more)

    def activated(self, activation: str, value: ir.Value) -> ir.Value:
        return self.make(activation, value if self._bounds is None else self.make("Clip", value, *self._bounds))

    def but(self, value: ir.Value) -> ir.Value:
        """1 - value."""
        return self.make("Sub", self.make.scalar(1, self.kind), value)

    def _joined(self, values: Sequence[ir.Value], axis: int) -> ir.Value:
        return self.make("Concat", *values, axis=axis) if len(values) > 1 else values[0]


def activations_of(node: ir.Node, usual: Sequence[str]) -> list[str]:
    """Of every direction. raises: Refused for one that is not among ACTIVATIONS, or has numbers of its own"""
    written = list(node.attributes["activations"].as_strings()) if "activations" in node.attributes else list(usual)
    known = [ACTIVATIONS.get(name.lower()) for name in written]
    names = [name for name in known if name is not None]
    if len(names) != len(usual) or len(names) != len(written):
        raise Refused(f"activations {written}")
    if any(node.attributes[n].value for n in ("activation_alpha", "activation_beta") if n in node.attributes):
        raise Refused("activations with numbers")
    return names


def by_steps(make: Maker, value: ir.Value | None) -> ir.Value | None:
    """(batch, steps or directions, n) -> (steps or directions, batch, n)"""
    return None if value is None else swapped(make, value)


def swapped(make: Maker, value: ir.Value) -> ir.Value:
    made = make("Transpose", value, perm=[1, 0, 2])
    if value.shape is not None:
        made.shape, made.type = ir.Shape([value.shape[1], value.shape[0], value.shape[2]]), value.type
    return made


def by_batch(make: Maker, made: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    """Y (T, D, B, H) -> (B, T, D, H), and the others as in by_steps, back."""
    perms = ([2, 0, 1, 3], [1, 0, 2], [1, 0, 2])
    return [None if v is None else make("Transpose", v, perm=p) for v, p in zip(made, perms, strict=False)]


def as_usual(make: Maker, usual: Sequence[str]) -> bool:
    """Whether the activations are the default ones."""
    both = 2 if make.text("direction", "forward") == "bidirectional" else 1
    return activations_of(make.node, list(usual) * both) == list(usual) * both
