"""The one writer of ports: atomic, resumable, in fixed memory.

A port is made in a hidden sibling folder and renamed when complete, port.json last. The layout of the weights follows from the
graph alone, so a run that was killed goes on at the last stripe that reached the disk, and ends with identical bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import porting
from porting.dtypes import STRING
from porting.errors import OutOfResources, PortError, UsageError
from porting.port_folder import MANIFEST, MODEL, SCHEMA, WEIGHTS, Port, open_port, require_inside, sha256_of
from porting.port_layout import WEIGHTS_FILE, Layout, lay_out, serialised
from porting.port_sources import Source, WatchedFiles, names_of
from porting.port_staging import START, Point, Staging, os_errors, recover, staging_for, write_synced
from porting.progress import silent
from porting.types import ANY_SHAPE, Graph, TensorSpec

JOURNAL_EVERY = 64 << 20  # bytes between two points that --resume can go on from; tests lower it


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
    resume:   go on where a killed run of the same conversion stopped; starts when there is nothing to go on from
    raises:   UsageError (destination exists, another run is writing it, the partial port is of something else), CheckpointError
              (NaN or Inf weights, unreadable rows, a source that changes), InputError (no permission), OutOfResources (disk full)
    """
    if weights not in ("link", "copy"):
        raise UsageError(f"unknown way to keep weights: {weights!r}", where="--weights", next="known: link, copy")
    _require_side_names(source)
    destination = Path(os.path.abspath(destination))
    require_free(destination, force)
    with os_errors(destination, resumable=True):
        recover(destination)
        require_free(destination, force)  # again: there may be an old port now
        with staging_for(destination, resume) as staging, WatchedFiles(source.files) as watched:
            layout = lay_out(graph, staging.path, weights)
            model = serialised(graph, layout)
            fingerprint = _fingerprint(model, watched, weights)
            start = staging.resume_point(fingerprint, layout) if resume else START
            _require_space(staging, layout.size + len(model) + sum(map(len, source.side.values())))
            _write_weights(layout, staging, start, fingerprint, progress)
            small = _write_small(staging.path, model, source)
            with progress("checksums", watched.bytes() + layout.size) as advance:
                sources = watched.hashes(advance)
                files = _file_entries(staging.path, [*small, *([WEIGHTS_FILE] if layout.written else [])], watched.newest_ns())
                files += [_entry(staging.path, name, sources[path], linked=True) for path, name in layout.links.items()]
                advance(layout.size)
            called = names_of(source.files)
            listed = [{"name": called[p], "size": p.stat().st_size, "sha256": digest} for p, digest in sources.items()]
            full = _manifest(graph, manifest, layout, files, {"format": source.format, "files": listed})
            write_synced(staging.path / MANIFEST, json.dumps(full, indent=1, sort_keys=True, allow_nan=False).encode())
            port = _opened(staging.path)
            staging.publish()
    return Port(destination, port.manifest)


def require_free(destination: Path, force: bool) -> None:
    """Refuse to write over anything, or with `force` over anything but a port. raises: UsageError, InputError (no permission)"""
    with os_errors(destination):
        if not destination.parent.is_dir():
            raise UsageError(f"no such folder: {destination.parent}", where=f"-o {destination}", next="make it first")
        if not os.path.lexists(destination):
            return
        if not force:
            raise UsageError(f"already exists: {destination}", where="-o", next="choose another name, or --force to replace it")
        if destination.is_symlink() or not (destination / MANIFEST).is_file():
            raise UsageError(
                f"--force replaces ports only, and this is none: {destination}", where="-o", next="remove it yourself"
            )


def _require_side_names(source: Source) -> None:
    """raises: PortError for a file carried over whose name leaves the port or is the writer's own"""
    for name in source.side:
        require_inside(name, source.format)
        if "/" in name or name in (MANIFEST, MODEL, WEIGHTS):
            raise PortError(f"a file carried over may not be called {name!r}", where=source.format)


def _fingerprint(model: bytes, watched: WatchedFiles, weights: str) -> str:
    """What must agree for a partial port to be gone on with."""
    return hashlib.sha256(model + f"\0{watched.state()}\0{weights}\0{porting.__version__}".encode()).hexdigest()


def _require_space(staging: Staging, needed: int) -> None:
    held = staging.weights_file.stat().st_blocks * 512 if staging.weights_file.exists() else 0
    free = shutil.disk_usage(staging.path).free
    if needed > free + held:
        raise OutOfResources(
            f"the port needs {needed:,} bytes, {free + held:,} are free",
            where=str(staging.destination.parent),
            next="free space, or write elsewhere",
        )


