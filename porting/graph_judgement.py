"""A graph and what it is held against: the untouched model with inputs for it, or a golden."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from porting.conversion import W8A8, Canonical, graph_config
from porting.dtypes import dtype_of
from porting.errors import InputError
from porting.feeds import Cases, Recipe, cases_from_npz, find_cases, require_feeds
from porting.gear_runs import Gear, gear_of, name_of
from porting.golden_file import ModelIdentity
from porting.graph_golden import GoldenGraphReference, GraphGolden, golden_of_graph
from porting.graph_reference import GraphReference, OriginalReference
from porting.graph_validation import judge_graph
from porting.identity import graph_hash
from porting.port_folder import MODEL, Port
from porting.port_original import PortOriginal
from porting.progress import silent
from porting.recording import tool_versions
from porting.state import batch_place, state_buffers
from porting.types import GraphSource, Original, Program, StatePair, StateSpec, TensorSpec
from porting.verdict import Check, Verdict, printable

NUDGE = 0.01  # relative
FEWEST = 4  # generated cases


class GraphJudgement:
    """A reference for ports of kind "graph".

    config: as port.json has it: inputs and outputs tell one model from another, the numbers show the rest; None of a golden, which has its hash
    """

    def __init__(self, reference: GraphReference, cases: Cases, config: Mapping[str, Any] | None) -> None:
        self.reference = reference
        self.cases = cases
        self.description = reference.description
        self._config = config

    @property
    def case_feeds(self) -> Mapping[str, Any]:
        return self.cases.feeds

    def require_model(self, architecture: str, config: Mapping[str, Any]) -> None:
        """raises: InputError for a model with other inputs or outputs"""
        if isinstance(self.reference, GoldenGraphReference):
            self.reference.golden.require_model(ModelIdentity(architecture, graph_hash(config), {}))
            return
        assert self._config is not None
        if graph_hash(config) == graph_hash(self._config):
            return
        differing = [
            f"{what}: expected {printable(str(self._config[what]), 200)}, got {printable(str(config[what]), 200)}"
            for what in ("inputs", "outputs")
            if config[what] != self._config[what]
        ]
        raise InputError(
            f"the reference is another model: {'; '.join(differing)}",
            where=self.description,
            next="validate against the port's own source or golden",
        )

    def prepare(self) -> None:
        self.reference.prepare()

    def judge(
        self, port: Port, device: str, *, command: str = "validate", progress: Any = silent, more: Sequence[Check] = ()
    ) -> Verdict:
        """raises: InputError (another model, inputs that show nothing), DeviceUnavailable"""
        self.require_model(str(port.manifest["architecture"]), port.manifest["config"])
        if port.precision == W8A8:
            from porting.ascend.w8a8_validation import judge_w8a8

            return judge_w8a8(port, self.reference, device, command=command, progress=progress, more=more)
        return judge_graph(port, self.reference, device, command=command, progress=progress, more=more)

    def golden(self, identity: ModelIdentity, device: str = "cpu") -> GraphGolden:
        """What the reference computed, or the golden that it came from."""
        cases = (
            self.reference.cases if isinstance(self.reference, OriginalReference) else self.cases
        )  # more may have come to them
        return golden_of_graph(self.reference, cases.feeds, cases.recipes, identity, tool_versions(), "source", device)


def judgement_of_graph(
    canonical: Canonical, source: GraphSource, inputs: Sequence[Path], gears: Sequence[Gear] = ()
) -> GraphJudgement:
    """The untouched model, with the user's inputs, or generated ones. raises: InputError when nothing fits it"""
    pairs = canonical.graph.state.pairs
    cases = cases_for(source, inputs, pairs, gears)
    reference = OriginalReference(
        source.original,
        cases,
        source.inputs,
        source.outputs,
        pairs,
        source.onnx_path,
        source.cut,
        generated_for(source, gears) if source.examples or inputs else None,
        free=not gears,
    )
    return GraphJudgement(reference, cases, graph_config(source))


def judgement_of_graph_golden(path: Path) -> GraphJudgement:
    """What was recorded. raises: InputError"""
    golden = GraphGolden.load(path)
    return GraphJudgement(GoldenGraphReference(golden, path.name), Cases(golden.cases, golden.recipes), None)


