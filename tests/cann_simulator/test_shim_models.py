"""Models of the simulated CANN: loaded, described, run, unloaded; gears; and the code that every wrong order gets."""

from __future__ import annotations

import json

import pytest

from tests.cann_simulator.acl_client import machine, run_client

RUN = """
acl.start()
m = acl.load(adder())
a, b = acl.malloc(16), acl.malloc(16)
acl.put(a, np.arange(4, dtype=np.int32))
i, ih = acl.dataset((a, 16))
o, oh = acl.dataset((b, 16))
"""


@pytest.fixture(scope="module")
def plain():
    return machine()


def test_a_model_runs_from_memory_and_from_a_file_at_once_and_on_a_stream(plain, tmp_path):
    path = tmp_path / "model.om"
    code = (
        RUN
        + f"""
acl.ok("aclmdlExecute", m, i, o)
seen = [acl.get(b, 4, np.int32).tolist()]
open({str(path)!r}, "w").write(json.dumps(adder(shift=10)))
n = C.c_uint32()
acl.ok("aclmdlLoadFromFile", C.c_char_p({str(path)!r}.encode()), C.byref(n))
s = acl.out("aclrtCreateStream")
acl.ok("aclmdlExecuteAsync", n.value, i, o, s)
acl.ok("aclrtSynchronizeStream", s)
seen.append(acl.get(b, 4, np.int32).tolist())
show(seen)
"""
    )
    assert run_client(code, plain) == [[1, 2, 3, 4], [10, 11, 12, 13]]


def test_a_model_says_what_it_takes_and_gives(plain):
    code = """
acl.start()
long = "n" * 200
m = acl.load({"inputs": [["x", 0, [2, -1, 3], 96], [long, 4, [5], 5]], "outputs": [["y", 9, [], 8]], "weight_bytes": 70, "work_bytes": 30})
d = acl.handle("aclmdlCreateDesc")
acl.ok("aclmdlGetDesc", d, m)
dims, other = Dims(), Dims()
acl.ok("aclmdlGetInputDims", d, 0, C.byref(dims)); acl.ok("aclmdlGetInputDims", d, 1, C.byref(other))
index = C.c_size_t(99)
acl.ok("aclmdlGetInputIndexByName", d, C.c_char_p(long.encode()), C.byref(index))
show([
    acl.handle("aclmdlGetNumInputs", d), acl.handle("aclmdlGetNumOutputs", d),
    dims.name.decode(), dims.tuple(), other.name.decode(), acl.text("aclmdlGetTensorRealName", d, C.c_char_p(other.name)) == long,
    acl.handle("aclmdlGetInputSizeByIndex", d, 0), acl.handle("aclmdlGetOutputSizeByIndex", d, 0),
    acl.aclmdlGetInputDataType(d, 1), acl.aclmdlGetOutputDataType(d, 0), index.value,
    acl.aclmdlGetInputDims(d, 2, C.byref(dims)), acl.handle("aclmdlGetInputSizeByIndex", d, 2), acl.aclmdlGetInputDataType(d, 2),
    acl.aclmdlGetOutputIndexByName(d, C.c_char_p(b"none"), C.byref(index)),
])
"""
    expected = [2, 1, "x", [2, -1, 3], "acl_modelId_1_input_1", True, 96, 8, 4, 9, 1, 100000, 0, -1, 100000]
    assert run_client(code, plain) == expected


def test_weights_and_work_memory_take_device_memory_unless_the_client_brings_it():
    code = """
acl.start()
def live(): return acl.report()["devices"][0]["live_bytes"]
data = json.dumps(adder(weight_bytes=3000, work_bytes=2000)).encode()
work, weights, n = C.c_size_t(), C.c_size_t(), C.c_uint32()
acl.ok("aclmdlQuerySizeFromMem", data, len(data), C.byref(work), C.byref(weights))
m = acl.load(adder(weight_bytes=3000, work_bytes=2000))
seen = [work.value, weights.value, live()]
acl.ok("aclmdlUnload", m)
seen.append(live())
w, v = acl.malloc(2000), acl.malloc(3000)
acl.ok("aclmdlLoadFromMemWithMem", data, len(data), C.byref(n), w, 2000, v, 3000)
seen.append(live())
seen.append(acl.aclmdlLoadFromMemWithMem(data, len(data), C.byref(n), w, 2000, v, 2999))
seen.append(acl.try_load(adder(weight_bytes=2000000))[0])
seen.append(live())
show(seen)
"""
    assert run_client(code, machine(memory_bytes=1 << 20)) == [2000, 3000, 5000, 0, 5000, 145000, 245000, 5000]


