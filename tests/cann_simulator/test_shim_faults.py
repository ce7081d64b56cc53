"""Faults on demand, what is left over, and that no order of calls ends the process."""

from __future__ import annotations

import json
import os
import random
import subprocess

import pytest

from porting.backends.cann_simulator.build import compiler
from porting.backends.cann_simulator.machine import Fault
from tests.cann_simulator.acl_client import machine, run_client

MODEL = """
acl.start()
m = acl.load(adder())
a, b = acl.malloc(16), acl.malloc(16)
acl.put(a, np.zeros(4, np.int32))
i, ih = acl.dataset((a, 16))
o, oh = acl.dataset((b, 16))
s = acl.out("aclrtCreateStream")
"""


@pytest.mark.parametrize(
    ("fault", "answers"),
    [
        (("execute-failed", 2), [0, 507011, 0, 0]),
        (("execute-failed", 3), [0, 0, 507011, 0]),
        (("timeout", 2), [0, 507012, 0, 0]),
        (("timeout", 3), [0, 0, 507012, 0]),
        (("device-lost", 3), [0, 0, 507010, 507010]),
    ],
)
def test_an_execution_fails_when_asked_for_and_an_asynchronous_one_when_somebody_synchronises(fault, answers):
    code = (
        MODEL
        + """
seen = [acl.aclmdlExecute(m, i, o), acl.aclmdlExecute(m, i, o)]
acl.ok("aclmdlExecuteAsync", m, i, o, s)
seen += [acl.aclrtSynchronizeStream(s), acl.aclmdlExecute(m, i, o)]
show([seen, acl.error() != "", acl.error()])
"""
    )
    assert run_client(code, machine(faults=(Fault(*fault),))) == [answers, True, ""]


def test_a_lost_device_answers_nothing_else_and_another_goes_on():
    code = (
        MODEL
        + """
seen = [acl.aclmdlExecute(m, i, o), acl.aclrtMalloc(C.byref(C.c_uint64()), 64, 0), acl.aclrtMemset(a, 4, 0, 4),
        acl.aclrtSynchronizeStream(s), acl.aclrtSetDevice(0), acl.aclrtSetDevice(1)]
other = acl.load(adder()); x = acl.malloc(16)
seen.append(acl.aclmdlExecute(other, acl.dataset((x, 16))[0], acl.dataset((x, 16))[0]))
show(seen)
"""
    )
    lost = 507010
    assert run_client(code, machine(devices=2, faults=(Fault("device-lost"),))) == [lost] * 5 + [0, 0]


def test_a_load_and_an_allocation_fail_when_asked_for():
    code = """
acl.start()
codes = [acl.try_load(adder())[0] for _ in range(3)]
codes += [acl.aclrtMalloc(C.byref(C.c_uint64()), 64, 0) for _ in range(4)]
show([codes, acl.report()["loads"], acl.report()["devices"][0]["live_bytes"]])
"""
    faults = (Fault("load-failed", 2), Fault("oom", 1), Fault("oom", 3))
    assert run_client(code, machine(faults=faults)) == [[0, 545001, 0, 207001, 0, 207001, 0], 3, 128]


def test_a_model_without_room_on_the_device_leaves_nothing():
    code = """
acl.start()
codes = [acl.try_load(adder(weight_bytes=100, work_bytes=100))[0] for _ in range(2)]
show([codes, acl.leaks()])
"""
    assert run_client(code, machine(faults=(Fault("oom", 2),))) == [[245000, 0], {"model": [1, 0], "device memory": [2, 200]}]


# --- the report -------------------------------------------------------------------------------------------------------

