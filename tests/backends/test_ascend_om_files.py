"""Which compiled model route om loads on a device: the recorded .om of the hand-off that fits, byte for byte, or a clear error."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from porting.ascend.compiling import compile_port
from porting.ascend.handoff import Handoff
from porting.backends.ascend.om_files import fitting, om_for
from porting.errors import PortError, UsageError
from porting.port_folder import open_port
from tests.ascend.small_handoffs import fake_atc, with_handoff
from tests.backends.ascend_programs import total

SOC, NAME = "Ascend310P3", "Ascend310P3-8.5.0-any"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A port with one hand-off, not compiled."""
    return with_handoff(tmp_path_factory.mktemp("bare"))


@pytest.fixture
def port(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, compiled by a fake atc."""
    monkeypatch.setenv("PATH", f"{fake_atc(tmp_path)}:{os.environ['PATH']}")
    shutil.copytree(bare, tmp_path / "p.port")
    assert compile_port(tmp_path / "p.port").ok
    return tmp_path / "p.port"


def test_the_recorded_model_is_taken(port: Path) -> None:
    for options in ({}, {"handoff": NAME}):
        found = om_for(open_port(port).program(), SOC, options)
        assert found.path == port / "targets" / NAME / "model.om" and found.handoff is not None


def test_a_model_that_is_named_is_taken_as_it_is(port: Path, tmp_path: Path) -> None:
    (tmp_path / "own.om").write_bytes(b"any")
    found = om_for(open_port(port).program(), SOC, {"om": str(tmp_path / "own.om")})
    assert (found.path, found.handoff) == (tmp_path / "own.om", None)
    with pytest.raises(PortError, match="no such file"):
        om_for(open_port(port).program(), SOC, {"om": str(tmp_path / "gone.om")})
    with pytest.raises(PortError, match="no such file"):
        om_for(open_port(port).program(), SOC, {"om": str(tmp_path)})


@pytest.mark.parametrize("change", ["cut", "another", "gone", "link"])
def test_a_model_that_is_not_the_recorded_one_is_refused(port: Path, tmp_path: Path, change: str) -> None:
    om = port / "targets" / NAME / "model.om"
    data = om.read_bytes()
    om.unlink()
    if change == "cut":
        om.write_bytes(data[:-1])
    elif change == "another":
        om.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif change == "link":
        (tmp_path / "same.om").write_bytes(data)
        om.symlink_to(tmp_path / "same.om")
    with pytest.raises(PortError, match=r"model\.om is not the file that was recorded"):
        om_for(open_port(port).program(), SOC, {})


def test_what_has_no_compiled_model_says_how_to_get_one(bare: Path) -> None:
    with pytest.raises(PortError, match="belongs to no port") as foreign:
        om_for(total(), SOC, {})
    assert "om=PATH" in foreign.value.next
    with pytest.raises(PortError, match=f"hand-off {NAME} is not compiled") as early:
        om_for(open_port(bare).program(), SOC, {})
    assert "porting compile" in early.value.next


def test_a_hand_off_for_another_chip_is_not_taken(port: Path) -> None:
    program = open_port(port).program()
    with pytest.raises(PortError, match=f"no hand-off for Ascend910B3 .* its hand-offs are {NAME}"):
        om_for(program, "Ascend910B3", {})
    with pytest.raises(PortError, match=f"hand-off {NAME} is for {SOC}, and the device is an Ascend310P1"):
        om_for(program, "Ascend310P1", {"handoff": NAME})
    with pytest.raises(UsageError, match="no hand-off 'other'"):
        om_for(program, SOC, {"handoff": "other"})


def test_of_several_that_fit_the_compiled_one_is_taken_or_one_is_to_be_named(port: Path) -> None:
    found = om_for(open_port(port).program(), SOC, {}).handoff
    assert isinstance(found, Handoff)
    plain = replace(found, manifest={**found.manifest, "cann": "9.0.0", "build": None})
    for_arm = replace(found, manifest={**found.manifest, "host_cpu": "sparc"})
    assert fitting([plain, found, for_arm], SOC, None) is found
    with pytest.raises(UsageError, match="several hand-offs of this port fit"):
        fitting([found, found], SOC, None)
    with pytest.raises(PortError, match="with a host of"):
        fitting([for_arm], SOC, None)
