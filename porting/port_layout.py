"""Where every weight of a port lies: in a hard link to the checkpoint, or in the one file that the writer makes.

The layout follows from the graph and from which links the file system allows, so that a resumed run comes to the same one.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from porting.port_folder import WEIGHTS
from porting.types import Graph
from porting.weights import Stream, dtype_of, nbytes_of, stream_of

LINK_SHARE = 0.5  # of a file; below it, moving or archiving the port would carry more dead weight than the link saves
ALIGNMENT = 64  # bytes; a cache line, what the runtimes' kernels like to load from
WEIGHTS_FILE = f"{WEIGHTS}/weights.bin"
NO_LINK = {
    errno.EXDEV: "on another file system",
    errno.EPERM: "the system forbids hard links to this file (another owner)",
    errno.EMLINK: "too many links",
    errno.EOPNOTSUPP: "the file system has no hard links",
}


@dataclass(frozen=True)
class Layout:
    """Where every weight of a port lies.

    links:      source file -> path inside the port
    linked:     streams whose bytes stay in the source
    written:    (stream, offset of each output in weights.bin)
    size:       bytes of weights.bin
    not_linked: why files could not be linked: file name -> reason
    """

    links: Mapping[Path, str]
    linked: Sequence[Stream]
    written: Sequence[tuple[Stream, tuple[int, ...]]]
    size: int
    not_linked: Mapping[str, str]

    @property
    def linked_bytes(self) -> int:
        """Of the weights that stay in the source."""
        return sum(nbytes_of(stream.outputs[0]) for stream in self.linked)

    @property
    def written_bytes(self) -> int:
        """Of the weights in weights.bin, without the gaps between them."""
        return sum(nbytes_of(spec) for stream, _ in self.written for spec in stream.outputs)


def lay_out(graph: Graph, folder: Path, weights: str) -> Layout:
    """Decide for every streamed weight whether it is linked or written, and where. Makes the links.

    folder:  the port to be
    weights: "link" or "copy"
    """
    streams = list(
        {id(found[0]): found[0] for value in _initializers(graph.model) if (found := stream_of(value.const_value))}.values()
    )
    # of the body of an If or Loop onnxruntime refuses external data in a file that has a second link
    inner = {id(found[0]) for value in _body_initializers(graph.model) if (found := stream_of(value.const_value))}
    stored = [(s, s.stored) for s in streams if s.stored is not None and id(s) not in inner]
    links: dict[Path, str] = {}
    not_linked: dict[str, str] = {}
    if weights == "link":
        used: Counter[Path] = Counter()
        for _, place in stored:
            used[place.file] += place.nbytes
        for file, nbytes in used.items():
            name = _link_name(file, set(links.values()))
            reason = not_worth_linking(file, nbytes) or _link(file, folder / name)
            if reason:
                not_linked[file.name] = reason
            else:
                links[file] = name
    linked = [stream for stream, place in stored if place.file in links]
    stays = {id(stream) for stream in linked}
    written, end = [], 0
    for stream in streams:
        if id(stream) not in stays:
            offsets = []
            for spec in stream.outputs:
                offsets.append(-(-end // ALIGNMENT) * ALIGNMENT)
                end = offsets[-1] + nbytes_of(spec)
            written.append((stream, tuple(offsets)))
    return Layout(links, linked, written, end, not_linked)


def not_worth_linking(file: Path, used_bytes: int) -> str:
    """Why a file should not become part of the port for the bytes that it would use: "" when it should."""
    size = file.stat().st_size
    if used_bytes >= LINK_SHARE * size:
        return ""
    return f"only {used_bytes:,} of its {size:,} bytes are used as they are; those were copied"


def _link_name(file: Path, taken: set[str]) -> str:
    """The source's own name in weights/, made plain, and changed when it is taken or the writer's."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", file.name).lstrip(".")[-200:] or "source"
    names = [f"{WEIGHTS}/{plain}", *(f"{WEIGHTS}/{n}-{plain}" for n in range(1, len(taken) + 2))]
    return next(name for name in names if name not in taken and name != WEIGHTS_FILE)


def _link(file: Path, target: Path) -> str:
    """Hard-link `file` at `target`: "" or the reason why that cannot be."""
    try:
        # caches hold symbolic links to blobs; a runtime refuses those, a hard link to the blob is fine
        os.link(os.path.realpath(file), target)
    except OSError as error:
        return NO_LINK.get(error.errno or 0, str(error.strerror))
    return ""


def serialised(graph: Graph, layout: Layout) -> bytes:
    """model.onnx, weights as external data."""
    places: dict[int, list[tuple[str, int]]] = {}
    for stream, offsets in layout.written:
        places[id(stream)] = [(WEIGHTS_FILE, offset) for offset in offsets]
    for stream in layout.linked:
        assert stream.stored is not None
        places[id(stream)] = [(layout.links[stream.stored.file], stream.stored.offset)]
    model = graph.model.clone()
    for value in _initializers(model):
        found = stream_of(value.const_value)
        if found is not None:
            stream, index = found
            value.const_value = _placed(value, stream, index, *places[id(stream)][index])
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def _placed(value: ir.Value, stream: Stream, index: int, location: str, offset: int) -> ir.TensorProtocol:
    spec, name = stream.outputs[index], str(value.name)
    dtype = dtype_of(spec.dtype)
    shape = [int(d) for d in spec.shape if d is not None]
    if nbytes_of(spec) == 0:  # onnxruntime refuses zero bytes at the end of a file
        return ir.Tensor(np.empty(shape, dtype), name=name)
    return ir.ExternalTensor(
        location, offset, nbytes_of(spec), ir.DataType.from_numpy(dtype), shape=ir.Shape(shape), name=name, base_dir=""
    )


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    """Of the graph and of the bodies of its control flow."""
    yield from model.graph.initializers.values()
    yield from _body_initializers(model)


def _body_initializers(model: ir.Model) -> Iterator[ir.Value]:
    for body in model.graph.subgraphs():
        yield from body.initializers.values()
