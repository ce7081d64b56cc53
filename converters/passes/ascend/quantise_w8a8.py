"""W8A8, two graphs of one table of decisions.

deploy, for ATC      x ─ AscendQuant ─ Conv | Gemm | MatMul (int8 weight, int32 bias) ─ AscendDequant ─ y
reference, for ONNX  x ─ Mul ─ Round ─ Add ─ Clip ─ Cast ─ ConvInteger | MatMulInteger ─ Add ─ Cast ─ Mul ─ y

and behind both, for Gemm and MatMul, a Mul with a number for each channel: see quantisable.py.

The deploy graph is what AMCT writes for ATC (hicann/amct, insert_quant_pass.py, insert_dequant_pass.py, insert_bias_quant_pass.py,
gemm_transb_optimize_pass.py; ATC's parser: ops-nn, ascend_quant_onnx_plugin.cpp and ascend_dequant_onnx_plugin.cpp; read in source):
AscendQuant(scale, offset: floats, dst_type: the text INT8), AscendDequant(x, uint64 parameter; dtype: 0 for float32), both in the domain of ONNX,
attributes of the product as they were. It is no valid ONNX, and nothing here can run it.

The reference computes the same integers. Bytes there are unsigned, with 128 for zero added to both sides: onnxruntime's kernels for uint8 by int8
saturate sums of two products on processors without VNNI, those for uint8 by uint8 do not (onnxruntime, "Quantize ONNX models").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from porting.ascend.int8_numbers import HIGHEST, LOWEST, Product, Step, packed
from porting.types import Graph
from porting.weights import array_stream, tensors_of

from ..infer_shapes import infer_shapes
from ..rewriting import Names, copied, remove_dead
from .making import Maker
from .quantisable import Layer

UNSIGNED = 128  # added to int8
OUTSIDE = 1024  # bytes: from here on a constant lies beside the graph
DROPPED = ("transB", "alpha", "beta")  # of a Gemm, whose weight and bias have them in


@dataclass(frozen=True, eq=False)
class Decision:
    """A layer that is quantised, with all its constants."""

    layer: Layer
    step: Step
    product: Product


def reference_graph(graph: Graph, decisions: Sequence[Decision]) -> Graph:
    """Standard operators that compute the integers of the deploy graph."""
    shared: dict[tuple[str, Step], ir.Value] = {}  # what several layers read is quantised once

    def rewrite(make: Maker, one: Decision) -> ir.Value:
        return _reference_layer(make, one, shared)

    made = _rewritten(graph, decisions, rewrite)
    infer_shapes.change(made.model)
    return made


def deploy_graph(graph: Graph, decisions: Sequence[Decision]) -> Graph:
    """The vendor's operators around products of integers."""
    return _rewritten(graph, decisions, _deploy_layer)


def side_by_side(graph: Graph, decisions: Sequence[Decision]) -> tuple[Graph, dict[str, str]]:
    """The float graph with every layer in integers beside itself, on the same input: what a layer loses by itself.

    returns: the graph, and output of a layer -> name of what its integers give, which nothing reads
    """
    made = copied(graph)
    names, opset = Names(made.model), made.model.graph.opset_imports.get("", 0)
    wanted: Mapping[str, Decision] = {one.layer.name: one for one in decisions}
    shared: dict[tuple[str, Step], ir.Value] = {}
    beside = {}
    for node in list(made.model.graph):
        if str(node.name) in wanted:
            one = wanted[str(node.name)]
            beside[one.layer.output] = str(_reference_layer(Maker(node, names, opset), one, shared).name)
    return made, beside


def _rewritten(graph: Graph, decisions: Sequence[Decision], rewrite: Callable[[Maker, Decision], ir.Value]) -> Graph:
    made = copied(graph)
    names, opset = Names(made.model), made.model.graph.opset_imports.get("", 0)
    wanted: Mapping[str, Decision] = {one.layer.name: one for one in decisions}
    for node in list(made.model.graph):
        if str(node.name) in wanted:
            make = Maker(node, names, opset)
            make.replace_by([rewrite(make, wanted[str(node.name)])])
    remove_dead(made.model)
    return made


