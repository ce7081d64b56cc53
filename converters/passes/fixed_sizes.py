"""Give free dimensions of the inputs a size, and inputs a constant: what a graph is compiled for, written into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from porting.types import Graph

from .infer_shapes import bodies_of
from .rewriting import copied


def fixed_sizes(
    graph: Graph, shapes: Mapping[str, tuple[int | None, ...]], constants: Mapping[str, int | float] | None = None
) -> Graph:
    """A copy whose inputs have these sizes; what follows from them is for the passes that come after.

    shapes:    input name -> a size for each dimension, None where it stays as it is
    constants: input name -> the scalar that takes its place; such an input is gone
    """
    new = copied(graph)
    body = new.model.graph
    sizes: dict[str, int] = {}
    for value in body.inputs:
        wanted = shapes.get(str(value.name))
        if wanted is None or value.shape is None:
            continue
        for dim, size in zip(value.shape, wanted, strict=True):
            if size is not None and isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                sizes[dim.value] = size
        value.shape = ir.Shape([d if size is None else size for d, size in zip(value.shape, wanted, strict=True)])
    for inner in bodies_of(new.model):
        values = [*inner.inputs, *inner.outputs, *(o for node in inner for o in node.outputs)]
        for value in values:
            if value.shape is not None and any(_symbol(d) in sizes for d in value.shape):
                value.shape = ir.Shape([sizes.get(_symbol(d) or "", d) for d in value.shape])
    for name, number in (constants or {}).items():
        _make_constant(body, name, number)
    gone = set(constants or {})
    return replace(
        new,
        defaults={n: v for n, v in graph.defaults.items() if n not in gone},
        ranges={n: v for n, v in graph.ranges.items() if n not in gone},
        limits={n: v for n, v in graph.limits.items() if n not in gone},
    )


def _symbol(dim: int | ir.SymbolicDim) -> str | None:
    return None if isinstance(dim, int) else dim.value


def _make_constant(body: ir.Graph, name: str, number: int | float) -> None:
    value = next(v for v in body.inputs if v.name == name)
    assert value.dtype is not None
    sizes = [1 if not isinstance(d, int) else d for d in value.shape or ()]
    array = np.full(sizes, number, value.dtype.numpy())
    body.inputs.remove(value)
    value.const_value = ir.tensor(array, name=name)
    value.shape = ir.Shape(sizes)
    body.register_initializer(value)
