"""How a model's pixels are made from an image: one description, from which come the reference on the CPU and what AIPP is told.

    preprocessing.json    {"schema": "porting.preprocessing/1", "images": [{
      "input": "pixel_values",
      "source":    {"format": "RGB", "width": 256, "height": 256},    format: RGB, BGR, GRAY (one byte a pixel), NV12, NV21; sizes null: any
      "resize":    {"width": 256, "height": 256, "filter": "linear"}, by the host: "linear" or "nearest"
      "crop":      {"left": 16, "top": 16, "width": 224, "height": 224},
      "colour":    {"to": "RGB", "standard": "bt601-narrow"},         to: RGB, BGR, GRAY, YUV; or "matrix", "input_bias", "output_bias"
      "normalise": {"mean": [0.485, ...], "std": [0.229, ...], "scale": 255},
      "padding":   {"left": 0, "right": 0, "top": 0, "bottom": 0, "value": 0.0},
      "layout": "NCHW"}]}

In this order, which is AIPP's but for the resize before it. Only input and source are required. normalise is (x - mean) * var_reci for a pixel x of
0 to 255: give std, or var_reci itself; with a scale, mean and std are those of x / scale. padding is in the model's own numbers, after normalise.
What AIPP cannot do of it is a matter of aipp.py; the rules of rounding are in pixels.py and preprocessing_reference.py.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from porting.ascend.colours import MATRICES, PIXEL_FORMATS, STANDARDS, Colour
from porting.checked_json import integer, text
from porting.errors import InputError, nearest
from porting.verdict import printable

SCHEMA = "porting.preprocessing/1"
LARGEST_SIDE = 1 << 15  # pixels of what the reference works on
MAX_BYTES = 1 << 20  # of a file
MAX_IMAGES = 64
FILTERS = ("linear", "nearest")
LAYOUTS = ("NCHW", "NHWC")
CHANNELS = {"RGB": 3, "BGR": 3, "YUV": 3, "GRAY": 1}  # of the model's input


@dataclass(frozen=True)
class Crop:
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Padding:
    """value: in the model's numbers"""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0
    value: float = 0.0


