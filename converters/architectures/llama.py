"""Llama 1 to 3.x and everything trained in its shape (SmolLM2, the Llama-based R1 distills).

Paper: arXiv 2302.13971, section 2.2. Reference: transformers 5.23, models/llama/modeling_llama.py.
Checkpoints: Hugging Face folders, GGUF "llama".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from porting.errors import UnsupportedModel
from porting.types import Graph

from ..accounting import Weights
from ..config import read_config
from ..graph_builder import GraphBuilder
from . import decoder_parts as parts
from . import rope


@dataclass(frozen=True)
class Config:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    rms_norm_eps: float
    max_position_embeddings: int
    num_key_value_heads: int | None = None  # upstream: num_attention_heads
    head_dim: int | None = None  # upstream: hidden_size / num_attention_heads
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False


IGNORED = {"layer_types": "checked below: only full attention"}
DROPPABLE = {r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq": "a buffer that follows from rope_theta"}


def block(
    g: GraphBuilder, w: Weights, i: int, x: ir.Value, c: Config, cache: parts.Cache, turn: tuple[ir.Value, ir.Value]
) -> ir.Value:
    """One decoder layer: (B, S, E) -> (B, S, E)."""
    name, hidden = f"model.layers.{i}", c.hidden_size
    heads, kv_heads, dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    assert kv_heads is not None and dim is not None
    with g.scope(f"{name}.self_attn"):
        y = parts.rms_norm(g, w, f"{name}.input_layernorm", x, hidden, c.rms_norm_eps)
        q = parts.linear(g, w, f"{name}.self_attn.q_proj", y, hidden, heads * dim, c.attention_bias)
        k = parts.linear(g, w, f"{name}.self_attn.k_proj", y, hidden, kv_heads * dim, c.attention_bias)
        v = parts.linear(g, w, f"{name}.self_attn.v_proj", y, hidden, kv_heads * dim, c.attention_bias)
        y = parts.cached_attention(g, cache, i, (q, k, v), turn, (heads, kv_heads), dim, window=None)
        y = parts.linear(g, w, f"{name}.self_attn.o_proj", y, heads * dim, hidden, c.attention_bias)
    with g.scope(name):
        x = g.op("Add", x, y, name="add_attention")
        y = parts.rms_norm(g, w, f"{name}.post_attention_layernorm", x, hidden, c.rms_norm_eps)
        y = parts.gated_mlp(g, w, f"{name}.mlp", y, hidden, c.intermediate_size, c.mlp_bias)
        return g.op("Add", x, y, name="add_mlp")


def build(config: Mapping[str, Any], w: Weights) -> Graph:
    """The canonical graph of a Llama checkpoint.

    raises: UnsupportedModel, CheckpointError; missing and left-over tensors by `w.finish()`, which the caller calls
    """
    c = parts.resolve_heads(read_config(Config, config, ignored=IGNORED, special=rope.CONFIG_KEYS))
    if config.get("layer_types") is not None:
        parts.require_layer_types(config["layer_types"], c.num_hidden_layers)
        if "sliding_attention" in config["layer_types"]:
            raise UnsupportedModel("Llama with sliding_attention is not covered", where="config.json: layer_types")
    turning = rope.read_rope(config, c.head_dim or 0)
    g = GraphBuilder("llama")
    inputs = parts.decoder_inputs(g)
    turn = rope.rotation(g, turning, inputs.positions, inputs.total, parts.freq_factors(turning, w))
    cache = parts.Cache(g, inputs, c.num_key_value_heads or 0, c.head_dim or 0)
    x = parts.embed(g, w, inputs.input_ids, c.vocab_size, c.hidden_size)
    for i in range(c.num_hidden_layers):
        x = block(g, w, i, x, c, cache, turn)
    x = parts.rms_norm(g, w, "model.norm", x, c.hidden_size, c.rms_norm_eps)
    parts.drop_tied_head(w, c.tie_word_embeddings)
    logits = parts.head(g, w, x, inputs.logits_to_keep, c.vocab_size, c.hidden_size, c.tie_word_embeddings)
    return parts.finish(g, cache, logits, c.vocab_size)
