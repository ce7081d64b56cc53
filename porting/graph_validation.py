"""Is the port of a graph right? Every output of every run against the untouched model's, held to what roundings alone do to it.

Runs: the cases as they are; every branch of every If, forced in both; state carried over several steps, against the original that is handed
its own state. The bound is measured, not chosen: see numerics/graph_noise.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from porting.branches import Branch, ForcedPort, conditionals_of, folded, folded_check, unreached
from porting.compiled_precision import COMPILED, compiled_bounds, compiled_in, layers_beyond
from porting.devices import parse_device
from porting.errors import InputError, RuntimeFailed
from porting.evidence import evidence_level, placement_check
from porting.gear_runs import Gear, shown
from porting.graph_outputs import Difference
from porting.graph_reference import ILL_CONDITIONED, NOISE_RUNS, SLACK, GraphReference, Recorded, Small, measure_noise, noise_of
from porting.graph_runs import Run, execute, flat
from porting.noisy_original import lengths_of
from porting.numerics.bounds import UNIT_ROUNDOFF, rounding_bound
from porting.numerics.graph_noise import MULTIPLE
from porting.port_folder import MODEL, Port
from porting.progress import silent
from porting.session import Session, open_session
from porting.types import StateSpec
from porting.verdict import Check, Verdict, printable

BOUND = (
    f"{SLACK:g} times the error of this output when every operator of the graph is off at random by {MULTIPLE} roundings "
    f"(u sqrt(n) for sums of n terms; Parker 1997, Higham & Mary 2019), root mean square of {NOISE_RUNS} runs"
)
# TIGHT: ill-conditioned, and yet as near as roundings leave a well-conditioned graph; UNDECIDED: ill-conditioned, and not as near
REPEATS = 4  # of a run that has to give the same bits
# OPEN: a golden's sketch does not tell on which side of the bound it is
FAIL, PASS, TIGHT, UNDECIDED, OPEN = "fail", "pass", "tight", "undecided", "open"


@dataclass(frozen=True)
class Measured:
    """One output of one step: what was found, the bound, and what follows.

    what: that was measured, when it is not the relative error of the output as it is
    """

    group: str
    output: str
    exact: bool
    found: Difference
    bound: float
    verdict: str
    what: str = ""

    @property
    def rank(self) -> tuple[int, float]:
        """What speaks for all runs of an output: a failure, else what a golden leaves open, what was decided by the bound, else what could not be decided."""
        share = self.found.value / self.bound if self.bound else self.found.value
        return (TIGHT, UNDECIDED, PASS, OPEN, FAIL).index(self.verdict), math.inf if math.isnan(share) else share


def judge_graph(
    port: Port,
    reference: GraphReference,
    device: str,
    *,
    command: str = "validate",
    progress: Any = silent,
    more: Sequence[Check] = (),
) -> Verdict:
    """Run every check of a port of kind "graph" or "encoder" against a reference.

    more:   checks of the same port that were made elsewhere
    raises: InputError (inputs that show nothing), DeviceUnavailable, OutOfResources
    """
    start = time.perf_counter()
    with progress("validate", 3, unit="steps") as advance:
        reference.prepare()
        advance(1)
        ifs = conditionals_of(port)
        recorded = [one for one in reference.recorded if _applies(one.run, {c.name for c in ifs})]
        if any(one.noise is None for one in recorded):
            measure_noise(recorded, port.path / MODEL, port.program().state.pairs)
        advance(1)
        cases = [{**one.run.steps[0], **one.run.start} for one in recorded if not one.run.forced]
        narrow, allowed = compiled_in(port, device), compiled_bounds(port, device, cases)
        with PortRuns(port, device) as runs:
            checks = [placement_check(runs.session), interface_check(port, recorded)]
            able = [one for one in recorded if runs.can_force or not one.run.forced]
            measured = _measured(port, runs, able, checks, allowed)
            ran_on = str(runs.session.device)
            if ran_on.partition(":")[0] == "cpu":  # atomic sums of a GPU may come in any order
                checks.append(again_check(runs, recorded[0].run))
        advance(1)
    gone = folded_check(reference.conditionals, ifs)
    by_values, by_sizes = unreached(reference.conditionals, ifs, [one.run.forced for one in recorded])
    checks += [*([gone] if gone else []), *([_unreached_check(by_values)] if by_values else []), *_checks(measured), *more]
    checks += layers_beyond(port, device, checks, cases)
    undecided = [f"{m.output}, {m.found.where}" for m in measured if m.verdict == UNDECIDED]
    return Verdict.from_checks(
        command,
        checks,
        evidence_level=evidence_level(device, port.manifest["target"]),
        reference=reference.kind,
        source=port.path.name,
        target=port.manifest["target"],
        device=ran_on,
        seconds=round(time.perf_counter() - start, 3),
        details={
            "device_asked_for": device,
            "compared_with": reference.description,
            "fidelity_bound": BOUND + (COMPILED.format(narrow) if narrow else ""),
            "port_sha256": port.identity(),
            "precision": port.precision,
            "runs": [one.run.name for one in able],
            "ill_conditioned": undecided,
            "folded_ifs": folded(reference.conditionals, ifs),
            **{"not_reached": [], **reference.details},
        },
        not_shown=_not_shown(len(by_sizes), len(recorded) - len(able)),
    )


def _not_shown(by_sizes: int, not_forced: int) -> str:
    """Branches of Ifs that were not run, and why."""
    found = []
    if by_sizes:
        found.append(f"{by_sizes} branches of Ifs that these sizes do not take")
    if not_forced:
        found.append(f"{not_forced} branches of Ifs by themselves, which a compiled model does not let anybody choose")
    return "; ".join(found)


class PortRuns:
    """A port on a device, run like the original: state as inputs and outputs, or kept by the session, or with conditions fixed."""

    def __init__(self, port: Port, device: str) -> None:
        self.port, self.device = port, device
        self._stack = ExitStack()
        program = port.program()
        self.session = self._stack.enter_context(open_session(program, device))
        self._plain: Session = self.session
        if program.state.pairs:
            self._plain = self._stack.enter_context(open_session(replace(program, state=StateSpec()), device))
        self._forced: ForcedPort | None = None
        chosen = parse_device(device)
        # a graph with a condition fixed is another graph, which no hand-off was made for
        self.can_force = not (chosen.name.startswith("ascend") and chosen.options.get("route", "om") == "om")

    def __enter__(self) -> PortRuns:
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.close()

    def outputs(self, run: Run) -> list[dict[str, Any]]:
        """As `execute` on the original, but with state that the session carries. raises: InputError, RuntimeFailed, OutOfResources"""
        if run.start:
            state = self.session.new_state(initial=run.start)
            return [flat(self.session.run(feeds, state)) for feeds in run.steps]
        if not run.forced:
            return execute(self._plain, run, ())
        if self._forced is None:
            self._forced = self._stack.enter_context(closing(ForcedPort(self.port)))
        fixed = replace(self._forced.program(run.forced), state=StateSpec())
        with open_session(fixed, self.device) as session:
            return execute(session, run, ())


def _applies(run: Run, kept: set[str]) -> bool:
    """A forced run is for an If that the port still has."""
    target = list(run.forced)[-1:]
    return not target or target[0] in kept


def interface_check(port: Port, recorded: Sequence[Recorded]) -> Check:
    """The port takes what the original takes and gives what it gives, by name."""
    program = port.program()
    plain = next(one for one in recorded if not one.run.start and not one.run.forced)
    takes, gives = {i.name for i in program.inputs}, {o.name for o in program.outputs}
    needs = set(plain.run.steps[0])
    wanted = {name.partition(": length")[0] for name in plain.steps[0] if not name.endswith("]") or name in gives}
    differing = sorted((needs - takes) | (takes - needs - set(program.defaults)) | (wanted ^ gives))
    where = printable(", ".join(differing[:5])) if differing else f"{len(takes)} inputs, {len(gives)} outputs"
    return Check.equal("inputs and outputs that only one side has", len(differing), 0, where)


def again_check(runs: PortRuns, run: Run) -> Check:
    """The same bits each time: threads that race show here, however small the difference."""
    differing, where = 0, f"{REPEATS} runs on the same inputs"
    try:
        first = runs.outputs(run)[0]
    except (InputError, RuntimeFailed) as error:
        return Check("elements that differ when it runs again", "fail", printable(error.what), None, printable(run.name))
    for _ in range(REPEATS - 1):
        try:
            again = runs.outputs(run)[0]
        except (InputError, RuntimeFailed) as error:
            return Check("elements that differ when it runs again", "fail", printable(error.what), None, printable(run.name))
        for name in {**first, **again}:
            count = _differing(first[name], again[name]) if name in first and name in again else 1
            if count:
                differing, where = differing + count, f"{run.name}: {name}"
    return Check.equal("elements that differ when it runs again", differing, 0, printable(where))


def _differing(a: np.ndarray, b: np.ndarray) -> int:
    """Elements that differ, NaN being equal to NaN; all where the shapes do."""
    if a.shape != b.shape:
        return max(a.size, b.size, 1)
    return int(np.count_nonzero((a != b) & ~((a != a) & (b != b))))


def _unreached_check(branches: Sequence[Branch]) -> Check:
    why = "the original cannot take them on these inputs, and others can lead there: give inputs that do, --inputs x.npz"
    where = printable(", ".join(one.name for one in branches))
    return Check("branches that no inputs reach", "error", len(branches), 0, where, why)


def _measured(
    port: Port, runs: PortRuns, recorded: Sequence[Recorded], checks: list[Check], allowed: Mapping[str, float]
) -> list[Measured]:
    """Every output of every step of every run. A run that the port refuses is a failed check, added to `checks`.

    allowed: of outputs that are computed in a narrower format than the graph says, what that may cost; their small elements drown in it
    """
    usual = noise_of(recorded)
    gears = port.program().gears
    tight: list[float] = []  # worked out once, where it is needed
    found = []
    for one in recorded:
        try:
            steps = runs.outputs(one.run)
        except (InputError, RuntimeFailed) as error:
            checks.append(Check("runs that the port refuses", "fail", printable(error.what), "none", printable(one.run.name)))
            continue
        for number, ((wanted, small), got) in enumerate(zip(one.steps_and_small, steps, strict=True)):
            place = one.run.name if len(one.steps) == 1 else f"{one.run.name}, step {number}"
            for name, expected in wanted.items():
                if name not in got:
                    difference = Difference(math.inf, f"{place}: {name}", "the port does not give it")
                else:
                    difference = expected.compare(f"{place}: {name}", got[name])
                own = (one.noise or [{}])[number].get(name, 0.0)
                bound = 0.0 if expected.exact else SLACK * max(own, usual.get(name, 0.0))
                if bound > ILL_CONDITIONED and not tight:
                    tight.append(_tight(port, recorded))
                may_cost = 0.0 if expected.exact else allowed.get(name, 0.0)
                verdict, bound = _decide(expected.exact, difference, bound, may_cost, tight[0] if tight else 0.0)
                found.append(Measured(_group(one.run, gears), name, expected.exact, difference, bound, verdict))
                if name in small and name not in allowed and not difference.problem:
                    of_small = expected.compare_small(f"{place}: {name}", got[name], small[name].scale)
                    found.append(_of_small(found[-1], of_small, small[name]))
    return found


def _of_small(of: Measured, found: Difference, small: Small) -> Measured:
    """The same output, as its small elements show."""
    bound = SLACK * small.noise
    what = f"asinh({of.output} / {small.scale:.3g})"
    return replace(of, found=found, bound=bound, verdict=_held(found, bound), what=what)


def _decide(exact: bool, found: Difference, noise: float, may_cost: float, tight: float) -> tuple[str, float]:
    """A verdict and the bound that it was reached by. may_cost: of the device's narrower format, which says nothing of the graph's condition"""
    bound = max(noise, may_cost)
    if found.undecided:
        return UNDECIDED, bound
    if found.problem or exact or noise <= ILL_CONDITIONED:
        return (_held(found, bound) if not found.problem else FAIL), bound
    if found.value <= tight:
        return TIGHT, tight
    return (UNDECIDED if _held(found, bound) != FAIL else FAIL), bound


def _held(found: Difference, bound: float) -> str:
    """Of an estimate both ends have to be on one side of the bound."""
    if found.value <= bound:
        return PASS
    return OPEN if found.least is not None and found.least <= bound else FAIL


def _tight(port: Port, recorded: Sequence[Recorded]) -> float:
    """What roundings do to a well-conditioned graph. Outputs that agree as well as that agree, however ill-conditioned they are."""
    run = recorded[0].run
    lengths = lengths_of(port.path / MODEL, {**run.steps[0], **run.start})
    return rounding_bound(lengths, UNIT_ROUNDOFF["float32"]).value if lengths else 0.0


def _group(run: Run, gears: Sequence[Gear]) -> str:
    """What is judged by itself: each gear, each branch, state that is carried."""
    if len(gears) > 1:
        first = {**run.steps[0], **run.start}
        gear = {name: np.shape(first[name]) for name in gears[0] if name in first}
        telling = _told_apart_by([name for name in gear if len({g[name] for g in gears}) > 1], gears)
        return f"{_kind_of_run(run)}gear {shown({name: gear[name] for name in telling})}: "
    return _kind_of_run(run)


def _told_apart_by(differing: Sequence[str], gears: Sequence[Gear]) -> Sequence[str]:
    """The first of the inputs that differ, as many as it takes: two gears under one name would be judged as one."""
    for count in range(1, len(differing)):
        if len({tuple(gear[name] for name in differing[:count]) for gear in gears}) == len(gears):
            return differing[:count]
    return differing


def _kind_of_run(run: Run) -> str:
    if run.forced:
        node, taken = list(run.forced.items())[-1]
        return f"branch {node} = {'then' if taken else 'else'}: "
    return f"state carried over {len(run.steps)} steps: " if run.start else ""


def _checks(measured: Sequence[Measured]) -> list[Check]:
    """One check for each output of each group: its worst."""
    groups: dict[tuple[str, str], list[Measured]] = {}
    for one in measured:
        groups.setdefault((one.group, one.output), []).append(one)
    return [_check(max(group, key=lambda one: one.rank)) for group in groups.values()]


def _check(worst: Measured) -> Check:
    where, found = printable(worst.found.where), worst.found
    if found.problem:
        return Check(f"{worst.group}{worst.output}", "fail", printable(found.problem), None, where)
    if found.undecided:
        return Check(f"{worst.group}{worst.output}", "error", None, None, where, found.undecided)
    if worst.exact:
        return Check.equal(f"{worst.group}elements of {worst.output} that differ", found.value, 0, where)
    name = f"{worst.group}relative error of {worst.what or worst.output}"
    if worst.verdict in (UNDECIDED, OPEN):
        why = (
            f"ill-conditioned: on these inputs roundings alone move this output by up to {worst.bound:.1e}, and a wrong port would not "
            "show; use other inputs"
            if worst.verdict == UNDECIDED
            else f"the golden keeps a sketch, by which it is {found.least:.1e} to {found.value:.1e}; validate against the source"
        )
        return Check(name, "error", found.value, worst.bound, where, why)
    return Check.at_most(name, found.value, worst.bound, where, BOUND)
