"""What nodes store, against torch's half floats, numpy's and ml_dtypes', which share nothing with the code that rounds."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from porting.backends.cann_simulator.arithmetic import mode_of, shortened
from porting.backends.cann_simulator.machine import Refused
from tests.cann_simulator.compiled import compiled, graph_of

F = np.float32
RNG = np.random.default_rng(11)
X = (RNG.standard_normal((5, 6)) * 3).astype(F)
W = RNG.standard_normal((6, 4)).astype(F)
B = RNG.standard_normal(4).astype(F)
SATURATING, OTHERS = ("Ascend310P3", "Ascend310B1", "Ascend910A"), ("Ascend910B3", "Ascend910_9392", "Ascend950PR_9599")
LARGEST = 65504.0


def layer(x: np.ndarray = X, w: np.ndarray = W, b: np.ndarray = B) -> onnx.ModelProto:
    """Exp(x w + b): a product of the matrix unit and two vector operators."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("Add", ["p", "b"], ["s"], name="sum"),
        helper.make_node("Exp", ["s"], ["y"], name="exp"),
    ]
    return graph_of(nodes, {"x": x}, {"y": T.FLOAT, "s": T.FLOAT, "p": T.FLOAT}, {"w": w, "b": b})


def by_torch(kind: torch.dtype, x: np.ndarray = X, w: np.ndarray = W, b: np.ndarray = B) -> list[np.ndarray]:
    """Each operator on operands of that dtype, in float32, stored in that dtype."""

    def store(t: torch.Tensor) -> torch.Tensor:
        return t.to(kind).float()

    x, w, b = (store(torch.from_numpy(a)) for a in (x, w, b))
    product = store(x @ w)
    total = store(product + b)
    return [t.numpy() for t in (store(torch.exp(total)), total, product)]


def assert_stored_like(found: list[np.ndarray], wanted: list[np.ndarray], kind: type) -> None:
    """Equal, but where a sum in another order or another exp lies next to a tie: then by one step of the format, in few elements."""
    for got, want in zip(found, wanted, strict=True):
        assert np.array_equal(got, got.astype(kind).astype(F))  # it is stored in that format
        differs = got != want
        step = np.maximum(np.abs(want), 2.0**-14) * 2.0 ** (-10 if kind is np.float16 else -7)
        assert differs.mean() <= 0.1 and np.all(np.abs(got - want)[differs] <= step[differs])


@pytest.mark.parametrize("soc", [*SATURATING, *OTHERS])
def test_fp16_is_stored_after_every_operator(soc):
    assert_stored_like(compiled(layer(), soc, precision_mode_v2="fp16").run([X]), by_torch(torch.float16), np.float16)


@pytest.mark.parametrize("soc", OTHERS)
def test_bf16_is_stored_after_every_operator(soc):
    found = compiled(layer(), soc, precision_mode_v2="mixed_bfloat16").run([X])
    assert_stored_like(found, by_torch(torch.bfloat16), ml_dtypes.bfloat16)


def test_bf16_is_refused_where_there_is_none():
    with pytest.raises(Refused, match="bf16"):
        compiled(layer(), "Ascend310P3", precision_mode_v2="mixed_bfloat16")


def test_origin_computes_the_graph_as_it_is():
    found = compiled(layer(), precision_mode_v2="origin").run([X])
    assert np.allclose(found[0], np.exp(X @ W + B), rtol=1e-6)


