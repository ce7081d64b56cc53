"""Running one changed region before and after a pass, on generated values, with onnxruntime on the CPU.

Numbers that say a size or a place (integers, and floats that are few) are not made up: what computes them is taken along, from the inputs of
the model or from the shapes of the tensors that they are the sizes of. So is what computes a value whose dimensions are not known. Everything
else is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx

from porting.ascend.changed_regions import Region
from porting.ascend.graph_records import BodyRecord, NodeRecord
from porting.errors import PortingError

MOST_ELEMENTS = 1 << 24  # of all that is fed to a region and lies in its constants
MOST_TRACED = 400  # nodes that are taken along
FEW = 16  # floats that may be sizes: scales, ends of a range
SIZES = ("Shape", "Size")
DRAWN_BYTES = 1 << 16  # a constant above it that both sides read is drawn: what holds for any numbers holds for these
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float16", "float32", "float64")
# 7 bits: onnxruntime's kernels for older processors add pairs of products in 16 bits, which saturate on larger numbers
QUANTISED = {"int8": (-64, 64), "uint8": (0, 128)}


class NotAlone(Exception):
    """Why a region is not compared alone."""


@dataclass(frozen=True)
class Surroundings:
    """What a region lies in.

    opsets: before and after
    sizes:  value -> its dimensions, where those of the record are free
    fed:    inputs of the model -> arrays
    least:  whether integers that are drawn are 0 and 1; they may be places in something small
    """

    opsets: tuple[Mapping[str, int], Mapping[str, int]]
    sizes: Mapping[str, tuple[int, ...]]
    fed: Mapping[str, Any]
    least: bool = False


@dataclass(frozen=True)
class Inputs:
    """What both sides are run on.

    drawn:  value -> array
    traced: nodes before the region that compute the others, and those values
    """

    drawn: Mapping[str, np.ndarray]
    traced: Sequence[NodeRecord]
    computed: tuple[str, ...]


def inputs_of(region: Region, around: Surroundings, drawing: bool = True) -> Inputs:
    """
    drawing: whether floats may be drawn; False: they come from the inputs of the model, as far as that takes few nodes
    raises:  NotAlone
    """
    finder = _Finder(region.before.body, around, drawing)
    for name in region.inputs:
        finder.find(name, sized=False)
    for name in _drawn_constants(region):
        finder.draw_constant(name)
    elements = sum(array.size for array in finder.drawn.values())
    if elements > MOST_ELEMENTS:
        raise NotAlone(f"it reads {elements} numbers")
    computed = tuple(n for n in region.inputs if n not in finder.drawn)
    return Inputs(finder.drawn, [node for _, node in sorted(finder.traced, key=lambda traced: traced[0])], computed)


def _drawn_constants(region: Region) -> list[str]:
    """Large constants that both sides read, unless a side has numbers of its own, which may be made of these."""
    read = [{n for node in side.nodes for n in node.reads()} for side in (region.before, region.after)]
    own = [n for n in read[1] - read[0] if (t := region.after.body.constant(n)) is not None and t.size > FEW]
    if own:
        return []
    shared = sorted(read[0] & read[1])
    tensors = {n: t for n in shared if (t := region.before.body.constant(n)) is not None}
    return [n for n, t in tensors.items() if t.nbytes > DRAWN_BYTES and t is region.after.body.constant(n)]


class _Finder:
    """Values for the inputs of a region."""

    def __init__(self, body: BodyRecord, around: Surroundings, drawing: bool) -> None:
        self.body, self.around, self.drawing = body, around, drawing
        self.drawn: dict[str, np.ndarray] = {}
        self.traced: list[tuple[tuple[int, int], NodeRecord]] = []  # with the depth of its body, and its place there
        self._seen: set[str] = set()
        self._rng = np.random.default_rng(0)

    def find(self, name: str, sized: bool) -> None:
        """sized: whether its dimensions matter, and its numbers do not."""
        if name in self._seen:
            return
        self._seen.add(name)
        home = self.body.home(name)
        if home is None:
            raise NotAlone(f"{name} is not of the graph before")
        if name in home.constants:
            return
        kind, dims = self._described(name)
        node = home.nodes[home.maker[name]] if name in home.maker else None
        few = dims is not None and len(dims) < 2 and prod(dims) <= FEW
        by_number = kind in INTEGERS or kind == "bool" or kind == "" or (few and kind in FLOATS)
        known = bool(kind) and dims is not None
        if (
            node is None
            or node.bodies
            or (known and (sized or (self.drawing and not by_number)))
            or len(self.traced) >= MOST_TRACED
        ):
            self.drawn[name] = self._draw(name, kind, dims)
            return
        self.traced.append(((home.depth, home.maker[name]), node))
        for read in filter(None, node.inputs):
            self.find(read, node.op in SIZES)
        self._seen.update(node.outputs)

    def draw_constant(self, name: str) -> None:
        tensor = self.body.constant(name)
        assert tensor is not None
        dims = tuple(int(d) for d in tensor.shape if isinstance(d, int))
        self.drawn[name] = self._draw(name, tensor.dtype.numpy().name, dims)

    def _described(self, name: str) -> tuple[str, tuple[int, ...] | None]:
        """The dtype, "" where it is unknown, and the dimensions."""
        kind, dims = self.body.type_of(name)
        if kind is not None and not kind.HasField("tensor_type"):
            raise NotAlone(f"{name} is no tensor")
        known = self.around.sizes.get(name)
        if dims is not None and all(isinstance(d, int) for d in dims):
            known = tuple(int(d) for d in dims if isinstance(d, int))
        dtype = "" if kind is None else onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type).name
        return dtype, known

    def _draw(self, name: str, kind: str, dims: tuple[int, ...] | None) -> np.ndarray:
        if name in self.around.fed:
            array: np.ndarray = self.around.fed[name]
            return array
        if dims is None or not kind:
            raise NotAlone(f"the {'dimensions' if kind else 'type'} of {name} are not known")
        if prod(dims) > MOST_ELEMENTS:
            raise NotAlone(f"{name} has {prod(dims)} elements")
        if kind == "bool":
            return self._rng.integers(0, 2, dims).astype(bool)
        if kind in INTEGERS:
            signed = np.iinfo(kind).min < 0
            low, high = QUANTISED.get(kind, (0, 2) if self.around.least else (-9 if signed else 1, 10))
            return self._rng.integers(low, high, dims).astype(kind)
        if kind not in FLOATS:
            raise NotAlone(f"{name} is of {kind}")
        numbers = 2 * self._rng.standard_normal(min(prod(dims), 1 << 16))
        numbers[::5] = np.round(numbers[::5] * 2) / 2  # what rounding, and the smallest of equals, depend on
        return np.resize(numbers.astype(kind), dims)


# --- models -------------------------------------------------------------------------------------------------------


def run_before(region: Region, inputs: Inputs, around: Surroundings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The outputs, and what was fed, computed inputs included. raises: NotAlone where it does not run on these values"""
    wanted = [*region.outputs, *(n for n in inputs.computed if n not in region.outputs)]
    nodes = [*inputs.traced, *region.before.nodes]
    model = model_of(region, region.before.body, nodes, inputs.drawn, wanted, around.opsets[0])
    try:
        found = run(model, inputs.drawn, wanted)
    except PortingError as error:
        raise NotAlone(f"it does not run on generated values: {error.what}") from error
    fed = {**inputs.drawn, **{name: found[name] for name in inputs.computed}}
    return {name: found[name] for name in region.outputs}, fed


