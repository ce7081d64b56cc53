"""Take out nodes that give what they get.

    x ─ Identity ─ Cast(to x's type) ─ Relu   ->   x ─ Relu

Identity; Dropout outside training; Cast to the type that is there; Transpose to the order that is there; Reshape, Flatten, Expand and Tile to
the shape that is there; Pad by nothing; Slice of everything; Concat, Sum, Mean, Max and Min of one.

Refuses when it is not proven (a symbolic dimension says nothing about another), and when the result is an output of its graph and its
source is not made by a node of that graph, or is an output too: an output has to keep its name.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from .rewriting import ModelPass, bodies_of, frozen, ints_of

FAR = 2**31 - 1  # an end of a slice that means "to the end": exporters write INT32_MAX or INT64_MAX


@ModelPass
def drop_identities(model: ir.Model) -> int:
    """Count: nodes removed."""
    changes = 0
    for body in bodies_of(model):
        for node in list(body):
            test = NOTHING_DONE.get(node.op_type) if not node.domain else None
            if test is None or not node.inputs or node.inputs[0] is None or not _only_first_output_used(node) or not test(node):
                continue
            if _bypass(node, node.inputs[0]):
                body.remove(node, safe=True)
                changes += 1
    return changes


def _only_first_output_used(node: ir.Node) -> bool:
    return not any(v.uses() or v.is_graph_output() for v in node.outputs[1:])


def _bypass(node: ir.Node, source: ir.Value) -> bool:
    """Let everyone read `source` instead of the node's output, which gives it its name if it is an output. False when it cannot be."""
    output = node.outputs[0]
    if output.is_graph_output():
        maker = source.producer()
        if maker is None or maker.graph is not node.graph or source.is_graph_output():
            return False
        name = output.name
        output.name = f"{name}.replaced"
        source.name = name
        source.type, source.shape = output.type or source.type, output.shape or source.shape
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    return True


def _whole(value: ir.Value | None) -> list[int] | None:
    """All dimensions of a value, when they are fixed."""
    if value is None or value.shape is None:
        return None
    sizes = [d for d in value.shape if isinstance(d, int)]
    return sizes if len(sizes) == len(value.shape) else None


def _numbers(node: ir.Node, place: int) -> list[int] | None:
    """An input that is a constant list of integers."""
    tensor = frozen(node.inputs[place]) if place < len(node.inputs) else None
    if tensor is None or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32) or tensor.size > 64:
        return None
    return [int(i) for i in tensor.numpy().reshape(-1)]


def _same_shape(node: ir.Node) -> bool:
    before = _whole(node.inputs[0])
    return before is not None and before == _whole(node.outputs[0])


def _same_type(node: ir.Node) -> bool:
    return node.inputs[0].dtype is not None and node.inputs[0].dtype == node.attributes["to"].as_int()  # type: ignore[union-attr]


def _same_order(node: ir.Node) -> bool:
    order = ints_of(node, "perm")
    rank = len(order) if order else len(node.inputs[0].shape or (0, 0))  # type: ignore[union-attr]
    return (order or list(range(rank))[::-1]) == list(range(rank))


def _reshape(node: ir.Node) -> bool:
    """To the same fixed shape; or all dimensions but one are shown to stay, so that one does too."""
    if _same_shape(node):
        return True
    shape, wanted = node.inputs[0].shape, _numbers(node, 1)  # type: ignore[union-attr]
    copies = "allowzero" not in node.attributes or not node.attributes["allowzero"].as_int()
    if shape is None or wanted is None or len(shape) != len(wanted) or not copies:
        return False
    open_ = [w for w, d in zip(wanted, shape, strict=True) if w != 0 and not (isinstance(d, int) and d == w)]
    return not open_ or (open_ == [-1] and 0 not in [d for d in shape if isinstance(d, int)])


def _expand(node: ir.Node) -> bool:
    wanted, shape = _numbers(node, 1), node.inputs[0].shape  # type: ignore[union-attr]
    ones = wanted is not None and shape is not None and len(wanted) <= len(shape) and set(wanted) <= {1}
    return ones or _same_shape(node)


def _tile(node: ir.Node) -> bool:
    repeats = _numbers(node, 1)
    return repeats is not None and set(repeats) <= {1}


def _pad(node: ir.Node) -> bool:
    pads = _numbers(node, 1) if len(node.inputs) > 1 else ints_of(node, "pads") or None
    return pads is not None and set(pads) <= {0}


def _slice(node: ir.Node) -> bool:
    """From 0 to the end in steps of 1, along whatever axes."""
    if len(node.inputs) < 3:
        starts, ends, steps = ints_of(node, "starts"), ints_of(node, "ends"), []
    else:
        starts, ends = _numbers(node, 1) or [], _numbers(node, 2) or []
        steps = (_numbers(node, 4) or [0]) if len(node.inputs) > 4 and node.inputs[4] is not None else []
    return bool(starts and ends) and set(starts) == {0} and min(ends) >= FAR and set(steps) <= {1}


def _dropout(node: ir.Node) -> bool:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is None:
        return True
    tensor = frozen(training)
    return tensor is not None and not np.any(tensor.numpy())


def _one_input(node: ir.Node) -> bool:
    return len(node.inputs) == 1


NOTHING_DONE: dict[str, Callable[[ir.Node], bool]] = {
    "Identity": lambda node: True,
    "Dropout": _dropout,
    "Cast": _same_type,
    "Transpose": _same_order,
    "Reshape": _reshape,
    "Flatten": _same_shape,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Slice": _slice,
    "Concat": _one_input,
    "Sum": _one_input,
    "Mean": _one_input,
    "Max": _one_input,
    "Min": _one_input,
}