def test_an_output_without_a_buffer_is_allocated_and_described(plain):
    code = (
        RUN
        + """
n = acl.load({"inputs": [["x", 3, [-1], 0]], "outputs": [["y", 3, [-1], 0]], "shift": 5})
o2, h2 = acl.dataset((0, 0))
seen = [acl.aclmdlExecute(n, i, o2)]
dims = (C.c_int64 * 1)(3)
acl.ok("aclmdlSetDatasetTensorDesc", i, acl.handle("aclCreateTensorDesc", 3, 1, dims, 2), 0)
acl.ok("aclmdlExecute", n, i, o2)
address, size = acl.handle("aclGetDataBufferAddr", h2[0]), acl.handle("aclGetDataBufferSizeV2", h2[0])
desc = acl.handle("aclmdlGetDatasetTensorDesc", o2, 0)
dim = C.c_int64()
acl.ok("aclGetTensorDescDimV2", desc, 0, C.byref(dim))
seen += [size, acl.handle("aclGetTensorDescNumDims", desc), dim.value, acl.get(address, 3, np.int32).tolist(), acl.aclrtFree(address)]
o3, h3 = acl.dataset((0, 0))
seen.append(acl.aclmdlExecuteAsync(n, i, o3, None))
show(seen)
"""
    )
    assert run_client(code, plain) == [145021, 12, 1, 3, [5, 6, 7], 0, 145000]


MISUSE = {
    "no such model": ("r = acl.aclmdlExecute(99, i, o)", 145003),
    "run after unload": ("acl.ok('aclmdlUnload', m); r = acl.aclmdlExecute(m, i, o)", 145003),
    "unload twice": ("acl.ok('aclmdlUnload', m); r = acl.aclmdlUnload(m)", 145003),
    "describe what is not there": ("r = acl.aclmdlGetDesc(acl.handle('aclmdlCreateDesc'), 99)", 145003),
    "no bytes": ("r = acl.aclmdlLoadFromMem(b'', 0, C.byref(C.c_uint32()))", 145006),
    "no model": ("r = acl.aclmdlLoadFromMem(b'xyz', 3, C.byref(C.c_uint32()))", 545001),
    "no file": ("r = acl.aclmdlLoadFromFile(C.c_char_p(b'/nowhere/m.om'), C.byref(C.c_uint32()))", 145002),
    "a folder": ("r = acl.aclmdlLoadFromFile(C.c_char_p(b'/tmp'), C.byref(C.c_uint32()))", 145002),
    "no dataset": ("r = acl.aclmdlExecute(m, None, o)", 100000),
    "destroyed dataset": ("acl.ok('aclmdlDestroyDataset', i); r = acl.aclmdlExecute(m, i, o)", 100000),
    "destroyed buffer": ("acl.ok('aclDestroyDataBuffer', ih[0]); r = acl.aclmdlExecute(m, i, o)", 100000),
    "a stream for a dataset": ("r = acl.aclmdlExecute(m, acl.out('aclrtCreateStream'), o)", 100000),
    "too few inputs": ("r = acl.aclmdlExecute(m, acl.dataset()[0], o)", 145000),
    "host memory": ("r = acl.aclmdlExecute(m, acl.dataset((acl.out('aclrtMallocHost', 16), 16))[0], o)", 145000),
    "buffer too small": ("r = acl.aclmdlExecute(m, acl.dataset((a, 15))[0], o)", 145000),
    "buffer too long": ("r = acl.aclmdlExecute(m, acl.dataset((a, 17))[0], o)", 145000),
    "freed memory": ("acl.ok('aclrtFree', a); r = acl.aclmdlExecute(m, i, o)", 145000),
    "freed output": ("acl.ok('aclrtFree', b); r = acl.aclmdlExecuteAsync(m, i, o, None)", 145000),
    "another context": ("acl.out('aclrtCreateContext', 0); r = acl.aclmdlExecute(m, i, o)", 107004),
    "unload in another context": ("acl.out('aclrtCreateContext', 0); r = acl.aclmdlUnload(m)", 107004),
    "stream of another context": (
        "c = acl.out('aclrtGetCurrentContext'); acl.out('aclrtCreateContext', 0); s = acl.out('aclrtCreateStream');"
        "acl.ok('aclrtSetCurrentContext', c); r = acl.aclmdlExecuteAsync(m, i, o, s)",
        107003,
    ),
    "destroyed stream": ("s = acl.out('aclrtCreateStream'); acl.ok('aclrtDestroyStream', s); r = acl.aclmdlExecuteAsync(m, i, o, s)", 107000),
    "a bug in the logic": ("r = acl.aclmdlExecute(acl.load(adder(bug=True)), i, o)", 500000),
    "not simulated": ("r = acl.aclmdlBundleLoadFromFile(None, None)", 200001),
    "start twice": ("r = acl.aclInit(None)", 100002),
}  # fmt: skip


