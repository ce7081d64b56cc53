"""What CANN answers when it cannot, through the real wheel: the vendor's code, what it means, what to do; and the session goes on where it can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from porting.backends.ascend.cann_provider_session import explained
from porting.backends.onnx_program import program_from_onnx
from porting.errors import DeviceUnavailable, OutOfResources, PortingError, RuntimeFailed
from porting.session import open_session
from tests.ascend_wheels import cann_models as models
from tests.ascend_wheels.cann_children import told, use_own_cache

pytestmark = pytest.mark.cann_wheel

X = np.full((2, 4), 3, np.float32)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_own_cache(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("execute-failed@1", RuntimeFailed, "507011"),
        ("timeout@1", RuntimeFailed, "507012"),
        ("device-lost@1", DeviceUnavailable, "507010"),
        ("load-failed@1", RuntimeFailed, "545001"),
        ("oom@1", OutOfResources, "207001"),
        ("oom@2", OutOfResources, "245000"),
    ],
)
def test_a_fault_is_told_in_the_vendors_code_and_in_words(fault: str, kind: type[PortingError], said: str) -> None:
    device = f"ascend-sim,route=cann,precision=fp32,faults={fault}"
    with pytest.raises(PortingError) as caught, open_session(program_from_onnx(models.matmul()), device) as session:
        session.run({"x": X})
    assert type(caught.value) is kind
    assert said in caught.value.what
    assert caught.value.next != kind.default_next


def test_the_session_goes_on_after_a_failed_run() -> None:
    device = "ascend-sim,route=cann,precision=fp32,faults=execute-failed@2"
    with open_session(program_from_onnx(models.binary("Add")), device) as session:
        assert session.run({"x": X})["y"][0, 0] == 6
        with pytest.raises(RuntimeFailed):
            session.run({"x": X})
        assert session.run({"x": X})["y"][0, 0] == 6


def test_what_cann_does_not_compile_is_explained() -> None:
    with (
        pytest.raises(RuntimeFailed) as caught,
        open_session(program_from_onnx(models.refused()), "ascend-sim,route=cann,precision=fp32") as session,
    ):
        session.run({"x": X})
    assert caught.value.what.startswith("E11010: ") and "clip" in caught.value.what
    assert caught.value.next != RuntimeFailed.default_next


def test_a_refusal_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    source = 's = session(models.refused()); tell([error(s.run, {"x": X}), os.listdir(".")])'
    failed, _ = told(source, tmp_path)
    assert failed[0] == "RuntimeFailed"
    assert not list((tmp_path / "cache").rglob("*.om"))


# --- the wheel's own words ------------------------------------------------------------------------------------------

FRAME = "2026-01-01 00:00:00.1 [E:onnxruntime:Default, cann_call.cc:144 CannCall] CANN failure {}: {} ; NPU=0 ; hostname=h ; expr={}(a, b); \n"
FAILED = RuntimeFailed(
    "onnxruntime: CANN error executing aclmdlExecuteAsync(...)", where="run on ascend:0", next="the old advice"
)


def test_a_code_that_is_known_is_explained() -> None:
    heard = "\x1b[1;31m" + FRAME.format(507011, "a reason of its own", "aclmdlExecuteAsync")
    error = explained(FAILED, heard, "ascend:0")
    assert type(error) is RuntimeFailed
    assert error.what.startswith("507011: ") and "aclmdlExecuteAsync gives 507011" in error.what
    assert "a reason of its own" in error.what and "\x1b" not in error.what
    assert error.next != FAILED.next


def test_memory_that_ran_out_has_its_own_exit_code() -> None:
    error = explained(FAILED, FRAME.format(207001, "text", "aclrtMalloc"), "ascend:0")
    assert (type(error), error.exit_code) == (OutOfResources, 4)


def test_the_cause_comes_before_what_wraps_it() -> None:
    heard = FRAME.format(500000, "E10016: node is not in the graph", "aclgrphBuildModel")
    assert explained(FAILED, heard, "ascend:0").what.startswith("E10016: ")


def test_a_code_in_no_table_is_not_taken_for_another() -> None:
    error = explained(FAILED, FRAME.format(599999, "text", "aclrtMalloc"), "ascend:0")
    assert type(error) is RuntimeFailed
    assert "aclrtMalloc gives 599999" in error.what and "CANN error executing" in error.what
    assert "porting explain 599999" in error.next


def test_an_error_without_a_code_stays_what_it_is() -> None:
    assert explained(FAILED, "words and numbers, 12 and 4096", "ascend:0") is FAILED
