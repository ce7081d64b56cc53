"""Which state of a graph grows: buffers that each run appends to, as attention caches do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx

from porting.state import is_name
from porting.types import TensorSpec

SAME = ("Identity", "Cast")  # what may stand between a state and the operator that appends


def appended_axis(graph: onnx.GraphProto, source: TensorSpec, target: TensorSpec, fed: Sequence[TensorSpec]) -> int | None:
    """The axis along which `target` is `source` and something more; None where nothing says so.

    The graph says it where it concatenates the one to the other. Where it does so by a longer way, names do: beside what `source` shares with
    the inputs that are fed (its rows), one free dimension is left, and the output calls that one differently.

    fed: inputs that are no state
    """
    made_by = {name: node for node in graph.node for name in node.output}
    axis = _concatenated(made_by, source.name, target.name, len(source.shape))
    if axis is not None:
        return None if isinstance(source.shape[axis], int) else axis
    shared = {"batch", *(dim for spec in fed for dim in spec.shape if is_name(dim))}
    free = [axis for axis, dim in enumerate(source.shape) if not isinstance(dim, int) and dim not in shared]
    if len(free) != 1 or not shared & set(source.shape) or len(target.shape) != len(source.shape):
        return None
    before, after = source.shape[free[0]], target.shape[free[0]]
    return free[0] if is_name(before) and is_name(after) and _wording(before) != _wording(after) else None


def _wording(name: object) -> str:
    """A name without its numbers, which exporters count up where they mean nothing by it: unk__12."""
    return re.sub(r"\d+", "", str(name))


def _concatenated(made_by: Mapping[str, onnx.NodeProto], source: str, target: str, rank: int) -> int | None:
    """Axis of the Concat that makes `target` of `source` and others."""
    node = made_by.get(_origin(made_by, target))
    if node is None or node.op_type != "Concat" or node.domain not in ("", "ai.onnx") or len(node.input) < 2:
        return None
    if [_origin(made_by, name) for name in node.input].count(source) != 1:
        return None
    axis = next(int(attribute.i) for attribute in node.attribute if attribute.name == "axis")
    return axis + rank if axis < 0 else axis


def _origin(made_by: Mapping[str, onnx.NodeProto], name: str) -> str:
    """The value that `name` is, whatever the operators in between call it."""
    while name in made_by and made_by[name].op_type in SAME and made_by[name].domain in ("", "ai.onnx"):
        name = made_by[name].input[0]
    return name
