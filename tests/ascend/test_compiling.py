"""`porting compile`: build.sh of a hand-off, where atc is and where it is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from porting.ascend.compiling import compile_port
from porting.ascend.handoff import NOT_COMPARED, write_handoff
from porting.cli import _exit_code
from porting.errors import DeviceUnavailable, PortError, UsageError
from porting.port_folder import sha256_of
from tests.ascend.small_handoffs import command, fake_atc, small_port, with_handoff

NAME = "Ascend310P3-8.5.0-any"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_handoff(tmp_path_factory.mktemp("made"))


@pytest.fixture
def port(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the port, on a machine without atc."""
    shutil.copytree(made, tmp_path / "p.port")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "CANN_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "p.port"


@pytest.fixture
def atc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As `port`, with a fake atc on PATH."""
    monkeypatch.setenv("PATH", f"{fake_atc(tmp_path)}:{os.environ['PATH']}")
    return monkeypatch


def test_a_model_is_compiled_and_recorded(port: Path, atc: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    compiled = compile_port(port, on_line=lines.append)
    assert compiled.ok and compiled.status == 0 and compiled.handoff.name == NAME
    assert compiled.handoff.build is not None and compiled.handoff.build["om"] == "model.om"
    assert (
        "ATC run success, welcome to the next use." in lines
        and lines.index("ATC start working now, please wait for a moment.") > 0
    )
    assert compiled.report is not None and [f.code for f in compiled.report.findings] == ["atc-success"]
    assert compile_port(port, NAME).handoff.build == {**compiled.handoff.build, "log": compiled.handoff.build["log"]}


def test_the_log_is_passed_on_while_it_runs_however_long(port: Path, atc: pytest.MonkeyPatch) -> None:
    atc.setenv("FAKE_ATC", "chatty")
    lines: list[str] = []
    assert compile_port(port, on_line=lines.append).ok
    assert sum("line " in line for line in lines) == 20_000


def test_a_refusal_is_explained(port: Path, atc: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    atc.setenv("FAKE_ATC", "fail")
    compiled = compile_port(port)
    assert not compiled.ok and compiled.status == 1 and compiled.handoff.build is None
    assert compiled.report is not None and compiled.report.findings[0].code == "EZ3003"
    assert _exit_code(["compile", str(port)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"FAIL {NAME}: atc ended with 255\n") and "EZ3003 (operators): no engine" in out
    assert "ATC run failed" in err and "\x1b" not in out + err
    assert _exit_code(["compile", str(port), "--json", "--quiet", "--lang", "zh"]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (
        found["schema"] == "porting.compile/1"
        and not found["ok"]
        and "引擎" in found["log"]["findings"][0]["explanation"]["means"]
    )
    assert err == ""


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("nothing", 4, "atc reported no failure and made no model"),
        ("renamed", 4, "atc reported no failure and made no model"),
        ("header", 0, "model.om is cut short: 100 bytes, and its header alone has 256"),
        ("partial", 0, "model.om is cut short: 319 bytes, and its header says 320"),
        ("two", 5, "atc reported no failure and made 2 files with .om"),
        ("empty", 6, "atc reported no failure and made an empty model: no byte in model.om"),
        ("killed", 137, "atc was killed by signal 9: out of memory?"),
    ],
)
def test_the_verdict_says_what_atc_did(
    port: Path, atc: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str, status: int, said: str
) -> None:
    atc.setenv("FAKE_ATC", how)
    compiled = compile_port(port)
    assert (compiled.ok, compiled.status, compiled.reason) == (False, status, said) and compiled.handoff.build is None
    assert _exit_code(["compile", str(port), "--quiet"]) == 1
    assert capsys.readouterr().out.splitlines()[0] == f"FAIL {NAME}: {said}"


def test_what_was_not_compared_is_said_before_it_is_compiled(port: Path, atc: pytest.MonkeyPatch) -> None:
    write_handoff(port, command(), side_files={"keep_dtype.cfg": b"n\n"}, cann="8.5.0", notes=[NOT_COMPARED], force=True)
    lines: list[str] = []
    compile_port(port, on_line=lines.append)
    assert NOT_COMPARED in lines[0]


def test_without_atc_the_way_is_shown(port: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DeviceUnavailable, match="atc is not on this machine"):
        compile_port(port)
    assert _exit_code(["compile", str(port), "--quiet"]) == 3
    err = capsys.readouterr().err
    assert "bash build.sh" in err and "--record" in err and NAME in err


def test_the_command_shows_what_it_made(port: Path, atc: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["compile", str(port), "--handoff", NAME]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"COMPILED {NAME}: model.om; it was not run on hardware") and "sha256" in out
    assert "ATC start working" in err
    assert _exit_code(["compile", str(port), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["build"]["files"][0]["path"] == "model.om" and found["soc"] == "Ascend310P3"


def test_what_was_compiled_elsewhere_is_recorded(port: Path, tmp_path: Path) -> None:
    folder = port / "targets" / NAME
    with pytest.raises(PortError, match="expected one compiled model, found none"):
        compile_port(port, record=True)
    away = tmp_path / "away"
    shutil.copytree(folder, away)
    subprocess.run(
        ["bash", str(away / "build.sh")], env={"PATH": f"{fake_atc(tmp_path)}:/usr/bin:/bin"}, check=True, capture_output=True
    )
    shutil.rmtree(folder)
    shutil.copytree(away, folder)
    compiled = compile_port(port, record=True)
    assert compiled.ok and compiled.status is None and compiled.handoff.build is not None
    assert _exit_code(["compile", str(port), "--record", "--quiet"]) == 0


def test_which_hand_off_has_to_be_clear(port: Path, tmp_path: Path) -> None:
    write_handoff(port, command("Ascend910B3"), side_files={"keep_dtype.cfg": b"n\n"})
    with pytest.raises(UsageError, match="several hand-offs") as refused:
        compile_port(port)
    assert "Ascend910B3-any-any" in refused.value.next
    with pytest.raises(UsageError, match="no hand-off 'Ascend910B4") as refused:
        compile_port(port, "Ascend910B4-any-any")
    assert "did you mean 'Ascend910B3-any-any'" in refused.value.next
    (tmp_path / "bare").mkdir()
    with pytest.raises(PortError, match="has no hand-off"):
        compile_port(small_port(tmp_path / "bare"))
    with pytest.raises(PortError, match="no such port"):
        compile_port(tmp_path / "nothing")


def test_a_script_of_somebody_else_is_not_run(port: Path, atc: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not even when handoff.json has its hash: whoever sends a port writes both."""
    folder = port / "targets" / NAME
    script = folder / "build.sh"
    script.write_text(script.read_text() + f"touch {tmp_path}/was_run\n")
    manifest = json.loads((folder / "handoff.json").read_text())
    (entry,) = [e for e in manifest["files"] if e["path"] == "build.sh"]
    entry.update(size=script.stat().st_size, sha256=sha256_of(script))
    (folder / "handoff.json").write_text(json.dumps(manifest))
    with pytest.raises(PortError, match=r"build\.sh is not what this version of porting writes"):
        compile_port(port)
    assert not (tmp_path / "was_run").exists()


