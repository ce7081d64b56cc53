"""Running a graph as it stands in onnxruntime, and comparing outputs to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import parser

from porting.converters.passes.rewriting import bodies_of
from porting.types import Graph
from porting.weights import stream_of


def whole(graph: Graph) -> bytes:
    """The graph as one message, streamed weights inside."""
    model = graph.model.clone()
    for body in bodies_of(model):
        for value in body.initializers.values():
            if value.const_value is not None and stream_of(value.const_value) is not None:
                value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def written(text: str, opset: int, ir_version: int = 8, contrib: bool = False, **weights: np.ndarray) -> Graph:
    """A graph from ONNX's text form, every node named after what it is and where it stands. An output without dimensions has no rank.

    text:    "(float[N, 3] x) => (float y) { y = Relu(x) }"
    weights: initializers of the main graph
    """
    imports = f'"" : {opset}' + (', "com.microsoft" : 1' if contrib else "")
    proto = parser.parse_model(f"<ir_version: {ir_version}, opset_import: [{imports}]>\ntest {text}")
    for value in proto.graph.output:
        if not value.type.tensor_type.shape.dim:
            value.type.tensor_type.ClearField("shape")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return named(ir.serde.deserialize_model(proto))


def named(model: ir.Model) -> Graph:
    """Names for nodes without one, as the reader of files gives them."""
    for number, node in enumerate(n for body in bodies_of(model) for n in body):
        node.name = node.name or f"{node.op_type}_{number}"
    return Graph(model)


def run(model: bytes, feeds: Mapping[str, Any], optimised: bool = False) -> list[Any]:
    """Outputs in onnxruntime, without optimisations unless asked for, so that each operator runs as it is written."""
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {n: v for n, v in feeds.items() if n in {i.name for i in session.get_inputs()}})


def same_bits(got: Any, wanted: Any) -> bool:
    """Arrays, lists of them (sequences) and None (an empty optional); strings by their text."""
    if isinstance(wanted, list):
        return (
            isinstance(got, list) and len(got) == len(wanted) and all(same_bits(g, w) for g, w in zip(got, wanted, strict=True))
        )
    if got is None or wanted is None:
        return got is None and wanted is None
    got, wanted = np.asarray(got), np.asarray(wanted)
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    return bool(np.all(got == wanted)) if wanted.dtype.kind in "OSU" else got.tobytes() == wanted.tobytes()


def difference(got: list[Any], wanted: list[Any]) -> str:
    """A line for the report; "" when all bits are the same."""
    parts = []
    for g, w in zip(got, wanted, strict=True):
        if same_bits(g, w):
            continue
        if isinstance(w, np.ndarray) and g.shape == w.shape and g.dtype == w.dtype and w.dtype.kind not in "OSU":
            parts.append(
                f"{w.dtype}{list(w.shape)} off by {np.nanmax(np.abs(g.astype(np.float64) - w.astype(np.float64))):.3g}"
            )
        else:
            parts.append(f"{g!r:.80} for {w!r:.80}")
    return "; ".join(parts)
