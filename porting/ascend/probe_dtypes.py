"""Graphs for rules about dtypes, see probe_table.py."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ml_dtypes import float8_e5m2

from porting.ascend.probe_graphs import ProbeGraph
from porting.ascend.probe_plain import RELU, Pair

MATMUL = "(T[2,3] x, T[3,2] w) => (y) { y = MatMul(x, w) }"
CONV = "(float[1,2,6,6] x, float[2,2,3,3] w) => (y) { y = Conv<kernel_shape = [3, 3]>(x, w) }"
CONV_3D = "(float[1,2,4,4,4] x, float[2,2,3,3,3] w) => (y) { y = Conv<kernel_shape = [3, 3, 3]>(x, w) }"
TRANSPOSED = "(T[1,2,4,4] x, T[2,2,3,3] w) => (y) { y = ConvTranspose<kernel_shape = [3, 3]>(x, w) }"
GRID = "(T[1,1,4,4] x, T[1,3,3,2] g) => (y) { y = GridSample(x, g) }"
ONE_HOT = "(T[3] i) => (y) <int64 d = {3}, float[2] v = {0, 1}> { y = OneHot(i, d, v) }"
GRID_FED = {"g": np.linspace(-0.9, 0.9, 18).reshape(1, 3, 3, 2)}
ODD = np.array([[1.0, -2.0, 3.0], [np.nan, 0.5, -1.0]])


def _typed(text: str, dtype: str) -> str:
    return text.replace("T[", f"{dtype}[")


def _both(text: str, dtype: str, **fields: object) -> Pair:
    """The same graph in a dtype and in float32."""
    return ProbeGraph(_typed(text, dtype), **fields), ProbeGraph(_typed(text, "float"), **fields)  # type: ignore[arg-type]


def _relu_in(dtype: str) -> Pair:
    return _both("(T[2,3] x) => (T[2,3] y) { y = Relu(x) }", dtype)


def _through(dtype: str, number: int) -> Pair:
    """To a dtype that few operators take, and back. number: TensorProto's"""
    back = f"(float[2,3] x) => (float[2,3] y) <{dtype}[2,3] a> {{ a = Cast<to = {number}>(x) y = Cast<to = 1>(a) }}"
    return ProbeGraph(back), ProbeGraph("(float[2,3] x) => (y) { a = Cast<to = 6>(x) y = Cast<to = 1>(a) }")


def _added(number: float) -> Pair:
    text = f"(float[3] x) => (y) <float[3] c = {{1, {number}, 2}}> {{ y = Add(x, c) }}"
    control = "(float[3] x) => (y) <float[3] c = {1, 3, 2}> { y = Add(x, c) }"
    return ProbeGraph(text, feeds={"x": [0, 0, 0]}), ProbeGraph(control, feeds={"x": [0, 0, 0]})


def _with_infinity() -> Pair:
    text = "(float[3] x, float[3] c) => (y) { y = Add(x, c) }"
    constants = {"c": np.array([1, -np.inf, 2], np.float32)}
    finite = {"c": np.array([1, -3, 2], np.float32)}
    return ProbeGraph(text, constants=constants, feeds={"x": [0, 0, 0]}), ProbeGraph(text, constants=finite)


