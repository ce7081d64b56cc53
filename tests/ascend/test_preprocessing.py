"""From uint8 images to a model's numbers: the description, and the reference against formulas for one pixel."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.ascend.colours import MATRICES, STANDARDS
from porting.ascend.pixels import planes_of, resized
from porting.ascend.preprocessing import SCHEMA, ImageInput, from_json, read_preprocessing, to_json
from porting.ascend.preprocessing_reference import colour_doubt, model_input
from porting.errors import InputError

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "scale": 255}


def described(**fields: Any) -> dict[str, Any]:
    source = {"format": "RGB", "width": 8, "height": 6}
    return {"schema": SCHEMA, "images": [{"input": "x", "source": source, **fields}]}


def image(**fields: Any) -> ImageInput:
    return from_json(described(**fields))[0]


def pixels(source: str, width: int, height: int, count: int = 1, seed: int = 0) -> np.ndarray:
    shape: tuple[int, ...] = (count, height, width, 1 if source == "GRAY" else 3)
    if source in ("NV12", "NV21"):
        shape = (count, height * 3 // 2, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# --- the reference, pixel by pixel, in exact numbers --------------------------------------------------------------


def pixel(made: ImageInput, data: np.ndarray, n: int, c: int, y: int, x: int, rounding: str) -> float:
    """One number of the model's input by the documented formula. No resize."""
    pad = made.padding
    if pad is not None:
        y, x = y - pad.top, x - pad.left
    assert made.size is not None
    width, height = (made.crop.width, made.crop.height) if made.crop else made.size
    if not (0 <= y < height and 0 <= x < width):
        assert pad is not None
        return pad.value
    if made.crop:
        y, x = y + made.crop.top, x + made.crop.left
    if made.source in ("NV12", "NV21"):
        both = data[n, made.size[1] + y // 2, x // 2 * 2 : x // 2 * 2 + 2].tolist()
        u, v = both if made.source == "NV12" else both[::-1]
        three = [int(data[n, y, x]), u, v]
    else:
        three = data[n, y, x].tolist()
        if made.source == "BGR":
            three = three[::-1]  # R, G, B
        if made.colour is None and made.to == "BGR":
            three = three[::-1]
    value = three[c]
    if made.colour is not None:
        matrix, before, after = made.colour
        total = sum(m * (p - b) for m, p, b in zip(matrix[c], three, before, strict=True))
        level = math.floor(Fraction(total, 256) + (Fraction(1, 2) if rounding == "nearest" else 0))
        value = min(255, max(0, level + after[c]))
    return float(np.float32((value - made.mean[c]) * made.var_reci[c]))


COLOURS = [
    ("RGB", {"to": "RGB"}),
    ("RGB", {"to": "BGR"}),
    ("BGR", {"to": "RGB"}),
    ("BGR", {"to": "BGR"}),
    ("BGR", {"to": "YUV", "standard": "bt709-wide"}),
    ("RGB", {"to": "GRAY"}),
    ("BGR", {"to": "GRAY"}),
    ("GRAY", {}),
    ("NV12", {"to": "YUV"}),
    ("NV21", {"to": "YUV"}),
    ("NV12", {"to": "GRAY"}),
    *[(source, {"to": to, "standard": name}) for source in ("NV12", "NV21") for to in ("RGB", "BGR") for name in STANDARDS],
    ("RGB", {"to": "RGB"}),
    (
        "NV12",
        {
            "to": "RGB",
            "matrix": [[256, -7, 9], [1, 2, 3], [-256, 300, 5]],
            "input_bias": [3, 0, 255],
            "output_bias": [0, 9, 255],
        },
    ),
]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_reference_is_the_formula(data: st.DataObject) -> None:
    source, colour = data.draw(st.sampled_from(COLOURS))
    width, height = (2 * data.draw(st.integers(1, 5)) for _ in range(2))
    fields: dict[str, Any] = {"source": {"format": source, "width": width, "height": height}, "colour": colour}
    if data.draw(st.booleans()):
        left, top = (2 * data.draw(st.integers(0, side // 2 - 1)) for side in (width, height))
        right, bottom = (
            2 * data.draw(st.integers(start // 2 + 1, side // 2)) for start, side in ((left, width), (top, height))
        )
        fields["crop"] = {"left": left, "top": top, "width": right - left, "height": bottom - top}
    if data.draw(st.booleans()):
        fields["padding"] = {k: data.draw(st.integers(0, 3)) for k in ("left", "right", "top", "bottom")} | {"value": -1.5}
    count = 1 if colour.get("to") == "GRAY" or source == "GRAY" else 3
    numbers = st.lists(st.floats(0, 255, width=32), min_size=count, max_size=count)
    fields["normalise"] = {"mean": data.draw(numbers), "std": [n + 0.5 for n in data.draw(numbers)]}
    made, rounding = image(**fields), data.draw(st.sampled_from(("down", "nearest")))
    fed = pixels(source, width, height, 2, data.draw(st.integers(0, 99)))
    got = model_input(made, fed, rounding)
    wide, high = made.output_size(width, height)
    assert got.dtype == np.float32 and got.shape == (2, count, high, wide)
    for n, c, y, x in np.ndindex(got.shape):
        assert got[n, c, y, x] == pixel(made, fed, n, c, y, x, rounding)


def test_layout_and_batch() -> None:
    data = pixels("RGB", 8, 6, 3)
    as_nchw, as_nhwc = model_input(image(), data), model_input(image(layout="NHWC"), data)
    assert as_nchw.shape == (3, 3, 6, 8) and (as_nchw.transpose(0, 2, 3, 1) == as_nhwc).all()
    assert (as_nhwc == data).all() and as_nchw.flags.c_contiguous


def test_imagenet_numbers() -> None:
    made = image(normalise=IMAGENET)
    data = pixels("RGB", 8, 6)
    expected = (data / 255 - np.array(IMAGENET["mean"])) / np.array(IMAGENET["std"])
    assert np.abs(model_input(made, data) - expected.transpose(0, 3, 1, 2)).max() < 1e-6


def test_the_open_rounding_is_within_the_doubt() -> None:
    made = image(
        source={"format": "NV12", "width": 64, "height": 64}, colour={"to": "RGB", "standard": "jpeg"}, normalise=IMAGENET
    )
    data = pixels("NV12", 64, 64)
    apart = np.abs(model_input(made, data, "down") - model_input(made, data, "nearest")).max((0, 2, 3))
    assert (apart > 0).all() and (apart <= np.array(colour_doubt(made)) * (1 + 1e-5)).all()
    assert colour_doubt(image(normalise=IMAGENET)) == (0, 0, 0)


def test_every_standard_gives_back_gray_and_white() -> None:
    """A picture without colour: its Y says all. White in and out of every standard, within the matrices' own rounding."""
    for standard in STANDARDS:
        there, back = MATRICES["RGB", "YUV", standard], MATRICES["YUV", "RGB", standard]
        for gray in (0, 77, 255):
            luma = there.matrix[0]
            y = (sum(luma) * gray + 128 >> 8) + there.output_bias[0]
            rgb = [
                (sum(m * (p - b) for m, p, b in zip(row, (y, 128, 128), back.input_bias, strict=True)) + 128) >> 8
                for row in back.matrix
            ]
            assert all(abs(min(255, max(0, n)) - gray) <= 2 for n in rgb), (standard, gray, rgb)


def test_nv12_shares_colours_by_two() -> None:
    data = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [10, 20, 30, 40]], np.uint8)[None]
    assert planes_of(data, "NV12", (4, 2))[0, 1].tolist() == [[5, 10, 20], [6, 10, 20], [7, 30, 40], [8, 30, 40]]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_resize_is_the_formula(width: int, height: int, new_width: int, new_height: int, seed: int) -> None:
    data = pixels("RGB", width, height, 1, seed)
    nearest = resized(data, new_width, new_height, "nearest")
    linear = resized(data, new_width, new_height, "linear")
    for y, x in np.ndindex(new_height, new_width):
        row, column = (
            Fraction(2 * i + 1, 2) * Fraction(old, new) for i, old, new in ((y, height, new_height), (x, width, new_width))
        )
        assert nearest[0, y, x].tolist() == data[0, math.floor(row), math.floor(column)].tolist()
        (r, fr), (c, fc) = ((math.floor(p - Fraction(1, 2)), (p - Fraction(1, 2)) % 1) for p in (row, column))
        rows, columns = ([min(max(i + k, 0), old - 1) for k in (0, 1)] for i, old in ((r, height), (c, width)))
        for channel in range(3):
            four = [[int(data[0, i, j, channel]) for j in columns] for i in rows]
            exact = sum(w * v * four[i][j] for i, w in enumerate((1 - fr, fr)) for j, v in enumerate((1 - fc, fc)))
            assert abs(int(linear[0, y, x, channel]) - exact) <= Fraction(1, 2) + Fraction(1, 10**9)
    assert (resized(data, width, height, "linear") == data).all()


def test_resize_is_the_first_step() -> None:
    made = image(resize={"width": 4, "height": 4, "filter": "linear"}, crop={"left": 1, "top": 1, "width": 2, "height": 2})
    data = pixels("RGB", 8, 6)
    assert (model_input(made, data)[0].transpose(1, 2, 0) == resized(data, 4, 4, "linear")[0, 1:3, 1:3]).all()


# --- what is refused ---------------------------------------------------------------------------------------------

NV12 = {"format": "NV12", "width": 8, "height": 6}
WRONG = {
    "unknown key 'mena'": {"mena": 1},
    "unknown key 'media'": {"normalise": {"media": [1]}},
    "'RGBA' is not one of": {"source": {"format": "RGBA", "width": 8, "height": 8}},
    "missing key 'height'": {"source": {"format": "RGB", "width": 8}},
    "expected an integer in [1": {"source": {"format": "RGB", "width": 0, "height": 8}},
    "got NoneType": {"source": {"format": "RGB", "width": 8, "height": None}},
    "even": {"source": {"format": "NV12", "width": 7, "height": 8}, "colour": {"to": "GRAY"}},
    "NV12 is not resized": {"source": NV12, "colour": {"to": "GRAY"}, "resize": {"width": 4, "height": 4, "filter": "nearest"}},
    "even sides and starts": {"source": NV12, "colour": {"to": "GRAY"}, "crop": {"left": 1, "top": 0, "width": 4, "height": 4}},
    "name it": {"source": NV12},
    "needs a standard": {"source": NV12, "colour": {"to": "RGB"}},
    "'pal' is not one of": {"source": NV12, "colour": {"to": "RGB", "standard": "pal"}},
    "has one matrix": {"source": NV12, "colour": {"to": "GRAY", "standard": "jpeg"}},
    "is no conversion": {"colour": {"to": "BGR", "standard": "jpeg"}},
    "a gray image does not become RGB": {"source": {"format": "GRAY", "width": 8, "height": 8}, "colour": {"to": "RGB"}},
    "missing key 'input_bias'": {"source": NV12, "colour": {"to": "RGB", "matrix": [[1] * 3] * 3}},
    "expected 3 of them": {
        "source": NV12,
        "colour": {"to": "RGB", "matrix": [[1] * 3] * 2, "input_bias": [0] * 3, "output_bias": [0] * 3},
    },
    "beyond 8 x 6": {"crop": {"left": 4, "top": 0, "width": 5, "height": 4}},
    "needs the size": {
        "source": {"format": "RGB", "width": None, "height": None},
        "crop": {"left": 0, "top": 0, "width": 5, "height": 4},
    },
    "no std is 0": {"normalise": {"std": [1, 0, 1]}},
    "no var_reci is 0": {"normalise": {"var_reci": [1, 0.0, 1]}},
    "scale is above 0": {"normalise": {"scale": -1}},
    "too large or too small": {"normalise": {"std": [1e-300, 1, 1], "scale": 1e-300}},
    "exclude each other": {"normalise": {"std": [1] * 3, "var_reci": [1] * 3}},
    "expected a finite number": {"normalise": {"mean": [1, True, 1]}},
    "'cubic' is not one of": {"resize": {"width": 4, "height": 4, "filter": "cubic"}},
    "'CHW' is not one of": {"layout": "CHW"},
    "the input has no name": {"input": ""},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_description_that_cannot_be_meant(message: str) -> None:
    with pytest.raises(InputError) as caught:
        image(**WRONG[message])
    assert message in str(caught.value) and "images[0]" in caught.value.where


def test_two_images_of_one_input() -> None:
    twice = described()
    twice["images"] *= 2
    with pytest.raises(InputError, match="about one input"):
        from_json(twice)


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((1, 6, 8, 3), np.float32),
        np.zeros((6, 8, 3), np.uint8),
        np.zeros((1, 8, 6, 3), np.uint8),
        np.zeros((1, 6, 8, 4), np.uint8),
        np.zeros((0, 6, 8, 3), np.uint8),
    ],
)
def test_pixels_that_are_no_such_image(data: np.ndarray) -> None:
    with pytest.raises(InputError):
        model_input(image(), data)


@pytest.mark.parametrize("shape", [(1, 8, 6), (1, 9, 7), (1, 9, 6, 1)])
def test_bytes_that_are_no_nv12(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        planes_of(np.zeros(shape, np.uint8), "NV12", None)


# --- the file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "colour"), COLOURS)
def test_what_is_written_is_read_back(source: str, colour: dict[str, Any], tmp_path: Path) -> None:
    pad = {"left": 1, "right": 0, "top": 2, "bottom": 3, "value": 0.1}
    made = from_json(described(source={"format": source, "width": 8, "height": 6}, colour=colour, padding=pad))
    path = tmp_path / "preprocessing.json"
    path.write_text(json.dumps(to_json(made)), encoding="utf-8")
    assert read_preprocessing(path) == made


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b'{"schema": 1, "schema": 2}', "a key occurs twice"),
        (b'{"schema": NaN}', "NaN is no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b" " * (2 << 20), "at most"),
        (b"[]", "expected an object"),
        (b'{"schema": "porting.preprocessing/2", "images": []}', "expected schema"),
        (b'{"schema": "porting.preprocessing/1", "images": []}', "1 to 64 images"),
    ],
)
def test_files_that_are_no_description(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=message):
        read_preprocessing(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_preprocessing(tmp_path / "none.json")


WHOLE = to_json(
    from_json(described(normalise=IMAGENET, crop={"left": 0, "top": 0, "width": 4, "height": 4}, padding={"value": 1}))
)["images"][0]
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda v: (
        st.lists(v, max_size=4) | st.dictionaries(st.sampled_from(("to", "width", "mean", "left", "format")), v, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*WHOLE, "resize", "more"]), VALUES)
def test_damaged_descriptions_are_refused_or_mean_something(key: str, value: object) -> None:
    try:
        made = from_json({"schema": SCHEMA, "images": [{**WHOLE, key: value}]})
    except InputError:
        return
    assert from_json(json.loads(json.dumps(to_json(made)))) == made
