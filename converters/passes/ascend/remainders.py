"""The remainder of a division that truncates, of integers, made of Mod without fmod, whose result has the sign of the divisor."""

from __future__ import annotations

import onnx_ir as ir

from .in_place import numbers
from .making import Maker, Refused
from .nonnegative import is_nonnegative

SIGNED = (ir.DataType.INT32, ir.DataType.INT64)
UNSIGNED = (ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64)


def truncated_remainder(make: Maker, a: ir.Value, b: ir.Value, kind: ir.DataType) -> ir.Value:
    """a - b * trunc(a / b), exact for every a and b but b = 0.

    m = Mod(a, b) has the sign of b; where it is not 0 and a has the other sign, m - b has the sign of a. No Where: the documents name no
    64-bit integers among its types.

    raises: Refused for other types than SIGNED and UNSIGNED
    """
    if kind not in (*SIGNED, *UNSIGNED):
        raise Refused(f"Mod of {kind}")
    m = make("Mod", a, b)
    divisor = numbers(b)
    positive = divisor is not None and bool((divisor > 0).all())
    if kind in UNSIGNED or (is_nonnegative(a) and (positive or is_nonnegative(b))):
        return m
    zero = make.scalar(0, kind)
    below = make("Less", a, zero)
    other_sign = below if positive else make("Xor", below, make("Less", b, zero))
    wrong = make("And", make("Not", make("Equal", m, zero)), other_sign)
    return make("Sub", m, make("Mul", make("Cast", wrong, to=int(kind)), b))
