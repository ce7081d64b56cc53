"""Which layers of a lowered graph can be W8A8, and why the others cannot.

What the vendor's own tool quantises (hicann/amct, capacity_config.csv, read in source; AMCT's tables of uniform quantisation, CANN 6.3 to 8.5):

    operator  weight                  activations  AscendDequant     else
    Conv      constant, 3-D and 4-D   asymmetric   one per channel
    Conv      constant, 5-D           symmetric    one per channel   dilation of the first axis is 1
    Gemm      constant                asymmetric   one               transA = 0; B is transposed, alpha and beta are multiplied in here
    MatMul    constant, 2-D, second   asymmetric   one               its bias stays an Add in float; a Transpose of the constant is taken in

One number for Gemm and MatMul: CHANNEL_WISE_ONNX_TYPES names Conv, ConvTranspose, LSTM and GRU, and the page on QAT models says so in words.
Their channels have steps of their own all the same: what the one number lacks is a Mul by a vector behind AscendDequant, in float (inferred to be
free of surprises: it is an operator like any other). AMCT puts AscendDequant behind the Add of a MatMul's bias; here it stands before it, as where
there is no Add.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from porting.types import Graph

from ..rewriting import bodies_in, frozen, ints_of, made_by


class KeptFloat(Exception):
    """Why a layer stays in float."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A product with a constant.

    name, op:    of its node
    input:       the value that is quantised
    output:      its result, which has the same name in every graph that is made of this one
    axis:        of the weight, as `constants` gives it, that counts output channels
    one_scale:   whether AscendDequant takes one number for all of them
    symmetric:   whether activations have no offset
    constants:   () -> weight and bias in float32, in the form that the vendor's node takes: a Gemm's weight is (K, N)
    """

    name: str
    op: str
    input: str
    output: str
    axis: int
    one_scale: bool
    symmetric: bool
    constants: Callable[[], tuple[np.ndarray, np.ndarray | None]]


def quantisable(graph: Graph) -> tuple[list[Layer], dict[str, str]]:
    """The layers, in order, and what stays in float: name of the node -> reason. Only Conv, Gemm and MatMul are looked at."""
    layers, kept = [], {}
    for node in graph.model.graph:
        if node.op_type in _FORMS and node.domain == "":
            try:
                layers.append(_FORMS[node.op_type](node))
            except KeptFloat as why:
                kept[str(node.name)] = str(why)
        for body in bodies_in(node):
            for inner in body.all_nodes():
                if inner.op_type in _FORMS and inner.domain == "":
                    kept[str(inner.name)] = "in the body of a control flow, where nothing can be calibrated"
    return layers, kept


def _conv(node: ir.Node) -> Layer:
    tensor = _constant(node.inputs[1], "weight")
    rank = len(tensor.shape) - 2
    if rank not in (1, 2, 3):
        raise KeptFloat(f"a weight of {rank + 2} dimensions")
    if rank == 3 and (ints_of(node, "dilations") or [1])[0] != 1:
        raise KeptFloat("a 3-D convolution that dilates its first axis")
    bias = _bias(node)

    def constants() -> tuple[np.ndarray, np.ndarray | None]:
        return _array(tensor), None if bias is None else _array(bias)

    return _layer(node, 0, constants, one_scale=False, symmetric=rank == 3)


def _gemm(node: ir.Node) -> Layer:
    if _int(node, "transA"):
        raise KeptFloat("transA = 1")
    tensor, transposed = _matrix(node, bool(_int(node, "transB")))
    alpha, beta = _float(node, "alpha"), _float(node, "beta")
    channels = int(tensor.shape[0 if transposed else 1])  # type: ignore[arg-type]  # `_constant` has seen that it is fixed
    bias = _bias(node)
    if bias is not None and not (len(bias.shape) <= 2 and tuple(bias.shape)[:-1] in ((), (1,))):
        raise KeptFloat("a bias that differs between rows")

    def constants() -> tuple[np.ndarray, np.ndarray | None]:
        added = None if bias is None else np.broadcast_to(_array(bias).reshape(-1) * np.float32(beta), (channels,)).copy()
        return _turned(tensor, transposed) * np.float32(alpha), added

    return _layer(node, 1, constants)


def _matmul(node: ir.Node) -> Layer:
    tensor, transposed = _matrix(node, False)
    return _layer(node, 1, lambda: (_turned(tensor, transposed), None))


_FORMS: dict[str, Callable[[ir.Node], Layer]] = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}


def _layer(
    node: ir.Node,
    axis: int,
    constants: Callable[[], tuple[np.ndarray, np.ndarray | None]],
    one_scale: bool = True,
    symmetric: bool = False,
) -> Layer:
    data = node.inputs[0]
    if data is None or data.dtype != ir.DataType.FLOAT:
        raise KeptFloat(f"its input is {None if data is None else data.dtype}, and what is quantised is float32")
    if frozen(data) is not None:
        raise KeptFloat("both of its inputs are constants")
    if node.op_type == "MatMul" and (data.shape is None or len(data.shape) < 2):
        raise KeptFloat("an input of one dimension, or of a rank that is not known")
    return Layer(str(node.name), node.op_type, str(data.name), str(node.outputs[0].name), axis, one_scale, symmetric, constants)


def _matrix(node: ir.Node, transposed: bool) -> tuple[ir.TensorProtocol, bool]:
    """The weight of a matrix product, and whether (N, K) lies there: by an attribute, or through a Transpose."""
    turn = made_by(node.inputs[1], "Transpose")
    if turn is not None and ints_of(turn, "perm") == [1, 0]:
        tensor, transposed = _constant(turn.inputs[0], "weight"), not transposed
    else:
        tensor = _constant(node.inputs[1], "weight")
    if len(tensor.shape) != 2:
        raise KeptFloat(f"a weight of {len(tensor.shape)} dimensions, where the vendor's tools take two")
    return tensor, transposed


def _turned(tensor: ir.TensorProtocol, transposed: bool) -> np.ndarray:
    """(K, N)"""
    return np.ascontiguousarray(_array(tensor).T) if transposed else _array(tensor)


def _bias(node: ir.Node) -> ir.TensorProtocol | None:
    return _constant(node.inputs[2], "bias") if len(node.inputs) > 2 and node.inputs[2] is not None else None


def _constant(value: ir.Value | None, what: str) -> ir.TensorProtocol:
    tensor = frozen(value)
    if tensor is None:
        raise KeptFloat(f"its {what} is no constant")
    if tensor.dtype != ir.DataType.FLOAT:
        raise KeptFloat(f"its {what} is {tensor.dtype}, and what is quantised is float32")
    if not all(isinstance(size, int) and size > 0 for size in tensor.shape):
        raise KeptFloat(f"its {what} is empty")
    return tensor


def _array(tensor: ir.TensorProtocol) -> np.ndarray:
    return np.asarray(tensor.numpy(), np.float32)


def _int(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0


def _float(node: ir.Node, name: str) -> float:
    return node.attributes[name].as_float() if name in node.attributes else 1.0
