"""Is the port of a language model right, and is it good? Two questions, never one for the other.

Fidelity: the target graph computes what its own precision should, see fidelity.py; fp32 ports are also held directly against the reference.
Quality:  what the precision costs against the reference's fp32: KL divergence and top-1 agreement, with limits from a table.

What a vendor's compiler makes of an fp32 graph in fp16 or bf16 is that precision on its device: see compiled_precision.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from porting.compiled_precision import COMPILED, compiled_bounds, compiled_in, layers_beyond
from porting.conversion import canonical_graph
from porting.converters.checkpoints.port import PortCheckpoint
from porting.errors import InputError
from porting.evidence import evidence_level, placement_check
from porting.fidelity import (
    badness,
    canonical_session,
    fidelity_bound,
    fidelity_check,
    float_session,
    rounding,
    rounds_activations,
    run_in_chunks,
    run_whole,
)
from porting.gear_runs import buckets_of
from porting.golden import Golden, ModelIdentity
from porting.inputs import not_reached, require_cases
from porting.numerics.bounds import UNIT_ROUNDOFF, Bound
from porting.numerics.quality import quality_limits
from porting.port_folder import Port
from porting.progress import silent
from porting.reference import GoldenReference, PortReference, Reference, UpstreamReference
from porting.session import Session, open_session
from porting.types import Checkpoint
from porting.verdict import Check, Verdict
from porting.weights import source_stream

# Rounding to nearest leaves half a step. Decoding in fp32, (code - zero) * scale, rounds twice, relative to up to 2 * 255 half steps.
HALF_STEP = 1 + 2 * 2 * 255 * UNIT_ROUNDOFF["float32"]
HALF_STEP_WHY = "plain weights bit-equal, codes within half a step and the decoding's own two roundings, 2 * 2 * 255 * 2^-24"


class LanguageJudgement:
    """A reference with its token ids.

    source: the checkpoint, where it is at hand
    """

    def __init__(self, reference: Reference, source: Checkpoint | None = None) -> None:
        self.reference = reference
        self.source = source
        self.description = reference.description

    @property
    def case_feeds(self) -> Mapping[str, Any]:
        return self.reference.cases

    def require_model(self, architecture: str, config: Mapping[str, Any]) -> None:
        """raises: InputError for another model than the reference's own"""
        self.reference.require_model(architecture, config)

    def prepare(self) -> None:
        self.reference.prepare()

    def judge(
        self, port: Port, device: str, *, command: str = "validate", progress: Any = silent, more: Sequence[Check] = ()
    ) -> Verdict:
        """raises: InputError (another model, inputs that show nothing), DeviceUnavailable"""
        return judge(port, self.reference, device, source=self.source, command=command, progress=progress, more=more)

    def golden(self, identity: ModelIdentity, device: str = "cpu") -> Golden:
        """What the reference computed: recorded now, or the golden that it came from."""
        from porting.recording import golden_of

        if isinstance(self.reference, GoldenReference):
            return self.reference.golden
        assert isinstance(self.reference, (UpstreamReference, PortReference))
        precision = self.reference.port.precision if isinstance(self.reference, PortReference) else "fp32"
        return golden_of(self.reference, identity, precision, device)


