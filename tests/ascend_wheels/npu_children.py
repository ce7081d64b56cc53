"""Processes of this interpreter over a simulated CANN, for tests of torch-npu. Where it is installed, torch itself is imported over CANN or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from porting.backends.cann_simulator.environment import simulated_environment
from porting.backends.cann_simulator.machine import Machine

TESTS = Path(__file__).resolve().parents[1]
SECONDS = 300  # for a process that should take ten

PRELUDE = f"""
import json, os, sys, warnings
sys.path += [{str(TESTS.parent)!r}, {str(TESTS)!r}]
warnings.simplefilter("ignore")

def error(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as caught:
        return [type(caught).__name__, str(caught)]
    return None

def tell(value):
    print("RESULT" + json.dumps(value))
"""


def told(source: str, machine: Machine | None = None, **more: str) -> Any:
    """What a script `tell`s. more: variables of its environment"""
    environment = {
        **os.environ,
        **simulated_environment(machine or Machine()),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        **more,
    }
    ran = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(source)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    results = [line for line in ran.stdout.splitlines() if line.startswith("RESULT")]
    assert ran.returncode == 0 and results, f"exit {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
    return json.loads(results[-1].removeprefix("RESULT"))
