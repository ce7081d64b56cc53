"""Slice of a vector, or with a step over the last axis -> a form without either.

    one fixed axis that is sliced by constants   ->   Gather(x, [start, start + step, ..])
    otherwise                                    ->   Squeeze(Slice(Unsqueeze(x, -1)), -1)

Why: the documents of Slice exclude data of one axis, and want a step of 1 on the last axis.

Left alone: steps that are computed, on data of more axes than one; axes that are computed; an input whose rank is not known.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from .in_place import integers
from .making import Maker, Refused, dimension, node_pass, rank_of


def _slice(make: Maker) -> ir.Value | None:
    x = make.input(0)
    rank = rank_of(x)
    starts, ends = integers(make.input(1)), integers(make.input(2))
    axes = _listed(make, 3, rank, starts)
    steps = integers(make.optional(4)) if make.optional(4) is not None else [1] * len(axes)
    last = [steps[place] if steps is not None else None for place, axis in enumerate(axes) if axis == rank - 1]
    if rank != 1 and (None in last or all(step == 1 for step in last)):
        return None
    if len(axes) == 1 and starts is not None and ends is not None and steps is not None:
        size = dimension(x, axes[0])
        if size is not None:
            return make("Gather", x, make.ints(*places(starts[0], ends[0], steps[0], size)), axis=axes[0])
    deep = make("Unsqueeze", x, make.ints(rank))
    deep.shape = ir.Shape([*x.shape, 1]) if x.shape is not None else None
    inputs = [make.input(1), make.input(2), make.ints(*axes), *([] if make.optional(4) is None else [make.input(4)])]
    return make("Squeeze", make("Slice", deep, *inputs), make.ints(rank))


def _listed(make: Maker, place: int, rank: int, starts: list[int] | None) -> list[int]:
    """The sliced axes, counted from the front. raises: Refused where they are computed"""
    given = make.optional(place)
    if given is None:
        count = len(starts) if starts is not None else dimension(make.input(1), 0)
        if count is None:
            raise Refused("how many axes are sliced is not known")
        return list(range(count))
    axes = integers(given)
    if axes is None:
        raise Refused("the axes are computed")
    return [axis % rank for axis in axes]


def places(start: int, end: int, step: int, size: int) -> list[int]:
    """What a Slice takes: Python's slices mean the same but where a negative step starts or ends in front of the first place."""
    if step > 0:
        return list(range(size))[start:end:step]
    start = min(max(start + size if start < 0 else start, 0), size - 1)
    end = max(end + size if end < 0 else end, -1)
    return list(range(start, end, step))


slice_steps = node_pass({("", "Slice"): _slice}, "Rewrite them. Count: nodes rewritten. Source: ONNX Slice-13.")
