"""A port on disk, read: port.json, the target graph, weights, tokenizer files and evidence.

    NAME/  port.json  model.onnx  weights/  tokenizer.json ...  evidence/

Nothing in a port may leave its folder. Loading compares sizes and times and hashes a file whose time differs; `verify` hashes all.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from porting.errors import PortError
from porting.types import Program, StatePair, StateSpec, TensorSpec

SCHEMA = "porting.port/1"
MANIFEST = "port.json"
MODEL = "model.onnx"
WEIGHTS = "weights"
EVIDENCE = "evidence"
MAX_MANIFEST_BYTES = 256 << 20  # a tensor table of a million names fits; a bomb does not
HASH_CHUNK = 4 << 20

_REQUIRED = {
    "schema": str,
    "kind": str,
    "architecture": str,
    "config": dict,
    "target": str,
    "precision": str,
    "source": dict,
    "tensors": dict,
    "passes": list,
    "inputs": list,
    "outputs": list,
    "state": dict,
    "defaults": dict,
    "min_runtime": dict,
    "files": list,
    "tools": dict,
}


class Port:
    """A port whose manifest was read and whose files are there.

    path:     the folder
    manifest: port.json
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def precision(self) -> str:
        return str(self.manifest["precision"])

    def program(self) -> Program:
        """What a backend prepares."""
        m = self.manifest
        try:
            state = StateSpec(
                tuple(StatePair(p["input"], p["output"], p["axis"]) for p in m["state"].get("pairs", ())),
                m["state"].get("length"),
                tuple(m["state"]["advance"]) if m["state"].get("advance") else None,  # type: ignore[arg-type]
            )
            return Program(
                self.path / MODEL,
                tuple(_spec(i) for i in m["inputs"]),
                tuple(_spec(o) for o in m["outputs"]),
                state,
                dict(m["defaults"]),
                dict(m["min_runtime"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PortError(
                f"port.json is malformed: {type(error).__name__}: {error}", where=str(self.path / MANIFEST)
            ) from error

    def side_file(self, name: str) -> bytes | None:
        """A file carried over from the source, such as tokenizer.json; None when the port has none."""
        listed = {f["path"] for f in self.manifest["files"]}
        return (self.path / name).read_bytes() if name in listed else None

    def verify(self) -> None:
        """Hash every file. raises: PortError naming the first that differs"""
        for entry in self.manifest["files"]:
            _require_hash(self.path, entry)

    def identity(self) -> str:
        """sha256 of port.json, which holds the hashes of all else: what evidence refers to."""
        return sha256_of(self.path / MANIFEST)


def open_port(path: str | Path) -> Port:
    """Read a port and check that every file it lists is there, unchanged and inside the folder.

    raises: PortError
    """
    folder = Path(path)
    manifest_path = folder / MANIFEST
    if not folder.exists():
        raise PortError(f"no such port: {folder}", next="`porting convert` makes one")
    if not folder.is_dir():
        raise PortError(f"a port is a folder, and this is a file: {folder}")
    if not manifest_path.is_file():
        raise PortError(
            f"not a port: {folder} has no {MANIFEST}",
            next="a conversion that was cut short leaves none; `porting convert ... --resume` goes on",
        )
    manifest = read_manifest(manifest_path)
    for entry in manifest["files"]:
        _require_file(folder, entry)
    return Port(folder, manifest)


def read_manifest(path: Path) -> dict[str, Any]:
    """port.json, its schema and the types of its fields checked. raises: PortError"""
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise PortError(f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes", where=str(path))
        manifest = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise PortError(f"{MANIFEST} cannot be read: {error}", where=str(path)) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        got = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise PortError(
            f"expected schema {SCHEMA!r}, got {got!r}", where=str(path), next="use the version of porting that wrote it"
        )
    wrong = [k for k, t in _REQUIRED.items() if not isinstance(manifest.get(k), t)]
    if wrong:
        raise PortError(f"{MANIFEST} is malformed: {', '.join(wrong)}", where=str(path))
    for entry in manifest["files"]:
        fits = isinstance(entry, dict) and isinstance(entry.get("path"), str) and isinstance(entry.get("size"), int)
        if not (fits and isinstance(entry.get("mtime_ns"), int) and re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256")))):
            raise PortError(f"{MANIFEST} has a malformed file entry: {str(entry)[:200]}", where=str(path))
        require_inside(entry["path"], str(path))
    if MODEL not in {e["path"] for e in manifest["files"]}:
        raise PortError(f"{MANIFEST} does not list {MODEL}", where=str(path))
    return manifest


def require_inside(relative: str, where: str) -> None:
    """Refuse a path that is absolute, climbs up, or could be read differently elsewhere. raises: PortError"""
    pure = PurePosixPath(relative)
    if not relative or pure.is_absolute() or ".." in pure.parts or "\\" in relative or "\0" in relative or ":" in pure.parts[0]:
        raise PortError(f"a port may not point outside its folder: {relative!r}", where=where)


def sha256_of(path: Path) -> str:
    """sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    buffer = bytearray(HASH_CHUNK)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(memoryview(buffer)[:size])
    return digest.hexdigest()


def _require_file(folder: Path, entry: Mapping[str, Any]) -> None:
    path = folder / entry["path"]
    for part in [path, *path.parents]:
        if part == folder:
            break
        if part.is_symlink():
            raise PortError(f"a port may not hold symbolic links: {entry['path']}", where=str(folder))
    try:
        found = path.stat()
    except OSError as error:
        raise PortError(f"file of the port is missing: {entry['path']} ({error.strerror})", where=str(folder)) from error
    if found.st_size != entry["size"]:
        raise PortError(
            f"file of the port has changed: {entry['path']} should be {entry['size']} bytes, is {found.st_size}",
            where=str(folder),
            next="convert again; with --weights link a change to the source changes the port, --weights copy protects it",
        )
    if found.st_mtime_ns != entry["mtime_ns"]:  # copied or touched: the bytes decide
        _require_hash(folder, entry)


def _require_hash(folder: Path, entry: Mapping[str, Any]) -> None:
    got = sha256_of(folder / entry["path"])
    if got != entry["sha256"]:
        raise PortError(
            f"file of the port has changed: {entry['path']} should have sha256 {entry['sha256'][:16]}..., has {got[:16]}...",
            where=str(folder),
            next="convert again; with --weights link a change to the source changes the port, --weights copy protects it",
        )


def _spec(entry: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(str(entry["name"]), str(entry["dtype"]), tuple(entry["shape"]))
