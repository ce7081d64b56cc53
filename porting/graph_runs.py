"""What is run on the original and on the port alike: plain cases, forced branches, and state carried from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from porting.errors import InputError
from porting.feed_values import symbols
from porting.feeds import roles_of
from porting.types import StatePair, TensorSpec

STEPS = 3  # of a stateful model: one from the empty state, and two whose state depends on what came before


class Runs(Protocol):
    """What takes complete feeds: an `Original`, and whatever stands in for one."""

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Part:
    """Where the feeds of a step come from: a case, without the state that a run carries, or a piece of it.

    cut: input name -> (axis, start, stop)
    """

    case: str
    without: tuple[str, ...] = ()
    cut: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    def feeds(self, cases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        given = {name: value for name, value in cases[self.case].items() if name not in self.without}
        for name, (axis, start, stop) in self.cut.items():
            given[name] = np.ascontiguousarray(np.take(given[name], range(start, stop), axis))
        return given


@dataclass(frozen=True, eq=False)
class Run:
    """One or more steps; made by `run_of`.

    parts:  where the feeds of each step come from
    steps:  those feeds, state included unless it is carried
    start:  the state before the first step, zeros by input name; then each step's state is what the one before gave. Empty: nothing is
            carried
    forced: If node -> branch
    """

    name: str
    parts: tuple[Part, ...]
    steps: tuple[Mapping[str, Any], ...]
    start: Mapping[str, np.ndarray] = field(default_factory=dict)
    forced: Mapping[str, bool] = field(default_factory=dict)


def run_of(
    name: str, parts: Sequence[Part], cases: Mapping[str, Mapping[str, Any]], forced: Mapping[str, bool] | None = None
) -> Run:
    """A run on these cases; what its parts leave out is state, and is carried. raises: InputError for state without an array"""
    first = parts[0]
    missing = [n for n in first.without if n not in cases[first.case]]
    if missing:
        raise InputError(
            f"case {first.case!r} has no state {missing[0]!r}: its shape is not known", where="inputs for validation"
        )
    start = {n: np.zeros_like(cases[first.case][n]) for n in first.without}
    return Run(name, tuple(parts), tuple(part.feeds(cases) for part in parts), start, dict(forced or {}))


def execute(model: Runs, run: Run, pairs: Sequence[StatePair]) -> list[dict[str, Any]]:
    """Flat outputs of each step; with carried state, without the outputs that are state. raises: as the model"""
    state, found = dict(run.start), []
    hidden = {pair.output for pair in pairs} if run.start else set()
    for feeds in run.steps:
        outputs = model.run({**feeds, **state})
        state = {pair.input: np.ascontiguousarray(outputs[pair.output]) for pair in pairs} if run.start else {}
        found.append(flat({name: value for name, value in outputs.items() if name not in hidden}))
    return found


def flat(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by name: the elements of a sequence as `name[0]`, `name[1]`, and how many there are as `name: length`."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in outputs.items():
        if isinstance(value, (list, tuple)):
            arrays[f"{name}: length"] = np.asarray(len(value), np.int64)
            arrays.update((f"{name}[{i}]", np.asarray(element)) for i, element in enumerate(value))
        else:
            arrays[name] = np.asarray(value)
    return arrays


def plain_runs(cases: Mapping[str, Mapping[str, Any]]) -> list[Run]:
    return [run_of(name, [Part(name)], cases) for name in cases]


def carried_runs(
    cases: Mapping[str, Mapping[str, Any]],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    pairs: Sequence[StatePair],
    free: bool = True,
) -> list[Run]:
    """Steps with the cases of one shape in turn, and where an axis of time can be cut, the longest case in as many pieces.

    free: whether other sizes than those of the cases may be run
    """
    if not pairs:
        return []
    hidden = tuple(pair.input for pair in pairs)
    alike: dict[str, list[str]] = {}
    for case, feeds in cases.items():
        alike.setdefault(repr({n: np.shape(v) for n, v in feeds.items()}), []).append(case)
    runs = []
    for number, group in enumerate(sorted(alike.values(), key=len, reverse=True)[:2]):
        names = [*group, *(group[i % len(group)] for i in range(STEPS - len(group)))]
        runs.append(run_of(f"{len(names)} steps, {number}", [Part(name, hidden) for name in names], cases))
    chunks = chunked(cases, inputs, outputs, pairs) if free else None
    return [*runs, *([chunks[1]] if chunks else [])]


def chunked(
    cases: Mapping[str, Mapping[str, Any]],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    pairs: Sequence[StatePair],
) -> tuple[Run, Run, dict[str, int]] | None:
    """The longest case from the empty state, whole and cut along its axis of time; and the axis of each output. None without one.

    An axis of time is a free dimension, not the batch, that an input and an output share and no state has.
    """
    hidden_in, hidden_out = tuple(p.input for p in pairs), {p.output for p in pairs}
    of_state = {s for spec in inputs if spec.name in hidden_in for s in symbols(spec)}
    given = [spec for spec in outputs if spec.name not in hidden_out and not spec.dtype.startswith("sequence(")]
    for symbol, role in roles_of(inputs).items():
        axes = {spec.name: spec.shape.index(symbol) for spec in inputs if symbol in spec.shape and spec.name not in hidden_in}
        out = {spec.name: spec.shape.index(symbol) for spec in given if symbol in spec.shape}
        if role == "batch" or symbol in of_state or not axes or len(out) < len(given):
            continue
        name, axis = next(iter(axes.items()))
        longest = max(cases, key=lambda case: np.shape(cases[case][name])[axis])
        size = np.shape(cases[longest][name])[axis]
        if size >= STEPS:
            cuts = pairwise(size * i // STEPS for i in range(STEPS + 1))
            parts = [Part(longest, hidden_in, {n: (axes[n], start, stop) for n in axes}) for start, stop in cuts]
            whole = run_of("whole", [Part(longest, hidden_in)], cases)
            return whole, run_of(f"{STEPS} chunks", parts, cases), out
    return None
