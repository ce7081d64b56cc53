"""A size that is an input's is read off the input, wherever it is needed.

    Gather(Shape(h), 1), h: (batch, sequence, 576)   ->   Gather(Shape(input_ids), 1), input_ids: (batch, sequence)

Why: every layer asks one of its own values how long the sequence is, and what it computes from that (positions, rows of a cache) then looks
different in each. Read off one input it is the same everywhere, and share_integers leaves it once: SmolLM2 with a cache of fixed size has
3,178 nodes without this pass.

Left alone: dimensions whose name no input has, Shapes with start or end, several indices at once, and bodies of control flow.
Bound: none needed, the bits are the same; a session refuses inputs whose sizes of one name differ.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from porting.state import is_name

from ..rewriting import ModelPass, frozen, made_by, new_initializer

INDEX = "{input}.axis_{axis}{kind}"


@ModelPass
def sizes_of_inputs(model: ir.Model) -> int:
    """Count: Gathers that read another Shape now. Shapes must have been inferred."""
    body = model.graph
    places: dict[str, tuple[ir.Value, int]] = {}
    for value in body.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and is_name(dim.value):
                places.setdefault(str(dim.value), (value, axis))
    shapes: dict[ir.Value, ir.Value] = {}  # input -> its Shape
    changes = 0
    for node in list(body):
        if node.op_type == "Gather" and node.domain == "":
            changes += _moved(body, node, places, shapes)
    return changes


def _moved(body: ir.Graph, node: ir.Node, places: dict[str, tuple[ir.Value, int]], shapes: dict[ir.Value, ir.Value]) -> int:
    of = made_by(node.inputs[0], "Shape")
    index = frozen(node.inputs[1])
    if of is None or of.attributes or index is None or index.size != 1:
        return 0
    measured = of.inputs[0]
    if measured is None or measured.shape is None or measured.is_graph_input():
        return 0
    number = int(index.numpy().reshape(-1)[0])
    if not -len(measured.shape) <= number < len(measured.shape):
        return 0
    dim = measured.shape[number]
    if not isinstance(dim, ir.SymbolicDim) or dim.value not in places:
        return 0
    value, axis = places[dim.value]
    if value not in shapes:
        first = ir.node("Shape", [value], name=f"{of.name}/Shape", num_outputs=1, metadata_props=dict(of.metadata_props))
        first.outputs[0].name = f"{value.name}.sizes"
        first.outputs[0].dtype, first.outputs[0].shape = ir.DataType.INT64, ir.Shape([len(value.shape or ())])
        body.insert_before(next(iter(body)), first)
        shapes[value] = first.outputs[0]
    array = np.full(tuple(index.shape.numpy()), axis, np.int64)
    name = INDEX.format(input=value.name, axis=axis, kind="" if array.ndim == 0 else "s")
    where = body.initializers.get(name) or new_initializer(body, name, ir.tensor(array, name=name))
    node.replace_input_with(0, shapes[value])
    node.replace_input_with(1, where)
    return 1
