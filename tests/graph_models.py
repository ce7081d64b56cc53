"""Small graphs, right and wrong ports of them, and what they are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from porting.converters.checkpoints.onnx_file import OnnxFile, read_proto
from porting.converters.passes.canonical import canonical
from porting.feeds import Cases, find_cases
from porting.golden_file import ModelIdentity
from porting.graph_golden import GoldenGraphReference, golden_of_graph
from porting.graph_reference import OriginalReference
from porting.graph_validation import judge_graph
from porting.onnx_facts import integer_ranges
from porting.port_folder import Port
from porting.port_writer import Source, write_port
from porting.verdict import Verdict
from tests.small_ports import MANIFEST

Edit = Callable[[onnx.ModelProto], None]


F, INT = TensorProto.FLOAT, TensorProto.INT64


def weight(name: str, *shape: int, seed: int = 0, scale: float = 1.0) -> onnx.TensorProto:
    array = np.random.default_rng([seed, *name.encode()]).standard_normal(shape).astype(np.float32) * np.float32(scale)
    return numpy_helper.from_array(array, name)


def constant(name: str, value: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    name = attributes.pop("name", outputs.split()[0])
    return helper.make_node(kind, inputs.split(), outputs.split(), name=name, **attributes)


def model(
    nodes: list[onnx.NodeProto], inputs: Mapping[str, Any], outputs: Mapping[str, Any], weights: list[onnx.TensorProto]
) -> Any:
    """inputs, outputs: name -> shape, or (shape, element type)"""

    def info(name: str, what: Any) -> onnx.ValueInfoProto:
        shape, kind = what if isinstance(what, tuple) else (what, F)
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        nodes, "g", [info(*i) for i in inputs.items()], [info(*o) for o in outputs.items()], initializer=weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(folder: Path, proto: onnx.ModelProto, name: str = "m") -> Path:
    path = folder / f"{name}.onnx"
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())
    return path


def port_of(folder: Path, proto: onnx.ModelProto, edit: Edit | None = None, state: Mapping[str, str] | None = None) -> Port:
    """The port of a model; with `edit`, of what that makes of it: a conversion that went wrong."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(proto)
    if edit:
        edit(wrong)
    source = OnnxFile(saved(folder, wrong, "wrong"), state=state)
    graph, _ = canonical(source.graph())
    return write_port(graph, folder / "p.port", {**MANIFEST, "kind": "graph"}, Source("onnx", tuple(source.files)))


def reference_of(
    folder: Path, proto: onnx.ModelProto, cases: Cases | None = None, state: Mapping[str, str] | None = None
) -> OriginalReference:
    path = saved(folder, proto)
    source = OnnxFile(path, state=state)
    if cases is None:
        original = source.original()
        cases = find_cases(source.inputs, original.run, ranges=integer_ranges(read_proto(path).graph))
        original.close()
    pairs = source.graph().state.pairs
    return OriginalReference(source.original, cases, source.inputs, source.outputs, pairs, path)


def judged(
    folder: Path,
    proto: onnx.ModelProto,
    edit: Edit | None = None,
    cases: Cases | None = None,
    state: Mapping[str, str] | None = None,
) -> Verdict:
    return judge_graph(port_of(folder, proto, edit, state), reference_of(folder, proto, cases, state), "cpu")


def only(**feeds: np.ndarray) -> Cases:
    return Cases({"given": feeds})


def node_named(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in proto.graph.node if n.name == name)


def attribute(proto: onnx.ModelProto, name: str, key: str) -> onnx.AttributeProto:
    return next(a for a in node_named(proto, name).attribute if a.name == key)


def array_of(proto: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == name)).copy()


def put(proto: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    next(t for t in proto.graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(array, name))


D = 24


def network() -> onnx.ModelProto:
    """Attention-like: two products, a softmax, a layer norm, a residual; outputs floats and ids."""
    nodes = [
        node("LayerNormalization", "x gain shift", "norm", axis=-1, epsilon=1e-5),
        node("MatMul", "norm wq", "q"),
        node("MatMul", "norm wk", "k"),
        node("Transpose", "k", "kt", perm=[0, 2, 1]),
        node("MatMul", "q kt", "scores"),
        node("Mul", "scores scale", "scaled"),
        node("Softmax", "scaled", "weights", axis=-1),
        node("MatMul", "weights norm", "mixed"),
        node("Add", "x mixed", "y"),
        node("ReduceMean", "y", "pooled", axes=[1], keepdims=0),
        node("ArgMax", "y", "ids", axis=-1, keepdims=0),
    ]
    weights = [
        weight("gain", D),
        weight("shift", D, scale=0.1),
        weight("wq", D, D, scale=D**-0.5),
        weight("wk", D, D, scale=D**-0.5),
        constant("scale", D**-0.5),
    ]
    outputs = {"y": ["batch", "time", D], "pooled": ["batch", D], "ids": (["batch", "time"], INT)}
    return model(nodes, {"x": ["batch", "time", D]}, outputs, weights)


def golden_reference(reference: OriginalReference, folder: Path) -> GoldenGraphReference:
    reference.prepare()
    golden = golden_of_graph(reference, reference.cases.feeds, reference.cases.recipes, IDENTITY, {"porting": "0"})
    golden.save(folder / "golden.json")
    return GoldenGraphReference.load(folder / "golden.json")


IDENTITY = ModelIdentity("network", "0" * 64, {"m.onnx": "1" * 64})


def branching(inner_axis: int = 0) -> onnx.ModelProto:
    """Two Ifs, one inside the other: on the mean of x, which generated inputs hardly ever bring above 100."""

    def body(name: str, nodes: list[Any], output: str, weights: list[Any]) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, F, ["b", D])], initializer=weights)

    deep = body("deep", [node("MatMul", "x w_deep", "d")], "d", [weight("w_deep", D, D)])
    flat = body("flat", [node("Tanh", "x", "f")], "f", [])
    inner = helper.make_node("If", ["small"], ["i"], name="inner", then_branch=deep, else_branch=flat)
    then = body("then", [inner], "i", [])
    other = body("other", [node("MatMul", "x w_else", "e")], "e", [weight("w_else", D, D)])
    nodes = [
        node("ReduceMean", "x", "mean", keepdims=0),
        node("Less", "mean limit", "usual"),
        node("Less", "mean low", "small"),
        helper.make_node("If", ["usual"], ["y"], name="outer", then_branch=then, else_branch=other),
    ]
    return model(nodes, {"x": ["b", D]}, {"y": ["b", D]}, [constant("limit", 100.0), constant("low", -100.0)])
