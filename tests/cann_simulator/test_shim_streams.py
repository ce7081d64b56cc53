"""Streams, events and contexts of the simulated CANN: what is in order, what is not, and that who forgets to wait sees it."""

from __future__ import annotations

import pytest

from tests.cann_simulator.acl_client import machine, run_client

DELAY_US = 20000
PLAIN = """
import threading
acl.start()
s, t = acl.out("aclrtCreateStream"), acl.out("aclrtCreateStream")
a, b = acl.malloc(400), acl.malloc(400)
host = acl.out("aclrtMallocHost", 400)
pinned = np.frombuffer((C.c_char * 400).from_address(host), np.int32)
pinned[:] = 7
def sees():
    return acl.get(a, 1, np.int32).tolist()[0]
"""


@pytest.fixture(scope="module")
def plain():
    return machine()


@pytest.fixture(scope="module")
def slow():
    return machine(delay_us=DELAY_US, seed=3)


def test_who_forgets_to_synchronise_reads_what_was_there_before(slow):
    code = (
        PLAIN
        + """
acl.put(a, np.zeros(100, np.int32))
acl.ok("aclrtMemcpyAsync", a, 400, host, 400, H2D, s)
before = sees()
acl.ok("aclrtSynchronizeStream", s)
seen = [before, sees()]
pinned[:] = 9
acl.ok("aclrtMemcpyAsync", a, 400, host, 400, H2D, s)
pinned[:] = 11   # too early: the copy has not begun
acl.ok("aclrtSynchronizeStream", s)
show([*seen, sees()])
"""
    )
    assert run_client(code, slow) == [0, 7, 11]


def test_an_output_read_without_waiting_is_stale(slow):
    code = (
        PLAIN
        + """
m = acl.load(adder(100))
acl.put(a, np.zeros(100, np.int32)); acl.put(b, np.zeros(100, np.int32))
i, o = acl.dataset((a, 400))[0], acl.dataset((b, 400))[0]
acl.ok("aclmdlExecuteAsync", m, i, o, s)
acl.ok("aclrtMemcpyAsync", host, 400, b, 400, D2H, s)
early = int(pinned[0])
acl.ok("aclrtSynchronizeStream", s)
show([early, int(pinned[0])])
"""
    )
    assert run_client(code, slow) == [7, 1]


def test_pageable_memory_is_staged_on_the_way_in_and_waited_for_on_the_way_out(slow):
    code = (
        PLAIN
        + """
x = np.full(100, 5, np.int32)
acl.ok("aclrtMemcpyAsync", a, 400, x.ctypes.data, 400, H2D, s)
x[:] = 6
y = np.zeros(100, np.int32)
acl.ok("aclrtMemcpyAsync", y.ctypes.data, 400, a, 400, D2H, s)
show([int(y[0])])
"""
    )
    assert run_client(code, slow) == [5]


def test_a_staged_copy_waits_its_turn_and_pinned_memory_freed_before_its_turn_is_an_error(plain):
    code = (
        PLAIN
        + """
m = acl.load(adder(100, seconds=0.3))
i, o = acl.dataset((b, 400))[0], acl.dataset((b, 400))[0]
acl.put(a, np.zeros(100, np.int32))
x = np.full(100, 5, np.int32)
acl.ok("aclmdlExecuteAsync", m, i, o, s)
acl.ok("aclrtMemcpyAsync", a, 400, x.ctypes.data, 400, H2D, s)
seen = [sees(), acl.aclrtSynchronizeStream(s), sees()]
acl.ok("aclmdlExecuteAsync", m, i, o, s)
acl.ok("aclrtMemcpyAsync", a, 400, host, 400, H2D, s)
acl.ok("aclrtFreeHost", host)
show([*seen, acl.aclrtSynchronizeStream(s), "freed" in acl.error(), sees(), acl.aclrtSynchronizeStream(s)])
"""
    )
    assert run_client(code, plain) == [0, 0, 5, 107000, True, 5, 0]


