"""Graphs that are none: what onnxruntime refuses when it opens a file is refused when it is read, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import parser

import porting
from porting.errors import CheckpointError

IMAGE = "float[1, 4, 8, 8] x"
# nodes, inputs, opset, what is said
WRONG = {
    "unknown attribute": ("y = Relu<foo=1>(x)", IMAGE, 18, "has no attribute 'foo'"),
    "misspelt attribute": ("y = Softmax<axes=1>(x)", IMAGE, 18, "did you mean 'axis'"),
    "attribute of a later opset": (
        "y = MaxPool<kernel_shape=[2, 2], ceil_mode=1>(x)",
        IMAGE,
        8,
        "has no attribute 'ceil_mode'",
    ),
    "missing attribute": ("y = Concat(x, x)", IMAGE, 18, "needs the attribute 'axis'"),
    "attribute of another type": ("y = LeakyRelu<alpha=1>(x)", IMAGE, 18, "is of FLOAT, here INT"),
    "text for a number": ('y = Softmax<axis="1">(x)', IMAGE, 18, "is of INT, here STRING"),
    "too many inputs": ("y = Relu(x, x)", IMAGE, 18, "has 1 inputs, here 2"),
    "too few inputs": ("y = Add(x)", IMAGE, 18, "has 2 inputs, here 1"),
    "too many outputs": ("y, z = Relu(x)", IMAGE, 18, "has 1 outputs, here 2"),
    "no such mode": ('y = DepthToSpace<blocksize=2, mode="XYZ">(x)', IMAGE, 18, "DCR, CRD"),
    "no such padding": ('y = MaxPool<kernel_shape=[2, 2], auto_pad="SAME">(x)', IMAGE, 18, "SAME_UPPER"),
    "a window of another rank": ("y = MaxPool<kernel_shape=[2]>(x)", IMAGE, 18, "kernel_shape"),
    "an axis that is not there": ("y = Softmax<axis=7>(x)", IMAGE, 18, "axis"),
    "one axis twice": ("y = Transpose<perm=[0, 1, 2, 2]>(x)", IMAGE, 18, "perm"),
    "two dtypes": ("y = Add(x, z)", "float[2] x, int64[2] z", 18, "different types"),
    "sizes of a product": ("y = MatMul(x, z)", "float[2, 3] x, float[4, 5] z", 18, "contradicts itself"),
    "sizes of a sum": ("y = Add(x, z)", "float[2, 3] x, float[4, 5] z", 18, "contradicts itself"),
    "sizes of parts": ("s = Constant<value_ints=[1, 1]>() y, z = Split<axis=0>(x, s)", "float[3, 3] x", 18, "split"),
    "no such dtype": ("y = Cast<to=99>(x)", IMAGE, 18, "valid type"),
    "a stride of 0": ("y = MaxPool<kernel_shape=[2, 2], strides=[0, 1]>(x)", IMAGE, 18, "strides"),
    "inside a branch": (
        "y = If (c) <then_branch = a () => (float t) { t = Relu<foo=1>(x) }, else_branch = b () => (float e) { e = Neg(x) }>",
        f"{IMAGE}, bool c",
        18,
        "has no attribute 'foo'",
    ),
}


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def graph_of(nodes: str, inputs: str, opset: int) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => (float y) {{ {nodes} }}')


@pytest.mark.parametrize("name", WRONG)
def test_what_onnxruntime_refuses_to_open_is_refused(tmp_path: Path, name: str) -> None:
    nodes, inputs, opset, said = WRONG[name]
    model = graph_of(nodes, inputs, opset)
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with pytest.raises(CheckpointError, match=said):
        porting.check(saved(tmp_path, model), "Ascend910B3")


def test_a_tools_own_attribute_is_passed_over(tmp_path: Path) -> None:
    model = graph_of("y = Relu<__origin=1>(x)", IMAGE, 18)
    onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert porting.check(saved(tmp_path, model), "Ascend910B3").details["portability"] == "portable"
