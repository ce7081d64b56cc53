"""What the deploy graph says that a layer computes: AscendQuant, a product of integers and AscendDequant, by the formulas of int8_numbers.py.

Written apart from the passes, on whole numbers in float64, whose sums are exact below 2**53. It reads nodes and initializers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from porting.ascend.graph_at_hand import AtHand
from porting.errors import InputError

EXACT = 2**53


@dataclass(frozen=True, eq=False)
class VendorLayer:
    """
    input, output: values of the graph: what is quantised, and what a layer in float reads again
    """

    name: str
    input: str
    output: str
    quant: onnx.NodeProto
    product: onnx.NodeProto
    dequant: onnx.NodeProto
    ratio: str | None


def vendor_layers(model: onnx.ModelProto) -> list[VendorLayer]:
    """In order. raises: InputError for an AscendDequant that is not behind a product of what AscendQuant made"""
    return list(_layers(model.graph))


def _layers(graph: onnx.GraphProto) -> Iterator[VendorLayer]:
    made = {output: node for node in graph.node for output in node.output}
    first_reader = {name: node for node in reversed(graph.node) for name in node.input}
    for node in graph.node:
        if node.op_type != "AscendDequant":
            continue
        product = made.get(node.input[0])
        quant = made.get(product.input[0]) if product is not None else None
        if product is None or quant is None or quant.op_type != "AscendQuant":
            raise InputError("AscendDequant without AscendQuant and a product before it", where=node.name)
        # a value that kept its own name is not the layer's output, which has that of the float graph: what is left to multiply by comes then
        scaled = first_reader[node.output[0]] if node.output[0] == f"{node.name}.out" else None
        output = node.output[0] if scaled is None else scaled.output[0]
        ratio = None if scaled is None else scaled.input[1]
        yield VendorLayer(product.name.rpartition("/")[0], quant.input[0], output, quant, product, node, ratio)


def computed(layer: VendorLayer, source: AtHand, x: np.ndarray) -> np.ndarray:
    """What the layer gives for its input, float32. raises: InputError for a form that is not documented, or sums that are not exact"""
    tensors = {tensor.name: tensor for tensor in source.model.graph.initializer}

    def constant(name: str) -> np.ndarray:
        return np.asarray(source.array(tensors[name]))

    said = attributes(layer.quant)
    if said.get("dst_type") != b"INT8" or said.get("sqrt_mode") or said.get("round_mode", b"Round") != b"Round":
        raise InputError("AscendQuant in a form that is not covered", where=layer.quant.name)
    q = np.clip(np.rint(x * np.float32(said["scale"])) + said["offset"], -128, 127).astype(np.int64)
    weight = constant(layer.product.input[1]).astype(np.int64)
    moved = q - int(said["offset"])
    operator = {"Conv": _conv, "Gemm": _matmul, "MatMul": _matmul}[layer.product.op_type]
    total = operator(moved, weight, attributes(layer.product))
    channels_last = layer.product.op_type != "Conv"
    along = [-1] if channels_last else [1, -1, *[1] * (x.ndim - 2)]
    if len(layer.product.input) > 2:
        total = total + constant(layer.product.input[2]).astype(np.int64).reshape(along)
    if total.size and np.abs(total).max() > np.iinfo(np.int32).max:
        raise InputError("sums leave int32", where=layer.name)
    scale = (constant(layer.dequant.input[1]) & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
    y = total.astype(np.int32).astype(np.float32) * (scale.reshape(along) if scale.size > 1 else scale[0])
    return y if layer.ratio is None else y * constant(layer.ratio)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _matmul(x: np.ndarray, weight: np.ndarray, said: Mapping[str, Any]) -> np.ndarray:
    if said.get("transA") or said.get("transB") or said.get("alpha", 1) != 1 or said.get("beta", 1) != 1:
        raise InputError("a product of integers with attributes that are not covered", where="AscendDequant")
    return _product(x, weight)


def _product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    if x.shape[-1] * 255 * 128 >= EXACT:
        raise InputError("sums that are not exact", where="AscendDequant")
    return (x.astype(np.float64) @ weight.astype(np.float64)).astype(np.int64)


def _conv(x: np.ndarray, weight: np.ndarray, said: Mapping[str, Any]) -> np.ndarray:
    """x: (N, C, ...), padded with what is worth zero; weight: (M, C / group, ...)"""
    rank, group = x.ndim - 2, int(said.get("group", 1))
    if said.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise InputError("a Conv with auto_pad", where="AscendDequant")
    pads, strides = said.get("pads") or [0] * 2 * rank, said.get("strides") or [1] * rank
    dilations: Sequence[int] = said.get("dilations") or [1] * rank
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    reach = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, x.ndim)))
    at = (slice(None), slice(None), *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
    windows = windows[at]  # (N, C, places..., window...)
    places, per_group = windows.shape[2 : 2 + rank], weight.shape[0] // group
    found = []
    for number in range(group):
        own = windows[:, number * weight.shape[1] : (number + 1) * weight.shape[1]]
        rows = np.moveaxis(own, 1, 1 + rank).reshape(len(x), int(np.prod(places)), -1)  # (N, places, C / group * window)
        columns = weight[number * per_group : (number + 1) * per_group].reshape(per_group, -1).T
        found.append(np.moveaxis(_product(rows, columns), -1, 1).reshape(len(x), per_group, *places))
    return np.concatenate(found, 1)
