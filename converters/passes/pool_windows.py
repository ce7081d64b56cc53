"""How many windows a pool with ceil_mode has along an axis.

    counted    ceil((size + padding - window) / stride) + 1
    kept       those of them that start in front of the padding behind the axis: onnxruntime, torch and ONNX from opset 22 on leave the last out
               where it lies in that padding alone; onnx's shape inference below 22 counts it

source: ONNX MaxPool-22, AveragePool-22
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

POOLS = ("MaxPool", "AveragePool", "LpPool")
COUNTED_BELOW = 22  # opset


@dataclass(frozen=True)
class Axis:
    """Of one axis: the size of a window with its dilation, its stride, the padding in front and behind."""

    window: int
    stride: int
    begin: int
    end: int

    def counted(self, size: int) -> int:
        return -(-(size + self.begin + self.end - self.window) // self.stride) + 1

    def kept(self, size: int) -> int:
        counted = self.counted(size)
        return counted - 1 if (counted - 1) * self.stride >= size + self.begin else counted

    def may_drop(self) -> bool:
        """Whether there is a size at which a window is left out."""
        return self.end + self.stride > self.window

    def end_of_last(self, size: int) -> int:
        """The padding behind that the last window that is kept reads: with so much, and no ceil_mode, all others are as many."""
        return max((self.kept(size) - 1) * self.stride + self.window - size - self.begin, 0)


def axes_of(attributes: Mapping[str, Any]) -> list[Axis] | None:
    """Of a pool with ceil_mode, by its attributes; None where there is no ceil_mode, or SAME says how many windows there are."""
    kernel: Sequence[int] = attributes.get("kernel_shape", ())
    how = attributes.get("auto_pad", "NOTSET")
    if not attributes.get("ceil_mode", 0) or how not in ("NOTSET", "VALID") or not kernel:
        return None
    rank = len(kernel)
    strides, dilations = (attributes.get(name) or [1] * rank for name in ("strides", "dilations"))
    pads = (attributes.get("pads") if how == "NOTSET" else None) or [0] * 2 * rank
    return [
        Axis((kernel[i] - 1) * dilations[i] + 1, strides[i], pads[i], pads[rank + i]) for i in range(rank) if strides[i] > 0
    ]


def write_counts(proto: onnx.ModelProto, inferred: onnx.ModelProto) -> int:
    """Make pools of a model, whose values `inferred` describes, ones whose windows onnx counts rightly; how many were changed.

    The model is for shape inference alone: paddings become what numbers ask for.
    """
    opset = max((e.version for e in proto.opset_import if e.domain in ("", "ai.onnx")), default=0)
    return sum(_written(*pair) for pair in _pools(proto.graph, inferred.graph)) if opset < COUNTED_BELOW else 0


def _pools(body: onnx.GraphProto, inferred: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, list[int | None]]]:
    """Pools with the spatial dimensions of what they read."""
    kinds: dict[str, onnx.TypeProto] = {}
    for node, described in zip(body.node, inferred.node, strict=True):
        if node.op_type in POOLS and node.domain in ("", "ai.onnx"):
            kinds = kinds or {v.name: v.type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
            found = kinds.get(node.input[0])
            if found is not None and found.tensor_type.HasField("shape"):
                dims = found.tensor_type.shape.dim
                yield node, [d.dim_value if d.HasField("dim_value") else None for d in list(dims)[2:]]
            continue
        for one, other in zip(node.attribute, described.attribute, strict=True):
            if one.HasField("g"):
                yield from _pools(one.g, other.g)


def _written(node: onnx.NodeProto, sizes: list[int | None]) -> bool:
    from onnx import helper

    axes = axes_of({a.name: _text(helper.get_attribute_value(a)) for a in node.attribute})
    if axes is None or len(axes) != len(sizes):
        return False
    known = [(axis, size) for axis, size in zip(axes, sizes, strict=True) if size is not None]
    if len(known) != len(axes) or all(axis.kept(size) == axis.counted(size) for axis, size in known):
        return False
    kept = [a for a in node.attribute if a.name not in ("ceil_mode", "pads", "auto_pad")]
    del node.attribute[:]
    pads = [*(axis.begin for axis in axes), *(axis.end_of_last(size) for axis, size in known)]
    node.attribute.extend([*kept, helper.make_attribute("pads", pads)])
    return True


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
