"""One description of images: the compiler's file, cases of pixels, what port.json keeps, and the check from pixels to outputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import porting
from porting.ascend.aipp import AippOp, aipp_op, emulated_input, rounding_limit
from porting.ascend.aipp_text import aipp_text, parse_aipp
from porting.ascend.aipp_validation import aipp_checks, made_by_aipp, randomly_rounded
from porting.ascend.gears import Request, gears_for
from porting.ascend.image_cases import Case, cases_from_files, complete_cases, generated_pixels, number_files, numbers_of
from porting.ascend.image_inputs import KEY, ImageInputs, image_inputs, images_of_port, in_words
from porting.ascend.preprocessing import SCHEMA, ImageInput, from_json
from porting.ascend.preprocessing_reference import host_steps, model_input
from porting.ascend.soc import find_soc
from porting.errors import InputError, PortError, UsageError
from porting.npz import read_npz
from porting.port_folder import Port, open_port
from porting.types import TensorSpec
from porting.verdict import Check
from tests.ascend.test_aipp import images as every_kind
from tests.graph_models import constant, model, node, weight

P310 = find_soc("Ascend310P3")
SIDE = 24
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "scale": 255}
SOURCE = {"format": "RGB", "width": 32, "height": 32}
CROP = {"left": 4, "top": 4, "width": SIDE, "height": SIDE}
X = TensorSpec("x", "float32", ("n", 3, SIDE, SIDE))


def described(**fields: Any) -> tuple[ImageInput, ...]:
    whole = {"input": "x", "source": SOURCE, "crop": CROP, "normalise": IMAGENET, **fields}
    return from_json({"schema": SCHEMA, "images": [{k: v for k, v in whole.items() if v is not None}]})


def bound(images: Sequence[ImageInput], inputs: Sequence[TensorSpec] = (X,), **request: str) -> ImageInputs:
    names = [image.input for image in images]
    return image_inputs(images, inputs, gears_for(inputs, P310, Request(**(request or {"batch": "1,2"})), aipp=names), P310)


def classifier(batch: Any = "n", outputs: Sequence[str] = ("y",)) -> onnx.ModelProto:
    """A convolution and a matrix that sees where things are; its outputs: (n, 6) classes, and which of them is the largest."""
    nodes = [
        node("Conv", "x k", "c", strides=[2, 2], name="conv"),
        node("Relu", "c", "r"),
        node("Flatten", "r", "f", axis=1),
        node("MatMul", "f w", "y"),
        node("ArgMax", "y", "best", axis=1, keepdims=0),
    ]
    width = 8 * ((SIDE - 3) // 2 + 1) ** 2
    weights = [weight("k", 8, 3, 3, 3, scale=0.2), weight("w", width, 6, scale=width**-0.5)]
    kinds = {"y": [batch, 6], "best": ([batch], onnx.TensorProto.INT64)}
    return model(nodes, {"x": [batch, 3, SIDE, SIDE]}, {name: kinds[name] for name in outputs}, weights)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Port:
    folder = tmp_path_factory.mktemp("classifier")
    onnx.save(classifier(outputs=("y", "best")), str(folder / "m.onnx"))
    return porting.convert(folder / "m.onnx", folder / "m.port")


def failed(checks: Sequence[Check]) -> list[str]:
    return [check.name for check in checks if check.verdict != "pass"]


# --- bound to a model ---------------------------------------------------------------------------------------------


def test_a_description_gives_the_compilers_file_and_the_notes() -> None:
    images = bound(described())
    assert b"mean_chn_0: 123" in images.config and b"crop: true" in images.config
    (op,) = images.ops().values()
    assert op.rank == 0 and op.channels == 3 and op.mean_chn == (123, 116, 103)
    notes = " ".join(images.notes())
    assert "x: uint8 [N, 32, 32, 3] RGB" in notes and "never ran on a device" in notes and "resize" not in notes
    assert "fp16 leads the numbers up to 1.6e-03 away from exact ones" in notes and "such a level" not in notes
    nv12 = bound(described(source={**SOURCE, "format": "NV12"}, colour={"to": "RGB", "standard": "jpeg"}))
    assert "a level of 256 up or down; x: such a level is up to 1.8e-02" in "; ".join(nv12.notes())
    resized = bound(
        described(source={**SOURCE, "width": None, "height": None}, resize={"width": 30, "height": 28, "filter": "linear"})
    )
    assert "uint8 [N, 28, 30, 3]" in resized.notes()[0] and "the host gives images of 30 x 28" in " ".join(resized.notes())


def test_the_rank_is_that_of_the_input_among_all() -> None:
    scale = TensorSpec("scale", "float32", (1,))
    images = bound(described(), (scale, X), batch="1")
    assert b"related_input_rank: 1" in images.config and images.ops()["x"].rank == 1


def test_an_image_of_one_channel() -> None:
    gray = described(source={**SOURCE, "format": "GRAY"}, normalise={"mean": [100], "std": [50]})
    (op,) = bound(gray, (replace(X, shape=("n", 1, SIDE, SIDE)),)).ops().values()
    assert (op.input_format, op.channels, op.mean_chn) == ("YUV400_U8", 1, (100,))


@pytest.mark.parametrize(
    ("fields", "inputs", "request_", "message"),
    [
        ({"input": "pixels"}, (X,), {"batch": "1"}, "no input 'pixels'"),
        ({}, (TensorSpec("x", "float32", ("n", SIDE)),), {"batch": "1"}, "AIPP makes images"),
        ({}, (TensorSpec("x", "int64", ("n", 3, SIDE, SIDE)),), {"batch": "1"}, "AIPP makes images"),
        ({}, (TensorSpec("x", "float32", ("n", 1, SIDE, SIDE)),), {"batch": "1"}, "takes 1 channels, RGB has 3"),
        ({}, (TensorSpec("x", "float32", ("n", 3, SIDE, 25)),), {"batch": "1"}, "becomes 24 x 24 pixels"),
        ({}, (TensorSpec("x", "float32", ("n", 3, SIDE, "w")),), {"dims": "1,24;2,24"}, "exclude each other"),
        ({"normalise": {"mean": [300, 0, 0]}}, (X,), {"batch": "1"}, "mean of AIPP is from 0 to 255"),
        ({"layout": "NHWC"}, (X,), {"batch": "1"}, "AIPP gives ONNX models NCHW"),
    ],
)
def test_what_does_not_fit_the_model(fields: Any, inputs: Any, request_: Any, message: str) -> None:
    with pytest.raises((InputError, UsageError), match=message) as caught:
        bound(described(**fields), inputs, **request_)
    assert caught.value.exit_code == 2


# --- cases --------------------------------------------------------------------------------------------------------


def test_users_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 256, (32, 32, 3), np.uint8), rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "one.npz", x=one)
    np.savez(tmp_path / "two.npz", two)  # unnamed
    images = described()
    cases = cases_from_files(images, [tmp_path / "one.npz", tmp_path / "two.npz", tmp_path / "one.npz"])
    assert list(cases) == ["one", "two", "one-2"] and cases["one"]["x"].shape == (1, 32, 32, 3)
    assert (cases["two"]["x"] == two).all()
    with number_files(images, cases) as paths:
        assert [path.stem for path in paths] == list(cases)
        made = read_npz(paths[1])["x"]
        assert made.dtype == np.float32 and (made == model_input(images[0], two)).all()
    assert not paths[0].exists()
    half = numbers_of(images, cases["one"], [replace(X, dtype="float16")])["x"]
    assert half.dtype == np.float16


def test_gray_and_nv12_without_a_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", x=np.zeros((6, 8), np.uint8))
    gray = described(source={"format": "GRAY", "width": 8, "height": 6}, crop=None, normalise={})
    assert cases_from_files(gray, [tmp_path / "g.npz"])["g"]["x"].shape == (1, 6, 8, 1)
    np.savez(tmp_path / "n.npz", x=np.zeros((9, 8), np.uint8))
    nv12 = described(source={"format": "NV12", "width": 8, "height": 6}, crop=None, colour={"to": "RGB", "standard": "jpeg"})
    assert cases_from_files(nv12, [tmp_path / "n.npz"])["n"]["x"].shape == (1, 9, 8)
    assert in_words(nv12[0]) == "uint8 [N, 9, 8] NV12"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((1, 3, SIDE, SIDE), np.float32)}, "made of pixels by the preprocessing: expected uint8"),
        ({"x": np.zeros((1, 32, 32, 3), np.int32)}, "got int32"),
        ({"x": np.zeros((1, 3, 32, 32), np.uint8)}, "a RGB image is uint8"),
        ({"x": np.zeros((1, 32, 31, 3), np.uint8)}, "expected an image of 32 x 32 pixels"),
        ({"x": np.zeros((0, 32, 32, 3), np.uint8)}, "a RGB image is uint8"),
        ({"pixels": np.zeros((1, 32, 32, 3), np.uint8)}, "no pixels for input 'x'"),
    ],
)
def test_files_that_hold_no_such_pixels(tmp_path: Path, arrays: Any, message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        cases_from_files(described(), [tmp_path / "bad.npz"])
    assert "bad.npz" in caught.value.where and caught.value.exit_code == 2


def test_errors_name_the_users_file() -> None:
    with (
        pytest.raises(InputError) as caught,
        number_files(described(), {"mine": {"x": np.zeros((1, 32, 32, 3), np.uint8)}}) as (path,),
    ):
        raise InputError("no", where=f"{path}, x")
    assert caught.value.where == "mine.npz, x"


def test_every_gear_has_images() -> None:
    images = bound(described(), batch="1,2")
    made = complete_cases(images, {})
    assert [case["x"].shape for case in made.values()] == [(1, 32, 32, 3)] * 2 + [(2, 32, 32, 3)] * 2
    flat = {case["x"].tobytes() for case in made.values()}
    assert len(flat) == 4  # other ones each
    one: Case = {"x": next(iter(made.values()))["x"]}
    whole = complete_cases(images, {"mine": one})
    assert [case["x"].shape[0] for case in whole.values()] == [1, 2] and (whole[list(whole)[1]]["x"][1] == one["x"][0]).all()
    free = TensorSpec("x", "float32", (1, 3, "h", "w"))
    two = bound(described(source={**SOURCE, "width": None, "height": None}, crop=None), (free,), image_size="16,20;24,28")
    assert {case["x"].shape for case in complete_cases(two, {}).values()} == {(1, 16, 20, 3), (1, 24, 28, 3)}
    small = {"x": np.zeros((1, 16, 20, 3), np.uint8)}
    assert [case["x"].shape for case in complete_cases(two, {"mine": small}).values()] == [(1, 16, 20, 3), (1, 24, 28, 3)]
    with pytest.raises(InputError, match="says nothing of input scale"):
        complete_cases(replace(images, inputs=(X, TensorSpec("scale", "float32", (1,)))), {})
    assert complete_cases(replace(images, inputs=(X, TensorSpec("h", "float32", (1,)))), {}, state=("h",))


def test_other_arrays_of_a_case_are_brought_to_a_gear_too() -> None:
    inputs = (X, TensorSpec("scale", "float32", ("n",)))
    images = bound(described(), inputs, batch="1,2")
    given: Case = {"x": np.zeros((1, 32, 32, 3), np.uint8), "scale": np.ones(1, np.float32)}
    second = list(complete_cases(images, {"mine": given}).values())[1]
    assert second["scale"].shape == (2,) and numbers_of(images.images, second)["x"].shape == (2, 3, SIDE, SIDE)


@pytest.mark.parametrize("source", ["RGB", "GRAY", "NV12"])
def test_generated_pixels(source: str) -> None:
    colour = {"to": "RGB", "standard": "jpeg"} if source == "NV12" else None
    normalise = {} if source == "GRAY" else IMAGENET
    (image,) = described(source={"format": source, "width": 32, "height": 48}, crop=None, colour=colour, normalise=normalise)
    a, b = (generated_pixels(image, (2, image.channels, 48, 32), seed) for seed in (0, 1))
    assert (a == generated_pixels(image, (2, image.channels, 48, 32), 0)).all() and (a != b).mean() > 0.9
    made = model_input(image, a)
    assert made.shape == (2, image.channels, 48, 32) and (made[0] != made[1]).any()
    assert np.ptp(a) > 100  # not gray in gray
    if source == "RGB":
        levels = a.astype(np.float64).reshape(-1, 3).T
        assert np.abs(np.corrcoef(levels) - np.eye(3)).max() < 0.9  # channels that change places show
        steps = np.abs(np.diff(a.astype(int), axis=2))
        assert (steps > 90).sum() > 10 and np.median(steps) < 40  # edges, and what lies between them
    (resized,) = described(
        source={**SOURCE, "width": None, "height": None}, crop=None, resize={"width": 8, "height": 6, "filter": "linear"}
    )
    assert generated_pixels(resized, (1, 3, 6, 8), 0).shape == (1, 8, 13, 3)


# --- the analysis -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 255), min_size=3, max_size=3),
    st.lists(st.floats(1e-7, 100), min_size=3, max_size=3),
    st.integers(0, 99),
)
def test_aipps_numbers_lie_within_the_analysis(mean: list[float], factor: list[float], seed: int) -> None:
    (image,) = described(normalise={"mean": mean, "var_reci": factor}, padding={"left": 1, "value": 0.1})
    pixels = np.random.default_rng(seed).integers(0, 256, (1, 32, 32, 3), np.uint8)
    wanted = model_input(image, pixels)
    assert (np.abs(emulated_input(image, pixels).astype(np.float64) - wanted) <= rounding_limit(image, wanted)).all()


@settings(max_examples=100, deadline=None)
@given(every_kind(), st.sampled_from(("down", "nearest")), st.integers(0, 99))
def test_every_kind_of_image_lies_within_the_analysis(image: ImageInput, rounding: str, seed: int) -> None:
    """Every source and conversion, from the compiler's file and from the description: no more apart than the roundings."""
    pixels = generated_pixels(image, (2, image.channels, 1, 1), seed)
    wanted = model_input(image, pixels, rounding)
    (op,) = parse_aipp(aipp_text([aipp_op(image)]), [image.channels])
    got = made_by_aipp(op, image, pixels, rounding).astype(np.float64)
    assert (np.abs(got - wanted) <= rounding_limit(image, wanted)).all()
    exact = randomly_rounded(image, pixels, np.random.default_rng(seed), 0)
    assert np.abs(exact - model_input(image, pixels)).max() <= 2.0**-23 * np.abs(exact).max()  # float32's own rounding


