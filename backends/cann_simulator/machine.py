"""The machine that is simulated, what goes wrong on it, and the words in which the C++ shim and the logic speak to each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from porting.ascend.facts_file import CONFIRMED, REFUTED, Facts
from porting.ascend.facts_reading import read_facts
from porting.ascend.probe_facts import require_fitting, soc_with
from porting.ascend.soc import Soc, find_cann, find_soc, judged_cann, soc_in
from porting.checked_json import integer, object_with, text
from porting.errors import InputError, UsageError, nearest

GIB = 2**30
UNKNOWN_BOARD = 16 * GIB  # bytes assumed where no document says what boards with the SoC carry
MOST_DEVICES = 64
MOST_BYTES = 2**40
WHERE = "the simulated machine"

# kind of a fault -> (what it counts, code the vendor's documents give for it)
FAULTS: Mapping[str, tuple[str, int]] = {
    "oom": ("device allocation", 207001),
    "device-lost": ("execution", 507010),  # heartbeat lost; every later call on that device answers the same
    "timeout": ("execution", 507012),
    "execute-failed": ("execution", 507011),
    "load-failed": ("load", 545001),
    "device-busy": ("choice of a device", 507899),  # guessed: documents say EL0005, and no code of AscendCL for it
}


class Refused(Exception):
    """What CANN would refuse, as the code that its C API answers.

    code:       an aclError, or a code of the same list that the graph engine gives
    text:       what aclGetRecentErrMsg says: "E10010: ..."
    documented: False where no document gives the code for this case, and it is a guess
    """

    def __init__(self, code: int, text: str, documented: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.documented = documented


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong once. kind: one of FAULTS; at: at which of what it counts, from 1"""

    kind: str
    at: int = 1

    def __post_init__(self) -> None:
        if self.kind not in FAULTS:
            raise UsageError(f"unknown fault {self.kind!r}", where=WHERE, next=nearest(self.kind, tuple(FAULTS)))
        if self.at < 1:
            raise UsageError(f"fault {self.kind} at {self.at}: they are counted from 1", where=WHERE)


@dataclass(frozen=True)
class Machine:
    """A machine with simulated NPUs.

    soc:          as `atc --soc_version` spells it
    cann:         release of CANN; "" for that whose sources the rules were read from
    devices:      how many
    memory_bytes: of each device; 0 for the smallest board with the SoC
    seed:         of the delays of streams
    delay_us:     mean delay before each task of a stream, so that a missing synchronisation shows; 0 for none
    faults:       what goes wrong
    report:       file for the report of what leaked, written at aclFinalize and when the process ends; "" for none
    trace:        file that gets a line per call of the C API, "-" for stderr; "" for none
    facts:        file of what a probe saw, which this machine follows; "" for none
    raises:       UsageError for a SoC, release or number that cannot be meant, or facts of another SoC or release; InputError for what are no facts
    """

    soc: str = "Ascend910B3"
    cann: str = ""
    devices: int = 1
    memory_bytes: int = 0
    seed: int = 0
    delay_us: int = 0
    faults: tuple[Fault, ...] = field(default=())
    report: str = ""
    trace: str = ""
    facts: str = ""

    def __post_init__(self) -> None:
        soc = find_soc(self.soc)
        cann = find_cann(self.cann or None) or judged_cann()
        soc_in(soc, cann)
        for name, low, high in (("devices", 1, MOST_DEVICES), ("memory_bytes", 0, MOST_BYTES), ("delay_us", 0, 10**7)):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} must be in [{low}, {high}], got {getattr(self, name)}", where=WHERE)
        object.__setattr__(self, "soc", soc.name)
        object.__setattr__(self, "cann", cann)
        object.__setattr__(self, "memory_bytes", self.memory_bytes or min(soc.boards, default=UNKNOWN_BOARD))
        object.__setattr__(self, "faults", tuple(self.faults))
        found = self.probed()
        if found is not None:
            require_fitting(found, soc, cann if found.cann else None)

    def probed(self) -> Facts | None:
        """What a probe saw, where this machine follows that. raises: InputError"""
        if not self.facts:
            return None
        path = Path(self.facts)
        return _facts_of(path, path.stat().st_mtime_ns) if path.is_file() else read_facts(path)

    def chip(self) -> Soc:
        """The SoC, with the overflow that was seen."""
        return soc_with(find_soc(self.soc), self.probed(), simulated=True)

    def follows(self, rule: str) -> bool:
        """Whether facts decide a rule here."""
        found = self.probed()
        fact = None if found is None else found.by_rule.get(rule)
        return fact is not None and fact.verdict in (CONFIRMED, REFUTED)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Machine:
        """raises: InputError for what is no machine, UsageError for a machine that cannot be meant"""
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InputError(f"not JSON: {error}", where=WHERE) from error
        value = object_with(value, tuple(f.name for f in fields(cls)), WHERE)
        read: dict[str, Any] = {"faults": _faults(value["faults"])}
        for name in ("devices", "memory_bytes", "seed", "delay_us"):
            read[name] = integer(value[name], 0, 2**63 - 1, WHERE)
        for name in ("soc", "cann", "report", "trace", "facts"):
            read[name] = text(value[name], WHERE)
        return cls(**read)


@lru_cache(maxsize=4)
def _facts_of(path: Path, changed: int) -> Facts:
    return read_facts(path)


def _faults(value: Any) -> tuple[Fault, ...]:
    if not isinstance(value, list):
        raise InputError("expected a list of faults", where=WHERE)
    read = [object_with(fault, ("kind", "at"), WHERE) for fault in value]
    return tuple(Fault(text(fault["kind"], WHERE), integer(fault["at"], 1, 2**31 - 1, WHERE)) for fault in read)


@dataclass(frozen=True)
class IoSpec:
    """An input or output of a compiled model.

    acl_dtype: aclDataType
    dims:      -1 where it differs from gear to gear or is not known before the run
    nbytes:    of the largest gear; 0 where it is not known before the run
    """

    name: str
    acl_dtype: int
    dims: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Gear:
    """One of the shapes that a model was compiled for.

    values: as a client sets it: (batch,), (height, width), or the dims of all inputs one after the other
    inputs: dims of each input, the gear input left out
    outputs: dims of each output
    """

    values: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...] = ()


# what a model compiled with gears is told before a run -> the C function that tells it
GEAR_KINDS: Mapping[str, str] = {
    "batch": "aclmdlSetDynamicBatchSize",
    "image": "aclmdlSetDynamicHWSize",
    "dims": "aclmdlSetInputDynamicDims",
}