def judge(
    port: Port,
    reference: Reference,
    device: str,
    *,
    source: Checkpoint | None = None,
    command: str = "validate",
    progress: Any = silent,
    more: Sequence[Check] = (),
) -> Verdict:
    """Run every check of a port against a reference.

    source: the checkpoint, where it is at hand: its weights are then compared with the port's, and its fp32 graph with the reference
    more:   checks of the same port that were made elsewhere
    """
    start = time.perf_counter()
    require_language_model(port)
    reference.require_model(str(port.manifest["architecture"]), port.manifest["config"])
    cases = reference.cases
    require_cases(cases, port.manifest["config"], reference.description)
    longest = max(ids.shape[1] for ids in cases.values())

    def run_cases(session: Session) -> dict[str, np.ndarray]:
        return {name: run_whole(session, ids) for name, ids in cases.items()}

    with progress("validate", 5, unit="steps") as advance:
        reference.prepare()  # first: upstream's model is gone again before anything else is loaded
        advance(1)
        checks = [] if source is None else source_checks(port, reference, source)
        advance(1)
        with canonical_session(PortCheckpoint(port)) as canonical:
            stateful = bool(canonical.program.state.pairs)
            own = run_cases(canonical)
        bound = as_compiled(port, device, fidelity_bound(port, longest, run_cases, own), cases)
        advance(1)
        with open_session(port.program(), device) as session:
            checks.append(placement_check(session))
            ran_on = str(session.device)
            logits = run_cases(session)
            advance(1)
            stepwise = {name: run_in_chunks(session, ids) for name, ids in cases.items()} if stateful else None
            bucketed = in_each_bucket(session, cases)
        if rounds_activations(port):
            checks += float_checks(port, own, cases, stateful)
        checks.append(
            fidelity_check("fidelity", own, logits, bound, "against the canonical fp32 graph of the port's own weights")
        )
        if stepwise is not None:
            checks.append(
                fidelity_check(
                    "chunked run", own, stepwise, bound, "in chunks and singly, against the canonical graph all at once"
                )
            )
        for name, found in bucketed.items():
            reference_logits = {case: own[case] for case in found}
            checks.append(fidelity_check(name, reference_logits, found, bound, "the prompt in pieces of this gear"))
        checks += reference_checks(port, reference, logits, bound, computed_in(port, device))
        checks += layers_beyond(port, device, checks, [{"input_ids": max(cases.values(), key=lambda ids: ids.shape[1])}])
        advance(1)
    return Verdict.from_checks(
        command,
        [*checks, *more],
        evidence_level=evidence_level(device, port.manifest["target"]),
        reference=reference.kind,
        source=port.path.name,
        target=port.manifest["target"],
        device=ran_on,
        seconds=round(time.perf_counter() - start, 3),
        details={
            "device_asked_for": device,
            "longest_case": longest,
            "not_reached": not_reached(port.manifest["config"], cases),
            "compared_with": reference.description,
            "fidelity_bound": bound.derivation,
            "port_sha256": port.identity(),
            "positions": int(sum(ids.size for ids in cases.values())),
            "precision": port.precision,
            "computed_in": computed_in(port, device),
        },
    )


def as_compiled(port: Port, device: str, bound: Bound, cases: Mapping[str, np.ndarray]) -> Bound:
    """The bound of the logits, or what the forecast allows them on a device that computes in a narrower format than the graph says."""
    allowed = compiled_bounds(port, device, [{"input_ids": ids} for ids in cases.values()]).get("logits", 0.0)
    if allowed <= bound.value:
        return bound
    return Bound(allowed, bound.derivation + COMPILED.format(compiled_in(port, device)))


def computed_in(port: Port, device: str) -> str:
    """The precision whose quality a run on this device has: the compiler's where it rounds what the port left in float32."""
    return (compiled_in(port, device) or port.precision) if port.precision == "fp32" else port.precision