def test_the_analysis_is_sharp_enough_to_see_half_a_level() -> None:
    (image,) = described()
    wanted = model_input(image, generated_pixels(image, (1, 3, SIDE, SIDE), 0))
    limit = rounding_limit(image, wanted)
    assert (limit < 0.5 * np.array(image.var_reci)[:, None, None]).all()
    assert limit.max() < 4 * 2.0**-11 * np.abs(wanted).max()


def test_random_roundings_are_of_the_size_of_the_real_ones() -> None:
    (image,) = described(padding={"left": 2, "value": 0.1})
    pixels = generated_pixels(image, (1, 3, SIDE, SIDE), 0)
    wanted = model_input(image, pixels)
    exact = randomly_rounded(image, pixels, np.random.default_rng(0), 0)
    assert np.abs(exact - wanted).max() < 1e-6
    rng = np.random.default_rng(0)
    off = [np.abs(randomly_rounded(image, pixels, rng, 1) - wanted) / rounding_limit(image, wanted) for _ in range(8)]
    assert 0.2 < max(o.max() for o in off) <= 1
    assert any(len(np.unique(o[0, 0, :, 2:])) < 256 for o in off)  # one error a level, not one a pixel


def test_the_rounding_of_a_factor_is_one_error_for_the_whole_image() -> None:
    """Means over an image keep it, which errors of each pixel alone would lose: uniform in +-u, so u / sqrt(3) in the mean of squares."""
    (image,) = described(normalise={"mean": [0, 0, 0], "var_reci": [0.3, 0.3, 0.3]})
    pixels = np.random.default_rng(0).integers(1, 256, (1, 32, 32, 3), np.uint8)
    wanted, rng, u = model_input(image, pixels), np.random.default_rng(1), 2.0**-11
    ratios = [(randomly_rounded(image, pixels, rng, 1) / wanted - 1).mean((0, 2, 3)) for _ in range(64)]  # (3,) each
    assert 0.45 < float(np.sqrt(np.square(ratios).mean())) / u < 0.7


