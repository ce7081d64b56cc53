"""What the port of a graph is compared with: what the untouched model gave, run after run, and how far roundings alone would move it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from porting.branches import Branch, branches_of
from porting.cuts import Cut
from porting.errors import InputError, PortingError
from porting.feeds import Cases
from porting.graph_outputs import Expected, ExpectedArray, compressed, is_exact, relative_error, small_scales
from porting.graph_runs import Part, Run, Runs, carried_runs, chunked, execute, flat, plain_runs, run_of
from porting.noisy_original import NoisyOriginal
from porting.onnx_facts import Conditional, conditionals, random_nodes, valued_names
from porting.original_onnx import OnnxOriginal
from porting.types import Original, StatePair, TensorSpec
from porting.verdict import printable

# Noise is measured with errors of MULTIPLE roundings each, and two computations that differ have sqrt(2) of one each: what is left,
# SLACK MULTIPLE / sqrt(2) = 5.7 standard deviations, covers that a root mean square of NOISE_RUNS numbers is one itself.
SLACK = 2.0
NOISE_RUNS = 4  # of each run: their root mean square is known to a factor of two or so
# Above this share of an output roundings hide what a wrong constant or weight does: percents. source: the seeded faults of
# tests/porting/test_graph_validation.py, of which the smallest moves outputs by 1e-3 of their size
ILL_CONDITIONED = 1e-2
OTHER_INPUTS = "use inputs on which the model shows what it does: --inputs x.npz, and again for a second case"


@dataclass(frozen=True)
class Small:
    """How the small elements of an output are looked at, beside which large ones hide them: as asinh(x / scale).

    noise: the relative L2 error that roundings make in that
    """

    scale: float
    noise: float


@dataclass(eq=False)
class Recorded:
    """A run, what each step should give, and the noise of each output: the relative L2 error that roundings make, as measured.

    noise: one table per step, root mean square by output; None where it was not measured yet
    small: one table per step, of the outputs that have small elements which do not show and roundings do not drown
    """

    run: Run
    steps: list[dict[str, Expected]]
    noise: list[dict[str, float]] | None = None
    small: list[dict[str, Small]] = field(default_factory=list)

    @property
    def steps_and_small(self) -> list[tuple[dict[str, Expected], dict[str, Small]]]:
        return list(zip(self.steps, self.small or [{} for _ in self.steps], strict=True))


class GraphReference(Protocol):
    """What the judge asks of a reference.

    kind:         "upstream", "golden" or "self"
    recorded:     every run; filled by `prepare`
    conditionals: the Ifs of the original
    details:      for the report
    """

    @property
    def kind(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def recorded(self) -> Sequence[Recorded]: ...
    @property
    def conditionals(self) -> Sequence[Conditional]: ...
    @property
    def details(self) -> Mapping[str, Any]: ...

    def prepare(self) -> None:
        """Run what has to be run. raises: InputError when the inputs show nothing"""


@dataclass(eq=False)
class OriginalReference:
    """The untouched model, at hand.

    make:        opens it
    cases:       inputs, of all inputs of the model; `find_cases` or `cases_from_npz`
    inputs, outputs, pairs: the interface, state included, and which input takes which output
    spare:       generated cases, for branches that `cases` do not reach
    free:        whether other sizes than those of the cases may be run
    random:      nodes that draw random numbers, once prepared
    onnx_path:   the model as ONNX before any pass: its branches are forced and its noise is measured there. None for a model that never was
                 a graph: then the noise is the port's own, and nothing is forced
    cut:         how far that model is taken, and which inputs are constants
    """

    make: Callable[[], Original]
    cases: Cases
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    pairs: Sequence[StatePair] = ()
    onnx_path: Path | None = None
    cut: Cut | None = None
    spare: Callable[[], Cases] | None = None
    free: bool = True
    kind: str = "upstream"
    description: str = ""
    recorded: list[Recorded] = field(default_factory=list)
    conditionals: Sequence[Conditional] = ()
    random: Sequence[str] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def prepare(self) -> None:
        """raises: InputError (the inputs show nothing, or the model gives other outputs each time), RuntimeFailed, OutOfResources"""
        if self.recorded:
            return
        depends = self._dependent()
        original = self.make()
        try:
            self.description = self.description or original.description
            plain = [self._recorded(original, run) for run in plain_runs(self.cases.feeds)]
            require_same_again(original, plain[0], self.random)
            self.details["shows_nothing"] = require_informative_outputs(plain, depends)
            carried = [
                self._recorded(original, r)
                for r in carried_runs(self.cases.feeds, self.inputs, self.outputs, self.pairs, self.free)
            ]
            self.recorded = [*plain, *carried]
        finally:
            original.close()
        self._force_branches()
        if self.onnx_path is not None:
            measure_noise(self.recorded, self.onnx_path, self.pairs, self.cut)
        self.details["sizes"] = {
            name: {n: list(np.shape(v)) for n, v in feeds.items()} for name, feeds in self.cases.feeds.items()
        }
        self.details["only_one_size"] = list(self.cases.only)
        self._say_whether_chunks_are_whole()

    def _recorded(self, model: Runs, run: Run) -> Recorded:
        return Recorded(run, [{k: ExpectedArray(v) for k, v in step.items()} for step in execute(model, run, self.pairs)])

    def _dependent(self) -> dict[str, set[str]] | None:
        """Output -> inputs whose values it depends on; None where the graph does not say."""
        if self.onnx_path is None:
            return None
        from porting.converters.checkpoints.onnx_file import read_proto

        graph = read_proto(self.onnx_path, self.cut).graph
        self.conditionals, self.random = conditionals(graph), random_nodes(graph)
        # what depends on shapes alone counts: it may vary from case to case, and `valued_names` leaves it out
        reached = {spec.name: valued_names(graph, spec.name) for spec in self.inputs}
        return {v.name: {name for name, found in reached.items() if v.name in found} for v in graph.output}

    def _force_branches(self) -> None:
        """One run for each branch, on the first case that the original can take that way; generated ones for what the user's do not reach."""
        left = dict.fromkeys(branches_of(self.conditionals), "")
        left = self._forced(left, list(self.cases.feeds))
        if left and self.spare is not None:
            given, spare = self.cases, self.spare()
            feeds = {f"also {name}": fed for name, fed in spare.feeds.items()}
            recipes = {f"also {name}": recipe for name, recipe in spare.recipes.items()}
            self.cases = Cases({**given.feeds, **feeds}, {**given.recipes, **recipes}, given.only)
            left = self._forced(left, list(feeds))
        self.details["not_reached"] = [
            f"{branch.name}: the original cannot take it on these inputs: {why}" for branch, why in left.items()
        ]

    def _forced(self, branches: Mapping[Branch, str], cases: Sequence[str]) -> dict[Branch, str]:
        """Record a run of each branch that one of the cases can take; the others, with what the original said."""
        assert self.onnx_path is not None or not branches
        left = {}
        for branch, why in branches.items():
            try:
                original = OnnxOriginal(self.onnx_path, forced=branch.forced, cut=self.cut)  # type: ignore[arg-type]
            except PortingError as error:
                left[branch] = printable(error.what)
                continue
            for name in cases:
                try:
                    run = run_of(f"{branch.name}, {name}", [Part(name)], self.cases.feeds, branch.forced)
                    found = self._recorded(original, run)
                    require_informative_outputs([found], {})
                    self.recorded.append(found)
                    break
                except PortingError as error:
                    why = printable(error.what)
            else:
                left[branch] = why
            original.close()
        return left

    def _say_whether_chunks_are_whole(self) -> None:
        found = chunked(self.cases.feeds, self.inputs, self.outputs, self.pairs) if self.pairs and self.free else None
        if found is None:
            return
        whole, chunks, axes = found
        recorded = next(r for r in self.recorded if r.run.name == chunks.name)
        original = self.make()
        try:
            at_once = execute(original, whole, self.pairs)[0]
        finally:
            original.close()
        pieces = {n: np.concatenate([s[n].array for s in recorded.steps], axes[n]) for n in axes}  # type: ignore[attr-defined]
        noise = max((v for step in recorded.noise or [] for v in step.values()), default=0.0)
        errors = {n: relative_error(at_once[n], pieces[n]) if pieces[n].shape == at_once[n].shape else math.inf for n in axes}
        self.details["chunks_equal_the_whole"] = bool(max(errors.values()) <= 2 * noise)