def test_streams_are_in_order_in_themselves_and_bound_to_each_other_by_events_only(slow):
    code = (
        PLAIN
        + """
seen = []
for waits in (True, False):
    acl.put(a, np.zeros(100, np.int32)); acl.put(b, np.zeros(100, np.int32))
    for value in range(1, 6):
        acl.ok("aclrtMemsetAsync", a, 400, value, 400, s)
    e = acl.out("aclrtCreateEvent")
    acl.ok("aclrtRecordEvent", e, s)
    if waits: acl.ok("aclrtStreamWaitEvent", t, e)
    acl.ok("aclrtMemcpyAsync", b, 400, a, 400, D2D, t)
    status = C.c_int(9)
    acl.ok("aclrtQueryEventStatus", e, C.byref(status))
    acl.ok("aclrtSynchronizeStream", t)
    seen.append([status.value, int(acl.get(b, 1, np.uint8)[0])])
    acl.ok("aclrtSynchronizeEvent", e)
    acl.ok("aclrtQueryEventStatus", e, C.byref(status))
    seen.append([status.value, int(acl.get(a, 1, np.uint8)[0])])
show(seen)
"""
    )
    waited, after, unbound, after_too = run_client(code, slow)
    assert waited == [0, 5] and after == after_too == [1, 5]
    assert unbound[0] == 0 and unbound[1] != 5


def test_delays_come_from_the_seed(tmp_path):
    code = (
        PLAIN
        + """
for stream in (s, t) * 5: acl.ok("aclrtMemsetAsync", a, 400, 1, 400, stream)
acl.ok("aclrtSynchronizeDevice")
show(0)
"""
    )

    def delays(name: str, seed: int) -> list[str]:
        trace = tmp_path / name
        run_client(code, machine(delay_us=100, seed=seed, trace=str(trace)))
        return sorted(line for line in trace.read_text().splitlines() if "delayed" in line)

    once = delays("once", 1)
    assert once == delays("again", 1) != delays("other", 2)
    assert len({line.split("by ")[1] for line in once}) > 5


def test_a_wait_can_be_limited_and_a_query_does_not_wait(plain):
    code = (
        PLAIN
        + """
m = acl.load(adder(100, seconds=0.5))
i, o = acl.dataset((a, 400))[0], acl.dataset((b, 400))[0]
e, status = acl.out("aclrtCreateEvent"), C.c_int(9)
acl.ok("aclmdlExecuteAsync", m, i, o, s)
acl.ok("aclrtRecordEvent", e, s)
acl.ok("aclrtStreamQuery", s, C.byref(status))
seen = [status.value, acl.aclrtSynchronizeStreamWithTimeout(s, 5), acl.aclrtSynchronizeEventWithTimeout(e, 5),
        acl.aclrtSynchronizeDeviceWithTimeout(5), acl.aclrtSynchronizeDevice()]
acl.ok("aclrtStreamQuery", s, C.byref(status))
show([*seen, status.value])
"""
    )
    assert run_client(code, plain) == [1, 507046, 507047, 507046, 0, 0]


def test_who_waits_with_the_interpreter_lock_held_gives_it_up(plain):
    """pybind code often calls with the lock held; ctypes.PyDLL does too. The stream's thread needs the interpreter to compute."""
    code = (
        PLAIN
        + """
m = acl.load(adder(100))
i, o = acl.dataset((a, 400))[0], acl.dataset((b, 400))[0]
acl.put(a, np.zeros(100, np.int32))
held = Acl(); held.library = C.PyDLL("libascendcl.so")
e = acl.out("aclrtCreateEvent")
seen = []
for wait in (("aclrtSynchronizeStream", s), ("aclrtSynchronizeDevice",), ("aclrtSynchronizeEvent", e), ("aclrtDestroyStream", s)):
    held.ok("aclmdlExecuteAsync", m, i, o, s)
    held.ok("aclrtRecordEvent", e, s)
    seen.append(getattr(held, wait[0])(*wait[1:]))
held.ok("aclmdlExecuteAsync", m, i, o, t)
seen.append(held.aclFinalize())
show(seen)
"""
    )
    assert run_client(code, plain, timeout=30) == [0] * 5


