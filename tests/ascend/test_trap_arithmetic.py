"""Traps of operators that compute: attributes that are ignored are gone or written, and no bit is another but where it is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.batch_norm_epsilon import batch_norm_epsilon
from porting.converters.passes.ascend.cast_saturate import cast_saturate
from porting.converters.passes.ascend.clip_bounds import clip_bounds
from porting.converters.passes.ascend.constant_forms import constant_forms
from porting.converters.passes.ascend.gemm_bias import gemm_bias
from porting.converters.passes.ascend.int_div import int_div
from porting.converters.passes.ascend.is_inf import is_inf
from porting.converters.passes.ascend.mod_fmod import mod_fmod
from porting.converters.passes.ascend.pow_exponent import pow_exponent
from porting.converters.passes.ascend.selu import selu
from porting.converters.passes.ascend.softmax_axis import softmax_axis
from porting.converters.passes.ascend.where_int64 import where_int64
from porting.types import Graph
from tests.ascend.lowering_checks import FLOAT32, kinds, read, require_lowered
from tests.graph_bits import named, run, same_bits, whole

FEW = settings(max_examples=25, deadline=None)
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3e38, -3e38, 0.5, -0.5, 7.0, -7.0, 16777217], np.float32)


def of_kind(graph: Graph, kind: str) -> list[ir.Node]:
    return [node for node in graph.model.graph if node.op_type == kind]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


@FEW
@given(st.integers(0, 40), st.booleans(), st.lists(st.floats(width=32), max_size=20))
def test_a_remainder_by_a_power_of_two(power: int, below: bool, more: list[float]) -> None:
    divisor = np.array([(-1 if below else 1) * 2.0**power], np.float32)
    with np.errstate(over="ignore"):
        x = np.concatenate([SPECIAL, SPECIAL * divisor, np.array(more, np.float32)])
    graph = read(f"(float[{len(x)}] x) => (float y) {{ y = Mod<fmod=1>(x, b) }}", 17, b=divisor)
    lowered = require_lowered(mod_fmod, graph, {"x": x})
    assert not of_kind(lowered, "Mod")


@pytest.mark.parametrize("divisor", [3.0, 0.5, np.inf, 0.0])
def test_a_remainder_by_another_float_is_left(divisor: float) -> None:
    graph = read("(float[3] x) => (float y) { y = Mod<fmod=1>(x, b) }", 17, b=np.array([divisor], np.float32))
    assert mod_fmod(graph)[1] == 0


# of int64 only what a double holds: onnxruntime computes the remainder there
WHOLE = {"int32": st.integers(-(2**31) + 1, 2**31 - 1), "int64": st.integers(-(2**53), 2**53), "uint8": st.integers(0, 255)}


@FEW
@given(st.sampled_from(["int32", "int64", "uint8"]), st.booleans(), st.data())
def test_a_remainder_of_integers(kind: str, constant: bool, data: st.DataObject) -> None:
    numbers = st.one_of(WHOLE[kind], st.integers(0 if kind == "uint8" else -9, 9))
    a = np.array(data.draw(st.lists(numbers, min_size=8, max_size=8)), kind)
    b = np.array(data.draw(st.lists(numbers.filter(bool), min_size=8, max_size=8)), kind)
    b = np.abs(b) if constant else b
    more = "" if constant else f", {kind}[8] b"
    graph = read(f"({kind}[8] a{more}) => ({kind} y) {{ y = Mod<fmod=1>(a, b) }}", 17, **({"b": b} if constant else {}))
    lowered = require_lowered(mod_fmod, graph, {"a": a, "b": b})
    assert all(not node.attributes.get("fmod") for node in lowered.model.graph)


@FEW
@given(st.data())
def test_a_division_of_integers_that_are_32_bits_wide(data: st.DataObject) -> None:
    numbers = st.one_of(WHOLE["int32"], st.integers(-9, 9))
    a = np.array(data.draw(st.lists(numbers, min_size=8, max_size=8)), np.int32)
    b = np.array(data.draw(st.lists(numbers.filter(bool), min_size=8, max_size=8)), np.int32)
    lowered = require_lowered(int_div, read("(int32[8] a, int32[8] b) => (int32 y) { y = Div(a, b) }", 17), {"a": a, "b": b})
    assert [node.inputs[0].dtype for node in of_kind(lowered, "Div") if node.inputs[0]] == [ir.DataType.DOUBLE]


@FEW
@given(st.integers(1, 40), st.sampled_from([1, 2, 3, 7, -2, -3]))
def test_a_division_of_sizes(size: int, divisor: int) -> None:
    graph = read(
        "(float[n] x) => (int64 y, int64 z) { s = Shape(x) m = Neg(s) y = Div(s, b) z = Div(m, b) }",
        17,
        b=np.array([divisor], np.int64),
    )
    lowered = require_lowered(int_div, graph, {"x": random(size)}, changes=2)
    assert all(node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.DOUBLE for node in of_kind(lowered, "Div"))


def test_a_division_of_what_another_gave() -> None:
    text = "(float[n] x) => (int64 y) { s = Shape(x) d = Div(s, b) m = Sub(d, s) e = Mul(m, b) y = Div(e, b) }"
    graph = read(text, 17, b=np.array([2], np.int64))
    require_lowered(int_div, graph, {"x": random(7)}, changes=2)


def test_a_division_of_few_places_needs_no_double() -> None:
    graph = read("(uint8[5] a) => (uint8 y) { y = Div(a, b) }", 17, b=np.array([7], np.uint8))
    lowered = require_lowered(int_div, graph, {"a": np.array([0, 6, 7, 13, 255], np.uint8)})
    assert [node.inputs[0].dtype for node in of_kind(lowered, "Div") if node.inputs[0]] == [ir.DataType.FLOAT]


def test_a_division_of_64_bits_that_are_fed_is_left() -> None:
    graph = read("(int64[n] a) => (int64 y) { y = Div(a, b) }", 17, b=np.array([2], np.int64))
    assert int_div(graph)[1] == 0


@FEW
@given(st.sampled_from(["int64", "bool", "float"]), st.data())
def test_where_of_undocumented_types(kind: str, data: st.DataObject) -> None:
    if kind == "int64":
        values = [data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4, max_size=4)) for _ in range(2)]
        a, b = (np.array(v, np.int64) for v in values)
    else:
        a, b = (random(4) > 0, random(5)[1:] > 0) if kind == "bool" else (random(4), random(5)[1:])
    graph = read(f"(bool[2, 1] c, {kind}[4] a, {kind}[4] b) => ({kind} y) {{ y = Where(c, a, b) }}", 17)
    feeds = {"c": np.array([[True], [False]]), "a": a, "b": b}
    if kind == "bool":  # onnxruntime has no such Where
        lowered, count = where_int64(graph)
        assert count == 1 and same_bits(run(whole(lowered), feeds)[0], np.where(feeds["c"], a, b))
    else:
        lowered = require_lowered(where_int64, graph, feeds, changes=int(kind != "float"))
    assert kind == "float" or not of_kind(lowered, "Where")


ULP = 2.0**-23  # powf, and pow of doubles that is rounded


@FEW
@given(
    st.sampled_from(
        [
            ("float", "int64"),
            ("float", "double"),
            ("double", "int32"),
            ("float16", "float"),
            ("int32", "float"),
            ("int64", "int32"),
        ]
    ),
    st.lists(st.integers(0, 4), min_size=3, max_size=3),
)
def test_a_constant_exponent_of_another_type(kinds_: tuple[str, str], exponents: list[int]) -> None:
    base, other = (onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, kind.upper())) for kind in kinds_)
    graph = read(f"({kinds_[0]}[4, 3] x) => ({kinds_[0]} y) {{ y = Pow(x, e) }}", 17, e=np.array(exponents, other))
    lowered = require_lowered(
        pow_exponent, graph, {"x": (random(4, 3) * 3).astype(base)}, bound=ULP if kinds_[0] == "float" else 0.0
    )
    (power,) = of_kind(lowered, "Pow")
    assert [value.dtype for value in power.inputs if value] == [ir.DataType[kinds_[0].upper()]] * 2


def test_a_fed_exponent_that_the_base_holds() -> None:
    graph = read("(float[2] x, float16[2] e) => (float y) { y = Pow(x, e) }", 17)
    require_lowered(pow_exponent, graph, {"x": np.array([2, 3], np.float32), "e": np.array([0.5, -2], np.float16)}, bound=ULP)


@pytest.mark.parametrize(
    ("base", "exponent"),
    [
        ("float", np.int64(2**24 + 1)),
        ("float", np.float64(0.1)),
        ("float16", np.float32(1e5)),
        ("int32", np.float32(0.5)),
        ("int32", np.int64(-1)),
    ],
)
def test_an_exponent_that_the_base_does_not_have_is_left(base: str, exponent: np.generic) -> None:
    graph = read(f"({base}[3] x) => ({base} y) {{ y = Pow(x, e) }}", 17, e=np.asarray(exponent))
    assert pow_exponent(graph)[1] == 0


@pytest.mark.parametrize(
    ("base", "exponent"), [("float", "int32"), ("float", "double"), ("int32", "float"), ("float", "int64")]
)
def test_a_fed_exponent_that_the_base_may_not_have_is_left(base: str, exponent: str) -> None:
    assert pow_exponent(read(f"({base}[3] x, {exponent}[3] e) => ({base} y) {{ y = Pow(x, e) }}", 17))[1] == 0


@FEW
@given(st.floats(-4, 4, width=32), st.integers(0, 1), st.integers(0, 1), st.integers(1, 300))
def test_gemm_scales_by_a_mul(alpha: float, left: int, right: int, depth: int) -> None:
    a, b = random(depth, 3) if left else random(3, depth), random(5, depth) if right else random(depth, 5)
    text = (
        f"(float[{a.shape[0]}, {a.shape[1]}] a, float[{b.shape[0]}, {b.shape[1]}] b) => (float y) "
        f"{{ y = Gemm<alpha={alpha!r}, beta=0.5, transA={left}, transB={right}>(a, b) }}"
    )
    # alpha times a sum of up to 300 products against the sum of alpha times its parts
    lowered = require_lowered(gemm_bias, read(text.replace("=-", "= -"), 17), {"a": a, "b": b}, bound=300 * FLOAT32)
    assert set(of_kind(lowered, "Gemm")[0].attributes) == {"transA", "transB"}


@pytest.mark.parametrize(
    ("kind", "dtype"), [("float", np.float32), ("int32", np.int32), ("int8", np.int8), ("double", np.float64)]
)
@pytest.mark.parametrize("inputs", ["x", "x, , "])
def test_clip_has_bounds(kind: str, dtype: Any, inputs: str) -> None:
    x = (
        SPECIAL.astype(dtype)
        if kind in ("float", "double")
        else np.array([np.iinfo(dtype).min, -1, 0, np.iinfo(dtype).max], dtype)
    )
    graph = read(f"({kind}[{len(x)}] x) => ({kind} y) {{ y = Clip({inputs}) }}", 17)
    node = of_kind(require_lowered(clip_bounds, graph, {"x": x}), "Clip")[0]
    assert all(v is not None for v in node.inputs) and len(node.inputs) == 3


@pytest.mark.parametrize(("negative", "positive"), [(0, 1), (1, 0), (0, 0), (1, 1)])
def test_both_infinities_are_asked_for(negative: int, positive: int) -> None:
    written = f"detect_negative={negative}, detect_positive={positive}"
    graph = read(f"(float[{len(SPECIAL)}] x) => (bool y) {{ y = IsInf<{written}>(x) }}", 17)
    lowered = require_lowered(is_inf, graph, {"x": SPECIAL}, changes=int(not negative or not positive))
    assert all(a.as_int() == 1 for a in of_kind(lowered, "IsInf")[0].attributes.values())


@FEW
@given(st.floats(0.5, 3, width=32), st.floats(0.5, 3, width=32))
def test_selu_is_elu(alpha: float, gamma: float) -> None:
    graph = read(f"(float[50] x) => (float y) {{ y = Selu<alpha={alpha!r}, gamma={gamma!r}>(x) }}", 17)
    # exp may be another function, and gamma is applied later: some units in the last place
    assert not of_kind(require_lowered(selu, graph, {"x": random(50) * 3}, bound=8 * FLOAT32), "Selu")


@FEW
@given(
    st.sampled_from(["Softmax", "LogSoftmax", "Hardmax"]),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.booleans(),
    st.data(),
)
def test_softmax_below_13(kind: str, sizes: list[int], free: bool, data: st.DataObject) -> None:
    axis = data.draw(st.sampled_from([None, *range(-len(sizes) if len(sizes) > 0 else 0, len(sizes))]))
    if axis is None and len(sizes) == 1:
        return  # the default axis of 1 is not there
    written = "" if axis is None else f"<axis={axis}>"
    dims = ", ".join(f"d{i}" if free else str(s) for i, s in enumerate(sizes))
    graph = read(f"(float[{dims}] x) => (float y) {{ y = {kind}{written.replace('=-', '= -')}(x) }}", 12)
    last = (1 if axis is None else axis) % len(sizes) == len(sizes) - 1
    changes = int(axis is None) if last else 1
    lowered = require_lowered(softmax_axis, graph, {"x": random(*sizes)}, changes=changes)
    (node,) = of_kind(lowered, kind)
    assert node.inputs[0] is not None and node.inputs[0].shape is not None
    assert node.attributes["axis"].as_int() in (-1, len(node.inputs[0].shape) - 1)


def test_softmax_from_13_on_says_its_axis() -> None:
    lowered = require_lowered(softmax_axis, read("(float[2, 3] x) => (float y) { y = Softmax(x) }", 13), {"x": random(2, 3)})
    assert of_kind(lowered, "Softmax")[0].attributes["axis"].as_int() == -1


def test_epsilon_is_written() -> None:
    weights = {name: np.abs(random(2)) + np.float32(0.1) for name in "sbmv"}
    text = (
        "(float[1, 2, 3] x) => (float y, float z, float w) { y = BatchNormalization(x, s, b, m, v) "
        "z = InstanceNormalization(x, s, b) w = LayerNormalization<axis=1>(x, t) }"
    )
    graph = read(text, 17, t=random(2, 3), **weights)
    lowered = require_lowered(batch_norm_epsilon, graph, {"x": random(1, 2, 3)}, changes=3)
    assert all(node.attributes["epsilon"].as_float() == pytest.approx(1e-5) for node in lowered.model.graph)


def test_saturate_of_ordinary_types_goes() -> None:
    text = "(float[2] x) => (int32 y, float8e4m3fn z) { y = Cast<to=6, saturate=0>(x) z = Cast<to=17, saturate=0>(x) }"
    lowered, count = cast_saturate(read(text, 19))
    assert count == 1
    assert ["saturate" in node.attributes for node in lowered.model.graph] == [False, True]


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("value_int=3", "int64"),
        ("value_float=0.5", "float"),
        ("value_floats=[0.5, -1.0]", "float"),
        ("value_ints=[3, -4]", "int64"),
        ('value_string="a b"', "string"),
        ('value_strings=["a", "é"]', "string"),
    ],
)
def test_constants_are_tensors(form: str, kind: str) -> None:
    text = f"() => ({kind} y) {{ y = Constant<{form.replace('-', ' -')}>() }}".replace("Constant<", "Constant <")
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\ntest {text}')
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    graph = named(ir.serde.deserialize_model(proto))
    lowered, count = constant_forms(graph)
    assert count == 1 and set(next(iter(lowered.model.graph)).attributes) == {"value"}
    assert constant_forms(lowered)[1] == 0
    assert same_bits(run(whole(lowered), {})[0], run(whole(graph), {})[0])
    assert set(kinds(lowered)) == {"Constant"}