LEFT = {
    "device memory": ("acl.malloc(100); acl.malloc(50)", [2, 150]),
    "pinned host memory": ("acl.out('aclrtMallocHost', 30)", [1, 30]),
    "model": ("acl.load(adder())", [1, 0]),
    "stream": ("acl.out('aclrtCreateStream')", None),  # goes with the device's default context
    "event": ("acl.out('aclrtCreateEvent')", [1, 0]),
    "dataset": ("acl.handle('aclmdlCreateDataset')", [1, 0]),
    "data buffer": ("acl.handle('aclCreateDataBuffer', None, 0)", [1, 0]),
    "model description": ("acl.handle('aclmdlCreateDesc')", [1, 0]),
    "tensor description": ("acl.handle('aclCreateTensorDesc', 0, 0, None, 2)", [1, 0]),
    "context": ("acl.out('aclrtCreateContext', 0)", [1, 0]),
    "operator attributes": ("acl.handle('aclopCreateAttr')", [1, 0]),
}


@pytest.mark.parametrize("ends", ["finalised", "forgotten"])
def test_what_a_client_leaves_is_named(tmp_path, ends):
    path = tmp_path / "report.json"
    end = 'acl.ok("aclFinalize")' if ends == "finalised" else ""
    run_client("\n".join(("acl.start()", *(code for code, _ in LEFT.values()), end, "show(0)")), machine(report=str(path)))
    report = json.loads(path.read_text())
    assert report["finalised"] is (ends == "finalised")
    expected = {kind: left for kind, (_, left) in LEFT.items() if left}
    if ends == "forgotten":
        expected["stream"] = [1, 0]
    assert {leak["kind"]: [leak["count"], leak["bytes"]] for leak in report["leaks"]} == expected


ORDERLY = """
d = acl.handle("aclmdlCreateDesc"); acl.ok("aclmdlGetDesc", d, m)
for _ in range(20):
    acl.ok("aclmdlExecuteAsync", m, i, o, s); acl.ok("aclmdlExecuteAsync", m, i, o, s)
acl.ok("aclrtSynchronizeStream", s)
acl.ok("aclmdlDestroyDesc", d)
acl.drop(i, ih); acl.drop(o, oh)
acl.ok("aclrtFree", a); acl.ok("aclrtFree", b)
acl.ok("aclmdlUnload", m); acl.ok("aclrtDestroyStream", s); acl.ok("aclrtResetDevice", 0); acl.ok("aclFinalize")
"""


def test_an_orderly_client_leaves_nothing_and_may_start_again(tmp_path):
    path = tmp_path / "report.json"
    run_client(2 * (MODEL + ORDERLY) + "show(0)", machine(report=str(path)))
    report = json.loads(path.read_text())
    assert report["leaks"] == [] and report["finalised"] and report["executions"] == 80
    assert [device["live_bytes"] for device in report["devices"]] == [0]


def test_without_an_interpreter_the_simulator_says_so(tmp_path):
    source, program = tmp_path / "plain.cpp", tmp_path / "plain"
    source.write_text(
        "#include <cstdio>\n"
        'extern "C" int aclInit(const char*);\n'
        'extern "C" const char* aclGetRecentErrMsg();\n'
        'int main() { printf("%d ", aclInit(nullptr)); printf("%s", aclGetRecentErrMsg()); }\n'
    )
    environment = {**os.environ, **machine()}
    library = f"{environment['ASCEND_HOME_PATH']}/lib64"
    command = [
        compiler(),
        str(source),
        "-o",
        str(program),
        f"-L{library}",
        "-lascendcl",
        "-lcannsim",
        f"-Wl,-rpath-link,{library}",
    ]
    subprocess.run(command, check=True, capture_output=True)
    said = subprocess.run([program], env=environment, capture_output=True, text=True, check=True).stdout
    assert said.startswith("500000 ") and "interpreter" in said


# --- any order of calls -----------------------------------------------------------------------------------------------

