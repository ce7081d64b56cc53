"""Leaf functions of post-norm encoders with absolute positions (BERT and what follows it). Each is one upstream module, standard ONNX only.

Letters in the shape comments: B batch, S positions, E hidden.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from porting.errors import CheckpointError, UnsupportedModel, nearest
from porting.types import Graph, Limit, StateSpec

from ..accounting import Weights, same_values
from ..checkpoints.sentence_transformers import SENTENCE
from ..graph_builder import GraphBuilder
from .decoder_parts import MOST_HEAD_DIM, MOST_LAYERS, require_off

# Keys of an encoder's config.json that have no effect on the maths of inference.
IGNORED = {
    "attention_probs_dropout_prob": "training only",
    "hidden_dropout_prob": "training only",
    "classifier_dropout": "training only",
    "gradient_checkpointing": "training only",
    "chunk_size_feed_forward": "cuts the work, the result is the same",
    "cls_token_id": "tokens",
    "mask_token_id": "tokens",
    "output_past": "of decoders",
    "xla_device": "runtime only",
    "_num_labels": "of a head that is not there",
    "num_labels": "of a head that is not there",
    "directionality": "of the first TensorFlow release; no upstream reads it",
    "pooler_fc_size": "of the first TensorFlow release; no upstream reads it",
    "pooler_num_attention_heads": "of the first TensorFlow release; no upstream reads it",
    "pooler_num_fc_layers": "of the first TensorFlow release; no upstream reads it",
    "pooler_size_per_head": "of the first TensorFlow release; no upstream reads it",
    "pooler_type": "of the first TensorFlow release; no upstream reads it",
}
SPECIAL = ("is_decoder", "position_embedding_type", "pad_token_id", SENTENCE)  # read by `check` and by the architectures
BUFFERS = {r"embeddings\.(position_ids|token_type_ids)": "a buffer that counts from 0, or holds zeros"}
ACTIVATIONS = ("gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")
# Added to the scores of what may not be seen: it swallows every score, so that a row in which nothing may be seen looks at everything alike
# and stays finite, as with the lowest float32 that transformers adds (5.23, masking_utils.py, eager_mask). Half of that, because
# onnxruntime 1.31 has zeros for a row of the lowest.
UNSEEN = float(np.finfo(np.float32).min / 2)

Outputs = dict[str, tuple[ir.Value, tuple[int | str, ...]]]  # name -> (value, shape), all float32


class EncoderConfig(Protocol):
    """What every encoder here says in its config."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def type_vocab_size(self) -> int: ...
    @property
    def hidden_act(self) -> str: ...
    @property
    def layer_norm_eps(self) -> float: ...


