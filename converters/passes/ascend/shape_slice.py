"""Shape(start, end) -> Gather(Shape, [start .. end-1]), or the numbers themselves where they are fixed.

Why: CANN's parser reads neither attribute and gives the whole shape, in silence.

Left alone: an input whose rank is not known. A Gather and no Slice, because the documents want data of a Slice to have two axes.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .making import Maker, node_pass, rank_of


def _shape(make: Maker) -> ir.Value | None:
    if not {"start", "end"} & set(make.node.attributes):
        return None
    x = make.input(0)
    rank = rank_of(x)
    start, stop, _ = slice(make.int("start", 0), make.int("end", rank)).indices(rank)
    assert x.shape is not None
    wanted = [x.shape[axis] for axis in range(start, stop)]
    if all(isinstance(size, int) for size in wanted):
        return make.constant(np.asarray(wanted, np.int64))
    whole = make("Shape", x)
    return whole if len(wanted) == rank else make("Gather", whole, make.ints(*range(start, stop)), axis=0)


shape_slice = node_pass({("", "Shape"): _shape}, "Rewrite every one. Count: nodes rewritten. Source: ONNX Shape-15.")
