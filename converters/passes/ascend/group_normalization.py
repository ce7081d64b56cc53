"""GroupNormalization -> Reshape, InstanceNormalization, Reshape, Mul, Add.

    x (N, C, ...)  ->  (N, G, -1), each group normalised by itself  ->  (N, C, ...) * scale + bias

Why: CANN's parser has it at no opset, also not at 18, where ONNX has a form of it. InstanceNormalization is parsed at 8 to 18.

At 18 scale and bias are per group and go into the InstanceNormalization; from 21 on they are per channel.

Refuses (leaves the node) when types or the rank of x are not known, or it is computed in another type than float32.
Bound: the operator's definition; a runtime sums in another order.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .making import Maker, Refused, dimension, float_type, node_pass, rank_of

PER_CHANNEL = 21  # the opset from which scale and bias have a number per channel


def _group_normalization(make: Maker) -> ir.Value:
    x, scale, bias = (make.input(i) for i in range(3))
    kind, rank, groups = float_type(x), rank_of(x), make.int("num_groups", 0)
    if make.int("stash_type", 1) != ir.DataType.FLOAT or kind == ir.DataType.DOUBLE or groups < 1 or rank < 3:
        raise Refused("not of float32")
    per_channel = make.opset >= PER_CHANNEL
    wide = make.cast(make.reshape(x, 0, groups, -1), ir.DataType.FLOAT, kind)
    ones, zeros = (make.constant(np.full(groups, number, np.float32)) for number in (1, 0))
    affine = [ones, zeros] if per_channel else [make.cast(v, ir.DataType.FLOAT, kind) for v in (scale, bias)]
    normal = make("InstanceNormalization", wide, *affine, epsilon=make.float("epsilon", 1e-5))
    shape = [dimension(x, axis) for axis in range(rank)]
    known = [d for d in shape if d is not None]
    back = (
        make.ints(*(-1 if d is None else d for d in shape)) if len(known) >= rank - 1 and 0 not in known else make("Shape", x)
    )
    result = make.cast(make("Reshape", normal, back), kind, ir.DataType.FLOAT)
    if not per_channel:
        return result
    wide_scale, wide_bias = (make.unsqueeze(v, *range(1, rank - 1)) for v in (scale, bias))  # (C,) -> (C, 1, ..)
    return make("Add", make("Mul", result, wide_scale), wide_bias)


group_normalization = node_pass(
    {("", "GroupNormalization"): _group_normalization},
    "Rewrite every one. Count: nodes rewritten. Source: ONNX GroupNormalization-18 and -21.",
)