def check(config: Mapping[str, Any], c: EncoderConfig) -> None:
    """Refuse what would change the maths. raises: CheckpointError, UnsupportedModel"""
    require_off(config, "is_decoder")
    kind = config.get("position_embedding_type")
    if kind not in (None, "absolute"):
        raise UnsupportedModel(
            f"position_embedding_type={kind!r} is not covered",
            where="config.json",
            next="covered: absolute; upstream has dropped others",
        )
    if c.hidden_size % c.num_attention_heads:
        raise CheckpointError(
            f"hidden_size {c.hidden_size} is not a multiple of num_attention_heads {c.num_attention_heads}", where="config.json"
        )
    for key, value, most in (
        ("num_hidden_layers", c.num_hidden_layers, MOST_LAYERS),
        ("hidden_size / num_attention_heads", c.hidden_size // c.num_attention_heads, MOST_HEAD_DIM),
    ):
        if value > most:
            raise CheckpointError(f"{key} is {value}; no model is near that, at most {most} is taken", where="config.json")
    require_activation(c.hidden_act)


def require_activation(name: str) -> None:
    """raises: UnsupportedModel"""
    if name not in ACTIVATIONS:
        raise UnsupportedModel(
            f"hidden_act {name!r} is not covered", where="config.json", next=nearest(name, list(ACTIVATIONS))
        )


def is_masked_lm(config: Mapping[str, Any]) -> bool:
    """Whether the architecture that config.json names ends in a masked-language-model head."""
    return str(config["architectures"][0]).endswith("ForMaskedLM")


# --- names -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensors:
    """The tensors below one upstream module, however this checkpoint's age spells them.

    stored: how their names begin in the checkpoint, "bert." or ""
    module: how upstream's modules are named in this architecture, "bert." in a BertForMaskedLM and "" in a BertModel
    """

    weights: Weights
    stored: str = ""
    module: str = ""

    def take(self, name: str, shape: tuple[int, ...]) -> Any:
        """The stream of tensor `name`, float32."""
        return self.weights.take(self.stored + name, shape)

    def __contains__(self, name: str) -> bool:
        return self.stored + name in self.weights

    def drop(self, patterns: Mapping[str, str]) -> None:
        """Leave out what is there of regular expression -> reason."""
        for name in self.weights.checkpoint.tensors:
            for pattern, reason in patterns.items():
                if name.startswith(self.stored) and re.fullmatch(pattern, name.removeprefix(self.stored)):
                    self.weights.drop(name, reason)


def body(weights: Weights, base: str, masked_lm: bool) -> Tensors:
    """The encoder itself. A checkpoint written from a model with a head begins its names with `base` ("bert."), one written from the bare
    encoder does not, and upstream loads either into either."""
    stored = base if any(name.startswith(base) for name in weights.checkpoint.tensors) else ""
    return Tensors(weights, stored, base if masked_lm else "")


# --- modules -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """What goes in, and what every layer derives from it once.

    ids:   (B, S) int64
    mask:  (B, S) float32, 1 for a token and 0 for padding
    types: (B, S) int64; None where the model has one type of token only
    bias:  (B, 1, S, S) float32, added to the scores
    """

    ids: ir.Value
    mask: ir.Value
    types: ir.Value | None
    bias: ir.Value


def encoder_inputs(g: GraphBuilder, c: EncoderConfig) -> Inputs:
    """Declare input_ids, attention_mask and, where it has a meaning, token_type_ids.

    A row whose mask is all 0 looks at every position alike, padding too: what transformers' eager attention gives. Its sdpa attention gives
    other numbers there; neither means anything, and `porting embed` feeds no such row.
    """
    ids = g.input("input_ids", "int64", ("batch", "sequence"))
    given = g.input("attention_mask", "int64", ("batch", "sequence"))
    types = g.input("token_type_ids", "int64", ("batch", "sequence")) if c.type_vocab_size > 1 else None
    with g.scope("mask"):
        mask = g.op("Cast", given, to=ir.DataType.FLOAT)
        hidden = g.op("Sub", g.constant(1, "float32"), mask)
        scores = g.op("Mul", hidden, g.constant(UNSEEN, "float32"))
        row = g.op("Unsqueeze", scores, g.constant([1, 2]))  # (B, S) -> (B, 1, 1, S)
        one = g.constant([1])
        every = g.op("Concat", one, one, g.op("Shape", ids, start=1, end=2), one, axis=0)
        bias = g.op("Expand", row, every)  # onnxruntime's Attention does not repeat it for every query by itself
    return Inputs(ids, mask, types, bias)


def linear(g: GraphBuilder, t: Tensors, name: str, x: ir.Value, n_in: int, n_out: int) -> ir.Value:
    """x @ W^T + b with W (n_out, n_in) as stored: (..., n_in) -> (..., n_out)."""
    with g.scope(t.module + name):
        w = g.weight(t.take(f"{name}.weight", (n_out, n_in)))
        y = g.op("MatMul", x, g.op("Transpose", w, perm=[1, 0]))
        return g.op("Add", y, g.weight(t.take(f"{name}.bias", (n_out,))))


def layer_norm(g: GraphBuilder, t: Tensors, name: str, x: ir.Value, size: int, eps: float) -> ir.Value:
    """Layer normalisation over the last axis (arXiv 1607.06450). Checkpoints that came from TensorFlow say gamma and beta."""
    scale, shift = ("gamma", "beta") if f"{name}.gamma" in t else ("weight", "bias")
    with g.scope(t.module + name):
        w, b = (g.weight(t.take(f"{name}.{kind}", (size,))) for kind in (scale, shift))
        return g.op("LayerNormalization", x, w, b, axis=-1, epsilon=eps)


def activation(g: GraphBuilder, name: str, x: ir.Value) -> ir.Value:
    """One of ACTIVATIONS. Source: transformers 5.23, activations.py, ACT2FN; the tanh forms of GELU are one formula."""
    if name in ("gelu", "gelu_python"):
        return g.op("Gelu", x)
    if name.startswith("gelu"):
        return g.op("Gelu", x, approximate="tanh")
    if name in ("silu", "swish"):
        return g.op("Mul", x, g.op("Sigmoid", x))
    return g.op({"relu": "Relu", "tanh": "Tanh"}[name], x)


def embeddings(g: GraphBuilder, t: Tensors, c: EncoderConfig, inputs: Inputs, positions: ir.Value) -> ir.Value:
    """Words, types and positions, summed and normalised.

    positions: (S,) or (B, S) int64
    returns:   (B, S, E)
    """
    name, hidden = "embeddings", c.hidden_size

    def table(kind: str, rows: int, indices: ir.Value) -> ir.Value:
        with g.scope(f"{t.module}{name}.{kind}"):
            return g.op("Gather", g.weight(t.take(f"{name}.{kind}.weight", (rows, hidden))), indices, axis=0)

    words = table("word_embeddings", c.vocab_size, inputs.ids)
    types = table("token_type_embeddings", c.type_vocab_size, inputs.types or g.constant(0))
    places = table("position_embeddings", c.max_position_embeddings, positions)
    with g.scope(t.module + name):
        x = g.op("Add", g.op("Add", words, types, name="add_types"), places, name="add_positions")
    return layer_norm(g, t, f"{name}.LayerNorm", x, hidden, c.layer_norm_eps)


def attention(g: GraphBuilder, t: Tensors, name: str, x: ir.Value, c: EncoderConfig, bias: ir.Value) -> ir.Value:
    """Every position looks at every other that the mask shows, without the projection behind it: (B, S, E) -> (B, S, E)."""
    hidden, heads = c.hidden_size, c.num_attention_heads
    q, k, v = (linear(g, t, f"{name}.{part}", x, hidden, hidden) for part in ("query", "key", "value"))
    with g.scope(t.module + name):
        return g.op("Attention", q, k, v, bias, q_num_heads=heads, kv_num_heads=heads, scale=(hidden // heads) ** -0.5)


def pooler(g: GraphBuilder, t: Tensors, x: ir.Value, hidden: int) -> ir.Value:
    """The first position through a layer of its own: (B, S, E) -> (B, E)."""
    with g.scope(f"{t.module}pooler"):
        first = g.op("Gather", x, g.constant(0), axis=1)
    y = linear(g, t, "pooler.dense", first, hidden, hidden)
    with g.scope(f"{t.module}pooler.activation"):
        return g.op("Tanh", y)


def vocabulary_head(
    g: GraphBuilder, head: Tensors, words: Tensors, name: str, x: ir.Value, c: EncoderConfig, tied: bool
) -> ir.Value:
    """Logits over the vocabulary: (B, S, E) -> (B, S, V).

    words:  where the word embedding is, whose rows a tied head uses again
    name:   of the head; its bias is called `name`.bias, and again `name`.decoder.bias in some files
    raises: CheckpointError when a file repeats a tensor with other values
    """
    own, copy, bias = f"{name}.decoder.weight", f"{name}.decoder.bias", f"{name}.bias"
    embedding = f"{words.stored}embeddings.word_embeddings.weight"
    if tied:
        _drop_equal(head.weights, own, embedding, "tie_word_embeddings is true")
    if copy in head and (bias not in head or not tied):
        bias, copy = copy, bias
    if tied:
        _drop_equal(head.weights, copy, bias, "one is a copy of the other upstream")
    elif copy in head:
        head.weights.drop(copy, f"upstream reads {bias} where the head is not tied")
    with g.scope(f"{head.module}{name}.decoder"):
        w = g.weight(head.weights.take(embedding if tied else own, (c.vocab_size, c.hidden_size)))
        y = g.op("MatMul", x, g.op("Transpose", w, perm=[1, 0]))
        return g.op("Add", y, g.weight(head.take(bias, (c.vocab_size,))))


def _drop_equal(weights: Weights, name: str, kept: str, why: str) -> None:
    """Leave out a repeated tensor. raises: CheckpointError when it holds other values than `kept`"""
    if name not in weights:
        return
    if kept in weights and not same_values(weights.checkpoint, name, kept):
        raise CheckpointError(
            f"{name} differs from {kept}: {why}",
            where="config.json and weights",
            next="set tie_word_embeddings to false if the head was trained apart",
        )
    weights.drop(name, f"the same values as {kept}")


def finish(g: GraphBuilder, c: EncoderConfig, inputs: Inputs, outputs: Outputs, ignored: int | None = None) -> Graph:
    """Declare the outputs, in order, and what the inputs may hold, how long they may be, and what they are when nobody feeds them.

    ignored: the id of padding where padding has no position of its own; else None
    """
    for name, (value, shape) in outputs.items():
        g.output(value, name, "float32", shape)
    ranges = {"input_ids": (0, c.vocab_size), "attention_mask": (0, 2)}
    defaults = {"attention_mask": 1}
    if inputs.types is not None:
        ranges["token_type_ids"] = (0, c.type_vocab_size)
        defaults["token_type_ids"] = 0
    reason = f"max_position_embeddings {c.max_position_embeddings}"
    if ignored is not None:
        reason += f", the first {ignored + 1} of them for padding"
    most = c.max_position_embeddings - (0 if ignored is None else ignored + 1)
    return g.graph(StateSpec(), defaults, ranges, {"input_ids": Limit(1, most, ignored, reason)})
