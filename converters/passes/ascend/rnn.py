"""RNN over few fixed steps -> MatMul, Add and the activation, step by step.

    h = f(x[t] @ W^T + h @ R^T + (Wb + Rb))      for every t, and from the end for the reverse direction

Why: CANN's parser has LSTM and GRU, and RNN at no opset.

Refuses (leaves the node) when the length is not fixed or above MOST_STEPS, lengths per row are given, a number is clipped, the layout is by
batch, an activation is not Tanh, Relu or Sigmoid, or a type or size is not known.
Bound: the operator's definition; a runtime sums in another order.
"""

from __future__ import annotations

import onnx_ir as ir

from .making import Maker, Refused, fixed, float_type, node_pass

MOST_STEPS = 64
ACTIVATIONS = ("Tanh", "Relu", "Sigmoid")


def _rnn(make: Maker) -> list[ir.Value | None]:
    """x (T, B, I), W (directions, H, I), R (directions, H, H), B (directions, 2H), initial_h (directions, B, H)."""
    x, directions = make.input(0), 2 if make.text("direction", "forward") == "bidirectional" else 1
    float_type(x)
    steps = fixed(x, 0)
    if steps > MOST_STEPS or make.optional(4) is not None or make.int("layout", 0) or "clip" in make.node.attributes:
        raise Refused("too long, of several lengths, by batch, or clipped")
    names = list(make.node.attributes["activations"].as_strings()) if "activations" in make.node.attributes else []
    names = names or ["Tanh"] * directions
    if not set(names) <= set(ACTIVATIONS) or len(names) != directions:
        raise Refused(f"activations {names}")
    inputs = [make.part(x, t, t + 1, 0) for t in range(steps)]  # (1, B, I)
    backwards = [make.text("direction", "forward") == "reverse"] if directions == 1 else [False, True]
    runs = [_direction(make, inputs, i, names[i], back) for i, back in enumerate(backwards)]
    last = [run[0 if back else -1] for run, back in zip(runs, backwards, strict=True)]
    steps_made = [make.unsqueeze(_joined(make, list(at), 0), 0) for at in zip(*runs, strict=True)]  # (1, directions, B, H)
    return [_joined(make, steps_made, 0), _joined(make, last, 0)]


def _direction(make: Maker, inputs: list[ir.Value], which: int, activation: str, backwards: bool) -> list[ir.Value]:
    """The state (1, B, H) after every step, in the order of the inputs."""
    weight, recurrent = (_matrix(make, make.input(place), which) for place in (1, 2))  # (1, I, H), (1, H, H)
    size = fixed(make.input(2), 2)
    state, bias = _initial(make, which), _bias(make, which, size)
    made: list[ir.Value] = []
    for value in reversed(inputs) if backwards else inputs:
        total = make("MatMul", value, weight)
        if state is not None:
            total = make("Add", total, make("MatMul", state, recurrent))
        if bias is not None:
            total = make("Add", total, bias)
        state = make(activation, total)
        made.append(state)
    return made[::-1] if backwards else made


def _matrix(make: Maker, value: ir.Value, which: int) -> ir.Value:
    return make("Transpose", make.part(value, which, which + 1, 0), perm=[0, 2, 1])


def _initial(make: Maker, which: int) -> ir.Value | None:
    """(1, B, H); None for zeros, which add nothing."""
    given = make.optional(5)
    return None if given is None else make.part(given, which, which + 1, 0)


def _bias(make: Maker, which: int, size: int) -> ir.Value | None:
    """(1, H): both biases, added once."""
    given = make.optional(3)
    if given is None:
        return None
    own = make.part(given, which, which + 1, 0)
    return make("Add", make.part(own, 0, size, 1), make.part(own, size, 2 * size, 1))


def _joined(make: Maker, values: list[ir.Value], axis: int) -> ir.Value:
    return make("Concat", *values, axis=axis)


rnn = node_pass({("", "RNN"): _rnn}, "Rewrite every one. Count: nodes rewritten. Source: ONNX RNN-14.")
