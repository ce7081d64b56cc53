"""Is the port of an encoder right, and is it good? Two questions, never one for the other.

fp32:       every output against the reference's, held to measured roundings: graph_validation.py.
quantised:  fidelity, the port's graph against the canonical fp32 graph of its own weights, with float activations and with rounded ones;
            the source's fp32 graph against the reference; and quality, how far the vectors turn away from the reference's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from porting.conversion import W8A8, Canonical
from porting.converters.checkpoints.port import PortCheckpoint
from porting.encoder_reference import EncoderReference, cases_in_gears, encoder_cases
from porting.errors import InputError
from porting.evidence import evidence_level, placement_check
from porting.feeds import Cases
from porting.fidelity import (
    badness,
    canonical_session,
    fidelity_bounds,
    fidelity_check,
    float_session,
    rounding,
    rounds_activations,
)
from porting.gear_runs import Gear
from porting.golden_file import ModelIdentity
from porting.graph_golden import GoldenGraphReference, GraphGolden, golden_of_graph
from porting.graph_golden_parts import ExpectedSketch
from porting.graph_reference import ExpectedArray, GraphReference, OriginalReference, Recorded, measure_noise
from porting.graph_validation import judge_graph
from porting.identity import config_hash, require_same_facts
from porting.language_validation import parameter_count, weights_check
from porting.numerics.embedding_quality import cosine_distance, embedding_limit, mean_distance
from porting.numerics.quality import kl_divergence, quality_limits
from porting.numerics.sketch import Interval, estimate_difference
from porting.port_folder import Port
from porting.port_original import PortOriginal
from porting.progress import silent
from porting.recording import tool_versions
from porting.session import Session, open_session
from porting.types import Checkpoint
from porting.verdict import Check, Verdict

LOGITS = "logits"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
Outputs = dict[str, dict[str, np.ndarray]]  # output name -> case -> array


class EncoderJudgement:
    """transformers' encoder with batches of texts, or a golden of it.

    source: the checkpoint, where it is at hand
    """

    def __init__(
        self, reference: GraphReference, cases: Cases, source: Checkpoint | None, architecture: str, config: Mapping[str, Any]
    ) -> None:
        self.reference = reference
        self.cases = cases
        self.source = source
        self.description = reference.description
        self._architecture, self._config = architecture, config

    @property
    def case_feeds(self) -> Mapping[str, Any]:
        return self.cases.feeds

    def require_model(self, architecture: str, config: Mapping[str, Any]) -> None:
        """raises: InputError for another model than the reference's own"""
        if isinstance(self.reference, GoldenGraphReference):
            self.reference.golden.require_model(ModelIdentity(architecture, config_hash(config), {}))
            return
        if architecture != self._architecture:
            raise InputError(
                f"the port is a {architecture}, the reference a {self._architecture}",
                where=self.description,
                next="validate against the port's own source or golden",
            )
        require_same_facts(config, self._config, self.description)

    def prepare(self) -> None:
        self.reference.prepare()
        if self.source is not None and any(one.noise is None for one in self.reference.recorded):
            with canonical_session(self.source) as session:
                assert isinstance(session.program.model, Path)
                measure_noise(self.reference.recorded, session.program.model, ())

    def judge(
        self, port: Port, device: str, *, command: str = "validate", progress: Any = silent, more: Sequence[Check] = ()
    ) -> Verdict:
        """raises: InputError (another model, inputs that show nothing), DeviceUnavailable"""
        self.require_model(str(port.manifest["architecture"]), port.manifest["config"])
        if port.precision == W8A8:
            from porting.ascend.w8a8_validation import judge_w8a8

            return judge_w8a8(port, self.reference, device, command=command, progress=progress, more=more)
        checks = [*([] if self.source is None else [weights_check(port, self.source)]), *more]
        if port.precision == "fp32":
            return judge_graph(port, self.reference, device, command=command, progress=progress, more=checks)
        return judge_quantised(port, self, device, checks, command=command, progress=progress)

    def golden(self, identity: ModelIdentity, device: str = "cpu") -> GraphGolden:
        """What the reference computed, or the golden that it came from."""
        return golden_of_graph(self.reference, self.cases.feeds, {}, identity, tool_versions(), "fp32", device)