def exact(x: np.ndarray, precision: str = "fp16", soc: str = "Ascend910B3", op: str = "Neg") -> np.ndarray:
    """One operator that is exact: what comes out is minus what was stored."""
    model = graph_of([helper.make_node(op, ["x"], ["y"], name="n")], {"x": x}, {"y": T.FLOAT})
    mode = {"fp16": "fp16", "bf16": "mixed_bfloat16"}[precision]
    return compiled(model, soc, precision_mode_v2=mode).run([x])[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_any_number_is_stored_as_ieee_says(numbers):
    x = np.array(numbers, F)
    with np.errstate(over="ignore"):
        half, brain = -x.astype(np.float16).astype(F), -x.astype(ml_dtypes.bfloat16).astype(F)
    assert np.array_equal(exact(x), half, equal_nan=True)
    assert np.array_equal(exact(x, "bf16"), brain, equal_nan=True)
    saturated = np.where(np.isnan(x), 0, np.clip(half, -LARGEST, LARGEST))
    assert np.array_equal(exact(x, soc="Ascend310P3"), saturated)


def test_the_numbers_beside_the_limits():
    """Ties to even, subnormals, and the first number that is too large."""
    x = F([1 + 2**-11, 1 + 3 * 2**-11, 2**-24, 2**-25, 1.5 * 2**-24, 65504, 65519.99, 65520, -1e9, np.inf, -np.inf, np.nan])
    wanted = [1, 1 + 2**-9, 2**-24, 0, 2**-23, 65504, 65504, np.inf, -np.inf, np.inf, -np.inf, np.nan]
    assert np.array_equal(-exact(x), F(wanted), equal_nan=True)
    kept = [1, 1 + 2**-9, 2**-24, 0, 2**-23, 65504, 65504, 65504, -65504, 65504, -65504, 0]
    for soc in SATURATING:
        assert np.array_equal(-exact(x, soc=soc), F(kept))


@pytest.mark.parametrize(("soc", "wanted"), [*((s, LARGEST) for s in SATURATING), *((s, np.inf) for s in OTHERS)])
def test_exp_of_twelve(soc, wanted):
    """The documents' own example: 162754 is beyond fp16."""
    assert exact(F([12]), soc=soc, op="Exp")[0] == wanted


@pytest.mark.parametrize("soc", ["Ascend310P3", "Ascend910B3"])
@pytest.mark.parametrize(("clip", "wanted"), [("1", LARGEST), ("0", np.inf)])
def test_weights_that_are_too_large(soc, clip, wanted):
    model = graph_of([helper.make_node("Max", ["x", "w"], ["y"], name="n")], {"x": F([1])}, {"y": T.FLOAT}, {"w": F([1e6])})
    found = compiled(model, soc, precision_mode_v2="fp16", is_weight_clip=clip).run([F([1])])[0]
    assert found[0] == (LARGEST if soc == "Ascend310P3" else wanted)


@pytest.mark.parametrize(("clip", "wanted"), [("1", LARGEST), ("0", np.inf)])
@pytest.mark.parametrize("where", ["node", "branch"])
def test_constants_that_are_too_large_and_no_initializers(where, clip, wanted):
    def nodes_in(place):
        large = helper.make_node("Constant", [], ["w"], name=f"{place}/w", value=numpy_helper.from_array(F([1e6])))
        return [large, helper.make_node("Max", ["x", "w"], ["y"], name=f"{place}/n")]

    nodes = nodes_in("")
    feeds = {"x": F([1])}
    if where == "branch":
        bodies = [
            helper.make_graph(nodes_in(name), name, [], [helper.make_tensor_value_info("y", T.FLOAT, [1])])
            for name in ("a", "b")
        ]
        nodes = [helper.make_node("If", ["c"], ["y"], name="if", then_branch=bodies[0], else_branch=bodies[1])]
        feeds["c"] = np.array([True])
    model = graph_of(nodes, feeds, {"y": T.FLOAT}, {})
    found = compiled(model, "Ascend910B3", precision_mode_v2="fp16", is_weight_clip=clip).run(list(feeds.values()))[0]
    assert found[0] == wanted


def test_a_cast_that_is_in_the_graph_clips_nothing():
    """is_weight_clip is about weights that a mode makes narrower: what a graph itself casts overflows as IEEE says, where a chip has Inf."""
    cast = helper.make_node("Cast", ["w"], ["h"], name="cast", to=T.FLOAT16)
    ones = np.ones(3, np.float16)
    model = graph_of(
        [cast, helper.make_node("Mul", ["x", "h"], ["y"], name="n")], {"x": ones}, {"y": T.FLOAT16}, {"w": F([1e6, -np.inf, 2])}
    )
    assert compiled(model, "Ascend910B3", precision_mode_v2="origin").run([ones])[0].tolist() == [np.inf, -np.inf, 2]
    assert compiled(model, "Ascend310P3", precision_mode_v2="origin").run([ones])[0].tolist() == [LARGEST, -LARGEST, 2]


def test_a_matrix_unit_reads_fp16_and_stores_float32():
    for soc in ("Ascend310P3", "Ascend910B3"):
        exp, total, product = compiled(layer(), soc, precision_mode="force_fp32").run([X])
        wanted = X.astype(np.float16).astype(np.float64) @ W.astype(np.float16).astype(np.float64)
        assert np.allclose(product, wanted, rtol=1e-6, atol=1e-6) and not np.array_equal(product, product.astype(np.float16))
        assert np.allclose(total, product + B, atol=1e-6) and np.allclose(exp, np.exp(total), rtol=1e-6)
    big = np.full((1, 6), 1e6, F)
    found = compiled(layer(big, np.ones_like(W), B * 0), "Ascend310P3", precision_mode="force_fp32").run([big])
    assert np.all(found[2] == 6 * LARGEST)


def test_matrix_operators_only():
    exp, total, product = compiled(layer(), precision_mode="allow_fp32_to_fp16").run([X])
    assert np.array_equal(product, product.astype(np.float16)) and np.array_equal(total, product + B)
    assert np.allclose(exp, np.exp(total), rtol=1e-6)


# --- exceptions ---------------------------------------------------------------------------------------------------


def with_file(tmp_path, text: str, option: str, soc: str = "Ascend910B3", mode: str = "fp16") -> list[np.ndarray]:
    (tmp_path / "f.cfg").write_text(text)
    return compiled(layer(), soc, precision_mode_v2=mode, **{option: str(tmp_path / "f.cfg")}).run([X])


def in_float(array: np.ndarray) -> bool:
    return not np.array_equal(array, array.astype(np.float16))


@pytest.mark.parametrize(
    ("option", "text", "mode", "kept"),
    [
        ("keep_dtype", "sum\n", "fp16", [False, True, False]),
        ("keep_dtype", "OpType::Exp\n", "fp16", [True, False, False]),
        ("keep_dtype", "product\nnobody\n", "fp16", [False, False, True]),
        ("customize_dtypes", "exp::InputDtype:float32,OutputDtype:float32\n", "fp16", [True, False, False]),
        ("customize_dtypes", "OpType::Add:InputDtype:float32,float32,OutputDtype:float32\n", "fp16", [False, True, False]),
        ("customize_dtypes", "sum::InputDtype:float16,float16,OutputDtype:float16\n", "origin", [True, False, True]),
        ("modify_mixlist", '{"black-list": {"to-add": ["Add"]}}', "mixed_float16", [False, True, False]),
        ("modify_mixlist", '{"black-list": {"to-add": ["Add"]}}', "fp16", [False, False, False]),
        ("keep_dtype", "sum\n", "origin", [True, True, True]),
        ("keep_dtype", "sum\n", "mixed_float16", [False, True, False]),
    ],
)
def test_exceptions_are_honoured_where_the_mode_reads_them(tmp_path, option, text, mode, kept):
    assert [in_float(array) for array in with_file(tmp_path, text, option, mode=mode)] == kept


def test_customize_wins_over_keep(tmp_path):
    (tmp_path / "k").write_text("sum\n")
    (tmp_path / "c").write_text("sum::InputDtype:float16,float16,OutputDtype:float16\n")
    files = {"keep_dtype": str(tmp_path / "k"), "customize_dtypes": str(tmp_path / "c")}
    assert not in_float(compiled(layer(), precision_mode_v2="fp16", **files).run([X])[1])


def test_a_vector_operator_can_be_kept_on_310p_and_a_product_cannot(tmp_path):
    found = with_file(tmp_path, "sum\nproduct\n", "keep_dtype", "Ascend310P3")
    assert [in_float(array) for array in found] == [False, True, False]


def test_what_overflows_saturates_and_a_kept_operator_mends_it(tmp_path):
    x = F([300.0])
    nodes = [helper.make_node("Mul", ["x", "x"], ["q"], name="square"), helper.make_node("Sqrt", ["q"], ["y"], name="root")]
    model = graph_of(nodes, {"x": x}, {"y": T.FLOAT})
    (tmp_path / "k").write_text("square\nroot\n")
    files = {"keep_dtype": str(tmp_path / "k")}
    assert compiled(model, "Ascend310P3", precision_mode_v2="fp16").run([x])[0] == F(np.float16(np.sqrt(LARGEST)))
    assert compiled(model, "Ascend310P3", precision_mode_v2="fp16", **files).run([x])[0] == 300


@pytest.mark.parametrize("text", ["a::b\n", "OpType::not a type\n"])
def test_a_file_that_is_none(tmp_path, text):
    with pytest.raises(Refused, match="E13005"):
        with_file(tmp_path, text, "keep_dtype")


# --- graphs in half floats of their own ---------------------------------------------------------------------------


def halves(kind: int, numpy_kind: type) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("Mul", ["p", "p"], ["q"], name="square"),
        helper.make_node("Cast", ["q"], ["y"], name="cast", to=T.FLOAT),
        helper.make_node("Exp", ["y"], ["z"], name="exp"),
    ]
    x = X.astype(numpy_kind)
    graph = graph_of(nodes, {"x": X}, {"q": kind, "z": T.FLOAT}, {"v": W})
    graph.graph.input[0].type.tensor_type.elem_type = kind
    del graph.graph.initializer[:]
    graph.graph.initializer.append(numpy_helper.from_array(W.astype(numpy_kind), "w"))
    assert x.dtype.itemsize == 2
    return graph


