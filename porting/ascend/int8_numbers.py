"""The integers of W8A8: how numbers become int8, what a product of them is worth, and how AscendDequant's parameter is packed.

    q = clip(rint(x * scale) + offset, -128, 127)         AscendQuant, one scale and offset for a tensor; scale is 1 / (size of a step)
    acc = sum (q - offset) * w + bias                     int32; w int8 and symmetric, bias int32 in steps of the sum
    y = float32(acc) * deq_scale [* ratio]                AscendDequant, deq_scale = (step of x) * (step of w); ratio: see Product

Where that stands, and how sure it is:
- q: read in source (hicann/amct, FakeQuantKernelOutputInt8 of AMCT's onnxruntime operators: rint first, then the offset, then the clip, scale
  multiplied and not divided by). The vendor's page on AscendQuant writes round(x * scale + offset), which differs on ties when the offset is odd.
- offset: read in source. AMCT leaves bias as it is and AscendQuant's offset in the node; the compiler hands that to the product as offset_x
  (kali20gakki/msprof, BiasOptimizeQuantRollbackBase::SetQuantParameters) and corrects bias on the host (QuantBiasOptimization), so that padding
  is worth zero. Inferred: that the two together are the sum above, which is what AMCT's own simulation computes (it gives q - offset).
- bias: read in source (InsertBiasQuantPass: round(bias / (scale_w * scale_d)), refused outside int32).
- packing: read in source (fuse_dequant_param): bits 31..0 the float32, bits 39..32 offset_w, which is zero here, the rest zero.
- what a device does in fp16 (the scale in 19 bits, x in fp16, AMCT's FORCE_FP16_QUANT) is not modelled. Nothing was measured on hardware.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from porting.errors import InputError

LOWEST, HIGHEST = -128, 127  # of int8
WEIGHT_HIGHEST = 127  # weights are symmetric: -127 .. 127
INT32_HIGHEST = 2**31 - 1
BIAS_HIGHEST = 2**30  # so that the sum has room for as much again
SMALLEST_STEP = float(np.finfo(np.float32).eps)  # AMCT's FLT_EPSILON: a smaller scale is refused there; read in source


@dataclass(frozen=True)
class Step:
    """How one tensor of activations becomes int8.

    size:    of a step, a float32
    inverse: what x is multiplied by, a float32: AscendQuant's `scale`
    offset:  the integer that stands for zero; 0 when symmetric
    """

    size: float
    inverse: float
    offset: int

    @property
    def lowest(self) -> float:
        """The smallest number that is not clipped."""
        return (LOWEST - self.offset) * self.size

    @property
    def highest(self) -> float:
        return (HIGHEST - self.offset) * self.size

    @property
    def largest_integer(self) -> int:
        """Of |q - offset|."""
        return max(HIGHEST - self.offset, self.offset - LOWEST)


def step_for(low: float, high: float, symmetric: bool) -> Step:
    """The step for numbers from `low` to `high`; zero, which padding is made of, is always among them, and has an integer of its own.

    raises: InputError where there is no such step: numbers that are not finite, or so small that no float32 scale does
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"a range from {low} to {high}", where="calibration")
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:  # nothing but zeros
        return Step(1.0, 1.0, 0)
    size = np.float32(max(-low, high) / WEIGHT_HIGHEST if symmetric else (high - low) / (HIGHEST - LOWEST))
    if not SMALLEST_STEP <= size < np.inf:
        raise InputError(f"a step of {size:.3g}: the scale of such numbers does not fit", where="calibration")
    offset = 0 if symmetric else int(np.clip(np.rint(LOWEST - low / float(size)), LOWEST, HIGHEST))
    return Step(float(size), float(np.float32(1) / size), offset)


