"""The machine that is simulated: what can be said of it, and that nothing else is taken."""

from __future__ import annotations

import json

import pytest

from porting.backends.cann_simulator.machine import FAULTS, GIB, Fault, Machine
from porting.errors import InputError, UsageError


def test_a_machine_reads_back_what_it_wrote():
    machine = Machine("ascend310p3", devices=2, seed=7, delay_us=3, faults=(Fault("oom", 4), Fault("timeout")), report="r")
    assert Machine.from_json(machine.to_json()) == machine


def test_names_are_spelled_as_the_vendor_does_and_what_is_not_said_is_filled_in():
    machine = Machine("ascend310p3", cann="8.5")
    assert (machine.soc, machine.cann, machine.memory_bytes) == ("Ascend310P3", "8.5.0", 21 * GIB)
    assert Machine().memory_bytes == 64 * GIB


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"soc": "Ascend999"}, "unknown target"),
        ({"soc": "cpu"}, "no Ascend SoC"),
        ({"cann": "1.2.3"}, "unknown CANN release"),
        ({"soc": "Ascend950PR_9599", "cann": "8.5.0"}, "older than"),
        ({"devices": 0}, "devices must be in"),
        ({"memory_bytes": -1}, "memory_bytes must be in"),
        ({"delay_us": -1}, "delay_us must be in"),
    ],
)
def test_a_machine_that_cannot_be_meant_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        Machine(**options)


@pytest.mark.parametrize("arguments", [("ooom", 1), ("oom", 0)])
def test_a_fault_that_cannot_be_meant_is_refused(arguments):
    with pytest.raises(UsageError):
        Fault(*arguments)


def _changed(**changes):
    return json.dumps({**json.loads(Machine().to_json()), **changes})


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "{}",
        _changed(colour="red"),
        _changed(devices=True),
        _changed(devices="1"),
        _changed(seed=-1),
        _changed(soc=5),
        _changed(faults={}),
        _changed(faults=[{"kind": "oom"}]),
        _changed(faults=[{"kind": "oom", "at": 1, "why": ""}]),
        _changed(faults=[{"kind": "fire", "at": 1}]),
    ],
)
def test_a_line_that_is_no_machine_is_refused(line):
    with pytest.raises((InputError, UsageError)):
        Machine.from_json(line)


def test_the_shim_counts_faults_in_the_order_of_the_table():
    assert tuple(FAULTS) == (
        "oom",
        "device-lost",
        "timeout",
        "execute-failed",
        "load-failed",
        "device-busy",
    )  # enum FaultKind of simulator.h
