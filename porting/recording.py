"""Goldens: recorded where the original is, validated where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from porting.conversion import canonical_graph
from porting.errors import UsageError
from porting.golden import Golden, GoldenCase, ModelIdentity
from porting.identity import config_hash
from porting.inputs import cases_of
from porting.numerics.sketch import sketch
from porting.outputs import require_new_file
from porting.port_folder import MANIFEST, open_port, sha256_of
from porting.progress import silent
from porting.reference import PortReference, UpstreamReference
from porting.types import Checkpoint

TOP_K = 64  # tokens kept per position: a golden of 128 positions stays near 100 kB
TOOLS = ("porting", "torch", "transformers", "onnxruntime", "numpy")
LEVELS = ("outputs",)


def record(
    source: str | Path,
    output: str | Path,
    *,
    device: str = "cpu",
    level: str = "outputs",
    inputs: str | Path | None = None,
    force: bool = False,
    progress: Any = silent,
) -> Golden:
    """Record what `source` computes on fixed inputs.

    source: a checkpoint, run by the upstream implementation in fp32 on the CPU, or a port, run on `device`
    level:  "outputs"
    inputs: .npz of token ids instead of the built-in texts
    raises: UsageError (output exists, level), InputError, EvidenceUnavailable (transformers is missing)
    """
    destination = Path(output)
    require_new_file(destination, force)
    if level not in LEVELS:
        raise UsageError(f"no level {level!r}", where="--level", next=f"known: {', '.join(LEVELS)}")
    with progress("record", 1, unit="runs") as advance:
        golden = (
            _of_port(Path(source), device, inputs)
            if (Path(source) / MANIFEST).is_file()
            else _of_checkpoint(source, device, inputs)
        )
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


def identity_of(checkpoint: Checkpoint, architecture: str) -> ModelIdentity:
    """Which model it is: architecture, the facts of its config, and the hashes of its files."""
    return ModelIdentity(architecture, config_hash(checkpoint.config), file_hashes(checkpoint.files))


def file_hashes(files: Sequence[Path]) -> dict[str, str]:
    """File name -> sha256."""
    return {path.name: sha256_of(path) for path in files}


def tool_versions() -> dict[str, str]:
    """Versions of what had a hand in a recording, as far as it is installed."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _of_checkpoint(source: str | Path, device: str, inputs: str | Path | None) -> Golden:
    from porting.converters.checkpoints.open import open_checkpoint

    if device != "cpu":
        raise UsageError(
            f"a checkpoint is recorded by the upstream implementation on the CPU, not on {device!r}", where="--device"
        )
    checkpoint = open_checkpoint(source)
    canonical_graph(checkpoint)  # a config that contradicts the tensors has no outputs worth recording
    reference = UpstreamReference(
        checkpoint, cases_of(checkpoint.config, checkpoint.side_files().get("tokenizer.json"), inputs)
    )
    return golden_of(reference, identity_of(checkpoint, reference.architecture), "fp32", "cpu")


def _of_port(source: Path, device: str, inputs: str | Path | None) -> Golden:
    port = open_port(source)
    config = port.manifest["config"]
    cases = cases_of(config, port.side_file("tokenizer.json"), inputs)
    identity = ModelIdentity(
        port.manifest["architecture"], config_hash(config), {f["name"]: f["sha256"] for f in port.manifest["source"]["files"]}
    )
    return golden_of(PortReference(port, cases, device), identity, port.precision, device)
