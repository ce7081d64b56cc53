"""GatherND(batch_dims=b) -> GatherND over indices that name their batch.

    indices (B.., .., k)   ->   Concat([numbers of the batch, indices], -1)   (B.., .., b + k)

Why: CANN's parser refuses batch_dims other than 0.

Left alone: indices with a dimension but the last that is not fixed, and of many elements, as the numbers of the batch are a constant.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .making import Maker, Refused, fixed, node_pass, rank_of

MOST = 1 << 20  # numbers of the constant


def _gather(make: Maker) -> ir.Value | None:
    batch = make.int("batch_dims", 0)
    if batch == 0:
        return None
    data, indices = make.input(0), make.input(1)
    outer = [fixed(indices, axis) for axis in range(rank_of(indices) - 1)]
    if math.prod(outer) * batch > MOST:
        raise Refused("the numbers of the batch are too many for a constant")
    numbers = np.moveaxis(np.indices(outer, np.int64)[:batch], 0, -1)
    return make("GatherND", data, make("Concat", make.constant(np.ascontiguousarray(numbers)), indices, axis=-1))


gather_nd_batch = node_pass({("", "GatherND"): _gather}, "Rewrite those. Count: nodes rewritten. Source: ONNX GatherND-13.", 12)
