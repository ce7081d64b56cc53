"""Small graphs whose numbers leave the range of fp16 in the middle, and come back: what an exception has to mend, and what none can."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from porting.backends.onnx_program import program_from_onnx
from porting.types import Program

WIDTH, HIDDEN, GIVEN = 16, 32, 8
SCALE = 1e5


def tensor(name: str, array: object) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array, np.float32), name)


def value(name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto] = (),
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """x -> nodes -> y, named after their outputs where they have no name."""
    for node in nodes:
        node.name = node.name or node.output[0]
    body = helper.make_graph(
        list(nodes),
        "overflowing",
        list(inputs or [value("x", ["n", WIDTH])]),
        list(outputs or [value("y", ["n", GIVEN])]),
        list(weights),
    )
    made = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return made


def mlp() -> onnx.ModelProto:
    """Two matrix products; between them Mul, Add and Div by vectors take the numbers to 1e5 and back. Kept: scale, shift, back."""
    rng = np.random.default_rng(0)
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w1"], ["a"], name="up"),
        node("Mul", ["a", "big"], ["b"], name="scale"),
        node("Add", ["b", "bias"], ["c"], name="shift"),
        node("Div", ["c", "big"], ["d"], name="back"),
        node("Relu", ["d"], ["e"], name="relu"),
        node("MatMul", ["e", "w2"], ["y"], name="down"),
    ]
    weights = [
        tensor("w1", rng.standard_normal((WIDTH, HIDDEN)) / 4),
        tensor("w2", rng.standard_normal((HIDDEN, GIVEN)) / 6),
        tensor("big", SCALE),
        tensor("bias", rng.standard_normal(HIDDEN) * 1e3),
    ]
    return model(nodes, weights)


def exponential() -> onnx.ModelProto:
    """exp(12) and above, squared, and its logarithm: Exp, Pow, Log. Of vectors alone."""
    node = helper.make_node
    nodes = [
        node("Add", ["x", "twelve"], ["a"], name="lift"),
        node("Exp", ["a"], ["b"], name="exp"),
        node("Pow", ["b", "two"], ["c"], name="square"),
        node("Log", ["c"], ["y"], name="log"),
    ]
    return model(nodes, [tensor("twelve", 12), tensor("two", 2)], outputs=[value("y", ["n", WIDTH])])


def large_product() -> onnx.ModelProto:
    """A matrix product that itself is beyond 65504: nothing mends that where the matrix unit takes fp16 only."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w1"], ["a"], name="product"),
        node("Div", ["a", "big"], ["y"], name="back"),
    ]
    rng = np.random.default_rng(0)
    return model(nodes, [tensor("w1", rng.standard_normal((WIDTH, GIVEN)) * 1.4e4), tensor("big", 6e4)])


def masked_softmax(least: float = -3.4028235e38) -> onnx.ModelProto:
    """softmax(x + (1 - m) * least), the mask of most exported transformers."""
    node = helper.make_node
    nodes = [
        node("Sub", ["one", "m"], ["a"], name="not_m"),
        node("Mul", ["a", "least"], ["b"], name="mask"),
        node("Add", ["x", "b"], ["c"], name="masked"),
        node("Softmax", ["c"], ["y"], name="softmax", axis=-1),
    ]
    inputs = [value("x", ["n", WIDTH]), value("m", ["n", WIDTH])]
    return model(nodes, [tensor("one", 1), tensor("least", least)], inputs, [value("y", ["n", WIDTH])])


def program(made: onnx.ModelProto) -> Program:
    return program_from_onnx(made.SerializeToString())


def feeds(seed: int = 1, rows: int = 4) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype(np.float32)}
