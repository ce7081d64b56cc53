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


@dataclass(frozen=True, eq=False)
class Run:
    """One or more steps.

    steps:  feeds of each, state included unless it is carried
    start:  the state before the first step, by input name; then each step's state is what the one before gave. Empty: nothing is carried
    forced: If node -> branch
    """

    name: str
    steps: tuple[Mapping[str, Any], ...]
    start: Mapping[str, np.ndarray] = field(default_factory=dict)
    forced: Mapping[str, bool] = field(default_factory=dict)


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
    return [Run(name, (feeds,)) for name, feeds in cases.items()]


def carried_runs(
    cases: Mapping[str, Mapping[str, Any]],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    pairs: Sequence[StatePair],
) -> list[Run]:
    """Steps with the cases of one shape in turn, and where an axis of time can be cut, the longest case in as many pieces."""
    if not pairs:
        return []
    hidden = {pair.input for pair in pairs}
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for feeds in cases.values():
        alike.setdefault(repr({n: np.shape(v) for n, v in feeds.items()}), []).append(feeds)
    runs = []
    for number, group in enumerate(sorted(alike.values(), key=len, reverse=True)[:2]):
        steps = [{n: v for n, v in feeds.items() if n not in hidden} for feeds in group]
        while len(steps) < STEPS:
            steps.append(steps[len(steps) % len(group)])
        runs.append(Run(f"{len(steps)} steps, {number}", tuple(steps), _zeros(group[0], hidden)))
    chunks = chunked(cases, inputs, outputs, pairs)
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
    hidden_in, hidden_out = {p.input for p in pairs}, {p.output for p in pairs}
    roles = roles_of(inputs)
    of_state = {s for spec in inputs if spec.name in hidden_in for s in symbols(spec)}
    given = [spec for spec in outputs if spec.name not in hidden_out and not spec.dtype.startswith("sequence(")]
    for symbol, role in roles.items():
        axes = {spec.name: spec.shape.index(symbol) for spec in inputs if symbol in spec.shape and spec.name not in hidden_in}
        out = {spec.name: spec.shape.index(symbol) for spec in given if symbol in spec.shape}
        if role == "batch" or symbol in of_state or not axes or len(out) < len(given):
            continue
        name, axis = next(iter(axes.items()))
        longest = max(cases, key=lambda case: np.shape(cases[case][name])[axis])
        size = np.shape(cases[longest][name])[axis]
        if size < STEPS:
            continue
        feeds = {n: v for n, v in cases[longest].items() if n not in hidden_in}
        cuts = [size * i // STEPS for i in range(STEPS + 1)]
        steps = tuple(
            {n: np.ascontiguousarray(np.take(v, range(a, b), axes[n])) if n in axes else v for n, v in feeds.items()}
            for a, b in pairwise(cuts)
        )
        start = _zeros(cases[longest], hidden_in)
        return Run("whole", (feeds,), start), Run(f"{STEPS} chunks", steps, start), out
    return None


def _zeros(feeds: Mapping[str, Any], names: set[str]) -> dict[str, np.ndarray]:
    missing = sorted(names - set(feeds))
    if missing:
        raise InputError(f"a case has no state {missing[0]!r}: its shape is not known", where="inputs for validation")
    return {name: np.zeros_like(feeds[name]) for name in names}


def batch_of(run: Run, inputs: Sequence[TensorSpec]) -> int:
    """Rows of the state that a run starts from: the dimension called "batch", else dimension 0 where it is free."""
    for spec in inputs:
        if spec.name in run.start:
            free = [a for a, d in enumerate(spec.shape) if d == "batch"] or [0] * (not isinstance(spec.shape[0], int))
            if free:
                return int(run.start[spec.name].shape[free[0]])
    return 1
