"""RoBERTa: BERT's layers; positions count the tokens that are no padding, from behind the padding's own id on.

Paper: arXiv 1907.11692. Reference: transformers 5.23, models/roberta/modeling_roberta.py.
Checkpoints: Hugging Face folders, with or without a head; sentence-transformers folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from porting.errors import CheckpointError
from porting.types import Graph

from ..accounting import Weights
from ..config import read_config, require_count
from ..graph_builder import GraphBuilder
from . import encoder_parts as parts
from .sentence_parts import sentence_embedding

KIND = "encoder"
BASE = "roberta."
HEAD = "lm_head.decoder.weight"  # of a masked language model whose head is not tied


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


PADDING = 1  # upstream's pad_token_id where a config has none
HEADS = {  # of a RobertaModel's checkpoint that was written from a model with a head
    r"lm_head\.(bias|(dense|layer_norm)\.(weight|bias)|decoder\.(weight|bias))": (
        "the masked-language-model head, which this architecture does not have"
    ),
    r"(classifier|qa_outputs)\.((dense|out_proj)\.)?(weight|bias)": (
        "the head of a classifier or of question answering, which this architecture does not have"
    ),
}
NO_POOLER = {r"pooler\.dense\.(weight|bias)": "a masked language model has no pooler"}


def block(g: GraphBuilder, t: parts.Tensors, i: int, x: ir.Value, c: Config, bias: ir.Value) -> ir.Value:
    """One layer, as BERT's: (B, S, E) -> (B, S, E)."""
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


def padding_of(config: Mapping[str, Any], c: Config) -> int:
    """The id that padding has. raises: CheckpointError when it is none, or leaves no position for a token"""
    padding = config.get("pad_token_id", PADDING)
    require_count("pad_token_id", padding, least=0)
    if padding >= c.vocab_size or padding + 1 >= c.max_position_embeddings:
        raise CheckpointError(
            f"pad_token_id {padding} leaves no room: {c.vocab_size} ids and {c.max_position_embeddings} positions",
            where="config.json",
        )
    return int(padding)


def positions(g: GraphBuilder, t: parts.Tensors, ids: ir.Value, padding: int) -> ir.Value:
    """(B, S) int64: padding + 1, padding + 2, ... for the tokens of a row, wherever they stand, and `padding` for padding.

    A row of more than max_position_embeddings - padding - 1 tokens looks beyond the table, which the session refuses.
    """
    with g.scope(f"{t.module}embeddings"):
        same = g.op("Equal", ids, g.constant(padding))
        token = g.op("Cast", g.op("Not", same), to=ir.DataType.INT64)
        count = g.op("Mul", g.op("CumSum", token, g.constant(1)), token)
        return g.op("Add", count, g.constant(padding))


def masked_lm_head(g: GraphBuilder, words: parts.Tensors, x: ir.Value, c: Config) -> ir.Value:
    """(B, S, E) -> (B, S, V). The activation is GELU whatever hidden_act says (upstream, RobertaLMHead)."""
    head, name = parts.Tensors(words.weights), "lm_head"
    x = parts.linear(g, head, f"{name}.dense", x, c.hidden_size, c.hidden_size)
    with g.scope(name):
        x = parts.activation(g, "gelu", x)
    x = parts.layer_norm(g, head, f"{name}.layer_norm", x, c.hidden_size, c.layer_norm_eps)
    return parts.vocabulary_head(g, head, words, name, x, c, c.tie_word_embeddings)


def longest(config: Mapping[str, Any]) -> int:
    """Tokens that a text may have: positions begin behind the padding's."""
    return int(config["max_position_embeddings"]) - int(config.get("pad_token_id", PADDING)) - 1


def build(config: Mapping[str, Any], w: Weights) -> Graph:
    """The canonical graph of a RobertaModel or a RobertaForMaskedLM, and of those of XLM-RoBERTa.

    A RobertaModel without the pooler's weights has no pooler_output (upstream would invent them).
    raises: UnsupportedModel, CheckpointError; missing and left-over tensors by `w.finish()`, which the caller calls
    """
    c = read_config(Config, config, ignored=parts.IGNORED, special=parts.SPECIAL)
    parts.check(config, c)
    masked_lm, hidden, padding = parts.is_masked_lm(config), c.hidden_size, padding_of(config, c)
    t = parts.body(w, BASE, masked_lm)
    t.drop(parts.BUFFERS | (NO_POOLER if masked_lm else {}))
    if not masked_lm:
        parts.Tensors(w).drop(HEADS)
    g = GraphBuilder("roberta")
    inputs = parts.encoder_inputs(g, c)
    x = parts.embeddings(g, t, c, inputs, positions(g, t, inputs.ids, padding))
    for i in range(c.num_hidden_layers):
        x = block(g, t, i, x, c, inputs.bias)
    if masked_lm:
        logits = masked_lm_head(g, t, x, c)
        return parts.finish(g, c, inputs, {"logits": (logits, ("batch", "sequence", c.vocab_size))}, padding)
    outputs: parts.Outputs = {"last_hidden_state": (x, ("batch", "sequence", hidden))}
    if "pooler.dense.weight" in t:
        outputs["pooler_output"] = (parts.pooler(g, t, x, hidden), ("batch", hidden))
    outputs |= sentence_embedding(g, w, config, inputs, x, hidden)
    return parts.finish(g, c, inputs, outputs, padding)
