"""Whether an integer value is known to have no negative numbers, going back over the nodes that made it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from ..rewriting import made_by
from .in_place import numbers
from .magnitudes import DEPTH, FLOATS, PASSED_ON, SIGNED, UNSIGNED, largest

ALWAYS = ("Shape", "Size", "NonZero", "ArgMax", "ArgMin", "Relu")
# not negative when no input is, but for sums and products that wrap around
OF_ALL = ("Concat", "Min", "Add", "Mul", "Div")
OF_ANY = ("Max",)
Sizes = Sequence[int | None]


def is_nonnegative(value: ir.Value | None, depth: int = DEPTH, index: Sizes | None = None) -> bool:
    """True only where it is shown; a value that is fed is not.

    index: of a value that is one, how long the axes are that it counts along, None where that is not known: sums and products that wrap around are
           no index, nor is the least integer, which has no absolute value of its own type
    """
    if value is None or depth == 0:
        return False
    if value.dtype in UNSIGNED:
        return True
    array = numbers(value)
    if array is not None:
        return array.dtype.kind in "iufb" and bool((array >= 0).all())
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type in ALWAYS:
        return True
    if index is None and _may_wrap(node, value):
        return False
    if node.op_type == "Abs":
        return True
    if node.op_type == "TopK":
        return value is node.outputs[1]
    if node.op_type in PASSED_ON:
        return is_nonnegative(node.inputs[0], depth - 1, index)
    if node.op_type == "Cast":
        return is_nonnegative(node.inputs[0], depth - 1, index) and _fits(node)
    joined = _joined(node.op_type)
    if joined is not None:
        return joined(is_nonnegative(v, depth - 1, index) for v in node.inputs)
    if node.op_type == "Range":
        start, step = numbers(node.inputs[0]), numbers(node.inputs[2])
        return start is not None and step is not None and bool(start >= 0) and bool(step > 0)
    if node.op_type == "Where":
        return (index is not None and _is_wrapped(node, index)) or all(
            is_nonnegative(v, depth - 1, index) for v in node.inputs[1:]
        )
    if node.op_type == "Clip":
        return len(node.inputs) > 1 and node.inputs[1] is not None and is_nonnegative(node.inputs[1], depth - 1, index)
    if node.op_type == "Mod":
        divisor = numbers(node.inputs[1])
        return "fmod" not in node.attributes and divisor is not None and bool((divisor > 0).all())
    return False


def _may_wrap(node: ir.Node, value: ir.Value) -> bool:
    """Whether a result may be too large for its type, and come out negative."""
    if node.op_type not in ("Abs", "Add", "Mul") or value.dtype is None or value.dtype in FLOATS:
        return False
    parts = [largest(v) for v in node.inputs]
    most = sum(parts) if node.op_type == "Add" else math.prod(parts)
    return not most <= np.iinfo(value.dtype.numpy()).max


def _fits(cast: ir.Node) -> bool:
    """Whether no number is too large for the type and comes out negative: uint32 to int32."""
    to = ir.DataType(cast.attributes["to"].as_int())
    return to in FLOATS or (to in SIGNED and largest(cast.inputs[0]) <= np.iinfo(to.numpy()).max)


def _joined(op_type: str) -> Callable[..., bool] | None:
    return all if op_type in OF_ALL else any if op_type in OF_ANY else None


def _is_wrapped(node: ir.Node, sizes: Sizes) -> bool:
    """Where(i < 0, i + n, i), as negative_indices writes it: with axes of n at most, in range it is an index that counts from the front."""
    index = node.inputs[2]
    asked, added = made_by(node.inputs[0], "Less"), made_by(node.inputs[1], "Add")
    if asked is None or added is None or asked.inputs[0] is not index or added.inputs[0] is not index:
        return False
    bound, length = numbers(asked.inputs[1]), numbers(added.inputs[1])
    if bound is None or bound.any():
        return False
    if length is None:
        return _is_a_size(added.inputs[1])
    return all(size is not None and bool(np.broadcast_to(length, (len(sizes),))[i] >= size) for i, size in enumerate(sizes))


def _is_a_size(value: ir.Value | None) -> bool:
    cast = made_by(value, "Cast")
    gathered = None if cast is None else made_by(cast.inputs[0], "Gather")
    return gathered is not None and made_by(gathered.inputs[0], "Shape") is not None
