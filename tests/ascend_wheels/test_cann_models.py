"""Models through the real CANN wheel over a simulated CANN, in a worker as a user has it, against the wheel's own CPU provider and numpy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from porting.backends.onnx_program import program_from_onnx
from porting.errors import InputError
from porting.session import Session, open_session
from porting.types import Program, StatePair, StateSpec
from tests.ascend_wheels import cann_models as models
from tests.ascend_wheels.cann_children import use_own_cache

pytestmark = pytest.mark.cann_wheel

DEVICE = "ascend-sim,route=cann,precision={}"
# both compute in float32 on this CPU, in another order of sums: some roundings of 2^-24 apart
SAME = 1e-5
# relative, of outputs of size 1 behind a dozen operators, each rounded to 11 bits
HALF = 2e-2


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_own_cache(tmp_path, monkeypatch)


def opened(program: Program | bytes, precision: str = "fp32") -> Session:
    return open_session(program_from_onnx(program) if isinstance(program, bytes) else program, DEVICE.format(precision))


def reference(model: bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.parametrize(("build", "shape"), [(models.matmul, (2, 4)), (models.cnn, (1, 3, 16, 16)), (models.block, (6, 16))])
def test_models_in_fp32(build: Callable[[], bytes], shape: tuple[int, ...]) -> None:
    model, x = build(), models.normal(*shape, seed=9)
    with opened(model) as session:
        assert set(session.placement.values()) == {"ascend-sim:0"}
        np.testing.assert_allclose(session.run({"x": x})["y"], reference(model, {"x": x})[0], rtol=SAME, atol=SAME)


def test_fp16_rounds_where_fp32_does_not() -> None:
    """2049 is no fp16: 2^11 + 1 needs 12 bits."""
    model = models.binary("Add")
    x = np.full((2, 4), 1024.5, np.float32)
    results = {}
    for precision in ("fp32", "fp16"):
        with opened(model, precision) as session:
            results[precision] = float(session.run({"x": x})["y"][0, 0])
    assert results["fp32"] == 2049
    assert results["fp16"] in (2048, 2050)


def test_a_block_in_fp16_is_near_and_not_the_same() -> None:
    model, x = models.block(), models.normal(6, 16, seed=9)
    right = reference(model, {"x": x})[0]
    with opened(model, "fp16") as session:
        found = session.run({"x": x})["y"]
    assert found.dtype == np.float32
    assert SAME < abs(found - right).max() < HALF


def test_a_graph_stored_in_fp16_keeps_its_dtype() -> None:
    model, x = models.block(stored=models.HALF), models.normal(6, 16, seed=9).astype(np.float16)
    right = reference(models.block(), {"x": x.astype(np.float32)})[0]
    with opened(model, "fp16") as session:
        found = session.run({"x": x})["y"]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float32), right, rtol=HALF, atol=HALF)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "float64", "bool"])
def test_dtypes_come_back_as_they_are(dtype: str) -> None:
    kinds = {"int8": models.INT8, "int32": 6, "int64": models.INT64, "float64": models.DOUBLE, "bool": models.BOOL}
    x = np.arange(8).reshape(2, 4).astype(dtype)
    op = "And" if dtype == "bool" else "Add"
    with opened(models.binary(op, kinds[dtype])) as session:
        found = session.run({"x": x})["y"]
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found, x & x if dtype == "bool" else x + x)


def test_gears_are_the_only_shapes() -> None:
    weight = models.normal(4, 5)
    program = replace(program_from_onnx(models.matmul("rows")), gears=tuple({"x": (rows, 4)} for rows in (1, 2, 7)))
    with opened(program) as session:
        for rows in (7, 1, 2, 1):
            x = models.normal(rows, 4, seed=rows)
            np.testing.assert_allclose(session.run({"x": x})["y"], x @ weight, rtol=SAME, atol=SAME)
        with pytest.raises(InputError, match=r"no gear has the shapes x \[3, 4\]"):
            session.run({"x": models.normal(3, 4)})


def test_four_threads_on_one_session() -> None:
    weight = models.normal(4, 5)
    program = replace(program_from_onnx(models.matmul("rows")), gears=tuple({"x": (rows, 4)} for rows in (1, 2, 3)))
    wrong: list[str] = []
    with opened(program) as session:

        def work(seed: int) -> None:
            for turn in range(12):
                x = models.normal(1 + (turn + seed) % 3, 4, seed=100 * seed + turn)
                if not np.allclose(session.run({"x": x})["y"], x @ weight, rtol=SAME, atol=SAME):
                    wrong.append(f"{seed} {turn}")

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_state_stays_on_the_device() -> None:
    program = program_from_onnx(models.counter(), state=StateSpec((StatePair("s", "sn", None),)))
    x = np.ones((2, 4), np.float32)
    with opened(program) as session:
        state, other = session.new_state(), session.new_state(initial={"s": np.full((2, 4), 10, np.float32)})
        seen = [float(session.run({"x": x}, s)["y"][0, 0]) for s in (state, state, other, state, other)]
        assert seen == [2, 4, 22, 6, 24]
        np.testing.assert_array_equal(session.read_state(state)["s"], 3 * x)
        np.testing.assert_array_equal(session.read_state(other)["s"], 12 * x)
        assert session.run({"x": x})["y"][0, 0] == 2


def test_a_scalar_is_fed_as_one() -> None:
    x = np.ones((2, 4), np.float32)
    with opened(models.scalar()) as session:
        assert str(session.inputs[1]) == "c: float32[]"
        assert (session.run({"x": x, "c": np.array(3, np.float32)})["y"] == 10).all()


def test_precisions_side_by_side_in_one_program() -> None:
    """A process each: what CANN was told first in one is nothing to the other."""
    model, x = models.binary("Add"), np.full((2, 4), 1024.5, np.float32)
    with opened(model) as one, opened(model, "fp16") as two, opened(models.binary("Mul")) as three:
        for _ in range(2):
            assert one.run({"x": x})["y"][0, 0] == 2049
            assert two.run({"x": x})["y"][0, 0] != 2049
            assert three.run({"x": x})["y"][0, 0] == 1024.5**2
