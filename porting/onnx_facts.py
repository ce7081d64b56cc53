"""What the text of an ONNX graph says without running it: its If nodes, what its integer inputs may hold, what depends on what.

Works on protos whose weights may be left out. Every body of If, Loop and Scan is walked; names of values are unique in ONNX across the
bodies that can see each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from porting.backends.onnx_program import node_label, subgraphs

# input -> values pass through unchanged, as far as integers looked up by them are concerned
_CARRIES = frozenset(
    ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Split", "Concat", "Gather")
)
_COMPUTES = frozenset(("Add", "Sub", "Mul", "Where", "Mod", "Clip", "Max", "Min"))
_ONLY_SHAPE = frozenset(("Shape", "Size"))
# how much comes out depends on the values of all inputs, or of those after the first
_SIZED_BY_VALUES = frozenset(("NonZero", "NonMaxSuppression", "Unique", "Compress", "Range", "ConstantOfShape"))
_SIZED_BY_OTHERS = frozenset(("Expand", "OneHot", "Pad", "Reshape", "Resize", "Slice", "Tile", "TopK", "Upsample"))
# Operators of ONNX's own domain that draw. A seed starts their stream of numbers when a session is made, and every run goes on with it:
# measured in onnxruntime 1.31.1, two runs of a session differ, and the n-th runs of two sessions are the same, in every process too
RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"})
# operators that are random while training: domain, name -> number of the input that says so
RANDOM_IN_TRAINING = {
    ("", "Dropout"): 2,
    ("com.microsoft", "BitmaskDropout"): 2,
    ("com.microsoft", "BiasDropout"): 4,
    ("com.microsoft", "BitmaskBiasDropout"): 4,
}


@dataclass(frozen=True)
class Conditional:
    """An If node.

    name:    of the node
    parents: (name, branch) of every If around it, outermost first; branch True is then_branch
    looped:  whether a Loop or Scan is around it
    valued:  whether its condition depends on the values of the inputs, not only on their shapes
    """

    name: str
    parents: tuple[tuple[str, bool], ...]
    looped: bool
    valued: bool


def nodes_of(graph: onnx.GraphProto) -> Iterator[tuple[onnx.GraphProto, onnx.NodeProto]]:
    """Every node with the graph or body it stands in, bodies after the node that holds them."""
    for node in graph.node:
        yield graph, node
        for body in subgraphs(node):
            yield from nodes_of(body)


def valued_names(graph: onnx.GraphProto, of: str = "") -> set[str]:
    """Names of values that depend on the values of the graph's inputs, or of that one input, and not only on their shapes."""
    initial = {t.name for t in graph.initializer}
    found = {v.name for v in graph.input if v.name not in initial and of in ("", v.name)}
    _spread(graph, found, set())
    return found


def _spread(graph: onnx.GraphProto, found: set[str], sized: set[str]) -> bool:
    """Whether something in the graph depends on `found`; adds all that does.

    sized: values of which not only the elements but the shape does, and so what asks for their shape
    """
    any_found = False
    for node in graph.node:
        bodies = list(subgraphs(node))
        asked = sized if node.op_type in _ONLY_SHAPE else found
        reached = any(name in asked for name in node.input)
        deciding = (
            node.input if node.op_type in _SIZED_BY_VALUES else node.input[1:] if node.op_type in _SIZED_BY_OTHERS else ()
        )
        if any(name in found for name in deciding) or (
            node.op_type not in _ONLY_SHAPE and any(name in sized for name in node.input)
        ):
            sized.update(name for name in node.output if name)
        for body in bodies:
            if reached:
                found.update(v.name for v in body.input)
            reached = _spread(body, found, sized) or reached
        if reached and bodies:  # what a loop carries may reach a body only in its second round
            for body in bodies:
                found.update(v.name for v in body.input)
                _spread(body, found, sized)
        if reached:
            found.update(name for name in node.output if name)
            any_found = True
    return any_found or any(v.name in found for v in graph.output)


def conditionals(graph: onnx.GraphProto) -> list[Conditional]:
    """Every If node, nested ones after those around them."""
    return list(_conditionals(graph, (), False, valued_names(graph)))


def _conditionals(
    graph: onnx.GraphProto, parents: tuple[tuple[str, bool], ...], looped: bool, valued: set[str]
) -> Iterator[Conditional]:
    for node in graph.node:
        if node.op_type == "If" and node.domain in ("", "ai.onnx"):
            name = node_label(node)
            yield Conditional(name, parents, looped, node.input[0] in valued)
            for attribute in node.attribute:
                yield from _conditionals(attribute.g, (*parents, (name, attribute.name == "then_branch")), looped, valued)
        else:
            for body in subgraphs(node):
                yield from _conditionals(body, parents, True, valued)


