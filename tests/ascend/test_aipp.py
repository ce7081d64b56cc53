"""What AIPP is told, its file written and read, and its documented roundings against the float32 reference."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.ascend.aipp import AippOp, aipp_op, aipp_ops, emulated_input, half_error, host_notes, run_aipp
from porting.ascend.aipp_text import aipp_text, parse_aipp
from porting.ascend.gears import Request, gears_for
from porting.ascend.preprocessing import SCHEMA, ImageInput, from_json
from porting.ascend.preprocessing_reference import host_steps, model_input
from porting.ascend.soc import find_soc
from porting.errors import InputError, PortingError, UsageError
from porting.types import TensorSpec

P310, A2 = find_soc("Ascend310P3"), find_soc("Ascend910B3")
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "scale": 255}
CROP = {"left": 16, "top": 16, "width": 224, "height": 224}
SOURCE = {"format": "RGB", "width": 256, "height": 256}
X = TensorSpec("x", "float32", ("n", 3, 224, 224))
FREE = TensorSpec("x", "float32", (1, 3, "h", "w"))


def image(**fields: Any) -> ImageInput:
    return from_json({"schema": SCHEMA, "images": [{"input": "x", "source": SOURCE, **fields}]})[0]


CLASSIFIER = image(crop=CROP, normalise=IMAGENET)


def ops(made: ImageInput, inputs: Sequence[TensorSpec] = (X,), soc: Any = P310, **request: str) -> tuple[AippOp, ...]:
    return aipp_ops([made], inputs, gears_for(inputs, soc, Request(**(request or {"batch": "1,4"}))), soc)


# --- the file ----------------------------------------------------------------------------------------------------


def test_a_classifier() -> None:
    text = aipp_text(ops(CLASSIFIER))
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == "aipp_op {" and lines[-1] == "}"
    assert lines[1:11] == [
        "aipp_mode: static",
        "related_input_rank: 0",
        "input_format: RGB888_U8",
        "src_image_size_w: 256",
        "src_image_size_h: 256",
        "crop: true",
        "load_start_pos_w: 16",
        "load_start_pos_h: 16",
        "crop_size_w: 224",
        "crop_size_h: 224",
    ]
    assert lines[11:13] == ["rbuv_swap_switch: false", "csc_switch: false"]
    assert "mean_chn_0: 123" in lines and "min_chn_0: 0.675" in lines and "var_reci_chn_0: 0.017124753" in lines


@pytest.mark.parametrize(
    ("source", "to", "swap", "row"),
    [
        ("NV12", "RGB", "false", "298, 0, 409"),
        ("NV12", "BGR", "false", "298, 516, 0"),
        ("NV21", "RGB", "true", "298, 0, 409"),
        ("RGB", "YUV", "false", "66, 129, 25"),
        ("BGR", "YUV", "true", "66, 129, 25"),
    ],
)
def test_conversions_are_those_of_the_documents(source: str, to: str, swap: str, row: str) -> None:
    made = image(source={"format": source, "width": 8, "height": 8}, colour={"to": to, "standard": "bt601-narrow"})
    text = aipp_text([aipp_op(made)])
    assert f"rbuv_swap_switch: {swap}" in text and "csc_switch: true" in text
    assert ", ".join(re.findall(r"matrix_r0c\d: (-?\d+)", text)) == row
    assert re.findall(r"input_bias_\d: (\d+)", text) == (["16", "128", "128"] if source.startswith("NV") else ["0"] * 3)
    assert re.findall(r"output_bias_\d: (\d+)", text) == (["0"] * 3 if source.startswith("NV") else ["16", "128", "128"])


SOURCES = (("RGB", {"to": "RGB"}), ("RGB", {"to": "BGR"}), ("BGR", {"to": "RGB"}), ("BGR", {"to": "GRAY"}), ("GRAY", {}))
SOURCES += tuple((s, {"to": t, "standard": "bt709-wide"}) for s in ("NV12", "NV21") for t in ("RGB", "BGR"))
SOURCES += (("NV12", {"to": "GRAY"}), ("NV21", {"to": "YUV"}), ("RGB", {"to": "YUV", "standard": "jpeg"}))


@st.composite
def images(draw: st.DrawFn) -> ImageInput:
    source, colour = draw(st.sampled_from(SOURCES))
    width, height = (2 * draw(st.integers(1, 12)) for _ in range(2))
    fields: dict[str, Any] = {"source": {"format": source, "width": width, "height": height}, "colour": colour}
    if draw(st.booleans()) and not source.startswith("NV"):
        width, height = (2 * draw(st.integers(1, 12)) for _ in range(2))
        fields["resize"] = {"width": width, "height": height, "filter": "linear"}
    if draw(st.booleans()):
        left, top = (2 * draw(st.integers(0, side // 2 - 1)) for side in (width, height))
        fields["crop"] = {"left": left, "top": top, "width": width - left, "height": height - top}
    if draw(st.booleans()):
        fields["padding"] = {k: draw(st.integers(0, 32)) for k in ("left", "right", "top", "bottom")}
        fields["padding"]["value"] = draw(st.floats(-60000, 60000))
    count = 1 if "GRAY" in (source, colour.get("to")) else 3
    fields["normalise"] = {
        "mean": draw(st.lists(st.floats(0, 255), min_size=count, max_size=count)),
        "var_reci": draw(st.lists(st.floats(-100, 100).filter(lambda n: abs(n) > 1e-4), min_size=count, max_size=count)),
    }
    return image(**fields)


@settings(max_examples=200, deadline=None)
@given(st.lists(images(), min_size=1, max_size=3))
def test_the_file_says_what_was_meant(drawn: list[ImageInput]) -> None:
    meant = tuple(aipp_op(made, rank) for rank, made in enumerate(drawn))
    assert parse_aipp(aipp_text(meant), [op.channels for op in meant]) == meant


@settings(max_examples=100, deadline=None)
@given(images(), st.sampled_from(("down", "nearest")), st.integers(0, 99))
def test_what_the_file_computes_is_the_reference_within_the_roundings(made: ImageInput, rounding: str, seed: int) -> None:
    """The unit's fp16 from the file alone, against float32 from the description alone."""
    assert made.size is not None
    width, height = made.size
    is_nv = made.source in ("NV12", "NV21")
    shape = (2, height * 3 // 2, width) if is_nv else (2, height, width, 1 if made.source == "GRAY" else 3)
    data = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    (op,) = parse_aipp(aipp_text([aipp_op(made)]), [made.channels])
    fed = data if is_nv else host_steps(made, data)
    got, wanted = run_aipp(op, fed, rounding), model_input(made, data, rounding)
    assert got.dtype == np.float16 and got.shape == wanted.shape
    assert (got == emulated_input(made, data, rounding)).all()
    bound = np.array(half_error(made))[:, None, None] + 2.0**-22 * np.abs(wanted)  # and float32's own rounding
    pad = made.padding
    if pad is not None:
        bound = np.maximum(bound, 2.0**-11 * abs(pad.value) * (1 + 2.0**-10) + 2.0**-25)  # the last: of subnormal halves
    assert (np.abs(got.astype(np.float64) - wanted) <= bound).all()


def test_half_error_is_what_an_analysis_says() -> None:
    """Each number has at most four roundings of 2^-11: the mean's fraction, the difference, the factor, the product."""
    for made in (CLASSIFIER, image(normalise={"mean": [0, 127.5, 255], "std": [1, 127.5, 0.3]})):
        for error, mean, factor in zip(half_error(made), made.mean, made.var_reci, strict=True):
            largest = max(mean, 255 - mean) * abs(factor)
            assert error <= largest * ((1 + 2.0**-11) ** 4 - 1)
    assert all(error > 0 for error in half_error(CLASSIFIER)) and half_error(image()) == (0, 0, 0)


def test_the_mean_is_parted_because_a_half_alone_loses_it() -> None:
    op = aipp_op(CLASSIFIER)
    assert op.mean_chn == (123, 116, 103) and all(0 <= n < 1 for n in op.min_chn)
    alone = abs(float(np.float16(123.675)) - 123.675)
    parted = abs(123 + float(np.float16(op.min_chn[0])) - 123.675)
    assert alone > 0.01 and parted < 0.0003


def half(number: float) -> float:
    """Rounded to a half once, by Python's own code and not numpy's."""
    return float(struct.unpack("<e", struct.pack("<e", number))[0])


def test_the_roundings_are_the_documented_ones_in_their_order() -> None:
    """Every byte: the difference is rounded, then the product; no other order gives the same halves."""
    source = {"format": "RGB", "width": 256, "height": 1}
    made = image(source=source, normalise=IMAGENET)
    levels = np.arange(256, dtype=np.uint8)
    got = emulated_input(made, np.repeat(levels[None, None, :, None], 3, axis=3))
    op = aipp_op(made)
    for c in range(3):
        least, factor = half(op.min_chn[c]), half(op.var_reci_chn[c])
        assert got[0, c, 0].tolist() == [half(half(n - op.mean_chn[c] - least) * factor) for n in range(256)]
        assert got[0, c, 0].tolist() != [half((n - made.mean[c]) * made.var_reci[c]) for n in range(256)]


# --- with the model's inputs and gears ---------------------------------------------------------------------------


def test_the_rank_is_the_inputs() -> None:
    inputs = (TensorSpec("info", "float32", (1, 4)), TensorSpec("x", "float32", (1, 3, 224, 224)))
    (op,) = ops(CLASSIFIER, inputs, batch=" ")
    assert op.rank == 1 and "related_input_rank: 1" in aipp_text([op])


def test_sizes_that_differ_by_gear_come_from_the_model() -> None:
    made = image(source={"format": "RGB", "width": None, "height": None}, normalise=IMAGENET)
    (op,) = ops(made, [FREE], image_size="224,224;448,320")
    assert op.src == (0, 0) and "src_image_size_w: 0" in aipp_text([op])
    with pytest.raises(UsageError, match="4096"):
        ops(made, [FREE], image_size="224,224;448,4097")


NULL = {"format": "RGB", "width": None, "height": None}
GEARED = {
    "a crop": {"crop": CROP},
    "padding": {"source": NULL, "padding": {"left": 1}},
    "a resize": {"source": NULL, "resize": {"width": 4, "height": 4, "filter": "linear"}},
    "one size": {},
}


@pytest.mark.parametrize("what", GEARED)
def test_nothing_is_cut_or_added_where_sizes_differ_by_gear(what: str) -> None:
    with pytest.raises(UsageError, match=f"{what} does not go with --dynamic_image_size .ATC: E10052"):
        ops(image(**GEARED[what]), [FREE], image_size="224,224;448,448")


REFUSED: dict[str, tuple[dict[str, Any], TensorSpec]] = {
    "the model takes 1 channels, RGB has 3": ({}, TensorSpec("x", "float32", ("n", 1, 256, 256))),
    "becomes 256 x 256 pixels .*, the model takes 224 x 224": ({}, X),
    "AIPP makes images, and the model takes x: int64": ({}, TensorSpec("x", "int64", ("n", 3, 256, 256))),
    "next: .* rank 4": ({}, TensorSpec("x", "float32", ("n", 768))),
    "no input 'x'": ({}, TensorSpec("y", "float32", ("n", 3, 256, 256))),
    "gives ONNX models NCHW": ({"layout": "NHWC", "crop": CROP}, X),
    "a mean of AIPP is from 0 to 255": ({"normalise": {"mean": [-1, 0, 0]}, "crop": CROP}, X),
    "var_reci 1e-09 is nothing": ({"normalise": {"var_reci": [1e-9, 1, 1]}, "crop": CROP}, X),
    "var_reci inf is nothing": ({"normalise": {"var_reci": [1e6, 1, 1]}, "crop": CROP}, X),
    "var_reci 300 makes numbers beyond": ({"normalise": {"var_reci": [300, 1, 1]}, "crop": CROP}, X),
    "padding of 100000 is beyond": ({"padding": {"value": 100000.0}, "crop": CROP}, X),
    "pads by at most 32": ({"padding": {"left": 33}, "crop": CROP}, X),
    "4096": ({"source": {"format": "RGB", "width": 4097, "height": 256}, "crop": CROP}, X),
    "needs the source's size": ({"source": NULL, "padding": {"left": 3}}, X),
    "adds up beyond 16 bits": (
        {"colour": {"to": "YUV", "matrix": [[32000] * 3] * 3, "input_bias": [0] * 3, "output_bias": [0] * 3}, "crop": CROP},
        X,
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message: str) -> None:
    fields, spec = REFUSED[message]
    with pytest.raises(PortingError) as caught:
        ops(image(**fields), [spec])
    assert re.search(message, str(caught.value))


def test_not_with_dynamic_dims() -> None:
    inputs = (TensorSpec("x", "float32", (1, 3, 224, "w")),)
    gears = gears_for(inputs, P310, Request(named="w=224;w=448"))
    with pytest.raises(UsageError, match="AIPP and --dynamic_dims exclude each other"):
        aipp_ops([CLASSIFIER], inputs, gears, P310)


def test_two_images_about_one_input() -> None:
    gears = gears_for([X], P310, Request(batch="1"))
    with pytest.raises(InputError, match="E10052"):
        aipp_ops([CLASSIFIER, CLASSIFIER], [X], gears, P310)


def test_wide_padded_images_hang_on_the_chip() -> None:
    made = image(source={"format": "RGB", "width": 1080, "height": 8}, padding={"left": 1})
    spec = [TensorSpec("x", "float32", ("n", 3, 8, 1081))]
    with pytest.raises(UsageError, match="at most 1080 pixels wide on Ascend310P3, got 1081"):
        ops(made, spec)
    assert ops(made, spec, A2)[0].padding is not None


def test_what_is_left_to_the_host_is_said() -> None:
    made = image(resize={"width": 8, "height": 4, "filter": "linear"}, colour={"to": "GRAY"})
    notes = " ".join(host_notes(made))
    assert "the host gives images of 8 x 4" in notes and "rounding" in notes and "one channel" in notes
    assert aipp_op(made).src == (8, 4) and host_notes(CLASSIFIER) == ()


# --- files that others wrote -------------------------------------------------------------------------------------

YUV = """# a comment
aipp_op: {
  aipp_mode : static   related_input_rank:1;
  input_format : YUV420SP_U8, src_image_size_w : 320 src_image_size_h : 240
  crop: true load_start_pos_w: 10 load_start_pos_h: 20 crop_size_w: 50 crop_size_h: 60
  padding: 1 left_padding_size: 20 right_padding_size: 15 top_padding_size: 20 bottom_padding_size: 15 padding_value: 0
  resize: false
  var_reci_chn_0: 0.00392157
}
"""


def test_a_file_by_hand() -> None:
    (op,) = parse_aipp(YUV, [0, 3])
    assert (op.rank, op.src, op.crop, op.colour) == (1, (320, 240), (10, 20, 50, 60), None)
    assert op.padding is not None and op.padding.bottom == 15
    assert op.var_reci_chn == (float(np.float32(0.00392157)), 1.0, 1.0)
    data = np.random.default_rng(0).integers(0, 256, (1, 360, 320), np.uint8)
    assert run_aipp(op, data).shape == (1, 3, 95, 85)


BASE = "aipp_mode: static input_format: RGB888_U8"
WRONG = {
    "no aipp_op": "",
    "expected at most 64 times aipp_op": "aipp { }",
    "has no end": f"aipp_op {{ {BASE}",
    "expected field: value": "aipp_op { aipp_mode static }",
    "aipp_mode comes twice": "aipp_op { aipp_mode: static aipp_mode: static }",
    "aipp_mode is missing": "aipp_op { input_format: RGB888_U8 }",
    "input_format is missing": "aipp_op { aipp_mode: static }",
    "'dynamic' is not one of": "aipp_op { aipp_mode: dynamic input_format: RGB888_U8 }",
    "'XRGB8888_U8' is not one of": "aipp_op { aipp_mode: static input_format: XRGB8888_U8 }",
    "unknown field 'mean_chan_0'": f"aipp_op {{ {BASE} mean_chan_0: 1 }}",
    "mean_chn_0: '123.675' is no int": f"aipp_op {{ {BASE} mean_chn_0: 123.675 }}",
    "mean_chn_0: '256' is no int": f"aipp_op {{ {BASE} mean_chn_0: 256 }}",
    "var_reci_chn_0: '1e9' is no float": f"aipp_op {{ {BASE} var_reci_chn_0: 1e9 }}",
    "'1e999' is no float": f"aipp_op {{ {BASE} var_reci_chn_0: 1e999 }}",
    "'1.2.3' is no float": f"aipp_op {{ {BASE} var_reci_chn_0: 1.2.3 }}",
    "'yes' is not one of": f"aipp_op {{ {BASE} crop: yes }}",
    "resize is reserved": f"aipp_op {{ {BASE} resize: true }}",
    "mean_chn_3 is set": f"aipp_op {{ {BASE} mean_chn_3: 4 }}",
    "matrix_r0c0 is left out": f"aipp_op {{ {BASE} csc_switch: true }}",
    "need src_image_size_w": f"aipp_op {{ {BASE} crop: true }}",
    "a crop without a size": f"aipp_op {{ {BASE} crop: true src_image_size_w: 8 src_image_size_h: 8 }}",
    "beyond src_image_size": f"aipp_op {{ {BASE} crop: true crop_size_w: 9 crop_size_h: 8 src_image_size_w: 8 src_image_size_h: 8 }}",
    "src_image_size of 8 x 0": f"aipp_op {{ {BASE} src_image_size_w: 8 }}",
    "both sides are even": "aipp_op { aipp_mode: static input_format: YUV420SP_U8 src_image_size_w: 8 src_image_size_h: 7 }",
    "the model's input has 3 channels": "aipp_op { aipp_mode: static input_format: YUV400_U8 }",
    "no channels": f"aipp_op {{ {BASE} related_input_rank: 7 }}",
    "two aipp_op are about one input": f"aipp_op {{ {BASE} }} aipp_op {{ {BASE} }}",
    "line 2: '? }' is not understood": "aipp_op {\n? }",
}


@pytest.mark.parametrize("message", WRONG)
def test_a_file_that_is_wrong(message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_aipp(WRONG[message], [3])
    assert message in str(caught.value)


TOKENS = st.sampled_from(
    (
        *"{}:;,#\n ",
        "aipp_op",
        "aipp_mode",
        "static",
        "input_format",
        "RGB888_U8",
        "crop",
        "true",
        "-1",
        "1e5",
        "mean_chn_0",
        "é",
        '"',
    )
)


@settings(max_examples=300, deadline=None)
@given(st.lists(TOKENS, max_size=30), st.integers(0, 400), st.integers(0, 400))
def test_damaged_files_are_read_or_refused(noise: list[str], start: int, stop: int) -> None:
    for text in ("".join(noise), YUV[:start] + " ".join(noise) + YUV[stop:]):
        try:
            found = parse_aipp(text, [3, 3])
        except InputError:
            continue
        assert parse_aipp(aipp_text(found), [3, 3]) == found


def test_a_file_without_end_is_refused_early() -> None:
    with pytest.raises(InputError, match="more than"):
        parse_aipp(" " * (2 << 20), [3])
