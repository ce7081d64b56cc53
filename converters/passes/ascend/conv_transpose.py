"""ConvTranspose with kernel_shape and pads written, and of images where it is of sequences.

    auto_pad, output_shape   ->   pads
    x (N, C, L), w (C, M, k) ->   Squeeze(ConvTranspose(Unsqueeze(x, 2), w (C, M, 1, k)), 2)

Why: CANN's parser wants kernel_shape and tensors of four or five axes; documents have auto_pad in 2-D alone and know no output_shape.

Left alone: weights whose shape is not known; auto_pad and output_shape over an axis that is not fixed;
auto_pad=SAME_* with output_padding, which runtimes count differently.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from porting.types import TensorSpec
from porting.weights import Stream, stream_of, tensors_of

from ..rewriting import ModelPass, Names, frozen, ints_of
from .explicit_pads import auto_pad_of, kernel_of
from .in_place import drop, in_place, write, write_absent
from .making import Maker, Refused, dimension, rewriting


def _write_out(node: ir.Node, _names: Names, _opset: int) -> bool:
    kernel = kernel_of(node)
    if kernel is None:
        return False
    changed = write_absent(node, kernel_shape=kernel)
    if auto_pad_of(node) == "NOTSET" and "output_shape" not in node.attributes:
        return changed
    pads = _pads(node, kernel)
    if pads is None:
        return changed
    drop(node, "auto_pad", "output_shape")
    return write(node, pads=pads) or True


def _pads(node: ir.Node, kernel: list[int]) -> list[int] | None:
    """[begins, ends]; None where sizes are not fixed, or the result is larger than what the windows reach. Source: ONNX ConvTranspose-11."""
    how, wanted, rank = auto_pad_of(node), ints_of(node, "output_shape"), len(kernel)
    if how == "VALID" and not wanted:
        return [0] * 2 * rank
    strides, dilations = ints_of(node, "strides") or [1] * rank, ints_of(node, "dilations") or [1] * rank
    more = ints_of(node, "output_padding") or [0] * rank
    if how.startswith("SAME") and any(more):
        return None
    begins, ends = [], []
    for axis in range(rank):
        size = dimension(node.inputs[0], axis + 2) if node.inputs[0] is not None else None
        if size is None:
            return None
        result = wanted[axis - rank] if wanted else size * strides[axis]
        over = strides[axis] * (size - 1) + more[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - result
        if over < 0:
            return None
        begins.append(over // 2 if how == "SAME_UPPER" else over - over // 2)
        ends.append(over - begins[-1])
    return [*begins, *ends]


def _as_image(make: Maker) -> ir.Value | None:
    node, x, weights = make.node, make.input(0), make.input(1)
    kernel = kernel_of(node)
    if kernel is None or len(kernel) != 1:
        return None
    if auto_pad_of(node) != "NOTSET" or "output_shape" in node.attributes:
        raise Refused("its padding is not known")
    attributes: dict[str, list[int] | int] = {"group": make.int("group", 1), "kernel_shape": [1, *kernel]}
    for name, neutral in (("strides", 1), ("dilations", 1), ("output_padding", 0)):
        if name in node.attributes:
            attributes[name] = [neutral, *ints_of(node, name)]
    begin, end = ints_of(node, "pads") or [0, 0]
    attributes["pads"] = [0, begin, 0, end]
    bias = [] if make.optional(2) is None else [make.input(2)]
    image = make("ConvTranspose", make("Unsqueeze", x, make.ints(2)), _raised(make, weights), *bias, **attributes)
    return make("Squeeze", image, make.ints(2))


def _raised(make: Maker, weights: ir.Value) -> ir.Value:
    """(C, M, k) -> (C, M, 1, k), without reading a weight that comes as a stream."""
    tensor = frozen(weights)
    if tensor is None:
        return make("Unsqueeze", weights, make.ints(2))
    stream = stream_of(tensor)
    if stream is None:
        return make.constant(tensor.numpy()[:, :, None, :])
    source, which = stream
    spec = source.outputs[which]
    raised = TensorSpec(make.free_name("weights"), spec.dtype, (*spec.shape[:2], 1, *spec.shape[2:]))

    def rows(start: int, stop: int) -> list[np.ndarray]:
        return [source.make(start, stop)[which][:, :, None, :]]

    return make.initializer(tensors_of(Stream([raised], source.rows, source.sources, rows, infinite=source.infinite))[0])


@ModelPass
def conv_transpose(model: ir.Model) -> int:
    """Count: nodes written out or rewritten. Source: ONNX ConvTranspose-11."""
    written = in_place({"ConvTranspose": _write_out}, "").change(model)
    return written + rewriting({("", "ConvTranspose"): _as_image})(model)
