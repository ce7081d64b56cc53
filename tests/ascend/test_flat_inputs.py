"""Gears of more inputs than the call at run time holds: what no gear changes is fed flat, computes the same, and runs where it could not."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import porting
from porting.ascend import flat_inputs
from porting.ascend.flat_inputs import settable, with_flat_inputs
from porting.ascend.gear_requests import Request
from porting.ascend.gears import gears_for
from porting.ascend.handoff import handoffs_of
from porting.ascend.soc import find_soc
from porting.backends.onnx_program import program_from_onnx
from porting.errors import PortError, UsageError
from porting.session import open_session
from porting.types import TensorSpec

A2 = find_soc("Ascend910B3")
IDS = TensorSpec("ids", "int64", ("batch", "seq"))
TWO = Request(named="batch=1,seq=1;batch=1,seq=8")


def caches(count: int) -> list[TensorSpec]:
    return [TensorSpec(f"past{n}", "float32", ("batch", 3, 64, 8)) for n in range(count)]


def test_what_the_call_holds_is_left_as_it_is() -> None:
    """31 caches of 4 sizes and one input of 2 are 126 sizes; one gear is never set, however many they are."""
    for specs, request in (([IDS, *caches(31)], TWO), ([IDS, *caches(99)], Request(named="batch=1,seq=8"))):
        gears = gears_for(specs, A2, request)
        assert settable(gears) == (gears, {})


def test_what_no_gear_changes_is_fed_flat() -> None:
    gears, flat = settable(gears_for([IDS, *caches(32)], A2, TWO))
    assert flat == {f"past{n}": (1, 3, 64, 8) for n in range(32)}
    assert gears.shapes == tuple({"ids": (1, n), **{f"past{i}": (1536,) for i in range(32)}} for n in (1, 8))
    assert gears.options["dynamic_dims"] == "1;8"
    assert gears.options["input_shape"].startswith("ids:1,-1;past0:1536;past1:1536;")


def test_gears_that_do_not_even_fit_flat_are_refused(tmp_path: Path) -> None:
    settable(gears_for([IDS, *caches(126)], A2, TWO))
    with pytest.raises(UsageError, match=r"510 sizes over 128 inputs, 129 with what no gear changes fed flat"):
        settable(gears_for([IDS, *caches(127)], A2, TWO))
    source = many(tmp_path, 128)
    for command in (porting.check, lambda *a, **k: porting.port(source, tmp_path / "m.port", *a[1:], **k)):
        with pytest.raises(UsageError, match="no program could choose among them"):
            command(source, "Ascend910B3", gears="seq=1;seq=8")
    assert not (tmp_path / "m.port").exists()


# --- the graph ----------------------------------------------------------------------------------------------------

BRANCHES = """<ir_version: 8, opset_import: ["": 17]> g (float[2,3] x, float[2,3] h, bool c) => (float[2,3] y) {
    y = If(c) <then_branch = t () => (float[2,3] a) { a = Sub(x, h) }, else_branch = e () => (float[2,3] b) { b = Mul(h, h) }> }"""


def test_bodies_read_the_shape_too() -> None:
    model = onnx.parser.parse_model(BRANCHES)
    made = with_flat_inputs(model, {"h": (2, 3)})
    onnx.checker.check_model(made, full_check=True)
    x, h = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(6, dtype=np.float32)[::-1].copy()
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    for chosen, expected in ((True, x - h.reshape(2, 3)), (False, h.reshape(2, 3) ** 2)):
        (got,) = session.run(None, {"x": x, "h": h, "c": np.array(chosen)})
        np.testing.assert_array_equal(got, expected)


def test_an_input_that_is_an_output_is_not_fed_flat() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2,3] h) => (float[2,3] h, float[2,3] y) { y = Neg(h) }'
    )
    with pytest.raises(PortError, match="inputs cannot be fed flat: h"):
        with_flat_inputs(model, {"h": (2, 3)})


def test_a_reshape_to_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(array: np.ndarray, name: str) -> onnx.TensorProto:
        return numpy_helper.from_array(np.ascontiguousarray(array[::-1]), name)

    monkeypatch.setattr(flat_inputs, "numpy_helper", SimpleNamespace(from_array=turned))
    with pytest.raises(PortError, match="input h is another when fed flat"):
        with_flat_inputs(onnx.parser.parse_model(BRANCHES), {"h": (2, 3)})


# --- a model ------------------------------------------------------------------------------------------------------


def many(folder: Path, count: int, state: bool = False) -> Path:
    """x [2, seq] and `count` inputs of [2, 1, 3, 1], the n-th n times in a sum; with `state` each becomes what it was plus 1."""
    nodes, total = [], "x"
    inputs, outputs = "float[2,seq] x", "float[2,seq] y"
    for n in range(count):
        inputs += f", float[2,1,3,1] h{n}"
        nodes += [f"w{n} = ReduceSum<keepdims = 0>(h{n}, axes)", f"v{n} = Mul(w{n}, c{n})", f"u{n} = Unsqueeze(v{n}, last)"]
        nodes.append(f"t{n} = Add({total}, u{n})")
        total = f"t{n}"
        if state:
            outputs += f", float[2,1,3,1] hn{n}"
            nodes.append(f"hn{n} = Add(h{n}, c1)")
    nodes.append(f"y = Identity({total})")
    text = f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => ({outputs}) {{ {" ".join(nodes)} }}'
    model = onnx.parser.parse_model(text)
    weights = {"axes": np.array([1, 2, 3]), "last": np.array([1]), **{f"c{n}": np.float32(n) for n in range(count)}}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items())
    onnx.save(model, folder / "many.onnx")
    return folder / "many.onnx"


def test_a_model_with_many_caches_runs_in_its_gears(tmp_path: Path) -> None:
    """33 pieces of state of rank 4: over the API as it is no gear of it could be set."""
    pairs = {f"h{n}": f"hn{n}" for n in range(33)}
    verdict = porting.port(
        many(tmp_path, 33, state=True),
        tmp_path / "m.port",
        "Ascend910B3",
        gears="seq=1;seq=4",
        state=pairs,
        device="ascend-sim",
    )
    assert verdict.require().evidence_level == "simulated"
    (handoff,) = handoffs_of(tmp_path / "m.port")
    assert handoff.manifest["interface"]["flat"] == {f"h{n}": [2, 1, 3, 1] for n in range(33)}
    assert "Fed as one row of the same numbers" in (handoff.path / "README.txt").read_text(encoding="utf-8")
    with porting.load(tmp_path / "m.port", "ascend-sim") as session:
        start = {f"h{n}": np.arange(6, dtype=np.float32).reshape(2, 1, 3, 1) + n for n in range(33)}
        state = session.new_state(batch=2, initial=start)
        expected = sum(n * (value.sum((1, 2, 3)) + 3 * np.arange(3)[:, None]) for n, value in enumerate(start.values()))
        for step, length in enumerate((4, 1, 4)):
            found = session.run({"x": np.zeros((2, length), np.float32)}, state)["y"]
            np.testing.assert_array_equal(found, np.tile(expected[step][:, None], (1, length)))
        after = session.read_state(state)
    assert all(np.array_equal(after[name], start[name] + 3) for name in start)
    assert math.prod(after["h1"].shape) == 6


def test_the_same_model_fed_as_it_is_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    program = program_from_onnx(many(tmp_path, 33).read_bytes())
    with pytest.raises(PortError, match="several gears and 134 sizes over all inputs, and aclmdlSetInputDynamicDims takes 128"):
        open_session(program, "ascend-sim,precision=origin,gears=seq=1;seq=4")
