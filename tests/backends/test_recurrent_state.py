"""Recurrent models in chunks: state of fixed size, whatever its dimensions are called, started from arrays and read back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from porting.backends.onnx_program import program_from_onnx
from porting.errors import InputError, UsageError
from porting.session import open_session
from porting.state import batch_place
from porting.types import Program, StatePair, StateSpec
from tests.backends.stateful import _attention_program, _sums_program

FEATURES, HIDDEN = 3, 5
DEVICES = ["cpu,threads=1", "cpu,process=worker,threads=1"]
# what exporters call the rows: shared with the input, or not at all
NAMES = {"batch": ("batch", "batch"), "N": ("N", "N"), "unshared": ("unk__7", "unk__12"), "none": (None, None), "?": ("?", "?")}


def recurrent(kind: str, layers: int, rows: str = "batch", opset: int = 14, step: object = "step") -> Program:
    """Stacked LSTM or GRU. x: (step, rows, FEATURES); state h (and c): (layers, rows, HIDDEN); y: (step, rows, HIDDEN)."""
    rng = np.random.default_rng(layers)
    in_x, in_state = NAMES[rows]
    gates = {"LSTM": 4, "GRU": 3}[kind]
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    weights, nodes = {"axis1": np.array([1])}, []
    for state in states:
        outputs = [f"{state}_{i}" for i in range(layers)]
        nodes.append(helper.make_node("Split", [state, "sizes"], outputs, axis=0))
    weights["sizes"] = np.ones(layers, np.int64)
    x = "x"
    for i in range(layers):
        width = FEATURES if i == 0 else HIDDEN
        for name, shape in (("w", (gates * HIDDEN, width)), ("r", (gates * HIDDEN, HIDDEN)), ("b", (2 * gates * HIDDEN,))):
            weights[f"{name}{i}"] = (rng.standard_normal((1, *shape)) / 2).astype(np.float32)
        fed = [x, f"w{i}", f"r{i}", f"b{i}", "", *(f"{s}_{i}" for s in states)]
        nodes.append(helper.make_node(kind, fed, [f"raw{i}", *(f"{s}n_{i}" for s in states)], hidden_size=HIDDEN))
        nodes.append(helper.make_node("Squeeze", [f"raw{i}", "axis1"], [f"y{i}"]))
        x = f"y{i}"
    nodes += [helper.make_node("Concat", [f"{s}n_{i}" for i in range(layers)], [f"{s}n"], axis=0) for s in states]
    nodes.append(helper.make_node("Identity", [x], ["y"]))

    def value(name: str, shape: list) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    shape = [layers, in_state, HIDDEN]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", [step, in_x, FEATURES]), *(value(s, shape) for s in states)],
        [value("y", [step, in_x, HIDDEN]), *(value(f"{s}n", shape) for s in states)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    pairs = tuple(StatePair(s, f"{s}n", None) for s in states)
    return program_from_onnx(model.SerializeToString(), state=StateSpec(pairs))


def clip(steps: int, batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((steps, batch, FEATURES)).astype(np.float32)


# One chunk and the whole multiply the same numbers in the same order, but the input product of a chunk of other length may be another kernel's:
# sums of at most HIDDEN + FEATURES + 2 terms, whose rounding passes through gates with a slope of at most 1, over 12 steps and 2 layers.
BOUND = 12 * 2 * (HIDDEN + FEATURES + 2) * float(np.finfo(np.float32).eps)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("device", DEVICES)
def test_chunks_equal_the_whole(device: str, kind: str, layers: int, batch: int) -> None:
    x = clip(12, batch)
    with open_session(recurrent(kind, layers), device) as session:
        whole = session.run({"x": x})["y"]
        for cuts in ([4, 5], list(range(1, 12)), [11]):
            state = session.new_state(batch=batch)
            got = np.concatenate([session.run({"x": part}, state)["y"] for part in np.split(x, cuts)])
            np.testing.assert_allclose(got, whole, rtol=0, atol=BOUND)
        forgetful = np.concatenate([session.run({"x": part})["y"] for part in np.split(x, 2)])
        assert abs(forgetful - whole).max() > 1e-2  # without its state it differs: the test sees state at all


@pytest.mark.parametrize("rows", NAMES)
@pytest.mark.parametrize("opset", [14, 17, 21])
def test_rows_are_found_whatever_they_are_called(rows: str, opset: int) -> None:
    """Time first, so that "dimension 0 of the first input" would be wrong: where no name tells, the caller does."""
    x = clip(6, 3)
    with open_session(recurrent("LSTM", 1, rows, opset, step=6 if rows in ("unshared", "none", "?") else "step")) as session:
        state = session.new_state(batch=3)
        assert session.read_state(state)["h"].shape == (1, 3, HIDDEN)
        whole = session.run({"x": x}, state)["y"]
    with open_session(recurrent("LSTM", 1)) as session:
        np.testing.assert_array_equal(whole, session.run({"x": x})["y"])


def test_the_rule_for_rows_without_a_name() -> None:
    """silero's shapes: input [None, None], state [2, None, 128], rate []: rows are dimension 0 of the first input that has a free one."""
    text = (
        "(int64 rate, float[A,B] x, float[2,C,4] s) => (float[A,B] y, float[2,C,4] sn) "
        "{ one = Constant<value_float=1.0>() sn = Add(s, one) i = Constant<value_ints=[0,1,2]>() m = ReduceMax<keepdims=0>(s) y = Add(x, m) }"
    )
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 17]> g {text}')
    wanted = program_from_onnx(model.SerializeToString(), state=StateSpec((StatePair("s", "sn", None),)))
    assert batch_place(wanted, wanted.inputs[:2]) == ("x", 0, False)
    feeds = {"rate": np.array(16000), "x": np.zeros((3, 2), np.float32)}
    for fed in (feeds, dict(reversed(feeds.items()))):  # the order of feeds does not matter
        with open_session(wanted) as session:
            state = session.new_state(batch=3)
            assert [float(session.run(fed, state)["y"][0, 0]) for _ in range(3)] == [0, 1, 2]
            assert session.read_state(state)["s"].shape == (2, 3, 4)