def quantised_activations(x: np.ndarray, step: Step) -> np.ndarray:
    """int8 of x's shape; float32 arithmetic, as documented above. NaN has no integer: the caller sees to it that there is none."""
    with np.errstate(over="ignore"):
        return np.clip(np.rint(x.astype(np.float32) * np.float32(step.inverse)) + step.offset, LOWEST, HIGHEST).astype(np.int8)


def dequantised_activations(q: np.ndarray, step: Step) -> np.ndarray:
    """float32: what the integers stand for."""
    return (q.astype(np.int32) - step.offset).astype(np.float32) * np.float32(step.size)


@dataclass(frozen=True, eq=False)
class Product:
    """The constants of a layer.

    weight:       int8, shape of the weight
    weight_scale: (channels,) float32: the step of each channel
    bias:         (channels,) int32, None without one
    deq_scale:    (channels,) float32, or (1,) where AscendDequant takes one number for all: that of the channel with the largest step
    ratio:        (channels,) float32, at most 1: what is left to multiply by then; None where nothing is
    """

    weight: np.ndarray
    weight_scale: np.ndarray
    bias: np.ndarray | None
    deq_scale: np.ndarray
    ratio: np.ndarray | None


def quantised_product(weight: np.ndarray, axis: int, one_scale: bool, bias: np.ndarray | None, step: Step) -> Product:
    """Weights, each channel with a step of its own, bias and the scale of their sums.

    weight:    float32; axis: the one of output channels; bias: (channels,) float32
    one_scale: whether AscendDequant takes one number for all channels
    A channel of zeros gets a step of 1; one that is tiny beside its bias a larger step than it needs, so that the bias fits.
    raises: InputError where no such integers exist: numbers that are not finite, sums that may leave int32
    """
    if not np.isfinite(weight).all() or (bias is not None and not np.isfinite(bias).all()):
        raise InputError("weights or bias hold NaN or Inf", where="quantisation")
    channels = weight.shape[axis]
    rows = np.abs(np.moveaxis(weight, axis, 0).reshape(channels, -1)).astype(np.float64)
    largest = rows.max(1, initial=0.0)
    needed = np.abs(bias).astype(np.float64) / (BIAS_HIGHEST * step.size) if bias is not None else np.zeros(channels)
    scale = np.maximum(largest / WEIGHT_HIGHEST, needed)
    # a deq_scale that is no normal float32 would lose bits, or be zero
    scale = np.where(scale == 0, 1.0, np.maximum(scale, float(np.finfo(np.float32).tiny) / min(step.size, 1.0)))
    scale = scale.astype(np.float32)
    sums_scale = scale * np.float32(step.size)
    shape = [1] * weight.ndim
    shape[axis] = -1
    codes = np.clip(np.rint(weight / scale.reshape(shape)), -WEIGHT_HIGHEST, WEIGHT_HIGHEST).astype(np.int8)
    codes_bias = None if bias is None else np.rint(bias.astype(np.float64) / sums_scale.astype(np.float64))
    reach = np.abs(np.moveaxis(codes, axis, 0).reshape(channels, -1).astype(np.int64)).sum(1) * step.largest_integer
    reach = reach + (0 if codes_bias is None else np.abs(codes_bias))
    if not (np.isfinite(sums_scale).all() and reach.max(initial=0) <= INT32_HIGHEST):
        raise InputError("sums may leave int32", where="quantisation")
    deq_scale, ratio = (sums_scale, None) if not one_scale else (sums_scale.max(keepdims=True), sums_scale / sums_scale.max())
    if ratio is not None and (ratio == 1).all():
        ratio = None
    return Product(codes, scale, None if codes_bias is None else codes_bias.astype(np.int32), deq_scale, ratio)


def packed(deq_scale: np.ndarray) -> np.ndarray:
    """AscendDequant's second input: (n,) uint64."""
    return deq_scale.astype(np.float32).view(np.uint32).astype(np.uint64)


def sqnr_db(signal: float, noise: float) -> float:
    """10 log10 of two sums of squares; inf without noise, -inf of noise alone."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