def test_misuse_gets_the_documented_code_a_text_and_harms_nobody(plain):
    """Each case after a fresh start, all in one process: what one leaves must not trouble the next."""
    after = """
said = acl.error()
acl.start() if acl.aclrtGetCurrentContext(C.byref(C.c_uint64())) else None
x, y, k = acl.malloc(16), acl.malloc(16), acl.load(adder())
acl.put(x, np.zeros(4, np.int32))
acl.ok("aclmdlExecute", k, acl.dataset((x, 16))[0], acl.dataset((y, 16))[0])
answers[name] = [r, bool(said), acl.get(y, 4, np.int32).tolist()]
acl.ok("aclFinalize")
"""
    cases = {name: RUN + code + after for name, (code, _) in MISUSE.items()}
    code = f"answers = {{}}\nfor name, case in {cases!r}.items(): exec(case)\nshow(answers)"
    assert run_client(code, plain) == {name: [answer, True, [1, 1, 1, 1]] for name, (_, answer) in MISUSE.items()}


def test_a_code_that_no_document_gives_says_so(plain):
    code = RUN + "m = acl.load(adder(bug=True))\nshow([acl.aclmdlExecute(m, i, o), acl.error(), acl.error()])"
    said = run_client(code, plain)
    assert said[0] == 500000 and "a bug in the logic" in said[1] and said[2] == ""
    code = RUN + "show([acl.try_load({'inputs': [], 'outputs': 5})[0], acl.aclmdlUnload(99), acl.error()])"
    assert "guess" not in run_client(code, plain)[2]


def test_one_model_on_two_streams_at_once_and_unloaded_in_flight_is_refused(plain):
    code = (
        RUN
        + """
m = acl.load(adder(seconds=0.5))
s, t = acl.out("aclrtCreateStream"), acl.out("aclrtCreateStream")
acl.ok("aclmdlExecuteAsync", m, i, o, s)
acl.ok("aclmdlExecuteAsync", m, i, o, s)
seen = [acl.aclmdlExecuteAsync(m, i, o, t), acl.aclmdlExecute(m, i, o), acl.aclmdlUnload(m)]
acl.ok("aclrtSynchronizeStream", s)
seen += [acl.aclmdlExecuteAsync(m, i, o, t), acl.aclrtSynchronizeStream(t), acl.aclmdlUnload(m)]
show(seen)
"""
    )
    assert run_client(code, plain) == [507011, 507011, 545009, 0, 0, 0]


def test_memory_freed_while_a_run_waits_fails_that_run_when_somebody_synchronises(plain):
    code = (
        RUN
        + """
slow = acl.load(adder(seconds=0.3))
s = acl.out("aclrtCreateStream")
c = acl.malloc(16)
acl.ok("aclmdlExecuteAsync", slow, i, o, s)
acl.ok("aclmdlExecuteAsync", m, acl.dataset((c, 16))[0], o, s)
acl.ok("aclrtFree", c)
show([acl.aclrtSynchronizeStream(s), "freed" in acl.error(), acl.aclrtSynchronizeStream(s)])
"""
    )
    assert run_client(code, plain) == [145000, True, 0]


