"""Compile a hand-off where CANN is: run its build.sh, pass its log on, explain the codes in it, record the model that it made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from porting.ascend.explanations import LogReport, explain_log
from porting.ascend.handoff import BUILD, LOG, NOT_COMPARED, Handoff, finish_handoff, handoffs_of
from porting.ascend.log_lines import decoded, numbered_lines
from porting.errors import DeviceUnavailable, PortError, UsageError, nearest
from porting.port_folder import open_port

SCHEMA = "porting.compile/1"
NO_CANN, WRONG_USE = 3, 2  # exit codes of build.sh, which names the others
ERROR = "error: "
GRACE_S = 5.0  # between asking a compilation to end and ending it


@dataclass(frozen=True)
class Compiled:
    """What a compilation came to.

    ok:     a model was made and recorded
    status: the exit code of build.sh; None when nothing was run (`record`)
    reason: why no model was made, in a phrase; "" where one was
    report: what the codes in atc.log mean
    """

    handoff: Handoff
    ok: bool
    status: int | None
    report: LogReport | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        said = {key: self.handoff.manifest[key] for key in ("soc", "cann", "host_cpu", "command", "build")}
        return {
            "schema": SCHEMA,
            "handoff": self.handoff.name,
            "folder": str(self.handoff.path),
            "ok": self.ok,
            "status": self.status,
            "reason": self.reason,
            **said,
            "log": None if self.report is None else asdict(self.report),
        }


def compile_port(
    port: str | Path,
    name: str | None = None,
    *,
    record: bool = False,
    lang: str = "en",
    on_line: Callable[[str], None] = lambda line: None,
) -> Compiled:
    """Compile a hand-off of a port with atc, which has to be here.

    name:    of the hand-off; may be left out when the port has one
    record:  run nothing: record what build.sh made elsewhere, in a folder that was copied back
    on_line: given each line of the compiler's output as it comes
    raises:  UsageError (which hand-off?), PortError (damaged, or its build.sh is not ours), DeviceUnavailable (no atc here)
    """
    folder = Path(port)
    open_port(folder)
    handoff = _chosen(folder, name)
    handoff.verify()
    if record:
        return Compiled(finish_handoff(handoff.path), True, None, _report(handoff, lang))
    if NOT_COMPARED in handoff.manifest["notes"]:
        on_line(f"note: {NOT_COMPARED}")
    status, said = _run(handoff.path, on_line)
    if status == NO_CANN:
        raise DeviceUnavailable(
            f"atc is not on this machine, so {handoff.name} was not compiled",
            where=str(handoff.path),
            next=f"copy that folder to a Linux machine with CANN and run `bash {BUILD}` in it; copied back with its model.om, "
            "`porting compile PORT --record` records that; or set ASCEND_HOME_PATH, where CANN is here in no usual place",
        )
    if status == WRONG_USE:
        raise UsageError(f"{BUILD} could not run: {said}", where=str(handoff.path), next="mend what is named, and run again")
    if status:
        return Compiled(handoff, False, status, _report(handoff, lang), said or f"{BUILD} ended with {status}")
    try:
        return Compiled(finish_handoff(handoff.path), True, 0, _report(handoff, lang))
    except PortError as error:  # a success that is none: what lies there is no whole model, or not from this run
        return Compiled(handoff, False, 0, _report(handoff, lang), error.what)


def _chosen(port: Path, name: str | None) -> Handoff:
    found = {handoff.name: handoff for handoff in handoffs_of(port)}
    if not found:
        raise PortError(
            "this port has no hand-off",
            where=str(port),
            next="one is written with a port for an Ascend SoC: `porting port SOURCE -o PORT --target Ascend310P3`",
        )
    if name is None:
        if len(found) > 1:
            raise UsageError("this port has several hand-offs", where="--handoff", next=f"name one: {', '.join(found)}")
        return next(iter(found.values()))
    if name not in found:
        raise UsageError(f"this port has no hand-off {name!r}", where="--handoff", next=nearest(name, list(found)))
    return found[name]


def _report(handoff: Handoff, lang: str) -> LogReport | None:
    log = handoff.path / LOG
    return explain_log(log, lang) if log.is_file() and not log.is_symlink() else None


def _run(folder: Path, on_line: Callable[[str], None]) -> tuple[int, str]:
    """Run build.sh to its end; its exit code, and what it said of an error itself. What it started ends with it."""
    try:
        process = subprocess.Popen(
            ["bash", BUILD],
            cwd=folder,
            env=_without_our_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,  # a group of its own, so that all of it can be ended
        )
    except OSError as error:
        raise DeviceUnavailable(
            f"bash cannot be run: {error.strerror or error}",
            where=str(folder),
            next="atc runs on Linux, and build.sh is for bash",
        ) from error
    said = ""
    try:
        assert process.stdout is not None
        with process.stdout as stdout:
            for _, line in numbered_lines(stdout):  # type: ignore[arg-type]  # bytes: nothing else was asked for
                text, _encoding = decoded(line)
                on_line(text)
                said = text.removeprefix(ERROR) if text.startswith(ERROR) else said  # build.sh writes its own last
        return _ended(process.wait(), said)
    except BaseException:  # an interrupt too: a compiler in a session of its own would go on for an hour
        _end(process)
        raise


def _ended(status: int, said: str) -> tuple[int, str]:
    """A script that a signal ended said nothing."""
    if status >= 0:
        return status, said if status else ""
    hint = ": out of memory?" if -status == signal.SIGKILL else ""
    return 128 - status, f"{BUILD} was killed by signal {-status}{hint}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End all of a compilation: asked first, then not."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def _without_our_environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment without the Python that runs us, where that is a virtual one: build.sh leaves only one that was activated."""
    kept = dict(given)
    if sys.prefix != sys.base_prefix and "PATH" in kept:
        ours = {os.path.join(sys.prefix, "bin"), os.path.dirname(sys.executable)}
        kept["PATH"] = os.pathsep.join(part for part in kept["PATH"].split(os.pathsep) if part not in ours)
    return kept
