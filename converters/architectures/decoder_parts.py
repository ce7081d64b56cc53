"""Leaf functions of pre-norm decoders with rotary attention and a gated MLP. Each is one upstream module, standard ONNX only.

Letters in the shape comments: B batch, S new positions, M capacity of the cache, H heads, K key/value heads, D head_dim, E hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from porting.errors import CheckpointError, UnsupportedModel
from porting.types import Graph, StatePair, StateSpec

from ..accounting import Weights, same_values
from ..config import require_count
from ..graph_builder import GraphBuilder
from .rope import Rope

# The deepest published decoder has 126 layers and the widest head 512 numbers. A config far above either is damaged, and building
# its graph would take for ever before the tensors show it.
MOST_LAYERS = 1000
MOST_HEAD_DIM = 1 << 14
MOST_KEPT = 1 << 31  # more than any context: asking for more positions than there are gives all of them
MASK = "porting.mask"  # on Attention nodes: "causal" or "causal,window=N", what the explicit mask input holds


class HasHeads(Protocol):
    """What the attention of every architecture here says in its config."""

    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int | None: ...
    @property
    def head_dim(self) -> int | None: ...
    @property
    def hidden_act(self) -> str: ...


C = TypeVar("C", bound=HasHeads)


@dataclass(frozen=True)
class Inputs:
    """The inputs of a decoder with a static cache, and what every layer derives from them once.

    input_ids:   (B, S) int64
    past_length: (B,) int64, positions in the cache before this run
    positions:   (B, S) int64
    total:       () int64, the longest row after this run
    """

    input_ids: ir.Value
    past_length: ir.Value
    logits_to_keep: ir.Value
    positions: ir.Value
    total: ir.Value


def decoder_inputs(g: GraphBuilder) -> Inputs:
    """Declare input_ids, past_length, logits_to_keep, and derive the positions."""
    ids = g.input("input_ids", "int64", ("batch", "sequence"))
    past = g.input("past_length", "int64", ("batch",))
    keep = g.input("logits_to_keep", "int64", ())
    with g.scope("model.positions"):
        length = g.op("Squeeze", g.op("Shape", ids, start=1, end=2), g.constant([0]))  # ()
        steps = g.op("Range", g.constant(0), length, g.constant(1))  # (S,)
        positions = g.op("Add", g.op("Unsqueeze", past, g.constant([1])), steps)  # (B, S)
        total = g.op("Add", g.op("ReduceMax", past, keepdims=0), length)  # ()
    return Inputs(ids, past, keep, positions, total)


class Cache:
    """The static key/value cache of a decoder: one buffer per layer and kind, written in place at `past_length`."""

    def __init__(self, g: GraphBuilder, inputs: Inputs, key_value_heads: int, head_dim: int) -> None:
        self._g = g
        self._inputs = inputs
        self._shape = ("batch", key_value_heads, "capacity", head_dim)
        self._pairs: list[StatePair] = []
        self._new: list[tuple[ir.Value, str]] = []
        self._masks: dict[int | None, ir.Value] = {}
        self._first: ir.Value | None = None

    def write(self, layer: int, kind: str, values: ir.Value) -> ir.Value:
        """Put (B, K, S, D) of one layer into its buffer; returns the whole buffer (B, K, M, D)."""
        name = f"cache.{layer}.{kind}"
        past = self._g.input(name, "float32", self._shape)
        self._first = self._first or past
        new = self._g.op("TensorScatter", past, values, self._inputs.past_length, axis=2)
        self._pairs.append(StatePair(name, f"{name}.new", axis=2))
        self._new.append((new, f"{name}.new"))
        return new

    def mask(self, window: int | None) -> ir.Value:
        """(B, 1, S, M) bool, true where a position may look; shared by all layers with the same window."""
        if window not in self._masks:
            g = self._g
            assert self._first is not None, "write the cache before asking for a mask over it"
            with g.scope("model.mask"):
                capacity = g.op("Squeeze", g.op("Shape", self._first, start=2, end=3), g.constant([0]))
                columns = g.op("Range", g.constant(0), capacity, g.constant(1))  # (M,)
                rows = g.op("Unsqueeze", self._inputs.positions, g.constant([1, 3]))  # (B, S) -> (B, 1, S, 1)
                mask = g.op("LessOrEqual", columns, rows)
                if window is not None:  # keys at distance 0 .. window-1 (transformers sliding_window_overlay)
                    near = g.op("Greater", columns, g.op("Sub", rows, g.constant(window)))
                    mask = g.op("And", mask, near)
            self._masks[window] = mask
        return self._masks[window]

    def finish(self) -> StateSpec:
        """Declare the cache outputs; returns the state table."""
        for value, name in self._new:
            self._g.output(value, name, "float32", self._shape)
        return StateSpec(tuple(self._pairs), length="past_length", advance=("input_ids", 1))


def resolve_heads(c: C) -> C:
    """Fill in num_key_value_heads and head_dim as upstream does, and check that they fit together.

    raises: CheckpointError when they do not, UnsupportedModel for an activation other than SiLU
    """
    heads, hidden = c.num_attention_heads, c.hidden_size
    if c.head_dim is None and hidden % heads:
        raise CheckpointError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}", where="config.json")
    resolved = dataclasses.replace(
        c,  # type: ignore[type-var]
        num_key_value_heads=c.num_key_value_heads or heads,
        head_dim=c.head_dim or hidden // heads,
    )
    for key, value, most in (
        ("num_hidden_layers", c.num_hidden_layers, MOST_LAYERS),
        ("head_dim", resolved.head_dim or 0, MOST_HEAD_DIM),
    ):
        if value > most:
            raise CheckpointError(f"{key} is {value}; no model is near that, at most {most} is taken", where="config.json")
    if heads % (resolved.num_key_value_heads or 1):
        raise CheckpointError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {resolved.num_key_value_heads}",
            where="config.json",
        )
    if c.hidden_act not in ("silu", "swish"):
        raise UnsupportedModel(f"hidden_act {c.hidden_act!r} is not covered", where="config.json", next="covered: silu")
    return resolved


WINDOW_KEYS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")  # read by `layer_windows`


def layer_windows(config: Mapping[str, Any], layers: int) -> list[int | None]:
    """The window of every layer of a Qwen decoder, None for full attention (transformers 5.23, configuration_qwen2.py).

    raises: CheckpointError, UnsupportedModel
    """
    in_use = config.get("use_sliding_window")
    if not isinstance(in_use, bool | None):
        raise CheckpointError(f"use_sliding_window should be a bool, got {in_use!r}", where="config.json")
    needed = ["sliding_window", "max_window_layers"] if config.get("layer_types") is None else ["sliding_window"]
    unsaid = [key for key in needed if in_use and key not in config]
    if unsaid:  # upstream has defaults, which are those of one model: too much of a guess for a file that does not say
        raise CheckpointError(f"use_sliding_window is true, and the config lacks {', '.join(unsaid)}", where="config.json")
    window = config["sliding_window"] if in_use else None
    if window is not None:
        require_count("sliding_window", window, least=1)
    kinds = config.get("layer_types")
    if kinds is None:
        if window is not None:
            require_count("max_window_layers", config["max_window_layers"], least=0)
        first = layers if window is None else config["max_window_layers"]
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    require_layer_types(kinds, layers)
    if window is None and "sliding_attention" in kinds:
        raise CheckpointError("layer_types has sliding_attention, but no sliding_window is in use", where="config.json")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def require_layer_types(kinds: Any, layers: int) -> None:
    """Hold `layer_types` against the number of layers. raises: CheckpointError, UnsupportedModel"""
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise CheckpointError("layer_types should be a list of names", where="config.json")
    if len(kinds) != layers:
        raise CheckpointError(f"layer_types has {len(kinds)} entries for {layers} layers", where="config.json")
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UnsupportedModel(f"layer types are not covered: {', '.join(unknown)}", where="config.json")


def require_off(config: Mapping[str, Any], key: str) -> None:
    """Refuse a feature that is not covered. raises: UnsupportedModel"""
    if config.get(key):
        raise UnsupportedModel(f"{key}={config[key]!r} is not covered", where="config.json")


def freq_factors(turning: Rope, weights: Weights) -> np.ndarray | None:
    """GGUF's frequency divisors, (D / 2,) float32, when the checkpoint carries them.

    raises: CheckpointError for one that divides by zero or worse
    """
    if turning.kind != "freq_factors":
        return None
    factors = weights.values("rope_freqs.weight", (turning.dim // 2,))
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise CheckpointError("rope_freqs.weight should hold positive divisors", where=str(weights.checkpoint.path.name))
    return factors


def drop_tied_head(weights: Weights, tied: bool) -> None:
    """A tied checkpoint may still hold a copy of the head: dropped when it is one, refused when it differs.

    raises: CheckpointError
    """
    head_name, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if not tied or head_name not in weights:
        return
    if embedding in weights and not same_values(weights.checkpoint, head_name, embedding):
        raise CheckpointError(
            "tie_word_embeddings is true, but lm_head.weight differs from model.embed_tokens.weight",
            where="config.json and weights",
            next="set tie_word_embeddings to false if the head was trained apart",
        )
    weights.drop(head_name, "tied: the same values as model.embed_tokens.weight")


def linear(g: GraphBuilder, weights: Weights, name: str, x: ir.Value, n_in: int, n_out: int, bias: bool = False) -> ir.Value:
    """x @ W^T + b with W (n_out, n_in) as stored: (..., n_in) -> (..., n_out)."""
    with g.scope(name):
        w = g.weight(weights.take(f"{name}.weight", (n_out, n_in)))
        y = g.op("MatMul", x, g.op("Transpose", w, perm=[1, 0]))
        if bias:
            y = g.op("Add", y, g.weight(weights.take(f"{name}.bias", (n_out,))))
    return y


def rms_norm(g: GraphBuilder, weights: Weights, name: str, x: ir.Value, size: int, eps: float) -> ir.Value:
    """RMS normalisation over the last axis (arXiv 1910.07467)."""
    with g.scope(name):
        return g.op("RMSNormalization", x, g.weight(weights.take(f"{name}.weight", (size,))), axis=-1, epsilon=eps)


def split_heads(g: GraphBuilder, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
    """(B, S, H*D) -> (B, H, S, D)."""
    return g.op("Transpose", g.op("Reshape", x, g.constant([0, 0, heads, head_dim])), perm=[0, 2, 1, 3])


def merge_heads(g: GraphBuilder, x: ir.Value, size: int) -> ir.Value:
    """(B, H, S, D) -> (B, S, H*D)."""
    return g.op("Reshape", g.op("Transpose", x, perm=[0, 2, 1, 3]), g.constant([0, 0, size]))


def head_norm(g: GraphBuilder, weights: Weights, name: str, x: ir.Value, heads: int, head_dim: int, eps: float) -> ir.Value:
    """RMS normalisation of every head by itself: (B, S, H*D) -> (B, S, H*D)."""
    per_head = g.op("Reshape", x, g.constant([0, 0, heads, head_dim]))
    return g.op("Reshape", rms_norm(g, weights, name, per_head, head_dim, eps), g.constant([0, 0, heads * head_dim]))


def cached_attention(
    g: GraphBuilder,
    cache: Cache,
    layer: int,
    qkv: tuple[ir.Value, ir.Value, ir.Value],
    turn: tuple[ir.Value, ir.Value],
    heads: tuple[int, int],
    head_dim: int,
    window: int | None,
) -> ir.Value:
    """Rotate q and k, put k and v into the cache, attend over all of it.

    qkv:     (B, S, H*D), (B, S, K*D), (B, S, K*D)
    turn:    cos and sin, (B, S, D/2)
    heads:   (H, K); each key/value head serves H / K query heads
    window:  positions that a query sees, itself included; None for all before it
    returns: (B, S, H*D)
    """
    q, k, v = qkv
    n_heads, n_kv = heads
    q = g.op("RotaryEmbedding", q, *turn, num_heads=n_heads, name="rotate_q")
    k = g.op("RotaryEmbedding", k, *turn, num_heads=n_kv, name="rotate_k")
    keys = cache.write(layer, "key", split_heads(g, k, n_kv, head_dim))
    values = cache.write(layer, "value", split_heads(g, v, n_kv, head_dim))
    out = g.op("Attention", split_heads(g, q, n_heads, head_dim), keys, values, cache.mask(window), scale=head_dim**-0.5)
    node = out.producer()
    assert node is not None
    node.metadata_props[MASK] = "causal" if window is None else f"causal,window={window}"
    return merge_heads(g, out, n_heads * head_dim)  # (B, H, S, D) -> (B, S, H*D)


def gated_mlp(
    g: GraphBuilder, weights: Weights, name: str, x: ir.Value, hidden: int, inner: int, bias: bool = False
) -> ir.Value:
    """SwiGLU: down(silu(gate(x)) * up(x)) (arXiv 2002.05202). (B, S, E) -> (B, S, E)."""
    gate = linear(g, weights, f"{name}.gate_proj", x, hidden, inner, bias)
    up = linear(g, weights, f"{name}.up_proj", x, hidden, inner, bias)
    with g.scope(f"{name}.act_fn"):
        active = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
    return linear(g, weights, f"{name}.down_proj", active, inner, hidden, bias)


def embed(g: GraphBuilder, weights: Weights, ids: ir.Value, vocab: int, hidden: int) -> ir.Value:
    """(B, S) -> (B, S, E)."""
    with g.scope("model.embed_tokens"):
        return g.op("Gather", g.weight(weights.take("model.embed_tokens.weight", (vocab, hidden))), ids, axis=0)


def head(g: GraphBuilder, weights: Weights, x: ir.Value, keep: ir.Value, vocab: int, hidden: int, tied: bool) -> ir.Value:
    """Logits of the last `keep` positions, of all when it is 0: (B, S, E) -> (B, kept, V)."""
    with g.scope("lm_head"):
        start = g.op("Unsqueeze", g.op("Neg", keep), g.constant([0]))
        x = g.op("Slice", x, start, g.constant([np.iinfo(np.int64).max]), g.constant([1]))
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        w = g.weight(weights.take(name, (vocab, hidden)))
        return g.op("MatMul", x, g.op("Transpose", w, perm=[1, 0]))


def finish(g: GraphBuilder, cache: Cache, logits: ir.Value, vocab: int) -> Graph:
    """Declare the outputs, logits first, and what the inputs of `decoder_inputs` may hold."""
    g.output(logits, "logits", "float32", ("batch", "kept", vocab))
    ranges = {"input_ids": (0, vocab), "logits_to_keep": (0, MOST_KEPT)}
    return g.graph(cache.finish(), {"logits_to_keep": 0}, ranges)
