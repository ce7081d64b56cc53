"""Attention over a static cache -> com.microsoft.GroupQueryAttention, which looks at the filled part of the cache only.

    TensorScatter(past_k, heads(k)) ─┐
    TensorScatter(past_v, heads(v)) ─┼─ Attention(heads(q), mask) ─ merge   ->   GroupQueryAttention(q, k, v, past_k, past_v, lengths)
    causal mask ─────────────────────┘

Why: measured at capacity 2048 and position 50, the attention of SmolLM2 costs 18 ms with the masked form and 0.36 ms with this one.

Refuses (leaves the node alone) when the mask is not marked as causal by its builder, when q, k or v is not split from
(B, S, H*D), when the merged form is not what follows, or when the cache is written along another axis.
onnxruntime's CPU kernel takes several new positions on top of a past for batch 1 only, and says so when asked for more.
"""

from __future__ import annotations

import onnx_ir as ir

from porting.types import Graph

from ..architectures.decoder_parts import MASK
from .rewriting import copied, made_by, node_like, only_user, pruned, take_over

MICROSOFT = "com.microsoft"


def attention_to_gqa(graph: Graph) -> tuple[Graph, int]:
    """Rewrite every attention that matches. Source: onnxruntime ContribOperators.md, GroupQueryAttention."""
    new = copied(graph)
    body = new.model.graph
    lengths: tuple[ir.Value, ir.Value] | None = None
    changes = 0
    for node in [n for n in body if n.op_type == "Attention" and n.domain == ""]:
        match = _match(node)
        if match is None:
            continue
        if lengths is None:
            lengths = _lengths(new, node, match.written_at)
        gqa = node_like(
            node,
            "GroupQueryAttention",
            [*match.qkv, *match.past, *lengths],
            domain=MICROSOFT,
            outputs=3,
            num_heads=match.heads,
            kv_num_heads=match.kv_heads,
            scale=float(node.attributes["scale"].as_float()),
            local_window_size=match.window if match.window is not None else -1,
        )
        take_over(match.merged, gqa.outputs[0])
        for old, fresh in zip(match.present, gqa.outputs[1:], strict=True):
            take_over(old, fresh)
        changes += 1
    if changes:
        body.opset_imports[MICROSOFT] = 1
        new = pruned(new)
    return new, changes


class _Match:
    def __init__(self, qkv, past, present, merged, written_at, heads, kv_heads, window) -> None:  # type: ignore[no-untyped-def]
        self.qkv, self.past, self.present, self.merged = qkv, past, present, merged
        self.written_at, self.heads, self.kv_heads, self.window = written_at, heads, kv_heads, window


def _match(node: ir.Node) -> _Match | None:
    mark = node.metadata_props.get(MASK, "")
    if mark.split(",")[0] != "causal" or "scale" not in node.attributes:
        return None
    q = _unsplit(node.inputs[0])
    scatters = [made_by(v, "TensorScatter") for v in node.inputs[1:3]]
    if q is None or any(s is None or s.attributes["axis"].as_int() != 2 for s in scatters):
        return None
    k, v = (_unsplit(s.inputs[1]) for s in scatters if s is not None)
    transpose = only_user(node.outputs[0], "Transpose")
    merge = only_user(transpose.outputs[0], "Reshape") if transpose is not None else None
    if k is None or v is None or merge is None:
        return None
    return _Match(
        qkv=[q[0], k[0], v[0]],
        past=[s.inputs[0] for s in scatters if s is not None],
        present=[s.outputs[0] for s in scatters if s is not None],
        merged=merge.outputs[0],
        written_at=scatters[0].inputs[2],  # type: ignore[union-attr]
        heads=q[1],
        kv_heads=k[1],
        window=int(mark.partition("window=")[2]) if "window=" in mark else None,
    )


def _unsplit(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """(the (B, S, H*D) value, H) behind Transpose(Reshape(x, [0, 0, H, D]), [0, 2, 1, 3])."""
    transpose = made_by(value, "Transpose")
    if transpose is None or list(transpose.attributes["perm"].as_ints()) != [0, 2, 1, 3]:
        return None
    reshape = made_by(transpose.inputs[0], "Reshape")
    shape = (
        ir.convenience.get_const_tensor(reshape.inputs[1]) if reshape is not None and reshape.inputs[1] is not None else None
    )
    if reshape is None or shape is None or reshape.inputs[0] is None:
        return None
    sizes = shape.numpy().tolist()
    return (reshape.inputs[0], int(sizes[2])) if len(sizes) == 4 and sizes[:2] == [0, 0] else None


def _lengths(graph: Graph, before: ir.Node, written_at: ir.Value) -> tuple[ir.Value, ir.Value]:
    """seqlens_k (B,) int32 = filled positions after this run - 1, and their maximum + 1, () int32."""
    assert graph.state.advance is not None
    body = graph.model.graph
    first = next(n for n in body if n.op_type != "Constant")
    ids = next(v for v in body.inputs if v.name == graph.state.advance[0])
    axis = graph.state.advance[1]
    one, zero = _constant(body, "gqa/one", [1]), _constant(body, "gqa/zero", [0])

    def op(name: str, kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        return node_like(first, kind, inputs, suffix=f"/gqa_{name}", **attributes).outputs[0]

    step = op("step", "Shape", ids, start=axis, end=axis + 1)  # (1,)
    last = op("last", "Sub", op("filled", "Add", written_at, step), one)  # (B,)
    seqlens = op("seqlens", "Cast", last, to=ir.DataType.INT32)
    longest = op("longest", "Add", op("last_of_all", "ReduceMax", last, keepdims=0), op("one", "Squeeze", one, zero))  # ()
    total = op("total", "Cast", longest, to=ir.DataType.INT32)
    return seqlens, total


def _constant(body: ir.Graph, name: str, values: list[int]) -> ir.Value:
    import numpy as np

    tensor = ir.Tensor(np.asarray(values, np.int64), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    body.register_initializer(value)
    return value
