"""Checks of state that stays on the device: static caches in two forms, and a fixed-size state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest

from porting.backends.onnx_program import program_from_onnx
from porting.errors import InputError, UsageError
from porting.session import CAPACITY_STEP, open_session
from porting.types import Program, StatePair, StateSpec

# relative to the largest output: at most 300 additions of float32 in a row, each off by half an eps
BOUND = 300 * float(np.finfo(np.float32).eps)

# A cache out of plain operators: a one-hot product puts the new rows where they belong, and y sums all rows so far.
SUMS = """
<ir_version: 10, opset_import: ["": 21]> g (float[batch,step,3] x, int64[batch] length, float[batch,capacity,3] cache)
  => (float[batch,step,3] y, float[batch,capacity,3] cache_next)
  <int64 zero = {0}, int64 one = {1}, int64[1] axis1 = {1}, int64[1] axis2 = {2}, int64[1] axes0 = {0}> {
    x_shape = Shape(x)            cache_shape = Shape(cache)
    steps = Gather(x_shape, one)  places = Gather(cache_shape, one)
    s = Range(zero, steps, one)   c = Range(zero, places, one)
    start = Unsqueeze(length, axis1)
    position = Add(start, s)
    row = Unsqueeze(position, axis1)
    place = Unsqueeze(c, axis1)
    hit = Equal(place, row)
    hot = Cast<to=1>(hit)
    update = MatMul(hot, x)
    taken = ReduceMax<keepdims=1>(hot, axis2)
    free = Cast<to=9>(taken)      kept = Not(free)
    keep = Cast<to=1>(kept)
    old = Mul(cache, keep)
    cache_next = Add(old, update)
    column = Unsqueeze(position, axis2)
    seen = LessOrEqual(c, column)
    weight = Cast<to=1>(seen)
    y = MatMul(weight, cache_next)
  }
"""

# What a decoder's target graph does: TensorScatter into two caches, attention with an explicit mask.
ATTENTION = """
<ir_version: 10, opset_import: ["": 24]> g
  (float[batch,2,step,4] q, float[batch,2,step,4] k, float[batch,2,step,4] v, int64[batch] length,
   float[batch,2,capacity,4] keys, float[batch,2,capacity,4] values)
  => (float[batch,2,step,4] y, float[batch,2,capacity,4] keys_next, float[batch,2,capacity,4] values_next)
  <int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64[1] axis1 = {1}, int64[2] axes = {1, 3}, float allowed = {0.0}> {
    keys_next = TensorScatter<axis=2>(keys, k, length)
    values_next = TensorScatter<axis=2>(values, v, length)
    q_shape = Shape(q)            keys_shape = Shape(keys)
    steps = Gather(q_shape, two)  places = Gather(keys_shape, two)
    s = Range(zero, steps, one)   c = Range(zero, places, one)
    start = Unsqueeze(length, axis1)
    position = Add(start, s)
    rows = Unsqueeze(position, axes)
    seen = LessOrEqual(c, rows)
    forbidden = Constant<value_float=-inf>()
    mask = Where(seen, allowed, forbidden)
    y = Attention(q, keys_next, values_next, mask)
  }
