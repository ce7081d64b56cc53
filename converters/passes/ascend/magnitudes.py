"""How large the numbers of an integer value can be, going back over the nodes that made it."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..rewriting import made_by
from .in_place import dimensions, numbers

DEPTH = 32  # nodes that are followed back; a chain of shape arithmetic is shorter
SIGNED = (ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64)
UNSIGNED = (ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64, ir.DataType.BOOL)
FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)
PASSED_ON = (  # the numbers of the first input, and no others; not Cast, which may wrap them around
    *("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Tile", "Slice", "Split"),
    *("Gather", "GatherND", "GatherElements", "ReduceMax", "ReduceMin"),
)
SIZE = 2.0**40  # no number of elements of a tensor is larger: it would not fit in memory
AXIS = 2.0**31 - 1  # taken for granted: no axis is longer, as graphs that keep their sizes in 32 bits take it too
PLACES = ("Shape", "NonZero", "ArgMax", "ArgMin")
LARGEST_OF = ("Concat", "Max", "Min", "Clip", "Mod")


def largest(value: ir.Value | None, depth: int = DEPTH) -> float:
    """No number's absolute value is above it; inf where nothing is known."""
    if value is None:
        return 0.0
    array = numbers(value)
    if array is not None:
        most = float(np.abs(array.astype(np.float64)).max(initial=0))
        return math.inf if math.isnan(most) else most
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
    if node.op_type in PLACES or (node.op_type == "TopK" and value is node.outputs[1]):
        return AXIS
    if node.op_type == "Size":
        return SIZE
    if node.op_type == "Cast":
        return _cast(node, largest(node.inputs[0], depth - 1))
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
        wraps = node.op_type == "Sub" and value.dtype in UNSIGNED  # below 0
        return math.inf if wraps else sum(parts)
    if node.op_type == "Mul":
        return math.prod(parts)
    if node.op_type == "Div" and _divides_by_integers(node):
        return parts[0]
    if node.op_type == "Floor":
        return parts[0] + 1
    if node.op_type in ("ReduceProd", "ReduceSum"):
        return _reduced(node, parts[0])
    return math.inf


def _cast(node: ir.Node, most: float) -> float:
    """Of a Cast of numbers that are `most` large: what does not fit wraps around, and -1 has no place among unsigned numbers."""
    source, to = node.inputs[0], ir.DataType(node.attributes["to"].as_int())
    if to == ir.DataType.BOOL:
        return 1.0
    if to in FLOATS:
        return _as_float(most, to)
    from_zero = source is not None and source.dtype in UNSIGNED
    return most if (to in SIGNED or (to in UNSIGNED and from_zero)) and most <= np.iinfo(to.numpy()).max else math.inf


def _as_float(most: float, to: ir.DataType) -> float:
    """A rounding may go up."""
    facts = ml_dtypes.finfo(to.numpy())
    whole = most.is_integer() and most <= 2.0 ** (facts.nmant + 1)
    up = most if whole else most * (1 + float(facts.eps)) + float(facts.smallest_subnormal)
    return up if up <= float(facts.max) else math.inf


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
