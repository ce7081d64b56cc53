"""Quantised operators as floats: the same numbers, to the last bit, as onnxruntime's own integer kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.dequantize import dequantize
from tests.ascend.lowering_checks import kinds, read, require_lowered
from tests.graph_bits import whole

INTEGERS = {"uint8": np.uint8, "int8": np.int8}
# A product of two numbers of 7 bits, twice, fits into 16: onnxruntime's kernels for older processors add pairs of products in 16 bits and
# saturate, which is a mistake of theirs and no part of the operator.
SMALL = {"uint8": (0, 128), "int8": (-64, 64)}


def drawn(rng: np.random.Generator, kind: str, *shape: int) -> np.ndarray:
    return rng.integers(*SMALL[kind], shape).astype(INTEGERS[kind])


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from(sorted(INTEGERS)),
    st.sampled_from(["one", "axis"]),
    st.integers(-4, 3),
    st.booleans(),
    st.integers(0, 999),
)
@settings(max_examples=50, deadline=None)
def test_quantize_and_dequantize(shape: list[int], kind: str, how: str, axis: int, zero: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    axis = axis % len(shape)
    count = () if how == "one" else (shape[axis],)
    s = rng.uniform(0.01, 0.2, count).astype(np.float32)
    z = rng.integers(0, 20, count).astype(INTEGERS[kind])
    dims = f"[{', '.join(map(str, shape))}]"
    third = ", z" if zero or kind == "int8" else ""
    text = f"(float{dims} x) => ({kind}{dims} q, float{dims} y) {{ q = QuantizeLinear<axis = {axis}>(x, s{third})"
    graph = read(f"{text} y = DequantizeLinear<axis = {axis}>(q, s{third}) }}", 18, s=s, z=z)
    x = (rng.standard_normal(shape) * 10).astype(np.float32)
    lowered = require_lowered(dequantize, graph, {"x": x}, changes=2)
    assert kinds(lowered)["Cast"] <= 1 + 2 * bool(third), "what was floats is not cast to integers and back"


@given(
    st.integers(1, 3),
    st.integers(1, 900),
    st.integers(1, 3),
    st.sampled_from(sorted(INTEGERS)),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_mat_mul_integer(m: int, k: int, n: int, kind: str, rows: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    feeds: dict[str, Any] = {"a": drawn(rng, "uint8", 2, m, k), "za": np.array(7, np.uint8)}
    weights = {"b": drawn(rng, kind, k, n), "zb": drawn(rng, kind, n) if rows else np.array(3, INTEGERS[kind])}
    text = f"(uint8[2, {m}, {k}] a, uint8 za) => (int32[2, {m}, {n}] y) {{ y = MatMulInteger(a, b, za, zb) }}"
    require_lowered(dequantize, read(text, 18, **weights), feeds, branches=False)


@given(
    st.integers(1, 3000),
    st.sampled_from(["int8", "uint8"]),
    st.sampled_from(["int8", "uint8"]),
    st.booleans(),
    st.sampled_from(["MatMul", "Conv"]),
)
@settings(max_examples=40, deadline=None)
def test_no_sum_overflows_fp16_and_what_is_multiplied_is_exact_in_it(
    k: int, left: str, right: str, zeros: bool, operator: str
) -> None:
    """Of the largest numbers: matrix products cannot be kept in float32 on a 310P, what follows them can."""
    a, b = (np.full((2, k), np.iinfo(one).max if one == "uint8" else np.iinfo(one).min, one) for one in (left, right))
    a[0, 0], b[0, 0] = 1, 1
    third = ", za, zb" if zeros else ""
    constants: dict[str, Any] = {"za": np.array(0, left), "zb": np.array(3, right)} if zeros else {}
    if operator == "MatMul":
        text = f"({left}[2, {k}] a) => (int32[2, 2] y) {{ y = MatMulInteger(a, b{third}) }}"
        feeds, weights = {"a": a}, {"b": b.T}
    else:
        text = f"({left}[2, {k}, 1] a) => (int32[2, 2, 1] y) {{ y = ConvInteger(a, b{third}) }}"
        feeds, weights = {"a": a[:, :, None]}, {"b": b[:, :, None]}
    lowered, changes = dequantize(read(text, 18, **weights, **constants))
    assert changes == 1
    model = onnx.load_model_from_string(ir.to_proto(lowered.model).SerializeToString())
    products = [node for node in model.graph.node if node.op_type == operator]
    names = [name for node in products for name in (*node.input[:2], *node.output)]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
    assert products
    for node in products:
        for name in node.input[:2]:
            np.testing.assert_array_equal(values[name].astype(np.float16).astype(np.float32), values[name])
        assert np.abs(values[node.output[0]]).max() <= np.finfo(np.float16).max
    zero = int(constants["zb"]) if zeros else 0
    wanted = a.astype(np.int64) @ (b.astype(np.int64) - zero).T
    np.testing.assert_array_equal(next(iter(values.values())).reshape(2, 2), wanted)


@given(st.integers(1, 40), st.integers(1, 3), st.booleans(), st.integers(0, 1), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_conv_integer(channels: int, kernel: int, zero: bool, pad: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    feeds = {"x": drawn(rng, "uint8", 1, channels, 5, 5), "z": np.array(9, np.uint8)}
    third = ", z" if zero else ""
    text = f"(uint8[1, {channels}, 5, 5] x, uint8 z) => (int32 y) {{ y = ConvInteger<pads = [{pad}, {pad}, {pad}, {pad}]>(x, w{third}) }}"
    graph = read(text, 18, w=drawn(rng, "uint8", 3, channels, kernel, kernel))
    require_lowered(dequantize, graph, feeds, branches=False)


@given(st.integers(0, 99), st.sampled_from([0.0, 1.0, -4.0]))
@settings(max_examples=20, deadline=None)
def test_dynamic_quantisation_of_a_linear_layer(seed: int, shift: float) -> None:
    """As onnxruntime's quantize_dynamic writes it. The scale is one number, and a product with it the only rounding."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((3, 8)) + shift).astype(np.float32)
    graph = read(
        """(float[N, 8] x) => (float[N, 4] y, uint8[N, 8] q, float s, uint8 z) {
            q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z) f = Cast<to = 1>(i) y = Mul(f, s)
        }""",
        17,
        w=drawn(rng, "int8", 8, 4),
    )
    require_lowered(dequantize, graph, {"x": x}, changes=2)


