"""Runs a deploy graph node by node: the vendor's nodes by their documented formulas, all others by ONNX's reference implementation.

Shares nothing with the passes and with porting/ascend/vendor_integers.py: sums are torch's, in float64, where they are exact.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator

from porting.types import Graph
from tests.graph_bits import whole


def run_deploy(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every value of the graph, by name."""
    model = onnx.load_from_string(whole(graph))
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer} | dict(feeds)
    offsets: dict[str, int] = {}
    for node in model.graph.node:
        given = [values[name] for name in node.input]
        said = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "AscendQuant":
            assert node.domain == "" and said["dst_type"] == b"INT8" and set(said) == {"scale", "offset", "dst_type"}
            scaled = np.rint(given[0] * np.float32(said["scale"]))
            result = np.clip(scaled + np.float32(said["offset"]), -128, 127).astype(np.int8)
            offsets[node.output[0]] = int(said["offset"])
        elif node.op_type == "AscendDequant":
            assert node.domain == "" and said == {"dtype": 0} and given[0].dtype == np.int32
            result = _dequantised(*given)
        elif given[0].dtype == np.int8:
            assert given[1].dtype == np.int8 and all(bias.dtype == np.int32 for bias in given[2:])
            result = _product(node.op_type, given, offsets[node.input[0]], said)
        else:
            result = ReferenceEvaluator(_alone(node, model), opsets={"": model.opset_import[0].version}).run(
                None, dict(zip(node.input, given, strict=True))
            )[0]
        values[node.output[0]] = result
    return values


def _dequantised(sums: np.ndarray, parameter: np.ndarray) -> np.ndarray:
    """Low 32 bits: the scale; the rest has to be zero."""
    assert parameter.dtype == np.uint64 and not (parameter >> np.uint64(32)).any()
    scale = np.frombuffer(parameter.astype("<u8").tobytes(), "<f4")[::2]
    if scale.size > 1:
        scale = scale.reshape([1, -1] + [1] * (sums.ndim - 2))
    return sums.astype(np.float32) * scale


def _product(kind: str, given: list[np.ndarray], offset: int, said: Mapping[str, object]) -> np.ndarray:
    x, weight = (torch.from_numpy(a.astype(np.float64)) for a in given[:2])
    x = x - offset
    if kind == "Conv":
        rank = x.ndim - 2
        pads = said.get("pads", [0] * 2 * rank)
        around = [pads[i + side * rank] for i in reversed(range(rank)) for side in (0, 1)]
        total = getattr(torch.nn.functional, f"conv{rank}d")(
            torch.nn.functional.pad(x, around),
            weight,
            stride=said.get("strides", 1),
            dilation=said.get("dilations", 1),
            groups=said.get("group", 1),
        ).numpy()
        along = [1, -1] + [1] * rank
    else:
        assert not {"transA", "transB", "alpha", "beta"} & {name for name, value in said.items() if value}
        total, along = (x @ weight).numpy(), [-1]
    if len(given) > 2:
        total = total + given[2].astype(np.float64).reshape(along)
    assert np.abs(total).max(initial=0) < 2**31
    return total.astype(np.int32)


def _alone(node: onnx.NodeProto, model: onnx.ModelProto) -> onnx.GraphProto:
    return onnx.helper.make_graph(
        [node],
        "node",
        [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(node.input) if name],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
