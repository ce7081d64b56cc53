"""A ScatterND that adds, multiplies or compares as a ScatterElements that does: for onnxruntime, which gets the first wrong.

onnxruntime (1.31.1, CPU) gives the rows of indices to several threads, and two that hold the same index write over each other: sums lack
terms, others in every run. 4,000 rows of 64 floats onto 50 places with two threads: wrong in 20 runs of 20, with
`use_deterministic_compute` too. Its ScatterElements goes through the rows in order. Without a reduction equal indices are undefined in
ONNX, and such a node stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from porting.errors import UnsupportedModel

from .rewriting import ModelPass, Names, bodies_of, new_initializer, node_like, take_over


@ModelPass
def scatter_nd_in_order(model: ir.Model) -> int:
    """Rewrite every one, in bodies too. raises: UnsupportedModel where how long the indices are is not known"""
    names = Names(model)
    found = [
        node
        for body in bodies_of(model)
        for node in body
        if node.op_type == "ScatterND" and node.domain == "" and _reduction(node) != "none"
    ]
    for node in found:
        _rewrite(node, names)
    return len(found)


def _reduction(node: ir.Node) -> str:
    return node.attributes["reduction"].as_string() if "reduction" in node.attributes else "none"


def _rewrite(node: ir.Node, names: Names) -> None:
    """data (d1 .. dr), indices (.., k), updates (.., dk+1 .. dr)  ->  data (d1 * .. * dk, dk+1 * .. * dr), updates (N, dk+1 * .. * dr)."""
    data, indices, updates = node.inputs
    assert data is not None and indices is not None and updates is not None and node.graph is not None
    depth = indices.shape[-1] if indices.shape else None
    if not isinstance(depth, int):
        raise UnsupportedModel(
            "ScatterND with a reduction, and how many axes its indices have is not known: onnxruntime computes it wrongly",
            where=f"node {node.name}",
            next="give the indices a shape whose last dimension is a number",
        )
    make = _Maker(node, names)
    shape = make("Shape", [data])
    places, rest = (
        make("Slice", [shape, make.ints(0), make.ints(depth)]),
        make("Slice", [shape, make.ints(depth), make.ints(1 << 31)]),
    )
    width = make("ReduceProd", [rest], keepdims=1)  # of nothing: 1
    rows = make("Reshape", [indices, make.ints(-1, depth)])
    flat = make("Expand", [_place_of(rows, places, depth, make), make("Concat", [make.ints(1), width], axis=0)])
    count = make("Slice", [make("Shape", [rows]), make.ints(0), make.ints(1)])
    to_add = make("Reshape", [updates, make("Concat", [count, width], axis=0)], allowzero=1)
    all_places = make("ReduceProd", [places], keepdims=1)
    onto = make("Reshape", [data, make("Concat", [all_places, width], axis=0)], allowzero=1)
    result = make("ScatterElements", [onto, flat, to_add], axis=0, reduction=_reduction(node))
    back = make("Reshape", [result, shape], allowzero=1)
    back.type, back.shape = node.outputs[0].type, node.outputs[0].shape
    take_over(node.outputs[0], back)
    node.graph.remove(node, safe=True)


def _place_of(rows: ir.Value, places: ir.Value, depth: int, make: _Maker) -> ir.Value:
    """(N, 1): the row of the flattened data that each row of indices (N, depth) means.

    Looking an index up among 0 .. d-1 refuses one that is out of range, as ScatterND does, and makes a negative one count from the end.
    """
    total: ir.Value | None = None
    for axis in range(depth):
        size = make("Squeeze", [make("Slice", [places, make.ints(axis), make.ints(axis + 1)])])
        numbers = make("Range", [make.number(0), size, make.number(1)])
        place = make("Gather", [numbers, make("Slice", [rows, make.ints(axis), make.ints(axis + 1), make.ints(1)])], axis=0)
        total = place if total is None else make("Add", [make("Mul", [total, size]), place])
    assert total is not None
    return total


class _Maker:
    """Makes nodes in front of one that is to go."""

    def __init__(self, node: ir.Node, names: Names) -> None:
        self._node, self._names, self._count = node, names, 0

    def __call__(self, op_type: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
        self._count += 1
        made = node_like(self._node, op_type, inputs, suffix=f"/{op_type}{self._count}", **attributes)
        made.name = self._names.free(str(made.name))
        made.outputs[0].name = self._names.free(f"{made.name}.out")
        return made.outputs[0]

    def ints(self, *numbers: int) -> ir.Value:
        return self._constant(np.asarray(numbers, np.int64))

    def number(self, number: int) -> ir.Value:
        return self._constant(np.asarray(number, np.int64))

    def _constant(self, array: np.ndarray) -> ir.Value:
        assert self._node.graph is not None
        name = self._names.free(f"{self._node.name}/number")
        return new_initializer(self._node.graph, name, ir.Tensor(array, name=name))
