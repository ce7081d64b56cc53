"""The untouched file in plain onnxruntime: names, branches, weights beside it, dtypes, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from porting.errors import InputError, PortingError
from porting.onnx_facts import conditionals, integer_ranges
from porting.original_onnx import OnnxOriginal
from porting.types import TensorSpec

F = TensorProto.FLOAT


def saved(
    path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: Any = (), opset: int = 17, **how: Any
) -> Path:
    def info(value: Any) -> onnx.ValueInfoProto:
        return value if isinstance(value, onnx.ValueInfoProto) else helper.make_tensor_value_info(*value)

    tensors = [numpy_helper.from_array(array, name) for name, array in dict(weights).items()]
    graph = helper.make_graph(nodes, "g", [info(v) for v in inputs], [info(v) for v in outputs], initializer=tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(proto, str(path), **how)
    return path


W = np.arange(600, dtype=np.float32).reshape(20, 30) / 600


def branching(folder: Path, **how: Any) -> Path:
    def body(kind: str) -> onnx.GraphProto:
        out = [helper.make_tensor_value_info(kind, F, ["n", 20])]
        return helper.make_graph([helper.make_node(kind, ["x"], [kind], name=kind)], kind, [], out)

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Less", ["top", "limit"], ["low"]),
        helper.make_node("If", ["low"], ["chosen"], name="choice", then_branch=body("Neg"), else_branch=body("Abs")),
        helper.make_node("MatMul", ["chosen", "w"], ["y"], name="product"),
    ]
    weights = {"w": W, "limit": np.float32(100)}
    return saved(folder / "m.onnx", nodes, [("x", F, ["n", 20])], [("y", F, ["n", 30])], weights, **how)


X = -np.ones((2, 20), np.float32)


@pytest.mark.parametrize("how", [{}, {"save_as_external_data": True, "location": "w.bin", "size_threshold": 100}])
def test_the_condition_of_an_if_can_be_fixed(tmp_path: Path, how: dict[str, Any]) -> None:
    path = branching(tmp_path, **how)
    before = path.read_bytes()
    for forced, chosen in ((None, -X), ({"choice": True}, -X), ({"choice": False}, np.abs(X))):
        for x in (X, 1000 * np.abs(X)):
            expected = (np.where(x > 100, np.abs(x), -x) if forced is None else -x if forced["choice"] else np.abs(x)) @ W
            original = OnnxOriginal(path, forced)
            np.testing.assert_allclose(original.run({"x": x})["y"], expected, rtol=1e-5)
            assert ("1 If nodes forced" in original.description) == (forced is not None)
            original.close()
            original.close()
        assert chosen.shape == X.shape
    assert path.read_bytes() == before


def test_an_if_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the original has no If node 'other'"):
        OnnxOriginal(branching(tmp_path), {"other": True})


def test_it_says_how_it_runs_and_what_it_takes(tmp_path: Path) -> None:
    original = OnnxOriginal(branching(tmp_path))
    assert original.inputs == (TensorSpec("x", "float32", ("n", 20)),)
    assert original.outputs == (TensorSpec("y", "float32", ("n", 30)),)
    assert "on the untouched file, no graph optimisations" in original.description
    assert "all optimisations" in OnnxOriginal(branching(tmp_path), optimised=True).description


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"z": X}, "has no input 'z'"),
        ({}, "does not take the feeds.*'x'"),
        ({"x": X.astype(np.float64)}, "does not take the feeds"),
        ({"x": X[:, :7]}, "does not take the feeds"),
    ],
)
def test_feeds_that_do_not_fit_are_input_errors(tmp_path: Path, feeds: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OnnxOriginal(branching(tmp_path)).run(feeds)


def test_what_breaks_inside_is_an_error_of_ours_that_names_the_node(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["w", "i"], ["y"], name="look")]
    path = saved(tmp_path / "m.onnx", nodes, [("i", TensorProto.INT64, ["n"])], [("y", F, ["n", 30])], {"w": W})
    with pytest.raises(PortingError, match="look"):
        OnnxOriginal(path).run({"i": np.array([20], np.int64)})


def test_an_initializer_that_is_also_an_input_keeps_its_value(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = saved(tmp_path / "m.onnx", nodes, [("x", F, ["n", 20]), ("w", F, [20, 30])], [("y", F, ["n", 30])], {"w": W})
    original = OnnxOriginal(path)
    assert [spec.name for spec in original.inputs] == ["x"]
    np.testing.assert_allclose(original.run({"x": X})["y"], X @ W, rtol=1e-5)


def test_texts_and_sequences_pass(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["t"], ["u"]), helper.make_node("SplitToSequence", ["x"], ["parts"], axis=0)]
    parts = helper.make_tensor_sequence_value_info("parts", F, None)
    inputs = [("t", TensorProto.STRING, ["n"]), ("x", F, [3, 2])]
    path = saved(tmp_path / "m.onnx", nodes, inputs, [("u", TensorProto.STRING, ["n"]), parts])
    original = OnnxOriginal(path)
    assert [spec.dtype for spec in original.outputs] == ["string", "sequence(float32)"]
    got = original.run({"t": np.array(["a", "é"], object), "x": np.ones((3, 2), np.float32)})
    assert list(got["u"]) == ["a", "é"] and [p.shape for p in got["parts"]] == [(1, 2)] * 3


def test_bfloat16_goes_in_and_comes_out(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Cast", ["x"], ["z"], to=F)]
    path = saved(
        tmp_path / "m.onnx", nodes, [("x", TensorProto.BFLOAT16, ["n"])], [("y", TensorProto.BFLOAT16, ["n"]), ("z", F, ["n"])]
    )
    x = np.array([1.5, -3.0], ml_dtypes.bfloat16)
    got = OnnxOriginal(path).run({"x": x})
    assert got["y"].dtype == x.dtype and (got["y"] == x).all() and (got["z"] == [1.5, -3.0]).all()


def test_two_nodes_of_one_name_run_under_other_names(tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["a"], name="same"), helper.make_node("Neg", ["a"], ["y"], name="same")]
    original = OnnxOriginal(saved(tmp_path / "m.onnx", nodes, [("x", F, ["n"])], [("y", F, ["n"])]))
    assert "renamed" in original.description
    assert (original.run({"x": np.ones(3, np.float32)})["y"] == 1).all()


def test_a_file_that_is_no_model_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing of the kind")
    for path in (tmp_path / "m.onnx", tmp_path / "none.onnx"):
        with pytest.raises(InputError):
            OnnxOriginal(path)


# --- what the text of a graph says ----------------------------------------------------------------------------------------


def test_conditions_on_shapes_are_told_from_conditions_on_values(tmp_path: Path) -> None:
    def body(name: str, nodes: list[Any]) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, F, None)])

    inner = helper.make_node(
        "If",
        ["big"],
        ["i"],
        name="inner",
        then_branch=body("a", [helper.make_node("Neg", ["x"], ["a"])]),
        else_branch=body("b", [helper.make_node("Abs", ["x"], ["b"])]),
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Less", ["limit", "top"], ["big"]),
        helper.make_node("Size", ["x"], ["size"]),
        helper.make_node("Equal", ["size", "six"], ["is six"]),
        helper.make_node(
            "If",
            ["is six"],
            ["y"],
            name="outer",
            then_branch=body("i", [inner]),
            else_branch=body("c", [helper.make_node("Neg", ["x"], ["c"])]),
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, ["n"])],
        [helper.make_tensor_value_info("y", F, ["n"])],
        initializer=[numpy_helper.from_array(np.float32(1), "limit"), numpy_helper.from_array(np.int64(6), "six")],
    )
    found = {c.name: c for c in conditionals(graph)}
    assert list(found) == ["outer", "inner"]
    assert not found["outer"].valued and found["inner"].valued
    assert found["inner"].parents == (("outer", True),) and found["outer"].parents == ()


def test_tables_say_what_their_ids_may_be() -> None:
    def graph(nodes: list[Any]) -> onnx.GraphProto:
        table = numpy_helper.from_array(np.zeros((12, 4), np.float32), "table")
        return helper.make_graph(nodes, "g", [helper.make_tensor_value_info("ids", F, ["n"])], [], initializer=[table])

    cast = helper.make_node("Cast", ["ids"], ["i"], to=TensorProto.INT64)
    look = helper.make_node("Gather", ["table", "i"], ["y"])
    assert integer_ranges(graph([cast, look])) == {"ids": (0, 12)}
    wrapped = [cast, helper.make_node("Add", ["i", "rows"], ["j"]), helper.make_node("Gather", ["table", "j"], ["y"])]
    assert integer_ranges(graph(wrapped)) == {} and integer_ranges(graph(wrapped), likely=True) == {"ids": (0, 12)}
    along = [cast, helper.make_node("Gather", ["table", "i"], ["y"], axis=1)]
    assert integer_ranges(graph(along)) == {}
