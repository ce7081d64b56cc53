"""Operators of libopapi that make, move and pick elements: name -> function of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .opapi_values import Found

Tensor = torch.Tensor


def _filled(x: Tensor, value: Any) -> Tensor:
    return torch.full_like(x, value)


def _arange(start: Any, end: Any, step: Any, *, outputs: tuple = ()) -> Tensor:
    """As many as the output has room for, in its own dtype: kernels multiply, they do not add up."""
    return torch.arange(start, end, step, dtype=outputs[0].dtype)


def _indexed(x: Tensor, places: Sequence[Tensor | None]) -> Tensor:
    return x[_picks(places)]


def _picks(places: Sequence[Tensor | None]) -> tuple:
    """A tensor that is left out takes the whole axis; op-plugin leaves out by one without elements and without a rank of its own."""
    return tuple(slice(None) if p is None or (p.numel() == 0 and p.dim() == 1) else _places(p) for p in places)


def _places(indices: Tensor) -> Tensor:
    return indices if indices.dtype == torch.bool else indices.long()


def _index_put(x: Tensor, places: Sequence[Tensor | None], values: Tensor, accumulate: int, unsafe: int) -> Tensor:
    made = x.clone()
    chosen = [None if isinstance(p, slice) else p for p in _picks(places)]
    return made.index_put_(chosen, values.to(x.dtype), accumulate=bool(accumulate))


def _scattered(x: Tensor, dim: int, index: Tensor, values: Tensor, reduce: int) -> Tensor:
    """reduce: 0 takes the place, 1 is added, 2 is multiplied"""
    if reduce == 0:
        return x.scatter(dim, index.long(), values.to(x.dtype))
    return x.scatter(dim, index.long(), values.to(x.dtype), reduce={1: "add", 2: "multiply"}[reduce])


def _scattered_value(x: Tensor, dim: int, index: Tensor, value: Any, reduce: int) -> Tensor:
    if reduce == 0:
        return x.scatter(dim, index.long(), value)
    return x.scatter(dim, index.long(), value, reduce={1: "add", 2: "multiply"}[reduce])


def _padded(x: Tensor, pads: Sequence[int], value: Any) -> Tensor:
    return torch.nn.functional.pad(x, list(pads), value=value)


def _mirrored(name: str) -> Callable[..., Tensor]:
    mode = {"Reflection": "reflect", "Replication": "replicate"}[name]
    return lambda x, pads: torch.nn.functional.pad(x, list(pads), mode=mode)


def _normal(x: Tensor, mean: float, deviation: float, seed: int, offset: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed + offset) % 2**63)
    return torch.empty(x.shape).normal_(mean, deviation, generator=generator)


def _uniform(x: Tensor, low: float, high: float, seed: int, offset: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed + offset) % 2**63)
    return torch.empty(x.shape).uniform_(low, high, generator=generator)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "InplaceOne": torch.ones_like,
    "InplaceZero": torch.zeros_like,
    "InplaceFillScalar": _filled,
    "InplaceFillTensor": lambda x, value: value.reshape(()).expand_as(x),
    "InplaceCopy": lambda x, source: source.expand_as(x),
    "InplaceNormal": _normal,
    "InplaceUniform": _uniform,
    "Arange": _arange,
    "Eye": lambda n, m, *, outputs=(): torch.eye(n, m),
    "Cat": torch.cat,
    "Stack": torch.stack,
    "Repeat": lambda x, times: x.repeat(times),
    "Flip": torch.flip,
    "Roll": torch.roll,
    "Tril": torch.tril,
    "Triu": torch.triu,
    "ConstantPadNd": _padded,
    **{f"{name}Pad{rank}d": _mirrored(name) for name in ("Reflection", "Replication") for rank in (1, 2)},
    "Embedding": lambda weight, places: weight[places.long()],
    "IndexSelect": lambda x, dim, places: x.index_select(dim, places.long()),
    "Index": _indexed,
    "IndexPutImpl": _index_put,
    "Gather": lambda x, dim, places: x.gather(dim, places.long()),
    "Scatter": _scattered,
    "ScatterValue": _scattered_value,
    "ScatterAdd": lambda x, dim, places, values: x.scatter_add(dim, places.long(), values.to(x.dtype)),
    "IndexCopy": lambda x, dim, places, values: x.index_copy(dim, places.long(), values.to(x.dtype)),
    "MaskedSelect": lambda x, mask: Found(x.masked_select(mask)),
    "InplaceMaskedFillScalar": lambda x, mask, value: x.masked_fill(mask, value),
    "InplaceMaskedFillTensor": lambda x, mask, value: x.masked_fill(mask, value.reshape(())),
    "InplaceMaskedScatter": lambda x, mask, source: x.masked_scatter(mask, source),
    "Nonzero": lambda x: Found(x.nonzero()),
    "IsInTensorScalar": lambda x, y, unique, inverted: torch.isin(x, y, invert=bool(inverted)),
}
