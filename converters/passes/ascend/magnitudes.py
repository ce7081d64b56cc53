"""How large the numbers of an integer value can be, going back over the nodes that made it."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ..rewriting import made_by
from .in_place import dimensions, numbers
from .nonnegative import DEPTH, PASSED_ON

SIZE = 2.0**40  # no dimension of a tensor, no place in it and no number of its elements is larger: it would not fit in memory
SIZES = ("Shape", "Size", "NonZero", "ArgMax", "ArgMin")
LARGEST_OF = ("Concat", "Max", "Min", "Clip", "Mod")


def largest(value: ir.Value | None, depth: int = DEPTH) -> float:
    """No number's absolute value is above it; inf where nothing is known."""
    if value is None:
        return 0.0
    array = numbers(value)
    if array is not None:
        return float(np.abs(array.astype(np.float64)).max(initial=0))
    return min(_of_type(value), _as_made(value, depth) if depth else math.inf)


def _of_type(value: ir.Value) -> float:
    if value.dtype is None or value.dtype == ir.DataType.STRING:
        return math.inf
    kind = value.dtype.numpy()
    return float(np.iinfo(kind).max) + 1 if kind.kind in "iu" else 1.0 if kind.kind == "b" else math.inf


def _as_made(value: ir.Value, depth: int) -> float:
    node = value.producer()
    if node is None or node.domain != "":
        return math.inf
    if node.op_type == "Sign":
        return 1.0
    if node.op_type in SIZES or (node.op_type == "TopK" and value is node.outputs[1]):
        return SIZE
    if node.op_type in (*PASSED_ON, "Abs", "Neg"):
        return largest(node.inputs[0], depth - 1)
    if node.op_type == "Range":
        return max(largest(v, depth - 1) for v in node.inputs[:2]) + largest(node.inputs[2], depth - 1)
    parts = [largest(v, depth - 1) for v in node.inputs]
    if node.op_type in LARGEST_OF:
        return max(parts)
    if node.op_type == "Where":
        return max(parts[1:])
    if node.op_type in ("Add", "Sub"):
        return sum(parts)
    if node.op_type == "Mul":
        return math.prod(parts)
    if node.op_type == "Div" and _divides_by_integers(node):
        return parts[0]
    if node.op_type == "Floor":
        return parts[0] + 1
    if node.op_type in ("ReduceProd", "ReduceSum"):
        return _reduced(node, parts[0])
    return math.inf


def _divides_by_integers(node: ir.Node) -> bool:
    """Integers are 1 at least, as nothing can be divided by 0; floats may be less, but for integers that were cast."""
    divisor = node.inputs[1]
    array, cast = numbers(divisor), made_by(divisor, "Cast")
    if array is not None:
        return bool((np.abs(array) >= 1).all())
    source = cast.inputs[0] if cast is not None else divisor
    return source is not None and source.dtype is not None and source.dtype.is_integer()


def _reduced(node: ir.Node, most: float) -> float:
    sizes = dimensions(node.inputs[0])
    if sizes is None:
        return math.inf
    count = math.prod(sizes)
    return most * count if node.op_type == "ReduceSum" else min(max(most, 1.0) ** min(count, 64), math.inf)
