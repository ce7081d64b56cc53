"""Which place of the input each place of a nearest Resize is taken from, along one axis.

Computed in float32, in the order in which onnxruntime does, so that the same ties fall the same way. Source: ONNX Resize-18.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

F = np.float32


def _half_away(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, -np.floor(-x + F(0.5)), np.floor(x + F(0.5)))


ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.where(x == np.trunc(x) + F(0.5), np.floor(x), _half_away(x)),
    "round_prefer_ceil": _half_away,
    "floor": np.floor,
    "ceil": np.ceil,
}
COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "tf_half_pixel_for_nn")


def nearest_places(size: int, result: int, scale: float, coordinates: str, rounding: str) -> list[int]:
    """size, result: elements before and after; scale: result / size, or what the node says. Each place is in [0, size)."""
    at, factor = np.arange(result, dtype=F), F(scale)
    if coordinates == "asymmetric":
        x = at / factor
    elif coordinates == "align_corners":
        x = at * F(size - 1) / F(result - 1) if result > 1 else at * F(0)
    elif coordinates == "tf_half_pixel_for_nn":
        x = (at + F(0.5)) / factor
    elif coordinates == "pytorch_half_pixel" and result <= 1:
        x = at * F(0)
    else:
        x = (at + F(0.5)) / factor - F(0.5)
    return [int(n) for n in np.clip(ROUNDINGS[rounding](x), 0, size - 1)]
