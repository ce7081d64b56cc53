"""Operators of libopapi that are layers: matrix products, convolutions, normalisations, pools, attention.

cubeMathType says how products take float32 (opapi_values.py). Half floats are multiplied as they are, and summed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from .opapi_values import Chip, into_matrix_unit

Tensor = torch.Tensor
# sparseMode of aclnnFlashAttentionScore
DEFAULT_MASK, ALL_MASK, LEFT_UP_CAUSAL, RIGHT_DOWN_CAUSAL = range(4)


# --- products -----------------------------------------------------------------------------------------------------


def _taken(math: int, chip: Chip, kinds: Sequence[torch.dtype], *operands: Tensor) -> list[Tensor]:
    return [into_matrix_unit(x, math, kind, chip) for x, kind in zip(operands, kinds, strict=True)]


def _matmul(a: Tensor, b: Tensor, math: int, *, chip: Chip, kinds: Sequence[torch.dtype]) -> Tensor:
    a, b = _taken(math, chip, kinds[:2], a, b)
    return a @ b


def _addmm(
    c: Tensor, a: Tensor, b: Tensor, beta: Any, alpha: Any, math: int, *, chip: Chip, kinds: Sequence[torch.dtype]
) -> Tensor:
    a, b = _taken(math, chip, kinds[1:3], a, b)
    product = alpha * (a @ b)
    return product + beta * c if beta != 0 else product


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: int,
    output_padding: list[int],
    groups: int,
    math: int,
    *,
    chip: Chip,
    kinds: Sequence[torch.dtype],
) -> Tensor:
    x, weight = _taken(math, chip, kinds[:2], x, weight)
    return torch.convolution(x, weight, bias, stride, padding, dilation, bool(transposed), output_padding, groups)


# --- normalisations -----------------------------------------------------------------------------------------------


def _layer_norm(x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
    weight, bias = (None if p is None else p.to(x.dtype) for p in (weight, bias))
    return torch.native_layer_norm(x, shape, weight, bias, eps)


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: int,
    momentum: float,
    eps: float,
) -> tuple[Tensor | None, ...]:
    if training and mean is not None:
        raise NotImplementedError("statistics that are updated in training are not simulated")
    if training:
        return torch.native_batch_norm(x, weight, bias, None, None, True, momentum, eps)
    return functional.batch_norm(x, mean, variance, weight, bias, False, momentum, eps), None, None


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, places: int, groups: int, eps: float
) -> tuple[Tensor, ...]:
    return torch.native_group_norm(x, weight, bias, n, c, places, groups, eps)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    axes = list(range(x.dim() - weight.dim(), x.dim()))
    root = torch.rsqrt(x.square().mean(axes, keepdim=True) + eps)
    return x * root * weight, root


# --- pools and sizes ----------------------------------------------------------------------------------------------


def _max_pool(
    x: Tensor, size: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil: int
) -> tuple[Tensor, Tensor]:
    values, places = functional.max_pool2d(x, size, stride or None, padding, dilation, bool(ceil), return_indices=True)
    return values, places


def _max_pool_masked(
    x: Tensor, size: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil: int
) -> tuple[Tensor, None]:
    return functional.max_pool2d(x, size, stride or None, padding, dilation, bool(ceil)), None  # the mask is for training


def _avg_pool(
    x: Tensor, size: list[int], stride: list[int], padding: list[int], ceil: int, counts_pad: int, divisor: int, math: int
) -> Tensor:
    return functional.avg_pool2d(x, size, stride or None, padding, bool(ceil), bool(counts_pad), divisor or None)


def _nearest(x: Tensor, sizes: list[int], *scales: float) -> Tensor:
    return torch.ops.aten.upsample_nearest2d(x, sizes, *_scales(scales))


def _linear(x: Tensor, sizes: list[int], corners: int, *scales: float) -> Tensor:
    return torch.ops.aten.upsample_bilinear2d(x, sizes, bool(corners), *_scales(scales))


def _scales(scales: Sequence[float]) -> list[float | None]:
    return [scale if scale > 0 else None for scale in scales]


# --- attention ----------------------------------------------------------------------------------------------------


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shift: Tensor | None,
    drop: Tensor | None,
    padding: Tensor | None,
    mask: Tensor | None,
    prefix: list[int] | None,
    scale: float,
    keep: float,
    before: int,
    behind: int,
    heads: int,
    layout: str,
    precise: int,
    sparse: int,
    *,
    outputs: tuple = (),
) -> tuple[Tensor | None, ...]:
    """aclnnFlashAttentionScore: attention, and what its backward pass would want, which is left out."""
    if keep != 1.0 or prefix or padding is not None:
        raise NotImplementedError("dropout, prefixes and padding masks of attention are not simulated")
    if sparse not in (DEFAULT_MASK, ALL_MASK, LEFT_UP_CAUSAL, RIGHT_DOWN_CAUSAL):
        raise NotImplementedError(f"sparseMode {sparse} of attention is not simulated")
    queries, keys, values = (
        _by_heads(x, layout, heads if i == 0 else 0, q.shape[-1] // heads) for i, x in enumerate((q, k, v))
    )
    times = queries.shape[1] // keys.shape[1]
    scores = (queries @ keys.repeat_interleave(times, 1).transpose(-1, -2)) * scale
    if shift is not None:
        scores = scores + shift
    hidden = _hidden(scores, mask, sparse, before, behind)
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    made = torch.softmax(scores, -1) @ values.repeat_interleave(times, 1)
    if layout == "BSND":
        made = made.transpose(1, 2)
    elif layout == "BSH":
        made = made.transpose(1, 2).flatten(2)
    elif layout == "SBH":
        made = made.permute(2, 0, 1, 3).flatten(2)
    return None, None, None, made


def _by_heads(x: Tensor, layout: str, heads: int, size: int) -> Tensor:
    """As (batch, heads, positions, size)."""
    if layout == "BNSD":
        return x
    if layout == "BSND":
        return x.transpose(1, 2)
    if layout == "BSH":
        return x.unflatten(-1, (heads or -1, size)).transpose(1, 2)
    if layout == "SBH":
        return x.unflatten(-1, (heads or -1, size)).permute(1, 2, 0, 3)
    raise NotImplementedError(f"inputLayout {layout} of attention is not simulated")


def _hidden(scores: Tensor, mask: Tensor | None, sparse: int, before: int, behind: int) -> Tensor | None:
    """What is masked: by the mask alone, or by the diagonal that a causal sparseMode stands for."""
    rows, columns = scores.shape[-2:]
    if sparse in (LEFT_UP_CAUSAL, RIGHT_DOWN_CAUSAL):
        shift = columns - rows if sparse == RIGHT_DOWN_CAUSAL else 0
        return torch.ones(rows, columns, dtype=torch.bool).triu(1 + shift)
    if mask is None:
        return None
    if sparse == DEFAULT_MASK and (before < columns or behind < columns):
        raise NotImplementedError("a band of attention (preTokens, nextTokens) is not simulated")
    return mask.bool()


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Mm": _matmul,
    "Matmul": _matmul,
    "BatchMatMul": _matmul,
    "Addmm": _addmm,
    "Baddbmm": _addmm,
    "Mv": _matmul,
    "Dot": torch.dot,
    "Convolution": _convolution,
    "Softmax": lambda x, dim: torch.softmax(x, dim),
    "Glu": functional.glu,
    "LogSoftmax": lambda x, dim: torch.log_softmax(x, dim),
    "LayerNorm": _layer_norm,
    "BatchNorm": _batch_norm,
    "GroupNorm": _group_norm,
    "RmsNorm": _rms_norm,
    "MaxPool2dWithIndices": _max_pool,
    "MaxPool2dWithMask": _max_pool_masked,
    "AvgPool2d": _avg_pool,
    "AdaptiveAvgPool2d": functional.adaptive_avg_pool2d,
    "UpsampleNearest2dV2": _nearest,
    "UpsampleBilinear2d": _linear,
    "FlashAttentionScore": _attention,
}
