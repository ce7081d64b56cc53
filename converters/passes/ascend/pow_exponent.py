"""Pow of base and exponent of two dtypes -> the exponent in the base's dtype.

Why: documents of Pow take both in one dtype.

    constant exponent   ->   the same numbers, where the base's dtype has them
    any other           ->   Cast, where the base's dtype has every number of the exponent's

Left alone: numbers that the base's dtype does not have, and negative powers of integers.
Bound: one rounding of the base's dtype: runtimes compute a float to the power of an integer in double.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .in_place import numbers
from .magnitudes import largest
from .making import Maker, Refused, node_pass

FLOATS = {ir.DataType.FLOAT16: 11, ir.DataType.FLOAT: 24, ir.DataType.DOUBLE: 53}  # bits of significand
INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


def _pow(make: Maker) -> ir.Value | None:
    base, exponent = make.input(0), make.input(1)
    if base.dtype is None or exponent.dtype is None or base.dtype == exponent.dtype:
        return None
    if base.dtype not in FLOATS and base.dtype not in INTEGERS:
        raise Refused("the base is of another type")
    constant = numbers(exponent)
    if constant is not None:
        return make("Pow", base, make.constant(_in_dtype(constant, base.dtype)))
    if base.dtype not in FLOATS or not _holds(base.dtype, exponent):
        raise Refused("the exponent may be a number that the base's dtype does not have")
    return make("Pow", base, make("Cast", exponent, to=int(base.dtype)))


def _in_dtype(exponents: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        cast = exponents.astype(dtype.numpy())
        if not np.array_equal(cast.astype(exponents.dtype), exponents, equal_nan=True):
            raise Refused("the base's dtype does not have the exponent")
    if dtype in INTEGERS and (cast < 0).any():
        raise Refused("a negative power of integers")
    return cast


def _holds(dtype: ir.DataType, exponent: ir.Value) -> bool:
    if exponent.dtype in FLOATS:
        return FLOATS[exponent.dtype] < FLOATS[dtype]
    return exponent.dtype is not None and exponent.dtype.is_integer() and largest(exponent) <= 2 ** FLOATS[dtype]


pow_exponent = node_pass({("", "Pow"): _pow}, "Rewrite those. Count: nodes rewritten. Source: ONNX Pow-15.")
