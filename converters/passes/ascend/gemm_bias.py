"""Gemm(A, B, alpha) without C -> Mul(Gemm(A, B), alpha); beta, which means nothing there, is taken off.

Why: CANN's parser applies alpha only where there is a C, and documents before 9.1 say that it never does.

Left alone: a Gemm with C, and one of integers, whose alpha is a float.
Bound: alpha is applied to the sum and not to its parts, which rounds otherwise by a few units in the last place of the largest part; none
where alpha is a power of two.
"""

from __future__ import annotations

import onnx_ir as ir

from .making import Maker, float_type, node_pass


def _gemm(make: Maker) -> ir.Value | None:
    alpha = make.float("alpha", 1.0)
    if make.optional(2) is not None or (alpha == 1 and "beta" not in make.node.attributes):
        return None
    a, b = make.input(0), make.input(1)
    kind = float_type(a)
    product = make("Gemm", a, b, transA=make.int("transA", 0), transB=make.int("transB", 0))
    return product if alpha == 1 else make("Mul", product, make.scalar(alpha, kind))


gemm_bias = node_pass({("", "Gemm"): _gemm}, "Rewrite those without C. Count: nodes rewritten. Source: ONNX Gemm-13.")
