"""Where a probe compiles and runs its graphs: a child process that holds the device, ended and begun anew when it hangs or dies.

A place of a real NPU compiles with the hand-off's build.sh, which finds CANN as `porting compile` does; the simulated one with its stand-in for atc.
"""

from __future__ import annotations

import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from porting.ascend.atc_command import AtcCommand
from porting.ascend.compiling import NO_CANN
from porting.ascend.explanations import explain_log, looks_like_code
from porting.ascend.handoff import BUILD, LIST, LOG, build_script
from porting.ascend.log_lines import decoded
from porting.ascend.rules import Rule
from porting.ascend.soc import Soc
from porting.devices import Device
from porting.errors import DeviceUnavailable, RuntimeFailed, UsageError
from porting.verdict import printable

# device -> module with `place(device)`, and `answer(name, *arguments)`, which runs in the child
PLACES = {"ascend": "porting.backends.ascend.probing", "ascend-sim": "porting.backends.cann_simulator.probing"}
COMPILE_S, RUN_S, START_S = 600, 60, 120
SAID = 300  # characters of a vendor's text in a result
GRACE_S, POLL_S = 5.0, 0.05


@dataclass(frozen=True)
class Place:
    """
    name:        as results show it, "ascend:0"
    module:      of `answer`
    arguments:   of the child's first call, `describe`
    environment: variables of the child beside ours
    in_child:    whether the child compiles; else build.sh does
    level:       "hardware" or "simulated"
    unmodelled:  why what this place shows of a rule or trap says nothing: "" where it shows something
    ai_cpu:      compiled model -> nodes on the AI CPU; None where nobody says
    """

    name: str
    module: str
    arguments: tuple[Any, ...]
    environment: Mapping[str, str]
    in_child: bool
    level: str
    unmodelled: Callable[[Rule | str, Soc], str]
    ai_cpu: Callable[[Path], frozenset[str] | None]


@dataclass(frozen=True, eq=False)
class Seen:
    """What became of a graph.

    stage:   "refused" (by the compiler), "load", "run", "ran"; "hung", "died" or "lost" where the process or the device did not answer
    code:    E10010, or a return code of AscendCL; "" without one
    misfit:  an input that the compiled model takes in another shape
    outputs: by their order in the model
    ai_cpu:  nodes on the AI CPU; None where nobody says
    codes:   all that the compiler gives, that of `code` first
    """

    stage: str
    code: str = ""
    text: str = ""
    misfit: str = ""
    outputs: tuple[np.ndarray, ...] = ()
    ai_cpu: frozenset[str] | None = None
    codes: tuple[str, ...] = ()

    @property
    def ran(self) -> bool:
        return self.stage == "ran"

    @property
    def answered(self) -> bool:
        """Whether the compiler or the device said anything."""
        return self.stage in ("refused", "load", "run", "ran")

    def sentence(self) -> str:
        said = {
            "refused": "the compiler refuses it",
            "load": "it does not load",
            "run": "it does not run",
            "ran": "it runs",
            "hung": "nothing answered in time",
            "died": "the process ended",
            "lost": "the device was lost",
        }[self.stage]
        return "; ".join(filter(None, (f"{said}{f' ({self.code})' if self.code else ''}", self.misfit, self.text)))


def place_of(device: Device) -> Place:
    """raises: UsageError for a device that is no NPU; what making the simulator ready raises"""
    import importlib

    if device.name not in PLACES:
        raise UsageError(
            f"{device.name} is no Ascend NPU", where="--device", next="--device ascend:0, or ascend-sim to rehearse it"
        )
    return importlib.import_module(PLACES[device.name]).place(device)  # type: ignore[no-any-return]


@dataclass(eq=False)
class Bench:
    """The child of a place.

    losses: how often it hung, died or lost the device
    stopping: set when nothing more is waited for
    """

    place: Place
    losses: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    _child: subprocess.Popen[bytes] | None = None
    _connection: Connection | None = None
    _described: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def describe(self) -> dict[str, Any]:
        """What the device says of itself. raises: DeviceUnavailable"""
        if not self._described:
            self._start()
        return self._described

    def ask(self, seconds: float, name: str, *arguments: Any) -> tuple[str, Any]:
        """("ok", answer), ("failed", (stage, code, text, whether the device is lost)), or ("hung" or "died", text)."""
        if self._child is None:
            self._start()
        assert self._connection is not None
        try:
            self._connection.send((name, *arguments))
            if self._connection.poll(seconds):
                return self._connection.recv()  # type: ignore[no-any-return]
            found = ("hung", f"no answer to {name} in {seconds:g} s")
        except (EOFError, OSError):
            found = ("died", self._ended())
        self.losses += 1
        self.close()
        return found

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        child, self._child, self._connection = self._child, None, None
        if child is not None:
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_S)
            if child.poll() is None:
                child.kill()
                child.wait()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from porting.ascend.probe_place import serve; serve({theirs.fileno()})"
        variables = {**os.environ, **self.place.environment}
        self._child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # what a vendor's library prints is no result
            pass_fds=[theirs.fileno()],
            env=variables,
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        kind, answer = self.ask(START_S, "use", self.place.module, *self.place.arguments)
        if kind != "ok":
            said = answer[2] if kind == "failed" else answer
            self.close()
            raise DeviceUnavailable(
                f"{self.place.name} cannot be probed: {said}", where="probe", next="`porting doctor` says what is missing"
            )
        self._described = answer

    def _ended(self) -> str:
        child = self._child
        if child is None:
            return "the process ended"
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
        code = child.poll()
        if code is not None and code < 0:
            return f"the process was killed by {signal.Signals(-code).name}"
        return f"the process ended with exit code {code}"


