"""Conversions of colours as AIPP does them: a matrix in 1/256 between two biases, on bytes.

    out = clip(round(matrix @ (in - input_bias) / 256) + output_bias, 0, 255)

The matrices are those of ATC's page on colour conversion (hicann/ge, AIPP documents; the older pages say the same), for each standard of the
picture: "jpeg" is bt601-wide. Channels of a matrix are Y, U, V and R, G, B; a picture in another order is swapped before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

PIXEL_FORMATS = ("RGB", "BGR", "GRAY", "NV12", "NV21")
STANDARDS = ("jpeg", "bt601-narrow", "bt601-wide", "bt709-narrow", "bt709-wide")

Row = tuple[int, int, int]


class Colour(NamedTuple):
    """matrix: (3, 3) in 1/256; biases: a byte a channel"""

    matrix: tuple[Row, Row, Row]
    input_bias: Row
    output_bias: Row


_NONE: Row = (0, 0, 0)
_WIDE, _NARROW = (0, 128, 128), (16, 128, 128)  # what Y, U and V start from
_YUV_TO_RGB: Mapping[str, tuple[tuple[Row, Row, Row], Row]] = {
    "jpeg": (((256, 0, 359), (256, -88, -183), (256, 454, 0)), _WIDE),
    "bt601-narrow": (((298, 0, 409), (298, -100, -208), (298, 516, 0)), _NARROW),
    "bt601-wide": (((256, 0, 359), (256, -88, -183), (256, 454, 0)), _WIDE),
    "bt709-narrow": (((298, 0, 459), (298, -55, -136), (298, 541, 0)), _NARROW),
    "bt709-wide": (((256, 0, 403), (256, -48, -120), (256, 475, 0)), _WIDE),
}
_RGB_TO_YUV: Mapping[str, tuple[tuple[Row, Row, Row], Row]] = {
    "jpeg": (((77, 150, 29), (-43, -85, 128), (128, -107, -21)), _WIDE),
    "bt601-narrow": (((66, 129, 25), (-38, -74, 112), (112, -94, -18)), _NARROW),
    "bt601-wide": (((77, 150, 29), (-43, -85, 128), (128, -107, -21)), _WIDE),
    "bt709-narrow": (((47, 157, 16), (-26, -87, 112), (112, -102, -10)), _NARROW),
    "bt709-wide": (((55, 183, 19), (-29, -99, 128), (128, -116, -12)), _WIDE),
}

# (of, to, standard) -> conversion; gray has no standard
MATRICES: Mapping[tuple[str, str, str], Colour] = {
    **{("YUV", "RGB", name): Colour(rows, bias, _NONE) for name, (rows, bias) in _YUV_TO_RGB.items()},
    **{("YUV", "BGR", name): Colour((rows[2], rows[1], rows[0]), bias, _NONE) for name, (rows, bias) in _YUV_TO_RGB.items()},
    **{("RGB", "YUV", name): Colour(rows, _NONE, bias) for name, (rows, bias) in _RGB_TO_YUV.items()},
    ("YUV", "GRAY", ""): Colour(((256, 0, 0), _NONE, _NONE), _NONE, _NONE),
    ("RGB", "GRAY", ""): Colour(((76, 150, 30), _NONE, _NONE), _NONE, _NONE),
}