def judgement_of_graph_port(port: Port, inputs: Sequence[Path], device: str) -> GraphJudgement:
    """Another port, or one to be recorded. raises: InputError, DeviceUnavailable"""
    program = port.program()
    interface = Interface(program.inputs, program.outputs, (), lambda: PortOriginal(port, device))
    cases = cases_for(interface, inputs, program.state.pairs, program.gears)
    reference = OriginalReference(
        interface.original,
        cases,
        program.inputs,
        program.outputs,
        program.state.pairs,
        port.path / MODEL,
        free=not program.gears,
        kind="self",
    )
    return GraphJudgement(reference, cases, port.manifest["config"])


@dataclass(frozen=True)
class Interface:
    """What of a source is needed to find inputs for it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    examples: Sequence[Mapping[str, Any]]
    original: Callable[[], Original]


def cases_for(
    source: GraphSource | Interface, inputs: Sequence[Path], pairs: Sequence[StatePair], gears: Sequence[Gear] = ()
) -> Cases:
    """What a graph is validated on.

    The user's examples, the first of them with other values, and stretched along each free dimension; without any, generated inputs that the
    original takes.
    State that an example leaves out is zeros.
    gears:  the only shapes that are taken, each at least once; () for all
    raises: InputError for examples that do not fit, or are no gear, and where no generated input does
    """
    original = source.original()
    try:
        if source.examples:
            given = {f"example{i}": dict(feeds) for i, feeds in enumerate(source.examples)}
        elif inputs:
            hidden = {pair.input for pair in pairs}
            without_state = [spec for spec in source.inputs if spec.name not in hidden]
            given = {name: dict(feeds) for name, feeds in _read(inputs, source.inputs, without_state).items()}
        else:
            return cases_in_gears(source.inputs, original, gears) if gears else find_cases(source.inputs, original.run)
        complete = {name: with_state(feeds, source, pairs) for name, feeds in given.items()}
        for name, feeds in complete.items():
            require_feeds(feeds, source.inputs, name)
            original.run(feeds)  # the user's own inputs have to run
        if gears:
            return cases_in_gears(source.inputs, original, gears, complete)
        return stretched(complete, source.inputs, original)
    finally:
        original.close()


def cases_in_gears(
    specs: Sequence[TensorSpec], original: Original, gears: Sequence[Gear], given: Mapping[str, Mapping[str, Any]] | None = None
) -> Cases:
    """Cases in the shapes that a port knows: those given, the first with other values too; for gears that none of them has the first one
    repeated or cut, and generated ones where none is given or the original does not take that.

    raises: InputError for one given that is no gear, and for a gear that the original takes no generated input of
    """
    cases: dict[str, Mapping[str, Any]] = dict(given or {})
    recipes: dict[str, Recipe] = {}
    met = []
    for feeds in cases.values():
        met.append(gear_of(gears, {spec.name: np.shape(feeds[spec.name]) for spec in specs}))
    if cases:
        first = next(iter(cases))
        others = _other_values(cases[first], specs, original)
        cases |= {f"{first}, other values": others} if others is not None else {}
    for gear in gears:
        if gear in met:
            continue
        brought = _brought(next(iter(given.values())), specs, gear, original) if given else None
        if brought is not None:
            cases[f"{next(iter(given or {}))}, {name_of(gear, gears)}"] = brought
            continue
        fixed = [replace(spec, shape=gear[spec.name]) for spec in specs]
        try:
            found = find_cases(fixed, original.run, wanted=max(2, FEWEST // len(gears)))
        except InputError as error:
            raise InputError(
                f"the model takes no generated input in the gear {name_of(gear, gears)}: {error.what}",
                where="gears",
                next="leave that gear out, or give inputs of its shapes with --inputs x.npz",
            ) from error
        cases |= {f"{name}, {name_of(gear, gears)}": feeds for name, feeds in found.feeds.items()}
        recipes |= {f"{name}, {name_of(gear, gears)}": recipe for name, recipe in found.recipes.items()}
    return Cases(cases, recipes)


def _brought(feeds: Mapping[str, Any], specs: Sequence[TensorSpec], gear: Gear, original: Original) -> dict[str, Any] | None:
    """Feeds repeated or cut along each axis to the shapes of a gear; None where the original does not take them."""
    found = {}
    for spec in specs:
        array = np.asarray(feeds[spec.name])
        for axis, size in enumerate(gear[spec.name]):
            array = np.take(array, np.arange(size) % array.shape[axis], axis)
        found[spec.name] = array
    try:
        original.run(found)
    except InputError:
        return None
    return found


def generated_for(source: GraphSource, gears: Sequence[Gear] = ()) -> Callable[[], Cases]:
    """Generated cases, none where the original takes none."""

    def find() -> Cases:
        original = source.original()
        try:
            return cases_in_gears(source.inputs, original, gears) if gears else find_cases(source.inputs, original.run)
        except InputError:
            return Cases({})
        finally:
            original.close()

    return find


def _read(inputs: Sequence[Path], specs: Sequence[TensorSpec], without_state: Sequence[TensorSpec]) -> Mapping[str, Any]:
    """The cases of the user's files, whether they hold state or not."""
    try:
        return cases_from_npz(inputs, without_state).feeds
    except InputError:
        return cases_from_npz(inputs, specs).feeds


