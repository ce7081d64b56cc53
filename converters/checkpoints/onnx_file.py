"""A model that comes as an .onnx file, read without running anything of it.

    file -> onnx_wire.parse_model -> onnx_cut -> onnx_checks.checked -> `read_proto`'s message -> onnx-ir, weights as streams -> Graph

Weights stay where they lie: the message holds none above INLINE_BYTES, and a port links the file they are in.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from porting.cuts import Cut, cut_of
from porting.dtypes import dtype_of
from porting.errors import (
    CheckpointError,
    DeviceUnavailable,
    OutOfResources,
    PortingError,
    UnsupportedModel,
    UsageError,
    nearest,
)
from porting.types import Graph, Original, StatePair, StateSpec, TensorSpec
from porting.verdict import printable

from .onnx_checks import checked
from .onnx_cut import CutOff, cut_off, knows
from .onnx_order import bodies, put_in_order, standard
from .onnx_state import appended_axis
from .onnx_tensors import TensorFiles
from .onnx_wire import FETCH_AGAIN, parse_model

MIN_IR = 8  # of a graph given on: initializers that are no inputs came with 4, the types that a subgraph may give with 8
FIRST_IR_WITH_DEFAULTS = 4
NOT_READ = "no node reads it"
CUT_OFF = "nothing reads it of what the model was cut down to"


def read_proto(path: str | Path, cut: Cut | None = None) -> onnx.ModelProto:
    """The model in a file: checked, put in order, functions inlined, every node with a name of its own, as `OnnxFile.graph` has it.

    External data is not loaded. Embedded initializers above 1 KiB are external data here too, of the file itself: whoever gives the bytes
    of this message to a runtime names `weights_folder` as the place of external data.

    cut:    where it ends, and which inputs are constants
    raises: CheckpointError, UnsupportedModel (see onnx_checks), UsageError (a cut that does not fit)
    """
    files = TensorFiles(Path(path))
    try:
        model, _, _ = _read(files, cut or Cut())
        for tensor in _tensors_inside(model):  # onnxruntime would refuse to read those from a file that a port has linked
            files.embed(tensor)
        for tensor in (*model.graph.initializer, *_tensors_inside(model)):
            files.place_in(tensor, weights_folder(files.path))
        return ir.to_proto(_inlined(model, files.path)) if model.functions else model
    finally:
        files.close()


def weights_folder(path: str | Path) -> Path:
    """The folder that holds the file and its weights, of a file that is a link too: download caches link every file to one elsewhere, and
    onnxruntime 1.31 takes no weights that a link leads out of the folder that it was told."""
    folders = (os.path.realpath(Path(path).parent), os.path.dirname(os.path.realpath(path)))
    return Path(os.path.commonpath(folders))


class OnnxFile:
    """An .onnx file as a GraphSource.

    examples: feeds that the user gave, by input name
    state:    input name -> name of the output that is its value in the next run
    outputs:  where the model ends: values of the graph, or nodes with one output; () for the file's own
    fix:      input name -> the number that it always is
    """

    format = "onnx"

    def __init__(
        self,
        path: str | Path,
        examples: Sequence[Mapping[str, Any]] = (),
        state: Mapping[str, str] | None = None,
        outputs: Sequence[str] = (),
        fix: Mapping[str, Any] | None = None,
    ) -> None:
        """raises: CheckpointError, UnsupportedModel (see onnx_checks), UsageError (state, outputs or fixed inputs that do not fit)"""
        self.path = Path(path)
        self.examples = tuple(examples)
        self.cut = cut_of(outputs, fix)
        self._tensors = TensorFiles(self.path)
        try:
            self._proto, self._cut_off, written_ir = _read(self._tensors, self.cut)
            self.name = self._proto.graph.name or self.path.stem
            self.inputs, self._dropped_inputs = self._input_specs()
            self.outputs, self._unranked = self._output_specs()
            self._state = self._state_spec(state or {})
        except BaseException:
            self.close()
            raise
        self.facts: Mapping[str, Any] = {
            "producer": " ".join(filter(None, (self._proto.producer_name, self._proto.producer_version))),
            "ir_version": written_ir,
            "opset": {entry.domain: entry.version for entry in self._proto.opset_import},
            "functions": sorted({f"{f.domain}::{f.name}" for f in self._proto.functions}),
            # inputs that a caller of the file may leave out: constants of the port. Before IR 4 every initializer had to be listed so
            "constant_inputs": self._dropped_inputs if written_ir >= FIRST_IR_WITH_DEFAULTS else [],
            "outputs_of_unknown_rank": self._unranked,  # their shape is given as ()
            **({"cut_outputs": [s.name for s in self.outputs], "cut_inputs": list(self._cut_off.inputs)} if outputs else {}),
            **({"fixed_inputs": dict(self.cut.fixed)} if fix else {}),
        }

    @property
    def onnx_path(self) -> Path:
        """The file itself."""
        return self.path

    @property
    def files(self) -> Sequence[Path]:
        """The .onnx file, then every file beside it that holds a tensor."""
        return (Path(os.path.realpath(self.path)), *self._tensors.used)  # as the streams name them

    def graph(self) -> Graph:
        """The file's graph: functions inlined, weights as streams, constants above 1 KiB as initializers, what nobody reads left out."""
        return Graph(self._built[0].clone(), self._state)

    def accounting(self) -> Mapping[str, Any]:
        """{"used": [names], "dropped": [{"name", "reason"}], "parameters": elements of all that is used}"""
        model, dropped = self._built
        used = [value for graph in _graphs(model) for value in graph.initializers.values()]
        return {
            "used": sorted({str(value.name) for value in used}),
            "dropped": [
                *({"name": name, "reason": NOT_READ} for name in dropped),
                *({"name": name, "reason": CUT_OFF} for name in sorted(self._cut_off.tensors)),
            ],
            "parameters": sum(math.prod(value.const_value.shape.numpy()) for value in used if value.const_value is not None),
        }

    def original(self) -> Original:
        """The untouched file in plain onnxruntime, as far as it is taken. raises: as OnnxOriginal"""
        from porting.original_onnx import OnnxOriginal

        return OnnxOriginal(self.path, cut=self.cut)

    def close(self) -> None:
        """Close the files. Streams of its graphs give nothing after that. Safe to call twice."""
        self._tensors.close()

    # --- inputs, outputs, state -------------------------------------------------------------------------------------

    def _input_specs(self) -> tuple[tuple[TensorSpec, ...], list[str]]:
        """Inputs, and the names of those that have an initializer and so are constants."""
        graph = self._proto.graph
        constants = {tensor.name for tensor in graph.initializer}
        specs = []
        for value in graph.input:
            if value.name not in constants:
                where = f"{self.path}, input {value.name!r}"
                spec = _spec(value, where)
                if spec is None or (not spec.dtype.startswith("sequence") and not value.type.tensor_type.HasField("shape")):
                    raise UnsupportedModel(
                        f"input {value.name!r} has no {'dtype' if spec is None else 'rank'}",
                        where=where,
                        next="export the model again with the shapes of its inputs; free dimensions may have names",
                    )
                specs.append(spec)
        return tuple(specs), [value.name for value in graph.input if value.name in constants]

    def _output_specs(self) -> tuple[tuple[TensorSpec, ...], list[str]]:
        """Outputs, and the names of those whose rank nobody knows.

        A file may say nothing of an output's shape, or something wrong, which onnxruntime only warns of. So what follows from the inputs
        comes first, and the file's word where nothing follows.
        """
        inferred = self._inferred()
        symbols = {dim for spec in self.inputs for dim in spec.shape if isinstance(dim, str)}
        specs, unknown = [], []
        for value in self._proto.graph.output:
            where = f"{self.path}, output {value.name!r}"
            spec, ranked = _output_spec(inferred.get(value.name, value), value, symbols, where)
            if self.cut.outputs and not ranked:  # a value of the graph, of which the file need not say what it is
                found = self._in_onnxruntime(value)
                spec, ranked = (spec, ranked) if found is None else _output_spec(found, value, symbols, where)
            if spec is None:
                raise UnsupportedModel(f"output {value.name!r} has no dtype", where=where, next="export the model again")
            if not ranked:
                unknown.append(value.name)
            specs.append(spec)
        return tuple(specs), unknown

    def _inferred(self) -> dict[str, onnx.ValueInfoProto]:
        """Output name -> what ONNX's shape inference finds from the inputs alone; nothing where it cannot go on."""
        model = onnx.ModelProto()
        model.CopyFrom(self._proto)
        del model.graph.value_info[:]
        for value in model.graph.output:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
        try:
            found = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        except Exception as error:  # a binding that raises what it likes
            self._require_taken(str(error).strip())
            try:
                found = onnx.shape_inference.infer_shapes(model, data_prop=True)
            except Exception:  # a missing shape is no fault of the file
                return {}
        return {value.name: value for value in found.graph.output}

    def _require_taken(self, why: str) -> None:
        """Where dtypes or shapes of a graph contradict each other, onnxruntime decides: it takes what ONNX's inference is too strict for.

        raises: CheckpointError
        """
        from porting.original_onnx import open_untouched

        try:
            open_untouched(read_proto(self.path, self.cut).SerializeToString(), weights_folder(self.path))
        except PortingError as error:
            lacks_kernel = type(error.__cause__).__name__ == "NotImplemented"
            if lacks_kernel or isinstance(error, OutOfResources):  # it is a graph, that this machine or this runtime cannot run
                return
            said = why if isinstance(error, DeviceUnavailable) else error.what
            raise CheckpointError(
                f"the graph contradicts itself: {printable(said, 400)}", where=str(self.path), next="export the model again"
            ) from error

    def _in_onnxruntime(self, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto | None:
        """What onnxruntime says of an output behind operators of its own; weights are read for that. None where it takes no such file"""
        from porting.original_onnx import open_untouched, spec_of

        try:
            session, _ = open_untouched(read_proto(self.path, self.cut).SerializeToString(), weights_folder(self.path))
            spec = next(spec_of(found) for found in session.get_outputs() if found.name == value.name)
            element = ir.DataType.from_numpy(dtype_of(spec.dtype))
        except (PortingError, TypeError):
            return None
        return onnx.helper.make_tensor_value_info(value.name, element.value, spec.shape)

    def _state_spec(self, state: Mapping[str, str]) -> StateSpec:
        """raises: UsageError for a name that is none, and for a pair whose dtypes or shapes differ"""
        inputs, outputs = {s.name: s for s in self.inputs}, {s.name: s for s in self.outputs}
        for source, target in state.items():
            where = f"state {source}={target}"
            for name, known, kind in ((source, inputs, "input"), (target, outputs, "output")):
                if name not in known:
                    raise UsageError(f"the model has no {kind} {name!r}", where=where, next=nearest(name, list(known)))
            a, b = inputs[source], outputs[target]
            ranked = target not in self._unranked
            misfit = len(a.shape) != len(b.shape) or any(
                isinstance(m, int) and isinstance(n, int) and m != n for m, n in zip(a.shape, b.shape, strict=True)
            )
            if a.dtype != b.dtype or "(" in a.dtype or a.dtype == "string" or (ranked and misfit):
                raise UsageError(
                    f"{b} cannot be the next value of {a}",
                    where=where,
                    next="a pair agrees in dtype, rank and fixed dimensions",
                )
        if len(set(state.values())) != len(state):
            raise UsageError("one output is the next value of two inputs", where="state", next="name each output once")
        fed = [spec for spec in self.inputs if spec.name not in state]
        pairs = [(inputs[source], outputs[target]) for source, target in state.items()]
        return StateSpec(tuple(StatePair(a.name, b.name, None, appended_axis(self._proto.graph, a, b, fed)) for a, b in pairs))

    # --- the graph --------------------------------------------------------------------------------------------------

    @cached_property
    def _built(self) -> tuple[ir.Model, list[str]]:
        """The graph, and the names of the initializers that it does without."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        model = _inlined(proto, self.path)
        model.ir_version = max(model.ir_version, MIN_IR)
        self._set_interface(model)
        dropped: list[str] = []
        _rename_shadows(model.graph, set())
        for graph in _graphs(model):
            self._take_weights(graph, inside=graph is not model.graph)
            dropped += _drop_unread(graph)
        return model, sorted(dropped)

    def _set_interface(self, model: ir.Model) -> None:
        """Inputs without those that are constants, outputs as in `outputs`; nothing that the file claims of shapes in between.

        Onnxruntime checks the dtypes of such claims and merely warns of wrong shapes, so a pass may not build on them.
        """
        graph = model.graph
        for value in [v for v in graph.inputs if v.name in self._dropped_inputs]:
            graph.inputs.remove(value)
        outside = {id(v) for g in _graphs(model) for v in (*g.inputs, *g.outputs)}
        for node in graph.all_nodes():
            for output in node.outputs:
                if id(output) not in outside:
                    output.shape = None
        for value, spec in zip(graph.outputs, self.outputs, strict=True):
            value.type = _type(spec)
            if isinstance(value.type, ir.TensorType):
                value.shape = None if spec.name in self._unranked else ir.Shape(spec.shape)

    def _take_weights(self, graph: ir.Graph, inside: bool) -> None:
        """Large tensors as streams, those of Constant nodes as initializers; whatever lies outside the message is found."""
        for value in graph.initializers.values():
            assert value.const_value is not None and value.name is not None
            value.const_value = self._tensors.in_graph(value.const_value, value.name, inside)
            value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape.numpy())
        for node in list(graph):
            for attribute in list(node.attributes.values()):
                if attribute.type != ir.AttributeType.TENSOR or attribute.is_ref():
                    continue
                output = node.outputs[0]
                tensor = self._tensors.in_graph(attribute.as_tensor(), str(output.name), inside)
                if node.op_type == "Constant" and isinstance(tensor, ir.LazyTensor) and not output.is_graph_output():
                    _constant_as_initializer(graph, node, tensor)
                elif tensor is not attribute.value:
                    held = ir.Tensor(tensor.numpy(), dtype=tensor.dtype) if isinstance(tensor, ir.LazyTensor) else tensor
                    node.attributes[attribute.name] = ir.AttrTensor(attribute.name, held)


def _read(files: TensorFiles, cut: Cut) -> tuple[onnx.ModelProto, CutOff, int]:
    """The message of a file as far as it is taken, checked; what went; the IR version that was written. raises: as `read_proto`"""
    model = parse_model(files.path)
    written_ir = model.ir_version
    gone = CutOff()
    if cut and model.graph.output:
        put_in_order(model)
        if model.functions and not knows(model.graph, cut.outputs):  # perhaps a value inside one
            model = ir.to_proto(_inlined(checked(model, files), files.path))
        gone = cut_off(model, cut, files.path)
    return checked(model, files), gone, written_ir


def _inlined(proto: onnx.ModelProto, path: Path) -> ir.Model:
    """A checked message without functions: the nodes that come out of them have names of their own. Changes `proto`.

    raises: UnsupportedModel
    """
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    for function in proto.functions:  # onnx_checks made sure that the operators are the same ones
        for entry in function.opset_import:
            entry.version = versions.get(standard(entry.domain), entry.version)
    try:
        model = ir.from_proto(proto)
        own = list(model.graph.all_nodes())
        model = InlinePass()(model).model
    except Exception as error:  # onnx-ir's own: whatever it does not take of a message from outside
        raise UnsupportedModel(
            f"{path.name} cannot be read as a graph: {_short(error)}", where=str(path), next=FETCH_AGAIN
        ) from error
    _name_inlined(model, own)
    return model


def _constant_as_initializer(graph: ir.Graph, node: ir.Node, tensor: ir.LazyTensor) -> None:
    old = node.outputs[0]
    new = ir.Value(name=old.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    ir.convenience.replace_all_uses_with(old, new)
    graph.remove(node, safe=True)
    graph.register_initializer(new)


def _drop_unread(graph: ir.Graph) -> list[str]:
    """Take out the initializers that nothing reads; their names."""
    unread = [v for v in graph.initializers.values() if not v.uses() and not v.is_graph_output()]
    for value in unread:
        del graph.initializers[str(value.name)]
    return [str(value.name) for value in unread]


def _rename_shadows(graph: ir.Graph, outer: set[str]) -> None:
    """Give values of subgraphs names that no graph around them has: legal to share, and a trap for a pass that moves a node."""
    values = [*graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs)]
    names = {str(v.name) for v in values} | outer
    for value in {id(v): v for v in values if v.name and v.name in outer}.values():
        number, old = 2, value.name
        while f"{old}_{number}" in names:
            number += 1
        names.add(f"{old}_{number}")
        value.name = f"{old}_{number}"
    for node in graph:
        for attribute in node.attributes.values():
            for inner in _subgraphs(attribute):
                _rename_shadows(inner, names)


def _subgraphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []


def _name_inlined(model: ir.Model, own: Sequence[ir.Node]) -> None:
    """Names for the nodes that came out of functions, where the inliner gave one that a subgraph has. The graph's own keep theirs."""
    kept = {id(node) for node in own}
    seen = {str(node.name) for node in own}
    for node in model.graph.all_nodes():
        if id(node) not in kept:
            name, number = str(node.name), 1
            while name in seen:
                number += 1
                name = f"{node.name}_{number}"
            node.name = name
            seen.add(name)


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    yield from model.graph.subgraphs()


def _tensors_inside(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Of attributes, and of the graphs in them."""
    for owner in bodies(proto.graph, *proto.functions):
        for node in owner.node:
            for attribute in node.attribute:
                yield from [attribute.t] if attribute.HasField("t") else attribute.tensors
        if owner is not proto.graph and isinstance(owner, onnx.GraphProto):
            yield from owner.initializer


def _spec(value: onnx.ValueInfoProto, where: str) -> TensorSpec | None:
    """An input or output as a spec; None when its dtype is not given. raises: UnsupportedModel for what is no tensor or sequence of them"""
    kind = value.type
    which = kind.WhichOneof("value")
    sequence = which == "sequence_type"
    if sequence:
        kind = kind.sequence_type.elem_type
        which = kind.WhichOneof("value")
    if which is None:
        return None
    if which != "tensor_type":
        what = f"{'a sequence of ' if sequence else ''}{which.removesuffix('_type').replace('_', ' ')}s"
        raise UnsupportedModel(
            f"{value.name!r} is of a type that is not covered: {what}",
            where=where,
            next="tensors and sequences of tensors are; let the model give or take those",
        )
    dtype = {d.value: d for d in ir.DataType}.get(kind.tensor_type.elem_type)
    if dtype is None:
        raise CheckpointError(
            f"{value.name!r} has the unknown dtype {kind.tensor_type.elem_type}", where=where, next=FETCH_AGAIN
        )
    if dtype == ir.DataType.UNDEFINED:
        return None
    name = "string" if dtype == ir.DataType.STRING else dtype.numpy().name
    shape = _dims(kind.tensor_type) or ()
    return TensorSpec(value.name, f"sequence({name})" if sequence else name, shape)


def _output_spec(
    follows: onnx.ValueInfoProto, said: onnx.ValueInfoProto, symbols: set[str], where: str
) -> tuple[TensorSpec | None, bool]:
    """An output as it follows from the inputs, as the file says where nothing follows; whether its rank is known, () standing for one that is not.

    symbols: see `_merged`. raises: UnsupportedModel
    """
    spec = _spec(follows, where) or _spec(said, where)
    if spec is None or spec.dtype.startswith("sequence"):
        return spec, spec is not None
    shape = _merged(follows.type.tensor_type, said.type.tensor_type, symbols)
    return TensorSpec(spec.name, spec.dtype, shape or ()), shape is not None


def _type(spec: TensorSpec) -> ir.TypeProtocol:
    """The type of a spec's values."""
    name = spec.dtype.removeprefix("sequence(").removesuffix(")")
    element = ir.TensorType(ir.DataType.STRING if name == "string" else ir.DataType.from_numpy(dtype_of(name)))
    return ir.SequenceType(element) if spec.dtype.startswith("sequence(") else element


def _dims(tensor: onnx.TypeProto.Tensor) -> tuple[int | str | None, ...] | None:
    """None for an unknown rank."""
    if not tensor.HasField("shape"):
        return None
    fields = [(dim, dim.WhichOneof("value")) for dim in tensor.shape.dim]
    return tuple(None if which is None else getattr(dim, which) for dim, which in fields)


def _merged(
    follows: onnx.TypeProto.Tensor, said: onnx.TypeProto.Tensor, symbols: set[str]
) -> tuple[int | str | None, ...] | None:
    """The shape that follows from the inputs, with what the file says where nothing follows; None for an unknown rank.

    symbols: the inputs' names of dimensions; the inference makes up others, which say nothing
    """
    first, second = _dims(follows), _dims(said)
    if first is None:
        return second
    first = tuple(dim if isinstance(dim, int) or dim in symbols else None for dim in first)
    if second is None or len(first) != len(second):
        return first
    return tuple(b if a is None else a for a, b in zip(first, second, strict=True))


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
