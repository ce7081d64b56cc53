"""Attention -> MatMul, Where or Add, Softmax, MatMul.

    q (B, H, S, D) * scale ─┐
    k (B, K, T, D) ─────────┴ MatMul ─ [softcap] ─ [Where(seen, ·, LOW)] ─ Softmax ─ MatMul with v (B, K, T, D') ─ (B, H, S, D')

Why: an operator of opset 23; CANN's parser has nothing of the standard above 18, and its NPUFlashAttention is of another domain.

Heads that share a key/value head stand below each other, (B, K, H/K * S, D): no head of the cache is repeated and no product broadcast.

What may not be seen gets LOW instead of minus infinity, which Ascend 310, 310P, 310B and 910A saturate to the largest finite number, so that
a row of nothing else, or a sum with another infinity, means something else there. LOW is the lowest finite fp16 number, -65504, for fp16; it
is also what fp16 modes of ATC make of lower weights. In float32 and bfloat16 LOW is half of float32's lowest: a port that runs in ATC's fp16
mode has it clipped to -65504 too (is_weight_clip). Where, and not Add, writes it: a score plus -65504 leaves fp16.
After Softmax both are zeros. A row in which nothing is seen is zero, as ONNX says: its result is multiplied by 0.

Refuses (leaves the node) when types or ranks are not known, the number of heads does not follow, the scores are an output, a mask is
shorter than the keys, or Softmax is asked for in another type than it computes here.
Bound: the operator's definition; sums are taken in another order, and q is multiplied by the scale where the definition multiplies q and k by
its root: one rounding where there were two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...architectures.decoder_parts import MASK
from ..rewriting import frozen
from .making import Maker, Refused, dimension, fixed, float_type, node_pass, rank_of

SMALL_BYTES = 64 << 10  # of a constant mask that is looked at
LOWEST_FP16 = -65504.0
LOWEST = float(np.finfo(np.float32).min / 2)  # the half: onnxruntime 1.31's Softmax has zeros for a row of the lowest itself


@dataclass(frozen=True)
class Heads:
    """q: (B, query, S, size); k, v: (B, shared, T, ..); flat: whether they came as (B, S, H*D)."""

    query: int
    shared: int
    size: int
    flat: bool


def _attention(make: Maker) -> list[ir.Value | None]:
    if make.used(3):
        raise Refused("its scores are read")
    q, k, v = make.input(0), make.input(1), make.input(2)
    kind, heads = float_type(q), _heads(make, q, k)
    if heads.flat:
        q, k, v = (_split(make, x, n) for x, n in ((q, heads.query), (k, heads.shared), (v, heads.shared)))
    past_key, past_value = make.optional(4), make.optional(5)
    if past_key is not None and past_value is not None:
        k, v = _joined(make, past_key, k), _joined(make, past_value, v)
    scores = _capped(make, _scores(make, q, k, heads, kind), kind)
    mask = _mask(make, make.input(0), k, heads)
    if mask.added is not None:
        scores = make("Add", scores, mask.added)
    if mask.seen is not None:
        low = LOWEST_FP16 if kind == ir.DataType.FLOAT16 else LOWEST
        scores = make("Where", mask.seen, scores, make.scalar(low, kind))
    result = _weighted(make, _softmax(make, scores, kind), v, heads)
    if mask.seen is not None and mask.empty:  # 1 where a row sees something
        result = make("Mul", result, make.reduce("ReduceMax", make("Cast", mask.seen, to=int(kind)), [-1]))
    if heads.flat:
        result = make.reshape(make("Transpose", result, perm=[0, 2, 1, 3]), 0, 0, -1)
    return [result, k if make.used(1) else None, v if make.used(2) else None]


def _heads(make: Maker, q: ir.Value, k: ir.Value) -> Heads:
    rank = rank_of(q)
    if rank != rank_of(k) or rank not in (3, 4):
        raise Refused(f"rank {rank}")
    if rank == 4:
        return Heads(fixed(q, 1), fixed(k, 1), fixed(q, 3), False)
    query, shared = make.int("q_num_heads", 0), make.int("kv_num_heads", 0)
    if query < 1 or shared < 1:
        raise Refused("the number of heads is not given")
    return Heads(query, shared, fixed(q, 2) // query, True)


def _split(make: Maker, x: ir.Value, heads: int) -> ir.Value:
    """(B, S, H*D) -> (B, H, S, D)."""
    return make("Transpose", make.reshape(x, 0, 0, heads, -1), perm=[0, 2, 1, 3])


def _joined(make: Maker, past: ir.Value, new: ir.Value) -> ir.Value:
    """(B, K, P, D), (B, K, T - P, D) -> (B, K, T, D)."""
    whole = make("Concat", past, new, axis=2)
    sizes = dimension(past, 2), dimension(new, 2)
    if past.shape is not None and sizes[0] is not None and sizes[1] is not None:
        whole.shape = ir.Shape([*past.shape[:2], sizes[0] + sizes[1], past.shape[3]])
    return whole


def _scores(make: Maker, q: ir.Value, k: ir.Value, heads: Heads, kind: ir.DataType) -> ir.Value:
    """(B, H, S, T)."""
    scale = make.float("scale", 0.0) or heads.size**-0.5
    scaled = make("Mul", q, make.scalar(scale, kind))
    grouped = heads.query != heads.shared
    if grouped:
        scaled = make.reshape(scaled, 0, heads.shared, -1, heads.size)  # (B, K, H/K * S, D)
    scores = make("MatMul", scaled, make("Transpose", k, perm=[0, 1, 3, 2]))
    return make.reshape(scores, 0, heads.query, -1, 0) if grouped else scores


def _capped(make: Maker, scores: ir.Value, kind: ir.DataType) -> ir.Value:
    cap = make.float("softcap", 0.0)
    if not cap:
        return scores
    limit = make.scalar(cap, kind)
    return make("Mul", make("Tanh", make("Div", scores, limit)), limit)


def _softmax(make: Maker, scores: ir.Value, kind: ir.DataType) -> ir.Value:
    precise = ir.DataType(make.int("softmax_precision", int(kind)) or int(kind))
    if precise not in (kind, ir.DataType.FLOAT):
        raise Refused(f"Softmax in {precise}")
    return make.cast(make("Softmax", make.cast(scores, precise, kind), axis=-1), kind, precise)


def _weighted(make: Maker, weights: ir.Value, v: ir.Value, heads: Heads) -> ir.Value:
    """(B, H, S, T) x (B, K, T, D') -> (B, H, S, D')."""
    if heads.query == heads.shared:
        return make("MatMul", weights, v)
    sums = make("MatMul", make.reshape(weights, 0, heads.shared, -1, 0), v)  # (B, K, H/K * S, D')
    return make.reshape(sums, 0, heads.query, -1, 0)


@dataclass(frozen=True)
class _Mask:
    """seen: bool, where a score counts; added: to the scores; empty: whether a row may see nothing. All broadcast to (B, H, S, T)."""

    seen: ir.Value | None = None
    added: ir.Value | None = None
    empty: bool = False

    def narrowed(self, make: Maker, seen: ir.Value, empty: bool) -> _Mask:
        return _Mask(seen if self.seen is None else make("And", self.seen, seen), self.added, self.empty or empty)


def _mask(make: Maker, queries: ir.Value, keys: ir.Value, heads: Heads) -> _Mask:
    """queries: the node's own first input; keys: (B, K, T, D), past ones included."""
    mask = _given_mask(make, keys)
    filled, causal = make.optional(6), bool(make.int("is_causal", 0))
    if filled is None and not causal:
        return mask
    columns = make.range(make.size(keys, 2))  # (T,)
    if filled is not None:
        filled = make.unsqueeze(filled, 1, 2, 3)  # (B, 1, 1, 1)
        mask = mask.narrowed(make, make("Less", columns, filled), True)
    if causal:
        count = make.size(queries, 1 if heads.flat else 2)
        last = make.unsqueeze(make.range(count), 1)  # (S, 1): the last key that a query sees
        past = make.optional(4)
        if past is not None:
            last = make("Add", last, make.size(past, 2))
        elif filled is not None:
            last = make("Add", last, make("Sub", filled, count))  # (B, 1, S, 1)
        mask = mask.narrowed(make, make("LessOrEqual", columns, last), False)
    return mask


