"""RotaryEmbedding -> Slice, Mul, Sub, Add, Concat.

    halves a, b of every head   ->   a * cos - b * sin,  a * sin + b * cos          (interleaved: a, b are even and odd elements)

Why: an operator of opset 23; CANN's parser has nothing of the standard above 18, and its NPURotaryMul is of another domain.

Interleaved pairs are split by a reshape to (.., D / 2, 2): CANN's published limit of Slice is a step of 1 on the last axis.

Refuses (leaves the node) when the rank of x, the number of heads or the size of one is not known.
Bound: the operator's definition; a runtime's own kernel may join a product and a sum, by a unit in the last place of the products.
"""

from __future__ import annotations

import onnx_ir as ir

from .making import Maker, Refused, fixed, float_type, node_pass, rank_of


def _rotary_embedding(make: Maker) -> ir.Value:
    return rotated(make, make.input(0), make.input(1), make.input(2), make.optional(3), make.int("num_heads", 0))


def rotated(
    make: Maker, x: ir.Value, cos: ir.Value, sin: ir.Value, positions: ir.Value | None, heads: int, size: int | None = None
) -> ir.Value:
    """x (B, H, S, D) or (B, S, H*D); cos and sin (B, S, R/2), or (positions, R/2) and looked up; R of the D numbers turn.

    size: D, where the number of heads is not known
    """
    float_type(x)
    rank = rank_of(x)
    if rank not in (3, 4) or (rank == 3 and heads < 1 and size is None):
        raise Refused("the number of heads is not given")
    if size is None:
        size = fixed(x, -1) if rank == 4 else fixed(x, -1) // heads
    heads = heads or fixed(x, -1) // size
    turned = make.int("rotary_embedding_dim", 0) or size
    split = x if rank == 4 else make.reshape(x, 0, 0, heads, size)  # (B, S, H, D)
    axis = 1 if rank == 4 else 2  # that of the heads: cos and sin are the same for all
    waves = []
    for cache in (cos, sin):
        looked_up = cache if positions is None else make("Gather", cache, positions, axis=0)
        waves.append(make.unsqueeze(looked_up, axis))  # (B, S, R/2) -> (B, 1, S, R/2) or (B, S, 1, R/2)
    part = split if turned == size else make.part(split, 0, turned, 3)
    interleaved = bool(make.int("interleaved", 0))
    result = _interleaved(make, part, waves, turned) if interleaved else _halves(make, part, waves, turned)
    whole = result if turned == size else make("Concat", result, make.part(split, turned, size, 3), axis=-1)
    return whole if rank == 4 else make.reshape(whole, 0, 0, heads * size)


def _turned(make: Maker, a: ir.Value, b: ir.Value, cos: ir.Value, sin: ir.Value) -> tuple[ir.Value, ir.Value]:
    real = make("Sub", make("Mul", cos, a), make("Mul", sin, b))
    return real, make("Add", make("Mul", sin, a), make("Mul", cos, b))


def _halves(make: Maker, x: ir.Value, waves: list[ir.Value], size: int) -> ir.Value:
    a, b = make.part(x, 0, size // 2, 3), make.part(x, size // 2, size, 3)
    return make("Concat", *_turned(make, a, b, *waves), axis=-1)


def _interleaved(make: Maker, x: ir.Value, waves: list[ir.Value], size: int) -> ir.Value:
    pairs = make.reshape(x, 0, 0, 0, size // 2, 2)
    a, b = make.part(pairs, 0, 1, 4), make.part(pairs, 1, 2, 4)
    cos, sin = (make.unsqueeze(wave, 4) for wave in waves)
    return make.reshape(make("Concat", *_turned(make, a, b, cos, sin), axis=-1), 0, 0, 0, size)


rotary_embedding = node_pass(
    {("", "RotaryEmbedding"): _rotary_embedding},
    "Rewrite every one. Count: nodes rewritten. Source: ONNX RotaryEmbedding-23.",
)