# --- from pixels to outputs ---------------------------------------------------------------------------------------


def test_the_whole_way_holds(port: Port) -> None:
    images = bound(described())
    checks = aipp_checks(port, images, complete_cases(images, {}), "cpu")
    assert not failed(checks), checks
    names = [check.name for check in checks]
    assert names == [
        "error of what AIPP makes of x, in its documented roundings",
        "relative error of y behind AIPP",
        "images whose largest element of y changes behind AIPP",
        "elements of best behind AIPP that differ",
    ]
    of_input, of_y = checks[0], checks[1]
    assert 0.1 < of_input.value < 1 and 1e-5 < of_y.value < of_y.bound < 1e-2  # type: ignore[operator]
    assert checks[2].value == 0 and checks[2].where == "the same in 6 of 6 images"


def other(op: AippOp, what: str) -> AippOp:
    """The file of a description that somebody got wrong."""
    mean, least, factor = op.mean_chn, op.min_chn, op.var_reci_chn
    left, top, width, height = op.crop or (0, 0, 0, 0)
    return replace(
        op,
        **{
            "channels swapped": {"swap": not op.swap},
            "mean of the channels in another order": {"mean_chn": mean[::-1], "min_chn": least[::-1]},
            "mean one level off": {"mean_chn": (mean[0] + 1, *mean[1:])},
            "fraction of the mean lost": {"min_chn": (0.0, 0.0, 0.0)},
            "no scale": {"var_reci_chn": (1.0, 1.0, 1.0)},
            "scale of another channel": {"var_reci_chn": (factor[1], factor[0], factor[2])},
            "crop a pixel to the right": {"crop": (left + 1, top, width, height)},
            "crop a pixel down": {"crop": (left, top + 1, width, height)},
            "crop smaller": {"crop": (left, top, width - 1, height)},
            "no crop": {"crop": None},
            "other size": {"src": (33, 32)},
        }[what],
    )