# --- gears ------------------------------------------------------------------------------------------------------------


def geared(kind: str) -> dict:
    """x: (n, 2) and z: (2,), with gears n = 1, 4, 2; the extra input is the last."""
    values = {"batch": lambda n: [n], "image": lambda n: [n, 2], "dims": lambda n: [n]}[kind]
    gears = [{"values": values(n), "inputs": [[n, 2], [2]], "outputs": [[n, 2]]} for n in (1, 4, 2)]
    inputs = [["x", 3, [-1, 2], 32], ["z", 3, [2], 8], ["ascend_mbatch_shape_data", 3, [1], 4]]
    return {"inputs": inputs, "outputs": [["y", 3, [-1, 2], 32]], "gears": gears, "gear_kind": kind, "gear_input": 2}


GEARS = """
acl.start()
m = acl.load(json.loads(MODEL))
x, z, g, y = acl.malloc(32), acl.malloc(8), acl.malloc(4), acl.malloc(32)
acl.put(x, np.arange(8, dtype=np.int32)); acl.put(z, np.array([10, 20], np.int32))
i, ih = acl.dataset((x, 32), (z, 8), (g, 4)); o, oh = acl.dataset((y, 32))
d = acl.handle("aclmdlCreateDesc"); acl.ok("aclmdlGetDesc", d, m)
full = [10, 21, 12, 23, 14, 25, 16, 27]
def run():
    acl.ok("aclrtMemset", y, 32, 0, 32); acl.ok("aclmdlExecute", m, i, o)
    dims = Dims(); acl.ok("aclmdlGetCurOutputDims", d, 0, C.byref(dims))
    return [acl.get(y, 8, np.int32).tolist(), dims.tuple()]
def dims_of(*values):
    dims = Dims(); dims.count = len(values); dims.dims[:len(values)] = values
    return C.byref(dims)
"""
FULL = [10, 21, 12, 23, 14, 25, 16, 27]


def with_gears(kind: str, code: str, environment):
    return run_client(f"MODEL = {json.dumps(geared(kind))!r}\n" + GEARS + code, environment)


def test_nothing_set_takes_the_largest_gear_in_silence_and_what_is_set_stays(plain):
    code = """
seen = [run()]
acl.ok("aclmdlSetDynamicBatchSize", m, i, 2, 2)
seen += [run(), run()]
batches = (C.c_uint64 * 129)()
acl.ok("aclmdlGetDynamicBatch", d, batches)
show([*seen, list(batches[:4])])
"""
    two = [[10, 21, 12, 23, 0, 0, 0, 0], [2, 2]]
    assert with_gears("batch", code, plain) == [[FULL, [4, 2]], two, two, [3, 1, 4, 2]]


def test_a_gear_set_while_a_run_waits_changes_that_run(plain):
    code = """
slow = acl.load(adder(seconds=0.3)); s = acl.out("aclrtCreateStream")
a, b = acl.malloc(16), acl.malloc(16)
acl.ok("aclrtMemset", y, 32, 0, 32)
acl.ok("aclmdlSetDynamicBatchSize", m, i, 2, 4)
acl.ok("aclmdlExecuteAsync", slow, acl.dataset((a, 16))[0], acl.dataset((b, 16))[0], s)
acl.ok("aclmdlExecuteAsync", m, i, o, s)
acl.ok("aclmdlSetDynamicBatchSize", m, i, 2, 1)
acl.ok("aclrtSynchronizeStream", s)
show(acl.get(y, 8, np.int32).tolist())
"""
    assert with_gears("batch", code, plain) == [10, 21, 0, 0, 0, 0, 0, 0]


def test_heights_and_widths_are_told_and_set(plain):
    code = """
sizes = (C.c_uint64 * 257)()
acl.ok("aclmdlGetDynamicHW", d, -1, sizes)
acl.ok("aclmdlSetDynamicHWSize", m, i, 2, 1, 2)
show([list(sizes[:7]), run()[1], acl.aclmdlSetDynamicHWSize(m, i, 2, 3, 2)])
"""
    assert with_gears("image", code, plain) == [[3, 1, 2, 4, 2, 2, 2], [1, 2], 145013]


