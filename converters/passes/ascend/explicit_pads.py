"""The numbers that auto_pad stands for, of convolutions and pooling."""

from __future__ import annotations

import onnx_ir as ir

from ..rewriting import ints_of
from .making import dimension


def auto_pad_of(node: ir.Node) -> str:
    return node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"


def kernel_of(node: ir.Node) -> list[int] | None:
    """The window: written, or the spatial axes of the weights. None where it is not known."""
    written = ints_of(node, "kernel_shape")
    if written or len(node.inputs) < 2 or node.inputs[1] is None or node.inputs[1].shape is None:
        return written or None
    sizes = [size for size in list(node.inputs[1].shape)[2:] if isinstance(size, int)]
    return sizes if sizes and len(sizes) == len(node.inputs[1].shape) - 2 else None


def explicit_pads(node: ir.Node) -> list[int] | None:
    """[begins, ends] of a Conv or of pooling; None where they hang on sizes that are not fixed.

    SAME: as many results as there are strides in the axis, ceil(n / s); what the windows reach over is split, the odd one behind (SAME_UPPER)
    or in front. With a stride of 1 that does not hang on n.

    source: ONNX Conv-11, AveragePool-11
    """
    kernel, how = kernel_of(node), auto_pad_of(node)
    if kernel is None or node.inputs[0] is None:
        return None
    rank = len(kernel)
    if how in ("NOTSET", "VALID"):
        return (ints_of(node, "pads") or [0] * 2 * rank) if how == "NOTSET" else [0] * 2 * rank
    strides, dilations = ints_of(node, "strides") or [1] * rank, ints_of(node, "dilations") or [1] * rank
    begins, ends = [], []
    for axis in range(rank):
        reach, stride = (kernel[axis] - 1) * dilations[axis] + 1, strides[axis]
        size = dimension(node.inputs[0], axis + 2)
        if size is None and stride != 1:
            return None
        over = reach - 1 if size is None or stride == 1 else max((-(-size // stride) - 1) * stride + reach - size, 0)
        begins.append(over // 2 if how == "SAME_UPPER" else over - over // 2)
        ends.append(over - begins[-1])
    return [*begins, *ends]