def measure_noise(recorded: Sequence[Recorded], path: Path, pairs: Sequence[StatePair], cut: Cut | None = None) -> None:
    """Fill in the noise of every run, and the elements of exact outputs that roundings change.

    The graph with errors is held against the same graph without, never against the reference: what the graph computes wrongly would
    count as noise, and hide itself.

    path, cut: the graph to measure on. raises: InputError, RuntimeFailed, OutOfResources
    """
    models: dict[str, tuple[OnnxOriginal, NoisyOriginal]] = {}
    plain = {one.run.parts[0].case: one for one in recorded if not one.run.forced and not one.run.start}
    for one in recorded:
        natural = plain.get(one.run.parts[0].case)
        if one.run.forced and natural is not None and _same(one, natural):  # the branch that the inputs take anyway
            one.steps, one.noise, one.small = natural.steps, natural.noise, natural.small
            continue
        key = repr(sorted(one.run.forced.items()))
        if key not in models:
            noisy = NoisyOriginal(path, {**one.run.steps[0], **one.run.start}, one.run.forced, cut)
            models = {key: (OnnxOriginal(path, one.run.forced, cut=cut), noisy)}  # one at a time in memory
        exact, noisy = models[key]
        without = execute(exact, one.run, pairs)
        found = [_Errors() for _ in one.steps]
        for _ in range(NOISE_RUNS):
            for number, step in enumerate(execute(noisy, one.run, pairs)):
                found[number].add(one.steps[number], without[number], step)
        one.noise = [errors.noise() for errors in found]
        one.small = [errors.small() for errors in found]


