"""Running compiled models: gears, images, integer layers, sizes that come with the run, buffers, and what does not fit."""

from __future__ import annotations

import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper

from porting.ascend.aipp import run_aipp
from porting.ascend.aipp_text import parse_aipp
from porting.ascend.w8a8 import quantised
from porting.backends.cann_simulator.compiler import compile_onnx
from porting.backends.cann_simulator.execution import GEAR_INPUT, describe, load
from porting.backends.cann_simulator.machine import Machine, Refused
from tests.ascend.vendor_evaluator import run_deploy
from tests.cann_simulator.compiled import compiled, graph_of
from tests.graph_bits import whole, written

F = np.float32
RNG = np.random.default_rng(3)


def plain(batch: object = "b", width: int = 4) -> onnx.ModelProto:
    """y = x + 1, and the sum of each row."""
    nodes = [
        helper.make_node("Add", ["x", "one"], ["y"], name="add"),
        helper.make_node("ReduceSum", ["y", "axes"], ["s"], name="sum", keepdims=0),
    ]
    model = graph_of(nodes, {"x": np.zeros((1, width), F)}, {"y": T.FLOAT, "s": T.FLOAT}, {"one": F(1), "axes": np.int64([1])})
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    dim.dim_param = str(batch)
    return model


# --- gears --------------------------------------------------------------------------------------------------------


def test_batches():
    loaded = compiled(plain(), input_shape="x:-1,4", dynamic_batch_size="1,3")
    assert (loaded.gear_kind, loaded.gear_input, loaded.inputs[1].name) == ("batch", 1, GEAR_INPUT)
    assert [(i.dims, i.nbytes) for i in loaded.inputs[:1]] == [((-1, 4), 48)]
    assert [(o.dims, o.nbytes) for o in loaded.outputs] == [((-1, 4), 48), ((-1,), 12)]
    assert [(g.values, g.inputs, g.outputs) for g in loaded.gears] == [
        ((1,), ((1, 4),), ((1, 4), (1,))),
        ((3,), ((3, 4),), ((3, 4), (3,))),
    ]
    x = RNG.standard_normal((3, 4)).astype(F)
    for gear, rows in ((0, 1), (1, 3)):
        y, s = loaded.run([x[:rows]], gear)
        assert np.array_equal(y, x[:rows] + 1) and s.shape == (rows,)


@pytest.mark.parametrize("gear", [None, 1])
def test_another_size_than_was_compiled_is_no_result(monkeypatch, gear):
    options = {"input_shape": "x:3,4"} if gear is None else {"input_shape": "x:-1,4", "dynamic_batch_size": "1,3"}
    loaded = compiled(plain(), **options)
    kernel = loaded._computed
    monkeypatch.setattr(loaded, "_computed", lambda feeds: [array[:2] for array in kernel(feeds)])
    with pytest.raises(Refused, match=r"EZ9999: 'y' is compiled as \[3, 4\], and \[2, 4\] came out"):
        loaded.run([np.zeros((3, 4), F)], gear)


@pytest.mark.parametrize("batches", ["3,1", "1,3"])
def test_without_a_gear_the_largest_is_taken_in_silence(batches):
    loaded = compiled(plain(), input_shape="x:-1,4", dynamic_batch_size=batches)
    buffer = np.zeros((3, 4), F)
    buffer[0] = 5
    assert loaded.run([buffer])[0].shape == (3, 4)
    with pytest.raises(Refused, match="takes 48 bytes, the buffer has 16") as error:
        loaded.run([buffer[:1]])
    assert error.value.code == 100017


def test_a_buffer_of_the_largest_gear_is_read_from_its_start():
    loaded = compiled(plain(), input_shape="x:-1,4", dynamic_batch_size="1,3")
    x = RNG.standard_normal((3, 4)).astype(F)
    for given in (x, x.view(np.uint8).reshape(-1), x.reshape(-1)):
        assert np.array_equal(loaded.run([given, np.zeros(1, np.int64)], 0)[0], x[:1] + 1)