"""


@dataclass(frozen=True)
class Cache:
    """A program with a growing state and its reference.

    feed:      rng, batch, step -> feeds
    reference: what one row was fed so far, {input: (positions, ...)}, and the step -> y of that row's last `step` positions
    axis:      of the steps in the feeds
    """

    program: Callable[[], Program]
    feed: Callable[[np.random.Generator, int, int], dict[str, np.ndarray]]
    reference: Callable[[dict[str, np.ndarray], int], np.ndarray]
    axis: int

    def expected(self, history: list[dict[str, np.ndarray]], step: int) -> np.ndarray:
        return np.stack([self.reference(row, step) for row in history])


def _sums_program() -> Program:
    state = StateSpec((StatePair("cache", "cache_next", 1),), "length", ("x", 1))
    return program_from_onnx(onnx.parser.parse_model(SUMS).SerializeToString(), state=state)


def _attention_program() -> Program:
    text = ATTENTION.replace("-inf", "-1e30")  # the parser of ONNX text knows no infinity
    pairs = (StatePair("keys", "keys_next", 2), StatePair("values", "values_next", 2))
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        if node.output[0] == "forbidden":
            node.attribute[0].f = -np.inf
    return program_from_onnx(model.SerializeToString(), state=StateSpec(pairs, "length", ("q", 2)))


def _attend(row: dict[str, np.ndarray], step: int) -> np.ndarray:
    """Causal attention of the last `step` queries; every array is (2, positions, 4)."""
    q, k, v = (row[name].astype(np.float64) for name in "qkv")
    scores = q @ k.transpose(0, 2, 1) / 2.0  # square root of 4
    scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v)[:, -step:]


CACHES = {
    "sums": Cache(
        _sums_program,
        lambda rng, batch, step: {"x": rng.standard_normal((batch, step, 3)).astype(np.float32)},
        lambda row, step: np.cumsum(row["x"].astype(np.float64), 0)[-step:],
        1,
    ),
    "attention": Cache(
        _attention_program,
        lambda rng, batch, step: {n: rng.standard_normal((batch, 2, step, 4)).astype(np.float32) for n in "qkv"},
        _attend,
        2,
    ),
}


def _require(device: str, got: np.ndarray, want: np.ndarray, label: str) -> None:
    assert got.shape == want.shape, f"{label}: {got.shape}, expected {want.shape}"
    if device.split(",")[0] != "null":
        error, size = abs(got - want).max(), abs(want).max()
        assert error <= BOUND * size, f"{label}: max abs error {error:.2e} > {BOUND * size:.2e}"


class Walk:
    """Runs of a cache beside the record of what each row was fed."""

    def __init__(self, cache: Cache, device: str, batch: int, capacity: int) -> None:
        self.cache, self.device, self.batch = cache, device, batch
        self.session = open_session(cache.program(), device)
        self.state = self.session.new_state(capacity, batch)
        self.rng = np.random.default_rng(7)
        self.history: list[dict[str, np.ndarray]] = [{} for _ in range(batch)]
        self.last: tuple[np.ndarray, np.ndarray] | None = None  # the output before, and a copy of it

    def step(self, step: int) -> None:
        feeds = self.cache.feed(self.rng, self.batch, step)
        for b, row in enumerate(self.history):
            for name, array in feeds.items():
                parts = [row[name], array[b]] if name in row else [array[b]]
                row[name] = np.concatenate(parts, axis=self.cache.axis - 1)
        got = self.session.run(feeds, self.state)
        assert list(got) == ["y"], f"only what is not state comes back, got {list(got)}"
        _require(self.device, got["y"], self.cache.expected(self.history, step), f"step of {step}")
        if self.last:
            np.testing.assert_array_equal(*self.last, err_msg="a later run wrote into an earlier output")
        self.last = got["y"], got["y"].copy()

    def rewind(self, lengths: list[int]) -> None:
        for row, length in zip(self.history, lengths, strict=True):
            for name, array in row.items():
                row[name] = np.take(array, range(length), axis=self.cache.axis - 1)
        self.state.length = np.array(lengths)


def _steps(cache: Cache, device: str) -> None:
    walk = Walk(cache, device, batch=1, capacity=16)
    with walk.session:
        for step in (3, 1, 2, 1):
            walk.step(step)
        assert walk.state.capacity == 16
        assert walk.state.length.tolist() == [7]


def _grows(cache: Cache, device: str) -> None:
    walk = Walk(cache, device, batch=2, capacity=4)
    with walk.session:
        walk.step(3)
        walk.step(2)  # 5 > 4
        assert walk.state.capacity == CAPACITY_STEP
        walk.step(1)


def _rewinds(cache: Cache, device: str) -> None:
    walk = Walk(cache, device, batch=1, capacity=8)
    with walk.session:
        walk.step(5)
        walk.rewind([2])
        walk.step(1)  # over what was there: the positions behind are stale and must not count
        walk.step(3)


def _rows_differ(cache: Cache, device: str) -> None:
    walk = Walk(cache, device, batch=2, capacity=6)
    with walk.session:
        walk.step(5)
        walk.rewind([1, 4])
        walk.step(2)
        walk.step(3)  # 9 > 6: grows with rows of different length


def _two_states(cache: Cache, device: str) -> None:
    first = Walk(cache, device, batch=1, capacity=8)
    second = Walk(cache, device, batch=3, capacity=4)
    second.session.close()
    second.session, second.rng = first.session, np.random.default_rng(8)
    second.state = first.session.new_state(4, 3)
    with first.session:
        for step in (2, 1, 3):
            first.step(step)
            second.step(step)


def _no_state_starts_empty(cache: Cache, device: str) -> None:
    with open_session(cache.program(), device) as session:
        feeds = cache.feed(np.random.default_rng(1), 2, 4)
        want = cache.expected([{n: a[b] for n, a in feeds.items()} for b in range(2)], 4)
        for _ in range(2):
            _require(device, session.run(feeds)["y"], want, "without a state")


def _misuse(cache: Cache, device: str) -> None:
    with open_session(cache.program(), device) as session:
        state = session.new_state(8, batch=2)
        hidden = session.program.state.pairs[0].input
        feeds = cache.feed(np.random.default_rng(1), 2, 1)
        with pytest.raises(InputError, match="is state"):
            session.run({**feeds, hidden: np.zeros(1, np.float32)}, state)
        state.length = np.array([1])
        with pytest.raises(InputError, match="2 rows needs a length of 2 int64"):
            session.run(feeds, state)
        state.length = np.array([0, -1])
        with pytest.raises(InputError, match="from 0 up"):
            session.run(feeds, state)


LSTM = """
<ir_version: 10, opset_import: ["": 21]> g
  (float[step,batch,3] x, float[1,batch,5] h, float[1,batch,5] c, float[1,20,3] w, float[1,20,5] r)
  => (float[step,1,batch,5] y, float[1,batch,5] h_next, float[1,batch,5] c_next)
  <float[1,40] b = {0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1,
                    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}> {
    y, h_next, c_next = LSTM<hidden_size=5>(x, w, r, b, , h, c)
  }
