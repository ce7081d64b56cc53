"""The value of a node whose inputs are known, where every runtime comes to the same bits.

Only operators that move data, compute with integers or booleans, or are correctly rounded by IEEE 754 in any sane implementation. exp, tanh,
pow, 1/x, sums and products of floats are not: their last bit depends on the runtime, and folding them would change a result.
Evaluated by onnx's own reference implementation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

MOVES = frozenset(
    [
        "Compress",
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Where",
    ]
)
LOGIC = frozenset(["And", "Not", "Or", "Xor"])
COMPARE = frozenset(["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
INTEGER = frozenset(
    [
        "Abs",
        "Add",
        "Div",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Range",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "Sign",
        "Sub",
    ]
)
ROUNDED = frozenset(
    ["Abs", "Add", "Ceil", "Div", "Floor", "Mul", "Neg", "Round", "Sqrt", "Sub"]
)  # one IEEE operation each, correctly rounded
GROWING = frozenset(["ConstantOfShape", "Expand", "Pad", "Range", "Tile"])  # a few bytes may ask for gigabytes
INTEGERS = (np.dtype(np.int32), np.dtype(np.int64))
FLOATS = (
    np.dtype(np.float32),
    np.dtype(np.float64),
)  # of half numbers runtimes compute a chain in float32 and round at its end
HALF = np.dtype(np.float16)
LARGEST_WHOLE_DOUBLE = 2**53  # up to here a double holds every integer


def is_exact(node: ir.Node, inputs: Sequence[np.ndarray | None]) -> bool:
    """Whether the node's value is the same to the last bit in every runtime.

    inputs: as the node lists them; None for one left out
    """
    kind = node.op_type
    given = [a for a in inputs if a is not None]
    dtypes = {a.dtype for a in given}
    if any(a.dtype.kind in "OSU" for a in given):
        return False
    if kind == "Cast":
        return _is_exact_cast(node, given[0])
    if kind == "Slice" and len(inputs) > 4 and inputs[4] is not None and np.any(inputs[4] < 0):
        return False  # onnxruntime takes the largest integers as an end that goes with the direction, the standard does not
    if kind in MOVES or kind == "ConstantOfShape":
        return True
    if kind == "Pad":
        return _mode(node) == "constant"
    if kind in LOGIC:
        return True
    if kind in COMPARE:
        return dtypes <= {*INTEGERS, *FLOATS, HALF, np.dtype(np.bool_)}
    if dtypes <= set(INTEGERS) and kind in INTEGER:
        if kind in ("ReduceProd", "ReduceSum"):  # what is too large wraps around here and not there
            largest, limit = np.abs(given[0].astype(np.float64)), np.iinfo(given[0].dtype).max
            if kind == "ReduceProd":  # there in double
                return bool(np.prod(largest) < min(limit, LARGEST_WHOLE_DOUBLE))
            return bool(np.sum(largest) < limit)
        return kind not in ("Div", "Mod") or bool(np.all(given[1] != 0))
    return dtypes <= set(FLOATS) and kind in ROUNDED


def _mode(node: ir.Node) -> str:
    return node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"


def _is_exact_cast(node: ir.Node, array: np.ndarray) -> bool:
    """Between plain numbers, and to integers and half numbers only what fits: the rest is left to each runtime."""
    target = ir.DataType(node.attributes["to"].as_int())
    plain = {*INTEGERS, *FLOATS, HALF, np.dtype(np.bool_), np.dtype(np.uint8), np.dtype(np.int8)}
    if target == ir.DataType.STRING or target.bitwidth < 8 or target.numpy() not in plain or array.dtype not in plain:
        return False
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return False
    to = np.dtype(target.numpy())
    if to.kind in "iu" and array.size:
        range_ = np.iinfo(to)
        low, high = array.min(), array.max()  # as Python numbers: 2**63 - 1 is no float
        return int(low) >= range_.min and int(high) <= range_.max
    with np.errstate(over="ignore"):
        return to != HALF or bool(np.all(array.astype(HALF).astype(array.dtype) == array))


def evaluate(node: ir.Node, inputs: Sequence[np.ndarray | None], opset: int) -> list[np.ndarray] | None:
    """The node's outputs; None where the reference cannot (an index out of range, a shape that does not fit: the runtime will say so).

    opset: of the graph, which says what the node means
    """
    proto = ir.serde.serialize_node(node)
    feeds = {name: array for name, array in zip(proto.input, inputs, strict=True) if array is not None}
    body = onnx.helper.make_graph(
        [proto],
        "node",
        [onnx.ValueInfoProto(name=name) for name in feeds],
        [onnx.ValueInfoProto(name=name) for name in proto.output if name],
    )
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(body, opsets={"": opset}).run(None, feeds)
    except Exception:  # the reference raises whatever numpy does
        return None
    arrays = [np.asarray(r) for r in results] if isinstance(results, list) else []
    return arrays if len(arrays) == len(node.outputs) else None
