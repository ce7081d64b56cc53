"""From the last hidden state of an encoder to one vector per text, as a sentence-transformers folder describes it.

Source: sentence-transformers 5, models/Pooling.py, Dense.py, Normalize.py. Letters in the shape comments: B batch, S positions, E hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

import onnx_ir as ir

from porting.errors import CheckpointError

from ..accounting import Weights
from ..checkpoints.sentence_transformers import ACTIVATIONS, POOLINGS, SENTENCE
from ..graph_builder import GraphBuilder
from .encoder_parts import Inputs, Outputs, activation

OUTPUT = "sentence_embedding"
LEAST_COUNT = 1e-9  # a text without a token has the embedding 0, not NaN
LEAST_NORM = 1e-12  # torch.nn.functional.normalize
LEAST_MAXIMUM = -1e9  # what a padded position counts as in a maximum


def sentence_embedding(
    g: GraphBuilder, weights: Weights, config: Mapping[str, Any], inputs: Inputs, x: ir.Value, hidden: int
) -> Outputs:
    """The output that the folder describes, (B, size) float32; none where it describes none.

    x:      (B, S, E), the last hidden state
    raises: CheckpointError for a description that no sentence-transformers folder gave
    """
    wanted = config.get(SENTENCE)
    if wanted is None:
        return {}
    require_description(wanted)
    with g.scope("sentence.pooling"):
        y = pool(g, wanted["pooling"], x, inputs.mask)
    size = hidden
    for step in wanted["steps"]:
        with g.scope(f"sentence.{step['name']}"):
            if step["kind"] == "normalize":
                norm = g.op("ReduceL2", y, g.constant([1]), keepdims=1)
                y = g.op("Div", y, g.op("Max", norm, g.constant(LEAST_NORM, "float32")))
            else:
                y = dense(g, weights, step, y, size)
                size = step["out_features"]
    return {OUTPUT: (y, ("batch", size))}


def dense(g: GraphBuilder, weights: Weights, step: Mapping[str, Any], x: ir.Value, n_in: int) -> ir.Value:
    """A linear layer and its activation: (B, n_in) -> (B, out_features)."""
    name, n_out = f"{step['name']}.linear", step["out_features"]
    w = g.weight(weights.take(f"{name}.weight", (n_out, n_in)))
    y = g.op("MatMul", x, g.op("Transpose", w, perm=[1, 0]))
    if step["bias"]:
        y = g.op("Add", y, g.weight(weights.take(f"{name}.bias", (n_out,))))
    return y if step["activation"] == "identity" else activation(g, step["activation"], y)


def pool(g: GraphBuilder, how: str, x: ir.Value, mask: ir.Value) -> ir.Value:
    """One vector per text. how: "cls", "mean", "mean_sqrt_len" or "max"; (B, S, E), (B, S) float32 -> (B, E)."""
    if how == "cls":
        return g.op("Gather", x, g.constant(0), axis=1)
    if how == "max":
        shown = g.op("Cast", g.op("Unsqueeze", mask, g.constant([2])), to=ir.DataType.BOOL)  # (B, S, 1)
        return g.op("ReduceMax", g.op("Where", shown, x, g.constant(LEAST_MAXIMUM, "float32")), g.constant([1]), keepdims=0)
    row = g.op("Unsqueeze", mask, g.constant([1]))  # (B, 1, S)
    total = g.op("Squeeze", g.op("MatMul", row, x), g.constant([1]))  # (B, 1, S) @ (B, S, E) -> (B, E)
    count = g.op("Max", g.op("ReduceSum", mask, g.constant([1]), keepdims=1), g.constant(LEAST_COUNT, "float32"))  # (B, 1)
    return g.op("Div", total, count if how == "mean" else g.op("Sqrt", count))


def require_description(given: Any) -> None:
    """Hold what stands in a config under "sentence_transformers" against what the reader of such folders writes there.

    A config.json or a port.json may hold anything under that name. raises: CheckpointError
    """

    def fits(step: Any) -> bool:
        if not isinstance(step, dict) or not isinstance(step.get("name"), str):
            return False
        size = step.get("out_features")
        is_dense = type(size) is int and 0 < size < 2**31 and type(step.get("bias")) is bool
        return step.get("kind") == "normalize" or (
            step.get("kind") == "dense" and is_dense and step.get("activation") in ACTIVATIONS.values()
        )

    covered = [ours for _, ours in POOLINGS.values() if ours]
    steps = given.get("steps") if isinstance(given, dict) else None
    if not isinstance(steps, list) or given.get("pooling") not in covered or not all(map(fits, steps)):
        raise CheckpointError(
            f"{SENTENCE} should describe pooling and steps, got {short(given)}",
            where="config",
            next="the key belongs to folders with a modules.json; remove it from config.json",
        )
