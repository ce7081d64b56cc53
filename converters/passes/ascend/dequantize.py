"""Quantised operators -> the same numbers in float32.

    QuantizeLinear(x, s, z)    ->  Cast(Clip(Round(x / s) + z))        and what reads it as floats reads what is in front of the Cast
    DequantizeLinear(q, s, z)  ->  (Cast(q) - z) * s
    MatMulInteger(a, b)        ->  Cast(MatMul((Cast(a) - za) / u, Cast(b) - zb) * u), in as many parts as keep every sum below 2^24
    ConvInteger, QLinearMatMul, QLinearConv, DynamicQuantizeLinear   in the same way

Why: CANN's parser has no quantisation of ONNX at any opset, only Ascend's own operators. This gives up the speed of integers, and no number:
a product of two integers of 8 bits and a sum of them below 2^24 are exact in float32. A device that computes these in fp16 rounds them, but
none of them overflows there: u is the power of two that takes the largest sum that can be below 65504, and what it multiplies again is for
vectors, which can be kept in float32 where matrix products cannot.

Refuses (leaves the node) when it is quantised from or to another float type than float32, or to a type of less than 8 bits or of floats, by
blocks, a rank or size is not known, or a sum would take more than MOST_PARTS parts.
Bound: none needed for integers. QLinearMatMul and QLinearConv multiply by one float32 number as onnxruntime does; another order of multiplying
the scales would move a number that lies between two integers.
"""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from ..rewriting import frozen
from .making import Maker, Refused, fixed, node_pass, rank_of

FLOAT, INT32 = ir.DataType.FLOAT, ir.DataType.INT32
RANGES = {
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT16: (-32768, 32767),
}
EXACT = 1 << 24  # integers up to here are float32 numbers
MOST_PARTS = 64
HALF = 65504  # the largest fp16 number; one operand in units of a power of two is exact in it, of 8 bits at 2^-9 and up
WHOLE = "porting.whole"  # metadata of a value that was cast from floats that are its numbers: the floats


# --- pieces -----------------------------------------------------------------------------------------------------------


def _floats(make: Maker, value: ir.Value) -> ir.Value:
    """Integers as floats; those that were floats just before are taken from there."""
    made: ir.Value | None = value.meta.get(WHOLE)
    return made if made is not None else make("Cast", value, to=int(FLOAT))


def _shifted(make: Maker, value: ir.Value, zero: ir.Value | None) -> ir.Value:
    """value - zero in floats. zero: shaped to be subtracted, None for 0"""
    wide = _floats(make, value)
    return wide if is_zero(zero) or zero is None else make("Sub", wide, _floats(make, zero))


def is_zero(value: ir.Value | None) -> bool:
    tensor = frozen(value)
    return value is None or (tensor is not None and tensor.size <= EXACT >> 10 and not tensor.numpy().any())


def _along(make: Maker, value: ir.Value, axis: int, rank: int) -> ir.Value:
    """One number, or one for each place along an axis, shaped to go with a tensor of that rank."""
    if rank_of(value) == 0:
        return value
    if rank_of(value) != 1 or rank == 0:
        raise Refused("quantised by blocks")
    return make.unsqueeze(value, *range(1, rank - axis % rank))


def _zero(make: Maker, zero: ir.Value | None, axis: int, rank: int) -> ir.Value | None:
    """A zero point in floats, shaped as _along does; None for 0."""
    if zero is None or is_zero(zero):
        return None
    known: ir.Value | None = zero.meta.get(WHOLE)  # one number: what quantises dynamically has no other
    return known if known is not None else make("Cast", _along(make, zero, axis, rank), to=int(FLOAT))


def _quantised(make: Maker, x: ir.Value, scale: ir.Value, zero: ir.Value | None, kind: ir.DataType) -> ir.Value:
    """x in floats -> integers of `kind`, which remember the floats that they were. zero: in floats"""
    return _saturated(make, make("Round", make("Div", x, scale)), zero, kind)


def _saturated(make: Maker, rounded: ir.Value, zero: ir.Value | None, kind: ir.DataType) -> ir.Value:
    if zero is not None:
        rounded = make("Add", rounded, zero)
    low, high = RANGES[kind]
    whole = make("Clip", rounded, make.scalar(low, FLOAT), make.scalar(high, FLOAT))
    result = make("Cast", whole, to=int(kind))
    result.meta[WHOLE] = whole
    return result


def _require(values: list[ir.Value | None], *kinds: ir.DataType) -> None:
    if any(v is not None and v.dtype not in kinds for v in values):
        raise Refused(f"of other types than {', '.join(k.name for k in kinds)}")