def _given_mask(make: Maker, keys: ir.Value) -> _Mask:
    """The mask input. One of floats may hold minus infinity, which is the same as not seen: the one number below -1 that is its own half.

    Every other number is finite, float32's lowest too, and a row of it is a row in which all is seen alike. A threshold between the two would
    lie beyond fp16, whose modes clip it to a number that masks hold.
    """
    mask = make.optional(3)
    if mask is None:
        return _Mask()
    have, want = dimension(mask, -1), dimension(keys, 2)
    if have is not None and want is not None and have not in (1, want):
        raise Refused("a mask that is shorter than the keys")
    if mask.dtype == ir.DataType.BOOL:
        return _Mask(seen=mask, empty=MASK not in make.node.metadata_props)  # by their builder, every query sees itself
    kind = float_type(mask)
    if _is_finite(mask):
        return _Mask(added=mask)
    below = make("Min", mask, make.scalar(-1.0, kind))
    minus_infinity = make("Equal", make("Mul", below, make.scalar(0.5, kind)), below)
    return _Mask(make("Not", minus_infinity), mask, True)


def _is_finite(mask: ir.Value) -> bool:
    """Whether it is shown that a mask holds no infinity: chosen from small constants."""
    tensor = frozen(mask)
    if tensor is not None:
        return tensor.nbytes <= SMALL_BYTES and bool(np.isfinite(tensor.numpy()).all())
    node = mask.producer()
    if node is None or node.domain or None in node.inputs:
        return False
    if node.op_type == "Where":
        return all(v is not None and _is_finite(v) for v in node.inputs[1:])
    source = node.inputs[0] if node.inputs else None
    return (
        source is not None and node.op_type in ("Unsqueeze", "Expand", "Reshape", "Squeeze", "Identity") and _is_finite(source)
    )


attention = node_pass(
    {("", "Attention"): _attention},
    "Rewrite every one. Count: nodes rewritten. Source: ONNX Attention-23 and -24, as corrected in onnx 1.23.",
)