"""
_RNG = np.random.default_rng(3)
_W, _R = (_RNG.standard_normal((1, 20, n)).astype(np.float32) / 2 for n in (3, 5))


def _lstm_program() -> Program:
    model = onnx.parser.parse_model(LSTM)
    kept = [value for value in model.graph.input if value.name not in "wr"]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend([onnx.numpy_helper.from_array(_W, "w"), onnx.numpy_helper.from_array(_R, "r")])
    pairs = (StatePair("h", "h_next", None), StatePair("c", "c_next", None))
    return program_from_onnx(model.SerializeToString(), state=StateSpec(pairs))


def _lstm(x: np.ndarray) -> np.ndarray:
    """LSTM with gates in ONNX's order i, o, f, c. x: (step, batch, 3) -> (step, 1, batch, 5)"""

    def sigmoid(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    h = c = np.zeros((x.shape[1], 5))
    out = []
    for row in x.astype(np.float64):
        i, o, f, g = np.split(row @ _W[0].T + h @ _R[0].T + np.float64(np.float32(0.1)), 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h[None])
    return np.stack(out)


def lstm_chunks_equal_the_whole(device: str) -> None:
    x = np.random.default_rng(4).standard_normal((9, 2, 3)).astype(np.float32)
    with open_session(_lstm_program(), device) as session:
        state = session.new_state(batch=2)
        assert state.capacity == 0
        got = [session.run({"x": part}, state)["y"] for part in np.split(x, [4, 5])]
        _require(device, np.concatenate(got), _lstm(x), "in chunks")
        again = session.run({"x": x}, session.new_state(batch=2))["y"]
        _require(device, again, _lstm(x), "whole, from a fresh state")
        _require(device, session.run({"x": x})["y"], _lstm(x), "whole, without a state")


def state_for_a_stateless_program_is_refused(device: str) -> None:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[N] x) => (float[N] y) { y = Neg(x) }'
    stateless = program_from_onnx(onnx.parser.parse_model(text).SerializeToString())
    with open_session(_sums_program(), device) as with_state, open_session(stateless, device) as without:
        state = with_state.new_state(4)
        with pytest.raises(UsageError, match="keeps no state"):
            without.run({"x": np.ones(3, np.float32)}, state)


STATE_CHECKS: dict[str, Callable[[str], None]] = {
    **{
        f"{name}_cache{check.__name__}": (lambda device, cache=cache, check=check: check(cache, device))
        for name, cache in CACHES.items()
        for check in (_steps, _grows, _rewinds, _rows_differ, _two_states, _no_state_starts_empty, _misuse)
    },
    "lstm_chunks_equal_the_whole": lstm_chunks_equal_the_whole,
    "state_for_a_stateless_program_is_refused": state_for_a_stateless_program_is_refused,
}
