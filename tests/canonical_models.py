"""Graphs as exporters write them, for the passes to the canonical form, and what has to hold after one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from porting.converters.passes.canonical import CANONICAL
from porting.converters.passes.rewriting import bodies_of
from porting.types import Graph
from tests.graph_bits import difference, run, whole, written

RNG = np.random.default_rng(0)


def f32(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.3).astype(np.float32)


def shapes_from_shapes() -> Graph:
    """What exporters write for x.reshape(x.shape[0], -1, x.shape[2]), with Constant nodes, in opset 11."""
    return written(
        """(float[N, 8, 4] x) => (float[N, 8, 4] y) {
            s = Shape(x)
            zero = Constant<value_int = 0>() two = Constant<value = int64 {2}>() rest = Constant<value_ints = [-1]>()
            a = Gather<axis = 0>(s, zero) b = Gather<axis = 0>(s, two)
            c = Unsqueeze<axes = [0]>(a) d = Unsqueeze<axes = [0]>(b)
            t = Concat<axis = 0>(c, rest, d)
            r = Reshape(x, t) i = Identity(r) k = Cast<to = 1>(i) m = Dropout(k)
            y = Softmax<axis = 2>(m)
        }""",
        12,
    )


def branches() -> Graph:
    """An If that is decided by the shape of its input inside one that is not decided, and a Loop."""
    return written(
        """(float[2, 3] x, bool c, int64 n) => (float y, float z) {
            y = If (c) <
                then_branch = yes () => (float[2, 3] p) {
                    s = Size(x) six = Constant<value_int = 6>() e = Equal(s, six)
                    p = If (e) <
                        then_branch = in () => (float[2, 3] q) { one = Constant<value_float = 1.0>() q = Add(x, one) },
                        else_branch = out () => (float[2, 3] r) { one = Constant<value_float = 2.0>() r = Sub(x, one) } >
                },
                else_branch = no () => (float[2, 3] o) { one = Constant<value_float = 3.0>() o = Mul(x, one) } >
            true = Constant<value = bool {1}>()
            z = Loop (n, true, x) <
                body = step (int64 i, bool go, float[2, 3] h) => (bool more, float[2, 3] w) {
                    more = Identity(go) half = Constant<value_float = 0.5>() w = Mul(h, half)
                } >
        }""",
        16,
    )


def half_weights() -> Graph:
    return written(
        "(float[N, 64] x) => (float[N, 64] y) { f = Cast<to = 1>(w) g = Cast<to = 1>(b) m = MatMul(x, f) y = Add(m, g) }",
        17,
        w=f32(64, 64).astype(np.float16),
        b=f32(64).astype(np.float16),
    )


def old_convolutions() -> Graph:
    return written(
        """(float[1, 3, 12, 12] x) => (float[1, 4] y) {
            c = Conv<pads = [1, 1, 1, 1]>(x, w)
            n = BatchNormalization(c, s, s, s, v)
            r = Clip<min = 0.0, max = 6.0>(n)
            p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
            q = Upsample<mode = "nearest">(p, k)
            l = Slice<axes = [2, 3], starts = [1, 0], ends = [9, 100]>(q)
            o = Pad<pads = [0, 0, 0, 1, 0, 0, 1, 0], value = 0.5>(l)
            g = GlobalAveragePool(o) f = Flatten(g)
            y = LogSoftmax(f)
        }""",
        9,
        3,
        w=f32(4, 3, 3, 3),
        s=f32(4),
        v=np.abs(f32(4)) + 1,
        k=np.array([1, 1, 2, 2], np.float32),
    )


def texts_and_lists() -> Graph:
    return written(
        """(string[N] t, float[2, 3] x) => (string[N] u, float[4, 3] y) {
            i = Identity(t) u = StringConcat(i, t)
            l = SequenceConstruct(x, x) y = ConcatFromSequence<axis = 0>(l)
        }""",
        20,
    )


def contrib() -> Graph:
    return written(
        """(float[N, 8] x) => (float[N, 8] y) {
            a = com.microsoft.Gelu(x) s = Shape(a) r = Reshape(a, s) z = Identity(r) y = Relu(z)
        }""",
        17,
        contrib=True,
    )


MODELS: dict[str, tuple[Callable[[], Graph], dict]] = {
    "shapes": (shapes_from_shapes, {"x": f32(3, 8, 4)}),
    "branches": (branches, {"x": f32(2, 3), "c": np.array(True), "n": np.array(3)}),
    "other branch": (branches, {"x": f32(2, 3), "c": np.array(False), "n": np.array(0)}),
    "half weights": (half_weights, {"x": f32(3, 64)}),
    "opset 9": (old_convolutions, {"x": f32(1, 3, 12, 12)}),
    "texts": (texts_and_lists, {"t": np.array(["ab", "c"], object), "x": f32(2, 3)}),
    "contrib": (contrib, {"x": f32(5, 8)}),
}
STEPS = [pytest.param(model, i, id=f"{model}-{CANONICAL[i][0]}") for model in MODELS for i in range(len(CANONICAL))]


def before_step(model: str, position: int) -> Graph:
    graph = MODELS[model][0]()
    for _, change in CANONICAL[:position]:
        graph, _ = change(graph)
    return graph


def kinds(graph: Graph) -> Counter[str]:
    return Counter(node.op_type for body in bodies_of(graph.model) for node in body)


def require_same_results(before: Graph, after: Graph, feeds: dict) -> None:
    if all(
        value.shape is not None for value in after.model.graph.outputs
    ):  # the checker wants the rank of an output, runtimes do not
        onnx.checker.check_model(onnx.load_from_string(whole(after)), full_check=True)
    for optimised in (False, True):
        wanted, got = run(whole(before), feeds, optimised), run(whole(after), feeds, optimised)
        assert difference(got, wanted) == ""
