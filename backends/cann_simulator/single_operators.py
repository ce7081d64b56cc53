"""Single operators of the graph engine, as the CANN provider calls them through aclopCompileAndExecute where it compiles no graph.

Half floats are computed in float32 and rounded once; everything else in its own dtype. Attributes are the engine's: `pads` are top, bottom, left,
right, and `exclusive` leaves padding out of a mean. What attributes mean that only the provider writes (`group`) is a guess. Not modelled: formats,
accumulators of kernels, training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from porting.backends.cann_simulator.machine import Refused
from porting.backends.cann_simulator.om_types import NUMPY_TYPES

NOT_FOUND, BAD_PARAMETER, BAD_DTYPE = 100024, 100000, 100026
HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))

Attributes = Mapping[str, Any]
Arrays = Sequence[np.ndarray]
Operator = Callable[[Arrays, Attributes], "np.ndarray | list[np.ndarray]"]


def run(op_type: str, attributes: Attributes, inputs: Arrays) -> list[np.ndarray]:
    """
    op_type: of the graph engine; inputs: one that is left out is an empty array
    returns: the outputs that a client reads
    raises:  Refused for an operator that is not here, or inputs that do not fit it
    """
    operator = OPERATORS.get(op_type)
    if operator is None:
        raise Refused(NOT_FOUND, f"EZ9999: the simulator has no single operator {op_type[:60]!r}", True)
    wide = [array.astype(np.float32) if array.dtype in HALVES else array for array in inputs]
    try:
        with np.errstate(all="ignore"):
            made = operator(wide, attributes)
    except (ValueError, IndexError, TypeError, KeyError, OverflowError) as error:
        raise Refused(BAD_PARAMETER, f"EZ1001: {op_type}: {str(error)[:200]}") from error
    outputs = made if isinstance(made, list) else [made]
    half = next((a.dtype for a in inputs[:1] if a.dtype in HALVES), None)
    if half is not None and op_type != "Cast":
        with np.errstate(over="ignore"):
            outputs = [o.astype(half) if i == 0 and o.dtype == np.float32 else o for i, o in enumerate(outputs)]
    return [np.asarray(output, order="C") for output in outputs]


# --- element by element -------------------------------------------------------------------------------------------


def _of_one(function: Callable[[np.ndarray], np.ndarray]) -> Operator:
    return lambda inputs, attributes: np.asarray(function(inputs[0]), inputs[0].dtype)


def _of_two(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Operator:
    return lambda inputs, attributes: np.asarray(function(inputs[0], inputs[1]))


def _quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Integers are cut off towards zero; by zero gives 0 there, which is a guess."""
    if x.dtype.kind not in "iu":
        return x / y
    safe = np.where(y == 0, 1, y)
    whole = x // safe
    cut = whole + ((whole < 0) & (whole * safe != x))
    return np.where(y == 0, 0, cut).astype(x.dtype)


def _erf(x: np.ndarray) -> np.ndarray:
    return np.asarray([math.erf(v) for v in x.reshape(-1).tolist()], x.dtype).reshape(x.shape)


