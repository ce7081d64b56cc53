"""Operators of older opsets are written in their newest form where it means the same; a graph stays below what it cannot reach."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graph_bits import run, written
from onnx import helper

from porting.converters.passes.canonical import canonical
from porting.converters.passes.convert_version import convert_version, obstacles
from porting.converters.passes.infer_shapes import infer_shapes
from porting.converters.passes.version_steps import NO_KERNEL, STOPS
from porting.types import Graph
from tests.canonical_models import (
    f32,
    kinds,
    require_same_results,
)

# --- versions -------------------------------------------------------------------------------------------------------

IMAGE = "float[1, 4, 8, 8] x"
OLD = {
    "softmax of several axes": (f"({IMAGE}) => (float y) {{ y = Softmax<axis = 2>(x) }}", 11),
    "softmax of a default axis": (f"({IMAGE}) => (float y) {{ y = Softmax(x) }}", 12),
    "log softmax from the end": (f"({IMAGE}) => (float y) {{ y = LogSoftmax<axis = -3>(x) }}", 11),
    "hardmax": (f"({IMAGE}) => (float y) {{ y = Hardmax<axis = 1>(x) }}", 9),
    "unsqueeze, squeeze": (f"({IMAGE}) => (float y) {{ u = Unsqueeze<axes = [0, -1]>(x) y = Squeeze<axes = [0, 5]>(u) }}", 11),
    "squeeze of all": (f"({IMAGE}) => (float y) {{ y = Squeeze(x) }}", 12),
    "reductions": (
        f"({IMAGE}) => (float y) {{ a = ReduceSum<axes = [1]>(x) b = ReduceMean<axes = [-1]>(a) c = ReduceMax<axes = [2, 3]>(x) "
        "d = ReduceL2(x) e = Add(b, c) y = Add(d, e) }",
        11,
    ),
    "split": (f"({IMAGE}) => (float y, float z) {{ y, z = Split<axis = 1, split = [1, 3]>(x) }}", 9),
    "split in equal parts": (f"({IMAGE}) => (float y, float z) {{ y, z = Split<axis = 1>(x) }}", 13),
    "slice": (f"({IMAGE}) => (float y) {{ y = Slice<starts = [1, -5], ends = [3, 100], axes = [1, 2]>(x) }}", 9),
    "top k": (f"({IMAGE}) => (float y, int64 z) {{ y, z = TopK<k = 3>(x) }}", 9),
    "clip without bounds": (f"({IMAGE}) => (float y) {{ h = Div(x, zero) y = Clip<max = 2.0>(h) }}", 9),
    "pad": (f'({IMAGE}) => (float y) {{ y = Pad<mode = "reflect", pads = [0, 0, 1, 2, 0, 0, 3, 0]>(x) }}', 9),
    "resize up": (f'({IMAGE}) => (float y) {{ y = Resize<mode = "nearest">(x, up) }}', 10),
    "resize down": (f'({IMAGE}) => (float y) {{ y = Resize<mode = "nearest">(x, down) }}', 10),
    "resize, linear": (f'({IMAGE}) => (float y) {{ y = Resize<mode = "linear">(x, both) }}', 10),
    "upsample": (f'({IMAGE}) => (float y) {{ y = Upsample<mode = "nearest">(x, up) }}', 9),
    "upsample, linear": (f'({IMAGE}) => (float y) {{ y = Upsample<mode = "linear">(x, up) }}', 9),
    "scatter": (f"({IMAGE}, int64[1, 1, 8, 8] i) => (float y) {{ y = Scatter<axis = 1>(x, i, upd) }}", 9),
    "dropout": (f"({IMAGE}) => (float y) {{ d = Dropout<ratio = 0.3>(x) y = Neg(d) }}", 9),
    "normalisation": (f"({IMAGE}) => (float y) {{ y = BatchNormalization(x, s, s, s, s) }}", 9),
    "grid sample": (f'({IMAGE}, float[1, 5, 6, 2] g) => (float y) {{ y = GridSample<mode = "bicubic">(x, g) }}', 16),
    "pad with a value": (f"({IMAGE}) => (float y) {{ y = Pad<pads = [0, 0, 1, 2, 0, 0, 3, 0], value = 0.5>(x) }}", 9),
    "fourier of a default axis": ("(float[1, 8, 5, 1] x) => (float y) { y = DFT(x) }", 17),
    "fourier": ("(float[1, 8, 5, 1] x) => (float y) { y = DFT<axis = 1>(x) }", 17),
    "recurrent": ("(float[5, 2, 4] x) => (float y, float h) { y, h = GRU<hidden_size = 3>(x, gw, gr) }", 9),
}
WEIGHTS = {
    "up": np.array([1, 1, 2, 3], np.float32),
    "down": np.array([1, 1, 0.6, 0.4], np.float32),
    "both": np.array([1, 1, 1.7, 0.4], np.float32),
    "zero": np.array(0, np.float32),
    "upd": f32(1, 1, 8, 8),
    "s": np.abs(f32(4)) + 1,
    "gw": f32(1, 9, 4),
    "gr": f32(1, 9, 3),
}


def old(name: str) -> tuple[Graph, dict]:
    text, opset = OLD[name]
    used = {k: v for k, v in WEIGHTS.items() if f" {k})" in text or f" {k}," in text}
    graph = written(text, opset, **used)
    feeds = {}
    for value in graph.model.graph.inputs:
        shape = [int(d) for d in value.shape]
        feeds[value.name] = f32(*shape) if value.dtype == ir.DataType.FLOAT else np.zeros(shape, np.int64)
    return graph, feeds


@pytest.mark.parametrize("name", OLD)
def test_an_operator_that_was_written_otherwise(name):
    graph, feeds = old(name)
    after, changes = convert_version(infer_shapes(graph)[0])
    assert changes and after.model.graph.opset_imports[""] == 24
    require_same_results(graph, after, feeds)


def test_softmax_of_several_axes_of_nothing():
    graph = written("(float[N, M, K] x) => (float y) { y = Softmax<axis = 1>(x) }", 11)
    require_same_results(graph, canonical(graph)[0], {"x": f32(2, 3, 0)})


def test_the_count_is_the_nodes_written_otherwise_and_the_opset():
    graph = written("(float[2, 3] x) => (float y) { a = Unsqueeze<axes = [0]>(x) b = Relu(a) y = Squeeze<axes = [0]>(b) }", 12)
    assert convert_version(graph)[1] == 3


def test_softmax_over_the_last_axis_needs_no_other_nodes_where_the_rank_shows_in_the_new_form_only():
    """In opset 12 onnx does not tell the rank of a Reshape whose shape is computed."""
    graph = written(
        "(float[N, 8] x, int64 k) => (float y) { a = Unsqueeze<axes = [0]>(k) t = Concat<axis = 0>(a, rest) r = Reshape(x, t) y = Softmax<axis = 1>(r) }",
        12,
        rest=np.array([-1]),
    )
    after, _ = canonical(graph)
    assert kinds(after)["Flatten"] == 0
    require_same_results(graph, after, {"x": f32(3, 8), "k": np.array(4)})


@pytest.mark.parametrize(
    ("text", "opset", "reached", "reason"),
    [
        (
            f"({IMAGE}) => (float y) {{ a = Unsqueeze<axes = [0]>(x) b = Squeeze<axes = [0]>(a) y = AveragePool<kernel_shape = [2, 2]>(b) }}",
            12,
            18,
            "slower",
        ),
        ("(float[1, 4, 8, 8] x, float[2, 4] r, int64[2] b) => (float y) { y = RoiAlign(x, r, b) }", 16, 21, "no kernel"),
        ("(float[1, 4, 8, 8] x, float[2, 4] r, int64[2] b) => (float y) { y = RoiAlign(x, r, b) }", 10, 21, "no kernel"),
        ("(int64[3] x) => (float y) { y = OneHot(x, d, v) }", 9, 10, "negative"),
        ("(double[3] x) => (double y) { y = Elu(x) }", 18, 18, "no kernel for its type"),
        (f'({IMAGE}, float[4] s) => (float y) {{ y = Resize<mode = "nearest">(x, s) }}', 10, 10, "not constant"),
        (f"({IMAGE}) => (float y, bool m) {{ y, m = Dropout(x) }}", 10, 11, "mask"),
    ],
)
def test_a_graph_stays_below_what_one_of_its_nodes_cannot_reach(text, opset, reached, reason):
    graph = written(text, opset, **({"d": np.array(5), "v": np.array([0, 1], np.float32)} if "OneHot" in text else {}))
    after, applied = canonical(graph)
    assert after.model.graph.opset_imports[""] == applied[-1]["opset"] == reached
    assert reason in applied[-1]["kept"][0]
    assert obstacles(after) == applied[-1]["kept"]
    feeds = {
        v.name: (f32 if v.dtype == ir.DataType.FLOAT else np.zeros)(
            *([[int(d) for d in v.shape]] if v.dtype != ir.DataType.FLOAT else [int(d) for d in v.shape])
        )
        for v in graph.model.graph.inputs
    }
    feeds = {n: a.astype(np.int64) if n in "b" or "OneHot" in text else a for n, a in feeds.items()}
    if "Resize" in text:
        feeds["s"] = np.array([1, 1, 2, 2], np.float32)
    require_same_results(graph, after, feeds)


def test_an_old_batch_normalisation_with_more_outputs_is_one_in_training():
    inputs = [f"float[4] {name}" for name in ("scale", "bias", "mean", "var")]
    graph = written(
        f"(float[2, 4] x, {', '.join(inputs)}) => (float y) {{ y, m, v, a, b = BatchNormalization(x, scale, bias, mean, var) }}",
        9,
    )
    after, applied = canonical(graph)
    assert after.model.graph.opset_imports[""] == 13 and "training" in applied[-1]["kept"][0]
    feeds = {value.name: np.abs(f32(*(int(d) for d in value.shape))) + 1 for value in graph.model.graph.inputs}
    require_same_results(graph, after, feeds)


@pytest.mark.parametrize("operator", [name for name in NO_KERNEL if name != "Bernoulli"])
def test_a_stop_for_want_of_a_kernel_is_still_needed(operator):
    """When onnxruntime has it, take the operator off NO_KERNEL. (Bernoulli is made of another of these.)"""
    random = operator in ("RandomNormal", "RandomUniform")
    attributes = {
        "Multinomial": {"sample_size": 2},
        "MaxRoiPool": {"pooled_shape": [2, 2]},
        "RandomNormal": {"shape": [2]},
        "RandomUniform": {"shape": [2]},
    }.get(operator, {})
    inputs = {"RoiAlign": ["x", "r", "b"], "MaxRoiPool": ["x", "r"]}.get(operator, [] if random else ["x"])
    shapes = {
        "x": [2, 4] if operator == "Multinomial" else [1, 4, 8, 8],
        "r": [2, 5 if operator == "MaxRoiPool" else 4],
        "b": [2],
    }
    specs = [helper.make_tensor_value_info(n, 7 if n == "b" else 1, shapes[n]) for n in inputs]
    result = helper.make_tensor_value_info("y", 6 if operator == "Multinomial" else 1, None)
    body = helper.make_graph([helper.make_node(operator, inputs, ["y"], **attributes)], "g", specs, [result])

    def loads(opset: int) -> bool:
        try:
            run(helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString(), {})
        except Exception as error:
            return "NOT_IMPLEMENTED" not in str(error)
        return True

    assert loads(STOPS[operator].version - 1) and not loads(STOPS[operator].version)