WRONG = (
    "channels swapped",
    "mean of the channels in another order",
    "mean one level off",
    "fraction of the mean lost",
    "no scale",
    "scale of another channel",
    "crop a pixel to the right",
    "crop a pixel down",
)


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_fails_at_the_input_and_at_the_output(port: Port, what: str) -> None:
    images = bound(described())
    (op,) = images.ops().values()
    wrong = replace(images, config=aipp_text([other(op, what)]).encode())
    found = failed(aipp_checks(port, wrong, complete_cases(images, {}), "cpu"))
    assert "error of what AIPP makes of x, in its documented roundings" in found
    assert "relative error of y behind AIPP" in found


@pytest.mark.parametrize("what", ["crop smaller", "no crop", "other size"])
def test_a_file_that_makes_another_size_fails(port: Port, what: str) -> None:
    images = bound(described())
    (op,) = images.ops().values()
    wrong = replace(images, config=aipp_text([other(op, what)]).encode())
    checks = aipp_checks(port, wrong, complete_cases(images, {}), "cpu")
    assert checks[0].verdict == "fail" and not any(c.verdict == "pass" for c in checks)


def test_a_largest_element_that_moves_is_named(port: Port) -> None:
    images = bound(described())
    (op,) = images.ops().values()
    wrong = replace(images, config=aipp_text([replace(op, var_reci_chn=tuple(-n for n in op.var_reci_chn))]).encode())
    (check,) = [c for c in aipp_checks(port, wrong, complete_cases(images, {}), "cpu") if "largest" in c.name]
    assert check.verdict == "fail" and " becomes " in check.where and check.value > 0  # type: ignore[operator]