def test_our_virtual_environment_is_not_the_compiler_s(port: Path, atc: pytest.MonkeyPatch, tmp_path: Path) -> None:
    atc.delenv("VIRTUAL_ENV", raising=False)  # run by the path of its interpreter, nothing says that there is one
    atc.setattr(sys, "prefix", str(tmp_path / "venv"))
    ours = tmp_path / "venv" / "bin"
    ours.mkdir(parents=True)
    (ours / "python3").write_text("#!/bin/sh\necho OURS\n")
    (ours / "python3").chmod(0o755)
    atc.setenv("PATH", f"{ours}:{os.environ['PATH']}")
    lines: list[str] = []
    assert compile_port(port, on_line=lines.append).ok
    assert "OURS" not in lines and any(line.startswith("python3: ") for line in lines)


def test_two_do_not_compile_in_one_folder(port: Path, atc: pytest.MonkeyPatch) -> None:
    """What the first makes is neither removed nor recorded by the second."""
    assert compile_port(port).ok
    folder = port / "targets" / NAME
    before = (folder / "handoff.json").read_bytes()
    atc.setenv("FAKE_ATC", "slow")
    first = subprocess.Popen(
        ["bash", "build.sh"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        _wait_for(folder / "started", first)
        (folder / "atc.log").write_text("of the first")
        atc.setenv("FAKE_ATC", "ok")
        with pytest.raises(UsageError, match=r"another build\.sh is at work in this folder"):
            compile_port(port)
        assert (folder / "atc.log").read_text() == "of the first" and (folder / "handoff.json").read_bytes() == before
        with pytest.raises(PortError, match="found none"):
            compile_port(port, record=True)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate(timeout=30)
    assert compile_port(port).ok


def test_an_interrupt_ends_the_compiler_too(port: Path, atc: pytest.MonkeyPatch) -> None:
    atc.setenv("FAKE_ATC", "slow")
    started = port / "targets" / NAME / "started"
    process = subprocess.Popen(
        [sys.executable, "-m", "porting", "compile", str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    _wait_for(started, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    alive = [p for p in Path("/proc").glob("[0-9]*/cwd") if _points_at(p, started.parent)]
    assert alive == []


def _wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


def _points_at(link: Path, folder: Path) -> bool:
    try:
        return os.path.realpath(link) == os.path.realpath(folder)
    except OSError:  # it ended while we looked
        return False
