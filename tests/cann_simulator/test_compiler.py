"""The compiler refuses what the rule base refuses, with its codes, and reads the options of atc and of the graph engine."""

from __future__ import annotations

import re
from contextlib import suppress

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper

from porting.ascend.rules import rules
from porting.backends.cann_simulator.compiler import CODE_SAID, compile_onnx, findings_of, require_accepted
from porting.backends.cann_simulator.execution import load
from porting.backends.cann_simulator.machine import Machine, Refused
from tests.ascend.rule_table import CASES
from tests.cann_simulator.compiled import ORIGIN, compiled, graph_of
from tests.graph_models import model, node, weight

F = np.float32
MODES = {"fp32": "origin", "fp16": "fp16", "bf16": "mixed_bfloat16"}
REFUSING = {rule.id: rule for rule in rules() if rule.effect == "refuses"}
SMALL = model([node("MatMul", "x w", "p"), node("Relu", "p", "y")], {"x": ["b", 8]}, {"y": ["b", 512]}, [weight("w", 8, 512)])


def small(**options: str) -> bytes:
    return compile_onnx(SMALL.SerializeToString(), {**ORIGIN, "input_shape": "x:2,8", **options}, Machine())


@pytest.mark.parametrize("name", sorted(REFUSING))
def test_what_a_rule_refuses_is_refused(name, tmp_path):
    case = CASES[name][0]
    for file, data in case.graph.files().items():
        (tmp_path / file).write_bytes(data)
    rule = REFUSING[name]
    found = findings_of(
        (tmp_path / "model.onnx").read_bytes(),
        {"precision_mode_v2": MODES[case.precision]},
        Machine(case.soc, case.cann or ""),
        tmp_path,
    )
    assert name in {f.rule.id for f in found}
    with pytest.raises(Refused) as error:
        require_accepted([f for f in found if f.rule.id == name])
    assert error.value.text.startswith(f"{rule.code or 'E19999'}: ") and f"[{name}]" in error.value.text
    assert error.value.documented == (rule.code is not None and rule.confidence in CODE_SAID)


def test_one_refused_node_is_enough_and_the_first_code_is_told():
    with pytest.raises(Refused, match=r"^E19999: n0 \(Pad\)"):
        compile_onnx(CASES["pad-wrap"][0].graph.model.SerializeToString(), ORIGIN, Machine())


def test_the_soc_and_the_release_decide(tmp_path):
    product = SMALL.SerializeToString()
    with pytest.raises(Refused, match=r"EZ3003: p \(MatMul\).*fp32-cube"):
        compile_onnx(product, {**ORIGIN, "input_shape": "x:2,8"}, Machine("Ascend310P3"))
    assert compile_onnx(product, {"input_shape": "x:2,8"}, Machine("Ascend310P3"))
    several = onnx.ModelProto()
    several.CopyFrom(SMALL)
    several.opset_import.add(domain="com.microsoft", version=1)
    with pytest.raises(Refused, match="E16005"):
        compile_onnx(
            several.SerializeToString(), {**ORIGIN, "input_shape": "x:2,8"}, Machine(cann="9.1.0"), tmp_path
        )  # not in memory: imports that nobody uses count
    assert compile_onnx(several.SerializeToString(), {**ORIGIN, "input_shape": "x:2,8"}, Machine(cann="9.2.0"), tmp_path)


def test_imports_that_no_node_uses_do_not_count_in_a_model_in_memory():
    """onnxruntime writes all of its domains into what it hands over."""
    several = onnx.ModelProto()
    several.CopyFrom(SMALL)
    several.opset_import.add(domain="com.microsoft", version=1)
    assert compile_onnx(several.SerializeToString(), {**ORIGIN, "input_shape": "x:2,8"}, Machine(cann="9.1.0"))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"input_shape": "y:2,8"}, "E10016"),
        ({"input_shape": "x:2,8,1"}, "E10049"),
        ({"input_shape": "x:2;x:3"}, "E10002"),
        ({"input_shape": "x:2,0"}, "E10002"),
        ({"input_shape": "x:2,"}, "E10002"),
        ({"input_shape": ""}, "E10007"),
        ({"input_shape": "x:3,9"}, "E14001"),
        ({"precision_mode": "force_fp16"}, "E10047"),
        ({"precision_mode_v2": "fp17"}, "E10001"),
        ({"precision_mode_v2": "mixed_hif8"}, "E10055"),
        ({"soc_version": "Ascend9"}, "E10001"),
        ({"out_nodes": "nowhere:0"}, "E10016"),
        ({"output_type": "FP17"}, "E10001"),
        ({"keep_dtype": "not_there.cfg"}, "E13000"),
        ({"dynamic_batch_size": "1,2"}, "E10031"),
        ({"input_shape": "x:-1,8", "dynamic_batch_size": "1"}, "E10035"),
        ({"input_shape": "x:-1,8", "dynamic_batch_size": "1,2", "dynamic_dims": "1;2"}, "E10009"),
        ({"input_shape": "x:2,-1", "dynamic_batch_size": "1,2"}, "E10018"),
    ],
)
def test_options_that_do_not_fit(options, code):
    with pytest.raises(Refused, match=f"^{code}: "):
        small(**options)