class _Errors:
    """What roundings did to the outputs of one step, run after run: squared relative errors."""

    def __init__(self) -> None:
        self._whole: dict[str, list[float]] = {}
        self._scales: dict[str, dict[float, list[float]]] = {}

    def add(self, expected: dict[str, Expected], without: Mapping[str, Any], noisy: Mapping[str, Any]) -> None:
        """expected: the elements of exact outputs that changed are marked there as unstable"""
        for name, one in list(expected.items()):
            if not isinstance(one, ExpectedArray):
                continue
            # else roundings decide how much comes out
            fits = name in without and name in noisy and noisy[name].shape == without[name].shape
            if not one.exact:
                error = relative_error(without[name], noisy[name]) if fits else math.inf
                self._whole.setdefault(name, []).append(error * error)
                if fits:
                    self._add_small(name, one.array, without[name], noisy[name])
            elif fits:
                changed = np.asarray(without[name] != noisy[name])
                if changed.shape == one.array.shape and changed.any():
                    expected[name] = ExpectedArray(one.array, changed if one.unstable is None else one.unstable | changed)
            else:
                expected[name] = ExpectedArray(one.array, np.ones(one.array.shape, bool))

    def _add_small(self, name: str, wanted: np.ndarray, without: np.ndarray, noisy: np.ndarray) -> None:
        if name not in self._scales:
            self._scales[name] = {scale: [] for scale in small_scales(wanted)}
        for scale, squares in self._scales[name].items():
            error = relative_error(compressed(without, scale), compressed(noisy, scale))
            squares.append(error * error)

    def noise(self) -> dict[str, float]:
        return {name: _root_mean(squares) for name, squares in self._whole.items()}

    def small(self) -> dict[str, Small]:
        found = {}
        for name, scales in self._scales.items():
            for scale, squares in sorted(scales.items()):
                noise = _root_mean(squares)
                if SLACK * noise <= ILL_CONDITIONED:
                    found[name] = Small(scale, noise)
                    break
        return found


def _root_mean(squares: Sequence[float]) -> float:
    return math.sqrt(sum(squares) / NOISE_RUNS)


def _same(a: Recorded, b: Recorded) -> bool:
    """Whether two runs gave the same bits."""
    pairs = [(one, b.steps[0].get(name)) for name, one in a.steps[0].items()]
    return all(
        isinstance(x, ExpectedArray)
        and isinstance(y, ExpectedArray)
        and x.array.shape == y.array.shape
        and (x.array == y.array).all()
        for x, y in pairs
    )


def noise_of(recorded: Sequence[Recorded]) -> dict[str, float]:
    """Output -> the middle of its noise over the runs where it is well-conditioned: what a run whose few samples came out small is lifted to."""
    found: dict[str, list[float]] = {}
    for one in recorded:
        for step in one.noise or []:
            for name, value in step.items():
                if value <= ILL_CONDITIONED:
                    found.setdefault(name, []).append(value)
    return {name: float(np.median(values)) for name, values in found.items()}


