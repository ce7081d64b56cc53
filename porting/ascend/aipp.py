"""What AIPP, the image unit in front of the model, is told of a preprocessing; and what it makes of it, in fp16.

Its order [documented]: swap of channels, crop, conversion of colours, (x - mean_chn - min_chn) * var_reci_chn, padding. It takes uint8 NHWC and gives
fp16. mean_chn is a byte; min_chn and var_reci_chn are halves. So a mean of 123.675 is written as 123 and 0.675: as min_chn alone it would be 123.6875.

    d = x - mean_chn                    exact
    m = fp16(d - fp16(min_chn))         rounded
    y = fp16(m * fp16(var_reci_chn))    rounded          [documented: formula and dtypes; this order of roundings: source of one kernel, 950]
    padding_value as fp16, after that                                                                   [documented: after, and in that dtype]

What it cannot do [documented]: resize ("reserved") -- the host does that; anything with dynamic_dims; crop and padding with dynamic_image_size.
Ranges are the narrowest that the pages give (sides 1 to 4096, width from 2, padding to 32, width behind padding to 1080 on 310, 310P and 910A).
Even starts and sizes of a crop of NV12 are asked for on every chip, though newer pages ask for the starts only, and not on 950.
Sources: ATC's pages on AIPP (8.0 to the 9.2 development state), GE's own checks of the file, the kernels of 950 and of older chips.
Nothing of this was run on a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from porting.ascend.colours import Colour
from porting.ascend.gear_options import DIMS, IMAGE
from porting.ascend.gears import Gears
from porting.ascend.pixels import converted, cropped, planes_of, swapped
from porting.ascend.preprocessing import ImageInput, Padding
from porting.ascend.preprocessing_reference import host_steps, padded_image
from porting.ascend.soc import Soc
from porting.errors import InputError, UsageError, nearest
from porting.types import TensorSpec
from porting.verdict import printable

INPUT_FORMATS = {"RGB": "RGB888_U8", "BGR": "RGB888_U8", "GRAY": "YUV400_U8", "NV12": "YUV420SP_U8", "NV21": "YUV420SP_U8"}
SOURCES = {"RGB888_U8": "RGB", "YUV400_U8": "GRAY", "YUV420SP_U8": "NV12"}  # before any swap
MODEL_DTYPES = ("float32", "float16")
LARGEST_HALF = 65504.0
LARGEST_SIDE, LARGEST_PADDING = 4096, 32
NARROW_FAMILIES = ("310", "310P", "910A")  # whose padded images are at most so wide:
NARROW = 1080
LARGEST_ROW = (
    32767  # of absolute values: 255 times that in 1/256 still fits 16 bits, in which the kernel that was read keeps it
)
MATRIX_RANGE = (-32677, 32676)  # as the page prints it; the unit's field holds a little more


@dataclass(frozen=True)
class AippOp:
    """One aipp_op of mode static.

    rank:       which input of the model, from 0
    src:        (width, height) of the source, 0 where it comes from the model
    crop:       (left, top, width, height)
    mean_chn:   bytes;  min_chn, var_reci_chn: float32, which the unit rounds to fp16. A number a channel
    """

    rank: int
    input_format: str
    src: tuple[int, int]
    channels: int
    mean_chn: tuple[int, ...]
    min_chn: tuple[float, ...]
    var_reci_chn: tuple[float, ...]
    swap: bool = False
    crop: tuple[int, int, int, int] | None = None
    colour: Colour | None = None
    padding: Padding | None = None


def aipp_ops(images: Sequence[ImageInput], inputs: Sequence[TensorSpec], gears: Gears, soc: Soc) -> tuple[AippOp, ...]:
    """What AIPP is told, an entry for each image.

    inputs: of the model, in order
    raises: UsageError for what AIPP cannot do; InputError for an input that is no image
    """
    names = [spec.name for spec in inputs]
    for image in images:
        if image.input not in names:
            raise InputError(
                f"the model has no input {printable(image.input, 60)!r}",
                where="preprocessing",
                next=nearest(image.input, names),
            )
    if len({image.input for image in images}) != len(images):
        raise InputError("two images are about one input (ATC: E10052)", where="preprocessing")
    if gears.kind == DIMS and images:
        raise UsageError(
            "AIPP and --dynamic_dims exclude each other",
            where="preprocessing",
            next="let only the batch or only height and width differ, or preprocess on the host",
        )
    return tuple(_op(image, names.index(image.input), inputs, gears, soc) for image in images)


def aipp_op(image: ImageInput, rank: int = 0, varies: bool = False) -> AippOp:
    """The entry of an image, its numbers in range. varies: height and width differ by gear. raises: UsageError"""
    where = f"preprocessing of {printable(image.input, 60)}"
    if image.layout != "NCHW":
        raise UsageError(
            "AIPP gives ONNX models NCHW", where=where, next="preprocess on the host, or transpose in front of the model"
        )
    size = image.resize[:2] if image.resize is not None else image.size
    if varies:
        _require_whole_image(image, where)
        size = None
    elif size is None and (image.crop is not None or image.padding is not None):
        raise UsageError("AIPP needs the source's size for a crop or padding", where=where, next="name its width and height")
    if size is not None:
        _require_sides(image, size, where)
    for row in image.colour.matrix if image.colour is not None else ():
        if not all(MATRIX_RANGE[0] <= n <= MATRIX_RANGE[1] for n in row) or sum(map(abs, row)) > LARGEST_ROW:
            raise UsageError(
                f"a row {list(row)} of a matrix is not in {list(MATRIX_RANGE)}, or adds up beyond 16 bits", where=where
            )
    mean, least, factor = _halves(image, where)
    crop = None if image.crop is None else (image.crop.left, image.crop.top, image.crop.width, image.crop.height)
    return AippOp(
        rank,
        INPUT_FORMATS[image.source],
        size or (0, 0),
        image.channels,
        mean,
        least,
        factor,
        image.swap,
        crop,
        image.colour,
        _float32_padding(image.padding),
    )


def host_notes(image: ImageInput) -> tuple[str, ...]:
    """What is left to the host, and what the sources say of the rest only by example."""
    found = []
    if image.resize is not None:
        found.append(f"AIPP does not resize: the host gives images of {image.resize[0]} x {image.resize[1]} (width x height)")
    if image.colour is not None:
        found.append("the rounding of the colour conversion is open: a level of 256 up or down")
    if image.to == "GRAY" and image.source != "GRAY":
        found.append(
            "that a model of one channel takes the first one of the conversion is read in the source of one kernel (950)"
        )
    return tuple(found)


# --- judged -------------------------------------------------------------------------------------------------------


def _op(image: ImageInput, rank: int, inputs: Sequence[TensorSpec], gears: Gears, soc: Soc) -> AippOp:
    spec = inputs[rank]
    where = f"preprocessing of {printable(image.input, 60)}"
    if len(spec.shape) != 4 or spec.dtype not in MODEL_DTYPES:
        raise InputError(
            f"AIPP makes images, and the model takes {printable(str(spec))}",
            where=where,
            next="it makes float inputs of rank 4 (N, C, H, W); feed this one as it is",
        )
    sizes = {gear[image.input][2:] for gear in gears.shapes}
    op = aipp_op(image, rank, gears.kind == IMAGE and len(sizes) > 1)
    for gear in gears.shapes:
        _require_fit(image, gear[image.input], op, where)
    wide = max(width for _, width in sizes)
    if image.padding is not None and soc.family in NARROW_FAMILIES and wide > NARROW:
        raise UsageError(
            f"a padded image is at most {NARROW} pixels wide on {soc.name}, got {wide}", where=where, next="pad on the host"
        )
    return op


def _require_fit(image: ImageInput, shape: Sequence[int], op: AippOp, where: str) -> None:
    """What the image becomes is what the model takes."""
    if shape[1] != image.channels:
        raise InputError(
            f"the model takes {shape[1]} channels, {image.to} has {image.channels}", where=where, next="name another colour"
        )
    height, width = shape[2:]
    made = image.output_size(*op.src) if op.src != (0, 0) else (width, height)
    if made != (width, height):
        raise InputError(
            f"the image becomes {made[0]} x {made[1]} pixels (width x height), the model takes {width} x {height}",
            where=where,
            next="mend source, crop or padding; a resize is the host's",
        )
    if op.src == (0, 0):
        _require_sides(image, (width, height), where)


def _require_whole_image(image: ImageInput, where: str) -> None:
    """Where height and width differ by gear, the sizes in the file are 0, and nothing is cut or added (ATC: E10052)."""
    for what, given in (
        ("a crop", image.crop),
        ("padding", image.padding),
        ("a resize", image.resize),
        ("one size", image.size),
    ):
        if given is not None:
            raise UsageError(
                f"{what} does not go with --{IMAGE} (ATC: E10052)",
                where=where,
                next="leave it out of the description, sizes are null",
            )


def _require_sides(image: ImageInput, size: tuple[int, int], where: str) -> None:
    width, height = size
    if not 2 <= width <= LARGEST_SIDE or not 1 <= height <= LARGEST_SIDE:
        raise UsageError(
            f"AIPP takes images of 2 to {LARGEST_SIDE} x 1 to {LARGEST_SIDE} pixels (width x height), got {width} x {height}",
            where=where,
            next="let the host make it smaller, and name that as the resize",
        )
    if INPUT_FORMATS[image.source] == "YUV420SP_U8" and (width % 2 or height % 2):
        raise UsageError(f"{image.source} of {width} x {height} pixels: both sides are even", where=where)
    pad = image.padding or Padding()
    if max(pad.left, pad.right, pad.top, pad.bottom) > LARGEST_PADDING:
        raise UsageError(f"AIPP pads by at most {LARGEST_PADDING} pixels a side", where=where, next="pad on the host")


def _halves(image: ImageInput, where: str) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """mean_chn, min_chn and var_reci_chn: numbers that halves hold."""
    if not all(0 <= mean <= 255 for mean in image.mean):
        raise UsageError(
            f"a mean of AIPP is from 0 to 255, got {list(image.mean)}", where=where, next="subtract it in the model"
        )
    mean = tuple(math.floor(n) for n in image.mean)
    least = tuple(float(np.float32(n - whole)) for n, whole in zip(image.mean, mean, strict=True))
    factor = tuple(float(np.float32(n)) if abs(n) <= LARGEST_HALF else math.inf for n in image.var_reci)
    for n, m in zip(factor, image.mean, strict=True):
        if not abs(n) <= LARGEST_HALF or np.float16(n) == 0:
            raise UsageError(f"var_reci {n:g} is nothing that fp16 holds", where=where, next="scale in the model")
        if not float(np.float16(max(m, 255 - m))) * abs(float(np.float16(n))) <= LARGEST_HALF:
            raise UsageError(
                f"var_reci {n:g} makes numbers beyond fp16's {LARGEST_HALF:g}", where=where, next="scale in the model"
            )
    if image.padding is not None and not abs(image.padding.value) <= LARGEST_HALF:
        raise UsageError(f"padding of {image.padding.value:g} is beyond fp16's {LARGEST_HALF:g}", where=where)
    return mean, least, factor


def _float32_padding(padding: Padding | None) -> Padding | None:
    if padding is None:
        return None
    return Padding(padding.left, padding.right, padding.top, padding.bottom, float(np.float32(padding.value)))


# --- what it computes ---------------------------------------------------------------------------------------------


def run_aipp(op: AippOp, pixels: np.ndarray, rounding: str = "down") -> np.ndarray:
    """The documented roundings.

    pixels:   uint8 as AIPP gets them: (N, H, W, 3), (N, H, W, 1), or (N, H * 3 / 2, W) for YUV420SP_U8
    rounding: of the colour conversion, see pixels.py
    returns:  (N, C, H, W) float16
    raises:   InputError for pixels that are no such image
    """
    source = SOURCES[op.input_format]
    planes = planes_of(pixels, source, op.src if op.src != (0, 0) else None)
    return _floats(op, planes, source, rounding)


def emulated_input(image: ImageInput, pixels: np.ndarray, rounding: str = "down") -> np.ndarray:
    """From the source image, as `model_input` takes it, to what the model gets behind AIPP: (N, C, H, W) float16. raises: as aipp_op, run_aipp"""
    return _floats(aipp_op(image), host_steps(image, pixels), image.source, rounding)


def _floats(op: AippOp, planes: np.ndarray, source: str, rounding: str) -> np.ndarray:
    if op.swap:
        planes = swapped(planes, source)
    if op.crop is not None:
        planes = cropped(planes, *op.crop)
    if op.colour is not None:
        planes = converted(planes, op.colour, op.channels, rounding)
    made = _normalised(op, planes[..., : op.channels])  # of YUV420SP_U8 without a conversion, a model of one channel takes Y
    return np.ascontiguousarray(padded_image(made, op.padding or Padding()).transpose(0, 3, 1, 2))


def _normalised(op: AippOp, planes: np.ndarray) -> np.ndarray:
    """(..., C) bytes -> (..., C) float16, see the top of this file."""
    less = (planes.astype(np.int16) - np.array(op.mean_chn, np.int16)).astype(np.float16)  # exact: whole numbers to 255
    least, factor = (np.array(numbers, np.float32).astype(np.float16) for numbers in (op.min_chn, op.var_reci_chn))
    with np.errstate(
        over="ignore"
    ):  # a file that somebody else wrote may go beyond: infinity here, on chips that saturate 65504
        return (less - least) * factor


def half_error(image: ImageInput) -> tuple[float, ...]:
    """How far the documented roundings lead away from the exact numbers at most, a channel each: all 256 bytes are tried. raises: as aipp_op"""
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], image.channels, axis=1)  # (256, C)
    exact = (levels.astype(np.float64) - np.array(image.mean)) * np.array(image.var_reci)
    return tuple(np.abs(_normalised(aipp_op(image), levels).astype(np.float64) - exact).max(0).tolist())


def rounding_limit(image: ImageInput, made: np.ndarray) -> np.ndarray:
    """How far the documented roundings may lead away from a reference, number by number: an analysis of the description, whatever the file says.

    With u = 2^-11, or what 2^-25 is of the factor where that is subnormal: least (1 + e), its difference (1 + e), factor (1 + e), product (1 + e),
    each |e| <= u, and 2^-25 in place of u for what is subnormal. The mean is written as float32 first, and the reference is float32: 2^-24 each.

    made:    the reference, (N, C, H, W) float32
    returns: (N, C, H, W) float64
    """
    u, tiny, single = 2.0**-11, 2.0**-25, 2.0**-24
    mean, factor = (np.array(n, np.float64)[:, None, None] for n in (image.mean, image.var_reci))
    least, size = mean - np.floor(mean), np.abs(factor)
    of_factor = np.maximum(u, tiny / size)
    product = (1 + u) ** 2 * (1 + of_factor) * (1 + single) ** 3
    wanted = np.abs(made.astype(np.float64))
    return np.asarray(wanted * (product - 1) + size * product * (least * (u + single) + 2 * tiny) + tiny)
