"""The one writer of ports: atomic, resumable, in fixed memory.

A port is made in a hidden sibling folder (`.NAME.partial`) and renamed when complete, port.json last. The layout of the weights follows from the
graph alone, so a run that was killed goes on at the last stripe that reached the disk, and ends with identical bytes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import porting
from porting.errors import CheckpointError, InputError, OutOfResources, PortingError, UsageError
from porting.port_folder import MANIFEST, MODEL, SCHEMA, WEIGHTS, Port, open_port, sha256_of
from porting.progress import silent
from porting.types import Graph, TensorSpec
from porting.weights import Stream, nbytes_of, stream_of

ALIGNMENT = 64  # bytes; a cache line, what the runtimes' kernels like to load from
JOURNAL = "journal.json"
JOURNAL_EVERY = 64 << 20  # bytes between two points that --resume can go on from
WEIGHTS_FILE = f"{WEIGHTS}/weights.bin"


@dataclass(frozen=True)
class Source:
    """What a port is made from, as far as the writer needs it.

    files: the checkpoint's files; hashed, and hard-linked where their bytes can be used as they are
    side:  name -> bytes, carried over
    """

    format: str
    files: Sequence[Path]
    side: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Placed:
    """Where every weight of a port lies.

    links:    source file -> path inside the port
    written:  (stream, offset of each output in weights.bin)
    linked:   streams whose bytes stay in the source
    size:     bytes of weights.bin
    unlinked: why files could not be linked: file name -> reason
    """

    links: Mapping[Path, str]
    written: Sequence[tuple[Stream, tuple[int, ...]]]
    linked: Sequence[Stream]
    size: int
    unlinked: Mapping[str, str]


def write_port(
    graph: Graph,
    destination: Path,
    manifest: Mapping[str, Any],
    source: Source,
    *,
    weights: str = "link",
    force: bool = False,
    resume: bool = False,
    progress: Any = silent,
) -> Port:
    """Write `graph` as a port at `destination`.

    manifest: what port.json says beside the writer's own fields
    weights:  "link" (hard links where the stored bytes fit and the file system allows it) or "copy"
    raises:   UsageError (destination exists, nothing to resume), CheckpointError (NaN or Inf weights, unreadable rows),
              InputError (no permission), OutOfResources (disk full)
    """
    destination = Path(os.path.abspath(destination))
    staging = destination.with_name(f".{destination.name}.partial")
    require_free(destination, force)
    with _os_errors(destination), _locked(staging, resume):
        placed = place(graph, source, staging, weights)
        model = _serialised(graph, placed)
        fingerprint = _fingerprint(model, source, weights)
        done = _journal_for(staging, fingerprint) if resume else (0, 0)
        _require_space(destination, placed, len(model), source)
        with ThreadPoolExecutor(1) as pool:
            hashes = {path: pool.submit(sha256_of, path) for path in source.files}
            _write_weights(placed, staging, done, fingerprint, progress)
            _write_small(staging, model, source)
            entries = _finish_files(staging, placed, source, hashes)
            _require_complete(graph, placed, staging)
            source_entry = [{"name": p.name, "size": p.stat().st_size, "sha256": f.result()} for p, f in hashes.items()]
        full = _manifest(graph, manifest, placed, entries, {"format": source.format, "files": source_entry})
        (staging / JOURNAL).unlink(missing_ok=True)
        text = json.dumps(full, indent=1, sort_keys=True, allow_nan=False)
        _write_file(staging / MANIFEST, text.encode())
        _replace(staging, destination)
    return open_port(destination)


def require_free(destination: Path, force: bool) -> None:
    """Refuse to write over anything, or with `force` over anything but a port. raises: UsageError"""
    if not destination.parent.is_dir():
        raise UsageError(f"no such folder: {destination.parent}", where=f"-o {destination}", next="make it first")
    if not os.path.lexists(destination):
        return
    if not force:
        raise UsageError(f"already exists: {destination}", where="-o", next="choose another name, or --force to replace it")
    if not (destination / MANIFEST).is_file():
        raise UsageError(f"--force replaces ports only, and this is none: {destination}", where="-o", next="remove it yourself")


def place(graph: Graph, source: Source, staging: Path, weights: str) -> Placed:
    """Decide for every streamed weight whether it is linked or written, and where."""
    streams = list({id(s): s for s in _streams(graph)}.values())
    links: dict[Path, str] = {}
    unlinked: dict[str, str] = {}
    if weights == "link":
        for path in {s.stored.file: None for s in streams if s.stored is not None}:
            reason = _try_link(path, staging)
            if reason:
                unlinked[path.name] = reason
            else:
                links[path] = (
                    f"{WEIGHTS}/{path.name}"
                    if f"{WEIGHTS}/{path.name}" not in links.values()
                    else f"{WEIGHTS}/{len(links)}-{path.name}"
                )
    offset = 0
    written, linked = [], []
    for stream in streams:
        if stream.stored is not None and stream.stored.file in links:
            linked.append(stream)
            continue
        offsets = []
        for spec in stream.outputs:
            offset = -(-offset // ALIGNMENT) * ALIGNMENT
            offsets.append(offset)
            offset += nbytes_of(spec)
        written.append((stream, tuple(offsets)))
    return Placed(links, written, linked, offset, unlinked)


def _try_link(path: Path, staging: Path) -> str:
    """Whether a hard link from `staging` to `path` works here: "" or the reason why not."""
    trial = staging / ".link-trial"
    try:
        real = path.resolve()  # caches hold symbolic links to blobs; a runtime refuses those, a hard link to the blob is fine
        trial.unlink(missing_ok=True)
        os.link(real, trial)
        trial.unlink()
    except OSError as error:
        reasons = {
            errno.EXDEV: "on another file system",
            errno.EPERM: "the system forbids hard links to this file (another owner)",
            errno.EMLINK: "too many links",
        }
        return reasons.get(error.errno or 0, str(error.strerror))
    return ""


def _streams(graph: Graph) -> Iterator[Stream]:
    for value in graph.model.graph.initializers.values():
        found = stream_of(value.const_value)
        if found is not None:
            yield found[0]


def _serialised(graph: Graph, placed: Placed) -> bytes:
    """model.onnx, weights as external data."""
    where: dict[int, list[tuple[str, int]]] = {}
    for stream, offsets in placed.written:
        where[id(stream)] = [(WEIGHTS_FILE, offset) for offset in offsets]
    for stream in placed.linked:
        assert stream.stored is not None
        where[id(stream)] = [(placed.links[stream.stored.file], stream.stored.offset)]
    model = graph.model.clone()
    for value in model.graph.initializers.values():
        found = stream_of(value.const_value)
        if found is not None:
            stream, index = found
            location, offset = where[id(stream)][index]
            spec = stream.outputs[index]
            tensor = value.const_value
            assert tensor is not None
            value.const_value = ir.ExternalTensor(
                location, offset, nbytes_of(spec), tensor.dtype, shape=ir.Shape(spec.shape), name=str(value.name), base_dir=""
            )
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def _write_weights(placed: Placed, staging: Path, done: tuple[int, int], fingerprint: str, progress: Any) -> None:
    (staging / WEIGHTS).mkdir(exist_ok=True)
    for path, relative in placed.links.items():
        target = staging / relative
        target.unlink(missing_ok=True)
        os.link(path.resolve(), target)
    total = placed.size + sum(nbytes_of(s.outputs[0]) for s in placed.linked)
    with progress("weights", total) as advance:
        for stream in placed.linked:
            for start, stop, arrays in stream.stripes():
                _require_finite(stream, start, stop, arrays)
                advance(sum(a.nbytes for a in arrays))
        if placed.written:
            _write_streams(placed, staging / WEIGHTS_FILE, done, fingerprint, advance)


def _write_streams(placed: Placed, path: Path, done: tuple[int, int], fingerprint: str, advance: Callable[[int], None]) -> None:
    with open(path, "r+b" if path.exists() else "w+b", buffering=0) as file:
        file.truncate(placed.size)
        since = 0
        for number, (stream, offsets) in enumerate(placed.written):
            if number < done[0]:
                continue
            row_bytes = stream.row_bytes()
            for start, stop, arrays in stream.stripes(done[1] if number == done[0] else 0):
                _require_finite(stream, start, stop, arrays)
                for array, offset, size, spec in zip(arrays, offsets, row_bytes, stream.outputs, strict=True):
                    _require_stripe(array, size * (stop - start), spec)
                    _pwrite(file.fileno(), array, offset + start * size)
                    since += array.nbytes
                    advance(array.nbytes)
                if since >= JOURNAL_EVERY:
                    os.fdatasync(file.fileno())
                    point = {"fingerprint": fingerprint, "stream": number, "row": stop}
                    _write_file(path.parent.parent / JOURNAL, json.dumps(point).encode())
                    since = 0
        os.fdatasync(file.fileno())


def _require_stripe(array: np.ndarray, size: int, spec: TensorSpec) -> None:
    if array.nbytes != size or str(array.dtype) != spec.dtype or not array.flags.c_contiguous:
        raise AssertionError(f"stripe of {spec}: expected {size} bytes, got {array.dtype} of {array.nbytes}")


def _pwrite(fd: int, array: np.ndarray, offset: int) -> None:
    view = memoryview(array.reshape(-1).view(np.uint8))
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def _require_finite(stream: Stream, start: int, stop: int, arrays: Sequence[np.ndarray]) -> None:
    for spec, array in zip(stream.outputs, arrays, strict=True):
        if array.dtype.kind in "biu" or np.isfinite(array).all():
            continue
        bad = np.argwhere(~np.isfinite(array))[0]
        row = start + int(bad[0]) if array.ndim else 0
        position = [row, *(int(i) for i in bad[1:])]
        raise CheckpointError(
            f"tensor {spec.name!r} holds {array[tuple(bad)]} at {position}",
            where=", ".join(stream.sources),
            next="the checkpoint is damaged, or training diverged; a port of it would compute nothing",
        )


def _write_small(staging: Path, model: bytes, source: Source) -> None:
    _write_file(staging / MODEL, model)
    for name, content in source.side.items():
        _write_file(staging / name, content)


def _finish_files(staging: Path, placed: Placed, source: Source, hashes: Mapping[Path, Future[str]]) -> list[dict[str, Any]]:
    """File entries of port.json. Written files get the newest time of the source, so that the same input gives the same port."""
    newest = max((p.stat().st_mtime_ns for p in source.files), default=0)
    written = [MODEL, *source.side, *([WEIGHTS_FILE] if placed.written else [])]
    entries = []
    for name in sorted(written):
        os.utime(staging / name, ns=(newest, newest))
        entries.append(_entry(staging, name, sha256_of(staging / name), linked=False))
    for path, relative in placed.links.items():
        entries.append(_entry(staging, relative, hashes[path].result(), linked=True))
    return entries


def _entry(staging: Path, relative: str, digest: str, linked: bool) -> dict[str, Any]:
    found = (staging / relative).stat()
    return {"path": relative, "size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": digest, "linked": linked}


def _require_complete(graph: Graph, placed: Placed, staging: Path) -> None:
    """Every file, offset and length that model.onnx names exists."""
    import onnx

    model = onnx.load(str(staging / MODEL), load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place_ = {e.key: e.value for e in tensor.external_data}
            end = int(place_["offset"]) + int(place_["length"])
            size = (staging / place_["location"]).stat().st_size
            if end > size:
                raise AssertionError(f"{tensor.name} ends at {end} of {place_['location']}, which has {size} bytes")


def _manifest(
    graph: Graph, manifest: Mapping[str, Any], placed: Placed, entries: list[dict[str, Any]], source: Mapping[str, Any]
) -> dict[str, Any]:
    body, state = graph.model.graph, graph.state
    advance = list(state.advance) if state.advance else None
    return {
        **manifest,
        "schema": SCHEMA,
        "source": source,
        "opset": dict(graph.model.graph.opset_imports),
        "inputs": [_described(v) for v in body.inputs],
        "outputs": [_described(v) for v in body.outputs],
        "state": {
            "pairs": [{"input": p.input, "output": p.output, "axis": p.axis} for p in state.pairs],
            "length": state.length,
            "advance": advance,
        },
        "defaults": dict(graph.defaults),
        "weights": {
            "linked_bytes": sum(nbytes_of(s.outputs[0]) for s in placed.linked),
            "written_bytes": placed.size,
            "not_linked": dict(placed.unlinked),
        },
        "tools": {"porting": porting.__version__},
        "files": entries,
    }


def _described(value: ir.Value) -> dict[str, Any]:
    assert value.dtype is not None
    shape = [d if isinstance(d, int) else d.value for d in value.shape or ()]
    return {"name": value.name, "dtype": value.dtype.numpy().name, "shape": shape}


def _fingerprint(model: bytes, source: Source, weights: str) -> str:
    digest = hashlib.sha256(model)
    for path in source.files:
        found = path.stat()
        digest.update(f"{path.name}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    digest.update(f"{weights}\0{porting.__version__}".encode())
    return digest.hexdigest()


def _journal_for(staging: Path, fingerprint: str) -> tuple[int, int]:
    """(stream, row) to go on from. raises: UsageError when the partial port was made from something else"""
    path = staging / JOURNAL
    if not path.exists():
        return 0, 0
    point = json.loads(path.read_text())
    if point["fingerprint"] != fingerprint:
        raise UsageError(
            "the partial port was made from other files, with other options or by another version",
            where=str(staging),
            next="run once without --resume to start again",
        )
    return int(point["stream"]), int(point["row"])


def _require_space(destination: Path, placed: Placed, model_bytes: int, source: Source) -> None:
    needed = placed.size + model_bytes + sum(len(b) for b in source.side.values())
    present = destination.with_name(f".{destination.name}.partial") / WEIGHTS_FILE
    held = present.stat().st_blocks * 512 if present.exists() else 0
    free = shutil.disk_usage(destination.parent).free
    if needed > free + held:
        raise OutOfResources(
            f"the port needs {needed:,} bytes, {free:,} are free",
            where=str(destination.parent),
            next="free space, or write elsewhere",
        )


@contextmanager
def _locked(staging: Path, resume: bool) -> Iterator[None]:
    """Make or reuse the staging folder and hold a lock on it; without `resume` it starts empty."""
    staging.mkdir(exist_ok=True)
    fd = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError("another conversion is writing this port", where=str(staging)) from error
        if not resume:
            for child in staging.iterdir():
                shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
        yield
    except PortingError as error:
        if not isinstance(error, OutOfResources):  # what is wrong stays wrong: nothing to resume
            shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        os.close(fd)


@contextmanager
def _os_errors(destination: Path) -> Iterator[None]:
    """Say what the system refused, with the right exit code."""
    try:
        yield
    except OSError as error:
        place_ = str(error.filename or destination)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutOfResources(
                f"the disk is full: {error.strerror}", where=place_, next="free space and run again with --resume"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(
                f"no permission: {error.strerror}", where=place_, next="choose another place, or mend the rights"
            ) from error
        raise InputError(f"cannot write the port: {error.strerror or error}", where=place_) from error


def _write_file(path: Path, content: bytes) -> None:
    """Write and sync a small file; readers see the old one or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _replace(staging: Path, destination: Path) -> None:
    """Put the finished port in place; an old one that --force allows to go is moved aside first and removed last."""
    if os.path.lexists(destination):
        old = destination.with_name(f".{destination.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        destination.rename(old)
        staging.rename(destination)
        shutil.rmtree(old)
    else:
        staging.rename(destination)
    fd = os.open(destination.parent, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