def test_near_ties_may_change_places(tmp_path: Path) -> None:
    """Two classes that differ by less than a rounding of AIPP: another one is the largest, and nothing is wrong."""
    nodes = [node("Flatten", "x", "f", axis=1), node("MatMul", "f w", "y")]
    w = np.random.default_rng(0).standard_normal((3 * SIDE * SIDE, 1)).astype(np.float32)
    nudge = np.random.default_rng(1).standard_normal((3 * SIDE * SIDE, 40)).astype(np.float32) * np.float32(1e-7)
    onnx.save(model(nodes, {"x": ["n", 3, SIDE, SIDE]}, {"y": ["n", 40]}, [constant("w", w + nudge)]), str(tmp_path / "m.onnx"))
    port = porting.convert(tmp_path / "m.onnx", tmp_path / "m.port")
    images = bound(described())
    checks = aipp_checks(port, images, complete_cases(images, {}), "cpu")
    (check,) = [c for c in checks if "largest" in c.name]
    assert check.verdict == "pass" and "of 6" in check.where and "6 of 6" not in check.where
    assert "nearer to each other than the roundings" in check.detail


def test_an_output_that_amplifies_roundings_is_left_open(tmp_path: Path) -> None:
    """sin(1e6 x): fp16 of the input decides everything, so neither pass nor fail is shown."""
    nodes = [node("Mul", "x far", "m"), node("Sin", "m", "y")]
    onnx.save(
        model(nodes, {"x": ["n", 3, SIDE, SIDE]}, {"y": ["n", 3, SIDE, SIDE]}, [constant("far", 1e6)]), str(tmp_path / "m.onnx")
    )
    port = porting.convert(tmp_path / "m.onnx", tmp_path / "m.port")
    images = bound(described())
    checks = aipp_checks(port, images, complete_cases(images, {}), "cpu")
    assert [c.verdict for c in checks] == ["pass", "error"] and "fp16 alone" in checks[1].detail


