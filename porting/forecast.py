"""A forecast from headers alone: memory, disk, time, and a lower bound of cards. No weight is read, nothing is written."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from porting.conversion import ASCEND, Canonical, canonical_graph, kept_weights, precision_of
from porting.errors import UsageError, nearest
from porting.port_layout import Layout, not_worth_linking, serialised
from porting.sources import opened
from porting.targets import Target, find_target, stored_precision
from porting.types import Checkpoint, Graph, GraphSource, is_graph
from porting.weights import STRIPE_BYTES, nbytes_of, stream_of

SCHEMA = "porting.plan/1"
PRECISION_NAMES = ("fp32", "fp16", "int8", "int4")

# Resident memory, measured by tests/porting/test_plan_inspect.py's way on SmolLM2 (VmHWM of a conversion, Python 3.11): the
# interpreter with numpy, onnx-ir and tokenizers; the graph, per tensor; the side files, as they are read and made; and stripes of
# output that are alive at once, together with the float rows that codes are made from, 4 and 8 times their size.
BASE_RSS = 88 << 20
TENSOR_RSS = 12 << 10
FORMAT_RSS = {"gguf": 14 << 20}  # the gguf package and the table of tokens
SIDE_COPIES = {"gguf": 18}  # of the side files' bytes; a GGUF file's tokenizer is made from the table
SIDE_COPIES_READ = 4
STRIPE_COPIES = {"fp32": 3.5, "int8": 14.2, "int4": 24.0}

# Of a graph, measured the same way on files of 95 to 1,105 nodes (107 to 123 MiB, forecast 112 to 136): the interpreter with onnx as well;
# its nodes with their values and shapes. Of a torch program torch itself and its weights (382 MiB with none, 656 with 256 MiB of them).
GRAPH_BASE_RSS = 98 << 20
NODE_RSS = 12 << 10
TORCH_BASE_RSS = 400 << 20
TORCH_COPIES = 2  # the module, and the weights file that it was loaded with

# Two cores of a Sapphire Rapids server, page cache warm (benchmarks/convert_speed.py); a forecast, not a promise.
BASE_SECONDS = 1.0
LINKED_PER_SECOND = 1.2e9  # bytes that stay in the source: read, checked, hashed
WRITTEN_PER_SECOND = {"fp32": 300e6, "int8": 350e6, "int4": 280e6}  # bytes of fp32 weights: read, checked, rounded, written

_FLOAT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}
_BLOCK = 32
_CODE_BYTES = {"int8": 1 + 4 / _BLOCK, "int4": 0.5 + (4 + 0.5) / _BLOCK}


def weight_bytes(checkpoint: Checkpoint, precision: str) -> int:
    """Bytes of the weights in a precision: matrices as codes and scales, the rest (embedding, norms, biases) in fp32.

    A tied embedding counts twice under int8 and int4: it stays float, and the head has codes of its own.
    """
    total = 0.0
    tied = "lm_head.weight" not in checkpoint.tensors
    for name, tensor in checkpoint.tensors.items():
        size = math.prod(tensor.shape)
        if precision in _FLOAT_BYTES:
            total += size * _FLOAT_BYTES[precision]
            continue
        embedding = name == "model.embed_tokens.weight"
        if embedding or len(tensor.shape) != 2:
            total += size * 4
        if len(tensor.shape) == 2 and (not embedding or tied):
            total += size * _CODE_BYTES[precision]
    return int(total)


def forecast_ram(checkpoint: Checkpoint | GraphSource, precision: str, side_bytes: int) -> int:
    """Peak resident bytes of the conversion: fixed, whatever the size of the model, but for its table of names and its tokenizer.

    A graph has its nodes in memory, and a torch program its weights, once in the module and once in what the exporter makes.
    """
    if is_graph(checkpoint):
        return _graph_ram(checkpoint)
    largest = max((4 * math.prod(t.shape) for t in checkpoint.tensors.values()), default=0)
    per_stripe = min(STRIPE_BYTES, largest)
    return int(
        BASE_RSS
        + FORMAT_RSS.get(checkpoint.format, 0)
        + TENSOR_RSS * len(checkpoint.tensors)
        + SIDE_COPIES.get(checkpoint.format, SIDE_COPIES_READ) * side_bytes
        + STRIPE_COPIES.get(precision, STRIPE_COPIES["fp32"]) * per_stripe
    )


def _graph_ram(source: GraphSource) -> int:
    nodes = sum(1 for _ in source.graph().model.graph.all_nodes())
    parameters = int(source.accounting()["parameters"])
    if source.format == "onnx":
        return GRAPH_BASE_RSS + NODE_RSS * nodes + int(STRIPE_COPIES["fp32"] * min(STRIPE_BYTES, 4 * parameters))
    return TORCH_BASE_RSS + NODE_RSS * nodes + TORCH_COPIES * 4 * parameters


def plan(
    source: Any, target: str = "cpu", precision: str | None = None, *, weights: str = "link", **options: Any
) -> dict[str, Any]:
    """Forecast a conversion.

    source:  as `porting.convert` takes it; a torch program has to be exported for it, everything else is read from headers alone
    options: of `open_source`
    returns: a JSON-able object: peak_ram_bytes, written_bytes, linked_bytes, seconds, weights_bytes, cards_at_least (None when the memory of the
             target is not known), notes
    raises:  as `convert` does for a checkpoint that it would refuse
    """
    wanted = find_target(target)
    if weights not in ("link", "copy"):
        raise UsageError(f"unknown way to keep weights: {weights!r}", where="--weights", next="known: link, copy")
    with opened(source, **options) as found:
        canonical = canonical_graph(found)
        if is_graph(found):
            return _plan(canonical, wanted, precision_of(canonical, wanted, precision), weights, 0)
        stored = {t.dtype for t in found.tensors.values()}
        chosen = stored_precision(stored) if precision == "source" else precision or "fp32"
        if chosen not in PRECISION_NAMES:
            raise UsageError(
                f"no forecast for precision {chosen!r}", where="--precision", next=nearest(chosen, PRECISION_NAMES)
            )
        return _plan(canonical, wanted, chosen, weights, sum(map(len, found.side_files().values())))


def _plan(canonical: Canonical, wanted: Target, chosen: str, weights: str, side_bytes: int) -> dict[str, Any]:
    from porting.converters.passes.tables import lower

    source, notes = canonical.source, list(wanted.notes)
    if is_graph(source):
        size = fp32_bytes = _graph_bytes(canonical.graph)
    else:
        size, fp32_bytes = weight_bytes(source, chosen), weight_bytes(source, "fp32")
    if wanted.kind != ASCEND and (is_graph(source) or chosen in wanted.precisions):
        target_graph, _ = lower(canonical.graph, wanted.kind, chosen)
        layout = _layout(target_graph, kept_weights(source, weights))
        linked, written = layout.linked_bytes, layout.size + len(serialised(target_graph, layout)) + side_bytes
        if layout.links:
            notes.append("linked bytes need a port on the source's file system; elsewhere they are copied")
    else:
        notes.append(f"{wanted.name} is not written in {chosen} by this version: the figures are those of the weights alone")
        linked, written = 0, size + side_bytes
    return {
        "schema": SCHEMA,
        "source": source.path.name,
        "target": wanted.name,
        "precision": chosen,
        "weights_bytes": size,
        "linked_bytes": linked,
        "written_bytes": written,
        "peak_ram_bytes": forecast_ram(source, chosen, side_bytes),
        "seconds": _seconds(fp32_bytes, chosen, linked),
        "cards_at_least": None if wanted.memory is None else max(1, math.ceil(size / wanted.memory)),
        "device_memory_bytes": wanted.memory,
        "notes": notes,
    }


def _graph_bytes(graph: Graph) -> int:
    """Bytes of a graph's weights, in the dtypes that they have."""
    bodies = (graph.model.graph, *graph.model.graph.subgraphs())
    return sum(v.const_value.nbytes for body in bodies for v in body.initializers.values() if v.const_value is not None)


def _layout(graph: Graph, weights: str) -> Layout:
    """Where `convert` would put every weight, all links being possible."""
    streams = {id(s): s for value in graph.model.graph.initializers.values() if (s := _stream(value.const_value)) is not None}
    used = Counter[Path]()
    for s in streams.values():
        if s.stored is not None and weights == "link":
            used[s.stored.file] += s.stored.nbytes
    links = {file: file.name for file, nbytes in used.items() if not not_worth_linking(file, nbytes)}
    linked = [s for s in streams.values() if s.stored is not None and s.stored.file in links]
    rest = [s for s in streams.values() if s.stored is None or s.stored.file not in links]
    size = sum(nbytes_of(spec) for stream in rest for spec in stream.outputs)
    return Layout(links, linked, [(stream, (0,) * len(stream.outputs)) for stream in rest], size, {})


def _stream(tensor: Any) -> Any:
    found = stream_of(tensor)
    return found[0] if found else None


def _seconds(nbytes: int, precision: str, linked: int) -> float:
    rate = WRITTEN_PER_SECOND.get(precision, WRITTEN_PER_SECOND["fp32"])
    return round(BASE_SECONDS + linked / LINKED_PER_SECOND + max(0, nbytes - linked) / rate, 1)