WHERE = "(bool[2,3] c, T[2,3] x, T[2,3] z) => (y) { y = Where(c, x, z) }"
ANY = {"x": [[0, 1, -2], [7, 100, -100]]}
OF_DTYPES: Mapping[str, Pair] = {
    "bf16": _relu_in("bfloat16"),
    "bf16-unknown": _relu_in("bfloat16"),
    "double": (ProbeGraph("(float[2,3] x) => (y) { a = Cast<to = 11>(x) y = Cast<to = 1>(a) }"), RELU),
    "double-kept": _both(MATMUL, "double"),
    "double-lowered": _both(MATMUL, "double"),
    "double-gather-nd": (
        ProbeGraph("(double[2,3] x) => (y) <int64[2,1] i = {1, 0}> { y = GatherND(x, i) }"),
        ProbeGraph("(float[2,3] x) => (y) <int64[2,1] i = {1, 0}> { y = GatherND(x, i) }"),
    ),
    "integers-matmul": _both(MATMUL, "int64"),
    "integers-expand": _both("(T[2,1] x) => (y) <int64[2] s = {2, 3}> { y = Expand(x, s) }", "int16"),
    "integers-div": _both("(T[2] x, T[2] z) => (y) { y = Div(x, z) }", "uint32", feeds={"x": [7, 9], "z": [2, 3]}),
    "integers-mod": (
        ProbeGraph("(uint32[2] x, uint32[2] z) => (y) { y = Mod(x, z) }", feeds={"x": [7, 9], "z": [2, 4]}),
        ProbeGraph("(int32[2] x, int32[2] z) => (y) { y = Mod(x, z) }", feeds={"x": [7, 9], "z": [2, 4]}),
    ),
    "integers-add": _both("(T[2] x, T[2] z) => (y) { y = Add(x, z) }", "uint32", feeds={"x": [7, 9], "z": [2, 3]}),
    "integers-sub": _both("(T[2] x, T[2] z) => (y) { y = Sub(x, z) }", "uint32", feeds={"x": [7, 9], "z": [2, 3]}),
    "integers-gemm": _both("(T[2,3] x, T[3,2] w, T[2] b) => (y) { y = Gemm(x, w, b) }", "int32"),
    "one-hot-indices": (
        ProbeGraph(ONE_HOT.replace("T", "float"), feeds={"i": [2, 0, 1]}),
        ProbeGraph(ONE_HOT.replace("T", "int64"), feeds={"i": [2, 0, 1]}),
    ),
    "fp8": _through("float8e4m3fn", 17),
    "fp8-constant": (
        ProbeGraph(
            "(float[2] x, float8e5m2[2] c) => (float[2] y) { a = Cast<to = 1>(c) y = Add(x, a) }",
            constants={"c": np.ones(2, float8_e5m2)},
        ),
        RELU,
    ),
    "fp8-unknown": _through("float8e4m3fn", 17),
    "unmapped-dtype": _through("uint4", 21),
    "int4-old": _through("int4", 22),
    "int4": _through("int4", 22),
    "complex": (ProbeGraph("(complex64[2] x) => (y) { y = Identity(x) }"), RELU),
    "strings": (ProbeGraph("(string[2] x) => (y) { y = Identity(x) }"), RELU),
    "zero-sized": (
        ProbeGraph("(float[2,3] x) => (y) <int64[1] s = {2}, int64[1] a = {0}> { y = Slice(x, s, s, a) }"),
        ProbeGraph("(float[2,3] x) => (y) <int64[1] s = {1}, int64[1] e = {2}, int64[1] a = {0}> { y = Slice(x, s, e, a) }"),
    ),
    "infinite-constant": _with_infinity(),
    "saturation": (ProbeGraph("(float[2,3] x) => (y) { y = IsNaN(x) }", feeds={"x": ODD}), RELU),
    "fp16-constant": _added(1e5),
    "fp16-constant-negative": _added(-1e9),
    "fp32-cube": (ProbeGraph(_typed(MATMUL, "float")), ProbeGraph(_typed(MATMUL, "float16"))),
    "conv-3d-fp32": (ProbeGraph(CONV_3D), ProbeGraph(CONV)),
    "conv-transpose-fp32": (*_both(TRANSPOSED, "float")[:1], ProbeGraph(_typed(TRANSPOSED, "float16"))),
    "bf16-prototype": _both(GRID, "bfloat16", feeds=GRID_FED),
    "einsum-prototype": (
        ProbeGraph('(int64[2,3] x, int64[2,3] w) => (y) { y = Einsum<equation = "ab,cb->ac">(x, w) }'),
        ProbeGraph('(float[2,3] x, float[2,3] w) => (y) { y = Einsum<equation = "ab,cb->ac">(x, w) }'),
    ),
    "dtype-where": _both(WHERE, "int64"),
    "cast-target": (
        ProbeGraph("(float[2,3] x) => (y) { y = Cast<to = 7>(x) }"),
        ProbeGraph("(float[2,3] x) => (y) { y = Cast<to = 6>(x) }"),
    ),
    "cast-int8": (
        ProbeGraph("(int32[2,3] x) => (y) { y = Cast<to = 3>(x) }", feeds=ANY),
        ProbeGraph("(float[2,3] x) => (y) { y = Cast<to = 6>(x) }"),
    ),
    "cast-int16": (
        ProbeGraph("(float16[2,3] x) => (y) { y = Cast<to = 5>(x) }", feeds=ANY),
        ProbeGraph("(float[2,3] x) => (y) { y = Cast<to = 6>(x) }"),
    ),
    "cast-undefined": _through("float8e4m3fn", 17),
    "pow-mixed": (
        ProbeGraph("(float[3] x, int64[3] p) => (y) { y = Pow(x, p) }", feeds={"x": [1, 2, 3], "p": [2, 3, 1]}),
        ProbeGraph("(float[3] x, float[3] p) => (y) { y = Pow(x, p) }", feeds={"x": [1, 2, 3], "p": [2, 3, 1]}),
    ),
    "integer-division": (
        ProbeGraph(
            "(int32[6] x, int32[6] z) => (y) { y = Div(x, z) }", feeds={"x": [7, -7, 7, -7, 11, -11], "z": [2, 2, -2, -2, 4, 4]}
        ),
        ProbeGraph("(float[3] x, float[3] z) => (y) { y = Div(x, z) }", feeds={"x": [7, -7, 1], "z": [2, 2, 4]}),
    ),
}

