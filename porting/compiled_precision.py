"""What a vendor's compiler may cost the outputs of a port, where it computes in a narrower format than the graph says.

A port for Ascend that is compiled in fp16 or bf16 was looked at when it was made: a forecast on the CPU says of each output how far the format's
significand alone moves it (porting/ascend/overflow.py). A device that runs the compiled model is held to that, and any other to the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from porting.devices import parse_device
from porting.errors import InputError, PortError, PortingError
from porting.port_folder import EVIDENCE, Port
from porting.verdict import MAX_JSON_BYTES, Check, Verdict, printable

NAMED = 5  # nodes that a check names
NARROW = ("fp16", "bf16")
COMPILED = "; and of a model compiled in {}, what the forecast of its own port allows: twice what the significand costs"


def compiled_in(port: Port, device: str) -> str:
    """The narrower format that a port is compiled in for this device, "" where it computes what the graph says."""
    if not parse_device(device).name.startswith("ascend"):
        return ""
    said = port.manifest.get("ascend") or {}
    return said["precision"] if said.get("precision") in NARROW else ""


def compiled_bounds(port: Port, device: str) -> dict[str, float]:
    """Output -> relative L2 error that the format may cost; {} where the device computes what the graph says, or nothing was forecast.

    raises: PortError for evidence that cannot be read
    """
    if not compiled_in(port, device):
        return {}
    return _bounds(_last_forecast(port))


def _last_forecast(port: Port) -> Mapping[str, Any]:
    """Of the evidence: the forecast with what is kept in fp32, where there was a second. Empty where there was none. raises: PortError"""
    path = port.path / EVIDENCE / "verdict.json"
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise PortError("the evidence is far too large", where=str(path))
        found = Verdict.from_json(path.read_bytes()).details.get("forecast")
    except FileNotFoundError:
        return {}
    except InputError as error:
        raise PortError(f"the port's evidence is malformed: {error.what}", where=str(path)) from error
    last = (found.get("with_exceptions") or found.get("first")) if isinstance(found, Mapping) else None
    return last if isinstance(last, Mapping) else {}


def layers_beyond(port: Port, device: str, checks: Sequence[Check], cases: Sequence[Mapping[str, np.ndarray]]) -> list[Check]:
    """Why a compiled model fails: its nodes whose numbers the format cannot hold, as a forecast on the CPU says of the same inputs.

    checks: of the verdict; nothing is looked at where none failed
    cases:  an array for every input each; of a language model its token ids
    """
    narrow = compiled_in(port, device)
    if not narrow or not any(check.verdict == "fail" for check in checks):
        return []
    from porting.ascend.exceptions import token_feeds
    from porting.ascend.overflow import forecast
    from porting.ascend.soc import find_soc

    program, kept = port.program(), _last_forecast(port).get("kept", [])
    feeds = [token_feeds(program, case["input_ids"]) if program.state.length else case for case in cases]
    try:
        found = forecast(program, feeds, kept, soc=find_soc(str(port.manifest["ascend"]["soc"])), precision=narrow)
    except PortingError as error:
        return [Check(f"nodes that {narrow} does not hold", "error", None, 0, "", f"not known: {printable(error.what)}")]
    beyond = [f"{printable(node.name, 80)} ({node.op}, up to {node.found.largest:.3g})" for node in found.overflows]
    if not beyond:
        return []
    more = f" and {len(beyond) - NAMED} more" if len(beyond) > NAMED else ""
    why = "a forecast on the CPU, on the same inputs; `porting port --inputs` makes the files that keep them in fp32, where the SoC can"
    return [Check(f"nodes that {narrow} does not hold", "fail", len(beyond), 0, ", ".join(beyond[:NAMED]) + more, why)]


def _bounds(forecast: Mapping[str, Any]) -> dict[str, float]:
    """Only outputs that held in it are allowed anything."""
    outputs = forecast.get("outputs")
    found = {}
    for output in outputs if isinstance(outputs, list) else []:
        bound = output.get("bound") if isinstance(output, Mapping) else None
        if isinstance(bound, float) and math.isfinite(bound) and output.get("holds") is True:
            found[str(output.get("name"))] = bound
    return found