def _largest(value: ir.Value, zero: ir.Value | None) -> int:
    """What the integers of a value are at most, less their zero."""
    if value.dtype not in (ir.DataType.UINT8, ir.DataType.INT8):
        raise Refused(f"integers of {value.dtype}")
    return 255 if not is_zero(zero) or value.dtype == ir.DataType.UINT8 else 128


def exact_parts(count: int, terms: int, largest: int) -> list[tuple[int, int]]:
    """0 .. count - 1 in parts, so that `terms` products for each stay exact. raises: Refused"""
    size = EXACT // (terms * largest)
    if size == 0 or count == 0 or math.ceil(count / size) > MOST_PARTS:
        raise Refused("sums that are not exact in float32")
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def unit_for(parts: list[tuple[int, int]], terms: int, largest: int) -> float:
    """The smallest power of two in units of which every sum of `exact_parts` is an fp16 number, but for its rounding."""
    most, unit = max(end - start for start, end in parts) * terms * largest, 1
    while most > HALF * unit:
        unit *= 2
    return float(unit)


def _scaled(make: Maker, value: ir.Value, factor: float) -> ir.Value:
    return value if factor == 1 else make("Mul", value, make.scalar(factor, FLOAT))


def sum_of_parts(make: Maker, parts: list[ir.Value], unit: float = 1) -> ir.Value:
    """Sums in float32, each exact and in units of a power of two, added up in int32."""
    total = make("Cast", _scaled(make, parts[0], unit), to=int(INT32))
    for part in parts[1:]:
        total = make("Add", total, make("Cast", _scaled(make, part, unit), to=int(INT32)))
    return total


# --- operators --------------------------------------------------------------------------------------------------------


def _quantize_linear(make: Maker) -> ir.Value:
    x, scale, zero = make.input(0), make.input(1), make.optional(2)
    _require([x, scale], FLOAT)
    _require([make.node.outputs[0], zero], *RANGES)
    kind = make.node.outputs[0].dtype
    if kind is None or make.int("block_size", 0) or make.int("precision", 0) not in (0, FLOAT):
        raise Refused("by blocks")
    rank, axis = rank_of(x), make.int("axis", 1)
    return _quantised(make, x, _along(make, scale, axis, rank), _zero(make, zero, axis, rank), kind)


def _dequantize_linear(make: Maker) -> ir.Value:
    q, scale, zero = make.input(0), make.input(1), make.optional(2)
    _require([q, zero], *RANGES, INT32)
    _require([scale, make.node.outputs[0]], FLOAT)
    if make.int("block_size", 0) or (q.dtype == INT32 and not is_zero(zero)):
        raise Refused("by blocks, or a zero that is subtracted from 32 bits")
    rank, axis = rank_of(q), make.int("axis", 1)
    values, from_ = _floats(make, q), _zero(make, zero, axis, rank)
    return make("Mul", values if from_ is None else make("Sub", values, from_), _along(make, scale, axis, rank))


def _dynamic_quantize_linear(make: Maker) -> list[ir.Value]:
    """Scale and zero from the smallest and the largest number."""
    x = make.input(0)
    _require([x], FLOAT)
    scale, whole = quantisation(make, x, rank_of(x))
    zero = make("Cast", whole, to=int(ir.DataType.UINT8))
    zero.meta[WHOLE] = whole
    return [_quantised(make, x, scale, whole, ir.DataType.UINT8), scale, zero]


def quantisation(make: Maker, x: ir.Value, rank: int) -> tuple[ir.Value, ir.Value]:
    """Scale and zero, both () floats, that take floats to 0 .. 255; scale 1 where there is nothing but zero, as onnxruntime has it."""
    axes, none = list(range(rank)), make.scalar(0, FLOAT)
    low = make("Min", make.reduce("ReduceMin", x, axes, keepdims=0), none)
    high = make("Max", make.reduce("ReduceMax", x, axes, keepdims=0), none)
    flat = make("Equal", high, low)
    step = make("Div", make("Sub", high, low), make.scalar(255, FLOAT))
    scale = make("Where", flat, make.scalar(1, FLOAT), step)
    where = make("Div", make("Sub", none, low), scale)
    whole = make("Round", make("Clip", where, make.scalar(0, FLOAT), make.scalar(255, FLOAT)))
    return scale, whole


