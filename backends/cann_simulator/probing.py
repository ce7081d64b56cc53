"""What `porting probe` does on the simulated NPU: as on a real one, with the stand-in for atc; and what of it the simulator models."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from typing import Any

from porting.ascend.probe_place import Place
from porting.ascend.rules import Rule
from porting.ascend.soc import Soc
from porting.backends.cann_simulator.arithmetic import SHOWS
from porting.backends.cann_simulator.machine import Machine
from porting.backends.cann_simulator.misread import MISREAD, OF_GRAPHS
from porting.devices import Device, require_known_options

OPTIONS = ("soc", "cann", "devices", "memory", "seed", "delay_us", "faults", "report", "facts")
NOT_MODELLED = "not modelled by the simulator"
# traps whose answer the simulator does not make up
TRAPS = (
    "overflow-fp16",
    "nan-fp16",
    "hf32-conv",
    "hf32-matmul",
    "weights-not-clipped",
    "cast-to-fp16",
    "default-precision",
    "keep-dtype",
    "customize-dtypes",
    "gear-not-set",
    "om-of-another-soc",
    "om-cut-short",
    "unknown-option",
)


def place(device: Device) -> Place:
    """raises: UsageError; DeviceUnavailable where the simulator cannot be built"""
    from porting.backends.ascend_sim import AscendSimBackend
    from porting.backends.ascend_sim_models import ai_cpu_nodes
    from porting.backends.cann_simulator.environment import simulated_environment

    require_known_options(device.name, device.options, OPTIONS)
    machine = AscendSimBackend().machine_of(device.options)
    return Place(
        f"{device.name}:{device.index}",
        __name__,
        (device.index,),
        simulated_environment(machine),
        in_child=True,
        level="simulated",
        unmodelled=lambda asked, soc: unmodelled(asked, soc, machine),
        ai_cpu=ai_cpu_nodes,
    )


def unmodelled(asked: Rule | str, soc: Soc, machine: Machine) -> str:
    """Why what comes out shows nothing of the simulated chip; "" where the simulator follows a rule, or facts."""
    if isinstance(asked, str):
        return "" if asked in TRAPS else NOT_MODELLED
    if asked.effect in ("refuses", "ai_cpu") or asked.id in SHOWS or machine.follows(asked.id):
        return ""
    return "" if asked.effect == "wrong" and (asked.id in MISREAD or asked.id in OF_GRAPHS) else NOT_MODELLED


# --- in the child -------------------------------------------------------------------------------------------------


def answer(name: str, *arguments: Any) -> tuple[str, Any]:
    from porting.backends.ascend import probing

    return ("ok", compiled(*arguments)) if name == "compile" else probing.answer(name, *arguments)


def compiled(folder: str, arguments: Sequence[str]) -> tuple[int, str]:
    """The stand-in for atc in this process. returns: its exit code, and what it says"""
    from porting.backends.cann_simulator.atc import main

    said, before = io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(said):
            return main(list(arguments)), said.getvalue()
    finally:
        os.chdir(before)
