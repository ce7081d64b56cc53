"""Route om on the simulated CANN: feeds by name, gears, dtypes, wrong models, threads, faults. Nothing here ran on hardware."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from porting.errors import DeviceUnavailable, InputError, OutOfResources, PortError, PortingError, RuntimeFailed, UsageError
from porting.session import open_session
from porting.types import Program
from tests.backends.ascend_programs import NOTHING, SIM, X, cache, difference, left_behind, om_of, program, total

# --- inputs and outputs -------------------------------------------------------------------------------------------


def test_inputs_go_by_name_and_gears_by_shape(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with open_session(difference(), f"{SIM},gears=N=1;N=3,report={report}") as session:
        for rows in (3, 1, 3):
            x, y = np.full((rows, 4), 5, np.float32), np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
            np.testing.assert_array_equal(session.run({"y": y, "x": x})["d"], x - y)
        with pytest.raises(InputError, match=r"no gear with the shapes x \[2, 4\], y \[2, 4\]; it has 1 \| 3"):
            session.run({"x": X, "y": X})
        with pytest.raises(InputError, match="disagree about N"):
            session.run({"x": X, "y": X[:1]})
        assert session.run({"x": X[:1], "y": X[:1]})["d"].shape == (1, 4)
    assert left_behind(report) == NOTHING


def test_gears_of_images_and_of_any_dimension() -> None:
    image = program("(float[1,3,H,W] x) => (float[1,3,H,W] y) { y = Neg(x) }")
    with open_session(image, f"{SIM},gears=H=2&W=3;H=4&W=4") as session:
        for shape in ((1, 3, 2, 3), (1, 3, 4, 4)):
            x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
            np.testing.assert_array_equal(session.run({"x": x})["y"], -x)
        with pytest.raises(InputError, match="no gear"):
            session.run({"x": np.zeros((1, 3, 3, 2), np.float32)})
    any_dims = program("(float[A,B] x, float[B] y) => (float[A,B] z) { z = Sub(x, y) }")
    with open_session(any_dims, f"{SIM},gears=A=2&B=3;A=5&B=2") as session:
        for rows, columns in ((5, 2), (2, 3)):
            x, y = np.full((rows, columns), 7, np.float32), np.arange(columns, dtype=np.float32)
            np.testing.assert_array_equal(session.run({"x": x, "y": y})["z"], x - y)
        with pytest.raises(InputError, match="no gear"):
            session.run({"x": np.zeros((2, 2), np.float32), "y": np.zeros(2, np.float32)})


@pytest.mark.parametrize("dtype", ["float", "float16", "double", "int32", "int64", "uint8", "bool"])
def test_dtypes(dtype: str) -> None:
    made = program(f"({dtype}[2,3] x) => ({dtype}[3,2] y) {{ y = Transpose<perm=[1,0]>(x) }}")
    x = np.arange(6).reshape(2, 3).astype(made.inputs[0].dtype)
    with open_session(made, SIM) as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"], x.T)


def test_scalars_and_several_outputs_come_back_under_their_names() -> None:
    made = program("(float x, float[2] y) => (float[2] less, float[2] more) { more = Add(y, x) less = Sub(y, x) }")
    with open_session(made, SIM) as session:
        found = session.run({"x": np.array(2, np.float32), "y": np.array([1, 5], np.float32)})
    assert list(found) == ["less", "more"]
    np.testing.assert_array_equal(found["less"], [-1, 3])
    np.testing.assert_array_equal(found["more"], [3, 7])


def test_a_model_that_takes_half_floats_for_a_program_of_singles() -> None:
    """The command said --input_fp16_nodes: numbers are rounded on the host, and one that fp16 does not hold is refused."""
    single, half = (program(f"({kind}[2,4] x) => ({kind}[2,4] y) {{ y = Neg(x) }}") for kind in ("float", "float16"))
    with open_session(single, f"ascend-sim,om={om_of(half)}") as session:
        y = session.run({"x": X + np.float32(0.0001)})["y"]
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, -(X + np.float32(0.0001)).astype(np.float16).astype(np.float32))
        with pytest.raises(InputError, match="goes up to 70000, and the model was compiled to take it in fp16"):
            session.run({"x": X * 1e4})
        assert np.isinf(session.run({"x": np.full((2, 4), np.inf, np.float32)})["y"]).all()


# --- a model that is not the program's ------------------------------------------------------------------------------


def refused_model(made: Program, om: Path, **more: str) -> PortingError:
    options = "".join(f",{name}={value}" for name, value in more.items())
    with pytest.raises(PortingError) as caught:
        open_session(made, f"ascend-sim,om={om}{options}")
    assert "ascend-sim" in str(caught.value) or str(om) in str(caught.value)
    return caught.value


def test_the_model_of_another_program_is_refused() -> None:
    other = program("(float[2,4] a) => (float[2,4] y) { y = Neg(a) }")
    error = refused_model(program("(float[2,4] x) => (float[2,4] y) { y = Neg(x) }"), om_of(other))
    assert isinstance(error, PortError) and "inputs x: float32[2, 4] are missing in it" in error.what
    wide = program("(float[2,5] x) => (float[2,5] y) { y = Neg(x) }")
    error = refused_model(program("(float[2,4] x) => (float[2,4] y) { y = Neg(x) }"), om_of(wide))
    assert isinstance(error, PortError) and "float32[2, 4], and of the compiled model float32[2, 5]" in error.what.replace(
        "'", ""
    )
    whole = program("(int32[2,4] x) => (int32[2,4] y) { y = Neg(x) }")
    error = refused_model(program("(float[2,4] x) => (float[2,4] y) { y = Neg(x) }"), om_of(whole))
    assert isinstance(error, PortError) and "compiled model int32[2, 4]" in error.what


def test_a_model_with_other_gears_is_refused_before_it_runs() -> None:
    made = program("(float[N,4] x) => (float[N,4] y) { y = Neg(x) }")
    error = refused_model(replace(made, gears=({"x": (2, 4)}, {"x": (7, 4)})), om_of(made, gears="N=2;N=3"))
    assert isinstance(error, PortError) and "no gear x [7, 4]" in error.what


def test_a_model_for_another_soc_cut_short_or_none(tmp_path: Path) -> None:
    made = program("(float[2,4] x) => (float[2,4] y) { y = Neg(x) }")
    good = om_of(made)
    error = refused_model(made, good, soc="Ascend310P3")
    assert isinstance(error, PortError) and "507008" in error.what and "Ascend910B3" in error.what
    data = good.read_bytes()
    for name, content in (("cut", data[:-40]), ("start", data[:50]), ("changed", data[:200] + b"X" + data[201:])):
        (tmp_path / f"{name}.om").write_bytes(content)
        error = refused_model(made, tmp_path / f"{name}.om")
        assert isinstance(error, (PortError, RuntimeFailed)) and "load" in error.what
    assert isinstance(refused_model(made, tmp_path / "gone.om"), PortError)


# --- several at once ------------------------------------------------------------------------------------------------


def test_threads_share_a_model_and_delays_change_nothing(tmp_path: Path) -> None:
    """With delays before every task of a stream, whatever is not waited for would show old numbers."""
    report = tmp_path / "report.json"
    made = program("(float[2,4] x) => (float[2,4] y) { y = Neg(x) }")
    with open_session(made, f"{SIM},seed=7,delay_us=3000,report={report}") as session, ThreadPoolExecutor(4) as pool:
        feeds = [np.full((2, 4), i, np.float32) for i in range(24)]
        for x, y in zip(feeds, pool.map(lambda x: session.run({"x": x})["y"], feeds), strict=True):
            np.testing.assert_array_equal(y, -x)
    assert left_behind(report) == NOTHING


def test_several_devices() -> None:
    made = program("(float[2,4] x) => (float[2,4] y) { [neg] y = Neg(x) }")
    with open_session(made, "ascend-sim:2,precision=origin,devices=3") as session:
        np.testing.assert_array_equal(session.run({"x": X})["y"], -X)
        assert session.placement == {"neg": "ascend-sim:2"}
    with pytest.raises(DeviceUnavailable, match="ascend-sim:3 does not exist: 3 found"):
        open_session(made, "ascend-sim:3,precision=origin,devices=3")


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_too_little_memory_for_the_model(tmp_path: Path) -> None:
    made = program("(float[1024,1024] x) => (float[1024,1024] y) { y = Neg(x) }")
    report = tmp_path / "report.json"
    with pytest.raises(OutOfResources, match="device"):
        open_session(made, f"{SIM},memory=6MiB,report={report}")
    assert left_behind(report) == NOTHING
    with open_session(made, f"{SIM},memory=64MiB") as session:
        assert session.run({"x": np.ones((1024, 1024), np.float32)})["y"].max() == -1


@pytest.mark.parametrize("nth", range(1, 7))
def test_memory_that_runs_out_at_any_allocation(nth: int, tmp_path: Path) -> None:
    """What is allocated when a session opens ends it; for a state later on, the session and its other states go on."""
    report = tmp_path / "report.json"
    errors = 0
    try:
        with open_session(total(), f"{SIM},faults=oom@{nth},report={report}") as session:
            for _ in range(3):
                try:
                    state = session.new_state()
                    assert session.run({"x": X}, state)["y"][1, 3] == -7
                except OutOfResources:
                    errors += 1
    except OutOfResources:
        errors += 1
    assert errors == 1
    assert left_behind(report) == NOTHING


@pytest.mark.parametrize(("fault", "goes_on"), [("device-lost@2", False), ("timeout@2", False), ("execute-failed@2", True)])
def test_a_run_that_fails_leaves_the_state_and_nothing_else(fault: str, goes_on: bool, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with open_session(total(), f"{SIM},timeout=5,faults={fault},report={report}") as session:
        state = session.new_state()
        assert session.run({"x": X}, state)["y"][1, 3] == -7
        with pytest.raises(DeviceUnavailable if fault.startswith("device-lost") else RuntimeFailed) as caught:
            session.run({"x": X}, state)
        assert "5070" in caught.value.what and caught.value.exit_code == 3
        if goes_on:
            assert session.run({"x": X}, state)["y"][1, 3] == -14  # the run that failed has left no mark
        else:
            with pytest.raises(RuntimeFailed, match="was lost earlier"):
                session.run({"x": X}, state)
    assert left_behind(report) == NOTHING
    with open_session(total(), SIM) as session:  # this process is as good as new
        assert session.run({"x": X})["y"][1, 3] == -7


def test_a_load_that_fails() -> None:
    with pytest.raises(RuntimeFailed, match="545001"):
        open_session(total(), f"{SIM},faults=load-failed@1")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("route=omm", "did you mean 'om'"),
        ("timeout=0", "whole number from 1"),
        ("handoff=x", "has no hand-off 'x'"),
        ("route=om,threads=2", "has no option 'threads'"),
    ],
)
def test_options_that_cannot_be_meant(options: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_session(cache(), f"{SIM},{options}")
    assert text in str(caught.value)


def test_a_device_that_is_busy_can_be_asked_for_again(tmp_path: Path) -> None:
    """The code is a guess: the vendor's tables know the case as EL0005 alone."""
    report = tmp_path / "report.json"
    with pytest.raises(DeviceUnavailable, match="EL0005: the device or its resources are busy") as caught:
        open_session(total(), f"{SIM},faults=device-busy@1,report={report}")
    assert caught.value.exit_code == 3 and left_behind(report) == NOTHING
    with open_session(total(), SIM) as session:
        assert session.run({"x": X})["y"][1, 3] == -7
