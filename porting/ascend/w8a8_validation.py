"""The verdict on a port in W8A8: its integers against the vendor's formulas, and its outputs against the float32 original's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from porting.ascend.calibration import Cases
from porting.ascend.graph_at_hand import at_hand
from porting.ascend.handoff import handoffs_of
from porting.ascend.w8a8 import Quantised
from porting.ascend.w8a8_checks import FIDELITY, LAYER_NOISE, Loss, depths, integer_checks, quality_check
from porting.backends.onnx_program import read_model
from porting.conversion import W8A8
from porting.errors import InputError, RuntimeFailed
from porting.evidence import evidence_level, placement_check
from porting.feeds import feeds_hash
from porting.graph_reference import GraphReference, Recorded
from porting.graph_validation import PortRuns, again_check, interface_check
from porting.port_folder import MODEL, Port
from porting.progress import silent
from porting.types import Program
from porting.verdict import Check, Verdict, printable

NAMED = 8  # layers that a report names
OWN_DATA = (
    "W8A8: the errors of the outputs are measured on the calibration's own inputs, or on what is made of them: on others they may be larger; give "
    "inputs that were not calibrated on with --inputs"
)
NOT_HELD_OUT = "inputs that were not calibrated on (give them with --inputs)"


def manifest_of(made: Quantised, cases: Cases) -> dict[str, Any]:
    """What port.json keeps: JSON types only."""
    return {W8A8: {"layers": made.report, "calibration": sorted(case_hash(case) for case in cases), "notes": list(made.notes)}}


def case_hash(case: Mapping[str, Any]) -> str:
    """Tells one case from another."""
    return " ".join(f"{name}={feeds_hash(case[name])}" for name in sorted(case))


def fidelity_of(made: Quantised, cases: Cases) -> list[Check]:
    """Both graphs as they were made. raises: as `integer_checks`"""
    with at_hand(made.reference) as reference, at_hand(made.deploy) as deploy:
        return integer_checks(reference, deploy, cases)


def judge_w8a8(
    port: Port,
    reference: GraphReference,
    device: str,
    *,
    command: str = "validate",
    progress: Any = silent,
    more: Sequence[Check] = (),
) -> Verdict:
    """Run a port in W8A8 on what the float32 original was run on.

    more:   checks of the same port that were made elsewhere, `fidelity_of` among them. Without them the graphs of the port's hand-offs are held
            against the formulas
    raises: InputError (inputs that show nothing), DeviceUnavailable, OutOfResources
    """
    start = time.perf_counter()
    with progress("validate", 2, unit="steps") as advance:
        reference.prepare()
        plain = [one for one in reference.recorded if not one.run.start and not one.run.forced]
        advance(1)
        with PortRuns(port, device) as runs:
            checks = [placement_check(runs.session), interface_check(port, plain)]
            checks += _quality(port, runs, plain)
            ran_on = str(runs.session.device)
            if ran_on.partition(":")[0] == "cpu":
                checks.append(again_check(runs, plain[0].run))
        integers = any(one.name.startswith(FIDELITY) for one in more)
        if not integers:
            found = _fidelity_of_handoffs(port, plain[0].run.steps[0])
            integers, more = bool(found), [*more, *found]
        advance(1)
    known = set(port.manifest[W8A8]["calibration"])
    held_out = bool(_held_out(plain, known))
    missing = [*([] if held_out else [NOT_HELD_OUT]), *([] if integers else ["that the vendor's graph has the same integers"])]
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
            "compared_with": reference.description,
            "port_sha256": port.identity(),
            "precision": port.precision,
            "runs": [one.run.name for one in plain],
            "held_out": held_out,
            "noise_of_a_layer": LAYER_NOISE,
            W8A8: port.manifest[W8A8]["layers"],
            "loses_most": loses_most(port.manifest[W8A8]["layers"]),
            "notes": [*port.manifest[W8A8]["notes"], *([] if held_out else [OWN_DATA])],
        },
        not_shown=", ".join(missing),
    )


def loses_most(report: Sequence[Mapping[str, Any]]) -> list[str]:
    """The layers that are furthest from float by themselves, the worst first: what to keep in float where an output is beyond its limit."""
    rows = sorted((row for row in report if row["quantised"]), key=lambda row: float(row["alone_sqnr_db"]))
    return [f"{row['node']} {float(row['alone_sqnr_db']):.1f} dB" for row in rows[:NAMED]]


def _held_out(plain: Sequence[Recorded], calibrated: set[str]) -> list[str]:
    """Cases that are neither of the calibration nor made of one of those, as its name then says: "c0, other values"."""
    names = {one.run.name for one in plain if case_hash(one.run.steps[0]) in calibrated}
    return [one.run.name for one in plain if one.run.name not in names and one.run.name.partition(", ")[0] not in names]


def _quality(port: Port, runs: PortRuns, plain: Sequence[Recorded]) -> list[Check]:
    """One check for each output, and one for each run that the port refuses."""
    layers = depths(read_model(port.program()))
    losses: dict[str, Loss] = {}
    refused = []
    for one in plain:
        try:
            (got,) = runs.outputs(one.run)
        except (InputError, RuntimeFailed) as error:
            refused.append(Check("runs that the port refuses", "fail", printable(error.what), "none", printable(one.run.name)))
            continue
        for name, expected in one.steps[0].items():
            if name in got:  # that one is missing is a check of its own
                losses.setdefault(name, Loss()).add(expected, got[name], f"{one.run.name}: {name}")
    deepest = max(layers.values(), default=0)  # of an element of a sequence, which is no output by name
    return [*refused, *(quality_check(name, loss, layers.get(name, deepest)) for name, loss in losses.items())]


def _fidelity_of_handoffs(port: Port, case: Mapping[str, Any]) -> list[Check]:
    """The graphs that would be compiled, as they lie in the port. raises: PortError for one that was changed"""
    checks = []
    for handoff in handoffs_of(port.path):
        handoff.verify()
        with ExitStack() as stack:
            deploy = stack.enter_context(at_hand(Program(handoff.path / MODEL, (), ())))
            checks += integer_checks(stack.enter_context(at_hand(port.program())), deploy, [case])
    return checks