def judgement_of_encoder(
    canonical: Canonical, source: Checkpoint, inputs: Sequence[Path], gears: Sequence[Gear] = ()
) -> EncoderJudgement:
    """transformers' own class. raises: EvidenceUnavailable, InputError"""
    names = [value.name for value in canonical.graph.model.graph.inputs]
    cases = _cases(source.config, source.side_files(), inputs, names, gears)
    reference = OriginalReference(lambda: EncoderReference(source), cases, (), (), description=_description(source))
    return EncoderJudgement(reference, cases, source, canonical.architecture, canonical.config)


def judgement_of_encoder_golden(path: Path, source: Checkpoint | None) -> EncoderJudgement:
    """What was recorded. raises: InputError"""
    golden = GraphGolden.load(path)
    return EncoderJudgement(GoldenGraphReference(golden, path.name), Cases(golden.cases), source, golden.model.architecture, {})


def judgement_of_encoder_port(port: Port, inputs: Sequence[Path], device: str) -> EncoderJudgement:
    """Another port, or one to be recorded. raises: InputError, DeviceUnavailable"""
    config, side = port.manifest["config"], {n: c for n in TOKENIZER_FILES if (c := port.side_file(n)) is not None}
    program = port.program()
    cases = _cases(config, side, inputs, [spec.name for spec in program.inputs], program.gears)
    reference = OriginalReference(lambda: PortOriginal(port, device), cases, (), (), kind="self")
    return EncoderJudgement(reference, cases, None, str(port.manifest["architecture"]), config)


def _cases(
    config: Mapping[str, Any],
    side: Mapping[str, bytes],
    inputs: Sequence[Path],
    names: Sequence[str | None],
    gears: Sequence[Gear],
) -> Cases:
    """raises: InputError"""
    padding = config.get("pad_token_id")
    found = cases_in_gears(encoder_cases(config, side, inputs), gears, padding if isinstance(padding, int) else 0)
    return Cases({name: _complete(feeds, names) for name, feeds in found.items()})


def _description(source: Checkpoint) -> str:
    from porting.conversion import architecture_of
    from porting.upstream import upstream_version

    return f"transformers {upstream_version()}, {architecture_of(source)}, fp32 on the CPU"


