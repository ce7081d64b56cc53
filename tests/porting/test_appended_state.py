"""State that runs append to, as the caches of exported decoders: it starts empty, has a length, goes back, and can be run and measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import porting
from porting.bench import bench
from porting.conversion import convert
from porting.converters.checkpoints.onnx_file import OnnxFile
from porting.errors import InputError
from porting.run import run_file
from porting.session import Session, load

SIZE = 4
# (what a caller feeds, the past, what it becomes): names as exporters give them; None for none at all
SHAPES = {
    "named": ("batch,step", "batch,past", "batch,total"),
    "sums": ("batch,step", "batch,past", "batch,past_plus_step"),
    "one row": ("1,step", "1,past", "1,?"),
    "no names": ("1,step", "1,?", "1,?"),
}
DEVICES = ("cpu", "cpu,process=worker")


def _write(path: Path, shapes: str = "named") -> Path:
    """x (rows, step, SIZE) looks at everything that was fed: y is a softmax-weighted sum over past and x, present is both."""
    x, past, present = SHAPES[shapes]
    text = f"""<ir_version: 9, opset_import: ["": 18]>
    cache (float[{x},{SIZE}] x, float[{past},{SIZE}] past) => (float[{x},{SIZE}] y, float[{present},{SIZE}] present) {{
        seen = Concat<axis=-2>(past, x)
        turned = Transpose<perm=[0, 2, 1]>(seen)
        scores = MatMul(x, turned)
        shares = Softmax<axis=-1>(scores)
        y = MatMul(shares, seen)
        present = Identity(seen)
    }}"""
    onnx.save(onnx.parser.parse_model(text.replace("?", "")) if "?" not in text else _unnamed(text), path)
    return path


def _unnamed(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text.replace("?", "nameless"))
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "nameless":
                dim.ClearField("dim_param")
    return model


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ports")
    found = {}
    for i, name in enumerate(SHAPES):
        _write(folder / f"{i}.onnx", name)
        assert porting.port(folder / f"{i}.onnx", folder / f"{i}.port", state={"past": "present"}).ok
        found[name] = folder / f"{i}.port"
    return found


def _clip(steps: int, rows: int = 1) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((rows, steps, SIZE)).astype(np.float32)


def _wanted(past: np.ndarray, x: np.ndarray) -> np.ndarray:
    seen = np.concatenate([past, x], axis=1).astype(np.float64)
    scores = x @ seen.transpose(0, 2, 1)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return (shares / shares.sum(-1, keepdims=True)) @ seen


def _same(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)  # sums of a dozen float32 terms near 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shapes", SHAPES)
def test_it_starts_empty_and_goes_back(shapes: str, device: str, ports: dict[str, Path]) -> None:
    x = _clip(9)
    with load(ports[shapes], device) as session:
        _same(session.run({"x": x})["y"], _wanted(x[:, :0], x))
        state = session.new_state()
        assert state.length.tolist() == [0]
        for start, stop in ((0, 4), (4, 5), (5, 9)):
            _same(session.run({"x": x[:, start:stop]}, state)["y"], _wanted(x[:, :start], x[:, start:stop]))
            assert state.length.tolist() == [stop]
        state.length = state.length - 5
        np.testing.assert_array_equal(session.read_state(state)["past"], x[:, :4])
        _same(session.run({"x": x[:, 7:]}, state)["y"], _wanted(x[:, :4], x[:, 7:]))
        assert state.length.tolist() == [6]
        state.length[0] = 0  # in place, as of a language model's
        _same(session.run({"x": x[:, 2:4]}, state)["y"], _wanted(x[:, :0], x[:, 2:4]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6), st.booleans()), min_size=1, max_size=8))
def test_any_order_of_runs_and_rewinds(ports_session: Session, plan: list[tuple[int, int, bool]]) -> None:
    """step, how far to go back behind it, and whether somebody looks in between."""
    state, kept = ports_session.new_state(batch=2), np.zeros((2, 0, SIZE), np.float32)
    for number, (step, back, looked_at) in enumerate(plan):
        x = _clip(step, 2) + np.float32(number)
        _same(ports_session.run({"x": x}, state)["y"], _wanted(kept, x))
        kept = np.concatenate([kept, x], axis=1)
        if looked_at:
            assert state.length.tolist() == [kept.shape[1]] * 2
        if back:
            length = max(0, kept.shape[1] - back)
            state.length = np.full(2, length)
            kept = kept[:, :length]


@pytest.fixture(scope="module")
def ports_session(ports: dict[str, Path]) -> Any:
    with load(ports["named"]) as session:
        yield session


def test_lengths_that_cannot_be_are_refused(ports: dict[str, Path]) -> None:
    x = _clip(3, 2)
    with load(ports["named"]) as session:
        for lengths, why in (
            ([4, 4], "3 positions were written"),
            ([1, 2], "filled alike"),
            ([-1, -1], "from 0 up"),
            ([1], "length of 2"),
        ):
            state = session.new_state(batch=2)
            session.run({"x": x}, state)
            state.length = np.array(lengths)
            with pytest.raises(InputError, match=why):
                session.run({"x": x}, state)
        with pytest.raises(InputError, match="the state is for 2 rows"):
            session.run({"x": x[:1]}, session.new_state(batch=2))


@pytest.mark.parametrize("device", DEVICES)
def test_it_goes_on_from_what_was_read(device: str, ports: dict[str, Path]) -> None:
    x = _clip(8, 3)
    with load(ports["sums"], device) as session:
        state = session.new_state(initial={"past": x[:, :5]})
        assert state.length.tolist() == [5, 5, 5]
        _same(session.run({"x": x[:, 5:]}, state)["y"], _wanted(x[:, :5], x[:, 5:]))
        again = session.new_state(initial=session.read_state(state))
        again.length = np.full(3, 5)
        _same(session.run({"x": x[:, 5:]}, again)["y"], _wanted(x[:, :5], x[:, 5:]))


@pytest.mark.parametrize("shapes", SHAPES)
def test_run_and_bench_take_such_a_port(shapes: str, ports: dict[str, Path], tmp_path: Path) -> None:
    x = _clip(3)
    np.savez(tmp_path / "x.npz", x=x)
    run_file(ports[shapes], tmp_path / "x.npz", tmp_path / "y.npz")
    _same(np.load(tmp_path / "y.npz")["y"], _wanted(x[:, :0], x))
    report = bench(ports[shapes], rounds=1)
    assert report["inputs"].keys() == {"x", "past"} and report["port"]["run_ms"]["p50"] > 0
    assert report["inputs"]["past"][1] > 0


def test_bench_with_a_past_that_is_given(ports: dict[str, Path]) -> None:
    untouched = ports["named"].with_suffix(".onnx")
    for past in (0, 70):
        report = bench(ports["named"], compare=untouched, rounds=1, sizes={"past": past, "step": 1, "batch": 2})
        assert report["inputs"] == {"x": [2, 1, SIZE], "past": [2, past, SIZE]}


# --- what counts as appended --------------------------------------------------------------------------------------------


def _axis(path: Path, text: str) -> int | None:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> g {text}'), path)
    file = OnnxFile(path, state={"s": "t"})
    try:
        return file.graph().state.pairs[0].appended
    finally:
        file.close()


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("(float[N,A] x, float[N,B] s) => (float[N,C] t) { t = Concat<axis=1>(s, x) }", 1),
        ("(float[A,2] x, float[B,2] s) => (float[C,2] t) { t = Concat<axis=-2>(x, s) }", 0),
        ("(float[N,A] x, float[N,B] s) => (float[N,C] t) { a = Concat<axis=1>(s, x) t = Abs(a) }", 1),  # by its names
        ("(float[N,A] x, float[N,B] s) => (float[N,B] t) { t = Add(s, s) }", None),
        ("(float[N,A] x, float[N,B] s) => (float[N,unk__7] t) { t = Relu(s) }", None),  # onnx infers B
        ("(float[N,A] x, float[N,unk__7] s) => (float[N,unk__9] t) { t = Celu(s) }", None),
        ("(float[A,2] x, float[h_dynamic_axes_1,2] s) => (float[hn_dynamic_axes_1,2] t) { t = LpNormalization(s) }", None),
        ("(float[N,2] x, float[N,2] s) => (float[N,2] t) { a = Concat<axis=1>(s, x) k = Constant<value_ints=[2]>() "
         "e = Constant<value_ints=[4]>() o = Constant<value_ints=[1]>() t = Slice(a, k, e, o) }", None),  # a window that moves on
    ],
)  # fmt: skip
def test_what_counts_as_appended(text: str, axis: int | None, tmp_path: Path) -> None:
    assert _axis(tmp_path / "m.onnx", text) == axis


def test_a_port_from_before_has_no_such_state(ports: dict[str, Path], tmp_path: Path) -> None:
    older = Path(shutil.copytree(ports["named"], tmp_path / "older"))
    manifest = json.loads((older / "port.json").read_text())
    del manifest["state"]["pairs"][0]["appended"]
    (older / "port.json").write_text(json.dumps(manifest))
    with load(older) as session, pytest.raises(InputError, match="no known size in dimension 1"):
        session.new_state()
    manifest["state"]["pairs"][0]["appended"] = 3
    (older / "port.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="no axis 3"):
        load(older)


def test_caches_are_given_together(tmp_path: Path) -> None:
    onnx.save(
        onnx.parser.parse_model(
            '<ir_version: 9, opset_import: ["": 18]> g (float[batch,a] x, float[batch,b] k, float[batch,c] v) => '
            "(float[batch,d] y, float[batch,e] kn, float[batch,f] vn) { kn = Concat<axis=1>(k, x) vn = Concat<axis=1>(v, x) y = Add(kn, vn) }"
        ),
        tmp_path / "m.onnx",
    )
    port = convert(tmp_path / "m.onnx", tmp_path / "port", state={"k": "kn", "v": "vn"}).path
    with load(port) as session:
        past, x = np.ones((1, 3), np.float32), np.ones((1, 2), np.float32)
        with pytest.raises(InputError, match="needed together"):
            session.new_state(initial={"k": past})
        state = session.new_state(initial={"k": past, "v": past})
        np.testing.assert_array_equal(session.run({"x": x}, state)["y"], np.full((1, 5), 2, np.float32))
        uneven = session.new_state(initial={"k": past, "v": past[:, :2]})
        with pytest.raises(InputError, match="no one length: k 3, v 2"):
            _ = uneven.length