def test_a_stream_destroyed_is_drained_and_one_destroyed_by_force_is_not(plain):
    code = (
        PLAIN
        + """
m = acl.load(adder(100, seconds=0.2))
i, o = acl.dataset((a, 400))[0], acl.dataset((b, 400))[0]
acl.put(a, np.zeros(100, np.int32))
acl.ok("aclmdlExecuteAsync", m, i, o, s)
acl.ok("aclrtMemsetAsync", a, 400, 3, 400, s)
acl.ok("aclrtDestroyStream", s)
seen = [int(acl.get(a, 1, np.uint8)[0])]
e = acl.out("aclrtCreateEvent")
acl.ok("aclmdlExecuteAsync", m, i, o, t)
acl.ok("aclrtMemsetAsync", a, 400, 4, 400, t)
acl.ok("aclrtRecordEvent", e, t)
acl.ok("aclrtDestroyStreamForce", t)
acl.ok("aclrtSynchronizeEvent", e)   # dropped: nobody may wait for it for ever
show([*seen, int(acl.get(a, 1, np.uint8)[0])])
"""
    )
    assert run_client(code, plain) == [3, 3]


MISUSE = {
    "stream destroyed twice": ("acl.ok('aclrtDestroyStream', s); r = acl.aclrtDestroyStream(s)", 107000),
    "wait for a destroyed stream": ("acl.ok('aclrtDestroyStream', s); r = acl.aclrtSynchronizeStream(s)", 107000),
    "an event for a stream": ("r = acl.aclrtSynchronizeStream(acl.out('aclrtCreateEvent'))", 107000),
    "a stream for an event": ("r = acl.aclrtRecordEvent(s, s)", 107000),
    "event destroyed twice": ("e = acl.out('aclrtCreateEvent'); acl.ok('aclrtDestroyEvent', e); r = acl.aclrtDestroyEvent(e)", 107000),
    "time of an event not recorded": ("e = acl.out('aclrtCreateEvent'); r = acl.aclrtEventElapsedTime(C.byref(C.c_float()), e, e)", 107000),
    "stream of another context": ("acl.out('aclrtCreateContext', 0); r = acl.aclrtSynchronizeStream(s)", 107003),
    "copy on a stream of another context": (
        "acl.out('aclrtCreateContext', 0); r = acl.aclrtMemcpyAsync(a, 400, host, 400, H2D, s)",
        107003,
    ),
    "destroyed context": ("c = acl.out('aclrtCreateContext', 0); acl.ok('aclrtDestroyContext', c); r = acl.aclrtMemset(a, 4, 0, 4)", 107002),
    "set a destroyed context": (
        "c = acl.out('aclrtCreateContext', 0); acl.ok('aclrtDestroyContext', c); r = acl.aclrtSetCurrentContext(c)",
        107000,
    ),
    "destroy the default context": ("r = acl.aclrtDestroyContext(acl.out('aclrtGetCurrentContext'))", 107000),
    "context on no device": ("r = acl.aclrtCreateContext(C.byref(C.c_uint64()), 7)", 107001),
    "no device": ("r = acl.aclrtSetDevice(-1)", 107001),
    "callback nobody listens to": ("r = acl.aclrtLaunchCallback(CALL, None, 1, s)", 107015),
    "report nobody subscribed": ("r = acl.aclrtProcessReport(1)", 107014),
    "too many streams": (
        "r = max(acl.aclrtCreateStream(C.byref(C.c_uint64())) for _ in range(1100))",
        207008,
    ),
}  # fmt: skip


def test_misuse_gets_the_documented_code(plain):
    cases = {
        name: f"{PLAIN}\n{code}\nanswers[name] = [r, bool(acl.error())]\nacl.ok('aclFinalize')"
        for name, (code, _) in MISUSE.items()
    }
    start = "CALL = C.CFUNCTYPE(None, C.c_void_p)(print)\nanswers = {}\n"
    code = f"{start}for name, case in {cases!r}.items(): exec(case)\nshow(answers)"
    assert run_client(code, plain) == {name: [answer, True] for name, (_, answer) in MISUSE.items()}


