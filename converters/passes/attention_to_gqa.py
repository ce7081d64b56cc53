"""Attention over a static cache -> com.microsoft.GroupQueryAttention, which looks at the filled part of the cache only.

    TensorScatter(past_k, heads(k)) ─┐
    TensorScatter(past_v, heads(v)) ─┼─ Attention(heads(q), mask) ─ merge   ->   GroupQueryAttention(q, k, v, past_k, past_v, lengths)
    causal mask ─────────────────────┘

Why: measured at capacity 2048 and position 50, the attention of SmolLM2 costs 18 ms with the masked form and 0.36 ms with this one.

Refuses (leaves the node alone) when the mask is not marked as causal by its builder, when q, k or v is not split from
(B, S, H*D), when the merged form is not what follows, when attention has further inputs or attributes, when head_dim is no
multiple of 8, or when the cache is no state that is written along axis 2 behind what is filled.
onnxruntime's CPU kernel takes several new positions on top of a past for batch 1 only, and says so when asked for more.
Bound: the same float32 products, summed in another order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from porting.types import Graph, StateSpec

from ..architectures.decoder_parts import MASK
from .rewriting import constant_of, copied, ints_of, made_by, node_like, only_user, pruned, take_over

MICROSOFT = "com.microsoft"
HEAD_DIM_STEP = 8  # onnxruntime 1.31 refuses to run other head sizes
SWAP_HEADS = [0, 2, 1, 3]  # (B, S, H, D) <-> (B, H, S, D)


def attention_to_gqa(graph: Graph) -> tuple[Graph, int]:
    """Rewrite every attention that matches. Source: onnxruntime ContribOperators.md, GroupQueryAttention."""
    new = copied(graph)
    body = new.model.graph
    lengths: tuple[ir.Value, ir.Value] | None = None
    changes = 0
    for node in [n for n in body if n.op_type == "Attention" and n.domain == ""]:
        match = _match(node, new.state)
        if match is None:
            continue
        lengths = lengths or _lengths(new)
        gqa = node_like(
            node,
            "GroupQueryAttention",
            [*match.qkv, *match.past, *lengths],
            domain=MICROSOFT,
            outputs=3,
            num_heads=match.heads,
            kv_num_heads=match.kv_heads,
            scale=float(node.attributes["scale"].as_float()),
            local_window_size=match.window,
        )
        take_over(match.merged, gqa.outputs[0])
        for old, fresh in zip(match.present, gqa.outputs[1:], strict=True):
            take_over(old, fresh)
        changes += 1
    if changes:
        body.opset_imports[MICROSOFT] = 1
        new = pruned(new)
    return new, changes


@dataclass(frozen=True)
class _Match:
    """What one rewrite needs: the values it reads, those it replaces, and the numbers of heads."""

    qkv: list[ir.Value]  # (B, S, H*D), (B, S, K*D), (B, S, K*D)
    past: list[ir.Value]
    present: list[ir.Value]
    merged: ir.Value  # (B, S, H*D)
    heads: int
    kv_heads: int
    window: int


def _match(node: ir.Node, state: StateSpec) -> _Match | None:
    mark = re.fullmatch(r"causal(?:,window=(\d+))?", node.metadata_props.get(MASK, ""))
    plain = set(node.attributes) == {"scale"} and len(node.inputs) == 4 and len(node.outputs) == 1
    if mark is None or not plain or None in node.inputs:
        return None
    scatters = [s for s in (made_by(v, "TensorScatter") for v in node.inputs[1:3]) if s is not None and _fills_cache(s, state)]
    transpose = only_user(node.outputs[0], "Transpose")
    if len(scatters) != 2 or transpose is None or ints_of(transpose, "perm") != SWAP_HEADS:
        return None
    q, k, v = _unsplit(node.inputs[0]), _unsplit(scatters[0].inputs[1]), _unsplit(scatters[1].inputs[1])
    merge = only_user(transpose.outputs[0], "Reshape")
    shape = constant_of(merge.inputs[1]) if merge is not None else []
    if q is None or k is None or v is None or merge is None or len(shape) != 3 or shape[:2] != [0, 0]:
        return None
    if k[1:] != v[1:] or q[2] % HEAD_DIM_STEP:
        return None
    return _Match(
        qkv=[q[0], k[0], v[0]],
        past=[s.inputs[0] for s in scatters if s.inputs[0] is not None],
        present=[s.outputs[0] for s in scatters],
        merged=merge.outputs[0],
        heads=q[1],
        kv_heads=k[1],
        window=int(mark[1]) if mark[1] else -1,
    )


def _fills_cache(scatter: ir.Node, state: StateSpec) -> bool:
    """Whether a TensorScatter writes a pair of the state behind what is filled, which is all that the new operator can do."""
    cache, _, written_at = scatter.inputs
    names = {(pair.input, pair.output) for pair in state.pairs}
    return (
        cache is not None
        and written_at is not None
        and set(scatter.attributes) == {"axis"}
        and scatter.attributes["axis"].as_int() == 2
        and (cache.name, scatter.outputs[0].name) in names
        and written_at.is_graph_input()
        and written_at.name == state.length
    )


def _unsplit(value: ir.Value | None) -> tuple[ir.Value, int, int] | None:
    """(the (B, S, H*D) value, H, D) behind Transpose(Reshape(x, [0, 0, H, D]), [0, 2, 1, 3])."""
    transpose = made_by(value, "Transpose")
    if transpose is None or ints_of(transpose, "perm") != SWAP_HEADS:
        return None
    reshape = made_by(transpose.inputs[0], "Reshape")
    if reshape is None or reshape.inputs[0] is None:
        return None
    sizes = constant_of(reshape.inputs[1])
    fits = len(sizes) == 4 and sizes[:2] == [0, 0] and min(sizes[2:]) > 0
    return (reshape.inputs[0], sizes[2], sizes[3]) if fits else None


def _lengths(graph: Graph) -> tuple[ir.Value, ir.Value]:
    """seqlens_k (B,) int32 = filled positions after this run - 1, and their maximum + 1, () int32."""
    assert graph.state.advance is not None
    body = graph.model.graph
    first = next(n for n in body if n.op_type != "Constant")
    inputs = {v.name: v for v in body.inputs}
    ids, axis = inputs[graph.state.advance[0]], graph.state.advance[1]
    one, zero = _constant(body, "gqa/one", [1]), _constant(body, "gqa/zero", [0])

    def op(name: str, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return node_like(first, kind, inputs, suffix=f"/gqa_{name}", **attributes).outputs[0]

    step = op("step", "Shape", ids, start=axis, end=axis + 1)  # (1,)
    last = op("last", "Sub", op("filled", "Add", inputs[graph.state.length], step), one)  # (B,)
    seqlens = op("seqlens", "Cast", last, to=ir.DataType.INT32)
    longest = op("longest", "Add", op("last_of_all", "ReduceMax", last, keepdims=0), op("one", "Squeeze", one, zero))  # ()
    total = op("total", "Cast", longest, to=ir.DataType.INT32)
    return seqlens, total


def _constant(body: ir.Graph, name: str, values: list[int]) -> ir.Value:
    tensor = ir.Tensor(np.asarray(values, np.int64), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    body.register_initializer(value)
    return value
