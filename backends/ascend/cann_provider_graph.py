"""The graph that is handed to the CANN provider: whole, with its weights inside, in fixed shapes, and without what CANN cannot load.

The provider gives a graph to CANN as one protobuf message, parsed from memory. Three things follow, each measured with onnxruntime-cann 1.24.4:
external weights stay relative paths in it, which CANN looks up in the current folder; it ends at 2 GiB; and a scalar input is announced as
"name" where "name:sizes" is expected, so scalars enter as one number and lose the dimension inside:

    sr []   ──>   sr [1] ── Squeeze ──> sr/scalar []
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from porting.ascend.graph_facts import GraphFacts, facts_of
from porting.ascend.operators import is_registered
from porting.backends.ascend.cann_provider_branches import settled
from porting.backends.onnx_program import node_label, read_model, subgraphs
from porting.errors import InputError, RuntimeFailed
from porting.external_data import tensors_in
from porting.types import Program, Unsupported

WHERE = "ascend, route=cann"
OPSETS = (8, 18)  # below the provider hands nothing to CANN, above CANN's parser has no entries
# what a protobuf message may hold, less room for the names and shapes that the provider adds
MOST_BYTES = 2**31 - 2**24
# dtypes of inputs and outputs that have an aclDataType and a way through the provider; bfloat16 only without state
DTYPES = frozenset(
    [
        "float32",
        "float16",
        "float64",
        "bfloat16",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
    ]
)
NO_BRANCHES = (
    "the provider compiles its branches apart, and what is left of it for CANN cannot be loaded (measured with onnxruntime-cann 1.24.4); "
    "route=om, or a graph with the branch settled"
)


@dataclass(frozen=True)
class Prepared:
    """
    model:   the bytes that onnxruntime gets
    program: as the provider sees it, but for `model`, which is the caller's: scalar inputs have one dimension
    scalars: inputs that are fed as one number
    nodes:   names of the nodes that have to be placed
    facts:   of the graph, as the rules read them
    """

    model: bytes
    program: Program
    scalars: frozenset[str]
    nodes: tuple[str, ...]
    facts: GraphFacts


def refused_nodes(program: Program) -> list[Unsupported]:
    """Nodes with branches that sizes do not settle, of other domains, or without an entry in CANN's ONNX parser for the opset of the graph."""
    return _refused(_whole(program))


def _whole(program: Program) -> onnx.ModelProto:
    """The program's graph, with the branches that its sizes settle."""
    fixed = {spec.name: tuple(size for size in spec.shape if isinstance(size, int)) for spec in program.inputs}
    is_fixed = all(len(fixed[spec.name]) == len(spec.shape) for spec in program.inputs)
    return settled(read_model(program), program.gears or ([fixed] if is_fixed else []))


def _refused(model: onnx.ModelProto) -> list[Unsupported]:
    opset = _opset(model)
    found = []
    for node in model.graph.node:
        domain = "" if node.domain == "ai.onnx" else node.domain
        reason = ""
        if any(subgraphs(node)):
            reason = NO_BRANCHES
        elif domain:
            reason = f"the provider hands operators of {domain} to CANN unread, whose ONNX parser takes those of ai.onnx here"
        elif node.op_type != "Constant" and OPSETS[0] <= opset <= OPSETS[1] and not is_registered(node.op_type, "", opset):
            reason = f"CANN's ONNX parser has no entry for it in opset {opset}"
        if reason:
            found.append(Unsupported(node_label(node), node.op_type, domain, reason))
    return found


def prepared(program: Program) -> Prepared:
    """
    raises: InputError for a graph that cannot be handed over, and for free sizes without gears
            RuntimeFailed for nodes that cannot be taken, and for a graph over 2 GiB
    """
    model = _whole(program)
    opset = _opset(model)
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise InputError(
            f"the graph is of opset {opset}, and route=cann takes {OPSETS[0]} to {OPSETS[1]}",
            where=WHERE,
            next="convert for Ascend: `porting port SOURCE --target Ascend910B3` lowers the opset",
        )
    refused = _refused(model)
    if refused:
        first = refused[0]
        raise RuntimeFailed(
            f"{len(refused)} nodes cannot be taken, {first.node!r} ({first.op_type}) first: {first.reason}",
            where=f"prepare, {WHERE}",
        )
    _require_shapes(program)
    _put_weights_in(model, program)
    _forget_imports(model)
    facts = _facts(model)
    named = _name_nodes(model)
    scalars = frozenset(spec.name for spec in program.inputs if spec.shape == ())
    stateful = {pair.input for pair in program.state.pairs}
    if scalars & stateful:
        raise InputError(
            f"state {min(scalars & stateful)!r} is a scalar, which the provider cannot keep on the device", where=WHERE
        )
    for name in sorted(scalars):
        named.append(_enter_as_one_number(model, name, opset))
    inputs = tuple(replace(spec, shape=(1,)) if spec.name in scalars else spec for spec in program.inputs)
    return Prepared(_serialised(model), replace(program, inputs=inputs, gears=()), scalars, tuple(named), facts)


def _facts(model: onnx.ModelProto) -> GraphFacts:
    import onnx_ir as ir

    from porting.types import Graph

    return facts_of(Graph(ir.from_proto(model)))