def force(graph: onnx.GraphProto, forced: Mapping[str, bool]) -> set[str]:
    """Fix the condition of the If nodes named, in place: `c or not c`, `c and not c`. returns: the names that were found

    As the larger and the smaller of two floats, which onnxruntime also has at opset 6; And and Or it has from 7 on. Not a constant: a runtime puts the branch in the If's place then, which is another graph than the one that is looked at, and
    onnxruntime 1.31.1 crashes doing so where the branch has weights in a file.
    """
    done = set()
    for position, node in reversed(list(enumerate(graph.node))):
        for body in subgraphs(node):
            done |= force(body, forced)
        name = node_label(node)
        if node.op_type == "If" and name in forced:
            for new in reversed(list(_fixed(node.input[0], name, forced[name]))):
                graph.node.insert(position, new)
            node.input[0] = f"{name}/forced"
            done.add(name)
    return done


def random_nodes(graph: onnx.GraphProto, off: frozenset[str] = frozenset()) -> list[str]:
    """Names of the nodes that draw random numbers, with a seed or without, in bodies too; of a dropout unless its mode is a constant false.

    graph: with its functions inlined, as `read_proto` gives it
    off:   names of constants around the graph that are false
    """
    off |= {tensor.name for tensor in graph.initializer if _is_false(tensor)}
    found = []
    for node in graph.node:
        if node.op_type == "Constant" and any(_is_false(attribute.t) for attribute in node.attribute):
            off |= {node.output[0]}
        domain = "" if node.domain == "ai.onnx" else node.domain
        index = RANDOM_IN_TRAINING.get((domain, node.op_type), len(node.input))
        mode = node.input[index] if index < len(node.input) else ""
        if (domain == "" and node.op_type in RANDOM) or (mode and mode not in off):
            found.append(node_label(node))
        for body in subgraphs(node):
            found += random_nodes(body, off)
    return found


def _is_false(tensor: onnx.TensorProto) -> bool:
    inside = tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.data_type == onnx.TensorProto.BOOL
    return inside and not onnx.numpy_helper.to_array(tensor).any()


def _fixed(condition: str, name: str, value: bool) -> Iterator[onnx.NodeProto]:
    """The nodes that make `name/forced` of a condition."""

    def node(kind: str, inputs: list[str], part: str, **attributes: Any) -> onnx.NodeProto:
        return onnx.helper.make_node(kind, inputs, [f"{name}/{part}"], name=f"{name}/{part}", **attributes)

    number = onnx.TensorProto.FLOAT
    yield node("Not", [condition], "not")
    yield node("Cast", [condition], "is", to=number)
    yield node("Cast", [f"{name}/not"], "is_not", to=number)
    yield node("Max" if value else "Min", [f"{name}/is", f"{name}/is_not"], "number")
    yield node("Cast", [f"{name}/number"], "forced", to=onnx.TensorProto.BOOL)


def integer_ranges(graph: onnx.GraphProto, likely: bool = False) -> dict[str, tuple[int, int]]:
    """Input name -> (0, how many there are), of inputs by which a table of known size is looked up, or that become one-hot.

    likely: also through arithmetic (`where(x < 0, x + rows, x)`), after which it is a guess; without it nothing is said of such an input
    """
    rows = {t.name: t.dims[0] for t in graph.initializer if t.dims}
    scalars = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    scalars[node.output[0]] = attribute.t
                    if attribute.t.dims:
                        rows[node.output[0]] = attribute.t.dims[0]
        elif node.op_type in ("Identity", "DequantizeLinear", "Cast") and node.input[0] in rows:
            rows[node.output[0]] = rows[node.input[0]]
    origin = {v.name: v.name for v in graph.input if v.name not in {t.name for t in graph.initializer}}
    ranges: dict[str, tuple[int, int]] = {}
    for _, node in nodes_of(graph):
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        size = None
        if node.op_type == "Gather" and axis == 0 and node.input[0] in rows:
            size, looked_up = rows[node.input[0]], node.input[1]
        elif node.op_type == "OneHot" and node.input[1] in scalars:
            depth = scalars[node.input[1]]
            if depth.data_location != onnx.TensorProto.EXTERNAL:
                size, looked_up = int(onnx.numpy_helper.to_array(depth).reshape(-1)[0]), node.input[0]
        if size and looked_up in origin:
            name = origin[looked_up]
            ranges[name] = (0, min(size, ranges.get(name, (0, size))[1]))
        passed = node.input[:1] if node.op_type in _CARRIES else node.input if likely and node.op_type in _COMPUTES else ()
        source = next((origin[name] for name in passed if name in origin), None)
        if source is not None:
            origin.update((name, source) for name in node.output)
    return ranges