def _product(make: Maker, a: ir.Value, b: ir.Value, za: ir.Value | None, zb: ir.Value | None) -> ir.Value:
    """int32 (.., M, N) of integers (.., M, K) and (.., K, N). Zeros may be one a row of a, and one a column of b."""
    count = fixed(b, -2) if rank_of(b) > 1 else fixed(b, 0)
    largest = _largest(a, za) * _largest(b, zb)
    parts = exact_parts(count, 1, largest)
    unit = unit_for(parts, 1, largest)
    if rank_of(a) < 2 or rank_of(b) < 2:
        raise Refused("vectors")
    rows = make.unsqueeze(za, 1) if za is not None and rank_of(za) == 1 and not is_zero(za) else za
    left, right = _scaled(make, _shifted(make, a, rows), 1 / unit), _shifted(make, b, zb)
    last = rank_of(a) - 1, rank_of(b) - 2
    if len(parts) == 1:
        return sum_of_parts(make, [make("MatMul", left, right)], unit)
    cut = [(make.part(left, *part, last[0]), make.part(right, *part, last[1])) for part in parts]
    return sum_of_parts(make, [make("MatMul", *pair) for pair in cut], unit)


def _convolved(make: Maker, x: ir.Value, w: ir.Value, zx: ir.Value | None, zw: ir.Value | None) -> ir.Value:
    """int32, of integers x (B, C, ..) and w (M, C / group, ..). One zero for x; one, or one a channel, for w."""
    rank, group = rank_of(w), make.int("group", 1)
    window = math.prod(fixed(w, axis) for axis in range(2, rank))
    largest = _largest(x, zx) * _largest(w, zw)
    parts = exact_parts(fixed(w, 1), window, largest)
    unit = unit_for(parts, window, largest)
    if len(parts) > 1 and group != 1:
        raise Refused("sums of groups that are not exact in float32")
    if zw is not None and not is_zero(zw) and rank_of(zw) == 1:
        zw = make.unsqueeze(zw, *range(1, rank))
    left, right = (
        _scaled(make, _shifted(make, x, zx), 1 / unit),
        _shifted(make, w, zw),
    )  # padding is with 0 now, which the zero point was
    attributes: dict[str, Any] = {name: attribute.value for name, attribute in make.node.attributes.items()}
    if len(parts) == 1:
        return sum_of_parts(make, [make("Conv", left, right, **attributes)], unit)
    cut = [(make.part(left, *part, 1), make.part(right, *part, 1)) for part in parts]
    return sum_of_parts(make, [make("Conv", *pair, **attributes) for pair in cut], unit)


def _mat_mul_integer(make: Maker) -> ir.Value:
    return _product(make, make.input(0), make.input(1), make.optional(2), make.optional(3))


def _conv_integer(make: Maker) -> ir.Value:
    return _convolved(make, make.input(0), make.input(1), make.optional(2), make.optional(3))


def _rescaled(make: Maker, sums: ir.Value, scales: list[ir.Value], zero: ir.Value, weight_axis: int, rank: int) -> ir.Value:
    """int32 sums -> integers of zero's type, by scale of x * scale of w / scale of y."""
    _require([*scales], FLOAT)
    of_weight = _along(make, scales[1], weight_axis, rank)
    factor = make("Div", make("Mul", scales[0], of_weight), scales[2])
    kind = zero.dtype
    if kind not in RANGES or (rank_of(zero) and fixed(zero, 0) != 1):
        raise Refused("a result quantised by rows")
    scaled = make("Round", make("Mul", make("Cast", sums, to=int(FLOAT)), factor))
    return _saturated(make, scaled, None if is_zero(zero) else _floats(make, zero), kind)


def _q_linear_mat_mul(make: Maker) -> ir.Value:
    a, sa, za, b, sb, zb, sy, zy = (make.input(i) for i in range(8))
    if rank_of(sa) == 1 and fixed(sa, 0) != 1:
        raise Refused("quantised by rows")
    rank = max(rank_of(a), rank_of(b))
    return _rescaled(make, _product(make, a, b, za, zb), [sa, sb, sy], zy, rank - 1, rank)


def _q_linear_conv(make: Maker) -> ir.Value:
    x, sx, zx, w, sw, zw, sy, zy = (make.input(i) for i in range(8))
    sums, bias = _convolved(make, x, w, zx, zw), make.optional(8)
    rank = rank_of(w)
    if bias is not None:
        sums = make("Add", sums, make.unsqueeze(bias, *range(1, rank - 1)))
    return _rescaled(make, sums, [sx, sw, sy], zy, 1, rank)


dequantize = node_pass(
    {
        ("", "QuantizeLinear"): _quantize_linear,
        ("", "DequantizeLinear"): _dequantize_linear,
        ("", "DynamicQuantizeLinear"): _dynamic_quantize_linear,
        ("", "MatMulInteger"): _mat_mul_integer,
        ("", "ConvInteger"): _conv_integer,
        ("", "QLinearMatMul"): _q_linear_mat_mul,
        ("", "QLinearConv"): _q_linear_conv,
    },
    "Rewrite every one. Count: nodes rewritten. Source: ONNX QuantizeLinear-19, DequantizeLinear-19, MatMulInteger-10, ConvInteger-10.",
)
