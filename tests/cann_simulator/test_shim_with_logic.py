"""The shim with the real logic behind it: what the stand-in of atc wrote is loaded and run through the C API."""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.cann_simulator.acl_client import machine, printed, run_client

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4) / 8


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """x (batch, 3) -> x @ WEIGHT, in gears of 1, 2 and 4 rows, and for 2 rows."""
    folder = tmp_path_factory.mktemp("om")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n]) for name, n in (("x", 3), ("y", 4))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(WEIGHT, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    environment = machine(report=str(folder / "report.json"), delay_us=500)
    for name, options in (
        ("fixed", ["--input_shape=x:2,3"]),
        ("geared", ["--input_shape=x:-1,3", "--dynamic_batch_size=1,2,4"]),
    ):
        command = [
            "atc",
            "--model=m.onnx",
            "--framework=5",
            f"--output={name}",
            "--soc_version=Ascend910B3",
            "--precision_mode_v2=origin",
            *options,
        ]
        done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder, environment


CLIENT = """
import ctypes as C
acl.start()
def load(name):
    number = C.c_uint32()
    acl.ok("aclmdlLoadFromFile", C.c_char_p((FOLDER + "/" + name + ".om").encode()), C.byref(number))
    desc = acl.handle("aclmdlCreateDesc"); acl.ok("aclmdlGetDesc", desc, number.value)
    return number.value, desc
x = np.arange(12, dtype=np.float32).reshape(4, 3)
def sizes(desc, kind):
    count = acl.handle(f"aclmdlGetNum{kind}s", desc)
    return [acl.handle(f"aclmdlGet{kind}SizeByIndex", desc, k) for k in range(count)]
def run(m, ins, outs, gear=None):
    a, b = [acl.malloc(n) for n in ins], [acl.malloc(n) for n in outs]
    acl.ok("aclrtMemcpy", a[0], ins[0], x.ctypes.data, min(ins[0], x.nbytes), H2D)
    i, ih = acl.dataset(*zip(a, ins)); o, oh = acl.dataset(*zip(b, outs))
    if gear: acl.ok("aclmdlSetDynamicBatchSize", m, i, 1, gear)
    s = acl.out("aclrtCreateStream")
    acl.ok("aclrtMemset", b[0], outs[0], 0, outs[0])
    acl.ok("aclmdlExecuteAsync", m, i, o, s); acl.ok("aclrtSynchronizeStream", s)
    y = acl.get(b[0], outs[0] // 4, np.float32).tolist()
    acl.drop(i, ih); acl.drop(o, oh); acl.ok("aclrtDestroyStream", s)
    for address in a + b: acl.ok("aclrtFree", address)
    return y
def end():
    for m, d in loaded: acl.ok("aclmdlUnload", m); acl.ok("aclmdlDestroyDesc", d)
    acl.ok("aclrtResetDevice", 0); acl.ok("aclFinalize")
"""


def _run(folder, environment, code):
    return run_client(f"FOLDER = {str(folder)!r}\n" + CLIENT + code, environment, real_logic=True)


def test_a_compiled_model_runs_and_leaves_nothing(compiled):
    folder, environment = compiled
    code = """
loaded = [load("fixed")]
m, d = loaded[0]
result = [sizes(d, "Input"), sizes(d, "Output"), run(m, sizes(d, "Input"), sizes(d, "Output"))]
end()
show(result)
"""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert _run(folder, environment, code) == [[24], [32], (x @ WEIGHT).ravel().tolist()]
    assert json.loads((folder / "report.json").read_text())["leaks"] == []


def test_gears_compute_as_many_rows_as_they_say(compiled):
    folder, environment = compiled
    code = """
loaded = [load("geared")]
m, d = loaded[0]
ins, outs = sizes(d, "Input"), sizes(d, "Output")
result = [ins[0], outs[0], *(run(m, ins, outs, gear) for gear in (None, 1, 4, 2))]
end()
show(result)
"""
    product = (np.arange(12, dtype=np.float32).reshape(4, 3) @ WEIGHT).ravel()
    expected = [np.where(np.arange(16) < 4 * rows, product, 0).tolist() for rows in (4, 1, 4, 2)]
    assert _run(folder, environment, code) == [48, 64, *expected]


def test_a_model_of_another_soc_or_cut_short_is_refused_and_leaves_nothing(compiled):
    folder, _ = compiled
    code = """
data = open(FOLDER + "/fixed.om", "rb").read()
def answer(data):
    return acl.aclmdlLoadFromMem(data, len(data), C.byref(C.c_uint32()))
codes = [answer(data), answer(data[:-1]), answer(data[:40]), answer(b"IMOD" + data[4:]), answer(data[:200] + b"#" + data[201:])]
show([codes, acl.leaks().get("model")])
"""
    here = _run(folder, machine(), code)
    assert here[0][0] == 0 and all(answer // 1000 in (145, 507, 545) for answer in here[0][1:]) and here[1] == [1, 0]
    there = _run(folder, machine(soc="Ascend310P3"), code)
    assert there[0][0] == 507008 and there[1] is None


def test_an_option_the_graph_engine_does_not_know_and_an_operator_that_is_not_there(compiled):
    folder, environment = compiled
    code = """
desc = acl.handle("aclCreateTensorDesc", 0, 1, (C.c_int64 * 1)(4), 2)
buffer = acl.handle("aclCreateDataBuffer", acl.malloc(16), 16)
one = (C.c_uint64 * 1)
call = lambda kind: acl.aclopCompileAndExecute(C.c_char_p(kind), 1, one(desc), one(buffer), 1, one(desc), one(buffer), None, 0, 0, None, None) or acl.aclrtSynchronizeStream(None)
show([call(b"Abs"), call(b"NoSuchThing"), acl.error()])
"""
    worked, refused, said = _run(folder, environment, code)
    assert worked == 0 and refused not in (0, 500000) and "NoSuchThing" in said


@pytest.mark.parametrize("variable", ["ASCEND_LOG_PRINT_TO_STDOUT", "ASCEND_SLOG_PRINT_TO_STDOUT", None])
def test_the_log_goes_to_stdout_where_it_is_asked_for(compiled, variable):
    """What a provider keeps to itself is read there, under the name of either release."""
    folder, environment = compiled
    code = """
acl.start()
acl.aclmdlLoadFromMem(b"no model", 8, C.byref(C.c_uint32()))
"""
    asked = {} if variable is None else {variable: "1"}
    done = printed(f"FOLDER = {str(folder)!r}\n{code}", {**environment, **asked}, real_logic=True)
    assert ("[ERROR] CANN(simulated): " in done) == (variable is not None)
