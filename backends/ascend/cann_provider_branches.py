"""Ifs whose condition hangs on sizes alone, replaced by the branch that is taken: exporters ask for ranks, and sizes are fixed here.

What is computed is what onnx's reference computes, of small integers; what cannot be told stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from porting.backends.onnx_program import node_label, subgraphs

Shapes = Mapping[str, tuple[int, ...]]
# of which a condition on sizes is made
_COMPUTED = frozenset(
    "Add And Cast Concat Constant ConstantOfShape Div Equal Gather Greater Identity Less Max Min Mod Mul Not Or Reshape Slice Squeeze Sub "  # noqa: SIM905
    "Transpose Unsqueeze".split()
)
_MOST = 1024  # numbers


def settled(model: onnx.ModelProto, gears: Sequence[Shapes]) -> onnx.ModelProto:
    """The model without the Ifs of its main graph that take one branch in every gear; the same object where there is none."""
    while True:
        known = [_conditions(model, shapes) for shapes in gears if _ifs(model)]
        agreed = {
            label: value for label, value in (known[0] if known else {}).items() if all(k.get(label) == value for k in known)
        }
        if not agreed:
            return model
        model = _without_unread(_inlined(model, agreed))


def _ifs(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "If" and node.domain in ("", "ai.onnx")]


def _conditions(model: onnx.ModelProto, shapes: Shapes) -> dict[str, bool]:
    """What each If is asked, as far as sizes tell."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        if value.name in shapes:
            value.CopyFrom(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, shapes[value.name]))
    for value in fixed.graph.output:  # sizes of another shape would win over what is inferred
        value.type.tensor_type.ClearField("shape")
    return _told(fixed)


def _told(fixed: onnx.ModelProto) -> dict[str, bool]:
    """Sizes give numbers, and numbers (pads, shapes) give further sizes, until nothing new comes of it."""
    folded = -1
    numbers = _Numbers(fixed)
    while folded != len(fixed.graph.initializer):
        folded = len(fixed.graph.initializer)
        try:
            numbers = _Numbers(onnx.shape_inference.infer_shapes(fixed, data_prop=True))
        except Exception:  # an inconsistent graph: its Ifs stay, and are refused by name
            return {}
        numbers.fold_into(fixed.graph)
    found = {node_label(node): numbers.of(node.input[0]) for node in _ifs(fixed)}
    return {label: bool(value.reshape(-1)[0]) for label, value in found.items() if value is not None and value.size == 1}


class _Numbers:
    """Values that hang on constants and sizes alone."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._opsets = model.opset_import
        self._makers = {name: node for node in graph.node for name in node.output}
        self._sizes = {v.name: _sizes(v) for v in (*graph.input, *graph.value_info)}
        small = (t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL and np.prod(t.dims) <= _MOST)
        self._known: dict[str, np.ndarray | None] = {t.name: numpy_helper.to_array(t) for t in small}

    def of(self, name: str) -> np.ndarray | None:
        """None where it cannot be told."""
        if name not in self._known:
            self._known[name] = None  # of a value that hangs on itself
            node = self._makers.get(name)
            self._known[name] = None if node is None else self._computed(node)
        return self._known[name]

    def fold_into(self, graph: onnx.GraphProto) -> None:
        """Give the graph the numbers of every value that can be told, so that shapes can be inferred of them."""
        kept = []
        for node in graph.node:
            value = self.of(node.output[0]) if len(node.output) == 1 and node.op_type != "If" else None
            if value is None:
                kept.append(node)
            else:
                graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(nodes)

    def _computed(self, node: onnx.NodeProto) -> np.ndarray | None:
        if node.op_type in ("Shape", "Size"):
            sizes = self._sizes.get(node.input[0])
            if sizes is None or node.attribute:
                return None
            return np.array(sizes, np.int64) if node.op_type == "Shape" else np.array(np.prod(sizes, dtype=np.int64))
        if node.op_type not in _COMPUTED or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
            return None
        feeds = {}
        for name in filter(None, node.input):
            value = self.of(name)
            if value is None:
                return None
            feeds[name] = value
        from onnx.reference import ReferenceEvaluator

        inputs = [onnx.ValueInfoProto(name=name) for name in feeds]
        alone = helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=node.output[0])])
        try:
            (result,) = ReferenceEvaluator(helper.make_model(alone, opset_imports=self._opsets)).run(None, feeds)
        except Exception:  # a node that does not fit its inputs: whoever compiles it says so
            return None
        return np.asarray(result) if np.size(result) <= _MOST else None


def _sizes(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor.shape.dim)


def _inlined(model: onnx.ModelProto, conditions: Mapping[str, bool]) -> onnx.ModelProto:
    new = onnx.ModelProto()
    new.CopyFrom(model)
    del new.graph.node[:]
    del new.graph.value_info[:]
    for node in model.graph.node:
        if node.op_type != "If" or node_label(node) not in conditions:
            new.graph.node.append(node)
            continue
        wanted = "then_branch" if conditions[node_label(node)] else "else_branch"
        branch = next(a.g for a in node.attribute if a.name == wanted)
        new.graph.initializer.extend(branch.initializer)
        new.graph.node.extend(branch.node)
        for inner, outer in zip(branch.output, node.output, strict=True):
            if outer:
                new.graph.node.append(helper.make_node("Identity", [inner.name], [outer], name=f"{node_label(node)}/{outer}"))
    return new


def _without_unread(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the nodes that nothing reads any more: CANN would compile them."""
    while True:
        read = {value.name for value in model.graph.output} | {
            name for graph in _graphs(model.graph) for n in graph.node for name in n.input
        }
        read |= {value.name for graph in _graphs(model.graph) for value in graph.output}
        kept = [node for node in model.graph.node if read.intersection(node.output)]
        if len(kept) == len(model.graph.node):
            return model
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del model.graph.node[:]
        model.graph.node.extend(nodes)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from _graphs(body)
