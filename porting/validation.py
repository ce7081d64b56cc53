"""Is a port right, and is it good? Two questions, never one for the other.

Fidelity: the target graph computes what its own precision should. The canonical fp32 graph is built again from what lies in the port (codes
dequantised by the operator's definition) and run beside it; fp32 ports are also held directly against the reference.
Quality:  what the precision costs against the reference's fp32: KL divergence and top-1 agreement, with limits from a table.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from porting.conversion import canonical_graph
from porting.converters.checkpoints.port import PortCheckpoint
from porting.devices import parse_device
from porting.errors import EvidenceUnavailable, InputError, UsageError
from porting.inputs import inputs_from_npz, language_model_inputs
from porting.numerics.bounds import UNIT_ROUNDOFF, Bound, activation_quantisation_bound, combined, rounding_bound
from porting.numerics.metrics import compare
from porting.numerics.quality import quality_limits
from porting.port_folder import EVIDENCE, MANIFEST, MODEL, Port, open_port
from porting.port_writer import Source, write_port
from porting.progress import silent
from porting.reference import GoldenReference, PortReference, Reference, UpstreamReference
from porting.session import Session, open_session
from porting.types import Checkpoint, Graph
from porting.verdict import EVIDENCE_LEVELS, Check, Verdict
from porting.weights import source_stream

GOLDEN_FILE = f"{EVIDENCE}/golden.json"
SIMULATED = ("null",)  # devices that compute nothing real
CANONICAL_DEVICE = "cpu,optimization=off"  # the graph as it is written, node by node
CHUNK = 8  # positions per run in the chunked mode
# Rounding to nearest leaves half a step. Decoding in fp32, (code - zero) * scale, rounds twice, relative to up to 2 * 255 half steps.
HALF_STEP = 1 + 2 * 2 * 255 * UNIT_ROUNDOFF["float32"]
HALF_STEP_WHY = "plain weights bit-equal, codes within half a step and the decoding's own two roundings, 2 * 2 * 255 * 2^-24"


def validate(
    port: str | Path,
    against: str | Path | None = None,
    device: str = "cpu",
    *,
    inputs: str | Path | None = None,
    require_level: str = "static",
    progress: Any = silent,
) -> Verdict:
    """Compare a port with a reference on a device.

    against:       a checkpoint (run by the upstream implementation), a golden, or another port (reference "self": never a pass);
                   the golden in the port's own evidence when left out
    inputs:        .npz of token ids instead of the built-in texts; not with a golden, which has its own
    require_level: the weakest evidence level that counts
    raises:        PortError, InputError, DeviceUnavailable, EvidenceUnavailable
    """
    opened = open_port(port)
    reference = reference_for(opened, against, device, inputs)
    source = reference.checkpoint if isinstance(reference, UpstreamReference) else None
    return judge(opened, reference, device, source=source, require_level=require_level, progress=progress)


def reference_for(port: Port, against: str | Path | None, device: str, inputs: str | Path | None) -> Reference:
    """The reference that `against` names. raises: EvidenceUnavailable, InputError, UsageError"""
    if against is None:
        own = port.path / GOLDEN_FILE
        if not own.is_file():
            raise EvidenceUnavailable(
                "nothing to compare with: the port carries no golden",
                where=str(port.path),
                next="--against its source (needs transformers) or --against a golden",
            )
        against = own
    path = Path(against)
    if not path.exists():
        raise InputError(f"no such checkpoint, port or golden: {path}", where="--against")
    if path.is_dir() and (path / MANIFEST).is_file():
        other = open_port(path)
        return PortReference(other, cases_for(other, inputs), device)
    if path.is_file() and path.suffix == ".json":
        if inputs is not None:
            raise UsageError("a golden has its own inputs", where="--inputs", next="leave --inputs out")
        return GoldenReference.load(path)
    from porting.converters.checkpoints.open import open_checkpoint

    return UpstreamReference(open_checkpoint(path), cases_for(port, inputs))


def cases_for(port: Port, inputs: str | Path | None) -> dict[str, np.ndarray]:
    """Case name -> (batch, sequence) int64 token ids: the user's, or the built-in texts in the port's tokenizer."""
    config = port.manifest["config"]
    if inputs is not None:
        return inputs_from_npz(inputs, config)
    return language_model_inputs(config, port.side_file("tokenizer.json"))


def judge(
    port: Port,
    reference: Reference,
    device: str,
    *,
    source: Checkpoint | None = None,
    command: str = "validate",
    require_level: str = "static",
    progress: Any = silent,
) -> Verdict:
    """Run every check of a port against an open reference.

    source: the checkpoint, where it is at hand: its weights are then compared with the port's, and its fp32 graph with the reference
    """
    start = time.perf_counter()
    require_evidence(device, require_level)
    require_same_model(port, reference)
    cases = reference.cases
    bound = fidelity_bound(port)
    with progress("validate", 4 if source is None else 5, unit="steps") as advance:
        checks = [] if source is None else source_checks(port, reference, source)
        advance(0 if source is None else 1)
        with open_session(port.program(), device) as session:
            checks.append(placement_check(session, device))
            logits = {name: session.run({"input_ids": ids})["logits"] for name, ids in cases.items()}
            advance(1)
            stepwise = {name: run_in_chunks(session, ids) for name, ids in cases.items()}
            advance(1)
        held = PortCheckpoint(port)
        with running(canonical_graph(held).graph, held) as canonical:
            own = {name: canonical.run({"input_ids": ids})["logits"] for name, ids in cases.items()}
        advance(1)
        checks += [
            fidelity_check("fidelity", own, logits, bound, "against the canonical fp32 graph of the port's own weights"),
            fidelity_check("chunked run", logits, stepwise, bound, "the same ids in chunks and singly, against all at once"),
            *reference_checks(port, reference, logits),
        ]
        advance(1)
    return Verdict.from_checks(
        command,
        checks,
        evidence_level=evidence_level(device),
        reference=reference.kind,
        source=port.path.name,
        target=port.manifest["target"],
        device=device,
        seconds=round(time.perf_counter() - start, 3),
        details={
            "compared_with": reference.description,
            "fidelity_bound": bound.derivation,
            "port_sha256": port.identity(),
            "positions": int(sum(ids.size for ids in cases.values())),
            "precision": port.precision,
        },
    )


def evidence_level(device: str) -> str:
    """What running on a device shows."""
    return "simulated" if parse_device(device).name in SIMULATED else "hardware"


def require_evidence(device: str, level: str) -> None:
    """Whether running on `device` gives evidence of at least `level`. raises: EvidenceUnavailable"""
    got = evidence_level(device)
    if EVIDENCE_LEVELS.index(got) < EVIDENCE_LEVELS.index(level):
        raise EvidenceUnavailable(
            f"{device} gives {got} evidence, {level} is required", where="--require-level", next="run on the device itself"
        )


def require_same_model(port: Port, reference: Reference) -> None:
    """A golden or a port of another model is refused before anything runs. raises: InputError"""
    if reference.architecture != port.manifest["architecture"]:
        raise InputError(
            f"the port is a {port.manifest['architecture']}, the reference a {reference.architecture}",
            where=reference.description,
            next="validate against the port's own source or golden",
        )
    vocab = int(port.manifest["config"]["vocab_size"])
    for name, ids in reference.cases.items():
        if ids.ndim != 2 or ids.dtype != np.int64 or ids.min() < 0 or ids.max() >= vocab:
            raise InputError(f"case {name!r} does not fit the port's vocabulary of {vocab}", where=reference.description)


def placement_check(session: Session, device: str) -> Check:
    """The device asked for is the device that ran."""
    wanted = session.device.name
    elsewhere = {n: d for n, d in session.placement.items() if d.partition(":")[0] != wanted}
    where = (
        f"{next(iter(elsewhere))} on {next(iter(elsewhere.values()))}"
        if elsewhere
        else f"{len(session.placement)} nodes on {wanted}"
    )
    return Check.equal("nodes on another device", len(elsewhere), 0, where)


def run_in_chunks(session: Session, ids: np.ndarray) -> np.ndarray:
    """Logits of the same ids in chunks of CHUNK for the first half, singly after: what generation does. Row by row."""
    rows = []
    for row in ids:
        state = session.new_state(len(row))
        half = max(CHUNK, len(row) // 2)
        cuts = [*range(0, min(half, len(row)), CHUNK), *range(half, len(row))]
        parts = [
            session.run({"input_ids": np.ascontiguousarray(row[None, a:b])}, state)["logits"]
            for a, b in zip(cuts, [*cuts[1:], len(row)], strict=True)
        ]
        rows.append(np.concatenate(parts, axis=1))
    return np.concatenate(rows)


def fidelity_check(
    name: str, reference: Mapping[str, np.ndarray], candidate: Mapping[str, np.ndarray], bound: Bound, detail: str
) -> Check:
    """The worst case's relative L2 error, with the place of its largest difference."""
    found = {case: compare(reference[case], candidate[case], name=f"{case}/logits") for case in reference}
    worst = max(found, key=lambda case: _badness(found[case].rel_l2))
    where = found[worst].where(f"{worst}/logits")
    return Check.at_most(
        f"{name}: relative error of logits", found[worst].rel_l2, bound.value, where, f"{detail}. {bound.derivation}"
    )


