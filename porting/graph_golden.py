"""A golden of a graph: the runs that showed something, and of each output a sketch or a hash, with the noise that was measured.

One JSON file (docs/golden_format.md). Inputs are kept in full when they are small or the user's own, else as the recipe that makes them,
with a hash of each array, so that a generator that changed is seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from porting.checked_json import MAX_NAME, object_with, table, text
from porting.errors import InputError
from porting.feeds import Recipe
from porting.golden_file import (
    INTEGRITY,
    ModelIdentity,
    at_place,
    content_of,
    file_bytes,
    model_content,
    model_from,
    read_file,
    recorded_from,
    require_same_model,
    texts_from,
    write_file,
)
from porting.graph_golden_parts import (
    case_content,
    case_from,
    conditional_content,
    conditional_from,
    kept_of,
    list_of,
    output_content,
    output_from,
    pair_of,
    part_from,
    truth,
)
from porting.graph_reference import GraphReference, Recorded
from porting.graph_runs import run_of
from porting.onnx_facts import Conditional
from porting.reference import OF_A_PORT
from porting.verdict import printable

SCHEMA = "porting.graph-golden/1"
NOTES = ("not_reached", "only_one_size", "shows_nothing", "chunks_equal_the_whole")


@dataclass(frozen=True, eq=False)
class GraphGolden:
    """What was recorded.

    cases:        case name -> feeds; recipes: of those that are generated
    recorded:     the runs, outputs as sketches and hashes
    conditionals: the Ifs of the original
    notes:        what the judge repeats: NOTES
    """

    model: ModelIdentity
    tools: Mapping[str, str]
    reference: str
    precision: str
    device: str
    cases: Mapping[str, Mapping[str, Any]]
    recipes: Mapping[str, Recipe]
    recorded: Sequence[Recorded]
    conditionals: Sequence[Conditional] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    integrity: str = INTEGRITY

    def to_bytes(self) -> bytes:
        """raises: InputError for what a golden cannot hold: no runs, inputs too large or of another dtype"""
        content = _content(self)
        _golden_from(content)  # what could not be read back is not written
        return file_bytes(content, SCHEMA)

    def save(self, path: str | Path) -> None:
        """Write in one step. raises: InputError, OutOfResources"""
        write_file(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> GraphGolden:
        """raises: InputError saying what is wrong, a generator that makes other inputs now included"""
        data = read_file(path)
        try:
            return cls.from_bytes(data)
        except InputError as error:
            raise at_place(error, path) from error

    @classmethod
    def from_bytes(cls, data: bytes) -> GraphGolden:
        """As `load`, from the file's bytes."""
        return _golden_from(content_of(data, SCHEMA))

    def require_model(self, model: ModelIdentity) -> list[str]:
        """See `require_same_model`. raises: InputError"""
        return require_same_model(self.model, model)


class GoldenGraphReference:
    """A golden as a `GraphReference`. Recorded from a port it is no better than a port: "self"."""

    def __init__(self, golden: GraphGolden, name: str) -> None:
        self.golden = golden
        self.kind = "self" if golden.reference.startswith(OF_A_PORT) else "golden"
        self.description = f"{name}: {golden.reference}, {golden.precision} on {golden.device}; {golden.integrity}"
        self.recorded = golden.recorded
        self.conditionals = golden.conditionals
        sizes = {case: {n: list(np.shape(v)) for n, v in feeds.items()} for case, feeds in golden.cases.items()}
        self.details = {"sizes": sizes, **golden.notes}

    @classmethod
    def load(cls, path: Path) -> GoldenGraphReference:
        """raises: InputError"""
        return cls(GraphGolden.load(path), path.name)

    def prepare(self) -> None:
        """It ran when it was recorded."""


