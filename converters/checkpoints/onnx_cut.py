"""Cutting a message of ONNX: only the outputs that are asked for, inputs that are constants, and nothing that nobody needs any more.

Done before the message is checked, so that what is cut off may be what nothing here knows: an operator of somebody's own, random numbers,
missing weights. No weight is read.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto

from porting.cuts import Cut, Number, spelled
from porting.errors import UsageError
from porting.verdict import printable

from .onnx_order import bodies, standard, subgraphs_of

SHOWN = 5  # names that an error lists


@dataclass(frozen=True)
class CutOff:
    """What went: inputs that nothing needs any more, and weights."""

    inputs: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()


def knows(graph: onnx.GraphProto, outputs: Iterable[str]) -> bool:
    """Whether every name is one of the graph's own values or nodes."""
    names = {name for node in graph.node for name in (node.name, *node.output)}
    return all(name in names for name in outputs)


def cut_off(model: onnx.ModelProto, cut: Cut, path: Path) -> CutOff:
    """Cut a message in place, whose nodes have names. raises: UsageError for names that are none, and inputs that cannot be a number"""
    graph = model.graph
    where = str(path)
    # the outputs first: names that are wrong are wrong with or without constants
    outputs = [_value_named(graph, name, where) for name in cut.outputs]
    twice = next((name for name in outputs if outputs.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"the output {printable(twice, 80)!r} is named twice", where=where, next="name each output once")
    for name, number in cut.fixed.items():
        _fix(model, name, number, where)
    return _keep_only(model, outputs, cut.fixed, where) if outputs else CutOff()


# --- outputs ------------------------------------------------------------------------------------------------------


def _value_named(graph: onnx.GraphProto, name: str, where: str) -> str:
    """The value that a user means. raises: UsageError saying why there is none, with the nearest names"""
    made = {output for node in graph.node for output in node.output if output}
    if name in made:
        return name
    shown = printable(name, 80)
    nodes = {node.name: node for node in graph.node}
    if name in nodes:
        own = [output for output in nodes[name].output if output]
        if len(own) == 1:
            return own[0]
        raise UsageError(f"node {shown!r} has {len(own)} outputs", where=where, next=f"name one of them: {_some(own)}")
    given = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    given |= {t.values.name for t in graph.sparse_initializer}
    if name in given:
        kind = "an input" if any(value.name == name for value in graph.input) else "a weight"
        raise UsageError(
            f"{shown!r} is {kind} of the graph: nothing computes it", where=where, next=_nearest(name, made | nodes.keys())
        )
    for node in graph.node:
        for body in bodies(*subgraphs_of(node)):
            if any(name in (inner.name, *inner.output) for inner in body.node):
                raise UsageError(
                    f"{shown!r} is inside the {node.op_type} {printable(node.name, 80)!r}, and a graph cannot end there",
                    where=where,
                    next=f"name an output of that node: {_some([o for o in node.output if o])}",
                )
    raise UsageError(f"the graph has no value {shown!r}", where=where, next=_nearest(name, made | nodes.keys()))


def _keep_only(model: onnx.ModelProto, outputs: list[str], fixed: Collection[str], where: str) -> CutOff:
    """End the graph at `outputs`, and take out what they do not need. raises: UsageError where nothing that is fed reaches them"""
    graph = model.graph
    needed, kept = _needed(graph, outputs)
    stated = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    weights = [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
    inputs = [value.name for value in graph.input if value.name not in set(weights)]
    if not needed & set(inputs):
        also = f" once {_some(list(fixed))} is fixed" if fixed else ""
        raise UsageError(
            f"{_some(outputs)}: nothing that is fed reaches what is left{also}",
            where=where,
            next="name outputs that depend on an input",
        )
    inner = [tensor.name for i, node in enumerate(graph.node) if i not in kept for tensor in _weights_inside(node)]
    ends = [stated.get(name, onnx.ValueInfoProto(name=name)) for name in outputs]
    held = onnx.GraphProto(node=[node for i, node in enumerate(graph.node) if i in kept], output=ends)
    held.input.extend(value for value in graph.input if value.name in needed)
    held.initializer.extend(t for t in graph.initializer if t.name in needed)
    held.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in needed)
    held.value_info.extend(value for value in graph.value_info if value.name in needed - set(outputs))
    for name in ("node", "input", "output", "initializer", "sparse_initializer", "value_info"):
        graph.ClearField(name)  # type: ignore[arg-type]
        getattr(graph, name).extend(getattr(held, name))
    _drop_unused_functions(model)
    gone = [name for name in weights if name not in needed]
    return CutOff(tuple(name for name in inputs if name not in needed), (*gone, *inner))


def _needed(graph: onnx.GraphProto, outputs: Iterable[str]) -> tuple[set[str], set[int]]:
    """Names of the values that outputs need, themselves too, and numbers of the nodes. Of a value that is made twice both: it is refused later."""
    makers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            makers.setdefault(name, []).append(index)
    pending, needed, kept = list(outputs), set[str](), set[int]()
    while pending:
        name = pending.pop()
        if name in needed:
            continue
        needed.add(name)
        for index in makers.get(name, ()):
            if index not in kept:
                kept.add(index)
                needed.update(filter(None, graph.node[index].output))
                pending += reads_of(graph.node[index])
    return needed, kept


def reads_of(node: onnx.NodeProto) -> set[str]:
    """Values of the graph around it that a node reads, those that its bodies read too."""
    found = set(filter(None, node.input))
    for body in subgraphs_of(node):
        own = (
            {value.name for value in body.input}
            | {t.name for t in body.initializer}
            | {t.values.name for t in body.sparse_initializer}
        )
        own |= {name for inner in body.node for name in inner.output}
        found |= set[str]().union(*(reads_of(inner) for inner in body.node)) - own  # what a body gives it makes itself
    return found


def _weights_inside(node: onnx.NodeProto) -> Iterable[onnx.TensorProto]:
    return [tensor for body in bodies(*subgraphs_of(node)) if isinstance(body, onnx.GraphProto) for tensor in body.initializer]


def _drop_unused_functions(model: onnx.ModelProto) -> None:
    """Functions that no node calls any more, and domains that no node is of: nobody has to know them."""
    functions = {(standard(f.domain), f.name): f for f in model.functions}
    called: dict[tuple[str, str], None] = {}
    domains = {""}
    pending: list[Any] = [model.graph]
    while pending:
        for owner in bodies(pending.pop()):
            for node in owner.node:
                key = (node.domain, node.op_type)
                domains.add(node.domain)
                if key in functions and key not in called:
                    called[key] = None
                    pending += [f for f in model.functions if (f.domain, f.name) == key]  # overloads too
    kept = onnx.ModelProto(
        functions=[f for f in model.functions if (f.domain, f.name) in called],
        opset_import=[entry for entry in model.opset_import if standard(entry.domain) in domains],
    )
    for name in ("functions", "opset_import"):
        model.ClearField(name)  # type: ignore[arg-type]
        getattr(model, name).extend(getattr(kept, name))


# --- fixed inputs -------------------------------------------------------------------------------------------------


def _fix(model: onnx.ModelProto, name: str, number: Number, where: str) -> None:
    """Make an input a constant of its own dtype. raises: UsageError"""
    graph = model.graph
    value = next((value for value in graph.input if value.name == name), None)
    if value is None:
        raise UsageError(
            f"the model has no input {printable(name, 80)!r}", where=where, next=_nearest(name, {v.name for v in graph.input})
        )
    here = f"{where}, input {printable(name, 80)!r}"
    tensor = TensorProto(name=name)
    tensor.CopyFrom(_constant(value, number, here))
    others = [v for v in graph.input if v.name != name]
    weights = [t for t in graph.initializer if t.name != name]  # a default of the file, which is another number now
    held = onnx.GraphProto(input=others, initializer=weights)
    for kept in ("input", "initializer"):
        graph.ClearField(kept)  # type: ignore[arg-type]
        getattr(graph, kept).extend(getattr(held, kept))
    # a node, no initializer: files before IR 4 let a caller feed every initializer
    graph.node.insert(0, onnx.helper.make_node("Constant", [], [name], name=_free_name(graph, name), value=tensor))


def _free_name(graph: onnx.GraphProto, name: str) -> str:
    taken = {node.name for owner in bodies(graph) for node in owner.node}
    found = f"{name}/fixed"
    while found in taken:
        found += "_"
    return found


def _constant(value: onnx.ValueInfoProto, number: Number, where: str) -> TensorProto:
    """raises: UsageError for an input that is no number, and a number that its dtype cannot hold"""
    kind = value.type.tensor_type
    known = {d.value: d for d in ir.DataType}
    dtype = known.get(kind.elem_type, ir.DataType.UNDEFINED)
    if not value.type.HasField("tensor_type") or dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        raise UsageError("only an input of numbers can be fixed", where=where, next="leave it an input")
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim]
    if not kind.HasField("shape") or any(dim != 1 for dim in dims):
        size = f"[{', '.join(map(str, dims))}]" if kind.HasField("shape") else "of unknown rank"
        raise UsageError(
            f"only an input of one number can be fixed, and this is {size}",
            where=where,
            next="leave it an input, or export the model with it as a constant",
        )
    array = np.asarray(_held(number, dtype, where)).reshape([1] * len(dims))
    return ir.to_proto(ir.Tensor(array, dtype=dtype))