def _exp(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """base ** (scale x + shift), where base -1 is e."""
    x = inputs[0] * np.asarray(attributes.get("scale", 1.0), inputs[0].dtype) + np.asarray(
        attributes.get("shift", 0.0), inputs[0].dtype
    )
    base = float(attributes.get("base", -1.0))
    return np.exp(x) if base <= 0 else np.power(np.asarray(base, x.dtype), x)


def _log(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """log of scale x + shift to a base, where base -1 is e."""
    x = inputs[0] * np.asarray(attributes.get("scale", 1.0), inputs[0].dtype) + np.asarray(
        attributes.get("shift", 0.0), inputs[0].dtype
    )
    base = float(attributes.get("base", -1.0))
    return np.log(x) if base <= 0 else np.log(x) / np.asarray(math.log(base), x.dtype)


def _cast(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    dtype = NUMPY_TYPES.get(int(attributes["dst_type"]))
    if dtype is None:
        raise Refused(BAD_DTYPE, f"EZ3002: Cast: no dtype has the number {attributes['dst_type']}", True)
    return inputs[0].astype(dtype)


# --- matrices -----------------------------------------------------------------------------------------------------


def _turned(x: np.ndarray, turn: Any) -> np.ndarray:
    return np.swapaxes(x, -1, -2) if turn else x


def _product(first: str, second: str) -> Operator:
    def compute(inputs: Arrays, attributes: Attributes) -> np.ndarray:
        made = _turned(inputs[0], attributes.get(first)) @ _turned(inputs[1], attributes.get(second))
        return made + inputs[2] if len(inputs) > 2 and inputs[2].size else made

    return compute


def _gemm(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    """alpha a b + beta c; alpha and beta are inputs."""
    a, b = _turned(inputs[0], attributes.get("transpose_a")), _turned(inputs[1], attributes.get("transpose_b"))
    alpha, beta = (inputs[i].reshape(()) for i in (3, 4))
    return np.asarray(alpha * (a @ b) + beta * inputs[2], inputs[0].dtype)


# --- windows ------------------------------------------------------------------------------------------------------


def _windows(
    x: np.ndarray, size: Sequence[int], attributes: Attributes, fill: Any, same: str = ""
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """x (N, C, places...) -> (N, C, windows..., size...), and what was added before and behind each axis.

    same: "SAME" where padding is worked out; "VALID" for none; else `pads`
    """
    rank = len(size)
    steps = [int(n) for n in attributes.get("strides", [1] * rank)][-rank:]
    gaps = [int(n) for n in attributes.get("dilations", [1] * rank)][-rank:]
    reach = [(n - 1) * gap + 1 for n, gap in zip(size, gaps, strict=True)]
    around = [(0, 0)] * rank
    if same == "SAME":
        totals = [max((-(-n // step) - 1) * step + r - n, 0) for n, step, r in zip(x.shape[2:], steps, reach, strict=True)]
        around = [(total // 2, total - total // 2) for total in totals]
    elif same != "VALID":
        pads = [int(n) for n in attributes.get("pads", [0] * 2 * rank)][-2 * rank :]
        around = [(pads[2 * i], pads[2 * i + 1]) for i in range(rank)]  # the engine's order: top, bottom, left, right
        if attributes.get("ceil_mode"):
            around = [_up(n, pad, r, step) for n, pad, r, step in zip(x.shape[2:], around, reach, steps, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *around], constant_values=fill)
    found = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, x.ndim)))
    at = (slice(None), slice(None), *(slice(None, None, s) for s in steps), *(slice(None, None, g) for g in gaps))
    return found[at], around


def _up(size: int, pad: tuple[int, int], reach: int, step: int) -> tuple[int, int]:
    """More padding behind, so that a last window that begins inside is whole."""
    total = size + sum(pad)
    windows = -(-(total - reach) // step) + 1
    windows -= (windows - 1) * step >= size + pad[0]
    return pad[0], pad[1] + max((windows - 1) * step + reach - total, 0)


_AUTO_PAD = {"SAME_UPPER": "SAME", "SAME_LOWER": "SAME", "SAME": "SAME", "VALID": "VALID"}


def _conv(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    x, weight = inputs[0], inputs[1]
    group = int(attributes.get("groups", attributes.get("group", 1)))
    same = _AUTO_PAD.get(str(attributes.get("auto_pad", "NOTSET")), "")
    if x.shape[1] != weight.shape[1] * group:
        raise ValueError(f"{x.shape[1]} channels, and the weight takes {weight.shape[1]} in {group} groups")
    windows, _ = _windows(x, weight.shape[2:], attributes, 0, same)
    rank, made = x.ndim - 2, []
    each = weight.shape[0] // group
    for number in range(group):
        own = windows[:, number * weight.shape[1] : (number + 1) * weight.shape[1]]
        axes = [1, *range(2 + rank, 2 + 2 * rank)]
        part = np.tensordot(own, weight[number * each : (number + 1) * each], (axes, list(range(1, rank + 2))))
        made.append(np.moveaxis(part, -1, 1))
    y = np.concatenate(made, 1)
    return y + inputs[2].reshape(1, -1, *[1] * rank) if len(inputs) > 2 and inputs[2].size else y


def _pool(inputs: Arrays, attributes: Attributes, mean: bool) -> np.ndarray:
    x = inputs[0]
    rank = x.ndim - 2
    whole = bool(attributes.get("global_pooling"))
    size = list(x.shape[2:]) if whole else [int(n) for n in attributes["ksize"]][-rank:]
    same = "VALID" if whole else {"SAME": "SAME", "VALID": "VALID"}.get(str(attributes.get("padding_mode", "CALCULATED")), "")
    told = {**attributes, **({"strides": [1] * rank} if whole else {})}
    inside = tuple(range(2 + rank, 2 + 2 * rank))
    if not mean:
        lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        return np.asarray(_windows(x, size, told, lowest, same)[0].max(inside))
    windows, _ = _windows(x, size, told, 0, same)
    if not attributes.get("exclusive", True):
        return np.asarray(windows.mean(inside), x.dtype)
    counted, _ = _windows(np.ones_like(x[:1, :1]), size, told, 0, same)
    return np.asarray(windows.sum(inside) / counted.sum(inside), x.dtype)


def _batch_norm(inputs: Arrays, attributes: Attributes) -> list[np.ndarray]:
    """y, and the statistics that the provider gives buffers for: mean and variance, twice."""
    if attributes.get("is_training"):
        raise ValueError("training is not simulated")
    x, scale, offset, mean, variance = inputs[:5]
    along = (1, -1, *[1] * (x.ndim - 2))
    root = np.sqrt(variance + np.float32(attributes.get("epsilon", 1e-4)))
    y = (x - mean.reshape(along)) / root.reshape(along) * scale.reshape(along) + offset.reshape(along)
    return [np.asarray(y, x.dtype), mean, variance, mean, variance]


# --- shapes -------------------------------------------------------------------------------------------------------


def _flatten(inputs: Arrays, attributes: Attributes) -> np.ndarray:
    axis = int(attributes.get("axis", 1))
    axis += inputs[0].ndim if axis < 0 else 0
    return inputs[0].reshape(math.prod(inputs[0].shape[:axis]), math.prod(inputs[0].shape[axis:]))


def _dropout(inputs: Arrays, attributes: Attributes) -> list[np.ndarray]:
    """Nothing is dropped outside of training."""
    if float(attributes.get("p", 0.0)) != 0.0:
        raise ValueError("training is not simulated")
    return [inputs[0], np.ones(inputs[0].shape, bool)]


OPERATORS: Mapping[str, Operator] = {
    "Abs": _of_one(np.abs),
    "Ceil": _of_one(np.ceil),
    "Cos": _of_one(np.cos),
    "Erf": _of_one(_erf),
    "Floor": _of_one(np.floor),
    "Neg": _of_one(np.negative),
    "Reciprocal": _of_one(lambda x: 1 / x),
    "Relu": _of_one(lambda x: np.maximum(x, 0)),
    "Round": _of_one(np.rint),
    "Sin": _of_one(np.sin),
    "Sqrt": _of_one(np.sqrt),
    "Add": _of_two(np.add),
    "Sub": _of_two(np.subtract),
    "Mul": _of_two(np.multiply),
    "Div": _of_two(_quotient),
    "Exp": _exp,
    "Log": _log,
    "Cast": _cast,
    "MatMul": _product("transpose_x1", "transpose_x2"),
    "MatMulV2": _product("transpose_x1", "transpose_x2"),
    "BatchMatMul": _product("adj_x1", "adj_x2"),
    "GEMM": _gemm,
    "Conv2D": _conv,
    "Conv3D": _conv,
    "MaxPoolV3": lambda inputs, attributes: _pool(inputs, attributes, mean=False),
    "AvgPoolV2": lambda inputs, attributes: _pool(inputs, attributes, mean=True),
    "BatchNorm": _batch_norm,
    "DropoutV2": _dropout,
    "BroadcastToD": lambda inputs, attributes: np.broadcast_to(inputs[0], [int(n) for n in attributes["shape"]]),
    "Fill": lambda inputs, attributes: np.full([int(n) for n in inputs[0]], inputs[1].reshape(-1)[0], inputs[1].dtype),
    "Flatten": _flatten,
    "Identity": lambda inputs, attributes: inputs[0],
    "Reshape": lambda inputs, attributes: inputs[0].reshape([int(n) for n in inputs[1]]),
    "Transpose": lambda inputs, attributes: np.transpose(inputs[0], [int(n) for n in inputs[1]]),
    "TransposeD": lambda inputs, attributes: np.transpose(inputs[0], [int(n) for n in attributes["perm"]]),
}