def _complete(feeds: Mapping[str, np.ndarray], names: Sequence[str | None]) -> dict[str, np.ndarray]:
    """Every input of the graph, its defaults written out: the runs that measure noise have no session that fills them in."""
    ids = feeds["input_ids"]
    defaults = {"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {**{n: defaults[n] for n in names if n in defaults}, **feeds}


def judge_quantised(
    port: Port,
    judgement: EncoderJudgement,
    device: str,
    of_weights: Sequence[Check],
    *,
    command: str,
    progress: Any = silent,
) -> Verdict:
    """Fidelity and quality of an int8 or int4 port. raises: InputError, DeviceUnavailable"""
    start = time.perf_counter()
    cases = judgement.cases.feeds
    positions = max(feeds["input_ids"].shape[1] for feeds in cases.values())
    with progress("validate", 4, unit="steps") as advance:
        judgement.prepare()
        checks = [*of_weights, *_source_checks(port, judgement, positions)]
        advance(1)
        with canonical_session(PortCheckpoint(port)) as canonical:
            own = _outputs(canonical, cases)
        advance(1)
        with open_session(port.program(), device) as session:
            checks.append(placement_check(session))
            found, ran_on = _outputs(session, cases), str(session.device)
        advance(1)
        detail = "against the canonical fp32 graph of the port's own weights"
        if rounds_activations(port):
            with float_session(port) as session:
                plain = _outputs(session, cases)
            checks += [
                fidelity_check("fidelity, float activations", own[o], plain[o], rounding(port, positions), detail, o)
                for o in own
            ]
        bounds = fidelity_bounds(port, positions, partial(_outputs, cases=cases), own)
        checks += [fidelity_check("fidelity", own[o], found[o], bounds[o], detail, o) for o in own]
        checks += _quality_checks(port, judgement.reference.recorded, found)
        advance(1)
    return Verdict.from_checks(
        command,
        checks,
        evidence_level=evidence_level(device, port.manifest["target"]),
        reference=judgement.reference.kind,
        source=port.path.name,
        target=port.manifest["target"],
        device=ran_on,
        seconds=round(time.perf_counter() - start, 3),
        details={
            "device_asked_for": device,
            "compared_with": judgement.reference.description,
            "longest_case": positions,
            "port_sha256": port.identity(),
            "precision": port.precision,
            **{"not_reached": [], **judgement.reference.details},
        },
    )


def _outputs(session: Session, cases: Mapping[str, Mapping[str, np.ndarray]]) -> Outputs:
    found: Outputs = {}
    for case, feeds in cases.items():
        for name, array in session.run(feeds).items():
            found.setdefault(name, {})[case] = array
    return found


def _source_checks(port: Port, judgement: EncoderJudgement, positions: int) -> list[Check]:
    """With the source at hand: the fp32 graph that is built from it is the reference's."""
    if judgement.source is None:
        return []
    with canonical_session(judgement.source) as session:
        found = _outputs(session, judgement.cases.feeds)
    bound = rounding(port, positions)
    checks = []
    for output, by_case in found.items():
        errors = {}
        for case, array in by_case.items():
            expected = _expected(judgement.reference.recorded, case)[output]
            difference = expected.compare(f"{case}/{output}", array)
            if difference.problem:
                errors[difference.problem] = Interval(math.nan, math.nan)
            elif isinstance(expected, ExpectedSketch):
                estimate = estimate_difference(expected.kept, array)
                errors[difference.where] = Interval(estimate.rel_l2_low, estimate.rel_l2_high)
            else:
                errors[difference.where] = Interval(difference.value, difference.value)
        worst = max(errors, key=lambda where: badness(errors[where].high))
        name = f"source in fp32 to the reference: relative error of {output}"
        checks.append(interval_check(name, errors[worst], bound.value, worst, bound.derivation))
    return checks


def _expected(recorded: Sequence[Recorded], case: str) -> Mapping[str, Any]:
    return next(one.steps[0] for one in recorded if one.run.name == case)


def interval_check(name: str, found: Interval, bound: float, where: str, detail: str) -> Check:
    """Passes when the upper end is within the bound, fails when the lower end is not, and is undecided in between."""
    if not found.low <= bound < found.high:
        return Check.at_most(name, found.low if found.low > bound else found.high, bound, where, detail)
    why = (
        f"a golden tells {found.low:.3g} to {found.high:.3g} (95 % confidence), on both sides of the bound; "
        "validate against the source, which shows the exact number"
    )
    return Check(name, "error", None, bound, where, f"{why}. {detail}")


def _quality_checks(port: Port, recorded: Sequence[Recorded], found: Outputs) -> list[Check]:
    """How far vectors turn away from the reference's, of tokens that are shown, and what the logits of a masked model lose."""
    checks = []
    layers = int(port.manifest["config"]["num_hidden_layers"])
    limit = embedding_limit(port.precision, layers)
    for output, by_case in found.items():
        distances, divergences, estimates = [], [], []
        for case, array in by_case.items():
            one = next(r for r in recorded if r.run.name == case)
            expected = one.steps[0][output]
            shown = one.run.steps[0]["attention_mask"].astype(bool)
            if isinstance(expected, ExpectedSketch):
                estimates.append(estimate_difference(expected.kept, array))
            elif not isinstance(expected, ExpectedArray):
                raise InputError(f"no vectors were recorded of {output}", where=case, next="record the golden again")
            elif output == LOGITS:
                divergences.append(kl_divergence(expected.array, array).reshape(shown.shape)[shown])
            else:
                distances.append(cosine_distance(expected.array, array, shown if array.ndim == 3 else None))
        where = f"{len(by_case)} cases"
        if estimates:
            title = f"quality: mean cosine distance of {output} (estimated from the golden)"
            checks.append(interval_check(title, mean_distance(estimates), limit.distance, where, limit.derivation))
        if distances:
            mean = float(np.concatenate(distances).mean())
            checks.append(
                Check.at_most(f"quality: mean cosine distance of {output}", mean, limit.distance, where, limit.derivation)
            )
        if divergences:
            bound = quality_limits(port.precision, parameters=parameter_count(port))
            mean = float(np.concatenate(divergences).mean())
            checks.append(Check.at_most("quality: mean KL divergence, nats", mean, bound.mean_kl, where, bound.derivation))
    return checks
