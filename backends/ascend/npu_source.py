"""The checkpoint that a port was made from, held against what port.json says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from porting.backends.ascend.om_files import port_of
from porting.errors import PortError, UsageError
from porting.port_folder import MANIFEST, read_manifest, sha256_of
from porting.port_sources import names_of
from porting.types import Checkpoint, Program

LANGUAGE_MODEL = "causal-lm"
KINDS = (LANGUAGE_MODEL, "encoder")


@dataclass(frozen=True)
class PortSource:
    """kind, architecture: of the port; checkpoint: the very files that it was made from"""

    kind: str
    architecture: str
    checkpoint: Checkpoint


def source_of(program: Program, path: str) -> PortSource:
    """
    path:   the option source=
    raises: PortError (no port, another source), UsageError (a kind that is not covered), InputError, CheckpointError
    """
    from porting.converters.checkpoints.open import open_checkpoint

    port = port_of(program)
    if port is None:
        raise PortError(
            "route=npu runs the model that a port was made from, and this program belongs to no port",
            where="route npu",
            next="run the .onnx with route=om or route=cann",
        )
    manifest = read_manifest(port / MANIFEST)
    kind = str(manifest["kind"])
    if kind not in KINDS:
        raise UsageError(
            f"route=npu covers ports of kind {' and '.join(KINDS)}, and this one is a {kind}: a port does not hold the code of its module",
            where=str(port),
            next="use route=om or route=cann",
        )
    checkpoint = open_checkpoint(path)
    _require_same_files(manifest["source"], checkpoint, port)
    return PortSource(kind, str(manifest["architecture"]), checkpoint)


def _require_same_files(recorded: dict[str, Any], checkpoint: Checkpoint, port: Path) -> None:
    """raises: PortError naming the first file that differs"""
    wanted = {str(entry["name"]): str(entry["sha256"]) for entry in recorded.get("files", [])}
    given = {name: file for file, name in names_of(checkpoint.files).items()}
    missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or extra or not wanted:
        parts = [f"{', '.join(missing[:3])} missing"] * bool(missing) + [f"{', '.join(extra[:3])} not of the port"] * bool(
            extra
        )
        raise PortError(
            f"source= is not what the port was made from: {'; '.join(parts) or 'the port names no files'}",
            where=str(port / MANIFEST),
            next="name the checkpoint itself; `porting port` again makes a port of another",
        )
    for name, file in given.items():
        if sha256_of(file) != wanted[name]:
            raise PortError(
                f"{name} is not the file that the port was made from: its SHA-256 differs",
                where=str(file),
                next="name the checkpoint itself; `porting port` again makes a port of another",
            )
