"""The stand-in for atc: its options and codes, and hand-offs that compile through their own build.sh."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import porting
from porting.ascend.atc_command import atc_command
from porting.ascend.compiling import compile_port
from porting.ascend.gear_requests import Request
from porting.ascend.handoff import write_handoff
from porting.ascend.soc import find_soc
from porting.backends.cann_simulator import atc
from porting.backends.cann_simulator.execution import load
from porting.backends.cann_simulator.machine import Machine
from tests.ascend.small_handoffs import small_port, with_handoff
from tests.graph_models import model, node, weight

F = np.float32
RELU = model([node("MatMul", "x w", "p"), node("Relu", "p", "y")], {"x": ["b", 8]}, {"y": ["b", 16]}, [weight("w", 8, 16)])
BAD = model(
    [node("Pad", "x q", "y", mode="wrap")], {"x": [2]}, {"y": [4]}, [onnx.numpy_helper.from_array(np.int64([1, 1]), "q")]
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(atc.MACHINE, raising=False)
    (tmp_path / "m.onnx").write_bytes(RELU.SerializeToString())
    (tmp_path / "bad.onnx").write_bytes(BAD.SerializeToString())
    return tmp_path


def call(*more: str, model_: str = "m.onnx", **without: None) -> int:
    given = {"framework": "5", "model": model_, "output": "out/m", "soc_version": "Ascend910B3", "input_shape": "x:2,8"}
    given |= dict(one[2:].split("=", 1) for one in more if "=" in one)
    return atc.main(
        [f"--{name}={value}" for name, value in given.items() if name not in without] + [m for m in more if "=" not in m]
    )


def test_it_compiles_and_says_so(here, capsys):
    assert call("--precision_mode_v2=origin") == 0
    said = capsys.readouterr().out
    assert said.startswith(atc.STARTED) and atc.SUCCEEDED in said and "simulated" in said
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(F)
    found = load((here / "out" / "m.om").read_bytes(), Machine()).run([x])[0]
    assert np.allclose(found, np.maximum(x @ onnx.numpy_helper.to_array(RELU.graph.initializer[0]), 0), atol=1e-6)


def test_options_with_a_blank_and_a_host(here):
    assert (
        atc.main(
            ["--framework", "5", "--model", "m.onnx", "--output", "m", "--soc_version", "Ascend910B3", "--input_shape", "x:2,8"]
        )
        == 0
    )
    assert call("--host_env_os=linux", "--host_env_cpu=aarch64") == 0
    assert (here / "out" / "m_linux_aarch64.om").is_file() and (here / "m.om").is_file()


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--presicion_mode=force_fp16"], "E10001: there is no option --presicion_mode"),
        (["--precision_mode=fp16"], "E10003"),
        (["--precision_mode=force_fp16", "--precision_mode_v2=fp16"], "E10047"),
        (["--framework=3"], "E10003"),
        (["--soc_version=Ascend910"], "E10001"),
        (["--soc_version=ascend910b3"], "E10001"),
        (["--log=loud"], "E10010"),
        (["--keep_dtype=no.cfg"], "E13000"),
        (["--model=no.onnx"], "E13000"),
        (["--output=a b"], "E13026"),
        (["--host_env_cpu=aarch64"], "E10057"),
        (["--sparsity=1", "--soc_version=Ascend310P3"], "E10001"),
        (["--singleop=x.json"], "E10055"),
        (["--input_shape=y:1"], "E10016"),
        (["--input_shape=x:-1,8", "--dynamic_batch_size=1,1"], "E10039"),
        (["--dynamic_dims=1;2", "--dynamic_batch_size=1,2"], "E10009"),
        (["--input_shape"], "E10004"),
        (["input_shape"], "E10001"),
    ],
)
def test_what_it_refuses(here, capsys, more, code):
    assert call(*more) == atc.FAILURE
    said = capsys.readouterr().out
    assert atc.FAILED in said and code in said and atc.SUCCEEDED not in said and not list(here.rglob("*.om"))


@pytest.mark.parametrize("name", atc.REQUIRED)
def test_what_is_required(here, capsys, name):
    assert call(**{name: None}) == atc.FAILURE and f"E10007: --{name}" in capsys.readouterr().out


def test_an_unsupported_operator_and_the_check_before_a_build(here, capsys):
    assert call("--input_shape=x:2", model_="bad.onnx") == atc.FAILURE
    said = capsys.readouterr().out
    assert "pad-wrap" in said and "is a guess" in said
    assert call("--input_shape=x:2", "--mode=3", model_="bad.onnx", output=None) == atc.FAILURE
    rows = json.loads((here / atc.CHECK_REPORT).read_text())["result"]
    assert [(row["op_name"], row["op_type"]) for row in rows if row["rule"] == "pad-wrap"] == [("y", "Pad")]
    assert call("--mode=3") == 0 and not list(here.rglob("*.om"))


def test_the_machine_of_the_environment_gives_the_release(here, monkeypatch):
    monkeypatch.setenv(atc.MACHINE, Machine("Ascend310P3", "9.0.0").to_json())
    assert call("--precision_mode_v2=origin") == 0
    assert load((here / "out" / "m.om").read_bytes(), Machine("Ascend910B3", "9.0.0")).cann == "9.0.0"
    monkeypatch.setenv(atc.MACHINE, "{}")
    assert call() == atc.FAILURE


# --- hand-offs ----------------------------------------------------------------------------------------------------

SCRIPT = """#!/bin/sh
exec {python} -c "import sys; sys.path[:] = {path}; from porting.backends.cann_simulator.atc import main; sys.exit(main())" "$@"
"""


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """A CANN whose set_env.sh puts the stand-in on PATH."""
    home = tmp_path / "cann"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "atc").write_text(SCRIPT.format(python=sys.executable, path=[str(Path(p).absolute()) for p in sys.path]))
    (home / "bin" / "atc").chmod(0o755)
    (home / "set_env.sh").write_text(f'export PATH="{home}/bin:$PATH"\n')
    monkeypatch.setenv("ASCEND_HOME_PATH", str(home))
    monkeypatch.delenv(atc.MACHINE, raising=False)
    assert os.access(home / "bin" / "atc", os.X_OK)
    return home


def test_a_hand_off_compiles_through_its_own_script(toolkit, tmp_path):
    port = with_handoff(tmp_path)
    made = compile_port(port)
    assert made.ok and made.status == 0, made.reason
    loaded = load((made.handoff.path / "model.om").read_bytes(), Machine("Ascend310P3"))
    assert loaded.gear_kind == "batch" and [gear.values for gear in loaded.gears] == [(1,), (2,)]
    assert loaded.arithmetic.stores == "float16" and loaded.arithmetic.saturates


def test_a_port_with_batches_compiles_and_runs(toolkit, tmp_path):
    onnx.save(RELU, str(tmp_path / "small.onnx"))
    verdict = porting.port(tmp_path / "small.onnx", tmp_path / "p", "Ascend310P3", gears=Request(batch="1,4"))
    assert verdict.verdict == "pass"
    lines: list[str] = []
    made = compile_port(tmp_path / "p", on_line=lines.append)
    assert made.ok and any(atc.SUCCEEDED in line for line in lines)
    loaded = load((made.handoff.path / "model.om").read_bytes(), Machine("Ascend310P3"))
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(F)
    w = onnx.numpy_helper.to_array(RELU.graph.initializer[0])
    half = np.maximum(x.astype(np.float16).astype(F) @ w.astype(np.float16).astype(F), 0).astype(np.float16)
    assert np.abs(loaded.run([x], 1)[0] - half.astype(F)).max() <= 2**-9  # one ulp of fp16 below 4: sums in another order


def test_a_hand_off_that_is_refused_says_why(toolkit, tmp_path):
    """The matrix unit of 310P takes fp16 only."""
    port = small_port(tmp_path)
    gears = {"input_shape": "x:1,8", "input_format": "ND"}
    write_handoff(port, atc_command(find_soc("Ascend310P3"), ("precision_mode_v2", "origin"), gears))
    made = compile_port(port)
    assert not made.ok and made.status == 1 and made.report is not None
    assert "EZ3003" in {finding.code for finding in made.report.findings} and not list(made.handoff.path.glob("*.om"))