def _held(number: Number, dtype: ir.DataType, where: str) -> np.ndarray:
    """A number in a dtype. raises: UsageError where it is of another kind, or out of range"""
    name = dtype.name.lower()
    fits = isinstance(number, bool) if dtype == ir.DataType.BOOL else not isinstance(number, bool)
    if dtype.is_integer():
        fits = fits and isinstance(number, int)
    if not fits or dtype.name.startswith("COMPLEX"):
        takes = "true or false" if dtype == ir.DataType.BOOL else "a whole number" if dtype.is_integer() else "a number"
        raise UsageError(f"{spelled(number)} is no {name}", where=where, next=f"the input takes {takes}")
    target = dtype.numpy()
    try:
        with np.errstate(all="ignore"):
            held = np.asarray(number).astype(target) if not dtype.is_integer() else _integer(int(number), target)
        if dtype == ir.DataType.BOOL or dtype.is_integer() or np.isfinite(held.astype(np.float64)):
            return held
    except OverflowError:
        pass
    raise UsageError(f"{spelled(number)} is out of range for {name}", where=where, next="the input cannot hold it")


def _integer(number: int, target: np.dtype) -> np.ndarray:
    """raises: OverflowError"""
    held = np.asarray(number & 0xFFFFFFFFFFFFFFFF, np.uint64).astype(target)
    if int(held) != number:
        raise OverflowError
    return held


# --- words --------------------------------------------------------------------------------------------------------


def _nearest(name: str, known: Collection[str]) -> str:
    """A clause with the names that are meant, perhaps; a graph has thousands, which nobody reads."""
    names = sorted(filter(None, known))
    close = difflib.get_close_matches(name, names, n=3)
    if close:
        return f"did you mean {' or '.join(repr(printable(c, 80)) for c in close)}?"
    return f"known: {_some(names)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(printable(name, 80) for name in names[:SHOWN]) or 'none'}{more}"