def with_state(feeds: Mapping[str, Any], source: GraphSource | Interface, pairs: Sequence[StatePair]) -> dict[str, Any]:
    """`feeds` with zeros for the state that it leaves out. raises: InputError for state whose size nothing settles"""
    missing = [pair.input for pair in pairs if pair.input not in feeds]
    if not missing:
        return dict(feeds)
    program = Program(b"", source.inputs, source.outputs, StateSpec(tuple(pairs)))
    place = batch_place(program, tuple(spec for spec in source.inputs if spec.name in feeds))
    batch = 1 if place is None else int(np.shape(feeds[place[0]])[place[1]])
    buffers = state_buffers(program, 0, batch)
    return {**feeds, **{name: np.zeros(buffers[name].shape, buffers[name].dtype) for name in missing}}


def stretched(given: Mapping[str, Mapping[str, Any]], specs: Sequence[TensorSpec], original: Any) -> Cases:
    """The given cases, the first with other values, and repeated once along each free dimension in turn, where the original takes that.

    Other values, because what a program computed from the example alone, and wrote down as a constant, is right for the example.

    What is repeated stays what the model is meant for, which random numbers of another size would not be. Floats are up to NUDGE smaller the
    second time: numbers that are equal have no order, and what sorts them may give any.
    """
    first = next(iter(given.values()))
    symbols = dict.fromkeys(dim for spec in specs for dim in spec.shape if isinstance(dim, str))
    cases, only = dict(given), []
    others = _other_values(first, specs, original)
    if others is not None:
        cases[f"{next(iter(given))}, other values"] = others
    for symbol in symbols:
        sizes = {np.shape(feeds[s.name])[s.shape.index(symbol)] for feeds in given.values() for s in specs if symbol in s.shape}
        if len(sizes) > 1:
            continue
        longer = {spec.name: _repeated(first[spec.name], spec, symbol) for spec in specs}
        try:
            original.run(longer)
            cases[f"{next(iter(given))}, {printable(symbol)} doubled"] = longer
        except Exception as error:
            if not isinstance(error, InputError):
                raise
            only.append(f"{symbol} = {next(iter(sizes))}")
    return Cases(cases, {}, tuple(only))


def _other_values(feeds: Mapping[str, Any], specs: Sequence[TensorSpec], original: Any) -> dict[str, Any] | None:
    """Feeds of the same shapes that the original takes: floats up to half as large, and whole numbers above 1 one smaller where it takes
    that too, so that lengths stay in order and ids in range. None where it takes none."""
    rng = np.random.default_rng(1)
    floats, whole = {}, {}
    for spec in specs:
        value = feeds[spec.name]
        kind = value.dtype.kind if isinstance(value, np.ndarray) else ""
        if kind == "f":
            floats[spec.name] = np.asarray(value * rng.uniform(0.5, 1, value.shape), value.dtype)
        elif kind in "iu" and value.size:
            whole[spec.name] = np.asarray(np.where(value > 1, value - 1, value), value.dtype)
    for changed in ({**floats, **whole}, floats, whole):
        candidate = {**feeds, **changed}
        if any(not np.array_equal(candidate[name], feeds[name], equal_nan=True) for name in changed):
            try:
                original.run(candidate)
            except InputError:
                continue
            return candidate
    return None


def _repeated(value: Any, spec: TensorSpec, symbol: str) -> Any:
    if symbol not in spec.shape or not isinstance(value, np.ndarray):
        return value
    array = value
    nudges = np.random.default_rng(0)
    for axis in [axis for axis, dim in enumerate(spec.shape) if dim == symbol]:
        again = array * (1 - NUDGE * nudges.random(array.shape)) if dtype_of(spec.dtype).kind == "f" else array
        array = np.concatenate([array, again], axis)
    return np.ascontiguousarray(array, dtype_of(spec.dtype) if spec.dtype != "string" else None)
