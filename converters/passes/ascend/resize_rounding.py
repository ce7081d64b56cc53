"""Resize in the form that the plugin reads: sizes or scales of every axis, and nearest that does not hang on its rounding.

    axes                                        ->   scales or sizes of every axis
    nearest, taken from the same places         ->   Resize(half_pixel, round_prefer_ceil), of (N, C, 1, L) where x is (N, C, L)
      by half_pixel with round_prefer_ceil
    nearest, fixed sizes                        ->   Gather(x, places) along every axis that changes
    fewer than three inputs listed              ->   scales listed behind an empty roi

Factors that are whole numbers, as in upsampling, are taken from the same places whatever the size is: then nothing has to be fixed.

Why: CANN's plugin does not read nearest_mode and rounds half up, handles the two last axes of a 4-D tensor alone, and ignores axes,
antialias and keep_aspect_ratio_policy.

Left alone: scales or sizes that are computed; nearest by other factors over an axis that is not fixed; linear and cubic with antialias or
keep_aspect_ratio_policy, but antialias where nothing gets smaller; tf_crop_and_resize.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from .in_place import integers, numbers
from .making import LOWEST_OPSET, Maker, Refused, dimension, node_pass, rank_of
from .nearest_places import COORDINATES, ROUNDINGS, nearest_places

HALF_UP = {"coordinate_transformation_mode": "half_pixel", "mode": "nearest", "nearest_mode": "round_prefer_ceil"}
NOT_READ = ("axes", "antialias", "keep_aspect_ratio_policy")
READ = ("coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "extrapolation_value", "mode", "nearest_mode")


@dataclass(frozen=True)
class Asked:
    """What a node asks for, of every axis: factors, and sizes where they are known. by_sizes: the node gives sizes, not scales."""

    scales: list[float | None]
    sizes: list[int | None]
    by_sizes: bool


def _resize(make: Maker) -> ir.Value | None:
    node = make.node
    if make.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise Refused("crops")
    asked = _asked(make)
    if make.text("mode", "nearest") == "nearest":
        return _nearest(make, asked)
    if make.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refused("the factors are no quotients of sizes")
    if make.int("antialias", 0) and not all(s is not None and s >= 1 for s in asked.scales):
        raise Refused("antialias")
    if not set(NOT_READ) & set(node.attributes) and len(node.inputs) >= 3:
        return None
    return _written(make, asked, {name: node.attributes[name].value for name in READ if name in node.attributes})


def _asked(make: Maker) -> Asked:
    x = make.input(0)
    rank = rank_of(x)
    axes = [a % rank for a in make.node.attributes["axes"].as_ints()] if "axes" in make.node.attributes else list(range(rank))
    known = [dimension(x, axis) for axis in range(rank)]
    scales: list[float | None] = [1.0] * rank
    sizes = list(known)
    given_scales, given_sizes = make.optional(2), make.optional(3)
    if given_sizes is not None:
        wanted = integers(given_sizes)
        if wanted is None:
            raise Refused("the sizes are computed")
        policy = make.text("keep_aspect_ratio_policy", "stretch")
        common = _common(wanted, [known[a] for a in axes], policy) if policy != "stretch" else None
        for axis, size in zip(axes, wanted, strict=True):
            before = known[axis]
            if common is not None and before is not None:
                scales[axis], sizes[axis] = common, math.floor(np.float32(common) * np.float32(before) + 0.5)
            else:
                scales[axis], sizes[axis] = None if before is None else float(np.float32(size) / np.float32(before)), size
        return Asked(scales, sizes, True)
    factors = numbers(given_scales)
    if factors is None or factors.size != len(axes):
        raise Refused("the scales are computed")
    for axis, factor in zip(axes, factors.tolist(), strict=True):
        before = known[axis]
        scales[axis], sizes[axis] = factor, None if before is None else _resized(before, factor)
    return Asked(scales, sizes, False)


def _resized(before: int, factor: float) -> int:
    """raises: Refused where it hangs on the width of a float, 3 times float32(5 / 3), on which runtimes and inference differ"""
    size = math.floor(np.float32(before) * np.float32(factor))
    if size != math.floor(before * float(np.float32(factor))):
        raise Refused("the size hangs on a rounding")
    return size


def _common(wanted: list[int], known: list[int | None], policy: str) -> float:
    factors = [np.float32(size) / np.float32(before) for size, before in zip(wanted, known, strict=True) if before]
    if len(factors) != len(wanted):
        raise Refused("the common factor is not known")
    return float(min(factors) if policy == "not_larger" else max(factors))


def _nearest(make: Maker, asked: Asked) -> ir.Value | None:
    node, x = make.node, make.input(0)
    how = make.text("coordinate_transformation_mode", "half_pixel")
    rounding = make.text("nearest_mode", "round_prefer_floor")
    if how not in COORDINATES or rounding not in ROUNDINGS:
        raise Refused(f"{how}, {rounding}")
    changed = [axis for axis, scale in enumerate(asked.scales) if scale != 1]
    stretched = make.text("keep_aspect_ratio_policy", "stretch") == "stretch"
    rank = len(asked.scales)
    as_read = len(node.inputs) >= 3 and not set(NOT_READ) & set(node.attributes) and rank == 4
    if stretched and (rank == 4 or (rank == 3 and make.opset >= LOWEST_OPSET)) and all(axis >= 2 for axis in changed):
        if rounding == "round_prefer_ceil" and as_read:
            return None  # as the plugin rounds, by coordinates that it reads
        if all(_as_half_pixel(make, asked, axis, how, rounding) for axis in changed):
            return _written(make, asked, HALF_UP)
    value = x
    for axis in changed:
        value = make("Gather", value, make.ints(*_places(make, asked, axis, how, rounding)), axis=axis)
    return value if changed else make("Identity", x)


def _places(make: Maker, asked: Asked, axis: int, how: str, rounding: str) -> list[int]:
    before, after, scale = dimension(make.input(0), axis), asked.sizes[axis], asked.scales[axis]
    if before is None or after is None or scale is None:
        raise Refused("the sizes are not fixed")
    return nearest_places(before, after, scale, how, rounding)


def _as_half_pixel(make: Maker, asked: Asked, axis: int, how: str, rounding: str) -> bool:
    """Whether half_pixel with round_prefer_ceil takes from the same places along an axis."""
    scale, before = asked.scales[axis], dimension(make.input(0), axis)
    whole = scale is not None and scale >= 1 and scale == int(scale)
    if before is None and not asked.by_sizes and whole:
        return (how == "asymmetric" and rounding == "floor") or (
            how in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round")
        )
    places = _places(make, asked, axis, how, rounding)
    return places == _places(make, asked, axis, "half_pixel", "round_prefer_ceil")


def _written(make: Maker, asked: Asked, attributes: dict[str, Any]) -> ir.Value:
    """A Resize with numbers for every axis, of four axes where there are three."""
    x, flat = make.input(0), len(asked.scales) == 3 and attributes["mode"] == "nearest"
    scales, sizes = list(asked.scales), list(asked.sizes)
    if flat:
        x = make("Unsqueeze", x, make.ints(2))
        scales.insert(2, 1.0)
        sizes.insert(2, 1)
    whole = [size for size in sizes if size is not None]
    if asked.by_sizes and len(whole) == len(sizes):
        made = make("Resize", x, None, None, make.ints(*whole), **attributes)
    elif not asked.by_sizes or _scales_say_the_same(make, asked):
        made = make("Resize", x, None, make.constant(np.asarray(scales, np.float32)), **attributes)
    else:
        raise Refused("the sizes of other axes are not fixed")
    return make("Squeeze", made, make.ints(2)) if flat else made


def _scales_say_the_same(make: Maker, asked: Asked) -> bool:
    for axis, (scale, size) in enumerate(zip(asked.scales, asked.sizes, strict=True)):
        before = dimension(make.input(0), axis)
        if scale is None or (scale != 1 and (before is None or _resized(before, scale) != size)):
            return False
    return True


resize_rounding = node_pass(
    {("", "Resize"): _resize}, "Rewrite those. Count: nodes rewritten. Source: ONNX Resize-18.", lowest_opset=11
)
