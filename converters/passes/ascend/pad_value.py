"""Pad(x, pads, c) with a constant that is not 0 -> Where(inside, Pad(x, pads), c).

    inside   true where the result comes from x: a constant where the shape of x is fixed along the padded axes, else Pad of ones as large as x

Why: documents of CANN know 0 alone as the constant of a Pad.

Left alone: a type that Where is not documented for (float16, float32, int32, int8, uint8); constant pads and an input of unknown rank.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .in_place import integers, numbers
from .making import Maker, Refused, dimension, node_pass, rank_of

TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT32, ir.DataType.INT8, ir.DataType.UINT8)


def _pad(make: Maker) -> ir.Value | None:
    fill = make.optional(2)
    if make.text("mode", "constant") != "constant" or fill is None:
        return None
    known = numbers(fill)
    if known is not None and not known.any():
        return None
    if make.optional(3) is not None:
        raise Refused("axes are given")  # pad_axes comes before
    x, pads = make.input(0), make.input(1)
    if x.dtype not in TYPES:
        raise Refused(f"Where of {x.dtype}")
    padded = make("Pad", x, pads, mode="constant")
    value = make.constant(known.reshape(())) if known is not None else make("Reshape", fill, make.ints())
    return make("Where", _inside(make, x, pads), padded, value)


def _inside(make: Maker, x: ir.Value, pads: ir.Value) -> ir.Value:
    """Booleans that broadcast to the result."""
    around = integers(pads)
    if around is not None:
        rank = rank_of(x)
        pairs = list(zip(around[:rank], around[rank:], strict=True))
        sizes = [dimension(x, axis) if pairs[axis] != (0, 0) else 1 for axis in range(rank)]
        if None not in sizes:
            return make.constant(_padded_ones([size or 0 for size in sizes], pairs))
    one = ir.tensor(np.ones(1, np.float32))
    ones = make("ConstantOfShape", make("Shape", x), value=one)
    return make("Cast", make("Pad", ones, pads, mode="constant"), to=int(ir.DataType.BOOL))


def _padded_ones(sizes: list[int], pairs: list[tuple[int, int]]) -> np.ndarray:
    """Negative padding takes away."""
    whole = np.ones(sizes, bool)
    kept = tuple(slice(max(-begin, 0), size - max(-end, 0)) for size, (begin, end) in zip(sizes, pairs, strict=True))
    return np.pad(whole[kept], [(max(begin, 0), max(end, 0)) for begin, end in pairs])


pad_value = node_pass({("", "Pad"): _pad}, "Rewrite those with a number. Count: nodes rewritten. Source: ONNX Pad-13.")
