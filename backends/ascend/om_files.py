"""Which compiled model belongs to a program: the .om of a hand-off of its port, or one that is named.

A program belongs to a port where it is PORT/model.onnx. The hand-off is that for the SoC that is there; its .om is the one that handoff.json records.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from porting.ascend.atc_command import ANY_HOST
from porting.ascend.handoff import ANY_CANN, Handoff, handoffs_of
from porting.errors import PortError, UsageError, nearest
from porting.port_folder import MANIFEST, MODEL, sha256_of
from porting.types import Program

HOSTS = {"arm64": "aarch64", "AMD64": "x86_64"}  # other spellings of platform.machine()


@dataclass(frozen=True)
class OmFile:
    """handoff: that it was compiled from; None where it was named alone"""

    path: Path
    handoff: Handoff | None


def port_of(program: Program) -> Path | None:
    """The port that a program is of; None for any other .onnx."""
    model = program.model
    if isinstance(model, bytes) or model.name != MODEL or not (model.parent / MANIFEST).is_file():
        return None
    return model.parent


def om_for(program: Program, soc: str, options: Mapping[str, str]) -> OmFile:
    """The .om to load.

    soc:     of the device, as CANN calls it
    options: om= names a file, handoff= a hand-off
    raises:  PortError (no hand-off, not compiled, damaged, for another SoC), UsageError (which one?)
    """
    port = port_of(program)
    handoffs = handoffs_of(port) if port else []
    if "om" in options:
        path = Path(options["om"])
        if not path.is_file():
            raise PortError(f"no such file: {path}", where="om=", next="name a file that atc made")
        chosen = fitting(handoffs, soc, options["handoff"]) if "handoff" in options else None
        return OmFile(path, chosen)
    if port is None:
        raise PortError(
            "an .onnx runs on Ascend only when it is compiled, and this program belongs to no port",
            where="route om",
            next="`porting port MODEL.onnx --target SOC -o PORT`, then `porting compile PORT`; or name a compiled model: om=PATH",
        )
    chosen = fitting(handoffs, soc, options.get("handoff"), str(port))
    return OmFile(_compiled(chosen), chosen)


def fitting(handoffs: Sequence[Handoff], soc: str, name: str | None, where: str = "handoff=") -> Handoff:
    """The hand-off for a SoC, or the one that is named. raises: PortError, UsageError"""
    known = {handoff.name: handoff for handoff in handoffs}
    if name is not None:
        if name not in known:
            raise UsageError(f"this port has no hand-off {name!r}", where="handoff=", next=nearest(name, list(known)))
        if known[name].manifest["soc"] != soc:
            raise PortError(f"hand-off {name} is for {known[name].manifest['soc']}, and the device is an {soc}", where=where)
        return known[name]
    machine = HOSTS.get(platform.machine(), platform.machine())
    fit = [h for h in handoffs if h.manifest["soc"] == soc and h.manifest["host_cpu"] in (ANY_HOST, machine)]
    if not fit:
        others = f", and its hand-offs are {', '.join(known)}" if known else ""
        raise PortError(
            f"this port has no hand-off for {soc} with a host of {machine}{others}",
            where=where,
            next=f"`porting port SOURCE --target {soc} -o PORT` makes one",
        )
    fit = [h for h in fit if h.build is not None] or fit
    if len(fit) > 1:
        listed = ", ".join(handoff.name for handoff in fit)
        raise UsageError(f"several hand-offs of this port fit {soc}", where="handoff=", next=f"name one: {listed}")
    return fit[0]


def _compiled(handoff: Handoff) -> Path:
    """The recorded .om, with its bytes as recorded. raises: PortError"""
    build = handoff.build
    if build is None:
        raise PortError(
            f"hand-off {handoff.name} is not compiled",
            where=str(handoff.path),
            next="`porting compile PORT` where CANN's atc is; then `porting compile PORT --record` if that was elsewhere",
        )
    for entry in build["files"]:
        path = handoff.path / entry["path"]
        if path.is_symlink() or not path.is_file() or sha256_of(path) != entry["sha256"]:
            raise PortError(
                f"{entry['path']} is not the file that was recorded when it was compiled",
                where=str(handoff.path),
                next="`porting compile PORT` again",
            )
    return handoff.path / str(build["om"])


def release_of(handoff: Handoff) -> str:
    """The release of CANN that a hand-off is for, "" for any."""
    release = str(handoff.manifest["cann"])
    return "" if release == ANY_CANN else release
