"""The session a user holds: DLPack arrays, defaults, choice of a device. What holds for every backend is in contract.py."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.backends.null import NullSession
from porting.devices import Device, parse_device
from porting.errors import DeviceUnavailable, InputError, UsageError
from porting.session import Session, open_session
from porting.types import TensorSpec
from tests.backends.contract import program
from tests.backends.stateful import _sums_program

torch = pytest.importorskip("torch")

IDENTITY = {
    torch.float32: "float",
    torch.float16: "float16",
    torch.float64: "double",
    torch.bfloat16: "bfloat16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.uint8: "uint8",
    torch.bool: "bool",
}
NEGATE = "(float[N,4] x) => (float[N,4] y) { y = Neg(x) }"


# --- DLPack -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", IDENTITY, ids=str)
def test_torch_in_torch_out(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 1.0, 3.0], [1.0, 0.0, 2.0]]).to(dtype)
    with open_session(program(f"({IDENTITY[dtype]}[N,3] x) => ({IDENTITY[dtype]}[N,3] y) {{ y = Identity(x) }}")) as session:
        y = session.run({"x": x})["y"]
    assert isinstance(y, torch.Tensor)
    assert y.dtype == dtype
    assert torch.equal(y, x)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T,
        lambda x: x[:, ::2],
        lambda x: x.flip(0),
        lambda x: x[:1].expand(4, 4),
        lambda x: torch.nn.Parameter(x),
        lambda x: x[:0],
    ],
    ids=["transposed", "strided", "flipped", "expanded", "parameter", "empty"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torch_views_are_read_as_they_look(view, dtype: torch.dtype) -> None:
    x = view(torch.arange(16.0).reshape(4, 4).to(dtype))
    name = IDENTITY[dtype]
    with open_session(program(f"({name}[N,M] x) => ({name}[N,M] y) {{ y = Identity(x) }}")) as session:
        assert torch.equal(session.run({"x": x})["y"], x.detach())


def test_one_torch_feed_is_enough_for_torch_outputs() -> None:
    with open_session(program("(float[N] x, float[N] y) => (float[N] z) { z = Add(x, y) }")) as session:
        z = session.run({"x": np.ones(3, np.float32), "y": torch.ones(3)})["z"]
    assert isinstance(z, torch.Tensor)
    assert z.tolist() == [2, 2, 2]


def test_wrong_torch_dtype_is_refused_by_name() -> None:
    with open_session(program(NEGATE)) as session, pytest.raises(InputError, match=r"expected x: float32\[N, 4\], got int64"):
        session.run({"x": torch.ones(2, 4, dtype=torch.int64)})


def test_torch_that_dlpack_cannot_carry_is_refused() -> None:
    with open_session(program(NEGATE)) as session, pytest.raises(InputError, match="'x' cannot be read through DLPack"):
        session.run({"x": torch.ones(2, 4).to_sparse()})


def test_state_advances_with_torch_feeds() -> None:
    with open_session(_sums_program()) as session:
        state = session.new_state(8)
        session.run({"x": torch.ones(1, 2, 3)}, state)
        assert session.run({"x": torch.ones(1, 1, 3)}, state)["y"].tolist() == [[[3.0, 3.0, 3.0]]]


def test_results_in_torch_may_be_written() -> None:
    with open_session(program(NEGATE)) as session:
        y = session.run({"x": torch.ones(2, 4)})["y"]
        y += 1
        assert y.sum() == 0


def test_backends_get_contiguous_numpy_whatever_was_fed() -> None:
    class Spy(NullSession):
        def run(self, feeds, state=None):
            assert all(type(array) is np.ndarray and array.flags.c_contiguous for array in feeds.values())
            return super().run(feeds, state)

    wanted = program(NEGATE)
    x = np.ones((4, 4), np.float32)
    with Session(wanted, Spy(wanted), Device("null", 0, {})) as session:
        for fed in (x.T, x[::-1], x[:, ::-1], np.broadcast_to(x[0], (9, 4)), torch.ones(4, 8)[:, ::2], x.view(np.matrix)):
            session.run({"x": fed})


# --- specs and defaults -----------------------------------------------------------------------------------------------


def test_state_and_length_are_no_inputs_of_the_user() -> None:
    with open_session(_sums_program()) as session:
        assert session.inputs == (TensorSpec("x", "float32", ("batch", "step", 3)),)
        assert session.outputs == (TensorSpec("y", "float32", ("batch", "step", 3)),)


def test_default_of_a_fixed_shape_fills_it() -> None:
    with open_session(program("(float[N,2] x, float[2] k) => (float[N,2] y) { y = Mul(x, k) }", defaults={"k": 3})) as session:
        assert session.run({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[3, 3]]


@pytest.mark.parametrize(("defaults", "message"), [({"q": 1}, "'q', which is no input"), ({"x": 1}, "not fixed")])
def test_defaults_that_cannot_be_meant(defaults: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_session(program(NEGATE, defaults=defaults))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(["float32", "float64", "int64", "bool"]))
def test_a_run_computes_or_is_refused_by_name(shape: list[int], dtype: str) -> None:
    """Whatever array comes, the session either answers right or names the input; nothing else reaches the user."""
    x = np.ones(shape, dtype)
    with open_session(program(NEGATE), "null") as session:
        fits = dtype == "float32" and len(shape) == 2 and shape[1] == 4
        if fits:
            assert session.run({"x": x})["y"].shape == tuple(shape)
        else:
            with pytest.raises(InputError, match=r"expected x: float32\[N, 4\], got " + dtype):
                session.run({"x": x})


# --- the device asked for ---------------------------------------------------------------------------------------------


def test_nothing_falls_back_unasked() -> None:
    with pytest.raises(DeviceUnavailable, match="device 'cuda' is not available: cuda: ") as caught:
        open_session(program(NEGATE), "cuda")
    assert caught.value.exit_code == 3


def test_a_fallback_is_a_request_of_its_own() -> None:
    with open_session(program(NEGATE), "cuda-or-cpu") as session:
        assert session.device.name == "cpu"
        assert set(session.placement.values()) == {"cpu"}


def test_both_of_two_devices_missing_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    from porting.backends.cpu import CpuBackend
    from porting.types import Availability

    monkeypatch.setattr(CpuBackend, "probe", lambda self: Availability(False, "out to lunch", "wait"))
    with pytest.raises(DeviceUnavailable, match=r"cuda: .*; cpu: out to lunch"):
        open_session(program(NEGATE), "cuda-or-cpu")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("", "not a device"),
        ("cpu:", "not a device"),
        ("cpu:-1", "not a device"),
        ("cpu,threads", "not an option"),
        ("cpu,threads=", "not an option"),
        ("cpu,threads=1,threads=2", "given twice"),
        ("cpu,process=thread", "unknown process='thread'"),
        ("gpu", "unknown device 'gpu'"),
        ("cpu-or-gpu", "unknown device 'gpu'"),
    ],
)
def test_device_strings_that_cannot_be_meant(device: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_session(program(NEGATE), device if device != "cpu-or-gpu" else "cuda-or-gpu")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_any_device_string_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        device = parse_device(text)
        assert device.name
        assert device.index >= 0


def test_importing_the_session_brings_no_runtime() -> None:
    code = (
        "import sys, porting.session; "
        "print([m for m in ('onnxruntime', 'torch', 'onnx', 'onnx_ir', 'openvino') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