@dataclass(frozen=True)
class ImageInput:
    """How the pixels of one input are made.

    source:   RGB, BGR, GRAY, NV12 or NV21
    size:     (width, height) of the source; None: any
    resize:   (width, height, filter), by the host; None: none
    to:       RGB, BGR, GRAY or YUV
    colour:   the conversion, None where channels are only swapped, or left as they are
    mean:     a pixel value a channel
    var_reci: a factor a channel
    """

    input: str
    source: str
    size: tuple[int, int] | None
    to: str
    mean: tuple[float, ...]
    var_reci: tuple[float, ...]
    resize: tuple[int, int, str] | None = None
    crop: Crop | None = None
    colour: Colour | None = None
    padding: Padding | None = None
    layout: str = "NCHW"

    @property
    def channels(self) -> int:
        return CHANNELS[self.to]

    @property
    def swap(self) -> bool:
        """Whether R and B, or U and V, change places before anything else."""
        if self.source == "NV21":
            return True
        order = "RGB" if self.colour is not None else self.to  # a conversion starts from R, G, B
        return self.source in ("RGB", "BGR") and self.source != order

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of what a source of this size becomes."""
        if self.resize is not None:
            width, height = self.resize[:2]
        if self.crop is not None:
            width, height = self.crop.width, self.crop.height
        pad = self.padding or Padding()
        return width + pad.left + pad.right, height + pad.top + pad.bottom

    def to_json(self) -> dict[str, Any]:
        """As in the file."""
        width, height = self.size or (None, None)
        made: dict[str, Any] = {"input": self.input, "source": {"format": self.source, "width": width, "height": height}}
        if self.resize is not None:
            made["resize"] = dict(zip(("width", "height", "filter"), self.resize, strict=True))
        if self.crop is not None:
            made["crop"] = {key: getattr(self.crop, key) for key in ("left", "top", "width", "height")}
        made["colour"] = {"to": self.to}
        if self.colour is not None:
            made["colour"] |= {
                "matrix": [list(row) for row in self.colour.matrix],
                "input_bias": list(self.colour.input_bias),
                "output_bias": list(self.colour.output_bias),
            }
        made["normalise"] = {"mean": list(self.mean), "var_reci": list(self.var_reci)}
        if self.padding is not None:
            made["padding"] = {key: getattr(self.padding, key) for key in ("left", "right", "top", "bottom", "value")}
        return {**made, "layout": self.layout}


def to_json(images: tuple[ImageInput, ...]) -> dict[str, Any]:
    """What the file holds."""
    return {"schema": SCHEMA, "images": [image.to_json() for image in images]}


def read_preprocessing(path: str | Path) -> tuple[ImageInput, ...]:
    """The images of a preprocessing.json. raises: InputError naming what is wrong with it"""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise InputError(f"a description of preprocessing has at most {MAX_BYTES} bytes", where=str(path))
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
    except OSError as error:
        raise InputError(
            f"the description of preprocessing cannot be read: {error.strerror or error}", where=str(path)
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"no JSON: {error}", where=str(path)) from error
    return from_json(value, str(path))


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


# --- the parser: an unknown key is an error -----------------------------------------------------------------------


def from_json(value: Any, where: str = "preprocessing") -> tuple[ImageInput, ...]:
    """raises: InputError naming the place"""
    fields = _object(value, ("schema", "images"), (), where)
    if fields["schema"] != SCHEMA:
        raise InputError(f"expected schema {SCHEMA!r}, got {printable(str(fields['schema']), 60)!r}", where=where)
    listed = fields["images"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_IMAGES:
        raise InputError(f"expected 1 to {MAX_IMAGES} images", where=f"{where}: images")
    images = tuple(_image(entry, f"{where}: images[{i}]") for i, entry in enumerate(listed))
    names = [image.input for image in images]
    if len(set(names)) != len(names):
        raise InputError("two images are about one input", where=f"{where}: images")
    return images


def _image(value: Any, where: str) -> ImageInput:
    optional = ("resize", "crop", "colour", "normalise", "padding", "layout")
    fields = _object(value, ("input", "source"), optional, where)
    name = text(fields["input"], f"{where}: input")
    if not name:
        raise InputError("the input has no name", where=f"{where}: input")
    source, size = _source(fields["source"], f"{where}: source")
    to, colour = _colour(source, fields.get("colour", {}), f"{where}: colour")
    mean, var_reci = _normalise(fields.get("normalise", {}), CHANNELS[to], f"{where}: normalise")
    image = ImageInput(
        name,
        source,
        size,
        to,
        mean,
        var_reci,
        _resize(fields["resize"], f"{where}: resize") if "resize" in fields else None,
        _crop(fields["crop"], f"{where}: crop") if "crop" in fields else None,
        colour,
        _padding(fields["padding"], f"{where}: padding") if "padding" in fields else None,
        _one_of(fields.get("layout", "NCHW"), LAYOUTS, f"{where}: layout"),
    )
    _require_sizes(image, where)
    return image


def _require_sizes(image: ImageInput, where: str) -> None:
    half = image.source in ("NV12", "NV21")
    if half and image.size is not None and (image.size[0] % 2 or image.size[1] % 2):
        raise InputError(f"{image.source} shares colours by two: width and height are even", where=f"{where}: source")
    if half and image.resize is not None:
        raise InputError(f"{image.source} is not resized here", where=f"{where}: resize", next="let the decoder give the size")
    if image.crop is None:
        return
    width, height = image.resize[:2] if image.resize is not None else image.size or (None, None)
    if width is None or height is None:
        raise InputError("a crop needs the size of the source", where=f"{where}: crop", next="name it, or resize first")
    if image.crop.left + image.crop.width > width or image.crop.top + image.crop.height > height:
        raise InputError(f"the crop reaches beyond {width} x {height} pixels", where=f"{where}: crop")
    if half and any(number % 2 for number in (image.crop.left, image.crop.top, image.crop.width, image.crop.height)):
        raise InputError(f"{image.source} shares colours by two: a crop has even sides and starts", where=f"{where}: crop")


def _source(value: Any, where: str) -> tuple[str, tuple[int, int] | None]:
    fields = _object(value, ("format", "width", "height"), (), where)
    name = _one_of(fields["format"], PIXEL_FORMATS, f"{where}.format")
    if fields["width"] is None and fields["height"] is None:
        return name, None
    return name, (_side(fields["width"], where), _side(fields["height"], where))


def _resize(value: Any, where: str) -> tuple[int, int, str]:
    fields = _object(value, ("width", "height", "filter"), (), where)
    return _side(fields["width"], where), _side(fields["height"], where), _one_of(fields["filter"], FILTERS, f"{where}.filter")


def _crop(value: Any, where: str) -> Crop:
    fields = _object(value, ("left", "top", "width", "height"), (), where)
    left, top = (integer(fields[key], 0, LARGEST_SIDE, where) for key in ("left", "top"))
    return Crop(left, top, _side(fields["width"], where), _side(fields["height"], where))


def _colour(source: str, value: Any, where: str) -> tuple[str, Colour | None]:
    fields = _object(value, (), ("to", "standard", "matrix", "input_bias", "output_bias"), where)
    if "to" not in fields and source.startswith("NV"):
        raise InputError(f"{source} becomes what the model takes: name it", where=where, next='"colour": {"to": "RGB", ...}')
    to = _one_of(fields.get("to", source), tuple(CHANNELS), f"{where}.to")
    kind = "YUV" if source.startswith("NV") else "GRAY" if source == "GRAY" else "RGB"
    if kind == "GRAY" and to != "GRAY":
        raise InputError(f"a gray image does not become {to}", where=f"{where}.to", next="let the model repeat the channel")
    own = {"matrix", "input_bias", "output_bias"} & fields.keys()
    if kind == to or (kind == "RGB" and to == "BGR"):  # channels as they are, or swapped
        if own or "standard" in fields:
            raise InputError(f"{source} to {to} is no conversion", where=where, next="leave out the standard and the matrix")
        return to, None
    if own:
        return to, _own_colour(fields, where)
    if to == "GRAY":
        if "standard" in fields:
            raise InputError(
                f"{source} to GRAY has one matrix", where=f"{where}.standard", next="leave it out, or give a matrix"
            )
        return to, MATRICES[kind, to, ""]
    if "standard" not in fields:
        raise InputError(f"{source} to {to} needs a standard", where=where, next=f"one of {', '.join(STANDARDS)}, or a matrix")
    return to, MATRICES[kind, to, _one_of(fields["standard"], STANDARDS, f"{where}.standard")]


def _own_colour(fields: dict[str, Any], where: str) -> Colour:
    _object(fields, ("to", "matrix", "input_bias", "output_bias"), (), where)
    rows = _numbers(fields["matrix"], 3, f"{where}.matrix")
    matrix = tuple(
        tuple(integer(n, -32768, 32767, f"{where}.matrix") for n in _numbers(row, 3, f"{where}.matrix")) for row in rows
    )
    biases = (
        tuple(integer(n, 0, 255, f"{where}.{key}") for n in _numbers(fields[key], 3, f"{where}.{key}"))
        for key in ("input_bias", "output_bias")
    )
    return Colour(matrix, *biases)  # type: ignore[arg-type]


def _normalise(value: Any, channels: int, where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    fields = _object(value, (), ("mean", "std", "var_reci", "scale"), where)
    if "std" in fields and "var_reci" in fields:
        raise InputError("std and var_reci exclude each other", where=where, next="var_reci is 1 / std")
    scale = _finite(fields.get("scale", 1.0), f"{where}.scale")
    mean = [_finite(n, f"{where}.mean") for n in _numbers(fields.get("mean", [0.0] * channels), channels, f"{where}.mean")]
    key = "std" if "std" in fields else "var_reci"
    spread = [_finite(n, f"{where}.{key}") for n in _numbers(fields.get(key, [1.0] * channels), channels, f"{where}.{key}")]
    if scale <= 0 or not all(spread):
        raise InputError(f"scale is above 0, and no {key} is 0", where=where)
    factor = [n / scale if key == "var_reci" else 1 / (n * scale) if n * scale else math.inf for n in spread]
    mean = [n * scale for n in mean]
    if not all(map(math.isfinite, (*mean, *factor))) or not all(factor):
        raise InputError("the numbers are too large or too small", where=where)
    return tuple(mean), tuple(factor)


def _padding(value: Any, where: str) -> Padding:
    fields = _object(value, (), ("left", "right", "top", "bottom", "value"), where)
    left, right, top, bottom = (
        integer(fields.get(key, 0), 0, LARGEST_SIDE, where) for key in ("left", "right", "top", "bottom")
    )
    return Padding(left, right, top, bottom, _finite(fields.get("value", 0.0), f"{where}.value"))


def _object(value: Any, required: tuple[str, ...], optional: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"expected an object, got {type(value).__name__}", where=where)
    for key in value:
        if key not in required and key not in optional:
            raise InputError(
                f"unknown key {printable(str(key), 60)!r}", where=where, next=nearest(str(key), [*required, *optional])
            )
    for key in required:
        if key not in value:
            raise InputError(f"missing key {key!r}", where=where)
    return value


def _one_of(value: Any, known: tuple[str, ...], where: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{printable(str(value), 60)!r} is not one of {', '.join(known)}", where=where)
    return value


def _side(value: Any, where: str) -> int:
    return integer(value, 1, LARGEST_SIDE, where)


def _numbers(value: Any, count: int, where: str) -> list[Any]:
    if not isinstance(value, list) or len(value) != count:
        raise InputError(f"expected {count} of them in a list", where=where)
    return value


def _finite(value: Any, where: str) -> float:
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e38:
        number = float(value)
    if not math.isfinite(number):
        raise InputError(f"expected a finite number, got {printable(str(value), 40)}", where=where)
    return number