def reference_checks(port: Port, reference: Reference, logits: Mapping[str, np.ndarray]) -> list[Check]:
    """Quality against the reference, and for fp32 ports fidelity against it directly."""
    found = {case: reference.compare(case, logits[case]) for case in reference.cases}
    positions = sum(len(c.kl) for c in found.values())
    kl = np.concatenate([c.kl for c in found.values()])
    agreement = sum(c.agree for c in found.values()) / positions
    limits = quality_limits(port.precision, parameters=parameter_count(port))
    worst = max(found, key=lambda case: _badness(float(found[case].kl.mean())))
    exact = "" if reference.kl_is_exact else " (lower bound from the golden's top tokens)"
    checks = [
        Check.at_most(
            f"quality: mean KL divergence, nats{exact}",
            float(kl.mean()),
            limits.mean_kl,
            f"worst case {worst}",
            limits.derivation,
        ),
        Check.at_least(
            "quality: top-1 agreement",
            agreement,
            limits.agreement_floor(positions),
            f"{positions} positions",
            limits.derivation,
        ),
    ]
    if port.precision == "fp32":
        checks.append(against_reference("fidelity to the reference", found, fidelity_bound(port)))
    return checks


def against_reference(name: str, found: Mapping[str, Any], bound: Bound) -> Check:
    """The worst case's relative L2 error against the reference."""
    worst = max(found, key=lambda case: _badness(found[case].rel_l2))
    return Check.at_most(
        f"{name}: relative error of logits", found[worst].rel_l2, bound.value, f"case {worst}", bound.derivation
    )


