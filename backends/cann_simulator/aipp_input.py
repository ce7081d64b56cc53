"""Inputs that the image unit makes: uint8 pixels for the client, fp16 numbers for the model, by the file of --insert_op_conf."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from porting.ascend.aipp import SOURCES, AippOp, run_aipp
from porting.ascend.aipp_text import parse_aipp
from porting.backends.cann_simulator.machine import Gear, IoSpec, Refused
from porting.backends.cann_simulator.om_file import Aipp
from porting.backends.cann_simulator.om_graph import CANNOT_LOAD
from porting.backends.cann_simulator.om_types import ACL_UINT8
from porting.errors import InputError

INPUT_MISMATCH = 100017


def ops_of(aipp: Aipp | None) -> Mapping[int, AippOp]:
    """Place of an input -> what makes it."""
    return {} if aipp is None else {op.rank: op for op in parse_aipp(aipp.text, aipp.channels)}


def image_specs(aipp: Aipp, inputs: Sequence[IoSpec], gears: tuple[Gear, ...]) -> tuple[list[IoSpec], tuple[Gear, ...]]:
    """Inputs and gears as a client sees them. raises: Refused, E10052, for an image that does not become what the model takes"""
    ops = ops_of(aipp)
    specs = list(inputs)
    shapes = [list(gear.inputs) for gear in gears]
    for place, op in ops.items():
        for shape in shapes:
            shape[place] = _pixels(op, shape[place])
        if gears:
            sizes = [shape[place] for shape in shapes]
            dims = tuple(d[0] if len(set(d)) == 1 else -1 for d in zip(*sizes, strict=True))
        else:
            sizes = [_pixels(op, inputs[place].dims)]
            dims = sizes[0]
        nbytes = max(math.prod(size) for size in sizes) if all(-1 not in size for size in sizes) else 0
        specs[place] = replace(inputs[place], acl_dtype=ACL_UINT8, dims=dims, nbytes=nbytes)
    return specs, tuple(replace(gear, inputs=tuple(shape)) for gear, shape in zip(gears, shapes, strict=True))


def numbers_from(op: AippOp, pixels: np.ndarray, saturates: bool) -> np.ndarray:
    """(N, C, H, W) float16. saturates: whether what is too large becomes the largest number. raises: Refused"""
    try:
        made = run_aipp(op, pixels)
    except InputError as error:
        raise Refused(INPUT_MISMATCH, f"E13025: {error.what}", True) from error
    largest = np.finfo(np.float16).max
    return np.clip(made, -largest, largest) if saturates else made


def _pixels(op: AippOp, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What is fed for a model's input of this shape (N, C, H, W)."""
    batch, _, height, width = shape
    made = _made(op, (width, height))
    if made != (width, height):
        raise Refused(
            CANNOT_LOAD, f"E10052: the image becomes {made[0]} x {made[1]} pixels, the model takes {width} x {height}", True
        )
    width, height = op.src if op.src != (0, 0) else (width, height)
    if op.input_format == "YUV420SP_U8":
        return (batch, height * 3 // 2, width)
    return (batch, height, width, 1 if SOURCES[op.input_format] == "GRAY" else 3)


def _made(op: AippOp, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) behind crop and padding."""
    width, height = op.src if op.src != (0, 0) else size
    if op.crop is not None:
        width, height = op.crop[2:]
    pad = op.padding
    return (width, height) if pad is None else (width + pad.left + pad.right, height + pad.top + pad.bottom)