FUZZ = """
import random
rng = random.Random(SEED)
known = [0, 1, 2, 3, 99, 1 << 40, -1]
kept = np.zeros(1 << 16, np.uint8)          # host memory that stays
known += [kept.ctypes.data]
acl.start()
known += [acl.out("aclrtGetCurrentContext")]
def some(): return rng.choice(known)
def new(name, *arguments):
    value = C.c_uint64()
    if getattr(acl, name)(C.byref(value), *arguments) == 0: known.append(value.value)
def made(name, *arguments):
    value = acl.handle(name, *arguments)
    if value: known.append(value)
def load():
    code, number = acl.try_load(rng.choice([adder(), json.loads(GEARED), adder(bug=False, weight_bytes=rng.randrange(5000))]))
    if code == 0: known.append(number)
dims = Dims(); dims.count = 3; dims.dims[:3] = (4, 2, 2)
size = C.c_size_t(); status = C.c_int(); ms = C.c_float()
def host(): return kept.ctypes.data
ACTIONS = [
    lambda: new("aclrtMalloc", rng.choice([1, 16, 32, 100, 5000, 0]), 0),
    lambda: new("aclrtCreateStream"), lambda: new("aclrtCreateEvent"), lambda: new("aclrtCreateContext", rng.randrange(3)),
    lambda: made("aclmdlCreateDataset"), lambda: made("aclmdlCreateDesc"), lambda: made("aclCreateDataBuffer", some(), rng.choice([0, 8, 16, 32])),
    lambda: made("aclCreateTensorDesc", rng.randrange(-1, 40), 1, (C.c_int64 * 1)(rng.choice([-1, 0, 4, 1 << 62])), 2),
    load, load,
    lambda: acl.aclrtFree(some()), lambda: acl.aclrtDestroyStream(some()), lambda: acl.aclrtDestroyStreamForce(some()),
    lambda: acl.aclrtDestroyEvent(some()), lambda: acl.aclrtDestroyContext(some()), lambda: acl.aclmdlUnload(some() & 0xFFFFFFFF),
    lambda: acl.aclmdlDestroyDataset(some()), lambda: acl.aclmdlDestroyDesc(some()), lambda: acl.aclDestroyDataBuffer(some()), lambda: acl.aclDestroyTensorDesc(some()),
    lambda: acl.aclrtSetDevice(rng.randrange(-1, 3)), lambda: acl.aclrtResetDevice(rng.randrange(-1, 3)), lambda: acl.aclrtSetCurrentContext(some()),
    lambda: acl.aclmdlAddDatasetBuffer(some(), some()), lambda: acl.aclmdlAddDatasetBuffer(some(), some()),
    lambda: acl.aclmdlSetDatasetTensorDesc(some(), some(), rng.randrange(3)), lambda: acl.aclmdlGetDatasetTensorDesc(some(), rng.randrange(3)),
    lambda: acl.aclUpdateDataBuffer(some(), some(), rng.choice([0, 16, 32])),
    lambda: acl.aclmdlExecute(some() & 0xFFFFFFFF, some(), some()), lambda: acl.aclmdlExecuteAsync(some() & 0xFFFFFFFF, some(), some(), some()),
    lambda: run_well(), lambda: run_well(), lambda: run_well(),
    lambda: acl.aclmdlGetDesc(some(), some() & 0xFFFFFFFF), lambda: acl.handle("aclmdlGetNumInputs", some()), lambda: acl.handle("aclmdlGetInputSizeByIndex", some(), rng.randrange(4)),
    lambda: acl.aclmdlGetInputDims(some(), rng.randrange(4), C.byref(dims)), lambda: acl.aclmdlGetCurOutputDims(some(), rng.randrange(4), C.byref(dims)),
    lambda: acl.text("aclmdlGetInputNameByIndex", some(), rng.randrange(4)),
    lambda: acl.aclmdlSetDynamicBatchSize(some() & 0xFFFFFFFF, some(), rng.randrange(4), rng.randrange(5)),
    lambda: acl.aclmdlSetInputDynamicDims(some() & 0xFFFFFFFF, some(), rng.randrange(4), C.byref(dims)),
    lambda: acl.aclrtMemcpy(device(), 32, host(), 32, rng.randrange(-1, 9)),
    lambda: acl.aclrtMemcpyAsync(device(), 32, host(), 16, H2D, some()), lambda: acl.aclrtMemcpyAsync(host(), 32, device(), 16, D2H, some()),
    lambda: acl.aclrtMemcpyAsync(device(), 32, device(), 16, D2D, some()), lambda: acl.aclrtMemset(device(), 32, 1, rng.choice([0, 16, 64])),
    lambda: acl.aclrtRecordEvent(some(), some()), lambda: acl.aclrtStreamWaitEvent(some(), some()), lambda: acl.aclrtQueryEventStatus(some(), C.byref(status)),
    lambda: acl.aclrtSynchronizeStream(some()), lambda: acl.aclrtSynchronizeEvent(some()), lambda: acl.aclrtSynchronizeDevice(), lambda: acl.aclrtStreamQuery(some(), C.byref(status)),
    lambda: acl.aclrtStreamAbort(some()), lambda: acl.aclrtEventElapsedTime(C.byref(ms), some(), some()), lambda: acl.error(), lambda: acl.report(),
    lambda: (acl.aclFinalize(), acl.aclInit(None), acl.aclrtSetDevice(0)) if rng.random() < 0.05 else None,
]
def device(): return rng.choice([k for k in known if k > 1 << 40 and (k >> 56) != 0x40 and k != host()] or [12345 << 40])
wrong = []
def run_well():
    acl.aclrtSetDevice(0)
    code, m = acl.try_load(adder(shift=7))
    x, y = C.c_uint64(), C.c_uint64()
    if code or acl.aclrtMalloc(C.byref(x), 16, 0) or acl.aclrtMalloc(C.byref(y), 16, 0): return
    data = np.full(4, rng.randrange(1000), np.int32)
    i, o = acl.dataset((x.value, 16)), acl.dataset((y.value, 16))
    out = np.zeros(4, np.int32)
    codes = [acl.aclrtMemcpy(x, 16, data.ctypes.data, 16, H2D), acl.aclmdlExecute(m, i[0], o[0]), acl.aclrtMemcpy(out.ctypes.data, 16, y, 16, D2H)]
    if not any(codes) and (out != data + 7).any(): wrong.append(out.tolist())
    known.extend([m, x.value, y.value, i[0], o[0], *i[1], *o[1]])
count = 0
for _ in range(STEPS):
    rng.choice(ACTIONS)(); count += 1
    if len(known) > 300: known = known[:9] + rng.sample(known[9:], 150)
acl.aclFinalize()
show([count, wrong])
"""


@pytest.mark.parametrize("seed", range(6))
def test_no_order_of_calls_ends_the_process_or_gives_a_wrong_result(seed):
    gears = [{"values": [n], "inputs": [[n, 2], [2]], "outputs": [[n, 2]]} for n in (1, 4, 2)]
    inputs = [["x", 3, [-1, 2], 32], ["z", 3, [2], 8], ["ascend_mbatch_shape_data", 3, [1], 4]]
    model = {"inputs": inputs, "outputs": [["y", 3, [-1, 2], 32]], "gears": gears, "gear_kind": "batch", "gear_input": 2}
    kinds = random.Random(seed)
    faults = [Fault(kind, kinds.randrange(1, 60)) for kind in ("oom", "timeout", "execute-failed", "load-failed") * (seed % 2)]
    faults += [Fault("device-lost", 40)] * (seed == 5)
    code = f"SEED, STEPS, GEARED = {seed}, 3000, {json.dumps(model)!r}\n" + FUZZ
    environment = machine(memory_bytes=1 << 20, devices=2, delay_us=20 * (seed % 3), seed=seed, faults=tuple(faults))
    assert run_client(code, environment, timeout=120) == [3000, []]
