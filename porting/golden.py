"""A golden: what a reference implementation computed, in kilobytes, so that a port can be judged where that is not installed.

One JSON file (docs/golden_format.md): inputs in full, outputs as sketches, who recorded them from which model, and a SHA-256 over
the canonical content. The hash shows that nothing changed since it was written; it does not show who wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from porting.checked_json import object_with, table
from porting.errors import InputError
from porting.golden_file import (
    INTEGRITY,
    ModelIdentity,
    array_content,
    array_from,
    at_place,
    content_of,
    file_bytes,
    model_content,
    model_from,
    read_file,
    recorded_from,
    require_same_model,
    sketch_content,
    sketch_from,
    texts_from,
    write_file,
)
from porting.numerics.sketch import Sketch
from porting.verdict import printable

SCHEMA = "porting.golden/1"


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """One run: input name -> array, output name -> sketch of what came out."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, Sketch]


@dataclass(frozen=True, eq=False)
class Golden:
    """What was recorded.

    model:     which model
    tools:     library -> version
    reference: what was run ("transformers LlamaForCausalLM"); precision and device: how ("fp32", "cpu")
    cases:     name -> case, at least one with an output
    integrity: what stands behind the bytes
    """

    model: ModelIdentity
    tools: Mapping[str, str]
    reference: str
    precision: str
    device: str
    cases: Mapping[str, GoldenCase]
    integrity: str = INTEGRITY

    def to_bytes(self) -> bytes:
        """The file's bytes.

        raises: InputError for what a golden cannot hold: NaN in an output, no cases, inputs too large or of another dtype
        """
        content = _content_of(self)
        _golden_from(content)  # what could not be read back is not written
        return file_bytes(content, SCHEMA)

    def save(self, path: str | Path) -> None:
        """Write the file in one step: at no moment is there half a golden at `path`.

        raises: InputError as `to_bytes` and for a place that cannot be written, OutOfResources for a full disk
        """
        write_file(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> Golden:
        """Read and check a golden.

        raises: InputError saying what is wrong: no such file, no JSON, truncated, another or a newer schema, a changed byte,
                unknown or missing keys, sizes that cannot be meant
        """
        data = read_file(path)
        try:
            return cls.from_bytes(data)
        except InputError as error:
            raise at_place(error, path) from error

    @classmethod
    def from_bytes(cls, data: bytes) -> Golden:
        """As `load`, from the file's bytes."""
        return _golden_from(content_of(data, SCHEMA))

    def require_model(self, model: ModelIdentity) -> list[str]:
        """See `require_same_model`. raises: InputError"""
        return require_same_model(self.model, model)


def _content_of(golden: Golden) -> dict[str, Any]:
    return {
        "model": model_content(golden.model),
        "tools": dict(golden.tools),
        "recorded": {"reference": golden.reference, "precision": golden.precision, "device": golden.device},
        "cases": {
            name: {
                "inputs": {k: array_content(v, k) for k, v in case.inputs.items()},
                "outputs": {k: sketch_content(v) for k, v in case.outputs.items()},
            }
            for name, case in golden.cases.items()
        },
    }


def _golden_from(content: Any) -> Golden:
    content = object_with(content, ("model", "tools", "recorded", "cases"), "content")
    cases = {n: _case_from(c, f"case {printable(n, 60)}") for n, c in table(content["cases"], "content.cases").items()}
    if not any(case.outputs for case in cases.values()):
        raise InputError("no case with an output: nothing to compare with", where="content.cases")
    recorded = recorded_from(content["recorded"])
    return Golden(model_from(content["model"]), texts_from(content["tools"], "tools"), *recorded, cases=cases)


def _case_from(case: Any, where: str) -> GoldenCase:
    case = object_with(case, ("inputs", "outputs"), where)
    inputs = {n: array_from(a, f"{where}, input {printable(n, 60)}") for n, a in table(case["inputs"], where).items()}
    outputs = {n: sketch_from(s, f"{where}, output {printable(n, 60)}") for n, s in table(case["outputs"], where).items()}
    return GoldenCase(inputs, outputs)


__all__ = ["Golden", "GoldenCase", "ModelIdentity"]
