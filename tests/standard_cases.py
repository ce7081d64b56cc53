"""The ONNX standard's own test cases, which come with the onnx package: models, what they are fed, and the outputs that its authors worked out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from tests.graph_bits import run

SAMPLE = 9  # every how many cases of single operators without -m slow
FOLDERS = ("simple", "pytorch-operator", "pytorch-converted")


@cache
def cases() -> dict[str, TestCase]:
    """All that are there without a download, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the makers of the cases divide by zero on purpose
        found = [case for kind in ("node", *FOLDERS) for case in load_model_tests(kind=kind)]
    return {case.name: case for case in found}


def model_of(case: TestCase) -> onnx.ModelProto:
    return case.model if case.model is not None else onnx.load(Path(str(case.model_dir), "model.onnx"))


def data_of(case: TestCase, model: onnx.ModelProto) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """(feeds by name, outputs expected)"""
    names = [v.name for v in model.graph.input]
    if case.data_sets is not None:
        for inputs, outputs in case.data_sets:
            yield {n: v for n, v in zip(names, inputs, strict=False) if v is not None}, list(outputs)
        return
    for folder in sorted(Path(str(case.model_dir)).glob("test_data_set_*")):
        inputs = [
            _read(folder / f"input_{i}.pb", v.type)
            for i, v in enumerate(model.graph.input)
            if (folder / f"input_{i}.pb").exists()
        ]
        yield (
            dict(zip(names, inputs, strict=False)),
            [_read(folder / f"output_{i}.pb", v.type) for i, v in enumerate(model.graph.output)],
        )


def _read(file: Path, kind: onnx.TypeProto) -> Any:
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(file.read_bytes()))
    return numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes()))


def try_run(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any] | None:
    """As `run`; None where onnxruntime does not take the model or the feeds."""
    try:
        return run(model.SerializeToString(), feeds)
    except Exception:  # its binding raises a class per status, and TypeError for what it cannot convert
        return None


def close(got: Any, wanted: Any, rtol: float, atol: float) -> bool:
    """As onnx's own runner compares."""
    if isinstance(wanted, list | tuple):
        return (
            isinstance(got, list | tuple)
            and len(got) == len(wanted)
            and all(close(g, w, rtol, atol) for g, w in zip(got, wanted, strict=True))
        )
    if got is None or wanted is None:
        return got is None and wanted is None
    got, wanted = np.asarray(got), np.asarray(wanted)
    if got.shape != wanted.shape:
        return False
    if wanted.dtype.kind in "OSU":
        return bool(np.all(got.astype(str) == wanted.astype(str)))
    if got.dtype != wanted.dtype:
        return False
    return (
        bool(np.allclose(got.astype(np.float64), wanted.astype(np.float64), rtol, atol, equal_nan=True))
        if wanted.dtype.kind != "c"
        else bool(np.allclose(got, wanted))
    )


def older(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same nodes, declared to be of another opset. Whether that is a model, onnxruntime says."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for entry in changed.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    return changed


def passes(case: TestCase, model: onnx.ModelProto, feeds: dict[str, Any], wanted: list[Any]) -> bool:
    before = try_run(model, feeds)
    return before is not None and close(before, wanted, case.rtol, case.atol)
