"""Graphs that are fed arrays of every dtype that onnxruntime takes: ported, kept in a golden, and validated from the port alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import porting
from porting.ascend.rules import rules
from porting.dtypes import dtype_of
from porting.golden_file import INPUT_DTYPES, array_content, array_from

ONNX = {name: helper.np_dtype_to_tensor_dtype(dtype_of(name)) for name in INPUT_DTYPES}
REFUSED = ("bfloat16", "float8_e4m3fn", "float8_e5m2")  # at what opset an Identity takes them, and on 310P not at all
IN_NPZ = [name for name in INPUT_DTYPES if not hasattr(ml_dtypes, name)]


def numbers(dtype: str) -> np.ndarray:
    """(2, 3), with the least and the largest number of an integer type."""
    kind = dtype_of(dtype)
    if kind.kind in "iu":
        return np.array([[0, 1, 2], [7, np.iinfo(kind).min, np.iinfo(kind).max]], kind)
    return np.array([[0, 1, 2], [0, 3, 1]]).astype(kind)


def model(folder: Path, dtype: str) -> Path:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["f", "two"], ["y"]),
            helper.make_node("Identity", ["x"], ["z"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", ONNX[dtype], ["n", 3])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("z", ONNX[dtype], ["n", 3]),
        ],
        [helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])],
    )
    path = folder / f"{dtype}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10), path)
    return path


def options(folder: Path, dtype: str) -> dict[str, Any]:
    if dtype not in IN_NPZ:
        return {}  # numpy's files have no such dtype: generated
    np.savez(folder / "x.npz", x=numbers(dtype))
    return {"inputs": [folder / "x.npz"]}


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_a_graph_that_is_fed_this_dtype_is_ported(dtype: str, tmp_path: Path) -> None:
    source = model(tmp_path, dtype)
    verdict = porting.port(source, tmp_path / "m.port", **options(tmp_path, dtype)).require()
    assert any("'z'" in check.name or " z" in check.name for check in verdict.checks)
    source.unlink()  # what is in the port has to do
    porting.validate(tmp_path / "m.port").require()
    if dtype in IN_NPZ:
        with porting.load(tmp_path / "m.port") as session:
            got = session.run({"x": numbers(dtype)})
        assert got["z"].dtype == dtype_of(dtype) and np.array_equal(got["z"], numbers(dtype))
        assert np.array_equal(got["y"], numbers(dtype).astype(np.float32) * 2)


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_for_ascend_it_is_ported_or_named(dtype: str, tmp_path: Path) -> None:
    """What is refused is refused by a rule of Ascend's, before anything is compiled."""
    verdict = porting.port(model(tmp_path, dtype), tmp_path / "m.port", "Ascend310P3", gears="n=2", **options(tmp_path, dtype))
    if not verdict.ok:
        assert dtype in REFUSED and verdict.evidence_level == "static"
        broken = [check.name.partition(" ")[0] for check in verdict.checks if check.verdict == "fail"]
        assert broken and set(broken) <= {rule.id for rule in rules()}


@pytest.mark.parametrize("dtype", INPUT_DTYPES)
def test_an_array_in_a_golden_comes_back(dtype: str) -> None:
    array = numbers(dtype)
    back = array_from(array_content(array, "x"), "x")
    assert back.dtype == array.dtype and back.tobytes() == array.tobytes()
