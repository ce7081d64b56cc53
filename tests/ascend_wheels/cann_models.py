"""Small graphs for the CANN provider, by name, as bytes. They are made in the test and in the processes that it starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, HALF, DOUBLE, INT8, INT64, BOOL = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT8,
    TensorProto.INT64,
    TensorProto.BOOL,
)
node = helper.make_node
Value = tuple[str, int, Sequence[Any]]


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    weights: dict[str, Any] | None = None,
    opset: int = 17,
    more: Sequence[onnx.OperatorSetIdProto] = (),
) -> bytes:
    """Every graph is called "g": the provider's names of compiled models hang on that, and on the names of the inputs."""
    made = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *more]
    return helper.make_model(made, opset_imports=opsets, ir_version=9).SerializeToString()


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def binary(op: str, dtype: int = FLOAT, opset: int = 17) -> bytes:
    """y = x op x, shape [2, 4]: all of these have the same names."""
    out = BOOL if op == "Greater" else dtype
    return graph([node(op, ["x", "x"], ["y"], name="n")], [("x", dtype, [2, 4])], [("y", out, [2, 4])], opset=opset)


def matmul(rows: Any = 2) -> bytes:
    """y [rows, 5] = x [rows, 4] w"""
    return graph(
        [node("MatMul", ["x", "w"], ["y"], name="mm")],
        [("x", FLOAT, [rows, 4])],
        [("y", FLOAT, [rows, 5])],
        {"w": normal(4, 5)},
    )


def cnn() -> bytes:
    """Convolution, normalisation, activation, pooling, classes: y [1, 5] from x [1, 3, 16, 16]."""
    nodes = [
        node("Conv", ["x", "k", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], name="norm"),
        node("Relu", ["n"], ["r"], name="relu"),
        node("MaxPool", ["r"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["p"], ["g"], name="average"),
        node("Flatten", ["g"], ["f"], name="flatten"),
        node("Gemm", ["f", "w", "v"], ["y"], name="classes"),
    ]
    weights = {"k": normal(8, 3, 3, 3), "b": normal(8), "scale": abs(normal(8, seed=1)), "shift": normal(8, seed=2)}
    weights |= {"mean": normal(8, seed=3), "var": abs(normal(8, seed=4)) + 0.5, "w": normal(8, 5, seed=5), "v": normal(5)}
    return graph(nodes, [("x", FLOAT, [1, 3, 16, 16])], [("y", FLOAT, [1, 5])], weights)


def block(rows: Any = 6, width: int = 16, stored: int = FLOAT) -> bytes:
    """A transformer block of one head, out of what opset 15 has: y [rows, width] from x."""
    nodes = []

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}{len(nodes)}"
        nodes.append(node(op, list(inputs), [name], name=name, **attributes))
        return name

    def normed(x: str) -> str:
        centred = add("Sub", x, add("ReduceMean", x, axes=[-1]))
        spread = add("Sqrt", add("Add", add("ReduceMean", add("Mul", centred, centred), axes=[-1]), "small"))
        return add("Div", centred, spread)

    one = normed("x")
    query, key, value = (add("MatMul", one, name) for name in ("wq", "wk", "wv"))
    scores = add("Div", add("MatMul", query, add("Transpose", key, perm=[1, 0])), "root")
    seen = add("Add", "x", add("MatMul", add("MatMul", add("Softmax", scores, axis=-1), value), "wo"))
    two = add("MatMul", normed(seen), "w1")
    gelu = add("Mul", add("Mul", two, add("Add", add("Erf", add("Div", two, "root2")), "one")), "half")
    nodes.append(node("Add", [seen, add("MatMul", gelu, "w2")], ["y"], name="last"))
    dtype = helper.tensor_dtype_to_np_dtype(stored)
    weights = {f"w{k}": normal(width, width, seed=i) / width**0.5 for i, k in enumerate("qkvo")}
    weights |= {"w1": normal(width, 4 * width, seed=7) / width**0.5, "w2": normal(4 * width, width, seed=8) / width}
    weights |= {"root": np.sqrt(width), "small": 1e-5, "root2": np.sqrt(2), "one": 1.0, "half": 0.5}
    cast = {name: np.asarray(array, dtype) for name, array in weights.items()}
    return graph(nodes, [("x", stored, [rows, width])], [("y", stored, [rows, width])], cast, opset=15)


