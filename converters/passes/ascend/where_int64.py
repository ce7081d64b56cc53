"""Where of int64 and bool in arithmetic.

    int64   Where(c, a, b)   ->   b + (a - b) * Cast(c)         what wraps around wraps back
    bool    Where(c, a, b)   ->   (c and a) or (not c and b)

Why: documents of Where name float16, float32, int32, int8 and uint8 alone; Add, Mul and the logical operators are documented for these.

Left alone: all other types.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from .making import Maker, node_pass


def _where(make: Maker) -> ir.Value | None:
    condition, a, b = make.input(0), make.input(1), make.input(2)
    kind = a.dtype or b.dtype
    if kind == ir.DataType.BOOL:
        return make("Or", make("And", condition, a), make("And", make("Not", condition), b))
    if kind == ir.DataType.INT64:
        return make("Add", b, make("Mul", make("Sub", a, b), make("Cast", condition, to=int(kind))))
    return None


where_int64 = node_pass({("", "Where"): _where}, "Rewrite those. Count: nodes rewritten. Source: ONNX Where-16.")
