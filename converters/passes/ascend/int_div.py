"""Div(a, b) of integers -> Cast(trunc(Div(Cast(a), Cast(b)))) in double, or in float32 where the numbers are known to be small.

Why: CANN's parser makes a RealDiv of every Div, and nothing open says how that rounds integers.

    trunc(q) = Floor(q) where nothing is negative, else Sign(q) * Floor(Abs(q))

Double is slow on Ascend (AI CPU), and integers that are divided are mostly a few sizes and places.

Left alone: 64-bit integers that are not known to be below 2^53: those that are fed, or cast from floats. Sizes, places and sums and products of
them are known.
Bound: none needed, the bits are the same. Where a / b is no integer it lies at least 1 / b away from the next, more than a rounding while a is
below 2^53 (2^24 in float32).
"""

from __future__ import annotations

import onnx_ir as ir

from .magnitudes import largest
from .making import Maker, Refused, node_pass
from .nonnegative import is_nonnegative

INTEGERS = (
    *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
    *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
)
WHOLE = ((2.0**24, ir.DataType.FLOAT), (2.0**53, ir.DataType.DOUBLE))  # integers below it are exact


def _div(make: Maker) -> ir.Value | None:
    a, b = make.input(0), make.input(1)
    if a.dtype not in INTEGERS:
        return None
    most = max(largest(a), largest(b))
    kind = next((kind for below, kind in WHOLE if most < below), None)
    if kind is None:
        raise Refused("the numbers may be too large for a double")
    quotient = make("Div", make("Cast", a, to=int(kind)), make("Cast", b, to=int(kind)))
    if is_nonnegative(a) and is_nonnegative(b):
        whole = make("Floor", quotient)
    else:
        whole = make("Mul", make("Sign", quotient), make("Floor", make("Abs", quotient)))
    return make("Cast", whole, to=int(a.dtype))


int_div = node_pass({("", "Div"): _div}, "Rewrite those of integers. Count: nodes rewritten. Source: ONNX Div-14.")
