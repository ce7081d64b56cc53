"""Operators of libopapi that bring many elements to few, and those that put them in order: name -> function of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Tensor = torch.Tensor


def _axes(x: Tensor, dims: Sequence[int] | None) -> list[int]:
    """All of them where none is named."""
    return list(dims) if dims else list(range(x.dim()))


def _any_or_all(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def compute(x: Tensor, dims: Sequence[int], keep: int) -> Tensor:
        for dim in sorted((d % max(x.dim(), 1) for d in _axes(x, dims)), reverse=True):
            x = function(x, dim, keepdim=True)
            x = x if keep else x.squeeze(dim)
        return function(x) if x.dim() == 0 else x

    return compute


def _sum(x: Tensor, dims: Sequence[int], keep: int, dtype: torch.dtype) -> Tensor:
    made = x if dtype in (torch.float16, torch.bfloat16) else x.to(dtype)
    return made.sum(_axes(x, dims), bool(keep)) if x.dim() else made.clone()


def _mean(x: Tensor, dims: Sequence[int], keep: int, dtype: torch.dtype) -> Tensor:
    return x.float().mean(_axes(x, dims), bool(keep)) if x.dtype != torch.float64 else x.mean(_axes(x, dims), bool(keep))


def _var(x: Tensor, dims: Sequence[int], correction: int, keep: int) -> Tensor:
    return x.var(_axes(x, dims), correction=correction, keepdim=bool(keep))


def _with_places(function: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    def compute(x: Tensor, dim: int, keep: int) -> tuple[Tensor, Tensor]:
        values, places = function(x, dim, bool(keep))
        return values, places

    return compute


def _top(x: Tensor, count: int, dim: int, largest: int, ordered: int) -> tuple[Tensor, Tensor]:
    values, places = torch.topk(x, count, dim, bool(largest), bool(ordered))
    return values, places


def _sorted(x: Tensor, stable: int, dim: int, descending: int) -> tuple[Tensor, Tensor]:
    values, places = torch.sort(x, dim=dim, descending=bool(descending), stable=True)
    return values, places


def _norm(x: Tensor, power: Any, dims: Sequence[int], keep: int) -> Tensor:
    return torch.linalg.vector_norm(x, power, _axes(x, dims), bool(keep))


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "ReduceSum": _sum,
    "Mean": _mean,
    "Prod": lambda x, dtype: x.to(dtype if not dtype.is_floating_point else x.dtype).prod(),
    "ProdDim": lambda x, dim, keep, dtype: x.to(dtype if not dtype.is_floating_point else x.dtype).prod(dim, bool(keep)),
    "Max": torch.max,
    "Min": torch.min,
    "MaxDim": _with_places(torch.max),
    "MinDim": _with_places(torch.min),
    "Amax": lambda x, dims, keep: x.amax(_axes(x, dims), bool(keep)),
    "Amin": lambda x, dims, keep: x.amin(_axes(x, dims), bool(keep)),
    "ArgMax": lambda x, dim, keep: x.argmax(dim, bool(keep)),
    "ArgMin": lambda x, dim, keep: x.argmin(dim, bool(keep)),
    "All": _any_or_all(torch.all),
    "Any": _any_or_all(torch.any),
    "Cumsum": lambda x, dim, dtype: x.to(dtype if not dtype.is_floating_point else x.dtype).cumsum(dim),
    "VarCorrection": _var,
    "Std": lambda x, dims, correction, keep: _var(x, dims, correction, keep).sqrt(),
    "Norm": _norm,
    "LinalgVectorNorm": lambda x, power, dims, keep, dtype: _norm(x, power, dims, keep),
    "Topk": _top,
    "Sort": _sorted,
}
