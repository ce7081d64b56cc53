"""LSTM and GRU with what the plugin does not read, against onnxruntime's own operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.gru_reset import gru_reset
from porting.converters.passes.ascend.lstm_layout import lstm_layout
from porting.converters.passes.ascend.recurrent_steps import MOST_STEPS
from porting.types import Graph
from tests.ascend.lowering_checks import FLOAT32, kinds, read, require_lowered
from tests.graph_bits import run, same_bits, whole

FEW = settings(max_examples=30, deadline=None)
# States are below 1 (3 with Relu), five steps deep, sums of ten products; onnxruntime's tanh and sigmoid are rational approximations.
BOUND = 256 * FLOAT32
GATES = {"LSTM": 4, "GRU": 3}


@st.composite
def cases(draw: st.DrawFn, kind: str) -> tuple[Graph, dict[str, Any]]:
    """A graph of one node that needs its steps written out, and feeds."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    steps, batch, size, hidden = (draw(st.integers(1, n)) for n in (5, 3, 4, 4))
    how = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    directions, gates = 1 + (how == "bidirectional"), GATES[kind]

    def random(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.7).astype(np.float32)

    weights = {"w": random(directions, gates * hidden, size), "r": random(directions, gates * hidden, hidden)}
    feeds: dict[str, Any] = {"x": random(steps, batch, size)}
    inputs, names = [f"float[{steps}, n, {size}] x"], ["x", "w", "r"]
    names.append("b" if draw(st.booleans()) else "")
    weights["b"] = random(directions, 2 * gates * hidden)
    names.append("l" if draw(st.booleans()) else "")
    feeds["l"] = rng.integers(1, steps + 1, batch).astype(np.int32)
    for state in ("h", "c") if kind == "LSTM" else ("h",):
        names.append(state if draw(st.booleans()) else "")
        feeds[state] = random(directions, batch, hidden)
        inputs.append(f"float[{directions}, n, {hidden}] {state}")
    if kind == "LSTM" and draw(st.booleans()):
        names.append("p")
        weights["p"] = random(directions, 3 * hidden)
    written = [f'direction="{how}"', f"hidden_size={hidden}"]
    if kind == "GRU":
        written.append(f"linear_before_reset={draw(st.integers(0, 1))}")
    if kind == "LSTM" and draw(st.booleans()):
        written.append("input_forget=1")
    if draw(st.booleans()):
        written.append("clip=0.5")
    usual = ["Sigmoid", "Tanh", "Tanh"][: gates - 1]
    chosen = [draw(st.sampled_from(["Sigmoid", "Tanh", "Relu"])) for _ in usual * directions]
    if draw(st.booleans()):
        written.append("activations=[" + ", ".join(f'"{name}"' for name in chosen) + "]")
    outputs = ["y", "yh", "yc"][: gates - 1]
    while names[-1] == "":
        names.pop()
    text = (
        f"({', '.join([*inputs, 'int32[n] l'])}) => ({', '.join(f'float {o}' for o in outputs)}) "
        f"{{ {', '.join(outputs)} = {kind}<{', '.join(written)}>({', '.join(names)}) }}"
    )
    return read(text, 17, **weights), feeds


def needs_steps(graph: Graph) -> bool:
    node = next(iter(graph.model.graph))
    usual = ["Sigmoid", "Tanh", "Tanh"][: GATES[node.op_type] - 1]
    named = list(node.attributes["activations"].as_strings()) if "activations" in node.attributes else usual
    flags = [n for n in ("linear_before_reset", "input_forget") if n in node.attributes and node.attributes[n].as_int()]
    return bool(flags) or "clip" in node.attributes or named != usual * (len(named) // len(usual))


@FEW
@given(cases("GRU"))
def test_gru(case: tuple[Graph, dict[str, Any]]) -> None:
    graph, feeds = case
    lowered = require_lowered(gru_reset, graph, feeds, BOUND)
    assert kinds(lowered)["GRU"] == (not needs_steps(graph))


@FEW
@given(cases("LSTM"))
def test_lstm(case: tuple[Graph, dict[str, Any]]) -> None:
    graph, feeds = case
    written = {"clip", "input_forget", "activations"} & set(next(iter(graph.model.graph)).attributes)
    lowered = require_lowered(lstm_layout, graph, feeds, BOUND, changes=int(bool(written)))
    assert kinds(lowered)["LSTM"] == (not needs_steps(graph))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("free", [False, True])
def test_layout_by_batch(kind: str, reset: bool, free: bool) -> None:
    """onnxruntime has no layout=1: the same node by steps, fed and read the other way, says what is right."""
    rng = np.random.default_rng(0)
    steps, batch, size, hidden, gates = 4, 3, 5, 2, GATES[kind]
    weights = {
        "w": rng.standard_normal((2, gates * hidden, size)).astype(np.float32),
        "r": rng.standard_normal((2, gates * hidden, hidden)).astype(np.float32),
    }
    x, h = rng.standard_normal((batch, steps, size)), rng.standard_normal((batch, 2, hidden))
    flag = ", linear_before_reset=1" if kind == "GRU" and reset else ", input_forget=1" if reset else ""
    more = ", yc" if kind == "LSTM" else ""

    def graph(layout: int, sizes: str, states: str) -> Graph:
        text = (
            f"(float[{sizes}] x, float[{states}] h) => (float y, float yh{', float yc' if more else ''}) "
            f'{{ y, yh{more} = {kind}<direction="bidirectional", hidden_size={hidden}, layout={layout}{flag}>(x, w, r, , , h) }}'
        )
        return read(text, 17, **weights)

    change = lstm_layout if kind == "LSTM" else gru_reset
    feeds = {"x": x.astype(np.float32), "h": h.astype(np.float32)}
    wanted_graph = graph(0, f"{steps}, {batch}, {size}", f"2, {batch}, {hidden}")
    swapped = {name: np.ascontiguousarray(value.swapaxes(0, 1)) for name, value in feeds.items()}
    wanted = run(whole(wanted_graph), swapped)
    wanted = [wanted[0].transpose(2, 0, 1, 3), *(v.swapaxes(0, 1) for v in wanted[1:])]
    lowered, count = change(graph(1, f"n, {'t' if free else steps}, {size}", f"n, 2, {hidden}"))
    if reset and free:
        assert count == 0
        return
    assert count == 1 and change(lowered)[1] == 0
    got = run(whole(lowered), feeds)
    for g, w in zip(got, wanted, strict=True):
        assert np.abs(g - w).max() < BOUND and (reset or same_bits(g, np.ascontiguousarray(w)))
    assert all("layout" not in node.attributes for node in lowered.model.graph)


def test_too_many_steps_are_left() -> None:
    for steps, count in ((MOST_STEPS, 1), (MOST_STEPS + 1, 0)):
        graph = read(
            f"(float[{steps}, 1, 2] x) => (float y) {{ y = GRU<hidden_size=2, linear_before_reset=1>(x, w, r) }}",
            17,
            w=np.ones((1, 6, 2), np.float32),
            r=np.ones((1, 6, 2), np.float32),
        )
        assert gru_reset(graph)[1] == count
