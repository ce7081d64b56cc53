"""A real Ascend NPU for the suite of backends: what it is to run is compiled first, with the build.sh of a hand-off. NEVER RUN on hardware."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from porting.ascend.handoff_graph import place_graph
from porting.ascend.probe_place import Bench, compile_in, place_of
from porting.backends.ascend.backend import AscendBackend
from porting.backends.ascend_sim_models import command_for
from porting.devices import parse_device
from porting.errors import DeviceUnavailable, RuntimeFailed
from porting.pipeline import require_usable
from porting.session import Session, open_session
from porting.types import Program
from tests.backends import contract, suite

DEVICE = "ascend:0"


def compile_what_it_runs(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have the suite compile each program for DEVICE. Skips where there is none, with the reason."""
    try:
        require_usable(DEVICE)
    except DeviceUnavailable as error:
        pytest.skip(error.what)
    soc = AscendBackend().probe().detail["soc"]

    def opened(program: Program, device: str, **options: Any) -> Session:
        parsed = parse_device(device)
        asked = dict(parsed.options)
        precision, gears = asked.pop("precision", None), asked.pop("gears", None)
        om = compiled(program, soc, precision, gears, folder)
        return open_session(
            program,
            "".join((f"{parsed.name}:{parsed.index}", *(f",{k}={v}" for k, v in asked.items()), f",om={om}")),
            **options,
        )

    for module in (suite, contract):
        monkeypatch.setattr(module, "open_session", opened)


def compiled(program: Program, soc: str, precision: str | None, gears: str | None, folder: Path) -> Path:
    """raises: RuntimeFailed saying what the compiler says"""
    place = Path(tempfile.mkdtemp(dir=folder))
    if isinstance(program.model, bytes):
        (place / "model.onnx").write_bytes(program.model)
    else:
        place_graph(program.model, place)
    command = command_for(program, soc, precision, gears)
    made = compile_in(place, command.options, Bench(place_of(parse_device(DEVICE))))
    if made.om is None:
        assert made.refusal is not None
        raise RuntimeFailed(made.refusal.sentence(), where="compiling the suite")
    return made.om
