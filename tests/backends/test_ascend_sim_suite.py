"""The backend suite on the simulated Ascend: each case compiled for the shapes of its runs, in the graph's own precision."""

from __future__ import annotations

import pytest

from tests.backends.contract import CHECKS
from tests.backends.suite import CASES, UNSUPPORTED, run_one

DEVICE = "ascend-sim,precision=origin"
GEARS = "gears=N=1;N=2;N=3;N=4;N=5"  # what the checks of the contract feed
QUICK = ("elementwise", "dynamic_batch", "matmul_2d", "conv")


@pytest.mark.parametrize("name", QUICK)
def test_case(name: str) -> None:
    wrong = run_one(name, DEVICE)
    assert not wrong, wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", [case.name for case in CASES if case.name not in QUICK])
def test_case_long_tail(name: str) -> None:
    wrong = run_one(name, DEVICE)
    assert not wrong, wrong


@pytest.mark.parametrize("name", CHECKS)
def test_promise_of_the_contract(name: str) -> None:
    wrong = run_one(name, f"{DEVICE},{GEARS}")
    assert not wrong, wrong


def test_few_cases_are_not_for_it() -> None:
    """What is listed as unsupported only shrinks."""
    cases = {case.name for case in CASES}
    assert len([name for device, name in UNSUPPORTED if device == "ascend-sim" and name in cases]) <= 3
