"""A small detector as exporters write them: a convolution gives boxes and scores, and NonMaxSuppression chooses among them."""

from __future__ import annotations

import numpy as np
import onnx

from tests.graph_models import INT, constant, model, node, weight


def detector() -> onnx.ModelProto:
    """image [batch, 3, height, width] -> the boxes that were chosen, and (image, class, box) of each. `boxes` is (batch, places, 4),
    `scores` (batch, classes, places); an input that nothing reads beside it."""
    nodes = [
        node("Conv", "image w1 b1", "f", strides=[4, 4], pads=[1, 1, 1, 1]),
        node("Relu", "f", "r"),
        node("Conv", "r w2", "head"),
        node("Shape", "head", "sizes"),
        node("Gather", "sizes zero", "batches"),
        node("Unsqueeze", "batches first", "batches1"),
        node("Concat", "batches1 rest", "shape", axis=0),
        node("Reshape", "head shape", "flat"),
        node("Transpose", "flat", "rows", perm=[0, 2, 1]),
        node("Split", "rows parts", "raw_boxes raw_scores", axis=2, name="heads"),
        node("Sigmoid", "raw_boxes", "boxes"),
        node("Sigmoid", "raw_scores", "likely"),
        node("Transpose", "likely", "scores", perm=[0, 2, 1], name="turned"),
        node("NonMaxSuppression", "boxes scores most overlap least", "chosen", name="nms"),
        node("Gather", "chosen two", "which", axis=1),
        node("Gather", "boxes which", "picked", axis=1),
        node("Mul", "picked scale", "result"),
    ]
    whole = {"zero": 0, "first": [0], "rest": [7, -1], "parts": [4, 3], "most": [10], "two": 2}
    weights = [constant(name, value, np.int64) for name, value in whole.items()]
    weights += [constant("overlap", [0.5]), constant("least", [0.1]), constant("scale", [32.0, 32, 32, 32])]
    weights += [weight("w1", 16, 3, 3, 3), weight("b1", 16), weight("w2", 7, 16, 1, 1)]
    inputs = {"image": ["batch", 3, "height", "width"], "unused": [1]}
    outputs = {"result": ["batch", None, 4], "chosen": ([None, 3], INT)}
    return model(nodes, inputs, outputs, weights)


def switched() -> onnx.ModelProto:
    """y = x w + 1 where `rate` is 16, else x w - 1, in the branches of an If; `gain` is one number [1], `flag` a truth."""
    number = lambda name, value: onnx.helper.make_node(  # noqa: E731
        "Constant", [], [name], value=onnx.numpy_helper.from_array(np.float32(value))
    )

    def branch(sign: str) -> onnx.GraphProto:
        nodes = [number(f"one_{sign}", 1), node(sign, f"p one_{sign}", f"inner_{sign}")]
        end = onnx.helper.make_tensor_value_info(f"inner_{sign}", onnx.TensorProto.FLOAT, None)
        return onnx.helper.make_graph(nodes, sign, [], [end])

    nodes = [
        node("MatMul", "x w", "p"),
        node("Equal", "rate sixteen", "is16"),
        node("If", "is16", "chosen", then_branch=branch("Add"), else_branch=branch("Sub"), name="way"),
        node("Mul", "chosen gain", "y"),
        node("Cast", "flag", "number", to=1),
        node("Add", "chosen number", "z"),
    ]
    integer, truth = onnx.TensorProto.INT64, onnx.TensorProto.BOOL
    inputs = {"x": ["rows", 40], "rate": ([], integer), "gain": [1], "flag": ([], truth)}
    weights = [weight("w", 40, 30), constant("sixteen", 16, np.int64)]
    return model(nodes, inputs, {"y": ["rows", 30], "z": ["rows", 30]}, weights)