def serve(fd: int) -> None:
    """The child's side: answer until the parent closes."""
    import importlib

    connection = Connection(fd)
    module: Any = None
    try:
        while True:
            name, *arguments = connection.recv()
            try:
                if name == "use":
                    module, name, arguments = importlib.import_module(arguments[0]), "describe", arguments[1:]
                connection.send(module.answer(name, *arguments))
            except Exception as error:
                connection.send(("failed", ("run", "", f"{type(error).__name__}: {error}"[:SAID], False)))
    except (EOFError, OSError):
        return


# --- compiling ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compiled:
    """om: None where there is none; refusal: then why"""

    om: Path | None
    refusal: Seen | None


def compile_in(folder: Path, options: tuple[tuple[str, str], ...], bench: Bench) -> Compiled:
    """Compile `folder`/model.onnx. raises: DeviceUnavailable where there is no atc"""
    command = AtcCommand(options)
    if bench.place.in_child:
        kind, answer = bench.ask(COMPILE_S, "compile", str(folder), list(command.arguments))
        if kind != "ok":
            return Compiled(None, _lost(kind, answer))
        status, said = answer
    else:
        status, said = _built(folder, command, bench.stopping)
        if status == NO_CANN:
            raise DeviceUnavailable(
                "atc is not on this machine",
                where="probe",
                next="source CANN's set_env.sh; the ops package of the chip is needed too",
            )
        if status is None:
            return Compiled(None, Seen("hung", text=f"the compiler did not end in {COMPILE_S} s"))
    made = sorted(folder.glob("*.om"))
    if status == 0 and len(made) == 1 and made[0].stat().st_size:
        return Compiled(made[0], None)
    causes = _causes(said)
    code, words = causes[0] if causes else ("", _last_words(said))
    return Compiled(None, Seen("refused", code, printable(words, SAID), codes=tuple(code for code, _ in causes)))


def _built(folder: Path, command: AtcCommand, stopping: threading.Event) -> tuple[int | None, str]:
    """Exit code of build.sh, None where it did not end in time or was not waited for, and its log."""
    listed = [path for path in sorted(folder.iterdir()) if path.is_file()]
    (folder / LIST).write_text("".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in listed))
    (folder / BUILD).write_text(build_script(command), encoding="utf-8")
    process = subprocess.Popen(
        ["bash", BUILD],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + COMPILE_S
    try:
        while process.poll() is None and time.monotonic() < end and not stopping.wait(POLL_S):
            pass
        status = process.poll()
    finally:  # an interrupt too: a compiler in a session of its own would go on
        _end_group(process)
    log = folder / LOG
    return status, decoded(log.read_bytes()[-(1 << 20) :])[0] if log.is_file() else ""


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, how)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)


def _causes(said: str) -> list[tuple[str, str]]:
    """Codes of a log with the line of each, the first cause first; warnings and notes left out."""
    found = explain_log(io.BytesIO(said.encode("utf-8", "replace"))).findings  # type: ignore[arg-type]  # it reads into a buffer
    return [(f.code, f.sample) for f in found if f.role not in ("warning", "note") and looks_like_code(f.code)][:10]


def _last_words(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return printable(" ".join(lines[-2:]), SAID)


def _lost(kind: str, answer: Any) -> Seen:
    if kind != "failed":
        return Seen(kind, text=printable(str(answer), SAID))
    stage, code, text, lost = answer
    return Seen("lost" if lost else stage, str(code), printable(str(text), SAID))


# --- running ------------------------------------------------------------------------------------------------------


def run_in(bench: Bench, om: Path, feeds: Mapping[str, np.ndarray], *, set_gear: bool = True) -> Seen:
    """Load a compiled model, run it once, give all back."""
    kind, answer = bench.ask(RUN_S, "run", str(om), dict(feeds), set_gear)
    if kind != "ok":
        seen = _lost(kind, answer)
        if seen.stage == "lost":
            bench.losses += 1
            bench.close()
        return seen
    misfit, outputs = answer
    return Seen("ran", misfit=misfit, outputs=tuple(outputs), ai_cpu=bench.place.ai_cpu(om))


def require_device(bench: Bench, seen: Seen) -> None:
    """raises: RuntimeFailed where the simplest graph does not run"""
    if not seen.ran:
        raise RuntimeFailed(
            f"the simplest graph does not run on {bench.place.name}: {seen.sentence()}",
            where="probe",
            next="`porting explain CODE` says what a code means",
        )