def in_each_bucket(session: Session, cases: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The longest case in every gear for prompts: name of the check -> case -> logits. Empty for a port without gears."""
    name = max(cases, key=lambda case: cases[case].shape[1])
    longer = buckets_of(session.program)[1:]
    return {f"gear of {bucket} tokens": {name: run_whole(session, cases[name], (1, bucket))} for bucket in longer}


def require_language_model(port: Port) -> None:
    """Only what takes input_ids and gives logits can be held against a language model. raises: InputError"""
    program = port.program()
    inputs, outputs = [i.name for i in program.inputs], [o.name for o in program.outputs]
    if "input_ids" not in inputs or "logits" not in outputs:
        raise InputError(
            f"this port is no language model: inputs {inputs[:5]}, outputs {outputs[:5]}",
            where=str(port.path),
            next="validation needs input_ids and logits; `porting run` takes any port",
        )


def reference_checks(
    port: Port, reference: Reference, logits: Mapping[str, np.ndarray], bound: Bound, precision: str
) -> list[Check]:
    """Quality against the reference, and for fp32 ports fidelity against it directly.

    precision: that the logits were computed in
    """
    found = {case: reference.compare(case, logits[case]) for case in reference.cases}
    positions = sum(len(c.kl) for c in found.values())
    kl = np.concatenate([c.kl for c in found.values()])
    agreement = sum(c.agree for c in found.values()) / positions
    limits = quality_limits(precision, parameters=parameter_count(port))
    worst = max(found, key=lambda case: badness(float(found[case].kl.mean())))
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
        checks.append(against_reference("fidelity to the reference", found, bound))
    return checks


def against_reference(name: str, found: Mapping[str, Any], bound: Bound) -> Check:
    """The worst case's relative L2 error against the reference."""
    worst = max(found, key=lambda case: badness(found[case].rel_l2))
    return Check.at_most(
        f"{name}: relative error of logits", found[worst].rel_l2, bound.value, f"case {worst}", bound.derivation
    )


def float_checks(port: Port, own: Mapping[str, np.ndarray], cases: Mapping[str, np.ndarray], stateful: bool) -> list[Check]:
    """A port whose activations are rounded, without that noise: graph, codes and scales are right to fp32 rounding."""
    bound = rounding(port, max(ids.shape[1] for ids in cases.values()))
    detail = "the port's graph with float activations, against the canonical fp32 graph of its own weights"
    with float_session(port) as session:
        logits = {name: run_whole(session, ids) for name, ids in cases.items()}
        checks = [fidelity_check("fidelity, float activations", own, logits, bound, detail)]
        if stateful:
            longest = max(
                cases, key=lambda name: cases[name].shape[1]
            )  # one: every run decodes every weight, 0.2 s for SmolLM2
            stepwise = {longest: run_in_chunks(session, cases[longest][:1])}
            checks.append(
                fidelity_check("chunked run, float activations", {longest: own[longest][:1]}, stepwise, bound, detail)
            )
    return checks


def source_checks(port: Port, reference: Reference, source: Checkpoint) -> list[Check]:
    """With the source at hand: the port holds its weights, and the fp32 graph that is built from it is the reference's."""
    checks = [weights_check(port, source)]
    if port.precision != "fp32":  # an fp32 port is held against the reference itself
        with canonical_session(source) as session:
            found = {case: reference.compare(case, run_whole(session, ids)) for case, ids in reference.cases.items()}
        bound = rounding(port, max(ids.shape[1] for ids in reference.cases.values()))
        checks.append(against_reference("source in fp32 to the reference", found, bound))
    return checks


def weights_check(port: Port, source: Checkpoint) -> Check:
    """Every weight that the source's graph uses is in the port: the source's, or the nearest that its codes can say. Streamed."""
    held = PortCheckpoint(port)
    used = canonical_graph(source).tensors["used"]  # the source's own account, not the port's word for it
    errors = {name: held.error_in_half_steps(name, source_stream(source, name)) for name in used}
    off = [name for name, error in errors.items() if badness(error) > HALF_STEP]
    where = f"{off[0]}: {errors[off[0]]:.3g} half steps" if off else f"{len(errors)} tensors"
    return Check.equal("weights that are not the source's, rounded to nearest", len(off), 0, where, HALF_STEP_WHY)


def parameter_count(port: Port) -> int:
    """Parameters of the model, as the tensor accounting of the port counts them. raises: InputError"""
    count = port.manifest["tensors"].get("parameters")
    if type(count) is not int or count < 1:
        raise InputError(f"port.json says that the model has {count!r} parameters", where=str(port.path), next="convert again")
    return count
