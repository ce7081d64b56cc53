"""What holds of every pass that lowers a graph: results, names, the input left alone, and the same inside the branches of an If."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from porting.converters.passes.infer_shapes import infer_shapes
from porting.converters.passes.rewriting import ModelPass, bodies_of
from porting.types import Graph
from tests.graph_bits import named, run, whole, written

FLOAT32 = 2.0**-23


def read(text: str, opset: int, contrib: bool = False, **weights: np.ndarray) -> Graph:
    """A graph as a pass gets it: types and shapes are worked out."""
    graph = written(text, opset, ir_version=10 if opset < 22 else 13, contrib=contrib, **weights)
    infer_shapes.change(graph.model)
    return graph


def kinds(graph: Graph) -> Counter[str]:
    return Counter(node.op_type for body in bodies_of(graph.model) for node in body)


def in_branches(graph: Graph) -> Graph:
    """The same nodes in both branches of an If, which a new input `choice` decides."""
    proto = onnx.load_from_string(whole(graph))
    branches = []
    for label in ("yes", "no"):
        made = {name: f"{name}_{label}" for node in proto.graph.node for name in node.output if name}
        branch = onnx.GraphProto(name=label)
        branch.node.extend(proto.graph.node)
        _rename(branch, made, label)
        for value in proto.graph.output:
            branch.output.add().CopyFrom(value)
            branch.output[-1].name = made[value.name]
        branches.append(branch)
    names = [value.name for value in proto.graph.output]
    choose = onnx.helper.make_node("If", ["choice"], names, name="choose", then_branch=branches[0], else_branch=branches[1])
    del proto.graph.node[:]
    proto.graph.node.append(choose)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("choice", onnx.TensorProto.BOOL, []))
    outer = named(ir.serde.deserialize_model(proto))
    infer_shapes.change(outer.model)
    return outer


def _rename(body: onnx.GraphProto, made: Mapping[str, str], label: str) -> None:
    """Nodes after their branch, and values of the graph around the If as they are called now, in bodies too."""
    for node in body.node:
        node.name = f"{node.name}_{label}"
        node.input[:] = [made.get(name, name) for name in node.input]
        node.output[:] = [made.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, made, label)


def require_lowered(
    change: ModelPass, graph: Graph, feeds: Mapping[str, Any], bound: float = 0.0, changes: int = 1, branches: bool = True
) -> Graph:
    """Run a pass, hold its results against those before, and do the same inside an If.

    bound:   most that a number may be off, as a part of the largest number of its output; 0: every bit is the same
    changes: nodes that the pass should rewrite
    returns: the lowered graph
    """
    lowered = _require(change, graph, feeds, bound, changes)
    if branches:
        _require(change, in_branches(graph), {**feeds, "choice": np.array(True)}, bound, 2 * changes)
    return lowered


def _require(change: ModelPass, graph: Graph, feeds: Mapping[str, Any], bound: float, changes: int) -> Graph:
    before = whole(graph)
    lowered, count = change(graph)
    assert count == changes
    assert whole(graph) == before, "the graph that went in is not to change"
    assert change(lowered)[1] == 0, "a second run has nothing to do"
    known = {str(node.name) for body in bodies_of(graph.model) for node in body}
    for body in bodies_of(lowered.model):
        for node in body:
            assert str(node.name) in known or any(str(node.name).startswith(f"{name}/") for name in known), node.name
    infer_shapes.change(lowered.model)
    assert [v.name for v in lowered.model.graph.outputs] == [v.name for v in graph.model.graph.outputs]
    onnx.checker.check_model(onnx.load_from_string(whole(lowered)), full_check=True)
    require_close(run(whole(lowered), feeds), run(before, feeds), bound)
    return lowered


def require_close(got: list[Any], wanted: list[Any], bound: float) -> None:
    """Every output within `bound` times its largest number; NaN only where NaN was."""
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape
        if bound == 0:
            np.testing.assert_array_equal(g, w)
            continue
        finite = np.isfinite(w.astype(np.float64))
        scale = np.abs(w.astype(np.float64)[finite]).max(initial=1.0)
        np.testing.assert_allclose(g.astype(np.float64), w.astype(np.float64), rtol=0, atol=bound * scale)