def test_dims_are_those_of_all_inputs_one_after_the_other(plain):
    code = """
count = C.c_size_t()
acl.ok("aclmdlGetInputDynamicGearCount", d, -1, C.byref(count))
told = (Dims * 3)()
acl.ok("aclmdlGetInputDynamicDims", d, -1, told, 3)
seen = [count.value, [t.tuple() for t in told], acl.aclmdlGetInputDynamicDims(d, -1, told, 2), acl.aclmdlGetInputDynamicGearCount(d, 0, C.byref(count))]
acl.ok("aclmdlSetInputDynamicDims", m, i, 2, dims_of(2, 2, 2))
show([*seen, run()[1], acl.aclmdlSetInputDynamicDims(m, i, 2, dims_of(2)), acl.aclmdlSetInputDynamicDims(m, i, 2, dims_of(3, 2, 2))])
"""
    expected = [3, [[1, 2, 2], [4, 2, 2], [2, 2, 2]], 100000, 100000, [2, 2], 145012, 145013]
    assert with_gears("dims", code, plain) == expected


WRONG_GEARS = {
    "acl.aclmdlSetDynamicBatchSize(m, i, 2, 3)": 145013,
    "acl.aclmdlSetDynamicBatchSize(m, i, 0, 2)": 145011,
    "acl.aclmdlSetDynamicBatchSize(m, acl.dataset()[0], 2, 2)": 145011,
    "acl.aclmdlSetDynamicBatchSize(m, acl.dataset((x, 32), (z, 8), (0, 0))[0], 2, 2)": 145011,
    "acl.aclmdlSetDynamicBatchSize(m, acl.dataset((x, 32), (z, 8), (g, 2))[0], 2, 2)": 145012,
    "acl.aclmdlSetDynamicBatchSize(99, i, 2, 2)": 145003,
    "acl.aclmdlSetDynamicBatchSize(m, None, 2, 2)": 100000,
    "acl.aclmdlSetDynamicBatchSize(acl.load(adder()), i, 2, 2)": 100019,
    "acl.aclmdlSetDynamicHWSize(m, i, 2, 2, 2)": 145000,
    "acl.aclmdlGetDynamicBatch(None, None)": 100000,
}


def test_a_gear_that_cannot_be_set_gets_the_documented_code(plain):
    code = f"show([eval(case) for case in {list(WRONG_GEARS)!r}])"
    assert with_gears("batch", code, plain) == list(WRONG_GEARS.values())


# --- single operators ---------------------------------------------------------------------------------------------------


def test_a_single_operator_gets_its_attributes_and_its_operands(plain):
    code = """
acl.start()
a, b, y = acl.malloc(16), acl.malloc(16), acl.malloc(16)
acl.put(a, np.arange(4, dtype=np.int32)); acl.put(b, np.ones(4, np.int32))
dims = (C.c_int64 * 1)(4)
def operands(*addresses):
    descs = [acl.handle("aclCreateTensorDesc", 3, 1, dims, 2) for _ in addresses]
    buffers = [acl.handle("aclCreateDataBuffer", x, 16) for x in addresses]
    return len(addresses), (C.c_uint64 * len(addresses))(*descs), (C.c_uint64 * len(addresses))(*buffers)
def call(kind):
    code = acl.aclopCompileAndExecute(C.c_char_p(kind), *operands(a, b), *operands(y), attributes, 0, 0, None, None)
    return code or acl.aclrtSynchronizeStream(None)
attributes = acl.handle("aclopCreateAttr")
acl.ok("aclopSetAttrInt", attributes, C.c_char_p(b"alpha"), 100)
acl.ok("aclopSetAttrString", attributes, C.c_char_p(b"note"), C.c_char_p(b'a "quoted" \\\\ one'))
acl.ok("aclopSetAttrListInt", attributes, C.c_char_p(b"axes"), 2, (C.c_int64 * 2)(1, 2))
show([call(b"Add"), acl.get(y, 4, np.int32).tolist(), call(b"Refuse"), "E10001" in acl.error(), call(b"Add")])
"""
    assert run_client(code, plain) == [0, [100, 101, 102, 103], 500002, True, 0]