@pytest.mark.parametrize(("kind", "numpy_kind"), [(T.FLOAT16, np.float16), (T.BFLOAT16, ml_dtypes.bfloat16)])
def test_a_graph_in_half_floats_stays_so_under_origin(kind, numpy_kind):
    x = X.astype(numpy_kind)
    square, exp = compiled(halves(kind, numpy_kind)).run([x])
    product = (x.astype(F) @ W.astype(numpy_kind).astype(F)).astype(numpy_kind).astype(F)
    assert square.dtype == numpy_kind
    differs = square != (product * product).astype(numpy_kind)
    assert differs.mean() <= 0.1
    with np.errstate(over="ignore"):
        assert np.allclose(exp, np.exp(square.astype(F)), rtol=1e-6, equal_nan=True) and exp.dtype == F


def test_bf16_becomes_fp16_where_a_mode_forces_it():
    x = F([[1e5]]).astype(ml_dtypes.bfloat16)
    model = graph_of([helper.make_node("Neg", ["x"], ["y"], name="n")], {"x": F([[1]])}, {"y": T.BFLOAT16})
    model.graph.input[0].type.tensor_type.elem_type = T.BFLOAT16
    assert compiled(model, precision_mode_v2="fp16").run([x])[0].astype(F) == -np.inf
    assert compiled(model).run([x])[0].astype(F) == -F(x[0, 0])