def run_after(region: Region, fed: Mapping[str, Any], around: Surroundings) -> dict[str, Any]:
    """raises: PortingError where it does not run"""
    model = model_of(region, region.after.body, region.after.nodes, fed, region.outputs, around.opsets[1])
    return run(model, fed, region.outputs)


def model_of(
    region: Region,
    body: BodyRecord,
    nodes: Sequence[NodeRecord],
    fed: Mapping[str, np.ndarray],
    wanted: Sequence[str],
    opsets: Mapping[str, int],
) -> onnx.ModelProto:
    """Nodes with the constants that they read, as a model of its own. raises: NotAlone"""
    graph = onnx.GraphProto(name="region")
    made = {name for node in nodes for name in node.outputs}
    read = {name for node in nodes for name in node.reads()} | set(wanted)
    elements = 0
    for name in sorted(read - made - fed.keys()):
        tensor = body.constant(name)
        # a value that the other side has as a constant is one here too
        tensor = tensor or region.before.body.constant(name) or region.after.body.constant(name)
        if tensor is None:
            raise NotAlone(f"{name} lies elsewhere")
        elements += tensor.size
        if elements > MOST_ELEMENTS:
            raise NotAlone(f"it reads {elements} numbers")
        graph.initializer.append(_tensor(tensor, name))
    for name in sorted(read & fed.keys() - made):
        array = fed[name]
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    for node in nodes:
        graph.node.append(_node(node))
    for name in wanted:
        graph.output.append(_value(name, body.type_of(name)[0]))
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    highest = opsets.get("", 0)
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8 if highest <= 18 else 10 if highest < 23 else 11)


def _value(name: str, kind: onnx.TypeProto | None) -> onnx.ValueInfoProto:
    value = onnx.ValueInfoProto(name=name)
    if kind is not None:
        value.type.CopyFrom(kind)
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return value


def _tensor(tensor: Any, name: str) -> onnx.TensorProto:
    import onnx_ir as ir

    if isinstance(tensor, (ir.ExternalTensor, ir.LazyTensor)):
        tensor = ir.Tensor(tensor.numpy(), name=name)
    proto = ir.serde.serialize_tensor(tensor)
    proto.name = name
    return proto


def _node(node: NodeRecord) -> onnx.NodeProto:
    import onnx_ir as ir

    made = onnx.NodeProto(op_type=node.op, domain=node.domain, name=node.name, input=node.inputs, output=node.outputs)
    made.attribute.extend(ir.serde.serialize_attribute(attribute) for attribute in node.attributes.values())
    for name, body in node.bodies.items():
        made.attribute.append(onnx.helper.make_attribute(name, _graph(body)))
    return made


def _graph(body: BodyRecord) -> onnx.GraphProto:
    graph = onnx.GraphProto(name="body")
    if sum(tensor.size for tensor in body.constants.values()) > MOST_ELEMENTS:
        raise NotAlone("a body holds large weights")
    graph.initializer.extend(_tensor(tensor, name) for name, tensor in body.constants.items())
    graph.input.extend(_value(name, body.type_of(name)[0]) for name in body.inputs)
    graph.output.extend(_value(name, body.type_of(name)[0]) for name in body.outputs)
    graph.node.extend(_node(node) for node in body.nodes)
    return graph


def run(model: onnx.ModelProto, fed: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """In onnxruntime, without optimisations. raises: PortingError"""
    from porting.backends.onnxruntime import import_runtime, translated

    runtime = import_runtime("cpu")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        taken = {value.name for value in session.get_inputs()}
        found = session.run(list(wanted), {n: a for n, a in fed.items() if n in taken})
    except Exception as error:
        raise translated(error, "cpu", "run of a part") from error
    return dict(zip(wanted, found, strict=True))
