"""What a narrower format than the graph says may cost the outputs of a port, on a device of Ascend.

A hand-off that is compiled in fp16 or bf16 was looked at when it was made: a forecast on the CPU says of each output how far the format's
significand alone moves it (porting/ascend/overflow.py). Routes `cann` and `npu` are told a format with each run, and the forecast is made then, on
the inputs of that run. A device that computes in the format is held to that, and any other to the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from porting.devices import parse_device
from porting.errors import InputError, PortError, PortingError
from porting.port_folder import EVIDENCE, Port
from porting.verdict import MAX_JSON_BYTES, Check, Verdict, printable

if TYPE_CHECKING:
    from porting.ascend.overflow import Forecast

NAMED = 5  # nodes that a check names
NARROW = ("fp16", "bf16")
# precision= of a device, by the routes' own words
TOLD = {"fp16": "fp16", "mixed_fp16": "fp16", "mixed_float16": "fp16", "bf16": "bf16", "mixed_bfloat16": "bf16"}
COMPILED = "; and where it is computed in {}, what a forecast of the port's own graph allows: twice what the significand costs"


def compiled_in(port: Port, device: str) -> str:
    """The narrower format that a device computes this port in, "" where it computes what the graph says."""
    asked = parse_device(device)
    if not asked.name.startswith("ascend") or port.precision != "fp32":
        return ""
    if "precision" in asked.options:
        return TOLD.get(asked.options["precision"], "")
    said = port.manifest.get("ascend") or {}
    return said["precision"] if said.get("precision") in NARROW else ""


def compiled_bounds(port: Port, device: str, cases: Sequence[Mapping[str, np.ndarray]] = ()) -> dict[str, float]:
    """Output -> relative L2 error that the format may cost; {} where the device computes what the graph says, or nothing can be forecast.

    cases:  as of `layers_beyond`; without any nothing is forecast now
    raises: PortError for evidence that cannot be read
    """
    if not compiled_in(port, device):
        return {}
    if "precision" not in parse_device(device).options:
        return _bounds(_last_forecast(port))
    try:
        return _bounds(_forecast(port, device, cases).content()) if cases else {}
    except PortingError:
        return {}  # the strictest


def _forecast(port: Port, device: str, cases: Sequence[Mapping[str, np.ndarray]]) -> Forecast:
    """Of these inputs, in the format that the device computes in. raises: PortingError"""
    from porting.ascend.exceptions import token_feeds
    from porting.ascend.overflow import forecast
    from porting.ascend.soc import find_soc

    program, options = port.program(), parse_device(device).options
    told = "precision" in options
    kept = () if told else _last_forecast(port).get("kept", [])  # a hand-off's own files say what is kept
    soc = options.get("soc") or (port.manifest.get("ascend") or {}).get("soc")
    feeds = [token_feeds(program, case["input_ids"]) if program.state.length else case for case in cases]
    return forecast(program, feeds, kept, soc=find_soc(str(soc)) if soc else None, precision=compiled_in(port, device))


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
    try:
        found = _forecast(port, device, cases)
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
