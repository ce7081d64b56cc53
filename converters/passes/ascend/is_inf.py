"""IsInf of one side -> And(IsInf(x), x > 0), or x < 0; of no side: And(IsInf(x), false).

Why: CANN's parser refuses an IsInf that does not detect both sides.

Left alone: an input whose type is not known.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .making import Maker, float_type, node_pass


def _is_inf(make: Maker) -> ir.Value | None:
    sides = make.int("detect_negative", 1), make.int("detect_positive", 1)
    if sides == (1, 1):
        return None
    x = make.input(0)
    zero = make.scalar(0, float_type(x))
    infinite = make("IsInf", x)
    if sides == (0, 0):
        return make("And", infinite, make.constant(np.asarray(False)))
    return make("And", infinite, make("Greater" if sides[1] else "Less", x, zero))


is_inf = node_pass({("", "IsInf"): _is_inf}, "Rewrite those of one side. Count: nodes rewritten. Source: ONNX IsInf-10.", 11)