def _reference_layer(make: Maker, one: Decision, shared: dict[tuple[str, Step], ir.Value]) -> ir.Value:
    product, rank = one.product, _rank(one)
    place = (str(make.input(0).name), one.step)
    if place not in shared:
        shared[place] = _quantised(make, make.input(0), one.step)
    weight = _constant(make, "weight", (product.weight.astype(np.int16) + UNSIGNED).astype(np.uint8))
    zeros = make.constant(np.array(one.step.offset + UNSIGNED, np.uint8)), make.constant(np.array(UNSIGNED, np.uint8))
    kind = "ConvInteger" if one.layer.op == "Conv" else "MatMulInteger"
    attributes = make.node.attributes.values() if one.layer.op == "Conv" else ()
    total = make(kind, shared[place], weight, *zeros, **{a.name: a for a in attributes})
    if product.bias is not None:
        total = make("Add", total, _constant(make, "bias", _along_channels(product.bias, one, rank)))
    scale = _along_channels(product.deq_scale, one, rank) if not one.layer.one_scale else product.deq_scale.reshape(())
    return _by_ratio(
        make, make("Mul", make("Cast", total, to=int(ir.DataType.FLOAT)), _constant(make, "deq_scale", scale)), one
    )


def _quantised(make: Maker, x: ir.Value, step: Step) -> ir.Value:
    """uint8: the vendor's int8 and 128."""
    scaled = make("Round", make("Mul", x, make.constant(np.array(step.inverse, np.float32))))
    moved = make("Add", scaled, make.constant(np.array(step.offset + UNSIGNED, np.float32)))
    ends = [make.constant(np.array(end + UNSIGNED, np.float32)) for end in (LOWEST, HIGHEST)]
    return make("Cast", make("Clip", moved, *ends), to=int(ir.DataType.UINT8))


def _deploy_layer(make: Maker, one: Decision) -> ir.Value:
    x, product = make.input(0), one.product
    # ATC takes the type as a text; other names of it are read as int8 too
    codes = make("AscendQuant", x, scale=one.step.inverse, offset=float(one.step.offset), dst_type="INT8")
    codes.dtype, codes.shape = ir.DataType.INT8, x.shape
    inputs = [codes, _constant(make, "weight", product.weight)]
    if product.bias is not None:
        inputs.append(_constant(make, "bias", product.bias))
    attributes = {a.name: a for a in make.node.attributes.values() if a.name not in DROPPED}
    total = make(one.layer.op, *inputs, **attributes)
    total.dtype, total.shape = ir.DataType.INT32, make.node.outputs[0].shape
    y = make("AscendDequant", total, _constant(make, "deq_scale", packed(product.deq_scale)), dtype=0)
    y.dtype, y.shape = ir.DataType.FLOAT, total.shape
    return _by_ratio(make, y, one)


def _rank(one: Decision) -> int:
    """Axes behind that of channels."""
    return one.product.weight.ndim - 2 if one.layer.op == "Conv" else 0


def _along_channels(array: np.ndarray, one: Decision, rank: int) -> np.ndarray:
    return array.reshape((1, -1, *[1] * rank)) if one.layer.op == "Conv" else array


def _by_ratio(make: Maker, y: ir.Value, one: Decision) -> ir.Value:
    return y if one.product.ratio is None else make("Mul", y, _constant(make, "ratio", one.product.ratio))


def _constant(make: Maker, label: str, array: np.ndarray) -> ir.Value:
    name = make.free_name(label)
    if array.nbytes < OUTSIDE:
        return make.initializer(ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name))
    return make.initializer(tensors_of(array_stream(name, array))[0])
