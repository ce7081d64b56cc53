"""Operators of libopapi that work element by element: name -> function of the inputs, half floats already widened.

An operator that changes its first input in place is the one of the same name without Inplace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

Tensor = torch.Tensor


def _gelu(x: Tensor, tanh: int = 0) -> Tensor:
    return functional.gelu(x, approximate="tanh" if tanh else "none")


def _divided(x: Tensor, y: Any, mode: int) -> Tensor:
    """mode: 0 as it is, 1 towards zero, 2 down"""
    return torch.div(x, y, rounding_mode=(None, "trunc", "floor")[mode])


def _clamped(x: Tensor, low: Any, high: Any) -> Tensor:
    return torch.clamp(x, low, high)


_ONE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Exp": torch.exp,
    "Exp2": torch.exp2,
    "Expm1": torch.expm1,
    "Log": torch.log,
    "Log2": torch.log2,
    "Log10": torch.log10,
    "Log1p": torch.log1p,
    "Sqrt": torch.sqrt,
    "Rsqrt": torch.rsqrt,
    "Reciprocal": torch.reciprocal,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Tanh": torch.tanh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "Erf": torch.erf,
    "Erfc": torch.erfc,
    "Erfinv": torch.erfinv,
    "Sign": torch.sign,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Trunc": torch.trunc,
    "Frac": torch.frac,
    "Relu": torch.relu,
    "Silu": functional.silu,
    "Sigmoid": torch.sigmoid,
    "Hardswish": functional.hardswish,
    "Hardsigmoid": functional.hardsigmoid,
    "Mish": functional.mish,
    "Gelu": _gelu,
    "LogicalNot": torch.logical_not,
    "BitwiseNot": torch.bitwise_not,
    "IsFinite": torch.isfinite,
}
_COMPARISONS: Mapping[str, Callable[[Tensor, Any], Tensor]] = {
    "Eq": torch.eq,
    "Ne": torch.ne,
    "Lt": torch.lt,
    "Le": torch.le,
    "Gt": torch.gt,
    "Ge": torch.ge,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
# of two tensors, or of one and a number
_TWO: Mapping[str, Callable[..., Tensor]] = {
    "Add": lambda x, y, alpha: x + y * alpha,
    "Sub": lambda x, y, alpha: x - y * alpha,
    "Mul": lambda x, y: x * y,
    "Div": lambda x, y: x / y,
    "DivMod": _divided,
    "FloorDivide": torch.floor_divide,
}

OPERATORS: Mapping[str, Callable[..., Any]] = {
    **_ONE,
    **{f"{name}{of}": f for name, f in _COMPARISONS.items() for of in ("Tensor", "Scalar")},
    **_TWO,
    **{f"{name}s": function for name, function in _TWO.items()},
    "Rsubs": lambda x, y, alpha: y - x * alpha,
    "GeluV2": _gelu,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
    "PowTensorScalar": torch.pow,
    "PowTensorTensor": torch.pow,
    "PowScalarTensor": torch.pow,
    "LogicalAnd": torch.logical_and,
    "LogicalOr": torch.logical_or,
    "LogicalXor": torch.logical_xor,
    "Atan2": torch.atan2,
    "RemainderTensorTensor": torch.remainder,
    "RemainderTensorScalar": torch.remainder,
    "Clamp": _clamped,
    "ClampMin": torch.clamp_min,
    "ClampMax": torch.clamp_max,
    "ClampTensor": _clamped,
    "ClampMinTensor": torch.clamp_min,
    "ClampMaxTensor": torch.clamp_max,
    "Hardtanh": _clamped,
    "LeakyRelu": lambda x, slope: functional.leaky_relu(x, slope),
    "Elu": lambda x, alpha, scale, at: torch.ops.aten.elu(x, alpha, scale, at),
    "Softplus": lambda x, beta, threshold: functional.softplus(x, beta, threshold),
    "Prelu": lambda x, slope: torch.where(x > 0, x, x * slope),
    "Addcmul": lambda x, a, b, value: x + value * a * b,
    "Addcdiv": lambda x, a, b, value: x + value * a / b,
    "Lerp": torch.lerp,
    "Lerps": torch.lerp,
    "NanToNum": lambda x, nan, high, low: torch.nan_to_num(x, nan, high, low),
    "SWhere": torch.where,
    "Cast": lambda x, dtype: x,  # the output has the dtype
}