def _opset(model: onnx.ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def _require_shapes(program: Program) -> None:
    """raises: InputError"""
    for spec in (*program.inputs, *program.outputs):
        if spec.dtype not in DTYPES:
            raise InputError(
                f"{spec} cannot pass through the provider", where=WHERE, next="numbers in tensors only: cut the graph there"
            )
    state = {pair.input for pair in program.state.pairs}
    foreign = next((spec for spec in program.inputs if spec.name in state and spec.dtype == "bfloat16"), None)
    if foreign is not None:
        raise InputError(f"state {foreign} cannot lie in device memory: numpy has no such dtype", where=WHERE, next="route=om")
    free = next((spec for spec in program.inputs if not all(isinstance(size, int) for size in spec.shape)), None)
    if free is not None and not program.gears:
        raise InputError(
            f"{free} has free sizes and the graph has no gears: the provider would compile every new shape, and keep all of them",
            where=WHERE,
            next='convert with the shapes to be run: --gears "batch=1; batch=4"',
        )
    shapes = [*program.gears, {spec.name: spec.shape for spec in program.inputs if free is None}]
    empty = next((name for gear in shapes for name, shape in gear.items() if 0 in shape), None)
    if empty is not None:
        raise InputError(f"input {empty!r} has no numbers: the provider does not copy those to the device", where=WHERE)


def _put_weights_in(model: onnx.ModelProto, program: Program) -> None:
    """Load what lies in other files. raises: InputError for a file that cannot be read, RuntimeFailed over 2 GiB"""
    size = model.ByteSize()
    outside = [tensor for tensor in tensors_in(model) if tensor.data_location == TensorProto.EXTERNAL]
    size += sum(_nbytes(tensor) for tensor in outside)
    if size > MOST_BYTES:
        raise RuntimeFailed(
            f"the graph has {size >> 20} MiB with its weights, and the provider hands it to CANN as one message, which ends at 2 GiB",
            where=WHERE,
            next="route=om: atc reads weights from files",
        )
    if not isinstance(program.model, bytes):
        for tensor in outside:
            tensor.raw_data = _bytes_outside(tensor, program.model)
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]


def _bytes_outside(tensor: TensorProto, model: Path) -> bytes:
    """What lies in another file, beside the model or below it: links between files of a port are hard ones. raises: InputError"""
    place = {entry.key: entry.value for entry in tensor.external_data}
    where = f"{model}, weight {tensor.name!r}"
    path = model.parent / place.get("location", "")
    if not path.resolve().is_relative_to(model.parent.resolve()):
        raise InputError(f"it lies in {place.get('location')!r}, outside of the folder of the model", where=where)
    try:
        with open(path, "rb") as file:
            file.seek(int(place.get("offset", "0")))
            data = file.read(_nbytes(tensor))
    except (OSError, ValueError) as error:
        raise InputError(f"it cannot be read: {error}", where=where) from error
    if len(data) != _nbytes(tensor) or int(place.get("length", len(data))) != len(data):
        raise InputError(f"expected {_nbytes(tensor)} bytes, found {place.get('length', len(data))}", where=where)
    return data


def _nbytes(tensor: TensorProto) -> int:
    count = math.prod(tensor.dims)
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4):
        return -(-count // 2)
    return count * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize


def _forget_imports(model: onnx.ModelProto) -> None:
    """Leave the import of ai.onnx: CANN refuses a graph that imports more (E16005, read in its source), and no node left here needs one."""
    kept = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")][:1]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _name_nodes(model: onnx.ModelProto) -> list[str]:
    """Give every node a name of its own, by which its place is looked up; returns the names of those that onnxruntime places."""
    seen: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = next(name for name in _candidates(node_label(node), number) if name not in seen)
        seen.add(node.name)
    return [node.name for node in model.graph.node if node.op_type != "Constant"]


def _candidates(label: str, number: int) -> Iterator[str]:
    yield label
    while True:
        label = f"{label}/{number}"
        yield label


def _enter_as_one_number(model: onnx.ModelProto, name: str, opset: int) -> str:
    """Make a scalar input one of shape [1] that is squeezed; returns the name of the node that does it."""
    taken = {name for node in model.graph.node for name in (node.name, *node.input, *node.output)}
    taken |= {value.name for value in (*model.graph.input, *model.graph.initializer)}
    inner, axes = (next(n for n in _candidates(f"{name}/{what}", 1) if n not in taken) for what in ("scalar", "axes"))
    for value in model.graph.input:
        if value.name == name:
            value.type.tensor_type.shape.dim.add().dim_value = 1
    for node in model.graph.node:
        for index, read in enumerate(node.input):
            if read == name:
                node.input[index] = inner
    if opset >= 13:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.int64), axes))
        node = onnx.helper.make_node("Squeeze", [name, axes], [inner], name=inner)
    else:
        node = onnx.helper.make_node("Squeeze", [name], [inner], name=inner, axes=[0])
    model.graph.node.insert(0, node)
    return inner


def _serialised(model: onnx.ModelProto) -> bytes:
    """raises: RuntimeFailed over what a message holds"""
    try:
        return model.SerializeToString(deterministic=True)
    except Exception as error:  # protobuf's EncodeError; its class differs between protobuf's implementations
        raise RuntimeFailed(f"the graph does not go into one message: {error}", where=WHERE, next="route=om") from error