def golden_of_graph(
    reference: GraphReference,
    cases: Mapping[str, Mapping[str, Any]],
    recipes: Mapping[str, Recipe],
    identity: ModelIdentity,
    tools: Mapping[str, str],
    precision: str = "fp32",
    device: str = "cpu",
) -> GraphGolden:
    """The golden of a reference that has run; of one that is a golden, that one."""
    if isinstance(reference, GoldenGraphReference):
        return reference.golden
    recorded = [
        Recorded(
            one.run,
            [{n: kept_of(e, small.get(n)) for n, e in step.items()} for step, small in one.steps_and_small],
            one.noise,
            one.small,
        )
        for one in reference.recorded
    ]
    notes = {name: reference.details[name] for name in NOTES if name in reference.details}
    return GraphGolden(
        identity, tools, reference.description, precision, device, cases, recipes, recorded, reference.conditionals, notes
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def _content(golden: GraphGolden) -> dict[str, Any]:
    return {
        "model": model_content(golden.model),
        "tools": dict(golden.tools),
        "recorded": {"reference": golden.reference, "precision": golden.precision, "device": golden.device},
        "inputs": {name: case_content(feeds, golden.recipes.get(name)) for name, feeds in golden.cases.items()},
        "runs": [_run_content(one) for one in golden.recorded],
        "ifs": [conditional_content(one) for one in golden.conditionals],
        "notes": {name: golden.notes.get(name) for name in NOTES},
    }


def _run_content(one: Recorded) -> dict[str, Any]:
    noise = one.noise or [{} for _ in one.steps]
    return {
        "name": one.run.name,
        "forced": [list(pair) for pair in one.run.forced.items()],  # in order: the last is the If that the run is for
        "steps": [
            {
                "case": part.case,
                "without": list(part.without),
                "cut": {name: list(place) for name, place in part.cut.items()},
                "outputs": {name: output_content(e, of_step.get(name), small.get(name)) for name, e in step.items()},
            }
            for part, (step, small), of_step in zip(one.run.parts, one.steps_and_small, noise, strict=True)
        ],
    }


# --- reading: every value is checked before it is used ------------------------------------------------------------------


def _golden_from(content: Any) -> GraphGolden:
    content = object_with(content, ("model", "tools", "recorded", "inputs", "runs", "ifs", "notes"), "content")
    cases, recipes = {}, {}
    for name, value in table(content["inputs"], "content.inputs").items():
        cases[name], recipe = case_from(value, f"case {printable(name, 60)}")
        if recipe is not None:
            recipes[name] = recipe
    recorded = [_run_from(value, cases, f"run {i}") for i, value in enumerate(list_of(content["runs"], "content.runs"))]
    if not any(step for one in recorded for step in one.steps):
        raise InputError("no run with an output: nothing to compare with", where="content.runs")
    return GraphGolden(
        model_from(content["model"]),
        texts_from(content["tools"], "tools"),
        *recorded_from(content["recorded"]),
        cases=cases,
        recipes=recipes,
        recorded=recorded,
        conditionals=[conditional_from(value) for value in list_of(content["ifs"], "content.ifs")],
        notes=_notes_from(content["notes"]),
    )


def _run_from(value: Any, cases: Mapping[str, Mapping[str, Any]], where: str) -> Recorded:
    value = object_with(value, ("name", "forced", "steps"), where)
    name = text(value["name"], where)
    listed = [pair_of(entry, 2, where) for entry in list_of(value["forced"], where)]
    forced = {text(node, where): truth(branch, where) for node, branch in listed}
    parts, outputs, noise, small = [], [], [], []
    for entry in list_of(value["steps"], where):
        step = object_with(entry, ("case", "without", "cut", "outputs"), where)
        parts.append(part_from(step, cases, where))
        found = {n: output_from(o, f"{where}, output {printable(n, 60)}") for n, o in table(step["outputs"], where).items()}
        outputs.append({n: expected for n, (expected, _, _) in found.items()})
        noise.append({n: measured for n, (_, measured, _) in found.items() if measured is not None})
        small.append({n: of_small for n, (_, _, of_small) in found.items() if of_small is not None})
    if not parts:
        raise InputError("a run without a step", where=where)
    measured = any(noise) or all(e.exact for step in outputs for e in step.values())
    return Recorded(run_of(name, parts, cases, forced), outputs, noise if measured else None, small)


def _notes_from(value: Any) -> dict[str, Any]:
    value = object_with(value, NOTES, "content.notes")
    notes: dict[str, Any] = {}
    for name in NOTES:
        if name == "chunks_equal_the_whole":
            if value[name] is not None:
                notes[name] = truth(value[name], "content.notes")
        elif value[name] is not None:
            notes[name] = [str(line)[: 4 * MAX_NAME] for line in list_of(value[name], "content.notes")]
    return notes
