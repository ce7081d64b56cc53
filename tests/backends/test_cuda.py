"""The CUDA backend without a GPU: it is refused here for the right reason, and its decisions hold against stand-ins.

The stand-ins are at the border only: the module onnxruntime and the driver's library. Their texts are onnxruntime's own, from
its source and issue threads (microsoft/onnxruntime 16016, 17801, 23647). Nothing here says that it runs on hardware; the suite
marked `device` would (tests/backends/test_suite.py).
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from porting.backends import cuda
from porting.backends.cuda import PROVIDER, CudaBackend, device_count
from porting.errors import DeviceUnavailable, OutOfResources, RuntimeFailed, UsageError
from porting.session import open_session
from tests.backends.contract import program

NEGATE = "(float[N,4] x) => (float[N,4] y) { [neg] y = Neg(x) }"


class FakeDriver:
    """libcuda as far as it is called: statuses and a device count."""

    def __init__(self, init: int = 0, counting: int = 0, count: int = 2) -> None:
        self.init, self.counting, self.count = init, counting, count

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = self.count
        return self.counting


class FakeRuntime:
    """onnxruntime as far as `prepare` calls it; records what it was asked for."""

    __version__ = "1.31.1"

    def __init__(self, refuse: Exception | None = None, has: tuple[str, ...] = (PROVIDER, "CPUExecutionProvider"), on=PROVIDER):
        self.refuse, self.has, self.on = refuse, has, on
        self.asked: dict[str, Any] = {}
        self.entries: dict[str, str] = {}

    def get_available_providers(self) -> list[str]:
        return [PROVIDER, "CPUExecutionProvider"]

    def preload_dlls(self, directory: str) -> None:
        print("said on stdout")

    def SessionOptions(self) -> Any:
        return SimpleNamespace(add_session_config_entry=self.entries.__setitem__)

    def InferenceSession(self, model: Any, options: Any, providers: list, enable_fallback: int) -> Any:
        self.asked = {"providers": providers, "enable_fallback": enable_fallback}
        if self.refuse:
            raise self.refuse
        nodes = [SimpleNamespace(name="neg", op_type="Neg")]
        return SimpleNamespace(
            get_providers=lambda: list(self.has),
            get_provider_graph_assignment_info=lambda: [SimpleNamespace(ep_name=self.on, get_nodes=lambda: nodes)],
        )


def prepare(monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime, **options: str) -> Any:
    monkeypatch.setattr(cuda, "import_runtime", lambda extra: runtime)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    return CudaBackend().prepare(program(NEGATE), options)


# --- here: no GPU, no wheel -------------------------------------------------------------------------------------------


def test_here_it_is_refused_with_exit_code_3_and_the_reason() -> None:
    with pytest.raises(DeviceUnavailable, match=r"onnxruntime .* was built without CUDAExecutionProvider") as caught:
        open_session(program(NEGATE), "cuda")
    assert caught.value.exit_code == 3
    assert 'pip install "porting[cuda]"' in caught.value.next


# --- probe ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (FakeDriver(init=100), "cuInit gives 100 CUDA_ERROR_NO_DEVICE"),
        (FakeDriver(init=803), "cuInit gives 803 CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        (FakeDriver(counting=999), "cuDeviceGetCount gives 999 CUDA_ERROR_UNKNOWN"),
        (FakeDriver(count=0), "finds no device"),
    ],
    ids=["no device", "driver mismatch", "unknown", "none visible"],
)
def test_driver_statuses_are_all_read(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, reason: str) -> None:
    monkeypatch.setattr(cuda, "availability", lambda *args: cuda.Availability(True, detail={"onnxruntime": "1.31.1"}))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    found = CudaBackend().probe()
    assert not found.usable
    assert reason in found.reason
    assert found.next


def test_probe_counts_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "availability", lambda *args: cuda.Availability(True, detail={"onnxruntime": "1.31.1"}))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(count=4))
    assert CudaBackend().probe() == cuda.Availability(True, detail={"onnxruntime": "1.31.1", "devices": "4"})


def test_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "DRIVER", "libcuda-that-is-not-there.so.1")
    with pytest.raises(DeviceUnavailable, match="driver is not installed: libcuda-that-is-not-there"):
        device_count()


# --- prepare ----------------------------------------------------------------------------------------------------------


def test_only_the_device_asked_for_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    runtime = FakeRuntime()
    session = prepare(monkeypatch, runtime, index="1", memory_limit="1000", tf32="1")
    assert runtime.asked == {
        "providers": [(PROVIDER, {"use_tf32": "1", "gpu_mem_limit": "1000", "device_id": "1"})],
        "enable_fallback": 0,
    }
    assert runtime.entries["session.disable_cpu_ep_fallback"] == "1"
    assert session.placement == {"neg": "cuda:1"}
    assert capsys.readouterr().out == ""


def test_tf32_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime()
    prepare(monkeypatch, runtime)
    assert runtime.asked["providers"] == [(PROVIDER, {"use_tf32": "0", "device_id": "0"})]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tf33": "1"}, "did you mean 'tf32'"), ({"tf32": "yes"}, "none of 0, 1"), ({"memory_limit": "8GB"}, "whole number")],
)
def test_options_are_checked(monkeypatch: pytest.MonkeyPatch, options: dict, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        prepare(monkeypatch, FakeRuntime(), **options)
    assert message in str(caught.value)


def test_a_device_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceUnavailable, match="device cuda:2 does not exist: 2 found"):
        prepare(monkeypatch, FakeRuntime(), index="2")


def test_provider_that_silently_failed_to_load_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceUnavailable, match="would have run on CPUExecutionProvider") as caught:
        prepare(monkeypatch, FakeRuntime(has=("CPUExecutionProvider",)))
    assert "onnxruntime-gpu[cuda,cudnn]" in caught.value.next


def test_node_on_the_cpu_is_an_error_though_the_session_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeFailed, match="1 nodes would run elsewhere, 'neg' on CPUExecutionProvider"):
        prepare(monkeypatch, FakeRuntime(on="CPUExecutionProvider"))


def test_refused_fallback_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = RuntimeError(
        "This session contains graph nodes that are assigned to the default CPU EP, "
        "but fallback to CPU EP has been explicitly disabled by the user."
    )
    with pytest.raises(RuntimeFailed, match="nothing falls back to the CPU in silence") as caught:
        prepare(monkeypatch, FakeRuntime(refuse=refusal))
    assert "shape arithmetic" in caught.value.next


def test_device_memory_that_runs_out_is_out_of_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);")
    with pytest.raises(OutOfResources) as caught:
        prepare(monkeypatch, FakeRuntime(refuse=refusal))
    assert caught.value.exit_code == 4


@pytest.mark.device
def test_state_stays_on_the_device() -> None:
    from tests.backends.stateful import CACHES

    cache = CACHES["attention"]
    with open_session(cache.program(), "cuda") as session:
        state = session.new_state(8)
        session.run(cache.feed(np.random.default_rng(0), 1, 3), state)
        assert {value.device_name() for value in state.buffers.values()} == {"cuda"}