def test_image_sizes_and_any_dims():
    pool = graph_of([helper.make_node("Relu", ["x"], ["y"], name="n")], {"x": np.zeros((1, 3, 4, 4), F)}, {"y": T.FLOAT})
    loaded = compiled(pool, input_shape="x:1,3,-1,-1", dynamic_image_size="4,6;8,8", input_format="NCHW")
    assert loaded.gear_kind == "image" and [g.values for g in loaded.gears] == [(4, 6), (8, 8)]
    assert loaded.run([np.full((1, 3, 4, 6), -1, F)], 0)[0].shape == (1, 3, 4, 6)
    two = graph_of(
        [helper.make_node("Concat", ["a", "b"], ["y"], name="n", axis=0)],
        {"a": np.zeros((1, 4), F), "b": np.zeros((1, 4), F)},
        {"y": T.FLOAT},
    )
    loaded = compiled(two, input_shape="a:-1,4;b:-1,4", dynamic_dims="1,2;3,4", input_format="ND")
    assert loaded.gear_kind == "dims" and [g.values for g in loaded.gears] == [(1, 4, 2, 4), (3, 4, 4, 4)]
    assert loaded.gears[1].outputs == ((7, 4),) and loaded.run([np.ones((1, 4), F), np.ones((2, 4), F)], 0)[0].shape == (3, 4)


def test_gears_that_the_model_does_not_take():
    fixed = graph_of(
        [helper.make_node("Add", ["x", "c"], ["y"], name="n")],
        {"x": np.zeros((2, 4), F)},
        {"y": T.FLOAT},
        {"c": np.zeros((3, 4), F)},
    )
    with pytest.raises(Refused, match="E14001"):
        compiled(fixed, input_shape="x:-1,4", dynamic_batch_size="2,3")


@pytest.mark.parametrize(("gear", "code"), [(2, 145012), (-1, 145012)])
def test_a_gear_that_is_none(gear, code):
    loaded = compiled(plain(), input_shape="x:-1,4", dynamic_batch_size="1,3")
    with pytest.raises(Refused) as error:
        loaded.run([np.zeros((3, 4), F)], gear)
    assert error.value.code == code
    with pytest.raises(Refused, match="without gears"):
        compiled(plain(), input_shape="x:1,4").run([np.zeros((1, 4), F)], 0)


def test_a_size_that_comes_with_the_run():
    loaded = compiled(plain(), input_shape="x:-1,4")
    assert loaded.gears == () and loaded.inputs[0].dims == (-1, 4) and loaded.inputs[0].nbytes == loaded.outputs[0].nbytes == 0
    for rows in (1, 5):
        assert loaded.run([np.zeros((rows, 4), F)])[1].shape == (rows,)


def test_sizes_that_go_through_numbers():
    """Where onnx's own inference knows no size: it is worked out from the constants that a gear's shape makes."""
    nodes = [
        helper.make_node("Shape", ["x"], ["rows"], name="rows"),
        helper.make_node("Max", ["rows", "least"], ["size"], name="size"),
        helper.make_node("Expand", ["x", "size"], ["y"], name="n"),
    ]
    model = graph_of(nodes, {"x": np.zeros((1, 1), F)}, {"y": T.FLOAT}, {"least": np.int64([1, 3])})
    loaded = compiled(model, input_shape="x:-1,1", dynamic_batch_size="1,2")
    assert [gear.outputs for gear in loaded.gears] == [((1, 3),), ((2, 3),)] and loaded.outputs[0].nbytes == 24
    assert compiled(model, input_shape="x:2,1").outputs[0].dims == (2, 3)


def test_a_model_is_described_on_any_machine():
    model = plain()
    om = compile_onnx(model.SerializeToString(), {"input_shape": "x:-1,4", "dynamic_batch_size": "1,3"}, Machine("Ascend310P3"))
    told, loaded = describe(om), load(om, Machine("Ascend310P3"))
    assert (told.inputs, told.outputs, told.gears, told.weight_bytes) == (
        loaded.inputs,
        loaded.outputs,
        loaded.gears,
        loaded.weight_bytes,
    )
    with pytest.raises(Refused):
        describe(om[:-1])


# --- images -------------------------------------------------------------------------------------------------------

NORMALISED = """aipp_op {
    aipp_mode: static
    related_input_rank: 0
    input_format: RGB888_U8
    src_image_size_w: 8
    src_image_size_h: 6
    crop: true
    load_start_pos_w: 2
    load_start_pos_h: 1
    crop_size_w: 4
    crop_size_h: 4
    mean_chn_0: 100
    mean_chn_1: 0
    mean_chn_2: 10
    var_reci_chn_0: 0.5
    var_reci_chn_1: 2
    var_reci_chn_2: 1
}
"""