def test_a_thread_needs_a_context_of_its_own_and_may_share_one(plain):
    code = (
        PLAIN
        + """
c = acl.out("aclrtGetCurrentContext")
answers = []
def work():
    answers.append(acl.aclrtMemset(a, 4, 0, 4))
    answers.append(acl.aclrtSetCurrentContext(c))
    answers.append(acl.aclrtMemsetAsync(a, 4, 0, 4, s))
    answers.append(acl.aclrtSynchronizeStream(s))
thread = threading.Thread(target=work); thread.start(); thread.join()
show(answers)
"""
    )
    assert run_client(code, plain) == [107002, 0, 0, 0]


def test_devices_are_set_and_reset_by_count(plain):
    code = (
        PLAIN
        + """
acl.ok("aclrtSetDevice", 0)
seen = [acl.aclrtResetDevice(0), acl.aclrtMemset(a, 4, 0, 4), acl.aclrtResetDevice(0), acl.aclrtMemset(a, 4, 0, 4), acl.aclrtSynchronizeStream(s)]
acl.ok("aclrtSetDevice", 0)
show([*seen, acl.aclrtMemset(a, 4, 0, 4), acl.aclrtSynchronizeStream(s), "stream" in acl.leaks()])
"""
    )
    assert run_client(code, plain) == [0, 0, 0, 107002, 107002, 0, 107000, False]


def test_a_callback_runs_in_the_thread_that_subscribed_and_holds_its_stream_up(plain):
    code = (
        PLAIN
        + """
import time
kind = C.CFUNCTYPE(None, C.c_void_p)
order = []
@kind
def first(argument): time.sleep(0.1); order.append(["subscribed", threading.get_ident() == listener.ident])
@kind
def second(argument): order.append(["of the stream", threading.get_ident() in (listener.ident, threading.main_thread().ident)])
def listen():
    acl.ok("aclrtSetDevice", 0)
    while True:
        code = acl.aclrtProcessReport(3000)
        if order and order[-1][0] != "last": return
listener = threading.Thread(target=listen)
listener.start()
acl.ok("aclrtSubscribeReport", listener.ident, s)
acl.ok("aclrtLaunchCallback", first, None, 1, s)
acl.ok("aclrtLaunchHostFunc", s, second, None)
acl.ok("aclrtSynchronizeStream", s)
listener.join()
show(order)
"""
    )
    assert run_client(code, plain) == [["subscribed", True], ["of the stream", False]]


def test_threads_with_streams_and_models_of_their_own_get_their_own_results(slow):
    code = """
import threading
acl.start()
c = acl.out("aclrtGetCurrentContext")
wrong = []
def work(n):
    acl.ok("aclrtSetCurrentContext", c)
    s = acl.out("aclrtCreateStream"); m = acl.load(adder(shift=n)); a, b = acl.malloc(16), acl.malloc(16)
    i, o = acl.dataset((a, 16))[0], acl.dataset((b, 16))[0]
    for k in range(10):
        acl.put(a, np.full(4, k, np.int32))
        acl.ok("aclmdlExecuteAsync", m, i, o, s); acl.ok("aclrtSynchronizeStream", s)
        if acl.get(b, 4, np.int32).tolist() != [k + n] * 4: wrong.append([n, k])
threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
show(wrong)
"""
    assert run_client(code, machine(delay_us=500)) == []


def test_a_forked_child_has_to_start_anew_and_takes_nothing_along(plain, tmp_path):
    report = tmp_path / "report.json"
    code = (
        PLAIN
        + """
import os
acl.ok("aclrtMemsetAsync", a, 4, 0, 4, s); acl.ok("aclrtSynchronizeStream", s)
child = os.fork()
if child == 0:
    os._exit(acl.aclrtMalloc(C.byref(C.c_uint64()), 64, 0) != 100001)
status = os.waitpid(child, 0)[1]
show([status, acl.aclrtMemset(a, 4, 0, 4)])
"""
    )
    assert run_client(code, machine(report=str(report))) == [0, 0]