def scalar(opset: int = 17) -> bytes:
    """y = x + c, and c, a scalar, is read twice."""
    nodes = [node("Mul", ["c", "c"], ["d"], name="square"), node("Add", ["x", "d"], ["y"], name="add")]
    return graph(nodes, [("x", FLOAT, [2, 4]), ("c", FLOAT, [])], [("y", FLOAT, [2, 4])], opset=opset)


def counter() -> bytes:
    """State: sn = s + x, y = 2 sn."""
    nodes = [node("Add", ["x", "s"], ["sn"], name="add"), node("Mul", ["sn", "two"], ["y"], name="mul")]
    both = [("x", FLOAT, [2, 4]), ("s", FLOAT, [2, 4])]
    return graph(nodes, both, [("y", FLOAT, [2, 4]), ("sn", FLOAT, [2, 4])], {"two": np.float32(2)})


def with_if() -> bytes:
    branches = {}
    for name, op in (("then_branch", "Relu"), ("else_branch", "Neg")):
        result = [helper.make_tensor_value_info(name, FLOAT, [2, 4])]
        branches[name] = helper.make_graph([node(op, ["x"], [name])], name, [], result)
    choice = node("If", ["c"], ["y"], name="choice", **branches)
    return graph([choice], [("c", BOOL, [1]), ("x", FLOAT, [2, 4])], [("y", FLOAT, [2, 4])])


def with_if_on_sizes() -> bytes:
    """The exporter's squeeze: where axis 0 of Relu(x) is 1 it goes, and y = -that; the condition hangs on the sizes of x alone."""
    value = helper.make_tensor_value_info
    squeezed = [node("Squeeze", ["r", "zero"], ["s"], name="squeeze")]
    branches = {"then_branch": helper.make_graph(squeezed, "yes", [], [value("s", FLOAT, None)])}
    branches["else_branch"] = helper.make_graph(
        [node("Identity", ["r"], ["i"], name="keep")], "no", [], [value("i", FLOAT, None)]
    )
    nodes = [
        node("Relu", ["x"], ["r"], name="relu"),
        node("Shape", ["r"], ["sizes"], name="shape"),
        node("Gather", ["sizes", "zero"], ["first"], name="gather"),
        node("Equal", ["first", "one"], ["c"], name="equal"),
        node("If", ["c"], ["b"], name="choice", **branches),
        node("Neg", ["b"], ["y"], name="neg"),
    ]
    weights = {"zero": np.array([0]), "one": np.array([1])}
    return graph(nodes, [("x", FLOAT, ["rows", 4])], [("y", FLOAT, None)], weights)


def with_loop() -> bytes:
    value = helper.make_tensor_value_info
    nodes = [node("Identity", ["go"], ["on"]), node("Add", ["v", "v"], ["w"])]
    given = [value("i", INT64, []), value("go", BOOL, []), value("v", FLOAT, [2, 4])]
    body = helper.make_graph(nodes, "body", given, [value("on", BOOL, []), value("w", FLOAT, [2, 4])])
    weights = {"n": np.array(3, np.int64), "start": np.array(True)}
    return graph(
        [node("Loop", ["n", "start", "x"], ["y"], name="loop", body=body)],
        [("x", FLOAT, [2, 4])],
        [("y", FLOAT, [2, 4])],
        weights,
    )


def foreign() -> bytes:
    """An operator of com.microsoft."""
    more = [helper.make_opsetid("com.microsoft", 1)]
    gelu = node("Gelu", ["x"], ["y"], name="gelu", domain="com.microsoft")
    return graph([gelu], [("x", FLOAT, [2, 4])], [("y", FLOAT, [2, 4])], more=more)


def unregistered() -> bytes:
    """An operator that CANN's parser has no entry for, between two that it has."""
    nodes = [node("Identity", ["x"], ["a"], name="first"), node("MatMulInteger", ["a", "w"], ["b"], name="whole")]
    nodes.append(node("Identity", ["b"], ["y"], name="last"))
    weights = {"w": np.arange(12, dtype=np.uint8).reshape(4, 3)}
    return graph(nodes, [("x", TensorProto.UINT8, [2, 4])], [("y", TensorProto.INT32, [2, 3])], weights)


def refused() -> bytes:
    """A Clip without bounds, which CANN's parser knows and does not take."""
    nodes = [node("Relu", ["x"], ["a"], name="relu"), node("Clip", ["a"], ["y"], name="clip")]
    return graph(nodes, [("x", FLOAT, [2, 4])], [("y", FLOAT, [2, 4])])
