"""Goldens: recorded where the original is, validated where it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from porting.conversion import GRAPH, canonical_graph, graph_config
from porting.errors import UsageError
from porting.golden import Golden, GoldenCase, ModelIdentity
from porting.graph_golden import GraphGolden
from porting.identity import config_hash, graph_hash
from porting.inputs import paths_of
from porting.numerics.sketch import sketch
from porting.outputs import require_new_file
from porting.port_folder import MANIFEST, Port, open_port, sha256_of
from porting.port_sources import names_of
from porting.progress import silent
from porting.reference import PortReference, UpstreamReference
from porting.sources import opened
from porting.types import Checkpoint, GraphSource, is_graph

TOP_K = 64  # tokens kept per position: a golden of 128 positions stays near 100 kB
TOOLS = ("porting", "torch", "transformers", "onnxruntime", "numpy")
LEVELS = ("outputs",)


def record(
    source: Any,
    output: str | Path,
    *,
    device: str = "cpu",
    level: str = "outputs",
    inputs: str | Path | Sequence[str | Path] | None = None,
    force: bool = False,
    progress: Any = silent,
    **options: Any,
) -> Golden | GraphGolden:
    """Record what `source` computes on fixed inputs.

    source:  as `porting.convert` takes it, run by the upstream implementation in fp32, by plain onnxruntime or by torch, on the CPU;
             or a port, run on `device`
    level:   "outputs"
    inputs:  .npz files instead of the built-in inputs
    options: of `open_source`
    raises: UsageError (output exists, level), InputError, EvidenceUnavailable (transformers is missing)
    """
    destination = Path(output)
    require_new_file(destination, force)
    if level not in LEVELS:
        raise UsageError(f"no level {level!r}", where="--level", next=f"known: {', '.join(LEVELS)}")
    with progress("record", 1, unit="runs") as advance:
        if isinstance(source, (str, Path)) and (Path(source) / MANIFEST).is_file():
            golden: Golden | GraphGolden = _of_port(Path(source), device, paths_of(inputs))
        else:
            golden = _of_source(source, device, paths_of(inputs), options)
        advance(1)
    golden.save(destination)
    return golden


def golden_of(reference: UpstreamReference | PortReference, identity: ModelIdentity, precision: str, device: str) -> Golden:
    """The golden of a reference that has run."""
    cases = {
        name: GoldenCase({"input_ids": ids}, {"logits": sketch(reference.logits[name], top_k=TOP_K)})
        for name, ids in reference.cases.items()
    }
    return Golden(identity, tool_versions(), reference.description, precision, device, cases)


def identity_of(source: Checkpoint | GraphSource, architecture: str) -> ModelIdentity:
    """Which model it is: architecture, the facts of its config, and the hashes of its files."""
    facts = graph_hash(graph_config(source)) if is_graph(source) else config_hash(source.config)
    return ModelIdentity(architecture, facts, file_hashes(source.files))


def identity_of_port(port: Port) -> ModelIdentity:
    """The same of what a port was made from, as port.json has it."""
    m = port.manifest
    facts = graph_hash(m["config"]) if m["kind"] == GRAPH else config_hash(m["config"])
    return ModelIdentity(str(m["architecture"]), facts, {f["name"]: f["sha256"] for f in m["source"]["files"]})


def file_hashes(files: Sequence[Path]) -> dict[str, str]:
    """File name -> sha256."""
    return {name: sha256_of(path) for path, name in names_of(files).items()}


def tool_versions() -> dict[str, str]:
    """Versions of what had a hand in a recording, as far as it is installed."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _of_source(source: Any, device: str, inputs: Sequence[Path], options: Mapping[str, Any]) -> Golden | GraphGolden:
    from porting.judgement import judgement_of_source

    with opened(source, inputs=inputs, **options) as found:
        canonical = canonical_graph(found)  # a config that contradicts the tensors has no outputs worth recording
        judgement = judgement_of_source(canonical, inputs)
        if device != "cpu":
            raise UsageError(
                f"the original is recorded on the CPU ({judgement.description}), not on {device!r}", where="--device"
            )
        judgement.prepare()
        return judgement.golden(identity_of(found, canonical.architecture))


def _of_port(source: Path, device: str, inputs: Sequence[Path]) -> Golden | GraphGolden:
    from porting.judgement import judgement_of_port

    port = open_port(source)
    judgement = judgement_of_port(port, inputs, device)
    judgement.prepare()
    return judgement.golden(identity_of_port(port), device)