def test_numbers_that_are_no_vector_do_not_contradict_a_shape():
    """onnx follows the numbers of integers as vectors: a column of three and a row of two are no three and two to it."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "one"], ["u"], name="u"),
        helper.make_node("Add", ["u", "row"], ["y"], name="y"),
    ]
    weights = {"one": np.int64([1]), "row": np.int64([0, 1])}
    model = graph_of(nodes, {"x": np.int64([1, 2, 3])}, {"y": T.INT64}, weights)
    assert compiled(model, input_shape="x:3").outputs[0].dims == (3, 2)


@pytest.mark.parametrize("data", [b"", b"\x00" * 40, b"no onnx at all", SMALL.SerializeToString()[:60]])
def test_what_is_no_model(data):
    with pytest.raises(Refused, match=r"E10041|E16004|E10007|E14001|E16001"):
        compile_onnx(data, {**ORIGIN, "input_shape": "x:2,8"}, Machine())


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_damaged_model_is_refused_or_compiled(data):
    """Nothing but Refused comes out, whatever protobuf takes for a model."""
    damaged = bytearray(SMALL.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        if data.draw(st.booleans()):
            damaged[place] = data.draw(st.integers(0, 255))
        else:
            del damaged[place : place + data.draw(st.integers(1, 8))]
    with suppress(Refused):
        compile_onnx(bytes(damaged), {"input_shape": "x:2,8"}, Machine())


def test_the_graph_engines_options_mean_the_same():
    ge = {
        "ge.inputShape": "x:2,8",
        "ge.exec.precision_mode": "must_keep_origin_dtype",
        "ge.socVersion": "Ascend910B3",
        "ge.exec.tuneDeviceIds": "0",
    }
    loaded = load(compile_onnx(SMALL.SerializeToString(), ge, Machine()), Machine())
    assert loaded.inputs == load(small(), Machine()).inputs and loaded.arithmetic.stores == ""
    both = {**ge, "ge.precision_mode": "force_fp16"}
    with pytest.raises(Refused, match="given twice"):
        compile_onnx(SMALL.SerializeToString(), both, Machine())


def test_a_scalar_comes_without_a_colon_from_the_provider():
    made = graph_of(
        [helper.make_node("Mul", ["a:0", "c"], ["y"], name="n")], {"a:0": np.zeros(3, F), "c": F(2)}, {"y": T.FLOAT}
    )
    for text in ("a:0:3;c", "a:0:3;c:"):
        assert compiled(made, input_shape=text).run([np.arange(3, dtype=F), np.array(2, F)])[0].tolist() == [0, 2, 4]


def test_no_mode_is_fp16_in_silence():
    loaded = load(compile_onnx(SMALL.SerializeToString(), {"input_shape": "x:2,8"}, Machine()), Machine())
    assert loaded.arithmetic.stores == "float16" and "no mode was given" in loaded.arithmetic.mode


def test_outputs_are_cut_and_cast():
    loaded = compiled(SMALL, input_shape="x:2,8", out_nodes="p:0", output_type="FP16")
    assert [(o.name, o.acl_dtype, o.dims) for o in loaded.outputs] == [("p", 1, (2, 512))]
    assert loaded.run([np.ones((2, 8), F)])[0].dtype == np.float16
    assert compiled(SMALL, input_shape="x:2,8", input_fp16_nodes="x").inputs[0].acl_dtype == 1


def test_what_the_ai_cpu_runs_is_placed_there():
    pool = graph_of(
        [
            helper.make_node("MaxPool", ["x"], ["p"], name="big", kernel_shape=[17, 16]),
            helper.make_node("Relu", ["p"], ["y"], name="r"),
        ],
        {"x": np.zeros((1, 1, 20, 20), F)},
        {"y": T.FLOAT},
    )
    placed = compiled(pool).placement
    assert placed.ai_cpu == ("big",) and placed.shown("ascend-sim:0") == {"ascend-sim:0": 1, "ascend-sim:0 AI CPU": 1}
    assert compiled(SMALL, input_shape="x:2,8").placement.shown("d") == {"d": 2}


def test_memory_of_weights_and_work():
    loaded = compiled(SMALL, input_shape="x:2,8")
    assert loaded.weight_bytes == 8 * 512 * 4 and loaded.work_bytes >= 2 * 512 * 4
    half = compiled(SMALL, input_shape="x:2,8", precision_mode_v2="fp16")
    assert half.weight_bytes == 8 * 512 * 2


def test_weights_beside_the_model(tmp_path):
    copied = onnx.load_model_from_string(SMALL.SerializeToString())  # onnx changes what it saves
    onnx.save(copied, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=16)
    data = (tmp_path / "m.onnx").read_bytes()
    options = {**ORIGIN, "input_shape": "x:2,8"}
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(F)
    found = load(compile_onnx(data, options, Machine(), tmp_path), Machine()).run([x])[0]
    assert np.array_equal(found, load(small(), Machine()).run([x])[0])
    with pytest.raises(Refused, match=r"E10041.*no files beside it"):
        compile_onnx(data, options, Machine())
    (tmp_path / "w.bin").write_bytes(b"short")
    with pytest.raises(Refused, match="E10041"):
        compile_onnx(data, options, Machine(), tmp_path)
    outside = onnx.load_model_from_string(data)
    outside.graph.initializer[0].external_data[0].value = "../w.bin"
    with pytest.raises(Refused, match="leaves the folder"):
        compile_onnx(outside.SerializeToString(), options, Machine(), tmp_path)


def test_equal_models_give_equal_files():
    assert small() == small() and re.match(rb"SIMULATED-OM", small())
