"""The main job: checkpoint in; port, verdict and evidence out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from porting.conversion import architecture_of, canonical_graph, convert
from porting.devices import parse_device
from porting.errors import DeviceUnavailable, EvidenceUnavailable, InputError, UsageError
from porting.inputs import cases_of
from porting.junit import to_junit
from porting.port_folder import EVIDENCE, Port
from porting.port_staging import os_errors, write_synced
from porting.port_writer import require_free
from porting.progress import silent
from porting.recording import golden_of, identity_of
from porting.reference import GoldenReference, Reference, UpstreamReference
from porting.registry import load_backend
from porting.targets import find_target, resolve_precision
from porting.upstream import upstream_version
from porting.validation import judge
from porting.verdict import Verdict


def port(
    source: str | Path,
    output: str | Path,
    target: str = "cpu",
    precision: str | None = None,
    *,
    against: str | Path | None = None,
    device: str = "cpu",
    inputs: str | Path | None = None,
    weights: str = "link",
    force: bool = False,
    progress: Any = silent,
) -> Verdict:
    """Convert `source` into a port at `output`, compare it with a reference, and write the evidence into it.

    against: a golden; the upstream implementation (transformers) when left out
    returns: the verdict, also in the port's evidence/ as verdict.json and junit.xml; evidence/golden.json holds the reference
    raises:  what `convert` and `validate` raise; a missing device or reference is found before anything is written
    """
    from porting.converters.checkpoints.open import open_checkpoint

    start = time.perf_counter()
    find_target(target)
    require_free(Path(output), force)
    require_usable(device)
    checkpoint = open_checkpoint(source)
    canonical = canonical_graph(checkpoint)
    resolve_precision(find_target(target), precision, {t.dtype for t in checkpoint.tensors.values()})
    reference = _reference(checkpoint, against, inputs)
    reference.require_model(canonical.architecture, checkpoint.config)
    with progress(f"reference: {reference.description}", 1, unit="runs") as advance:
        reference.prepare()
        advance(1)
    made = convert(source, output, target, precision, weights=weights, force=force, progress=progress)
    verdict = judge(made, reference, device, source=checkpoint, command="port", progress=progress)
    details = {
        **verdict.details,
        "tensors_used": len(made.manifest["tensors"]["used"]),
        "tensors_dropped": made.manifest["tensors"]["dropped"],
        "total_seconds": round(time.perf_counter() - start, 3),
        "again": f"porting validate {made.path} --device {device}",
    }
    full = Verdict(**{**verdict.__dict__, "details": details})
    write_evidence(made, full, reference, checkpoint)
    return full


def require_usable(device: str) -> None:
    """Whether one of the devices asked for can run here. raises: DeviceUnavailable, UsageError"""
    wanted = parse_device(device)
    refused, next_step = [], ""
    for name in wanted.alternatives:
        available = load_backend(name).probe()
        if available.usable:
            return
        refused.append(f"{name}: {available.reason}")
        next_step = available.next
    raise DeviceUnavailable(
        f"device {device!r} is not available: {'; '.join(refused)}",
        where="probe",
        next=next_step or "`porting doctor` lists every device",
    )


def _reference(checkpoint: Any, against: str | Path | None, inputs: str | Path | None) -> Reference:
    if against is not None:
        path = Path(against)
        if not path.is_file():
            raise InputError(f"no such golden: {path}", where="--against", next="`porting record` makes one")
        if inputs is not None:
            raise UsageError("a golden has its own inputs", where="--inputs", next="leave --inputs out")
        return GoldenReference.load(path)
    if upstream_version() is None:
        raise EvidenceUnavailable(
            "the upstream implementation is not installed, and no golden was given: nothing could show that the port is right",
            where="reference",
            next='--against a golden, or pip install "porting[torch]"; `porting convert` converts without comparing',
        )
    return UpstreamReference(checkpoint, cases_of(checkpoint.config, checkpoint.side_files().get("tokenizer.json"), inputs))


def write_evidence(made: Port, verdict: Verdict, reference: Reference, checkpoint: Any) -> None:
    """verdict.json, junit.xml and the golden, into the port's evidence/."""
    folder = made.path / EVIDENCE
    with os_errors(folder):
        folder.mkdir(exist_ok=True)
        write_synced(folder / "junit.xml", to_junit(verdict))
        write_synced(folder / "verdict.json", f"{verdict.to_json()}\n".encode())
    if isinstance(reference, UpstreamReference):
        identity = identity_of(checkpoint, architecture_of(checkpoint))
        golden_of(reference, identity, "fp32", "cpu").save(folder / "golden.json")
    elif isinstance(reference, GoldenReference):
        reference.golden.save(folder / "golden.json")