# --- what shows something ---------------------------------------------------------------------------------------------


def require_same_again(original: Runs, first: Recorded, random: Sequence[str] = ()) -> None:
    """random: nodes of the model that draw numbers. raises: InputError for a model whose outputs are random"""
    again = flat(original.run(first.run.steps[0]))
    for name, one in first.steps[0].items():
        assert isinstance(one, ExpectedArray)
        equal_nan = not one.exact
        if again[name].shape != one.array.shape or not np.array_equal(one.array, again[name], equal_nan=equal_nan):
            raise InputError(
                f"output {printable(name)!r} of the original is another each time it is run on the same inputs",
                where=f"node {printable(', '.join(random))}" if random else first.run.name,
                next="it draws random numbers, of which a seed repeats a session and not a run: feed them as an input"
                if random
                else "state inside the model: make it an input and an output",
            )


def require_informative_outputs(recorded: Sequence[Recorded], depends: Mapping[str, set[str]] | None) -> list[str]:
    """What of the outputs shows nothing, though others do.

    depends: output -> inputs whose values it depends on; those outputs have to vary. None when each depends on all
    raises:  InputError when a float output that depends on the inputs is empty, the same whatever is fed or not finite, or no output varies
    """
    silent: list[str] = []
    names = list(dict.fromkeys(name for one in recorded for step in one.steps for name in step))
    for name in names:
        arrays = [one.array for r in recorded for s in r.steps if isinstance(one := s.get(name), ExpectedArray)]
        whose = None if depends is None else depends.get(name, set())
        problem = _shows_nothing(arrays) or _stays_the_same(recorded, name, whose)
        if not problem:
            continue
        if not is_exact(arrays[0].dtype) and (whose is None or whose or "NaN" in problem):
            raise InputError(
                f"these inputs show nothing: output {printable(name)!r} {problem}", where="the original", next=OTHER_INPUTS
            )
        silent.append(f"{name} {problem}")
    if len(silent) == len(names):
        raise InputError(f"these inputs show nothing: {printable('; '.join(silent))}", where="the original", next=OTHER_INPUTS)
    return silent


def _stays_the_same(recorded: Sequence[Recorded], name: str, whose: set[str] | None) -> str:
    """Why an output of the first steps shows nothing: it is one where its shape is, and cases of one size differ in what it depends on.

    whose: inputs that it depends on; None: any. Of those the largest has to differ: a rate or a flag that a model ignores is nothing.
    Of one size, since what is longer by a repetition has the maximum, or the first element, that it had.
    "" when it shows something
    """
    of_shape: dict[tuple[int, ...], np.ndarray] = {}
    of_size: dict[str, Mapping[str, Any]] = {}
    others = 0
    for one in recorded:
        expected, feeds = one.steps[0].get(name), one.run.steps[0]
        if not isinstance(expected, ExpectedArray) or expected.array.size == 0:
            continue
        if not np.array_equal(of_shape.setdefault(expected.array.shape, expected.array), expected.array):
            return ""
        fed = of_size.setdefault(repr([(n, np.shape(v)) for n, v in feeds.items()]), feeds)
        largest = max(feeds if whose is None else whose & feeds.keys(), key=lambda n: np.size(feeds[n]), default=None)
        others += largest is not None and not _equal_values(fed.get(largest), feeds[largest])
    return f"is the same in {others + 1} cases that differ in what it depends on" if others else ""


def _equal_values(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and bool(np.all(a == b))
    return repr(a) == repr(b)


def _shows_nothing(arrays: Sequence[np.ndarray]) -> str:
    """Why these values of one output show nothing; "" when they show something."""
    full = [a for a in arrays if a.size]
    if not full:
        return "is empty"
    if not is_exact(full[0].dtype):
        wide = [a.astype(np.float64) for a in full]
        if any(np.isnan(a).any() for a in wide):
            return "holds NaN"
        if not any(np.isfinite(a).any() for a in wide):
            return "is nowhere finite"
    if sum(a.size for a in full) == 1:  # one number alone cannot vary
        return ""
    first = full[0].reshape(-1)[0]
    return f"is {first} everywhere" if all((a == first).all() for a in full) else ""