def image_model() -> onnx.ModelProto:
    return graph_of([helper.make_node("Neg", ["x"], ["y"], name="n")], {"x": np.zeros((1, 3, 4, 4), F)}, {"y": T.FLOAT})


def test_an_image_is_fed_as_pixels_and_normalised(tmp_path):
    (tmp_path / "a.cfg").write_text(NORMALISED)
    loaded = compiled(image_model(), input_shape="x:1,3,4,4", insert_op_conf=str(tmp_path / "a.cfg"))
    assert [(i.acl_dtype, i.dims, i.nbytes) for i in loaded.inputs] == [(4, (1, 6, 8, 3), 144)]
    pixels = RNG.integers(0, 256, (1, 6, 8, 3), np.uint8)
    y = -loaded.run([pixels])[0]
    inside = pixels[:, 1:5, 2:6].astype(F)
    wanted = (inside - F([100, 0, 10])) * F([0.5, 2, 1])  # by hand: whole numbers and powers of two, exact in fp16
    assert np.array_equal(y, wanted.transpose(0, 3, 1, 2))


def test_gears_of_images(tmp_path):
    (tmp_path / "a.cfg").write_text(NORMALISED)
    loaded = compiled(image_model(), input_shape="x:-1,3,4,4", dynamic_batch_size="1,2", insert_op_conf=str(tmp_path / "a.cfg"))
    assert loaded.inputs[0].dims == (-1, 6, 8, 3) and loaded.inputs[0].nbytes == 288
    pixels = RNG.integers(0, 256, (2, 6, 8, 3), np.uint8)
    both = loaded.run([pixels], 1)[0]
    assert np.array_equal(loaded.run([pixels[:1]], 0)[0], both[:1])
    assert np.array_equal(-both, run_aipp(parse_aipp(NORMALISED, [3])[0], pixels).astype(F))


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("aipp_op { aipp_mode: static input_format: RGB888_U8 unknown: 1 }", "x:1,3,4,4"),
        (NORMALISED.replace("crop_size_w: 4", "crop_size_w: 3"), "x:1,3,4,4"),
        ("nothing", "x:1,3,4,4"),
    ],
)
def test_a_file_of_images_that_does_not_fit(tmp_path, text, shape):
    (tmp_path / "a.cfg").write_text(text)
    with pytest.raises(Refused, match="E10052"):
        compiled(image_model(), input_shape=shape, insert_op_conf=str(tmp_path / "a.cfg"))


# --- integer layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "weights", "shape"),
    [
        (
            "y = Conv<kernel_shape = [3, 3], pads = [1, 0, 2, 1], strides = [2, 1]>(x, w, b)",
            {"w": (6, 4, 3, 3), "b": (6,)},
            (2, 4, 7, 9),
        ),
        ("y = Conv<kernel_shape = [1, 2], group = 2>(x, w)", {"w": (6, 2, 1, 2)}, (2, 4, 5, 5)),
        ("y = MatMul(x, w)", {"w": (40, 8)}, (3, 2, 40)),
        ("y = Gemm(x, w, b)", {"w": (300, 8), "b": (8,)}, (5, 300)),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 2.5])
def test_a_layer_in_integers(text, weights, shape, shift):
    """Sums by torch in float64, where they are exact; then stored in fp16 by numpy."""
    made = {name: RNG.standard_normal(size).astype(F) for name, size in weights.items()}
    cases = [{"x": (RNG.standard_normal(shape) + shift).astype(F)} for _ in range(2)]
    dims = ", ".join(map(str, shape))
    deploy = quantised(written(f"(float[{dims}] x) => (float y) {{ {text} }}", 17, **made), cases).deploy
    machine = Machine("Ascend310P3")
    loaded = load(compile_onnx(whole(deploy), {"precision_mode_v2": "fp16"}, machine), machine)
    layer = int(np.prod(weights["w"]))
    assert layer <= loaded.weight_bytes < layer + 512  # a byte each, and what belongs to channels
    for case in cases:
        wanted = run_deploy(deploy, case)["y"].astype(np.float16).astype(F)
        found = loaded.run([case["x"]])[0]
        differs = found != wanted
        assert (
            not differs.any()
            if "MatMul" not in text and "Gemm" not in text
            else np.abs(found - wanted).max() <= 2**-8 * np.abs(wanted).max()
        )
    with pytest.raises(Refused, match="quantised"):
        compile_onnx(whole(deploy), {"precision_mode_v2": "origin"}, machine)


