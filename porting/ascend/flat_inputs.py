"""Gears of many inputs, made settable: inputs whose size no gear changes are fed as one row of numbers.

Before a run with gears of dynamic_dims a program calls aclmdlSetInputDynamicDims with one aclmdlIODims, which holds all sizes of all inputs, those that
no gear changes too, and has room for 128 (ACL_MAX_DIM_CNT; ge: acl_mdl.h, acl_base_mdl.h). A language model with 30 layers has 60 caches of rank 4. Fed flat
they are 60 sizes in place of 240: the bytes of the buffer are the same, and the Reshape that the graph begins with moves none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from porting.ascend.gear_options import DIMS, Shape, options_of
from porting.ascend.gears import Gears
from porting.errors import PortError, UsageError
from porting.onnx_facts import nodes_of
from porting.verdict import printable

SETTABLE = 128
PREFIX = "porting_fed_flat/"


def settable(gears: Gears) -> tuple[Gears, dict[str, Shape]]:
    """Gears that the call at run time holds, and the inputs that are fed flat for it -> their shape in the model.

    Nothing is fed flat where the call holds the gears as they are.
    raises: UsageError where it does not even hold them flat
    """
    if gears.kind != DIMS or _count(gears) <= SETTABLE:
        return gears, {}
    first = gears.shapes[0]
    flat = {
        name: shape for name, shape in first.items() if len(shape) > 1 and all(gear[name] == shape for gear in gears.shapes)
    }
    shapes = tuple({name: (math.prod(s),) if name in flat else s for name, s in gear.items()} for gear in gears.shapes)
    options = options_of(gears.kind, list(first), shapes, gears.options["input_format"])
    made = replace(gears, shapes=shapes, options=options)
    if _count(made) > SETTABLE:
        raise UsageError(
            f"gears of {_count(gears)} sizes over {len(first)} inputs, {_count(made)} with what no gear changes fed flat: aclmdlSetInputDynamicDims "
            f"takes {SETTABLE}, so no program could choose among them",
            where="--gears",
            next="name one gear, which needs no setting, and make a port for each",
        )
    return made, flat


def _count(gears: Gears) -> int:
    return sum(len(shape) for shape in gears.shapes[0].values())


def with_flat_inputs(model: onnx.ModelProto, flat: Mapping[str, Shape]) -> onnx.ModelProto:
    """The model with those inputs as one row of numbers each, and a Reshape to their shape in front of all that reads them.

    What was written is held against the model: the Reshapes run on the CPU, and without them it is the model again.
    raises: PortError where it is not
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    inner = {name: f"{PREFIX}{name}" for name in flat}
    for _, node in nodes_of(made.graph):
        for place, name in enumerate(node.input):
            node.input[place] = inner.get(name, name)
    for value in made.graph.input:
        if value.name in flat:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            shape.dim.add().dim_value = math.prod(flat[value.name])
    first = [
        helper.make_node("Reshape", [name, f"{inner[name]}/shape"], [inner[name]], name=f"{inner[name]}/node") for name in flat
    ]
    rest = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend([*first, *rest])
    shapes = [numpy_helper.from_array(np.array(shape, np.int64), f"{inner[name]}/shape") for name, shape in flat.items()]
    made.graph.initializer.extend(shapes)
    _require_same(model, made, flat)
    return made


def _require_same(model: onnx.ModelProto, made: onnx.ModelProto, flat: Mapping[str, Shape]) -> None:
    """raises: PortError"""
    _require_reshaped(made, flat)
    undone = onnx.ModelProto()
    undone.CopyFrom(made)
    del undone.graph.node[: len(flat)]
    del undone.graph.initializer[len(undone.graph.initializer) - len(flat) :]
    for _, node in nodes_of(undone.graph):
        for place, name in enumerate(node.input):
            node.input[place] = name.removeprefix(PREFIX)
    for value, before in zip(undone.graph.input, model.graph.input, strict=True):
        if value.name in flat:
            value.type.CopyFrom(before.type)
    bodies = {id(body): body for body, _ in nodes_of(model.graph)}.values()
    passed_on = {value.name for body in (model.graph, *bodies) for value in body.output} & flat.keys()
    if undone != model or passed_on:
        raise PortError(
            f"inputs cannot be fed flat: {printable(', '.join(sorted(passed_on)) or 'the graph is another without them', 200)}",
            where="hand-off",
            next="name one gear: --gears",
        )


def _require_reshaped(made: onnx.ModelProto, flat: Mapping[str, Shape]) -> None:
    """The nodes in front, run by onnxruntime on numbers that are all different (of float32: a Reshape asks for no dtype). raises: PortError"""
    import onnxruntime

    def floats(name: str, shape: Shape | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    nodes = list(made.graph.node[: len(flat)])
    inputs = [floats(name, (math.prod(shape),)) for name, shape in flat.items()]
    shapes = [tensor for tensor in made.graph.initializer if tensor.name.startswith(PREFIX)]
    graph = helper.make_graph(nodes, "flat", inputs, [floats(node.output[0], None) for node in nodes], shapes)
    part = helper.make_model(graph, opset_imports=made.opset_import, ir_version=made.ir_version)
    session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {name: np.arange(math.prod(shape), dtype=np.float32) + i for i, (name, shape) in enumerate(flat.items())}
    for (name, shape), got in zip(flat.items(), session.run(None, feeds), strict=True):
        if got.shape != shape or not np.array_equal(got, feeds[name].reshape(shape)):
            raise PortError(f"input {printable(name, 80)} is another when fed flat", where="hand-off")
