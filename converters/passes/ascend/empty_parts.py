"""Concat of parts of which some have no elements -> Concat of the others.

Why: documents of CANN say that only constants may have a dimension of 0.

Left alone: a part whose size along the axis is not known to be 0; a Concat of nothing but such parts.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from .making import Maker, dimension, node_pass


def _concat(make: Maker) -> ir.Value | None:
    axis, parts = make.int("axis", 0), [value for value in make.node.inputs if value is not None]
    kept = [value for value in parts if dimension(value, axis) != 0]
    if len(kept) == len(parts) or not kept:
        return None
    return make("Concat", *kept, axis=axis) if len(kept) > 1 else make("Identity", kept[0])


empty_parts = node_pass({("", "Concat"): _concat}, "Take them out. Count: nodes rewritten. Source: ONNX Concat-13.")
