"""What a vendor's compiler may cost the outputs of a port, where it computes in a narrower format than the graph says.

A port for Ascend that is compiled in fp16 or bf16 was looked at when it was made: a forecast on the CPU says of each output how far the format's
significand alone moves it (porting/ascend/overflow.py). A device that runs the compiled model is held to that, and any other to the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from porting.devices import parse_device
from porting.errors import InputError, PortError
from porting.port_folder import EVIDENCE, Port
from porting.verdict import MAX_JSON_BYTES, Verdict

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
    path = port.path / EVIDENCE / "verdict.json"
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise PortError("the evidence is far too large", where=str(path))
        forecast = Verdict.from_json(path.read_bytes()).details.get("forecast")
    except FileNotFoundError:
        return {}
    except InputError as error:
        raise PortError(f"the port's evidence is malformed: {error.what}", where=str(path)) from error
    return _bounds(forecast) if isinstance(forecast, Mapping) else {}


def _bounds(forecast: Mapping[str, Any]) -> dict[str, float]:
    """Of the forecast with what is kept in fp32, where there was a second. Only outputs that held in it are allowed anything."""
    last = forecast.get("with_exceptions") or forecast.get("first")
    outputs = last.get("outputs") if isinstance(last, Mapping) else None
    found = {}
    for output in outputs if isinstance(outputs, list) else []:
        bound = output.get("bound") if isinstance(output, Mapping) else None
        if isinstance(bound, float) and math.isfinite(bound) and output.get("holds") is True:
            found[str(output.get("name"))] = bound
    return found