IMAGE = "(T[1,2,6,6] x) => (y) {{ y = {} }}"
CONTROL_DTYPES = {"dtype-mod": "int32"}  # where float32 goes with no plain attribute
# rule on the dtype of the first input -> its operator, with T for the dtype
TEMPLATES: Mapping[str, ProbeGraph] = {
    f"dtype-{op.lower()}": ProbeGraph(text, feeds=feeds)
    for op, text, feeds in (
        ("Softmax", "(T[2,3] x) => (y) { y = Softmax<axis = 1>(x) }", {}),
        ("Gather", "(T[2,3] x) => (y) <int64[2] i = {1, 0}> { y = Gather(x, i) }", {}),
        ("GatherElements", "(T[2,3] x) => (y) <int64[1,3] i = {1, 0, 1}> { y = GatherElements(x, i) }", {}),
        ("GatherND", "(T[2,3] x) => (y) <int64[2,1] i = {1, 0}> { y = GatherND(x, i) }", {}),
        ("ScatterND", "(T[2,3] x, T[1,3] u) => (y) <int64[1,1] i = {1}> { y = ScatterND(x, i, u) }", {}),
        ("ScatterElements", "(T[2,3] x, T[1,3] u) => (y) <int64[1,3] i = {1, 0, 1}> { y = ScatterElements(x, i, u) }", {}),
        ("Slice", "(T[2,3] x) => (y) <int64[1] s = {0}, int64[1] e = {1}, int64[1] a = {0}> { y = Slice(x, s, e, a) }", {}),
        ("Split", "(T[4,3] x) => (y, z) <int64[2] s = {2, 2}> { y, z = Split(x, s) }", {}),
        ("Transpose", "(T[2,3] x) => (y) { y = Transpose<perm = [1, 0]>(x) }", {}),
        ("Expand", "(T[1,3] x) => (y) <int64[2] s = {2, 3}> { y = Expand(x, s) }", {}),
        ("Clip", "(T[2,3] x, T lo, T hi) => (y) { y = Clip(x, lo, hi) }", {"lo": 0, "hi": 1}),
        ("Pad", "(T[2,3] x) => (y) <int64[4] p = {0, 1, 0, 1}> { y = Pad(x, p) }", {}),
        (
            "Resize",
            "(T[1,1,4,4] x) => (y) <float[4] s = {1, 1, 2, 2}> "
            '{ y = Resize<mode = "nearest", nearest_mode = "round_prefer_ceil">(x, , s) }',
            {},
        ),
        ("AveragePool", IMAGE.format("AveragePool<kernel_shape = [2, 2]>(x)"), {}),
        ("MaxPool", IMAGE.format("MaxPool<kernel_shape = [2, 2]>(x)"), {}),
        ("ReduceMean", "(T[2,3] x) => (y) <int64[1] a = {1}> { y = ReduceMean(x, a) }", {}),
        ("ReduceSum", "(T[2,3] x) => (y) <int64[1] a = {1}> { y = ReduceSum(x, a) }", {}),
        ("ReduceMax", "(T[2,3] x) => (y) <int64[1] a = {1}> { y = ReduceMax(x, a) }", {}),
        (
            "TopK",
            "(T[2,3] x) => (y, i) <int64[1] k = {2}> { y, i = TopK<axis = 1, largest = 1, sorted = 1>(x, k) }",
            {"x": [[3, 1, 2], [4, 6, 5]]},
        ),
        ("NonZero", "(T[2,3] x) => (y) <int64[2] a = {0, 1}> { n = NonZero(x) f = Cast<to = 1>(n) y = ReduceSum(f, a) }", {}),
        ("CumSum", "(T[2,3] x) => (y) <int64 a = {1}> { y = CumSum(x, a) }", {}),
        ("Mod", "(T[3] x, T[3] z) => (y) { y = Mod<fmod = 0>(x, z) }", {"x": [7, 5, 4], "z": [2, 3, 4]}),
        ("Pow", "(T[3] x, T[3] z) => (y) { y = Pow(x, z) }", {"x": [1, 2, 3], "z": [2, 3, 1]}),
        ("Add", "(T[3] x, T[3] z) => (y) { y = Add(x, z) }", {}),
        ("Sigmoid", "(T[2,3] x) => (y) { y = Sigmoid(x) }", {}),
        ("Tanh", "(T[2,3] x) => (y) { y = Tanh(x) }", {}),
        ("GridSample", "(T[1,1,4,4] x, float[1,3,3,2] g) => (y) { y = GridSample(x, g) }", GRID_FED),
        ("InstanceNormalization", "(T[1,2,4,4] x, T[2] s, T[2] b) => (y) { y = InstanceNormalization(x, s, b) }", {}),
        (
            "BatchNormalization",
            "(T[1,2,4,4] x, T[2] s, T[2] b, T[2] m, T[2] v) => (y) { y = BatchNormalization<epsilon = 0.001>(x, s, b, m, v) }",
            {"v": [1, 2]},
        ),
        ("Gemm", "(T[2,3] x, T[3,2] w, T[2] c) => (y) { y = Gemm(x, w, c) }", {}),
        ("Cast", "(T[2,3] x) => (y) { y = Cast<to = 1>(x) }", {}),
    )
}
