"""The device ascend-sim: which machine it simulates, what it compiles and where, what it leaves alone, what its runs show."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import porting
from porting.ascend.handoff import handoffs_of
from porting.backends import ascend_sim_models
from porting.backends.ascend_sim import AscendSimBackend
from porting.commands import validate
from porting.doctor import doctor, doctor_text
from porting.errors import PortError, RuntimeFailed, UsageError
from porting.evidence import evidence_level
from porting.session import open_session
from tests.backends.ascend_programs import SIM, X, program
from tests.graph_models import model, node, weight

NEGATE = "(float[2,4] x) => (float[2,4] y) { [neg] y = Neg(x) }"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "m.onnx"
    nodes = [node("MatMul", "x w", "m", name="product"), node("Tanh", "m", "y", name="curve")]
    onnx.save(model(nodes, {"x": ["n", 8]}, {"y": ["n", 4]}, [weight("w", 8, 4)]), str(path))
    return path


@pytest.fixture(scope="module")
def port(network: Path) -> Path:
    """A port with a hand-off for Ascend910B3 and two batches."""
    target = network.parent / "m.port"
    verdict = porting.port(network, target, target="Ascend910B3", gears=porting.ascend.gears.Request(batch="1,3"))
    assert verdict.verdict == "pass"
    return target


def files_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# --- ports --------------------------------------------------------------------------------------------------------


def test_a_port_runs_from_its_hand_off_and_stays_as_it_is(port: Path) -> None:
    before, environment = files_of(port), dict(os.environ)
    with porting.load(port, "ascend-sim") as session, porting.load(port) as plain:
        x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
        found, expected = session.run({"x": x})["y"], plain.run({"x": x})["y"]
        assert set(session.placement.values()) == {"ascend-sim:0"}
        with pytest.raises(porting.PortingError, match="no gear"):
            session.run({"x": x[:2]})
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)  # `origin` keeps fp32; the order of sums may differ
    assert files_of(port) == before and dict(os.environ) == environment
    assert handoffs_of(port)[0].build is None


def test_a_model_is_compiled_once(port: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shutil.copytree(Path.home() / ".cache/porting/cann_simulator", tmp_path / "porting/cann_simulator", symlinks=True)
    with porting.load(port, "ascend-sim"):
        (kept,) = (tmp_path / "porting/ascend_sim").iterdir()
    monkeypatch.setattr(ascend_sim_models, "_run_atc", None)
    with porting.load(port, "ascend-sim") as session:
        assert session.run({"x": np.zeros((1, 8), np.float32)})["y"].shape == (1, 4)
    with pytest.raises(TypeError):  # another release is another model
        porting.load(port, "ascend-sim,cann=8.5.0")
    assert [path.name for path in kept.iterdir()] == ["model.om"]


def test_what_was_used_the_longest_ago_leaves_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for age, name in enumerate(("new", "older", "oldest")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.om").write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(ascend_sim_models, "MOST_BYTES", 250)
    ascend_sim_models._make_room(tmp_path, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "older"]


def test_a_changed_hand_off_is_refused(port: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.port"
    shutil.copytree(port, copy)
    (graph,) = copy.glob("targets/*/model.onnx")
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(bytes(data))
    with pytest.raises(PortError, match=r"file of the hand-off has changed: model\.onnx"):
        porting.load(copy, "ascend-sim")


def test_the_machine_is_that_of_the_hand_off(port: Path) -> None:
    with pytest.raises(PortError, match="no hand-off of this port is for Ascend310P3"):
        porting.load(port, "ascend-sim,soc=Ascend310P3")
    with pytest.raises(UsageError, match="precision= is for a model without a hand-off"):
        porting.load(port, "ascend-sim,precision=fp16")
    with pytest.raises(UsageError, match="has no hand-off 'Ascend310P3-any-any'"):
        porting.load(port, "ascend-sim,handoff=Ascend310P3-any-any")


def test_a_real_device_is_not_given_what_was_compiled_for_the_simulated_one(port: Path) -> None:
    """Without CANN there is no device; `ascend` never takes the cache of `ascend-sim`, nor falls back to it."""
    with pytest.raises(porting.PortingError, match=r"libascendcl\.so was not found"):
        porting.load(port, "ascend")


# --- any .onnx ----------------------------------------------------------------------------------------------------


def test_precision_is_never_a_silent_default() -> None:
    with pytest.raises(UsageError, match="needs precision="):
        open_session(program(NEGATE), "ascend-sim")
    with pytest.raises(UsageError, match="x\\[0\\] have none"):
        open_session(program("(float[N,4] x) => (float[N,4] y) { y = Neg(x) }"), SIM)


def test_precision_rounds_as_documented() -> None:
    """1 + 2^-12 is a float that fp16 does not have; 2^20 is one that fp16 has not either."""
    made = program("(float[2,4] x) => (float[2,4] y) { y = Relu(x) }")
    x = np.full((2, 4), 1 + 2**-12, np.float32)
    with open_session(made, SIM) as origin, open_session(made, "ascend-sim,precision=fp16") as half:
        np.testing.assert_array_equal(origin.run({"x": x})["y"], x)
        np.testing.assert_array_equal(half.run({"x": x})["y"], np.ones((2, 4), np.float32))


def test_what_the_rules_refuse_the_compiler_refuses() -> None:
    with pytest.raises(RuntimeFailed, match="the simulated compiler refuses this model: E"):
        open_session(program("(float[2,4] x) => (float[2,4] y) { [odd] y = Frobnicate(x) }"), SIM)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("soc=Ascend9000", "Ascend9000"),
        ("memory=much", "memory=much is no size"),
        ("seed=-1", "no whole number"),
        ("faults=oom", "does not say when"),
        ("faults=flood@1", "unknown fault 'flood'"),
        ("devices=0", "whole number from 1"),
        ("cann=1.0", "1.0"),
        ("report=/nowhere/at/all.json", "has no folder to be written in"),
    ],
)
def test_machines_that_cannot_be_meant(options: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_session(program(NEGATE), f"{SIM},{options}")
    assert text in str(caught.value)


def test_routes_that_are_not_installed_say_so() -> None:
    with pytest.raises(porting.PortingError) as caught:
        open_session(program(NEGATE), "ascend-sim,route=npu")
    assert caught.value.exit_code == 3 and "route=npu" in caught.value.what


# --- what it shows --------------------------------------------------------------------------------------------------


def test_simulated_is_not_hardware(port: Path) -> None:
    assert evidence_level("ascend-sim", "Ascend910B3") == "simulated"
    assert evidence_level("ascend-sim:1,soc=Ascend910B3", "Ascend910B3") == "simulated"
    assert evidence_level("ascend", "Ascend910B3") == "hardware"
    arguments = [str(port), "--device", "ascend-sim", "--quiet", "--require-level"]
    refused = CliRunner().invoke(validate.command, [*arguments, "hardware"], standalone_mode=False)
    assert refused.exception is not None and getattr(refused.exception, "exit_code", 0) == 3
    assert "simulated evidence" in str(refused.exception) and "hardware is required" in str(refused.exception)


def test_validation_on_it_says_simulated(port: Path) -> None:
    report = porting.validate(port, device="ascend-sim")
    assert (report.verdict, report.evidence_level, report.device) == ("pass", "simulated", "ascend-sim")


def test_doctor_says_that_nothing_ran_on_hardware() -> None:
    found = {device["name"]: device for device in doctor()["devices"]}
    assert not found["ascend"]["usable"] and "CANN is not installed" in found["ascend"]["reason"]
    assert found["ascend-sim"]["usable"] and found["ascend-sim"]["detail"]["evidence"] == "simulated: nothing of the chip"
    text = doctor_text(doctor())
    assert "simulated: nothing of the chip" in " ".join(text.split())


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = AscendSimBackend().probe()
    assert not found.usable and "g++" in found.next
    with pytest.raises(porting.PortingError) as caught:
        open_session(program(NEGATE), SIM)
    assert caught.value.exit_code == 3


def test_nodes_on_the_ai_cpu_are_named() -> None:
    made = program("(float[2,4] x) => (int64[2,K] where) { [found] where = NonZero(x) }")
    negated = program("(float[2,4] x) => (float[2,4] y) { [neg] y = Neg(x) }")
    with open_session(negated, SIM) as session:
        assert session.placement == {"neg": "ascend-sim:0"}
        np.testing.assert_array_equal(session.run({"x": X})["y"], -X)
    assert made