def test_the_largest_products_of_bytes_do_not_saturate():
    """127 and 255 in every place: kernels that add pairs of products in 16 bits would lose these."""
    deploy = graph_of(
        [
            helper.make_node("AscendQuant", ["x"], ["q"], name="l/q", scale=1.0, offset=-128.0, dst_type="INT8"),
            helper.make_node("MatMul", ["q", "w"], ["p"], name="l/m"),
            helper.make_node("AscendDequant", ["p", "d"], ["y"], name="l/d", dtype=0),
        ],
        {"x": np.zeros((1, 64), F)},
        {"y": T.FLOAT},
        {"w": np.full((64, 1), 127, np.int8), "d": np.frombuffer(F([2**-10]).tobytes() + bytes(4), np.uint64)},
    )
    found = compiled(deploy, "Ascend310P3", precision_mode_v2="fp16").run([np.full((1, 64), 255, F)])[0]
    assert found == np.float16(64 * 255 * 127 / 1024)


# --- what does not fit --------------------------------------------------------------------------------------------


def test_inputs_that_do_not_fit():
    loaded = compiled(plain(), input_shape="x:2,4")
    for inputs in ([], [np.zeros((2, 4), F)] * 2, [np.zeros((2, 4), np.int64)], [np.zeros((1, 4), F)]):
        with pytest.raises(Refused) as error:
            loaded.run(inputs)
        assert error.value.code == 100017 and error.value.documented
    assert loaded.run([np.zeros((2, 4), F)])[1].tolist() == [4, 4]


def test_an_index_out_of_range_is_a_failed_kernel():
    table = graph_of(
        [helper.make_node("Gather", ["t", "i"], ["y"], name="n")], {"i": np.int64([0])}, {"y": T.FLOAT}, {"t": F([1, 2])}
    )
    loaded = compiled(table)
    with pytest.raises(Refused, match="EZ9999") as error:
        loaded.run([np.int64([7])])
    assert error.value.code == 507015 and not error.value.documented
    assert loaded.run([np.int64([1])])[0].tolist() == [2]


def test_read_only_views_and_scalars_are_taken():
    model = graph_of([helper.make_node("Mul", ["x", "c"], ["y"], name="n")], {"x": np.zeros(3, F), "c": F(0)}, {"y": T.FLOAT})
    x = np.frombuffer(F([1, 2, 3]).tobytes(), F)
    scalar = np.frombuffer(F(2).tobytes(), F).reshape(())
    assert compiled(model).run([x, scalar])[0].tolist() == [2, 4, 6]


def test_an_input_that_nothing_reads_is_still_an_input():
    model = graph_of(
        [helper.make_node("Neg", ["x"], ["y"], name="n")], {"x": np.zeros(2, F), "u": np.zeros(2, F)}, {"y": T.FLOAT}
    )
    assert compiled(model).run([F([1, 2]), F([3, 4])])[0].tolist() == [-1, -2]


def test_threads_share_a_model():
    loaded = compiled(plain(), input_shape="x:2,4", precision_mode_v2="fp16")
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(30):
            if not np.all(loaded.run([np.full((2, 4), number, F)])[0] == number + 1):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_weights_are_read_where_they_lie():
    """A model of many weights takes their memory once: the .om itself."""
    big = graph_of(
        [helper.make_node("Gather", ["t", "i"], ["y"], name="n")],
        {"i": np.int64([0])},
        {"y": T.FLOAT},
        {"t": RNG.standard_normal((4096, 64)).astype(F)},
    )
    om = compile_onnx(big.SerializeToString(), {"precision_mode_v2": "origin"}, Machine())
    loaded = load(om, Machine())
    base = np.frombuffer(om, np.uint8).ctypes.data
    places = [value.data_ptr() for value in loaded._held]
    assert len(places) == 1 and base <= places[0] < base + len(om)
