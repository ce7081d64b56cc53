"""`doctor` tells what is wrong, whatever is wrong, and says what to type."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from porting import distributions, doctor
from porting.doctor import _probe_apart
from tests.backends.test_registry import plugin

CRASHES = {
    "segfault": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "exits": "import os; os._exit(7)",
    "raises": "class Mine:\n    def probe(self): raise KeyError('driver')",
}


def test_report_is_json_and_complete() -> None:
    code = (
        "import json, sys, porting.doctor as d; report = d.doctor(); "
        "report['heavy'] = [m for m in ('onnxruntime', 'torch', 'onnx', 'numpy') if m in sys.modules]; print(json.dumps(report))"
    )
    report = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert report["heavy"] == []  # a broken one would take doctor with it
    assert report["schema"] == "porting.doctor/1"
    assert report["python"]["executable"] == sys.executable
    assert report["packages"]["numpy"]
    assert report["packages"]["onnxruntime-cann"] is None
    assert report["cores"] >= 1
    assert report["memory_bytes"]["total"] >= report["memory_bytes"]["available"] > 0
    assert report["disk_free_bytes"] > 0
    devices = {device["name"]: device for device in report["devices"]}
    assert devices["cpu"]["usable"]
    assert devices["null"]["usable"]
    assert not devices["cuda"]["usable"]
    assert "CUDAExecutionProvider" in devices["cuda"]["reason"]
    assert report["problems"] == []  # a device that this machine does not have is no problem


def test_plugins_that_crash_are_reported_and_take_nothing_with_them(tmp_path: Path) -> None:
    for name, code in CRASHES.items():
        plugin(tmp_path, f"{name}_plugin", name, code)
    code = (
        f"import json, sys; sys.path.insert(0, {str(tmp_path)!r}); from porting.doctor import _probe_apart; "
        f"print(json.dumps([_probe_apart(name) for name in ({', '.join(map(repr, CRASHES))}, 'null')]))"
    )
    segfault, exits, raises, null = json.loads(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    assert "exit code -11" in segfault["reason"]
    assert "exit code 7" in exits["reason"]
    assert "KeyError: 'driver'" in raises["reason"]
    assert null["usable"]
    problems = doctor._problems(dict.fromkeys(doctor.BASE, "1"), [], [segfault, exits, raises, {**null, "name": "cpu"}])
    assert [problem["what"].split(":")[0] for problem in problems] == ["device 'segfault'", "device 'exits'", "device 'raises'"]


def test_probe_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.01)
    assert "its probe hangs" in _probe_apart("null")["reason"]


def test_overwritten_runtime_is_a_problem_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "probe_all", lambda: [{"name": "cpu", "usable": True, "crashed": False}])
    monkeypatch.setattr(doctor, "runtime_owners", lambda: ["onnxruntime 1.31.1", "onnxruntime-gpu 1.31.1"])
    (problem,) = doctor.doctor()["problems"]
    assert "onnxruntime 1.31.1, onnxruntime-gpu 1.31.1" in problem["what"]
    assert problem["next"].startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


def test_missing_base_package_and_no_device_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = {"name": "cpu", "usable": False, "crashed": False, "reason": "onnxruntime is not installed", "next": "pip install it"}
    monkeypatch.setattr(doctor, "probe_all", lambda: [cpu, {"name": "null", "usable": True, "crashed": False}])
    monkeypatch.setattr(doctor, "installed_versions", lambda names: dict.fromkeys(names, None))
    found = [problem["what"] for problem in doctor.doctor()["problems"]]
    assert "numpy is missing, which porting cannot do without" in found
    assert "no device is usable; cpu: onnxruntime is not installed" in found


def test_owners_are_those_that_hold_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(name: str, file: str) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "RECORD").write_text(f"{file},,\n")

    install("onnxruntime", "onnxruntime/__init__.py")
    install("onnxruntime-cann", "onnxruntime/__init__.py")
    install("onnxruntime-genai", "onnxruntime_genai/__init__.py")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert distributions.runtime_owners() == ["onnxruntime 1.2", "onnxruntime-cann 1.2"]
    assert distributions.installed_versions(["onnxruntime-cann", "numpy-that-is-not"]) == {
        "onnxruntime-cann": "1.2",
        "numpy-that-is-not": None,
    }


def test_torch_npu_without_cann_is_a_problem() -> None:
    """`import torch` imports it, and fails."""
    packages: dict[str, str | None] = {**dict.fromkeys(doctor.BASE, "1"), "torch-npu": "2.13.0"}
    devices = [{"name": name, "usable": usable, "crashed": False} for name, usable in (("ascend", False), ("cpu", True))]
    (found,) = doctor._problems(packages, [], devices)
    assert "torch-npu is installed and CANN is not" in found["what"] and "environment of its own" in found["next"]
    assert not doctor._problems(packages, [], [{**devices[0], "usable": True}, devices[1]])
    assert not doctor._problems({**packages, "torch-npu": None}, [], devices)
