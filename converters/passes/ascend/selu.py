"""Selu(alpha, gamma) with numbers of its own -> Mul(Elu(x, alpha), gamma).

Why: CANN's parser refuses other numbers than the default ones.

Left alone: the default numbers, and an input whose type is not known.
Bound: the operator's definition; a runtime's own kernel may round in other places, by a few units in the last place.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .making import Maker, float_type, node_pass

ALPHA, GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def _selu(make: Maker) -> ir.Value | None:
    alpha, gamma = make.float("alpha", ALPHA), make.float("gamma", GAMMA)
    if np.float32(alpha) == np.float32(ALPHA) and np.float32(gamma) == np.float32(GAMMA):
        return None
    x = make.input(0)
    return make("Mul", make("Elu", x, alpha=alpha), make.scalar(gamma, float_type(x)))


selu = node_pass({("", "Selu"): _selu}, "Rewrite those. Count: nodes rewritten. Source: ONNX Selu-6.", 6)
