"""The steps of preprocessing that keep bytes: what is exact, and where the documents leave a level open.

resize    by the host. linear: half-pixel centres, edges repeated, weights in float64, rounded once to nearest, ties to even, no antialiasing;
          nearest: the pixel at floor((i + 0.5) * old / new)
planes    NV12: pixel (y, x) takes U and V of the block (y // 2, x // 2), none is interpolated      [read in the source of one kernel, 950]
swap      R with B, U with V
crop      no arithmetic
colour    integers, see colours.py. The sum S is a multiple of 1/256:
          "down"     S >> 8, towards minus infinity                                               [documented formula]
          "nearest"  (S + 128) >> 8                                                               [read in the source of the same kernel]
          They differ by one level at most. Nobody here knows which of them other chips do.
"""

from __future__ import annotations

import numpy as np

from porting.ascend.colours import Colour
from porting.errors import InputError

COLOUR_ROUNDINGS = ("down", "nearest")


def planes_of(pixels: np.ndarray, source: str, size: tuple[int, int] | None) -> np.ndarray:
    """An image as bytes per pixel.

    pixels:  uint8; RGB and BGR (N, H, W, 3), GRAY (N, H, W, 1), NV12 and NV21 (N, H * 3 / 2, W)
    size:    (width, height) that it has to have; None: any
    returns: (N, H, W, C) uint8, for NV12 and NV21 with three channels
    raises:  InputError
    """
    half = source in ("NV12", "NV21")
    channels = 1 if source == "GRAY" else 3
    wanted = "(N, H * 3 / 2, W)" if half else f"(N, H, W, {channels})"
    fits = pixels.ndim == 3 if half else pixels.ndim == 4 and pixels.shape[3] == channels
    if pixels.dtype != np.uint8 or not fits or 0 in pixels.shape:
        raise InputError(f"a {source} image is uint8 {wanted}, got {pixels.dtype}{list(pixels.shape)}", where="preprocessing")
    if half and (pixels.shape[1] % 3 or pixels.shape[2] % 2):
        raise InputError(f"{pixels.shape[1]} rows of {pixels.shape[2]} bytes are no {source} image", where="preprocessing")
    height = pixels.shape[1] * 2 // 3 if half else pixels.shape[1]
    if size is not None and (pixels.shape[2], height) != size:
        raise InputError(
            f"expected an image of {size[0]} x {size[1]} pixels (width x height), got {pixels.shape[2]} x {height}",
            where="preprocessing",
        )
    if not half:
        return pixels
    shared = pixels[:, height:].reshape(len(pixels), height // 2, -1, 2)  # (N, H / 2, W / 2, U and V)
    whole = shared.repeat(2, axis=1).repeat(2, axis=2)
    return np.concatenate([pixels[:, :height, :, None], whole], axis=3)


def swapped(planes: np.ndarray, source: str) -> np.ndarray:
    """(N, H, W, 3) with the first and last channel exchanged; of Y, U, V the last two."""
    return planes[..., [0, 2, 1]] if source in ("NV12", "NV21") else planes[..., ::-1]


def cropped(planes: np.ndarray, left: int, top: int, width: int, height: int) -> np.ndarray:
    """(N, H, W, C) -> (N, height, width, C). raises: InputError when it reaches beyond the image"""
    if top + height > planes.shape[1] or left + width > planes.shape[2]:
        raise InputError(
            f"a crop of {width} x {height} at ({left}, {top}) reaches beyond {planes.shape[2]} x {planes.shape[1]} pixels",
            where="preprocessing",
        )
    return planes[:, top : top + height, left : left + width]


def converted(planes: np.ndarray, colour: Colour, channels: int, rounding: str = "down") -> np.ndarray:
    """(N, H, W, 3) uint8 -> (N, H, W, channels) uint8: the first rows of the matrix. rounding: one of COLOUR_ROUNDINGS"""
    matrix, before, after = (np.array(part, np.int64) for part in colour)
    total = (planes.astype(np.int64) - before) @ matrix[:channels].T  # in 1/256
    levels = (total + (128 if rounding == "nearest" else 0)) >> 8
    return np.clip(levels + after[:channels], 0, 255).astype(np.uint8)


def resized(planes: np.ndarray, width: int, height: int, filter: str) -> np.ndarray:
    """(N, H, W, C) uint8 -> (N, height, width, C) uint8."""
    if filter == "nearest":
        rows, columns = (np.arange(new) * 2 + 1 for new in (height, width))
        return planes[:, rows * planes.shape[1] // (2 * height)][:, :, columns * planes.shape[2] // (2 * width)]
    made = planes.astype(np.float64)
    for axis, new in ((1, height), (2, width)):
        low, high, weight = _neighbours(made.shape[axis], new)
        weight = weight.reshape([-1 if a == axis else 1 for a in range(4)])
        made = made.take(low, axis) * (1 - weight) + made.take(high, axis) * weight
    return np.clip(np.rint(made), 0, 255).astype(np.uint8)


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new pixel the old ones below and above its centre, and the weight of the upper one."""
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    low = np.floor(centre)
    places = [np.clip(low + step, 0, old - 1).astype(np.int64) for step in (0, 1)]
    return places[0], places[1], centre - low