def source_checks(port: Port, reference: Reference, source: Checkpoint) -> list[Check]:
    """With the source at hand: the port holds its weights, and the fp32 graph that is built from it is the reference's."""
    checks = [weights_check(port, source)]
    if port.precision != "fp32":  # an fp32 port is held against the reference itself
        with running(canonical_graph(source).graph, source) as session:
            found = {
                case: reference.compare(case, session.run({"input_ids": ids})["logits"])
                for case, ids in reference.cases.items()
            }
        checks.append(against_reference("source in fp32 to the reference", found, fidelity_bound(port, precision="fp32")))
    return checks


def weights_check(port: Port, source: Checkpoint) -> Check:
    """Every weight in the port is the source's, or the nearest that its codes can say. Streamed."""
    held = PortCheckpoint(port)
    errors = {name: held.error_in_half_steps(name, source_stream(source, name)) for name in port.manifest["tensors"]["used"]}
    off = [name for name, error in errors.items() if _badness(error) > HALF_STEP]
    where = f"{off[0]}: {errors[off[0]]:.3g} half steps" if off else f"{len(errors)} tensors"
    return Check.equal("weights that are not the source's, rounded to nearest", len(off), 0, where, HALF_STEP_WHY)


@contextmanager
def running(graph: Graph, checkpoint: Checkpoint) -> Iterator[Session]:
    """A canonical graph as a port in a temporary folder, open on CANONICAL_DEVICE."""
    described: dict[str, Any] = {"kind": "canonical", "architecture": "", "target": "cpu", "precision": "fp32"}
    described |= {"config": {}, "tensors": {}, "passes": [], "min_runtime": {}}
    with tempfile.TemporaryDirectory(prefix="porting-") as folder:
        port = write_port(graph, Path(folder) / "canonical", described, Source(checkpoint.format, tuple(checkpoint.files)))
        with open_session(port.program(), CANONICAL_DEVICE) as session:
            yield session


def fidelity_bound(port: Port, precision: str | None = None) -> Bound:
    """What the roundings of a precision amount to in this port's graph, relative L2 of the logits."""
    lengths, blocks = products(port)
    layers = int(port.manifest["config"]["num_hidden_layers"])
    rounding = rounding_bound(lengths[:-1], UNIT_ROUNDOFF["float32"], residual_blocks=2 * layers, final=lengths[-1:])
    if (precision or port.precision) == "fp32" or not blocks:
        return rounding
    activations = activation_quantisation_bound(len(lengths) - 1, min(blocks), residual_blocks=2 * layers, final=1)
    return combined(rounding, activations)


def products(port: Port) -> tuple[list[int], set[int]]:
    """Lengths of the inner products of every linear layer in graph order, the head last, and the block sizes of quantised ones."""
    import onnx_ir as ir

    lengths, blocks = [], set()
    for node in ir.load(port.path / MODEL).graph:
        if node.op_type == "MatMulNBits":
            lengths.append(node.attributes["K"].as_int())
            blocks.add(node.attributes["block_size"].as_int())
        elif node.op_type == "FusedMatMul" and node.inputs[1] is not None and node.inputs[1].shape is not None:
            lengths.append(node.inputs[1].shape.numpy()[1])
    return lengths, blocks


def parameter_count(port: Port) -> int:
    """Parameters of the model, as the tensor accounting of the port counts them."""
    return int(port.manifest["tensors"]["parameters"])


def _badness(value: float) -> float:
    return float("inf") if value != value else value  # NaN is the worst of all