@pytest.mark.parametrize("device", DEVICES)
def test_two_streams_do_not_mix(device: str) -> None:
    first, second = clip(8, 1, 1), clip(8, 2, 2)
    with open_session(recurrent("LSTM", 2), device) as session:
        alone = [session.run({"x": x})["y"] for x in (first, second)]
        states = [session.new_state(batch=1), session.new_state(batch=2)]
        got: tuple[list, list] = ([], [])
        for i in range(8):
            for x, state, out in zip((first, second), states, got, strict=True):
                out.append(session.run({"x": x[i : i + 1]}, state)["y"])
        for out, whole in zip(got, alone, strict=True):
            np.testing.assert_allclose(np.concatenate(out), whole, rtol=0, atol=BOUND)


@pytest.mark.parametrize("device", [*DEVICES, "null"])
def test_a_stream_goes_on_from_what_was_read(device: str) -> None:
    x = clip(9, 2)
    with open_session(recurrent("LSTM", 2), device) as session:
        state = session.new_state(batch=2)
        session.run({"x": x[:4]}, state)
        kept = session.read_state(state)
        assert {name: a.shape for name, a in kept.items()} == {"h": (2, 2, HIDDEN), "c": (2, 2, HIDDEN)}
        rest = session.run({"x": x[4:]}, state)["y"]
        later = session.read_state(state)
        if device != "null":
            assert (kept["h"] != later["h"]).any()  # what was read is not written to
    with open_session(recurrent("LSTM", 2), device) as session:
        again = session.new_state(initial=kept)
        kept["h"][:] = 9  # and what was given is not looked at again
        np.testing.assert_array_equal(session.run({"x": x[4:]}, again)["y"], rest)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("made", [_attention_program, lambda: recurrent("GRU", 1)], ids=["in place", "replaced"])
def test_what_was_read_and_the_state_are_two_things(device: str, made) -> None:
    with open_session(made(), device) as session:
        feeds = {i.name: np.ones([2 if isinstance(d, str) else d for d in i.shape], np.float32) for i in session.inputs}
        whole, changed = session.new_state(batch=2), session.new_state(batch=2)
        outputs = []
        for state in (whole, changed):
            session.run(feeds, state)
            kept = session.read_state(state)
            copies = {name: array.copy() for name, array in kept.items()}
            if state is changed:
                for array in kept.values():
                    array[:] = 0
            outputs.append(session.run(feeds, state)["y"])
            if state is whole:
                assert all((kept[name] == copy).all() for name, copy in copies.items())
        np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("device", DEVICES)
def test_a_part_of_the_state_may_be_given(device: str) -> None:
    x, h = clip(3, 2), np.full((1, 2, HIDDEN), 0.5, np.float32)
    with open_session(recurrent("LSTM", 1), device) as session:
        got = session.run({"x": x}, session.new_state(initial={"h": h}))["y"]
        both = session.run({"x": x}, session.new_state(initial={"h": h, "c": np.zeros_like(h)}))["y"]
        np.testing.assert_array_equal(got, both)
        assert (got != session.run({"x": x})["y"]).any()


