"""Changing a node where it stands: the attributes and inputs of one that keeps its operator and its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from ..rewriting import ModelPass, Names, bodies_of, frozen, made_by, new_initializer

Attribute = int | float | str | Sequence[int]
Change = Callable[[ir.Node, Names, int], bool]  # (node, names, opset) -> whether it changed
READ = 1 << 16  # elements of a constant whose numbers a pass looks at: indices, bounds and sizes are fewer


def in_place(changes: dict[str, Change], doc: str, lowest_opset: int = 1) -> ModelPass:
    """A pass that changes standard nodes one by one, in bodies too.

    changes: operator -> what changes a node and says whether it did
    """

    def change(model: ir.Model) -> int:
        opset = model.graph.opset_imports.get("", 0)
        if opset < lowest_opset:
            return 0
        found = list(standard_nodes(model, *changes))
        names = Names(model) if found else None
        return sum(changes[node.op_type](node, names, opset) for node in found) if names is not None else 0

    change.__doc__ = doc
    return ModelPass(change)


def standard_nodes(model: ir.Model, *op_types: str) -> Iterator[ir.Node]:
    """Nodes of ai.onnx of these kinds, in the main graph and in bodies."""
    for body in bodies_of(model):
        for node in body:
            if node.domain == "" and node.op_type in op_types:
                yield node


def write(node: ir.Node, **attributes: Attribute) -> bool:
    """Write attributes that are absent or say something else; whether there were any."""
    changed = False
    for name, value in attributes.items():
        wanted = _attribute(name, value)
        if name not in node.attributes or node.attributes[name].value != wanted.value:
            node.attributes[name] = wanted
            changed = True
    return changed


def write_absent(node: ir.Node, **attributes: Attribute) -> bool:
    """Write attributes that a node does not have, which the standard gives these values; whether there were any."""
    return write(node, **{name: value for name, value in attributes.items() if name not in node.attributes})


def drop(node: ir.Node, *names: str) -> bool:
    """Take attributes off a node; whether it had any."""
    return sum(node.attributes.pop(name, None) is not None for name in names) > 0


def _attribute(name: str, value: Attribute) -> ir.Attr:
    if isinstance(value, int):
        return ir.AttrInt64(name, value)
    if isinstance(value, float):
        return ir.AttrFloat32(name, value)
    if isinstance(value, str):
        return ir.AttrString(name, value)
    return ir.AttrInt64s(name, tuple(value))


def set_input(node: ir.Node, place: int, value: ir.Value) -> None:
    """Set an input that may lie behind the last one."""
    if place >= len(node.inputs):
        node.resize_inputs(place + 1)
    node.replace_input_with(place, value)


def constant_for(node: ir.Node, names: Names, label: str, array: np.ndarray) -> ir.Value:
    """A new initializer of the graph or body that holds the node."""
    assert isinstance(node.graph, ir.Graph)
    name = names.free(f"{node.name}/{label}")
    return new_initializer(node.graph, name, ir.Tensor(array, name=name))


def numbers(value: ir.Value | None, most: int = READ) -> np.ndarray | None:
    """The numbers of a constant that nobody can feed; None for anything else, and for one of more than `most` elements."""
    tensor = frozen(value)
    maker = made_by(value, "Constant")
    if tensor is None and maker is not None and "value" in maker.attributes:
        tensor = maker.attributes["value"].as_tensor()
    if tensor is None or tensor.size > most or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()


def integers(value: ir.Value | None) -> list[int] | None:
    """The same as a flat list, of integers."""
    array = numbers(value)
    return [int(n) for n in array.reshape(-1)] if array is not None and array.dtype.kind in "iu" else None


def dimensions(value: ir.Value | None) -> list[int] | None:
    """A shape that is fixed in every dimension; None where it is not."""
    if value is None or value.shape is None:
        return None
    sizes = [size for size in value.shape if isinstance(size, int)]
    return sizes if len(sizes) == len(value.shape) else None
