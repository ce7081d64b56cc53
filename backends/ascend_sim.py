"""The device `ascend-sim`: the backend `ascend` in a worker process that has a simulated CANN in place of the vendor's.

It rehearses a deployment and shows nothing of the chip: what is modelled stands in backends/cann_simulator. Nothing in this process or its
environment changes. Options after the device's name, beside those of `ascend`:

    soc=NAME              default: that of the port's hand-off, else Ascend910B3
    cann=RELEASE          default: that of the hand-off, else the one whose sources the rules were read from
    devices=N             how many there are; 1
    memory=SIZE           of each, as in 32GiB; default: the smallest board with the SoC
    seed=N, delay_us=N    of the delays of streams; 0, 0: none
    faults=KIND@N+...     what goes wrong: oom, device-lost, timeout, execute-failed, load-failed, device-busy at the N-th
    report=FILE           gets what was not given back
    facts=FILE            what `porting probe` saw: the simulator does as the chip did, soc and cann are those of the file
    precision=P           route om, of an .onnx that has no hand-off: fp32, fp16, bf16, or a value of --precision_mode_v2; no default
    gears=a=1&b=2;a=4&b=2 route om, of an .onnx with free dimensions and no hand-off: their sizes, by name

Route om compiles with a stand-in for `atc`, into the user's cache and never into the port, where a real model belongs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from porting.devices import Device, choice_option, count_option, require_known_options
from porting.errors import PortingError, UsageError
from porting.types import Availability, BackendSession, Program, State, Unsupported
from porting.worker import WorkerSession

if TYPE_CHECKING:
    from porting.ascend.handoff import Handoff
    from porting.backends.cann_simulator.machine import Fault, Machine

MACHINE_OPTIONS = ("soc", "cann", "devices", "memory", "seed", "delay_us", "faults", "report", "facts")
PLAIN_OPTIONS = ("precision", "gears")
UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
REAL = "ascend"
_REAL_DEVICE = re.compile(rf"(?<![\w./-]){REAL}(?=:\d)|(?<=device ){REAL}\b(?!-)|(?<=device '){REAL}\b(?!-)")
SHOWS = "simulated: nothing of the chip"


class AscendSimBackend:
    """An NPU that is simulated on the CPU."""

    name = "ascend-sim"

    def probe(self) -> Availability:
        """Usable on Linux with a C++ compiler and onnxruntime; builds nothing."""
        from porting.backends.cann_simulator.build import compiler

        if sys.platform != "linux":
            return Availability(False, "the simulated CANN runs on Linux", "use a Linux machine or container")
        if find_spec("onnxruntime") is None:
            return Availability(
                False, "the simulated CANN computes with onnxruntime, which is not installed", 'pip install "porting[cpu]"'
            )
        try:
            found = compiler()
        except PortingError as error:
            return Availability(False, error.what, error.next)
        return Availability(True, detail={"compiler": str(found), "evidence": SHOWS})

    def unsupported(self, program: Program) -> list[Unsupported]:
        return []  # the stand-in for atc refuses by name

    def prepare(self, program: Program, options: Mapping[str, str]) -> BackendSession:
        """raises: UsageError, DeviceUnavailable, PortError, InputError, OutOfResources, RuntimeFailed"""
        from porting.backends.ascend.backend import ROUTES, options_of
        from porting.backends.ascend_sim_models import ai_cpu_nodes, chosen_handoff, compiled
        from porting.backends.cann_simulator.environment import simulated_environment

        route = choice_option(self.name, options, "route", ROUTES)
        simulated = (*MACHINE_OPTIONS, "handoff", *(PLAIN_OPTIONS if route == "om" else ()))
        require_known_options(self.name, options, tuple(dict.fromkeys((*options_of(route), *simulated))))
        handoff = chosen_handoff(program, options.get("soc"), options.get("handoff"))
        machine = self.machine_of(options, handoff)
        environment = simulated_environment(machine)
        passed = {name: value for name, value in options.items() if name not in (*simulated, "index")}
        on_ai_cpu: frozenset[str] = frozenset()
        if route == "om":
            if "om" not in passed:
                model = compiled(program, handoff, machine, environment, options.get("precision"), options.get("gears"))
                passed["om"] = str(model)
            on_ai_cpu = ai_cpu_nodes(Path(passed["om"]))
        index = int(options.get("index", "0"))
        with renamed():
            worker = WorkerSession(Device(REAL, index, passed), program, environment)
        return AscendSimSession(worker, f"{self.name}:{index}", on_ai_cpu)

    def machine_of(self, options: Mapping[str, str], handoff: Handoff | None = None) -> Machine:
        """The machine that is meant. raises: UsageError; InputError for facts that are none"""
        from porting.ascend.facts_reading import read_facts
        from porting.backends.ascend.om_files import release_of
        from porting.backends.cann_simulator.machine import Machine

        chosen: dict[str, str] = {}
        if handoff is not None:
            chosen = {"soc": str(handoff.manifest["soc"]), "cann": release_of(handoff)}
        if "facts" in options:
            found = read_facts(options["facts"])
            chosen = {**{"soc": found.soc, "cann": found.cann}, **chosen, "facts": str(Path(options["facts"]).absolute())}
        if "report" in options and not Path(options["report"]).absolute().parent.is_dir():
            raise UsageError(
                f"report={options['report']} has no folder to be written in",
                where="device ascend-sim",
                next="make the folder first, or name another",
            )
        for name in ("soc", "cann", "report"):
            if name in options:
                chosen[name] = options[name]
        return Machine(
            **chosen,
            devices=count_option(self.name, options, "devices", 1),
            memory_bytes=_bytes(options.get("memory", "0")),
            seed=_whole(options, "seed"),
            delay_us=_whole(options, "delay_us"),
            faults=_faults(options.get("faults", "")),
        )


class AscendSimSession:
    """The worker's session, under this device's name.

    placement: node -> ascend-sim:N, or "ascend-sim:N AI CPU" for a node that runs on the AI CPU, by what the documents say
    """

    def __init__(self, worker: WorkerSession, device: str, on_ai_cpu: frozenset[str]) -> None:
        self._worker = worker
        real = f"{REAL}:{device.rpartition(':')[2]}"
        self.placement: Mapping[str, str] = {
            node: f"{device} AI CPU" if node in on_ai_cpu else where.replace(real, device, 1)
            for node, where in worker.placement.items()
        }

    def new_state(self, capacity: int, batch: int = 1, grown_from: State | None = None) -> State:
        with renamed():
            return self._worker.new_state(capacity, batch, grown_from)

    def read_state(self, state: State) -> dict[str, np.ndarray]:
        with renamed():
            return self._worker.read_state(state)

    def run(self, feeds: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        with renamed():
            return self._worker.run(feeds, state)

    def close(self) -> None:
        self._worker.close()


@contextmanager
def renamed() -> Iterator[None]:
    """Errors name the device that was asked for: nobody may take a simulated refusal for that of an NPU."""
    try:
        yield
    except PortingError as error:
        parts = (_REAL_DEVICE.sub(AscendSimBackend.name, text) for text in (error.what, error.where, error.next))
        what, where, next_step = parts
        raise type(error)(what, where=where, next=next_step) from error


# --- options ------------------------------------------------------------------------------------------------------


def _bytes(text: str) -> int:
    """raises: UsageError"""
    match = re.fullmatch(r"(\d{1,15})([a-zA-Z]*)", text)
    if not match or match[2].lower() not in UNITS:
        raise UsageError(
            f"memory={text} is no size", where="device ascend-sim", next="write memory=32GiB, or a number of bytes"
        )
    return int(match[1]) * UNITS[match[2].lower()]


def _whole(options: Mapping[str, str], name: str) -> int:
    """raises: UsageError"""
    text = options.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(
            f"{name}={text} is no whole number from 0 to 999999999", where="device ascend-sim", next=f"write {name}=3, say"
        )
    return int(text)


def _faults(text: str) -> tuple[Fault, ...]:
    """oom@3+timeout@1. raises: UsageError"""
    from porting.backends.cann_simulator.machine import Fault

    found = []
    for part in filter(None, text.split("+")):
        kind, _, at = part.partition("@")
        if not (at.isascii() and at.isdigit() and len(at) < 10):
            raise UsageError(f"faults={part} does not say when", where="device ascend-sim", next="write faults=oom@3")
        found.append(Fault(kind, int(at)))
    return tuple(found)
