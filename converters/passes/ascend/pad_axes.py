"""Pad with axes -> Pad with pads for every axis.

    pads [b0 b1 e0 e1], axes [a0 a1]   ->   pads of all axes, 0 where axes does not name one

Why: the input came with opset 18, and CANN's parser does not read it.

Left alone: axes that are computed, an input whose rank is not known.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .in_place import integers
from .making import Maker, Refused, node_pass, rank_of


def _pad(make: Maker) -> ir.Value | None:
    given = make.optional(3)
    if given is None:
        return None
    axes, x, pads = integers(given), make.input(0), make.input(1)
    if axes is None:
        raise Refused("the axes are computed")
    rank = rank_of(x)
    places = [len(axes) * 2] * (2 * rank)  # behind the last one stands a 0
    for place, axis in enumerate(axes):
        places[axis % rank] = place
        places[axis % rank + rank] = place + len(axes)
    known = integers(pads)
    if known is not None:
        whole = make.constant(np.asarray([(*known, 0)[place] for place in places], np.int64))
    else:
        whole = make("Gather", make("Concat", pads, make.ints(0), axis=0), make.ints(*places), axis=0)
    return make("Pad", x, whole, make.optional(2), mode=make.text("mode", "constant"))


pad_axes = node_pass({("", "Pad"): _pad}, "Rewrite every one. Count: nodes rewritten. Source: ONNX Pad-18.", 18)