def test_a_mixed_mode_leaves_half_floats_of_the_other_format_and_that_is_refused():
    """Mixed modes make float32 narrower, and nothing else: a graph would then compute in two formats."""
    cast = helper.make_node("Cast", ["x"], ["h"], name="half", to=T.FLOAT16)
    back = helper.make_node("Cast", ["h"], ["y"], name="back", to=T.FLOAT)
    model = graph_of([cast, back], {"x": F([1e5])}, {"y": T.FLOAT})
    with pytest.raises(Refused, match="half floats of the other format"):
        compiled(model, precision_mode_v2="mixed_bfloat16")
    assert compiled(model, precision_mode_v2="mixed_float16").run([F([1e5])])[0] == np.inf


def test_a_graph_in_fp16_saturates_on_310p():
    x = np.float16([[300]])
    model = graph_of([helper.make_node("Mul", ["x", "x"], ["y"], name="n")], {"x": x}, {"y": T.FLOAT16})
    assert compiled(model, "Ascend310P3").run([x])[0] == LARGEST
    assert compiled(model, "Ascend910B3").run([x])[0] == np.inf


# --- the rest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "mode"),
    [({}, "fp16"), ({"precision_mode": "force_fp16"}, "fp16"), ({"precision_mode": "must_keep_origin_dtype"}, "origin")],
)
def test_modes(options, mode):
    assert mode_of(options)[0] == mode


@settings(max_examples=100, deadline=None)
@given(st.floats(width=32))
def test_eleven_bits_of_hf32(number):
    """Against exact arithmetic: the nearest number of 11 bits, ties to even, at float32's range."""
    x = F([number])
    found = shortened(x)[0]
    if not np.isfinite(x[0]) or x[0] == 0 or abs(float(x[0])) < 2.0**-126:
        assert not np.isfinite(x[0]) or abs(float(found)) <= 2.0**-115
        return
    exponent = np.frexp(float(x[0]))[1]
    scaled = float(x[0]) * 2.0 ** (11 - exponent)  # a whole number has 11 bits
    wanted = float(np.rint(scaled)) * 2.0 ** (exponent - 11)
    assert float(found) == (wanted if abs(wanted) < 2.0**128 else np.copysign(np.inf, wanted))


def test_hf32_of_known_numbers():
    assert shortened(F([1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, 1e30, 1e-30])).tolist() == [
        1 + 2**-10,
        1,
        1 + 2**-9,
        *(float(np.float32(v)) for v in shortened(F([1e30, 1e-30]))),
    ]
    assert abs(float(shortened(F([1e30]))[0]) / 1e30 - 1) <= 2**-11


def test_hf32_of_what_is_no_number():
    """Every pattern of NaN stays NaN, that of all ones too, which rounding up would make -0 of; an infinity stays one."""
    patterns = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000, 0x7F800000, 0xFF800000], np.uint32)
    found = shortened(patterns.view(np.float32))
    assert np.isnan(found[:4]).all() and found[4:].tolist() == [np.inf, -np.inf]
