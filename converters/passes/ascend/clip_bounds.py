"""Clip without bounds -> Clip between the least and the greatest finite number of its type, which is what it means.

Why: from opset 11 on CANN's parser refuses a Clip that has neither min nor max.

Left alone: an input whose type is not known; below opset 11, where the bounds are attributes.
Bound: none needed, the bits are the same, of infinities too.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..rewriting import Names
from .in_place import constant_for, in_place, set_input


def _write_bounds(node: ir.Node, names: Names, _opset: int) -> bool:
    x = node.inputs[0]
    if any(bound is not None for bound in node.inputs[1:]) or x is None or x.dtype is None:
        return False
    kind = x.dtype.numpy()
    if kind.kind in "iu":
        bounds = np.asarray([np.iinfo(kind).min, np.iinfo(kind).max], kind)
    elif x.dtype.is_floating_point():
        bounds = np.asarray([ml_dtypes.finfo(kind).min, ml_dtypes.finfo(kind).max], kind)
    else:
        return False
    set_input(node, 1, constant_for(node, names, "min", bounds[:1].reshape(())))
    set_input(node, 2, constant_for(node, names, "max", bounds[1:].reshape(())))
    return True


clip_bounds = in_place({"Clip": _write_bounds}, "Give every Clip a bound. Count: nodes. Source: ONNX Clip-13.", lowest_opset=11)
