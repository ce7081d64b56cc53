"""Processes of this interpreter over a simulated CANN, for tests of the CANN wheel: what it does by itself, and what the route makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from porting.backends.cann_simulator import build, environment
from porting.backends.cann_simulator.environment import simulated_environment
from porting.backends.cann_simulator.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120  # for a process that should take three

# `raw` is the wheel as a user would have it; `session` is ours, in this very process
PRELUDE = f"""
import json, os, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np, onnxruntime as ort
from porting.backends.ascend import cann_provider
from porting.backends.onnx_program import program_from_onnx
from porting.errors import PortingError
from tests.ascend_wheels import cann_models as models
X = np.full((2, 4), 3, np.float32)

def raw(model, optimised=False, fallback=True, **options):
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    if not optimised:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    more = {{}} if fallback else {{"enable_fallback": 0}}
    return ort.InferenceSession(model, settings, providers=[("CANNExecutionProvider", options)], **more)

def places(session):
    return {{n.name: a.ep_name for a in session.get_provider_graph_assignment_info() for n in a.get_nodes()}}

def cpu(model, feeds):
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)

def session(model, **options):
    program = model if not isinstance(model, (bytes, str)) else program_from_onnx(model)
    return cann_provider.prepare_here(program, {{"route": "cann", "precision": "fp32", **options}})

def error(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as caught:
        return [type(caught).__name__, str(caught)]
    return None

def tell(value):
    print("RESULT" + json.dumps(value, default=lambda v: v.tolist()))
"""


def use_own_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep compiled models of this test from those of others. The simulator's libraries, which take a while to build, stay where they are."""
    libraries = build.cache_root()
    for module in (build, environment):
        monkeypatch.setattr(module, "cache_root", lambda: libraries)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "own_cache"))


def child_environment(folder: Path, machine: Machine | None = None, **more: str) -> dict[str, str]:
    """Of a process over a simulated machine, with its cache in a folder of the test's. A name in `more` with an empty value is left out."""
    simulated = simulated_environment(machine or Machine())
    made = {**os.environ, **simulated, "XDG_CACHE_HOME": str(folder / "cache"), **more}
    return {name: value for name, value in made.items() if value}


def started(source: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script with the names of PRELUDE, in a folder."""
    code = PRELUDE + textwrap.dedent(source)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=dict(environment), capture_output=True, text=True, timeout=SECONDS)


def told(source: str, folder: Path, machine: Machine | None = None, **more: str) -> Any:
    """What a script `tell`s."""
    ran = started(source, folder, child_environment(folder, machine, **more))
    results = [line for line in ran.stdout.splitlines() if line.startswith("RESULT")]
    assert ran.returncode == 0 and results, f"exit {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
    return json.loads(results[-1].removeprefix("RESULT"))
