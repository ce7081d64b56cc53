"""A model's input from uint8 images, as the description says it: what a port with AIPP is compared with.

After the bytes (pixels.py) come (x - mean) * var_reci in float64, rounded once to float32, and padding with its value as float32: so this differs
from any order of float32 operations by roundings alone. What AIPP makes of it, in fp16, is `aipp.run_aipp`.
"""

from __future__ import annotations

import numpy as np

from porting.ascend.pixels import converted, cropped, planes_of, resized, swapped
from porting.ascend.preprocessing import ImageInput, Padding


def model_input(image: ImageInput, pixels: np.ndarray, rounding: str = "down") -> np.ndarray:
    """The float32 reference.

    pixels:   uint8 as `planes_of` takes it
    rounding: of the colour conversion, "down" or "nearest"
    returns:  (N, C, H, W) float32, or (N, H, W, C) where the layout is NHWC
    raises:   InputError for pixels that are no such image
    """
    mean, factor = np.array(image.mean), np.array(image.var_reci)
    made = ((model_bytes(image, pixels, rounding).astype(np.float64) - mean) * factor).astype(np.float32)
    made = padded_image(made, image.padding or Padding())
    return np.ascontiguousarray(made if image.layout == "NHWC" else made.transpose(0, 3, 1, 2))


def model_bytes(image: ImageInput, pixels: np.ndarray, rounding: str = "down") -> np.ndarray:
    """What comes before mean and factor. returns: (N, H, W, C) uint8. raises: as model_input"""
    planes = host_steps(image, pixels)
    if image.swap:
        planes = swapped(planes, image.source)
    if image.crop is not None:
        planes = cropped(planes, image.crop.left, image.crop.top, image.crop.width, image.crop.height)
    if image.colour is not None:
        planes = converted(planes, image.colour, image.channels, rounding)
    return planes


def host_steps(image: ImageInput, pixels: np.ndarray) -> np.ndarray:
    """What is done before AIPP: the bytes per pixel, resized. returns: (N, H, W, C) uint8"""
    planes = planes_of(pixels, image.source, image.size)
    return planes if image.resize is None else resized(planes, *image.resize)


def padded_image(made: np.ndarray, padding: Padding) -> np.ndarray:
    """(N, H, W, C) with the value of the padding, in its own dtype, around it."""
    sides = ((0, 0), (padding.top, padding.bottom), (padding.left, padding.right), (0, 0))
    return np.pad(made, sides, constant_values=made.dtype.type(padding.value))


def colour_doubt(image: ImageInput) -> tuple[float, ...]:
    """How far a number may lie off, a channel each, because the rounding of the colour conversion is open: one level of 256."""
    return tuple(abs(n) if image.colour is not None else 0.0 for n in image.var_reci)