def test_zeros_have_a_scale_too() -> None:
    graph = read("(float[4] x) => (uint8[4] q, float s, uint8 z) { q, s, z = DynamicQuantizeLinear(x) }", 17)
    require_lowered(dequantize, graph, {"x": np.zeros(4, np.float32)})


@given(st.integers(1, 300), st.sampled_from(["one", "channel"]), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_quantised_product_and_convolution(k: int, how: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = () if how == "one" else (3,)
    scalars = {"sa": np.float32(0.02), "za": np.uint8(5), "sy": np.float32(0.3), "zy": np.uint8(100)}
    weights = {"sb": rng.uniform(0.01, 0.1, count).astype(np.float32), "zb": np.zeros(count, np.int8)}
    text = f"(uint8[2, {k}] a) => (uint8[2, 3] y) {{ y = QLinearMatMul(a, sa, za, b, sb, zb, sy, zy) }}"
    graph = read(text, 18, b=drawn(rng, "int8", k, 3), **weights, **scalars)
    require_lowered(dequantize, graph, {"a": drawn(rng, "uint8", 2, k)}, branches=False)
    text = f"(uint8[1, {k}, 4] a) => (uint8[1, 3, 4] y) {{ y = QLinearConv(a, sa, za, b, sb, zb, sy, zy, c) }}"
    bias = rng.integers(-500, 500, 3).astype(np.int32)
    graph = read(text, 18, b=drawn(rng, "int8", 3, k, 1), c=bias, **weights, **scalars)
    require_lowered(dequantize, graph, {"a": drawn(rng, "uint8", 1, k, 4)}, branches=False)


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        ("(float16[4] x, float16 s) => (uint8[4] q) { q = QuantizeLinear(x, s) }", 21),
        ("(float[4, 4] x, float[2, 4] s) => (uint8[4, 4] q) { q = QuantizeLinear<axis = 0, block_size = 2>(x, s) }", 21),
        ("(uint8[3, K] a, uint8[K, 2] b) => (int32[3, 2] y) { y = MatMulInteger(a, b) }", 18),
        ("(uint8[3, 100000] a, uint8[100000, 2] b) => (int32[3, 2] y) { y = MatMulInteger(a, b) }", 18),
        ("(float[4] x) => (float[4] y) { y = Round(x) }", 18),
    ],
)
def test_it_leaves_what_it_has_no_exact_form_for(text: str, opset: int) -> None:
    graph = read(text, opset)
    lowered, changes = dequantize(graph)
    assert changes == 0 and whole(lowered) == whole(graph)
