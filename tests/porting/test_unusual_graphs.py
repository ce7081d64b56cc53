"""Files that few exporters write, by the public API: each is judged like any other, or refused for what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import porting
from porting.converters.checkpoints.onnx_file import OnnxFile, read_proto
from porting.errors import InputError, UnsupportedModel
from porting.onnx_facts import conditionals
from porting.original_onnx import OnnxOriginal
from porting.verdict import Verdict

F = TensorProto.FLOAT
W = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, Any],
    weights: dict[str, np.ndarray],
    opset: int = 17,
    ir_version: int = 8,
    rows: Any = "N",
) -> onnx.ModelProto:
    """nodes -> y: float32[rows, 8]. inputs: name -> shape of a float32, or of another (shape, element type)"""
    typed = {name: what if isinstance(what, tuple) else (what, F) for name, what in inputs.items()}
    infos = [helper.make_tensor_value_info(name, kind, shape) for name, (shape, kind) in typed.items()]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", infos, [helper.make_tensor_value_info("y", F, [rows, 8])], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def ported(folder: Path, proto: onnx.ModelProto) -> Verdict:
    return porting.port(saved(folder, proto), folder / "m.port")


def values(verdict: Verdict) -> dict[str, Any]:
    return {check.name: check.value for check in verdict.checks}


# --- functions of the model's own -------------------------------------------------------------------------------------

CHOOSING = """
<ir_version: 9, opset_import: ["" : 17, "my" : 1]>
test (float[N, 8] x) => (float[N, 8] y) { h = my.Bent(x)  y = my.Bent(h) }
<domain: "my", opset_import: ["" : 17]>
Bent (a) => (b) {
    s = ReduceMean<keepdims = 0>(a)
    limit = Constant<value_float = 0.1>()
    c = Greater(s, limit)
    b = If(c) <
        then_branch = t () => (float[N, 8] p) { p = Tanh(a) },
        else_branch = e () => (float[N, 8] q) { q = Sin(a) }
    >
}
"""


def test_every_branch_of_an_if_inside_functions_is_compared(tmp_path: Path) -> None:
    verdict = ported(tmp_path, parser.parse_model(CHOOSING))
    assert verdict.ok, verdict.line()
    inside = [c.name for c in conditionals(read_proto(tmp_path / "m.onnx").graph)]
    assert len(set(inside)) == 2  # two calls of one function
    for name in inside:
        assert {f"branch {name} = {way}: relative error of y" for way in ("then", "else")} <= values(verdict).keys()


def test_the_nodes_of_functions_are_called_the_same_wherever_a_file_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path, parser.parse_model(CHOOSING))
    proto, source = read_proto(path), OnnxFile(path)
    assert not proto.functions
    pending, names = [proto.graph], []
    while pending:
        names += [node.name for node in pending[0].node]
        pending += [a.g for node in pending.pop(0).node for a in node.attribute if a.HasField("g")]
    assert sorted(names) == sorted(str(node.name) for node in source.graph().model.graph.all_nodes())
    source.close()
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    bent = {True: np.tanh, False: np.sin}
    first, second = (c.name for c in conditionals(proto.graph))
    for ways in ((True, False), (False, True), (True, True)):
        found = OnnxOriginal(path, forced={first: ways[0], second: ways[1]}).run({"x": x})["y"]
        np.testing.assert_allclose(found, bent[ways[1]](bent[ways[0]](x)), rtol=1e-5, atol=1e-6)


def test_weights_beside_a_file_with_functions_stay_there(tmp_path: Path) -> None:
    proto = parser.parse_model(CHOOSING)
    proto.graph.node.append(helper.make_node("MatMul", ["y", "w"], ["z"]))
    proto.graph.output[0].name = "z"
    proto.graph.initializer.append(numpy_helper.from_array(np.tile(W, (1, 40)), "w"))
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", F, ["N", 320]))
    path = tmp_path / "m.onnx"
    onnx.save(proto, str(path), save_as_external_data=True, location="w.bin", size_threshold=100)
    kept = next(t for t in read_proto(path).graph.initializer if t.name == "w")
    assert {e.key: e.value for e in kept.external_data}["location"] == "w.bin" and not kept.raw_data
    assert porting.port(path, tmp_path / "m.port").ok


# --- old opsets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [6, 7, 8])
def test_opsets_before_9_are_judged(tmp_path: Path, opset: int) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Max", ["a", "b"], ["c"]),
        helper.make_node("Sum", ["c", "b"], ["y"]),
    ]
    verdict = ported(tmp_path, model(nodes, {"x": ["N", 8], "w": [8, 8]}, {"w": W}, opset, ir_version=3))
    assert verdict.ok, verdict.line()
    bound = next(check.bound for check in verdict.checks if check.name == "relative error of y")
    assert bound is not None and 0 < float(bound) < 1e-4


def test_a_branch_can_be_forced_at_opset_6(tmp_path: Path) -> None:
    def body(kind: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(kind, F, ["N", 8])
        return helper.make_graph([helper.make_node(kind, ["x"], [kind])], kind, [], [out])

    nodes = [helper.make_node("If", ["c"], ["y"], name="way", then_branch=body("Sigmoid"), else_branch=body("Tanh"))]
    proto = model(nodes, {"x": ["N", 8], "c": ([], TensorProto.BOOL)}, {}, opset=6, ir_version=3)
    path = saved(tmp_path, proto)
    wanted = {True: 1 / (1 + np.exp(-W)), False: np.tanh(W)}
    for way in (True, False):
        for c in (True, False):
            found = OnnxOriginal(path, forced={"way": way}).run({"x": W, "c": np.asarray(c)})["y"]
            np.testing.assert_allclose(found, wanted[way], rtol=1e-5, atol=1e-6)
    assert porting.port(path, tmp_path / "m.port").ok


def test_onnxruntime_has_no_kernel_for_what_opsets_7_and_8_changed() -> None:
    """Noise is measured on a graph of opset 6 or 7 read as one of opset 8: of these operators opset 8 only allows more."""
    widened = {"Max", "Mean", "MaxPool", "Min", "Sum"}
    kernels: dict[str, list[tuple[int, int]]] = {}
    for kernel in onnxruntime.capi.onnxruntime_pybind11_state.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider" and kernel.domain == "":
            kernels.setdefault(kernel.op_name, []).append(tuple(kernel.version_range))
    history: dict[str, list[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            history.setdefault(schema.name, []).append(schema.since_version)
    assert len(kernels["Sigmoid"]) and "Scan" in kernels
    for name, versions in history.items():
        for changed in {7, 8} & set(versions):
            old = max((v for v in versions if v < changed), default=None)
            if old is not None and name not in widened:
                assert not any(first <= old <= last for first, last in kernels.get(name, [])), (name, changed)


# --- what plain onnxruntime does not take -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "opset", "said"),
    [
        (helper.make_node("NoSuchOp", ["x"], ["y"], domain="com.microsoft"), 17, "com.microsoft:NoSuchOp"),
        (helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft", odd=1), 17, "Unrecognized attribute: odd"),
        (helper.make_node("Add", ["x", "x"], ["y"]), 6, r"Could not find an implementation for Add\(6\)"),
    ],
)
def test_a_file_that_plain_onnxruntime_does_not_load_is_bad_input(
    tmp_path: Path, node: onnx.NodeProto, opset: int, said: str
) -> None:
    with pytest.raises(UnsupportedModel, match=said) as caught:
        ported(tmp_path, model([node], {"x": ["N", 8]}, {}, opset))
    error = caught.value
    assert error.exit_code == 2 and "m.onnx" in error.where and "--device" not in error.next
    assert not (tmp_path / "m.port").exists()


# --- graphs in which nothing is left to do ----------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [(), ("w",), ("w", "v")])
def test_a_graph_of_constants_is_judged(tmp_path: Path, listed: tuple[str, ...]) -> None:
    """Whether its constants are listed as inputs or not: they have values in the file."""
    nodes = [helper.make_node("MatMul", ["w", "v"], ["y"])]
    proto = model(nodes, {name: [8, 8] for name in listed}, {"w": W, "v": W.T.copy()}, rows=8)
    verdict = ported(tmp_path, proto)
    assert verdict.ok and values(verdict)["nodes on another device"] == 0
    with porting.load(tmp_path / "m.port") as session:
        np.testing.assert_allclose(session.run({})["y"], W @ W.T, rtol=1e-5, atol=1e-5)


def test_a_default_that_the_port_does_not_take_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    verdict = ported(tmp_path, model(nodes, {"x": ["N", 8], "factor": [1]}, {"factor": np.float32([2])}))
    assert verdict.ok and verdict.details["constant_inputs"] == ["factor"]
    with porting.load(tmp_path / "m.port") as session, pytest.raises(InputError, match="unknown input 'factor'"):
        session.run({"x": W, "factor": np.float32([3])})
    assert porting.inspect(tmp_path / "m.onnx")["facts"]["constant_inputs"] == ["factor"]


# --- weights of 4 and 8 bits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.INT8])
@pytest.mark.parametrize("how", [{"axis": 0, "block_size": 32}, {"axis": 1}], ids=["blocks", "columns"])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_dequantised_weights_are_multiplied_in_fp32(tmp_path: Path, kind: int, how: dict[str, int], operator: str) -> None:
    """onnxruntime fuses both operators, and rounds the activations to 8 bits unless told: 5e-3 off."""
    rng = np.random.default_rng(1)
    limit = 8 if kind == TensorProto.INT4 else 128
    weight = helper.make_tensor("q", kind, [64, 8], rng.integers(-limit, limit, 512).tolist())
    scales = rng.uniform(0.02, 0.1, (2, 8) if "block_size" in how else 8).astype(np.float32)
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"], **how), helper.make_node(operator, ["x", "w"], ["y"])]
    proto = model(nodes, {"x": ["N", 64]}, {"s": scales}, opset=21, ir_version=10)
    proto.graph.initializer.append(weight)
    verdict = ported(tmp_path, proto)
    assert verdict.ok, verdict.line()
    assert float(values(verdict)["relative error of y"]) < 1e-5
