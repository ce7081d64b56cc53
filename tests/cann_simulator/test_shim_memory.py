"""Device memory of the simulated CANN: what may be touched by whom, and the code that everything else gets."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.cann_simulator.acl_client import ROOT, machine, run_client


@pytest.fixture(scope="module")
def small():
    return machine(memory_bytes=1 << 20)


def test_what_is_copied_in_comes_out(small):
    code = """
acl.start()
a, b = acl.malloc(4000), acl.malloc(4000)
x = np.arange(1000, dtype=np.int32)
acl.put(a, x)
acl.ok("aclrtMemcpy", b, 4000, a, 4000, D2D)
acl.ok("aclrtMemset", b, 4000, 0, 40)
show([acl.get(b, 1000, np.int32)[10:].tolist() == list(range(10, 1000)), acl.get(b, 10, np.int32).tolist()])
"""
    assert run_client(code, small) == [True, [0] * 10]


def test_the_host_that_follows_a_device_address_faults(small):
    code = "from tests.cann_simulator.acl_client import *\nstand_in()\nacl = Acl()\nacl.start()\nC.string_at(acl.malloc(64), 1)"
    import os

    environment = {**os.environ, **small, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGSEGV


def test_fresh_memory_is_poisoned_also_where_memory_was_freed(small):
    code = """
acl.start()
a = acl.malloc(64); acl.put(a, np.zeros(16, np.float32)); acl.ok("aclrtFree", a)
seen = [np.isnan(acl.get(acl.malloc(64), 16, np.float32)).all().item() for _ in range(40)]
show(seen)
"""
    assert run_client(code, small) == [True] * 40


def test_a_freed_address_is_not_given_out_again_at_once(small):
    code = """
acl.start()
a = acl.malloc(64); acl.ok("aclrtFree", a)
show(a in [acl.malloc(64) for _ in range(50)])
"""
    assert run_client(code, small) is False


MISUSE = {
    "free twice": ("acl.ok('aclrtFree', a); r = acl.aclrtFree(a)", 107000),
    "free null": ("r = acl.aclrtFree(None)", 107000),
    "free inside": ("r = acl.aclrtFree(a + 32)", 107000),
    "free host": ("r = acl.aclrtFree(host)", 107000),
    "free host twice": ("acl.ok('aclrtFreeHost', host); r = acl.aclrtFreeHost(host)", 107000),
    "free device as host": ("r = acl.aclrtFreeHost(a)", 107000),
    "size 0": ("r = acl.aclrtMalloc(C.byref(C.c_uint64()), 0, 0)", 107000),
    "no place": ("r = acl.aclrtMalloc(None, 64, 0)", 107000),
    "read after free": ("acl.ok('aclrtFree', a); r = acl.aclrtMemcpy(host, 64, a, 64, D2H)", 107000),
    "write after free": ("acl.ok('aclrtFree', a); r = acl.aclrtMemcpy(a, 64, host, 64, H2D)", 107000),
    "beyond the end": ("r = acl.aclrtMemcpy(host, 64, a + 32, 33, D2H)", 107000),
    "into the next allocation": ("b = acl.malloc(64); r = acl.aclrtMemcpy(host, 4096, a, b - a + 64, D2H)", 107000),
    "more than room": ("r = acl.aclrtMemcpy(a, 32, host, 64, H2D)", 107000),
    "host for device": ("r = acl.aclrtMemcpy(host, 64, host, 64, H2D)", 107000),
    "device for host": ("r = acl.aclrtMemcpy(a, 64, a, 64, D2H)", 107000),
    "wrong direction": ("r = acl.aclrtMemcpy(a, 64, host, 64, D2H)", 107000),
    "no such kind": ("r = acl.aclrtMemcpy(a, 64, host, 64, 99)", 107000),
    "null": ("r = acl.aclrtMemcpy(None, 64, host, 64, H2D)", 107000),
    "a handle": ("r = acl.aclrtMemcpy(a, 64, acl.handle('aclmdlCreateDataset'), 64, H2D)", 107000),
    "host to host on a stream": ("r = acl.aclrtMemcpyAsync(host, 64, host, 64, 0, None)", 207000),
    "set beyond": ("r = acl.aclrtMemset(a, 128, 0, 128)", 107000),
    "too much": ("r = acl.aclrtMalloc(C.byref(C.c_uint64()), 1 << 20, 0)", 207001),
    "far too much": ("r = acl.aclrtMalloc(C.byref(C.c_uint64()), -1, 0)", 207001),
}


def test_misuse_gets_the_documented_code_and_a_text(small):
    cases = {name: code for name, (code, _) in MISUSE.items()}
    code = f"""
acl.start()
answers = {{}}
for name, case in {cases!r}.items():
    scope = dict(globals(), a=acl.malloc(64), host=acl.out("aclrtMallocHost", 4096))
    exec(case, scope)
    answers[name] = [scope["r"], bool(acl.error())]
show(answers)
"""
    assert run_client(code, small) == {name: [code, True] for name, (_, code) in MISUSE.items()}


def test_without_a_context_or_after_the_end_nothing_is_allocated(small):
    code = """
import threading
p = C.byref(C.c_uint64())
answers = [acl.aclrtMalloc(p, 64, 0)]
acl.start()
t = threading.Thread(target=lambda: answers.append(acl.aclrtMalloc(p, 64, 0))); t.start(); t.join()
acl.ok("aclrtResetDevice", 0)
answers.append(acl.aclrtMalloc(p, 64, 0))
acl.ok("aclFinalize")
answers.append(acl.aclrtMalloc(p, 64, 0))
show(answers)
"""
    assert run_client(code, small) == [100001, 107002, 107002, 100001]


def test_the_board_is_full_when_it_is_full_and_free_again_after(small):
    code = """
acl.start()
def free():
    left, total = C.c_size_t(), C.c_size_t()
    acl.ok("aclrtGetMemInfo", 1, C.byref(left), C.byref(total))
    return left.value, total.value
start = free()
held = []
value = C.c_uint64()
while acl.aclrtMalloc(C.byref(value), 10000, 0) == 0: held.append(value.value)
full = free()
for address in held: acl.ok("aclrtFree", address)
show([start, len(held), full[0] < 12000, free() == start])
"""
    start, held, was_full, back = run_client(code, small)
    assert start == [1 << 20, 1 << 20] and 95 <= held <= 104 and was_full and back


def test_devices_have_memory_of_their_own():
    code = """
acl.start()
a = acl.malloc(900000)
acl.ok("aclrtSetDevice", 1)
b = acl.malloc(900000)
show([acl.aclrtMalloc(C.byref(C.c_uint64()), 900000, 0), acl.aclrtSetDevice(2), acl.report()["devices"]])
"""
    used = {"live_bytes": 900000, "peak_bytes": 900096}
    assert run_client(code, machine(memory_bytes=1 << 20, devices=2)) == [
        207001,
        107001,
        [{"device": 0, **used}, {"device": 1, **used}],
    ]
