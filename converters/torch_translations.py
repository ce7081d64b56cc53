"""Operators that torch.onnx has no ONNX for, in ONNX. Tried once torch.onnx alone has failed.

Source: torch 2.13.0, aten/src/ATen/native/Distance.cpp: cdist of more than 25 rows goes by a matrix product, which torch.onnx decomposes
alike; cdist of fewer rows, or in another norm than 2, is what follows here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """torch operator -> function that builds its ONNX, for `torch.onnx.export(custom_translation_table=...)`."""
    import torch
    from onnxscript import opset18

    op: Any = opset18  # its stubs type every attribute by the schema, which the tracer does not need

    def cdist(x1: Any, x2: Any, p: float, compute_mode: int | None = None) -> Any:
        """Distances of the rows of x1 (..., P, M) and x2 (..., R, M) in the p-norm, (..., P, R)."""
        axis = op.Constant(value_ints=[-1])
        apart = op.Abs(op.Sub(op.Unsqueeze(x1, op.Constant(value_ints=[-2])), op.Unsqueeze(x2, op.Constant(value_ints=[-3]))))
        if p == 2.0:
            return op.Sqrt(op.ReduceSum(op.Mul(apart, apart), axis, keepdims=0))
        if p == 1.0:
            return op.ReduceSum(apart, axis, keepdims=0)
        if math.isinf(p):
            return op.ReduceMax(apart, axis, keepdims=0)
        if p == 0.0:
            return op.ReduceSum(op.Sign(apart), axis, keepdims=0)
        total = op.ReduceSum(op.Pow(apart, op.CastLike(op.Constant(value_float=p), apart)), axis, keepdims=0)
        return op.Pow(total, op.CastLike(op.Constant(value_float=1.0 / p), apart))

    return {torch.ops.aten._cdist_forward.default: cdist}
