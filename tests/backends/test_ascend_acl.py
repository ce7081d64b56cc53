"""Finding AscendCL, and what its codes become."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from porting.backends.ascend.acl import CHECKED, HOME, LIBRARY, PLAIN, load_acl
from porting.backends.ascend.acl_codes import BROKEN, AclError, error_of, kind_of
from porting.backends.ascend.backend import AscendBackend
from porting.backends.cann_simulator.build import SHIM
from porting.errors import DeviceUnavailable, InputError, OutOfResources, PortError, RuntimeFailed


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (HOME, "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    load_acl.cache_clear()


def refused() -> str:
    """What `probe` says; it may not raise."""
    found = AscendBackend().probe()
    assert not found.usable and found.next
    with pytest.raises(DeviceUnavailable):
        load_acl()
    return found.reason


def test_nothing_is_installed() -> None:
    assert refused() == f"CANN is not installed: {LIBRARY} was not found"
    assert "ascend-sim" in AscendBackend().probe().next


def test_home_that_is_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(HOME, str(tmp_path / "gone"))
    assert refused() == "ASCEND_HOME_PATH is no folder"


def test_home_without_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(HOME, str(tmp_path))
    assert refused() == "ASCEND_HOME_PATH has no lib64"


def test_half_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder is there and the library is not: another one that could be found elsewhere is not taken in its place."""
    (tmp_path / "lib64").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / LIBRARY).write_bytes(b"")
    monkeypatch.setenv(HOME, str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "other"))
    assert "the toolkit is half installed" in refused()


def test_a_library_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / LIBRARY).write_bytes(b"no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere{os.pathsep}{tmp_path}")
    assert f"{LIBRARY} cannot be loaded" in refused()
    assert "driver" in AscendBackend().probe().next


def test_a_library_without_the_functions_is_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = "import sys; print([l.split()[-1] for l in open('/proc/self/maps') if '/libm.so' in l or '/libm-' in l][0])"
    found = subprocess.run(
        [sys.executable, "-c", f"import math, ctypes; ctypes.CDLL({ctypes.util.find_library('m')!r}); {code}"],
        capture_output=True,
        text=True,
    )
    if found.returncode:
        pytest.skip("no libm to stand in")
    (tmp_path / "lib64").mkdir()
    shutil.copyfile(found.stdout.strip(), tmp_path / "lib64" / LIBRARY)
    monkeypatch.setenv(HOME, str(tmp_path))
    assert "has no function aclInit" in refused()


def test_every_function_that_is_called_is_in_the_simulator() -> None:
    """A name that the vendor's headers do not have would be found by neither."""
    sources = "".join(path.read_text() for path in SHIM.glob("*.cpp"))
    assert [name for name in (*CHECKED, *PLAIN) if f" {name}(" not in sources and f"*{name}(" not in sources] == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (207001, OutOfResources),
        (207018, OutOfResources),
        (245000, OutOfResources),
        (107001, DeviceUnavailable),
        (200002, DeviceUnavailable),
        (207004, DeviceUnavailable),
        (100003, PortError),
        (145006, PortError),
        (507008, PortError),
        (145013, InputError),
        (507010, DeviceUnavailable),
        (507011, RuntimeFailed),
        (507012, RuntimeFailed),
        (107002, RuntimeFailed),
        (999999, RuntimeFailed),
    ],
)
def test_codes_become_errors(code: int, kind: type) -> None:
    assert kind_of(code) is kind
    error = error_of(AclError("aclrtMalloc", code, "allocate 3 MiB", "EL0004: said"), "ascend:1")
    assert type(error) is kind
    assert str(code) in error.what and "allocate 3 MiB" in error.what and "EL0004: said" in error.what
    assert error.where == "ascend:1" and error.next


def test_an_error_gives_the_vendors_name_and_advice() -> None:
    error = error_of(AclError("aclrtMalloc", 207001, "allocate 3 MiB", ""), "ascend:0")
    assert "ACL_ERROR_RT_MEMORY_ALLOCATION" in error.what and "npu-smi info" in error.next
    assert "in no table" in error_of(AclError("aclrtMalloc", 999999, "allocate", ""), "ascend:0").what


def test_what_cannot_be_waited_for_ends_a_session_and_what_can_does_not() -> None:
    assert {507010, 507012, 507046} <= BROKEN
    assert not {207001, 507011, 145013} & BROKEN