def _write_weights(layout: Layout, staging: Staging, start: Point, fingerprint: str, progress: Any) -> None:
    with progress("weights", layout.linked_bytes + layout.written_bytes) as advance:
        for stream in layout.linked:  # read for the check that Stream.make does
            for _, _, arrays in stream.stripes():
                advance(sum(a.nbytes for a in arrays))
        if layout.written:
            _write_streams(layout, staging, start, fingerprint, advance)


def _write_streams(layout: Layout, staging: Staging, start: Point, fingerprint: str, advance: Callable[[int], Any]) -> None:
    """Fill weights.bin from `start` on, with a point to resume from every JOURNAL_EVERY bytes and at the end."""
    fd = staging.open_weights(start, layout.size)
    try:
        since = 0
        for number, (stream, offsets) in enumerate(layout.written):
            row_bytes = stream.row_bytes()
            done = stream.rows if number < start[0] else start[1] if number == start[0] else 0
            advance(sum(row_bytes) * done)
            for first, stop, arrays in stream.stripes(done):
                for array, offset, size in zip(arrays, offsets, row_bytes, strict=True):
                    _pwrite(fd, array, offset + first * size)
                    since += array.nbytes
                    advance(array.nbytes)
                if since >= JOURNAL_EVERY:
                    os.fdatasync(fd)
                    staging.record(fingerprint, (number, stop))
                    since = 0
        os.fdatasync(fd)
        staging.record(fingerprint, (len(layout.written), 0))
    finally:
        os.close(fd)


def _pwrite(fd: int, array: np.ndarray, offset: int) -> None:
    view = memoryview(array.reshape(-1).view(np.uint8).data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def _write_small(folder: Path, model: bytes, source: Source) -> list[str]:
    """model.onnx and the files carried over; returns their names."""
    for name, content in {MODEL: model, **source.side}.items():
        write_synced(folder / name, content)
    return [MODEL, *source.side]


def _file_entries(folder: Path, names: list[str], mtime_ns: int) -> list[dict[str, Any]]:
    """Entries of port.json for written files. They get the newest time of the source: the same input gives the same port."""
    for name in names:
        os.utime(folder / name, ns=(mtime_ns, mtime_ns))
    return [_entry(folder, name, sha256_of(folder / name), linked=False) for name in sorted(names)]


def _entry(folder: Path, relative: str, digest: str, linked: bool) -> dict[str, Any]:
    found = (folder / relative).stat()
    return {"path": relative, "size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": digest, "linked": linked}


def _opened(folder: Path) -> Port:
    """The finished port, read as a user will read it. raises: AssertionError, since a port that does not load is our fault"""
    try:
        return open_port(folder)
    except PortError as error:
        raise AssertionError(f"the port would not load: {error.what}") from error


def _manifest(
    graph: Graph, manifest: Mapping[str, Any], layout: Layout, files: list[dict[str, Any]], source: Mapping[str, Any]
) -> dict[str, Any]:
    body, state = graph.model.graph, graph.state
    return {
        **manifest,
        "schema": SCHEMA,
        "source": source,
        "opset": dict(body.opset_imports),
        "inputs": [_described(v) for v in body.inputs],
        "outputs": [_described(v) for v in body.outputs],
        "state": {
            "pairs": [asdict(pair) for pair in state.pairs],
            "length": state.length,
            "advance": list(state.advance) if state.advance else None,
        },
        "defaults": dict(graph.defaults),
        "ranges": {name: list(bounds) for name, bounds in graph.ranges.items()},
        "limits": {name: asdict(limit) for name, limit in graph.limits.items()},
        "weights": {
            "linked_bytes": layout.linked_bytes,
            "written_bytes": layout.size,
            "not_linked": dict(layout.not_linked),
        },
        "tools": {"porting": porting.__version__},
        "files": files,
    }


def specs_of(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The inputs of a model, state included, as a port lists them."""
    found = [_described(value) for value in model.graph.inputs]
    return tuple(TensorSpec(one["name"], one["dtype"], tuple(one["shape"])) for one in found)


def _described(value: ir.Value) -> dict[str, Any]:
    """An input or output as in TensorSpec. Old exporters write -1 for a size that is not known."""
    assert value.dtype is not None
    sequence = isinstance(value.type, ir.SequenceType)
    dtype = STRING if value.dtype == ir.DataType.STRING else value.dtype.numpy().name
    if value.shape is None:
        shape: list[Any] = [] if sequence else list(ANY_SHAPE)
    else:
        sizes = [d if isinstance(d, int) else d.value for d in value.shape]
        shape = [None if isinstance(d, int) and d < 0 else d for d in sizes]
    return {"name": value.name, "dtype": f"sequence({dtype})" if sequence else dtype, "shape": shape}
