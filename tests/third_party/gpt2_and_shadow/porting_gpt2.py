"""GPT-2: learned positions, LayerNorm with biases, weights stored (in, out), a head that is the embedding.

Paper: Radford et al. 2019, section 2.3. Reference: transformers 5.23, models/gpt2/modeling_gpt2.py. Checkpoints: Hugging Face folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from porting.converters.accounting import Weights
from porting.converters.architectures import decoder_parts as parts
from porting.converters.config import read_config
from porting.converters.graph_builder import GraphBuilder
from porting.errors import UnsupportedModel
from porting.types import Graph


@dataclass(frozen=True)
class Config:
    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    layer_norm_epsilon: float
    activation_function: str = "gelu_new"
    n_inner: int | None = None


IGNORED = {
    "attn_pdrop": "training only",
    "n_ctx": "an old name of n_positions",
    "summary_type": "of a head that is not there",
    "summary_use_proj": "of a head that is not there",
    "summary_activation": "of a head that is not there",
    "summary_proj_to_labels": "of a head that is not there",
    "summary_first_dropout": "of a head that is not there",
    "reorder_and_upcast_attn": "precision of upstream's training",
    "tie_word_embeddings": "the head has no weight of its own in any checkpoint that this file takes",
}
ONLY = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "activation_function": "gelu_new"}


def norm(g: GraphBuilder, w: Weights, name: str, x: ir.Value, c: Config) -> ir.Value:
    with g.scope(name):
        scale, bias = (g.weight(w.take(f"{name}.{part}", (c.n_embd,))) for part in ("weight", "bias"))
        return g.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=c.layer_norm_epsilon)


def conv1d(g: GraphBuilder, w: Weights, name: str, x: ir.Value, n_in: int, n_out: int) -> ir.Value:
    """x @ W + b with W (in, out), which upstream calls Conv1D."""
    with g.scope(name):
        y = g.op("MatMul", x, g.weight(w.take(f"{name}.weight", (n_in, n_out))))
        return g.op("Add", y, g.weight(w.take(f"{name}.bias", (n_out,))))


def attention(g: GraphBuilder, w: Weights, name: str, i: int, x: ir.Value, c: Config, cache: parts.Cache) -> ir.Value:
    dim = c.n_embd // c.n_head
    qkv = conv1d(g, w, f"{name}.c_attn", x, c.n_embd, 3 * c.n_embd)
    with g.scope(name):
        q, k, v = (
            g.op("Slice", qkv, g.constant([n * c.n_embd]), g.constant([(n + 1) * c.n_embd]), g.constant([2])) for n in range(3)
        )  # (B, S, 3E) -> 3 x (B, S, E)
        keys = cache.write(i, "key", parts.split_heads(g, k, c.n_head, dim))
        values = cache.write(i, "value", parts.split_heads(g, v, c.n_head, dim))
        y = g.op("Attention", parts.split_heads(g, q, c.n_head, dim), keys, values, cache.mask(None), scale=dim**-0.5)
        y = parts.merge_heads(g, y, c.n_embd)
    return conv1d(g, w, f"{name}.c_proj", y, c.n_embd, c.n_embd)


def build(config: Mapping[str, Any], w: Weights) -> Graph:
    """The canonical graph of a GPT-2 checkpoint. raises: UnsupportedModel, CheckpointError"""
    c = read_config(Config, config, ignored=IGNORED, special=tuple(ONLY))
    for key, value in ONLY.items():
        if config.get(key, value) != value:
            raise UnsupportedModel(f"{key}={config[key]!r} is not covered", where="config.json")
    g = GraphBuilder("gpt2")
    inputs = parts.decoder_inputs(g)
    cache = parts.Cache(g, inputs, c.n_head, c.n_embd // c.n_head)
    with g.scope("transformer.wte"):
        words = g.weight(w.take("transformer.wte.weight", (c.vocab_size, c.n_embd)))
        x = g.op("Gather", words, inputs.input_ids, axis=0)
    with g.scope("transformer.wpe"):
        places = g.weight(w.take("transformer.wpe.weight", (c.n_positions, c.n_embd)))
        x = g.op("Add", x, g.op("Gather", places, inputs.positions, axis=0))
    for i in range(c.n_layer):
        name, inner = f"transformer.h.{i}", c.n_inner or 4 * c.n_embd
        y = attention(g, w, f"{name}.attn", i, norm(g, w, f"{name}.ln_1", x, c), c, cache)
        with g.scope(name):
            x = g.op("Add", x, y)
        y = conv1d(g, w, f"{name}.mlp.c_fc", norm(g, w, f"{name}.ln_2", x, c), c.n_embd, inner)
        with g.scope(f"{name}.mlp"):
            y = g.op("Gelu", y, approximate="tanh")
        y = conv1d(g, w, f"{name}.mlp.c_proj", y, inner, c.n_embd)
        with g.scope(name):
            x = g.op("Add", x, y)
    x = norm(g, w, "transformer.ln_f", x, c)
    with g.scope("lm_head"):
        start = g.op("Unsqueeze", g.op("Neg", inputs.logits_to_keep), g.constant([0]))
        x = g.op("Slice", x, start, g.constant([2**63 - 1]), g.constant([1]))
        logits = g.op("MatMul", x, g.op("Transpose", words, perm=[1, 0]))
    return parts.finish(g, cache, logits, c.vocab_size)
