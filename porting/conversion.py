"""checkpoint -> canonical graph -> target graph -> port."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from porting.errors import CheckpointError, OutOfResources, UnsupportedModel, nearest
from porting.port_folder import Port
from porting.port_writer import Source, require_free, write_port
from porting.progress import silent
from porting.registry import ARCHITECTURE_GROUP, load_architecture, names
from porting.targets import find_target, resolve_precision
from porting.types import Checkpoint, Graph

KIND = "causal-lm"
# onnxruntime 1.28 is the first whose Attention aligns the causal mask of a padded cache rightly; older ones also lack TensorScatter
MIN_RUNTIME = {"onnxruntime": "1.28"}


@dataclass(frozen=True)
class Canonical:
    """A checkpoint as a canonical graph.

    tensors: the accounting, {"used": [...], "dropped": [{"name", "reason"}]}
    """

    graph: Graph
    architecture: str
    checkpoint: Checkpoint
    tensors: Mapping[str, Any]


def architecture_of(checkpoint: Checkpoint) -> str:
    """The one name in config.json's `architectures`. raises: CheckpointError, UnsupportedModel"""
    listed = checkpoint.config.get("architectures")
    if not isinstance(listed, list) or not listed or not all(isinstance(n, str) for n in listed):
        raise CheckpointError(
            f"config.json should name its architecture in `architectures`, got {listed!r}", where=str(checkpoint.path.name)
        )
    if len(listed) != 1:
        raise UnsupportedModel(f"config.json names several architectures: {', '.join(listed)}", where=str(checkpoint.path.name))
    return listed[0]


def canonical_graph(checkpoint: Checkpoint) -> Canonical:
    """Build the canonical graph straight from the files: no torch, no weight is read.

    raises: UnsupportedModel (architecture or config key), CheckpointError (missing, misshapen or left-over tensors, all named)
    """
    from porting.converters.accounting import Weights

    name = architecture_of(checkpoint)
    module = load_architecture(name)
    if module is None:
        known = names(ARCHITECTURE_GROUP)
        raise UnsupportedModel(f"architecture {name!r} is not covered", where="config.json", next=nearest(name, known))
    weights = Weights(checkpoint, getattr(module, "DROPPABLE", {}))
    graph = module.build(checkpoint.config, weights)
    return Canonical(graph, name, checkpoint, weights.finish())


def convert(
    source: str | Path,
    output: str | Path,
    target: str = "cpu",
    precision: str | None = None,
    *,
    weights: str = "link",
    max_ram: int | None = None,
    force: bool = False,
    resume: bool = False,
    stop_after: str | None = None,
    progress: Any = silent,
) -> Port:
    """Convert a checkpoint into a port. Nothing is compared here: `validate` does that.

    source:     a Hugging Face folder or a GGUF file
    precision:  "fp32", "int8", "int4" (weights), or "source"
    weights:    "link" or "copy"
    max_ram:    bytes; refused before anything is written when the forecast is higher
    resume:     go on where a killed run stopped; the result has identical bytes
    stop_after: end with this pass, to bisect a wrong answer
    raises:     PortingError with the exit code of the command
    """
    from porting.converters.checkpoints.open import open_checkpoint
    from porting.converters.passes.tables import lower

    wanted = find_target(target)
    destination = Path(output)
    require_free(destination, force)
    checkpoint = open_checkpoint(source)
    canonical = canonical_graph(checkpoint)
    chosen = resolve_precision(wanted, precision, {t.dtype for t in checkpoint.tensors.values()})
    side = dict(checkpoint.side_files())
    if max_ram is not None:
        require_ram(canonical, chosen, max_ram, sum(map(len, side.values())))
    graph, applied = lower(canonical.graph, wanted.kind, chosen, stop_after)
    manifest = {
        "kind": KIND,
        "architecture": canonical.architecture,
        "config": dict(checkpoint.config),
        "target": wanted.name,
        "precision": chosen,
        "tensors": canonical.tensors,
        "passes": applied,
        "min_runtime": MIN_RUNTIME,
    }
    files = Source(checkpoint.format, tuple(checkpoint.files), side)
    return write_port(graph, destination, manifest, files, weights=weights, force=force, resume=resume, progress=progress)


def require_ram(canonical: Canonical, precision: str, limit: int, side_bytes: int) -> None:
    """Refuse a conversion whose forecast is above `limit` bytes. raises: OutOfResources"""
    from porting.forecast import forecast_ram

    needed = forecast_ram(canonical.checkpoint, precision, side_bytes)
    if needed > limit:
        raise OutOfResources(
            f"the conversion is forecast to need {needed / 2**20:.0f} MiB of memory, {limit / 2**20:.0f} MiB are allowed",
            where="--max-ram",
            next="allow more; `porting plan` shows the forecast",
        )
