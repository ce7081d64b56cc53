"""Mod(fmod=1) -> a form without it.

    integers                    ->   m = Mod(a, b);  m - b where m is not 0 and a has the other sign, else m
    integers without sign       ->   Mod(a, b)
    floats, b constant 2^k >= 1 ->   a - trunc(a / b) * b

Why: CANN's parser ignores fmod with a warning, and its Mod has the sign of the divisor where fmod has that of the dividend.

Left alone: floats with another divisor, whose exact remainder needs a long division; integers of 8 and 16 bits with a sign.
Bound: none needed, the numbers are the same: division by a power of two and what follows are exact, but for quotients that a float cannot
hold, which truncate to 0. A remainder of 0 has no sign, where fmod gives it that of the dividend.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .in_place import numbers
from .making import Maker, Refused, float_type, node_pass
from .remainders import SIGNED, UNSIGNED, truncated_remainder


def _mod(make: Maker) -> ir.Value | None:
    a, b = make.input(0), make.input(1)
    if not make.int("fmod", 0):
        return None
    if a.dtype in (*SIGNED, *UNSIGNED):
        return truncated_remainder(make, a, b, a.dtype)
    kind = float_type(a)
    divisor = numbers(b)
    if divisor is None:
        raise Refused("the divisor is not known")
    size = np.abs(divisor.astype(np.float64))
    if not np.isfinite(size).all() or (size < 1).any() or (np.frexp(size)[0] != 0.5).any():
        raise Refused("the divisor is no power of two")
    by = make.constant(size.astype(kind.numpy()))
    quotient = make("Div", a, by)
    whole = make("Mul", make("Sign", quotient), make("Floor", make("Abs", quotient)))
    return make("Sub", a, make("Mul", whole, by))


mod_fmod = node_pass({("", "Mod"): _mod}, "Rewrite those with fmod. Count: nodes rewritten. Source: ONNX Mod-13.")
