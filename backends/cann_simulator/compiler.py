"""The simulated compiler: an ONNX model and atc's options become a .om of the simulator, or are refused as the rule base says.

    options -> shapes -> rules: refused? -> what the compiler misreads -> integer layers -> arithmetic of the mode -> sizes of every gear -> .om

Not modelled: fusion, formats of the device, tuning, time. A code that no document gives for a case is marked so (Refused.documented).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from porting.ascend.aipp_text import parse_aipp
from porting.ascend.checking import stored_precision
from porting.ascend.graph_facts import GraphFacts, facts_of
from porting.ascend.probe_facts import followed_by_simulator
from porting.ascend.rules import Finding, judge
from porting.ascend.soc import Soc, find_soc
from porting.backends.cann_simulator.arithmetic import (
    JUDGED_AS,
    SHOWS,
    exceptions_of,
    mode_of,
    with_arithmetic,
)
from porting.backends.cann_simulator.integer_layers import has_integer_layers, lower_integer_layers
from porting.backends.cann_simulator.machine import Machine, Refused
from porting.backends.cann_simulator.misread import GUESSED, MISREAD, misread
from porting.backends.cann_simulator.om_file import Aipp, Arithmetic, OmHeader, write_om
from porting.backends.cann_simulator.om_graph import (
    CANNOT_LOAD,
    OmGraph,
    Types,
    forget_shapes,
    om_graph,
    set_shapes,
    types_of,
)
from porting.backends.cann_simulator.om_sizes import InOut, declared_dims, dims_of_outputs, gears_of, memory_of, require_sound
from porting.backends.cann_simulator.options import Shapes, atc_options, files_of, refused, shapes_from
from porting.backends.cann_simulator.placement import ai_cpu_nodes
from porting.errors import InputError, UsageError
from porting.types import Graph

CODE_SAID = ("documented", "read in source")  # confidences with which a rule's code is not a guess
UNKNOWN_CODE = "E19999"
NAMED = 5  # nodes that a refusal names
TOO_PRECISE = "a quantised model does not go with force_fp32 or origin: neither speed nor precision would be had"
TOO_PRECISE_MODES = ("origin", "cube_fp16in_fp32out")
COMMON_GEAR = "gear"  # name of a dimension that all gears share


def compile_onnx(model: bytes, options: Mapping[str, str], machine: Machine, folder: Path | None = None) -> bytes:
    """
    model:   a serialised ModelProto
    options: atc's, or the graph engine's (ge.*)
    folder:  what the model's external data and the files of the options are relative to; None: a model in memory
    returns: the .om
    raises:  Refused
    """
    compilation = prepare(om_graph(model, folder), options, machine, folder)
    require_accepted(compilation.findings)
    return _finished(compilation)


def findings_of(model: bytes, options: Mapping[str, str], machine: Machine, folder: Path | None = None) -> Sequence[Finding]:
    """What the compiler has to say of a model, nothing compiled (--mode=3). raises: Refused"""
    return prepare(om_graph(model, folder), options, machine, folder).findings


@dataclass(frozen=True, eq=False)
class Compilation:
    """A model whose options were read and which was judged."""

    graph: OmGraph
    options: Mapping[str, str]
    machine: Machine
    files: Mapping[str, str]
    shapes: Shapes
    mode: tuple[str, str]
    precision: str
    findings: Sequence[Finding]
    soc: Soc


def prepare(graph: OmGraph, given: Mapping[str, str], machine: Machine, folder: Path | None) -> Compilation:
    """raises: Refused for options that do not fit the model"""
    options = atc_options(given, machine)
    try:
        soc = machine.chip() if options["soc_version"] == machine.soc else find_soc(options["soc_version"])
    except UsageError as error:
        raise refused(error) from error
    files = files_of(options, folder)
    mode = mode_of(options)
    in_memory = folder is None
    if in_memory:
        _drop_unused_imports(graph.proto)
    _cut(graph.proto, options)
    shapes = shapes_from(options)
    _set_inputs(graph.proto, shapes)
    facts = replace(_facts(graph.proto), external_keys=graph.external_keys)
    precision = _precision(graph.proto, mode[0], facts)
    return Compilation(graph, options, machine, files, shapes, mode, precision, _judged(facts, soc, machine, precision), soc)


def require_accepted(findings: Iterable[Finding]) -> None:
    """raises: Refused with the code of the first rule that refuses, naming its nodes"""
    refusing = [f for f in findings if f.rule.effect == "refuses"]
    if not refusing:
        return
    rule = next((f.rule for f in refusing if f.rule.code), refusing[0].rule)
    nodes = [f for f in refusing if f.rule.id == rule.id]
    shown = ", ".join(f"{f.node or 'the graph'} ({f.op})" if f.op else "the graph" for f in nodes[:NAMED])
    more = f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else ""
    others = len({f.rule.id for f in refusing}) - 1
    said = f"; {others} other rules refuse it too" if others else ""
    text = f"{rule.code or UNKNOWN_CODE}: {shown[:600]}{more}: {rule.says} [{rule.id}]{said}"
    raise Refused(CANNOT_LOAD, text, rule.code is not None and rule.confidence in CODE_SAID)


# --- the way ------------------------------------------------------------------------------------------------------


def _finished(made: Compilation) -> bytes:
    graph, soc = made.graph, made.soc
    nodes = len(graph.proto.graph.node)
    read = _read(made)
    specs = read.specs
    gears, kind = gears_of(graph.proto, made.shapes, specs)
    dims = dims_of_outputs(graph.proto, specs)
    largest = max((gear.inputs for gear in gears), key=lambda dims: sum(map(math.prod, dims)), default=())
    weight_bytes, work_bytes = memory_of(graph.proto, made.precision, largest, specs)
    aipp = _aipp(made, specs)
    inputs, outputs, gears = specs.described(dims, gears, aipp)
    arithmetic = with_arithmetic(
        graph,
        read.types,
        soc,
        made.mode,
        exceptions_of(made.files, made.mode[0]),
        in_float=read.in_float,
        clips=made.options.get("is_weight_clip", "1") != "0",
    )
    header = OmHeader(
        soc.name,
        made.machine.cann,
        {k: str(v)[:4096] for k, v in made.options.items()},
        inputs,
        outputs,
        kind,
        gears,
        aipp,
        _with_ignored(arithmetic, read.ignored),
        nodes,
        ai_cpu_nodes(made.findings),
        weight_bytes,
        work_bytes,
    )
    return write_om(header, *graph.packed())


@dataclass(frozen=True, eq=False)
class _Read:
    """The graph as the compiler reads it.

    in_float: nodes that compute in float32 whatever the mode is
    ignored:  node and rule of what it did not read
    """

    specs: InOut
    types: Types
    in_float: frozenset[str]
    ignored: Sequence[tuple[str, str]]


def _read(made: Compilation) -> _Read:
    """Change the graph to what the compiler reads. raises: Refused where that is no graph"""
    graph, body = made.graph, made.graph.proto.graph
    opset = max((e.version for e in graph.proto.opset_import if e.domain in ("", "ai.onnx")), default=0)
    ignored = misread(graph, types_of(graph), opset, [f for f in made.findings if f.rule.effect == "wrong"])
    names = {tensor.name for tensor in body.initializer}
    fed = [(v.name, v.type.tensor_type.elem_type, declared_dims(v)) for v in body.input if v.name not in names]
    in_float = lower_integer_layers(graph) if has_integer_layers(graph.proto) else frozenset()
    graph.take_out()
    graph.drop_unread()
    if ignored or in_float:
        forget_shapes(body)
    require_sound(graph.proto, {name: dims for name, _, dims in fed})
    types = types_of(graph)
    _require_types(graph.proto, types)
    given = [(value.name, types.get(value.name, (0, None))[0]) for value in body.output]
    return _Read(InOut(fed, given, made.options), types, in_float, ignored)


def _with_ignored(arithmetic: Arithmetic, ignored: Sequence[tuple[str, str]]) -> Arithmetic:
    guessed = dict.fromkeys(GUESSED[rule] for _, rule in ignored if rule in GUESSED)
    return replace(arithmetic, ignored=tuple(ignored), guessed=(*arithmetic.guessed, *guessed))


def _precision(proto: onnx.ModelProto, mode: str, facts: GraphFacts) -> str:
    if has_integer_layers(proto):
        if mode in TOO_PRECISE_MODES:
            raise Refused(CANNOT_LOAD, f"E10055: {TOO_PRECISE}")
        return "w8a8"
    return stored_precision(facts) if mode == "origin" else JUDGED_AS[mode]


def _facts(proto: onnx.ModelProto) -> GraphFacts:
    """What rules ask. raises: Refused for a graph that no reader takes"""
    import onnx_ir as ir

    from porting.converters.passes.infer_shapes import infer_shapes

    try:
        model = ir.serde.deserialize_model(proto)
        with suppress(
            Exception
        ):  # onnx's own classes: rules speak first, `require_sound` tells of shapes that do not hang together
            infer_shapes.change(model)
        return facts_of(Graph(model))
    except Exception as error:  # attributes of another type, tensors of another size: what protobuf takes and no ONNX is
        raise Refused(CANNOT_LOAD, f"E10041: the model cannot be loaded: {str(error)[:200]}") from error


def _judged(facts: GraphFacts, soc: Soc, machine: Machine, precision: str) -> Sequence[Finding]:
    try:
        found = judge(facts, soc, machine.cann, precision=precision)
    except (TypeError, ValueError, KeyError, IndexError) as error:  # an attribute that is of another type than ONNX says
        raise Refused(CANNOT_LOAD, f"E11010: an attribute of the model is none: {str(error)[:200]}") from error
    probed = machine.probed() if soc.name == machine.soc else None
    return list(followed_by_simulator(found, probed, frozenset(MISREAD), SHOWS))


def _drop_unused_imports(proto: onnx.ModelProto) -> None:
    """onnxruntime writes every domain it knows into the models that it hands over, and devices take these: only what nodes name counts."""
    named = {"ai.onnx" if node.domain == "" else node.domain for node in proto.graph.node} | {"ai.onnx"}
    kept = [e for e in proto.opset_import if (e.domain or "ai.onnx") in named]
    if kept:
        del proto.opset_import[:]
        proto.opset_import.extend(kept)


def _cut(proto: onnx.ModelProto, options: Mapping[str, str]) -> None:
    """--out_nodes: "node:0;other:1", or names of outputs. raises: Refused, E10016"""
    if "out_nodes" not in options:
        return
    nodes = {node.name: node for node in proto.graph.node}
    values = {name for node in proto.graph.node for name in node.output} | {v.name for v in proto.graph.input}
    wanted = []
    for part in filter(None, options["out_nodes"].split(";")):
        name, _, place = part.rpartition(":")
        node = nodes.get(name)
        if node is not None and place.isdigit() and int(place) < len(node.output):
            wanted.append(node.output[int(place)])
        elif part in values:
            wanted.append(part)
        else:
            raise Refused(CANNOT_LOAD, f"E10016: --out_nodes: {part[:200]!r} is no node of the model", True)
    known = {v.name: v for v in (*proto.graph.value_info, *proto.graph.output)}
    kept = [known.get(name) or onnx.ValueInfoProto(name=name) for name in wanted]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)


def _set_inputs(proto: onnx.ModelProto, shapes: Shapes) -> None:
    """What the options say of inputs. raises: Refused for names that are none, other ranks, and free dimensions that nobody names"""
    names = {tensor.name for tensor in proto.graph.initializer}
    inputs = {value.name: value for value in proto.graph.input if value.name not in names}
    for name, dims in shapes.named.items():
        if name not in inputs:
            raise Refused(CANNOT_LOAD, f"E10016: --input_shape: {name[:200]!r} is no input of the model", True)
        kind = inputs[name].type.tensor_type
        if kind.HasField("shape") and len(kind.shape.dim) != len(dims):
            raise Refused(
                CANNOT_LOAD,
                f"E10049: --input_shape: {name[:200]!r} has {len(dims)} dims, the model's input {len(kind.shape.dim)}",
                True,
            )
    free = [
        n
        for n, v in inputs.items()
        if n not in shapes.named and -1 in declared_dims(v) and v.type.tensor_type.HasField("shape")
    ]
    if free:
        raise Refused(CANNOT_LOAD, f"E10007: --input_shape is needed: {free[0][:200]!r} has free dimensions")
    set_shapes(proto, shapes.named, COMMON_GEAR if shapes.kind == "batch" else "")
    forget_shapes(proto.graph)


def _require_types(proto: onnx.ModelProto, types: Types) -> None:
    unknown = [name for node in proto.graph.node for name in node.output if name and name not in types]
    if unknown:
        raise Refused(CANNOT_LOAD, f"E19999: the dtype of {unknown[0][:200]!r} is not known, and so not how it is rounded")


def _aipp(made: Compilation, specs: InOut) -> Aipp | None:
    """raises: Refused, E10052"""
    if "insert_op_conf" not in made.files:
        return None
    if made.shapes.kind == "dims":
        raise Refused(CANNOT_LOAD, "E10055: AIPP does not go with dynamic_dims", True)
    channels = tuple(max(dims[1], 0) if len(dims) == 4 else 0 for _, _, dims in specs.inputs)
    text = made.files["insert_op_conf"]
    try:
        parse_aipp(text, channels)
    except InputError as error:
        raise Refused(CANNOT_LOAD, f"E10052: --insert_op_conf: {error.what}", True) from error
    return Aipp(text, channels)
