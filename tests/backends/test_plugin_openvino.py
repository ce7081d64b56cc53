"""The OpenVINO example as a third person would have it: installed beside porting, found by its entry point, held to the suite."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino")
ROOT = Path(__file__).parents[2]
SUITE = "import json, tests.backends.suite as s; print(json.dumps({'wrong': s.run_suite('openvino,threads=2'), 'held': len(s.ALL)}))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the package is installed; it is built from a copy, for setuptools writes beside its source."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(
        ROOT / "examples" / "openvino_backend", folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info")
    )
    install = ["install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder / "site")]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *install, str(folder / "source")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    path = [str(folder / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def python(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_suite_holds_on_openvino(installed: dict[str, str]) -> None:
    found = json.loads(python(SUITE, installed))
    assert found["wrong"] == {}, "\n".join(f"{name}: {text}" for name, text in found["wrong"].items())
    assert found["held"] > 50


def test_plugin_is_a_device_like_any_other(installed: dict[str, str]) -> None:
    code = "import json; from porting.doctor import _probe_apart; print(json.dumps(_probe_apart('openvino')))"
    device = json.loads(python(code, installed))
    assert device["usable"]
    assert device["detail"]["openvino"]


def test_plugin_runs_in_a_worker_and_refuses_what_it_would_wrap_around(installed: dict[str, str]) -> None:
    code = """
import numpy as np
from porting.errors import RuntimeFailed
from porting.session import open_session
from tests.backends.contract import program
with open_session(program("(int64[N] x) => (int64[N] y) { y = Add(x, x) }"), "openvino,process=worker") as session:
    print(session.run({"x": np.array([3])})["y"].tolist())
    try:
        session.run({"x": np.array([2**31])})
    except RuntimeFailed as error:
        print("refused" if "computes int64 in int32" in error.what else error)
"""
    assert python(code, installed) == "refused"
