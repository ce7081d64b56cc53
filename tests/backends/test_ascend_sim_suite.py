"""The backend suite on Ascend, simulated and real: each case compiled for the shapes of its runs, in the graph's own precision.

The real one is `pytest -m ascend`, where CANN and an NPU are; nobody ever ran that. Here the same code is run over a simulated CANN that it takes
for the vendor's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from porting.backends.cann_simulator.environment import simulated_environment
from porting.backends.cann_simulator.machine import Machine
from tests.backends.ascend_device import compile_what_it_runs
from tests.backends.contract import CHECKS
from tests.backends.suite import CASES, UNSUPPORTED, run_one

ROOT = Path(__file__).resolve().parents[2]
GEARS = "gears=N=1;N=2;N=3;N=4;N=5"  # what the checks of the contract feed
QUICK = ("elementwise", "dynamic_batch", "matmul_2d", "conv")
REAL = [pytest.mark.ascend, pytest.mark.device]


@pytest.fixture(params=["ascend-sim", pytest.param("ascend", marks=REAL)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    if request.param == "ascend":
        compile_what_it_runs(monkeypatch, tmp_path)
    return f"{request.param},precision=origin"


@pytest.mark.parametrize("name", QUICK)
def test_case(name: str, device: str) -> None:
    wrong = run_one(name, device)
    assert not wrong, wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", [case.name for case in CASES if case.name not in QUICK])
def test_case_long_tail(name: str, device: str) -> None:
    wrong = run_one(name, device)
    assert not wrong, wrong


@pytest.mark.parametrize("name", CHECKS)
def test_promise_of_the_contract(name: str, device: str) -> None:
    wrong = run_one(name, f"{device},{GEARS}")
    assert not wrong, wrong


def test_few_cases_are_not_for_it() -> None:
    """What is listed as unsupported only shrinks."""
    cases = {case.name for case in CASES}
    assert len([name for device, name in UNSUPPORTED if device == "ascend-sim" and name in cases]) <= 3


# --- the marker ---------------------------------------------------------------------------------------------------------


def marked(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`pytest -m ascend` of this file in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-m", "ascend", "-rs", "-p", "no:cacheprovider", str(Path(__file__)), *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True, text=True)


def test_without_cann_the_marked_ones_are_skipped_with_the_reason() -> None:
    done = marked("-k", "test_case and elementwise")
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout and re.search(r"SKIPPED .*CANN is not installed", done.stdout)


def test_by_default_nothing_that_needs_an_npu_is_chosen() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", str(Path(__file__))], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert "[ascend-sim-elementwise]" in listed and "[ascend-elementwise]" not in listed
    assert "not device" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(
    "chosen",
    [
        "test_case and (elementwise or dynamic_batch) or unknown_operator",
        pytest.param("test_case or test_promise", marks=pytest.mark.slow),
    ],
)
def test_the_marked_ones_run_over_a_simulated_cann(chosen: str) -> None:
    """Compiled by build.sh, which finds its atc, and run by the device `ascend`, which finds its libascendcl."""
    done = marked("-k", chosen, environment=simulated_environment(Machine()))
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout and re.search(r"\d+ passed", done.stdout)
