"""AscendQuant, a product of integers and AscendDequant as nodes that onnxruntime has, by the formulas of porting/ascend/vendor_integers.py.

    q = clip(round_half_even(x * scale) + offset, -128, 127)     product of q - offset and the int8 weight in int32     y = float32(sum) * scale

Products are of bytes without a sign, so that no kernel adds two of them in 16 bits. What the formulas leave in float32 is kept there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from porting.ascend.vendor_integers import VendorLayer, attributes, vendor_layers
from porting.backends.cann_simulator.machine import Refused
from porting.backends.cann_simulator.om_graph import CANNOT_LOAD, OmGraph
from porting.errors import InputError

PREFIX = "porting/int8/"
UNSIGNED = 128  # what makes a byte with a sign one without


def has_integer_layers(proto: onnx.ModelProto) -> bool:
    return any(node.op_type in ("AscendQuant", "AscendDequant") for node in proto.graph.node)


def lower_integer_layers(graph: OmGraph) -> frozenset[str]:
    """Replace them. returns: names of nodes that compute in float32 whatever the precision mode. raises: Refused for forms that no document covers"""
    try:
        layers = vendor_layers(graph.proto)
    except (InputError, IndexError) as error:
        raise Refused(CANNOT_LOAD, f"E11010: {str(error)[:300]}") from error
    by_dequant = {layer.dequant.name: layer for layer in layers}
    gone = {layer.quant.name for layer in layers} | {layer.product.name for layer in layers}
    made: list[onnx.NodeProto] = []
    kept: set[str] = set()
    for node in graph.proto.graph.node:
        if node.name in by_dequant:
            nodes, in_float = _lowered(graph, by_dequant[node.name])
            made += nodes
            kept |= in_float
        elif node.name not in gone:
            made.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in made]
    del graph.proto.graph.node[:]
    graph.proto.graph.node.extend(copies)
    return frozenset(kept)


def _lowered(graph: OmGraph, layer: VendorLayer) -> tuple[list[onnx.NodeProto], set[str]]:
    said = attributes(layer.quant)
    if said.get("dst_type") != b"INT8" or said.get("sqrt_mode") or said.get("round_mode", b"Round") != b"Round":
        raise Refused(CANNOT_LOAD, f"E11010: AscendQuant {layer.quant.name[:200]!r} is in a form that is not simulated")
    steps = _Steps(graph, f"{PREFIX}{layer.name}")
    zero = UNSIGNED + int(said["offset"])
    scaled = steps.add("Mul", [layer.quant.input[0], steps.number(np.float32(said["scale"]))])
    near = steps.add("Round", [scaled])
    moved = steps.add("Add", [near, steps.number(np.float32(zero))])
    held = steps.add("Clip", [moved, steps.number(np.float32(0)), steps.number(np.float32(255))])
    codes = steps.add("Cast", [held], to=TensorProto.UINT8)
    total = _product(steps, layer, codes, zero)
    real = steps.add("Cast", [total], to=TensorProto.FLOAT)
    output = layer.dequant.output[0]
    found = steps.add("Mul", [real, steps.number(_scale(graph, layer))])
    in_float = {node.name for node in steps.nodes}
    steps.add("Sum", [found], output)  # where the layer stores: its own node, so that it rounds
    return steps.nodes, in_float


def _product(steps: _Steps, layer: VendorLayer, codes: str, zero: int) -> str:
    product, said = layer.product, attributes(layer.product)
    weight = steps.array(product.input[1])
    if weight.dtype != np.int8:
        raise Refused(CANNOT_LOAD, f"E11010: the weight of {product.name[:200]!r} is not int8")
    inputs = [
        codes,
        steps.number(weight.astype(np.int16).__add__(UNSIGNED).astype(np.uint8), f"{product.input[1]}/unsigned"),
        steps.number(np.uint8(zero)),
        steps.number(np.uint8(UNSIGNED)),
    ]
    if product.op_type == "Conv":
        told = {k: v for k, v in said.items() if k in ("pads", "strides", "dilations", "group", "kernel_shape")}
        if said.get("auto_pad", b"NOTSET") != b"NOTSET":
            raise Refused(CANNOT_LOAD, f"E11010: {product.name[:200]!r}: auto_pad of a product of integers is not simulated")
        total = steps.add("ConvInteger", inputs, **told)
    elif product.op_type in ("MatMul", "Gemm"):
        if said.get("transA") or said.get("transB") or said.get("alpha", 1) != 1 or said.get("beta", 1) != 1:
            raise Refused(CANNOT_LOAD, f"E11010: {product.name[:200]!r}: attributes of a product that are not simulated")
        total = steps.add("MatMulInteger", inputs)
    else:
        raise Refused(CANNOT_LOAD, f"E11010: no product of integers is known of {product.op_type}")
    if len(product.input) > 2 and product.input[2]:
        bias = steps.array(product.input[2])
        total = steps.add("Add", [total, steps.number(bias.reshape(_along(product, bias, weight)))])
    return total


def _scale(graph: OmGraph, layer: VendorLayer) -> np.ndarray:
    """AscendDequant's parameter: a float32 in the low half of each number."""
    tensor = next((t for t in graph.proto.graph.initializer if t.name == layer.dequant.input[1]), None)
    parameter = None if tensor is None else graph.array(tensor)
    if parameter is None or parameter.dtype != np.uint64:
        raise Refused(CANNOT_LOAD, f"E11010: the parameter of {layer.dequant.name[:200]!r} is no constant of uint64")
    scale = (parameter & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
    if scale.size == 1:
        return scale.reshape(())
    rank = graph.array(next(t for t in graph.proto.graph.initializer if t.name == layer.product.input[1])).ndim
    return scale.reshape([-1, *[1] * (rank - 2)] if layer.product.op_type == "Conv" else [-1])


def _along(product: onnx.NodeProto, bias: np.ndarray, weight: np.ndarray) -> list[int]:
    return [-1, *[1] * (weight.ndim - 2)] if product.op_type == "Conv" else [-1]


class _Steps:
    """Nodes that take the place of a layer, and their numbers."""

    def __init__(self, graph: OmGraph, name: str) -> None:
        self._graph, self._name = graph, name
        self.nodes: list[onnx.NodeProto] = []

    def add(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        name = f"{self._name}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output or name], name=name, **attributes))
        return output or name

    def array(self, name: str) -> np.ndarray:
        tensor = next((t for t in self._graph.proto.graph.initializer if t.name == name), None)
        if tensor is None:
            raise Refused(CANNOT_LOAD, f"E11010: {name[:200]!r} is no constant, and a product of integers needs one")
        return self._graph.array(tensor)

    def number(self, value: np.ndarray | np.generic, name: str = "") -> str:
        array = np.asarray(value)
        name = name or f"{self._name}/number{len(self._graph.proto.graph.initializer)}"
        if all(tensor.name != name for tensor in self._graph.proto.graph.initializer):
            self._graph.proto.graph.initializer.append(numpy_helper.from_array(array, name))
        return name
