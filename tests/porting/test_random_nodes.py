"""Random operators: what onnxruntime makes of a seed, and which nodes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import porting
from porting.converters.checkpoints.onnx_file import read_proto
from porting.errors import InputError
from porting.onnx_facts import random_nodes

F = TensorProto.FLOAT
X = np.random.default_rng(0).random((2, 8)).astype(np.float32)
node = helper.make_node
ON, OFF = (numpy_helper.from_array(np.asarray(flag), name) for flag, name in ((True, "on"), (False, "off")))
RATIO = numpy_helper.from_array(np.float32(0.5), "ratio")

DRAWING = {
    "RandomNormal": node("RandomNormal", [], ["r"], name="odd", seed=3.0, shape=[2, 8]),
    "RandomUniform": node("RandomUniform", [], ["r"], name="odd", seed=3.0, shape=[2, 8]),
    "RandomNormalLike": node("RandomNormalLike", ["x"], ["r"], name="odd", seed=3.0),
    "RandomUniformLike": node("RandomUniformLike", ["x"], ["r"], name="odd", seed=3.0),
    "Multinomial": node("Multinomial", ["x"], ["r"], name="odd", seed=3.0, sample_size=9),
    "Bernoulli": node("Bernoulli", ["x"], ["r"], name="odd", seed=3.0),
    "Dropout": node("Dropout", ["x", "ratio", "on"], ["r"], name="odd", seed=3),
}


def saved(
    folder: Path,
    nodes: list[onnx.NodeProto],
    output: str = "r",
    functions: Any = (),
    more: Any = (),
    tensors: Any = (ON, OFF, RATIO),
) -> Path:
    inputs = [helper.make_tensor_value_info("x", F, ["N", 8]), *more]
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name=output)], list(tensors))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    path = folder / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=9).SerializeToString())
    return path


@pytest.mark.parametrize("kind", DRAWING)
def test_a_seed_repeats_sessions_and_not_runs(tmp_path: Path, kind: str) -> None:
    """What onnxruntime does, which the naming of these nodes rests on."""
    path = saved(tmp_path, [DRAWING[kind]])

    def three() -> list[np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return [session.run(None, {"x": X})[0] for _ in range(3)]

    one, other = three(), three()
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert not (np.array_equal(one[0], one[1]) and np.array_equal(one[1], one[2]))


@pytest.mark.parametrize("kind", DRAWING)
def test_a_node_that_draws_is_named(tmp_path: Path, kind: str) -> None:
    assert random_nodes(read_proto(saved(tmp_path, [DRAWING[kind]])).graph) == ["odd"]


def test_nodes_in_bodies_and_functions_are_named(tmp_path: Path) -> None:
    def body(kind: str) -> onnx.GraphProto:
        inner = node(kind, ["x"], ["b"], name=f"in_{kind}", **({"seed": 1.0} if "Random" in kind else {}))
        return helper.make_graph([inner], kind, [], [helper.make_tensor_value_info("b", F, None)])

    own = [node("RandomUniformLike", ["a"], ["b"], name="deep", seed=1.0)]
    function = helper.make_function("my", "F", ["a"], ["b"], own, [helper.make_opsetid("", 17)])
    nodes = [
        node("If", ["on"], ["c"], then_branch=body("RandomNormalLike"), else_branch=body("Relu")),
        node("F", ["c"], ["d"], domain="my"),
        node("Relu", ["d"], ["r"]),
    ]
    graph = read_proto(saved(tmp_path, nodes, functions=[function])).graph
    found = random_nodes(graph)
    assert found[0] == "in_RandomNormalLike" and len(found) == 2
    assert found[1] in [n.name for n in graph.node if n.op_type == "RandomUniformLike"]


def test_a_dropout_is_named_unless_it_is_certainly_off(tmp_path: Path) -> None:
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    false = node("Constant", [], ["no"], value=numpy_helper.from_array(np.asarray(False)))
    inner = helper.make_graph(
        [node("Dropout", ["x", "ratio", "off"], ["b"], name="inside off")],
        "b",
        [],
        [helper.make_tensor_value_info("b", F, None)],
    )
    nodes = [
        false,
        node("Dropout", ["x"], ["a1"], name="plain"),
        node("Dropout", ["a1", "ratio", "off"], ["a2"], name="off"),
        node("Dropout", ["a2", "ratio", "no"], ["a3"], name="constant off"),
        node("Dropout", ["a3", "ratio", "on"], ["a4"], name="on", seed=1),
        node("Dropout", ["a4", "ratio", "flag"], ["a5"], name="fed", seed=1),
        node("If", ["on"], ["a6"], then_branch=inner, else_branch=inner),
        node("Add", ["a5", "a6"], ["r"]),
    ]
    assert random_nodes(read_proto(saved(tmp_path, nodes, more=[flag])).graph) == ["on", "fed"]


def test_a_model_that_draws_is_refused_with_the_name_of_the_node(tmp_path: Path) -> None:
    path = saved(tmp_path, [DRAWING["RandomNormalLike"], node("Add", ["x", "r"], ["y"], name="sum")], "y")
    with pytest.raises(InputError, match="output 'y' of the original is another each time") as caught:
        porting.port(path, tmp_path / "m.port")
    assert caught.value.where == "node odd" and "feed them as an input" in caught.value.next
    assert not (tmp_path / "m.port").exists()


def test_numbers_that_no_output_shows_are_no_matter(tmp_path: Path) -> None:
    nodes = [DRAWING["RandomNormalLike"], node("Abs", ["r"], ["unused"], name="abs"), node("Relu", ["x"], ["y"], name="relu")]
    porting.port(saved(tmp_path, nodes, "y"), tmp_path / "m.port").require()
