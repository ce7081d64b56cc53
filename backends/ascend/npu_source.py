"""The checkpoint that a port was made from, held against what port.json says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from porting.backends.ascend.om_files import port_of
from porting.errors import PortError, UsageError
from porting.port_folder import MANIFEST, read_manifest, sha256_of
from porting.port_sources import names_of
from porting.types import Checkpoint, GraphSource, Program, is_graph

LANGUAGE_MODEL = "causal-lm"
GRAPH = "graph"  # of a torch module


@dataclass(frozen=True)
class PortSource:
    """kind, architecture: of the port; checkpoint: the very files that it was made from"""

    kind: str
    architecture: str
    checkpoint: Checkpoint


def kind_of(program: Program) -> str:
    """What the port of a program is. raises: PortError (no port), UsageError (a kind that is not covered)"""
    port, manifest = _manifest_of(program)
    kind = str(manifest["kind"])
    if kind not in (LANGUAGE_MODEL, "encoder", GRAPH) or (kind == GRAPH and manifest["source"].get("format") != "torch"):
        raise UsageError(
            f"route=npu runs models in torch, and this port was made from {manifest['source'].get('format', 'another format')}",
            where=str(port),
            next="use route=om or route=cann",
        )
    return kind


def _manifest_of(program: Program) -> tuple[Path, dict[str, Any]]:
    port = port_of(program)
    if port is None:
        raise PortError(
            "route=npu runs the model that a port was made from, and this program belongs to no port",
            where="route npu",
            next="run the .onnx with route=om or route=cann",
        )
    return port, read_manifest(port / MANIFEST)


def module_of(program: Program, model: str, weights: str | None) -> GraphSource:
    """The torch module of a port, as its factory makes it; exported once more, to know its inputs and outputs by their names.

    model, weights: the options of these names
    raises:         PortError (no port, other files), and as `open_source`
    """
    from porting.sources import open_source

    port, manifest = _manifest_of(program)
    found = open_source(model=model, weights_file=weights, input_specs=program.inputs)
    assert is_graph(found)
    _require_same_files(manifest["source"], found.files, port)
    return found


def source_of(program: Program, path: str) -> PortSource:
    """
    path:   the option source=
    raises: PortError (no port, another source), InputError, CheckpointError
    """
    from porting.converters.checkpoints.open import open_checkpoint

    port, manifest = _manifest_of(program)
    checkpoint = open_checkpoint(path)
    _require_same_files(manifest["source"], checkpoint.files, port)
    return PortSource(str(manifest["kind"]), str(manifest["architecture"]), checkpoint)


def _require_same_files(recorded: dict[str, Any], files: Sequence[Path], port: Path) -> None:
    """raises: PortError naming the first file that differs"""
    wanted = {str(entry["name"]): str(entry["sha256"]) for entry in recorded.get("files", [])}
    given = {name: file for file, name in names_of(files).items()}
    missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or extra or not wanted:
        parts = [f"{', '.join(missing[:3])} missing"] * bool(missing) + [f"{', '.join(extra[:3])} not of the port"] * bool(
            extra
        )
        raise PortError(
            f"this is not what the port was made from: {'; '.join(parts) or 'the port names no files'}",
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