@pytest.mark.parametrize("device", [*DEVICES, "null"])
def test_a_cache_goes_on_from_what_was_read(device: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 7, 3)).astype(np.float32)
    with open_session(_sums_program(), device) as session:
        state = session.new_state(8, 2)
        session.run({"x": x[:, :5]}, state)
        state.length = np.array([5, 3])
        kept = session.read_state(state)
        assert kept["cache"].shape == (2, 5, 3) and kept["length"].tolist() == [5, 3]
        again = session.new_state(4, initial=kept)  # less room than what is kept
        assert again.capacity == 5 and again.length.tolist() == [5, 3]
        again.length = np.array([5, 5])
        with pytest.raises(InputError, match="length is 5 in row 1, where 3"):
            session.run({"x": x[:, 5:]}, again)
        again.length = np.array([5, 3])
        a, b = (session.run({"x": x[:, 5:]}, s)["y"] for s in (state, again))
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("initial", "batch", "message"),
    [
        ({"hh": np.zeros((1, 2, 5), np.float32)}, None, "'hh' is no state"),
        ({"x": np.zeros((1, 2, 3), np.float32)}, None, "'x' is no state"),
        ({"h": np.zeros((1, 2, 5))}, None, r"expected h: float32\[1, batch, 5\], got float64\[1, 2, 5\]"),
        ({"h": np.zeros((2, 2, 5), np.float32)}, None, r"got float32\[2, 2, 5\]"),
        ({"h": np.zeros((2, 5), np.float32)}, None, r"got float32\[2, 5\]"),
        ({"h": [0.0]}, None, "got a list"),
        ({"h": np.zeros((1, 2, 5), np.float32), "c": np.zeros((1, 3, 5), np.float32)}, None, "number of rows: h 2, c 3"),
        ({"h": np.zeros((1, 2, 5), np.float32)}, 3, "number of rows: batch= 3, h 2"),
    ],
)
def test_initial_state_that_does_not_fit(initial: dict, batch: int | None, message: str) -> None:
    with open_session(recurrent("LSTM", 1), "null") as session, pytest.raises(InputError, match=message):
        session.new_state(batch=batch, initial=initial)


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        ({"cache": np.zeros((1, 4, 3), np.float32), "length": np.array([5])}, "outside the 4 positions"),
        ({"length": np.array([2])}, "outside the 0 positions"),
        ({"cache": np.zeros((1, 4, 3), np.float32), "length": np.array([1, 1])}, "number of rows"),
        ({"cache": np.zeros((1, 4, 3), np.float32), "length": np.array([1.0])}, "expected length: int64"),
    ],
)
def test_an_initial_cache_that_does_not_fit(initial: dict, message: str) -> None:
    with open_session(_sums_program(), "null") as session, pytest.raises(InputError, match=message):
        session.new_state(initial=initial)


def test_rows_of_state_and_feeds_must_agree() -> None:
    with open_session(recurrent("LSTM", 1, "N")) as session:
        with pytest.raises(InputError, match=r"the state is for 2 rows, 'x' has 3 along axis 1") as caught:
            session.run({"x": clip(2, 3)}, session.new_state(batch=2))
        assert "batch=3" in caught.value.next


def test_a_size_that_nothing_settles_asks_for_an_array() -> None:
    text = "(float[N,4] x, float[A,B] s) => (float[N,4] y, float[A,B] sn) { y = Neg(x) sn = Neg(s) }"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 17]> g {text}')
    wanted = program_from_onnx(model.SerializeToString(), state=StateSpec((StatePair("s", "sn", None),)))
    with open_session(wanted) as session:
        for make in (session.new_state, lambda: session.run({"x": np.ones((1, 4), np.float32)})):
            with pytest.raises(InputError, match="no known size in dimension 0") as caught:
                make()
            assert "new_state(initial={'s': ...})" in caught.value.next
        state = session.new_state(initial={"s": np.ones((2, 3), np.float32)})
        session.run({"x": np.ones((1, 4), np.float32)}, state)
        assert session.read_state(state)["s"].tolist() == [[-1.0] * 3] * 2


@pytest.mark.parametrize(
    ("pair", "message"), [(("hh", "hn"), "'hh', which is no input"), (("h", "n"), "'n', which is no output")]
)
def test_pairs_that_name_nothing(pair: tuple[str, str], message: str) -> None:
    wanted = recurrent("GRU", 1)
    broken = Program(wanted.model, wanted.inputs, wanted.outputs, StateSpec((StatePair(*pair, None),)))
    with pytest.raises(InputError, match=message):
        open_session(broken, "null")


def test_the_state_of_another_session_cannot_be_read() -> None:
    one, other = (open_session(recurrent("GRU", 1), "null") for _ in range(2))
    with one, other, pytest.raises(UsageError, match="made by another session"):
        other.read_state(one.new_state())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 11), max_size=5), st.integers(0, 9))
def test_any_cut_equals_the_whole(cuts: list[int], seed: int) -> None:
    x = clip(12, 2, seed)
    with open_session(recurrent("GRU", 2, "N"), "cpu,threads=1") as session:
        whole, state = session.run({"x": x})["y"], session.new_state(batch=2)
        parts = [p for p in np.split(x, sorted(set(cuts))) if len(p)]
        got = np.concatenate([session.run({"x": part}, state)["y"] for part in parts])
        np.testing.assert_allclose(got, whole, rtol=0, atol=BOUND)


@pytest.mark.parametrize("batch", [-1, 1.5, True])
def test_rows_of_a_state_are_a_whole_number(batch: object) -> None:
    with open_session(recurrent("LSTM", 1)) as session, pytest.raises(InputError, match="a state has a whole number of rows"):
        session.new_state(batch=batch)  # type: ignore[arg-type]
