"""BERT: an encoder with learned positions, normalised behind every sum. Also many sentence embedders (MiniLM, BGE, E5, GTE).

Paper: arXiv 1810.04805, section 3. Reference: transformers 5.23, models/bert/modeling_bert.py.
Checkpoints: Hugging Face folders, with or without a head, back to those that were converted from TensorFlow; sentence-transformers folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from porting.types import Graph

from ..accounting import Weights
from ..config import read_config
from ..graph_builder import GraphBuilder
from . import encoder_parts as parts
from .sentence_parts import sentence_embedding

KIND = "encoder"
BASE = "bert."
HEAD = "cls.predictions.decoder.weight"  # of a masked language model whose head is not tied


@dataclass(frozen=True)
class Config:
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    tie_word_embeddings: bool = True


NEXT_SENTENCE = {r"cls\.seq_relationship\.(weight|bias)": "the next-sentence head, which this architecture does not have"}
HEADS = {  # of a BertModel's checkpoint that was written from a model with a head
    **NEXT_SENTENCE,
    r"cls\.predictions\.(bias|decoder\.(weight|bias))": "the masked-language-model head, which this architecture does not have",
    r"cls\.predictions\.transform\.(dense|LayerNorm)\.(weight|bias|gamma|beta)": "the masked-language-model head, as above",
    r"(classifier|qa_outputs)\.(weight|bias)": "the head of a classifier or of question answering, which this architecture does not have",
}
NO_POOLER = {r"pooler\.dense\.(weight|bias)": "a masked language model has no pooler"}


def block(g: GraphBuilder, t: parts.Tensors, i: int, x: ir.Value, c: Config, bias: ir.Value) -> ir.Value:
    """One layer: (B, S, E) -> (B, S, E)."""
    name, hidden, inner, eps = f"encoder.layer.{i}", c.hidden_size, c.intermediate_size, c.layer_norm_eps
    y = parts.attention(g, t, f"{name}.attention.self", x, c, bias)
    y = parts.linear(g, t, f"{name}.attention.output.dense", y, hidden, hidden)
    with g.scope(f"{t.module}{name}.attention.output"):
        y = g.op("Add", y, x)
    x = parts.layer_norm(g, t, f"{name}.attention.output.LayerNorm", y, hidden, eps)
    y = parts.linear(g, t, f"{name}.intermediate.dense", x, hidden, inner)
    with g.scope(f"{t.module}{name}.intermediate.intermediate_act_fn"):
        y = parts.activation(g, c.hidden_act, y)
    y = parts.linear(g, t, f"{name}.output.dense", y, inner, hidden)
    with g.scope(f"{t.module}{name}.output"):
        y = g.op("Add", y, x)
    return parts.layer_norm(g, t, f"{name}.output.LayerNorm", y, hidden, eps)


def positions(g: GraphBuilder, t: parts.Tensors, ids: ir.Value, most: int) -> ir.Value:
    """0, 1, 2, ... (S,) int64. Cut from a table like upstream's, so that a text beyond the last position does not fit instead of going on."""
    with g.scope(f"{t.module}embeddings"):
        length = g.op("Shape", ids, start=1, end=2)
        return g.op("Slice", g.constant(np.arange(most)), g.constant([0]), length)


def masked_lm_head(g: GraphBuilder, words: parts.Tensors, x: ir.Value, c: Config) -> ir.Value:
    """(B, S, E) -> (B, S, V)."""
    head, name = parts.Tensors(words.weights), "cls.predictions"
    x = parts.linear(g, head, f"{name}.transform.dense", x, c.hidden_size, c.hidden_size)
    with g.scope(f"{name}.transform.transform_act_fn"):
        x = parts.activation(g, c.hidden_act, x)
    x = parts.layer_norm(g, head, f"{name}.transform.LayerNorm", x, c.hidden_size, c.layer_norm_eps)
    return parts.vocabulary_head(g, head, words, name, x, c, c.tie_word_embeddings)


def longest(config: Mapping[str, Any]) -> int:
    """Tokens that a text may have."""
    return int(config["max_position_embeddings"])


def build(config: Mapping[str, Any], w: Weights) -> Graph:
    """The canonical graph of a BertModel or a BertForMaskedLM.

    A BertModel without the pooler's weights has no pooler_output (upstream would invent them).
    raises: UnsupportedModel, CheckpointError; missing and left-over tensors by `w.finish()`, which the caller calls
    """
    c = read_config(Config, config, ignored=parts.IGNORED, special=parts.SPECIAL)
    parts.check(config, c)
    masked_lm, hidden = parts.is_masked_lm(config), c.hidden_size
    t = parts.body(w, BASE, masked_lm)
    t.drop(parts.BUFFERS | (NO_POOLER if masked_lm else {}))
    parts.Tensors(w).drop(NEXT_SENTENCE if masked_lm else HEADS)
    g = GraphBuilder("bert")
    inputs = parts.encoder_inputs(g, c)
    x = parts.embeddings(g, t, c, inputs, positions(g, t, inputs.ids, c.max_position_embeddings))
    for i in range(c.num_hidden_layers):
        x = block(g, t, i, x, c, inputs.bias)
    if masked_lm:
        logits = masked_lm_head(g, t, x, c)
        return parts.finish(g, c, inputs, {"logits": (logits, ("batch", "sequence", c.vocab_size))})
    outputs: parts.Outputs = {"last_hidden_state": (x, ("batch", "sequence", hidden))}
    if "pooler.dense.weight" in t:
        outputs["pooler_output"] = (parts.pooler(g, t, x, hidden), ("batch", hidden))
    outputs |= sentence_embedding(g, w, config, inputs, x, hidden)
    return parts.finish(g, c, inputs, outputs)
