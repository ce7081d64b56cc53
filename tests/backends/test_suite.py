"""Every case and check of the suite on the built-in backends; OpenVINO has test_plugin_openvino.py."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends import suite
from tests.backends.suite import ALL, CASES, UNSUPPORTED, require_close, run_case, run_one, run_suite

# one of each kind of array, state and refusal: every session here starts a process, so the rest is in the long tail
IN_WORKER = (
    "scalar",
    "empty_dimension",
    "sums_cache_rows_differ",
    "lstm_chunks_equal_the_whole",
    "four_threads_share_a_session",
    "outputs_outlive_later_runs_and_the_session",
    "an_unknown_operator_is_refused_by_name",
)


def require(name: str, device: str) -> None:
    wrong = run_one(name, device)
    assert not wrong, wrong


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("device", ["null", "cpu"])
def test_backend(device: str, name: str) -> None:
    require(name, device)


@pytest.mark.parametrize("options", ["threads=1,optimization=off", "optimization=basic,prepack=0,spinning=1"])
def test_cpu_with_other_options(options: str) -> None:
    assert run_suite(f"cpu,{options}") == {}


@pytest.mark.parametrize("name", IN_WORKER)
def test_cpu_in_a_worker(name: str) -> None:
    require(name, "cpu,process=worker")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name not in IN_WORKER])
def test_cpu_in_a_worker_long_tail(name: str) -> None:
    require(name, "cpu,process=worker")


@pytest.mark.device
@pytest.mark.parametrize("name", ALL)
def test_cuda(name: str) -> None:
    require(name, "cuda")


# --- the suite itself -------------------------------------------------------------------------------------------------


def test_table_of_unsupported_names_only_what_exists() -> None:
    assert {name for _, name in UNSUPPORTED} <= set(ALL)


def test_a_listed_case_that_passes_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UNSUPPORTED, ("cpu", "broadcast"), "it could not once")
    assert "passes: remove the line" in run_one("broadcast", "cpu,threads=1")


def test_a_wrong_backend_fails_every_case_with_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros for an answer, which is what null gives, must fail wherever values count."""
    monkeypatch.setattr(suite, "COMPUTES_NOTHING", ())
    passed = []
    for case in CASES:
        try:
            run_case(case, "null")
            passed.append(case.name)
        except Exception:
            continue
    assert passed == []


def test_bounds_see_one_wrong_rounding_more_than_allowed() -> None:
    want = np.linspace(-1, 1, 9)
    eps = float(np.finfo(np.float32).eps)
    require_close((want + 3 * eps).astype(np.float32), want, 4, "float32", "inside")
    with pytest.raises(AssertionError, match="max abs error"):
        require_close((want + 6 * eps).astype(np.float32), want, 4, "float32", "outside")
