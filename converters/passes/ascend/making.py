"""Putting nodes in the place of one that goes: named after it, in its graph, right at opset 13 to 24."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..rewriting import ModelPass, Names, bodies_of, new_initializer, node_like, remove_node

LOWEST_OPSET = 13  # below it Softmax, Squeeze and the axes of a ReduceSum are written otherwise
AXES_AS_INPUT = 18  # of the reductions but ReduceSum, whose axes are an input from 13 on
Rewrite = Callable[["Maker"], "ir.Value | Sequence[ir.Value | None] | None"]


class Refused(Exception):
    """Why a node stays as it is: what is not known of it, or has no exact form."""


def rewriting(rewrites: dict[tuple[str, str], Rewrite], lowest_opset: int = LOWEST_OPSET) -> Callable[[ir.Model], int]:
    """The change of a pass that rewrites nodes one by one, in bodies too.

    rewrites: (domain, operator) -> what makes the new outputs; None leaves the node, and so does raising Refused
    """

    def change(model: ir.Model) -> int:
        opset = model.graph.opset_imports.get("", 0)
        if opset < lowest_opset:
            return 0
        found = [node for body in bodies_of(model) for node in body if (node.domain, node.op_type) in rewrites]
        if not found:
            return 0
        names = Names(model)
        return sum(_rewritten(Maker(node, names, opset), rewrites[node.domain, node.op_type]) for node in found)

    return change


def node_pass(rewrites: dict[tuple[str, str], Rewrite], doc: str, lowest_opset: int = LOWEST_OPSET) -> ModelPass:
    """A pass of `rewriting`."""
    change = rewriting(rewrites, lowest_opset)
    change.__doc__ = doc
    return ModelPass(change)


def _rewritten(make: Maker, rewrite: Rewrite) -> bool:
    try:
        made = rewrite(make)
    except Refused:
        made = None
    if made is None:
        make.undo()
        return False
    make.replace_by([made] if isinstance(made, ir.Value) else made)
    return True


Int = int  # the class has methods of the names of both
Float = float


class Maker:
    """Makes nodes in front of one that is to go."""

    def __init__(self, node: ir.Node, names: Names, opset: Int) -> None:
        assert isinstance(node.graph, ir.Graph)
        self.node, self.opset, self._names, self._graph = node, opset, names, node.graph
        self._made: list[ir.Node] = []
        self._constants: list[ir.Value] = []

    # --- what the node says -------------------------------------------------------------------------------------------

    def input(self, place: Int) -> ir.Value:
        """An input that has to be there. raises: Refused"""
        value = self.optional(place)
        if value is None:
            raise Refused(f"input {place} is left out")
        return value

    def optional(self, place: Int) -> ir.Value | None:
        return self.node.inputs[place] if place < len(self.node.inputs) else None

    def int(self, name: str, default: Int) -> Int:
        return self.node.attributes[name].as_int() if name in self.node.attributes else default

    def float(self, name: str, default: Float) -> Float:
        return self.node.attributes[name].as_float() if name in self.node.attributes else default

    def text(self, name: str, default: str) -> str:
        return self.node.attributes[name].as_string() if name in self.node.attributes else default

    def used(self, place: Int) -> bool:
        """Whether somebody reads an output."""
        outputs = self.node.outputs
        return place < len(outputs) and bool(outputs[place].uses() or outputs[place].is_graph_output())

    # --- nodes --------------------------------------------------------------------------------------------------------

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.several(op_type, 1, *inputs, **attributes)[0]

    def several(self, op_type: str, outputs: Int, *inputs: ir.Value | None, **attributes: Any) -> Sequence[ir.Value]:
        made = node_like(self.node, op_type, inputs, outputs=outputs, suffix=f"/{op_type}", **attributes)
        made.name = self._names.free(str(made.name))
        for i, output in enumerate(made.outputs):
            output.name = self._names.free(f"{made.name}.{i}" if i else f"{made.name}.out")
        self._made.append(made)
        return made.outputs

    def reduce(self, op_type: str, value: ir.Value, axes: Sequence[Int], keepdims: Int = 1) -> ir.Value:
        """A reduction over axes that are known, written as the opset wants them."""
        if self.opset >= AXES_AS_INPUT or op_type == "ReduceSum":
            return self(op_type, value, self.ints(*axes), keepdims=keepdims)
        return self(op_type, value, axes=list(axes), keepdims=keepdims)

    def size(self, value: ir.Value, axis: Int) -> ir.Value:
        """() int64: one dimension, a constant where it is fixed."""
        known = dimension(value, axis)
        return self.number(known) if known is not None else self("Gather", self("Shape", value), self.number(axis), axis=0)

    def range(self, count: ir.Value) -> ir.Value:
        """(count,) int64: 0 .. count - 1."""
        known = count.const_value
        if known is not None:
            return self.constant(np.arange(int(known.numpy()), dtype=np.int64))
        return self("Range", self.number(0), count, self.number(1))

    def unsqueeze(self, value: ir.Value, *axes: Int) -> ir.Value:
        return self("Unsqueeze", value, self.ints(*axes)) if axes else value

    def reshape(self, value: ir.Value, *sizes: Int) -> ir.Value:
        return self("Reshape", value, self.ints(*sizes))

    def part(self, value: ir.Value, start: Int, stop: Int, axis: Int) -> ir.Value:
        """Elements start .. stop - 1 along one axis."""
        return self("Slice", value, self.ints(start), self.ints(stop), self.ints(axis), self.ints(1))

    def cast(self, value: ir.Value, to: ir.DataType, given: ir.DataType | None = None) -> ir.Value:
        """The value itself when it is of that type already."""
        return value if (given or value.dtype) == to else self("Cast", value, to=int(to))

    # --- constants ----------------------------------------------------------------------------------------------------

    def ints(self, *numbers: Int) -> ir.Value:
        return self.constant(np.asarray(numbers, np.int64))

    def number(self, number: Int) -> ir.Value:
        return self.constant(np.asarray(number, np.int64))

    def scalar(self, number: Float, dtype: ir.DataType) -> ir.Value:
        """() of a float type: the nearest number that it has."""
        return self.constant(np.asarray(number, np.float64).astype(dtype.numpy()))

    def constant(self, array: np.ndarray) -> ir.Value:
        name = self.free_name("constant")
        return self.initializer(ir.Tensor(array, name=name))

    def free_name(self, label: str) -> str:
        return self._names.free(f"{self.node.name}/{label}")

    def initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Of a tensor that has a free name."""
        value = new_initializer(self._graph, str(tensor.name), tensor)
        self._constants.append(value)
        return value

    # --- the end ------------------------------------------------------------------------------------------------------

    def undo(self) -> None:
        """Take out what was made."""
        for made in reversed(self._made):
            self._graph.remove(made, safe=True)
        for value in self._constants:
            del self._graph.initializers[str(value.name)]

    def replace_by(self, made: Sequence[ir.Value | None]) -> None:
        """Give the node's outputs over to new values and take the node out; outputs without a new value must have no reader."""
        for old, new in zip(self.node.outputs, made, strict=False):
            if new is not None:
                self._hand_over(old, new)
        remove_node(self.node)

    def _hand_over(self, old: ir.Value, new: ir.Value) -> None:
        """The new value has the old one's name, so that whoever knows the graph finds it again, unless it had a name before."""
        maker = new.producer()
        if maker is None or maker not in self._made:
            if not old.is_graph_output():
                old.replace_all_uses_with(new)
                return
            new = self("Identity", new)
        name = old.name
        old.name = f"{name}.replaced"
        new.name, new.type, new.shape = name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)


# --- facts of values -------------------------------------------------------------------------------------------------


def rank_of(value: ir.Value) -> int:
    """raises: Refused where it is not known"""
    if value.shape is None:
        raise Refused(f"the rank of {value.name} is not known")
    return len(value.shape)


def dimension(value: ir.Value, axis: int) -> int | None:
    """A fixed dimension, None where it is not known."""
    size = value.shape[axis] if value.shape is not None and -len(value.shape) <= axis < len(value.shape) else None
    return size if isinstance(size, int) else None


def fixed(value: ir.Value, axis: int) -> int:
    """raises: Refused where the dimension is not fixed"""
    size = dimension(value, axis)
    if size is None:
        raise Refused(f"axis {axis} of {value.name} is not fixed")
    return size


def float_type(value: ir.Value) -> ir.DataType:
    """raises: Refused where the type is not known or no float"""
    if value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE):
        raise Refused(f"the type of {value.name} is {value.dtype}")
    return value.dtype
