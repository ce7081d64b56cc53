"""A port on disk, read: port.json, the target graph, weights, tokenizer files and evidence.

    NAME/  port.json  model.onnx  weights/  tokenizer.json ...  evidence/

Nothing in a port may leave its folder. Loading compares sizes and times, hashes a file whose time differs, and follows every
reference of model.onnx; `verify` hashes all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from porting.dtypes import is_feedable
from porting.errors import InputError, PortError
from porting.external_data import require_external_data
from porting.types import Limit, Program, StatePair, StateSpec, TensorSpec

SCHEMA = "porting.port/1"
MANIFEST = "port.json"
MODEL = "model.onnx"
WEIGHTS = "weights"
EVIDENCE = "evidence"
MAX_MANIFEST_BYTES = 256 << 20  # a tensor table of a million names fits; a bomb does not
HASH_CHUNK = 1 << 20
CONVERT_AGAIN = "convert again; with --weights link a change to the source changes the port, --weights copy protects it"

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
        return _program(self.path / MODEL, self.manifest)

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
    """Read a port and check that every file it lists is there, unchanged and inside the folder, and that model.onnx names no other.

    raises: PortError
    """
    folder = Path(path)
    try:
        _require_folder(folder)
        manifest = read_manifest(folder / MANIFEST)
        for entry in manifest["files"]:
            _require_file(folder, entry)
        require_external_data(folder / MODEL, {e["path"]: e["size"] for e in manifest["files"]})
    except OSError as error:
        place = os.fspath(error.filename) if isinstance(error.filename, (str, os.PathLike)) else str(folder)
        raise PortError(f"the port cannot be read: {error.strerror or error}", where=place) from error
    return Port(folder, manifest)


def _require_folder(folder: Path) -> None:
    if not folder.exists():
        raise PortError(f"no such port: {folder}", next="`porting convert` makes one")
    if not folder.is_dir():
        raise PortError(f"a port is a folder, and this is a file: {folder}")
    if not os.path.lexists(folder / MANIFEST):
        raise PortError(
            f"not a port: {folder} has no {MANIFEST}",
            next="a conversion that was cut short leaves none; `porting convert ... --resume` goes on",
        )
    _require_regular(folder, MANIFEST)


def read_manifest(path: Path) -> dict[str, Any]:
    """port.json, its schema and the types of its fields checked. raises: PortError, OSError"""
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise PortError(f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes", where=str(path))
    try:
        manifest = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, a key twice, a number of thousands of digits
        raise PortError(f"{MANIFEST} cannot be read: {error}", where=str(path)) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        got = _shown(manifest.get("schema") if isinstance(manifest, dict) else manifest)
        raise PortError(
            f"expected schema {SCHEMA!r}, got {got}", where=str(path), next="use the version of porting that wrote it"
        )
    wrong = [k for k, t in _REQUIRED.items() if not isinstance(manifest.get(k), t)]
    if wrong:
        raise PortError(f"{MANIFEST} is malformed: {', '.join(wrong)}", where=str(path))
    _require_entries(manifest["files"], str(path))
    _program(path, manifest)
    return manifest


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _require_entries(entries: list[Any], where: str) -> None:
    """Each file entry is complete, stays inside the folder, and is there once."""
    seen = set()
    for entry in entries:
        fits = (
            isinstance(entry, dict)
            and isinstance(entry.get("path"), str)
            and type(entry.get("size")) is int
            and type(entry.get("mtime_ns")) is int
            and re.fullmatch(r"[0-9a-f]{64}", str(entry.get("sha256")))
        )
        if not fits:
            raise PortError(f"{MANIFEST} has a malformed file entry: {_shown(entry)}", where=where)
        require_inside(entry["path"], where)
        if entry["path"] in seen or entry["path"] == MANIFEST:
            raise PortError(f"{MANIFEST} may not list {entry['path']!r} here", where=where)
        seen.add(entry["path"])
    if MODEL not in seen:
        raise PortError(f"{MANIFEST} does not list {MODEL}", where=where)


def require_inside(relative: str, where: str) -> None:
    """Refuse a path that is absolute, climbs up, or could be read differently elsewhere. raises: PortError"""
    pure = PurePosixPath(relative)
    inside = not pure.is_absolute() and ".." not in pure.parts and pure.parts and ":" not in pure.parts[0]
    # its one spelling ("a//b" and "./a" are others), printable, and no separator of another system
    if not inside or str(pure) != relative or not relative.isprintable() or "\\" in relative:
        raise PortError(f"a port may not point outside its folder: {relative[:200]!r}", where=where)


def sha256_of(path: Path, cancelled: Callable[[], bool] = lambda: False) -> str:
    """sha256 of a file, read in chunks.

    cancelled: asked before each chunk; hashing ends with InterruptedError once it says yes
    """
    digest = hashlib.sha256()
    buffer = bytearray(HASH_CHUNK)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(memoryview(buffer)[:size])
            if cancelled():
                raise InterruptedError(f"hashing of {path.name} was cancelled")
    return digest.hexdigest()


def _require_regular(folder: Path, relative: str) -> os.stat_result:
    """What the system says of a file of the port, reached through no symbolic link. raises: PortError"""
    try:
        for part in reversed(PurePosixPath(relative).parents[:-1]):
            if not stat.S_ISDIR((folder / part).lstat().st_mode):
                raise PortError(f"a port may not hold symbolic links: {part}", where=str(folder))
        found = (folder / relative).lstat()
    except (OSError, ValueError) as error:  # ValueError: a name that the file system cannot spell
        why = error.strerror if isinstance(error, OSError) else error
        raise PortError(f"file of the port is missing: {relative} ({why})", where=str(folder)) from error
    if stat.S_ISLNK(found.st_mode):
        raise PortError(f"a port may not hold symbolic links: {relative}", where=str(folder))
    if not stat.S_ISREG(found.st_mode):
        raise PortError(f"{relative} is no file", where=str(folder))
    return found


def _require_file(folder: Path, entry: Mapping[str, Any]) -> None:
    found = _require_regular(folder, entry["path"])
    if found.st_size != entry["size"]:
        raise PortError(
            f"file of the port has changed: {entry['path']} should be {entry['size']} bytes, is {found.st_size}",
            where=str(folder),
            next=CONVERT_AGAIN,
        )
    if found.st_mtime_ns != entry["mtime_ns"]:  # copied or touched: the bytes decide
        _require_hash(folder, entry)


def _require_hash(folder: Path, entry: Mapping[str, Any]) -> None:
    try:
        got = sha256_of(folder / entry["path"])
    except OSError as error:
        raise PortError(f"file of the port cannot be read: {entry['path']} ({error.strerror})", where=str(folder)) from error
    if got != entry["sha256"]:
        raise PortError(
            f"file of the port has changed: {entry['path']} should have sha256 {entry['sha256'][:16]}..., has {got[:16]}...",
            where=str(folder),
            next=CONVERT_AGAIN,
        )


def _program(model: Path, manifest: Mapping[str, Any]) -> Program:
    """The program that port.json describes. raises: PortError for a field of the wrong shape"""
    state, defaults, runtimes = manifest["state"], manifest["defaults"], manifest["min_runtime"]
    try:
        pairs = tuple(
            StatePair(_text(p["input"]), _text(p["output"]), _axis_or_none(p["axis"]), _axis_or_none(p.get("appended")))
            for p in state.get("pairs", [])
        )
        length, advance = state.get("length"), state.get("advance")
        if advance is not None:
            name, axis = advance
            advance = (_text(name), _axis(axis))
        return Program(
            model,
            tuple(_spec(i) for i in manifest["inputs"]),
            tuple(_spec(o) for o in manifest["outputs"]),
            StateSpec(pairs, None if length is None else _text(length), advance),
            {name: _number(value) for name, value in defaults.items()},
            {name: _text(version) for name, version in runtimes.items()},
            {name: _range(bounds) for name, bounds in manifest.get("ranges", {}).items()},  # ports from before them have none
            {name: _limit(limit) for name, limit in manifest.get("limits", {}).items()},  # nor these
            _gears(manifest),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PortError(
            f"{MANIFEST} is malformed: {type(error).__name__}: {str(error)[:200]}", where=str(model.parent)
        ) from error


def _spec(entry: Mapping[str, Any]) -> TensorSpec:
    shape = entry["shape"]
    if not isinstance(shape, list) or not all(d is None or isinstance(d, str) or (type(d) is int and d >= 0) for d in shape):
        raise ValueError(f"no shape: {_shown(shape)}")
    if not is_feedable(_text(entry["dtype"])):
        raise ValueError(f"no dtype: {_shown(entry['dtype'])}")
    return TensorSpec(_text(entry["name"]), entry["dtype"], tuple(shape))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {_shown(value)}")
    return value


def _number(value: Any) -> int | float:
    if type(value) not in (int, float):
        raise TypeError(f"expected a number, got {_shown(value)}")
    return value


def _range(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or any(type(bound) is not int for bound in value) or value[0] >= value[1]:
        raise ValueError(f"expected a range of two integers, got {_shown(value)}")
    return value[0], value[1]


def _limit(value: Mapping[str, Any]) -> Limit:
    ignored = value["ignored"]
    return Limit(
        _axis(value["axis"]), _axis(value["most"]), None if ignored is None else _axis(ignored), _text(value["reason"])
    )


def _gears(manifest: Mapping[str, Any]) -> tuple[Mapping[str, tuple[int, ...]], ...]:
    """The shapes that a port was made for. raises: ValueError for gears that are not those of its inputs"""
    if "gears" not in manifest:
        return ()
    from porting.ascend.gears import from_json

    try:
        shapes = from_json(manifest["gears"]).shapes
    except InputError as error:
        raise ValueError(error.what) from error
    names = [_text(entry["name"]) for entry in manifest["inputs"]]
    if any(gear.keys() != set(names) for gear in shapes):
        raise ValueError("the gears have other inputs than the port")
    return tuple({name: gear[name] for name in names} for gear in shapes)


def _axis_or_none(value: Any) -> int | None:
    return None if value is None else _axis(value)


def _axis(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"expected an axis, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """A value from a file in an error message: short, and safe for what is nested a thousand deep."""
    if isinstance(value, dict):
        return f"an object with {len(value)} keys"
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:80]
