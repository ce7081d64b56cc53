"""What of a port has to stay in fp32 when it is compiled to fp16 or bf16: forecast from real activations, written as files, and forecast again.

    forecast -> nodes to keep -> files that the mode reads -> forecast with the nodes that the files name, and no others, kept
                                                           -> outputs do not hold, and nothing overflows: look for the nodes they hang on

The second forecast is of what the files say: a node that no file can name (inside an If, of a name that the file cannot spell, a matrix product
where the matrix unit takes fp16 only) is rounded in it like all the others.

    forecast-overflow    nodes overflow that no file keeps
    forecast-integers    nodes carry integers in floats, and no file keeps them
    forecast-range       an output loses more to the range than to the significand
    forecast-undecided   the significand alone changes more of an output than a bound can be made from
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from porting.ascend.checking import Judged, stored_precision
from porting.ascend.compilation import Compilation
from porting.ascend.half_formats import FORMATS
from porting.ascend.more_kept import fewest_kept
from porting.ascend.overflow import MOST_BY_ROUNDING, NOT_MODELLED, Forecast, OutputForecast, forecasts
from porting.ascend.precision import CUSTOMIZE_DTYPES, KEEP_DTYPE, cannot_keep, cube_takes_fp32
from porting.ascend.side_files import IN_A_BODY, SideFiles, side_files
from porting.errors import InputError, UnsupportedModel
from porting.gear_runs import TOKENS, fixed_capacity
from porting.port_folder import Port
from porting.state import state_buffers
from porting.types import Graph, Program
from porting.verdict import Check, printable

ROUNDS = 4  # what a kept node feeds may overflow next; a chain of more was not seen
NAMED = 5  # nodes that a check names
OVERFLOW, INTEGERS, RANGE, UNDECIDED = "forecast-overflow", "forecast-integers", "forecast-range", "forecast-undecided"
SAYS = {
    OVERFLOW: "on the inputs that were given, {precision} does not hold what a node computes",
    INTEGERS: "a node carries integers in floats, which {precision} holds up to {exact} only",
    RANGE: "on the inputs that were given, an output loses more to the range of {precision} than to its significand",
    UNDECIDED: "on the inputs that were given, the significand of {precision} alone changes too much of an output",
}
TEXTS = 2  # the longest of a language model: each costs several runs of the whole model with every activation looked at


@dataclass(frozen=True, eq=False)
class Exceptions:
    """
    first: the forecast without any exception
    again: the forecast with the nodes that `files` keep; `first` itself where there are none
    notes: for the report
    """

    first: Forecast
    again: Forecast
    files: SideFiles
    notes: tuple[str, ...] = ()

    @property
    def broken(self) -> dict[str, list[str]]:
        """Rule -> nodes, or outputs, that break it although files keep what they can; no rule where the forecast passes."""
        wrong = [output for output in self.again.outputs if not output.holds]
        found = {
            OVERFLOW: [node.name for node in self.again.overflows],
            INTEGERS: list(self.again.inexact),
            RANGE: [output.name for output in wrong if output.error > output.bound],
            UNDECIDED: [output.name for output in wrong if output.error <= output.bound],
        }
        return {rule: names for rule, names in found.items() if names}

    @property
    def contents(self) -> dict[str, bytes]:
        """Name -> bytes of the files, for the hand-off."""
        return {file.name: file.text.encode() for file in self.files.files}

    @property
    def options(self) -> dict[str, str]:
        """Option -> file, for the command."""
        return {file.option: file.name for file in self.files.files}

    def checks(self) -> list[Check]:
        """Whether the format holds the numbers, with the exceptions."""
        wrong = [output for output in self.again.outputs if not output.holds]
        beyond = self.again.overflows
        kept = f"{len(self.again.kept)} nodes kept in fp32" if self.again.kept else "nothing kept in fp32"
        where = _some([n.name for n in beyond]) or (f"{kept}: {_some(self.again.kept)}" if self.again.kept else kept)
        why = "; ".join(f"{printable(n.name, 60)}: {self.why(n.name)}" for n in beyond[:NAMED])
        name = f"forecast of {self.again.precision}: nodes that overflow"
        found = [Check.equal(name, len(beyond), 0, where, f"{OVERFLOW}: {why}" if why else NOT_MODELLED)]
        if rounded := self.again.inexact:
            why = "; ".join(f"{printable(name, 60)}: {self.why(name)}" for name in rounded[:NAMED])
            name = f"forecast of {self.again.precision}: nodes that carry integers in floats and are rounded"
            found.append(Check.equal(name, len(rounded), 0, _some(rounded), f"{INTEGERS}: {why}"))
        worst = max(self.again.outputs, key=lambda o: (not o.holds, o.error / o.bound if o.bound else o.error), default=None)
        if worst is not None:
            found.append(self._of_output(worst, len(wrong), kept))
        return found

    def _of_output(self, worst: OutputForecast, wrong: int, kept: str) -> Check:
        precision = self.again.precision
        name = f"forecast of {precision}: relative error of {worst.name}"
        if worst.undecided and worst.error <= worst.bound:
            tried = "".join(f"{note}; " for note in self.notes)
            why = (
                f"{UNDECIDED}: rounding to the significand of {precision} alone changes {worst.significand:.0%} of it on these inputs; {tried}"
                "matrix products of large numbers that cancel, or inputs that mean nothing; use others (--inputs), or -p fp32 where the SoC has it"
            )
            return Check(name, "error", worst.error, MOST_BY_ROUNDING, kept, why)
        lose = "; ".join(
            [f"{RANGE}: {wrong} outputs lose more to the range of {precision} than to its significand", *self.notes]
        )
        why = lose if wrong else NOT_MODELLED
        return Check.at_most(name, worst.error, worst.bound, kept, why)

    def why(self, name: str) -> str:
        """Why a node overflows, or is lost, all the same."""
        known = self.again.cannot_be_kept.get(name) or self.files.left_out.get(name)
        in_a_loop = name in self.again.inexact and all(node.name != name for node in self.again.nodes)
        return known or (IN_A_BODY if in_a_loop else "it overflows although others are kept")

    def details(self) -> dict[str, Any]:
        """For the report: JSON types only."""
        return {
            "first": self.first.content(),
            "with_exceptions": self.again.content() if self.again is not self.first else None,
            "files": {file.name: file.text for file in self.files.files},
            "not_kept": {
                name: self.why(name)
                for name in (*self.files.left_out, *(n.name for n in self.again.overflows), *self.again.inexact)
            },
            "broken": self.broken,
            "notes": [*self.files.notes, *self.notes],
        }


def no_forecast(judged: Judged) -> str:
    """Why there is nothing to forecast; "" where there is."""
    if judged.mode.keeps_graph and (stored_precision(judged.facts) != "fp32" or cube_takes_fp32(judged.soc)):
        return f"none is needed: {judged.mode.argument} keeps the numbers that the graph has"
    if judged.mode.keeps_graph:
        return (
            f"none is made: {judged.mode.argument} asks for the numbers that the graph has; whether the matrix unit of {judged.soc.name} takes "
            "fp32 is unknown, and with it whether matrix products run so, on the AI CPU, or not at all: -p fp16 forecasts what that would cost"
        )
    if stored_precision(judged.facts) == judged.precision:
        return f"none is needed: the graph is in {judged.precision} itself"
    if judged.precision not in FORMATS:
        return "none: `porting port SOURCE -p w8a8 --calibration x.npz` says layer by layer what int8 costs"
    return ""


def exceptions_for(judged: Judged, source: Graph | Program, cases: Sequence[Mapping[str, np.ndarray]]) -> Exceptions | None:
    """Forecast, and what follows; None where nodes compute in what the graph says, and no number changes.

    source: the lowered graph, or a port of it
    cases:  each an array for every input, state included
    raises: InputError for NaN, and as `forecast`
    """
    if no_forecast(judged):
        return None
    for feeds in cases:
        for name, array in feeds.items():
            if np.issubdtype(np.asarray(array).dtype, np.floating) and np.isnan(array).any():
                raise InputError(
                    f"input {printable(name, 60)!r} holds NaN: what follows from it says nothing", where="forecast"
                )
    notes: tuple[str, ...] = ()

    def files_of(found: Forecast) -> SideFiles:
        return side_files(judged.mode, judged.soc, judged.facts, judged.precision, found)

    with forecasts(source, cases, soc=judged.soc, precision=judged.precision) as run:
        first = again = run(())
        files = files_of(first)
        for _ in range(ROUNDS):
            named = kept_by(files)
            if set(named) == set(again.kept):
                break
            again = run(named)
            files = files_of(again)
        if not (again.passes or again.overflows or again.inexact):
            nodes = [node.name for node in again.nodes if not cannot_keep(judged.soc, node.op)]
            search = fewest_kept(run, again, kept_by(files_of(replace(again, kept=tuple(nodes)))))
            notes = (search.note,)
            if search.kept is not None:
                again = run(search.kept)
                files = files_of(again)
    return Exceptions(first, again, files, notes)


def with_exceptions(
    compilation: Compilation, port: Port, cases: Mapping[str, Any]
) -> tuple[Compilation, list[Check], dict[str, Any]]:
    """A port's exceptions, made from what it is validated on: what is handed over, the checks, and the part of the report.

    cases:  feeds, or of a language model token ids, by case
    raises: InputError (NaN among the numbers), RuntimeFailed, OutOfResources
    """
    program = port.program()
    texts = sorted((v for v in cases.values() if not isinstance(v, Mapping)), key=lambda ids: -ids.size)[:TEXTS]
    feeds = [v for v in cases.values() if isinstance(v, Mapping)] or [token_feeds(program, ids) for ids in texts]
    try:
        found = exceptions_for(compilation.judged, program, feeds)
    except UnsupportedModel as error:
        return compilation, [], {"forecast": f"none: {error.what}"}
    if found is None:
        return compilation, [], {}
    notes = [*compilation.notes, *found.files.notes, *found.notes]
    if found.files.left_out:
        notes.append(f"{len(found.files.left_out)} nodes should stay in fp32 and cannot: {_some(list(found.files.left_out))}")
    longest = max((ids.shape[1] for ids in texts), default=0)
    most = most_tokens(program) if texts else None
    if most is not None and longest > most:
        notes.append(
            f"the forecast looked at the first {most} of {longest} tokens: the graph takes no more from an empty cache"
        )
    handed = replace(
        compilation,
        side_files={**compilation.side_files, **found.contents},
        side_options={**compilation.side_options, **found.options},
        notes=notes,
    )
    return handed, found.checks(), {"forecast": found.details()}


def kept_by(files: SideFiles) -> tuple[str, ...]:
    """Nodes that the files keep in fp32, by name."""
    return tuple(dict.fromkeys(n for f in files.files if f.option in (KEEP_DTYPE, CUSTOMIZE_DTYPES) for n in f.nodes))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(printable(name, 60) for name in names[:NAMED]) + more


def most_tokens(program: Program) -> int | None:
    """Of a language model, those that one run from an empty cache takes; None where nothing limits them."""
    sequence = next(spec for spec in program.inputs if spec.name == TOKENS).shape[1]
    return min((n for n in (sequence, fixed_capacity(program)) if isinstance(n, int)), default=None)


def token_feeds(program: Program, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Feeds for a prompt from an empty state, every input included; of a longer one than a run takes its first tokens.

    ids: (batch, sequence) int64, of a language model's graph
    """
    ids = ids[:, : most_tokens(program)]
    rows = next(spec for spec in program.inputs if spec.name == TOKENS).shape[0]
    if isinstance(rows, int):
        ids = np.resize(ids, (rows, ids.shape[1]))  # rows are taken again, or left out
    pairs = state_buffers(program, ids.shape[1], len(ids))
    feeds: dict[str, np.ndarray] = {name: np.zeros(buffer.shape, buffer.dtype) for name, buffer in pairs.items()}
    if program.state.length is not None:
        feeds[program.state.length] = np.zeros(len(ids), np.int64)
    specs = {spec.name: spec for spec in program.inputs}
    for name, number in program.defaults.items():
        feeds[name] = np.full([d if isinstance(d, int) else 1 for d in specs[name].shape], number, specs[name].dtype)
    return {**feeds, TOKENS: ids}