def test_colours_that_are_rounded_another_way_are_told(port: Port) -> None:
    source = {"format": "NV12", "width": 32, "height": 32}
    images = bound(described(source=source, colour={"to": "RGB", "standard": "bt601-narrow"}))
    checks = aipp_checks(port, images, complete_cases(images, {}), "cpu")
    assert not failed(checks) and "nearest level, which the documents leave open" in checks[1].detail
    (op,) = images.ops().values()
    assert op.colour is not None
    rows = [list(row) for row in op.colour.matrix]
    rows[0][2] += 1  # 1/256 of V in red: less than a level, and yet seen
    wrong = replace(op, colour=op.colour._replace(matrix=tuple(map(tuple, rows))))
    assert failed(aipp_checks(port, replace(images, config=aipp_text([wrong]).encode()), complete_cases(images, {}), "cpu"))


def test_a_resize_is_done_before_the_device(port: Port) -> None:
    open_size = {**SOURCE, "width": None, "height": None}
    images = bound(described(source=open_size, resize={"width": 32, "height": 32, "filter": "linear"}))
    assert not failed(aipp_checks(port, images, complete_cases(images, {}), "cpu"))
    case = next(iter(complete_cases(images, {}).values()))["x"]
    assert host_steps(images.images[0], case).shape[1:] == (32, 32, 3) != case.shape[1:]


def test_a_run_that_the_port_refuses_fails(port: Port) -> None:
    images = bound(described())
    cases = {**complete_cases(images, {}), "odd": {"x": np.zeros((1, 32, 32, 3), np.uint8), "extra": np.zeros(1)}}
    assert not failed(aipp_checks(port, images, cases, "cpu"))  # what the port does not take is left out
    narrow = TensorSpec("x", "float32", ("n", 3, SIDE - 1, SIDE))
    small = bound(described(crop={**CROP, "height": SIDE - 1}), (narrow,))
    assert "runs on AIPP's numbers that the port refuses" in failed(aipp_checks(port, small, complete_cases(small, {}), "cpu"))


# --- read back ----------------------------------------------------------------------------------------------------


def rewritten(folder: Path, **changes: Any) -> Port:
    path = folder / "port.json"
    manifest = json.loads(path.read_bytes())
    manifest["ascend"] |= changes
    path.write_text(json.dumps(manifest))
    return open_port(folder)


def test_the_description_is_read_back_from_a_port(tmp_path: Path) -> None:
    onnx.save(classifier(), str(tmp_path / "m.onnx"))
    plain = porting.convert(tmp_path / "m.onnx", tmp_path / "m.port", "Ascend310P3", gears="n=1; n=2")
    assert images_of_port(plain) is None
    images = bound(described(), batch="1,2")
    port = rewritten(tmp_path / "m.port", **{KEY: images.to_json()})
    found = images_of_port(port)
    assert found is not None and found.images == images.images and found.config == images.config
    assert found.gears.shapes == images.gears.shapes


def test_a_description_that_was_damaged_is_no_port(tmp_path: Path) -> None:
    onnx.save(classifier(), str(tmp_path / "m.onnx"))
    porting.convert(tmp_path / "m.onnx", tmp_path / "m.port", "Ascend310P3", gears="n=1")
    good = bound(described(), batch="1").to_json()
    wrong: list[dict[str, Any]] = [
        {KEY: None},
        {KEY: {**good, "images": []}},
        {KEY: {**good, "images": [{**good["images"][0], "input": "z"}]}},
        {KEY: good, "soc": 7},
        {KEY: good, "soc": "Ascend310P9"},
    ]
    for changes in wrong:
        with pytest.raises(PortError):
            images_of_port(rewritten(tmp_path / "m.port", **{"soc": "Ascend310P3", **changes}))
