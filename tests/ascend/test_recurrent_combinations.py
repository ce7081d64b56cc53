"""LSTM, GRU and RNN with any combination of what they can be given: lowered to the same numbers, or blocked by a rule that names it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from porting.ascend.checking import judged
from porting.ascend.soc import find_soc
from porting.types import Graph
from tests.graph_bits import named, run, whole

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
COVERED, OTHERS = ["Sigmoid", "Tanh", "Relu"], ["LeakyRelu", "HardSigmoid", "Elu", "Softsign"]
BOUND = 1e-5  # as in test_trap_recurrent: states of a few units, four steps deep
RANKS = {"y": 4, "yh": 3, "yc": 3}


@dataclass(frozen=True)
class Case:
    kind: str
    graph: Graph
    feeds: Mapping[str, np.ndarray]
    wanted: Sequence[np.ndarray]


def case_of(kind: str, seed: int) -> Case:
    """onnxruntime has no layout=1: what is wanted of it are the numbers of the other layout, turned."""
    pick, draw = random.Random(seed), np.random.default_rng(seed)
    how = pick.choice(["forward", "reverse", "bidirectional"])
    directions, gates = 1 + (how == "bidirectional"), GATES[kind]
    steps, batch, size, hidden = pick.randint(1, 4), pick.randint(1, 3), pick.randint(1, 3), pick.randint(1, 3)

    def numbers(*shape: int) -> np.ndarray:
        return (draw.standard_normal(shape) * 0.7).astype(np.float32)

    weights = {"w": numbers(directions, gates * hidden, size), "r": numbers(directions, gates * hidden, hidden)}
    fed = {"x": numbers(steps, batch, size)}
    lengths = draw.integers(pick.choice([0, 1, 1]), steps + 1, batch).astype(np.int32)
    given_ = {"b": numbers(directions, 2 * gates * hidden), "l": lengths, "h": numbers(directions, batch, hidden)}
    if kind == "LSTM":
        given_ |= {"c": numbers(directions, batch, hidden), "p": numbers(directions, 3 * hidden)}
    names = ["x", "w", "r"]
    for name, array in given_.items():
        names.append(name if pick.random() < 0.5 else "")
        if names[-1]:
            (weights if name in ("b", "p") or (name == "l" and pick.random() < 0.3) else fed)[name] = array
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": how}
    if kind == "GRU" and pick.random() < 0.6:
        attributes["linear_before_reset"] = pick.choice([0, 1])
    if kind == "LSTM" and pick.random() < 0.4:
        attributes["input_forget"] = 1
    if pick.random() < 0.35:
        attributes["clip"] = pick.choice([0.5, 1.0, 0.0001])
    chosen = pick.choice([None, None, COVERED, USUAL[kind], COVERED + OTHERS])
    if chosen is not None:
        usual = USUAL[kind] * directions
        attributes["activations"] = usual if chosen is USUAL[kind] else [pick.choice(chosen) for _ in usual]
    outputs = [name if pick.random() < 0.6 else "" for name in ("y", "yh", "yc")[: 3 if kind == "LSTM" else 2]]
    outputs = outputs if any(outputs) else ["y"]
    free, by_batch = pick.random() < 0.25, pick.random() < 0.25

    def model(layout: int) -> onnx.ModelProto:
        feeds = turned(fed) if layout else fed
        inputs = [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(array.dtype),
                [f"t{i}" if free and name == "x" and i == layout else size for i, size in enumerate(array.shape)],
            )
            for name, array in feeds.items()
        ]
        node = helper.make_node(kind, names, outputs, name="n", **attributes, **({"layout": 1} if layout else {}))
        given_out = [helper.make_tensor_value_info(name, 1, [None] * RANKS[name]) for name in outputs if name]
        constants = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
        graph = helper.make_graph([node], "g", inputs, given_out, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    wanted = run(model(0).SerializeToString(), fed)
    if by_batch:
        wanted = [w.transpose((2, 0, 1, 3) if w.ndim == 4 else (1, 0, 2)) for w in wanted]
    graph = named(ir.serde.deserialize_model(model(int(by_batch))))
    return Case(kind, graph, turned(fed) if by_batch else fed, wanted)


def turned(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n: np.ascontiguousarray(a.swapaxes(0, 1)) if a.ndim == 3 else a for n, a in feeds.items()}


def require_equal_or_named(case: Case) -> bool:
    """Whether it is blocked. raises: AssertionError, and what lowering raises where it notices that a result is another"""
    result = judged(case.graph, find_soc("Ascend910B3"), compared=True)
    if result.blocking:
        assert {finding.node for finding in result.blocking} == {"n"}
        assert all(finding.rule.says for finding in result.blocking)
        return True
    for node in result.lowered.model.graph:
        assert node.op_type not in GATES or set(node.attributes) <= {"direction", "hidden_size"}
    for got, wanted in zip(run(whole(result.lowered), case.feeds), case.wanted, strict=True):
        assert got.shape == wanted.shape and np.abs(got - wanted).max(initial=0) < BOUND * max(1, np.abs(wanted).max(initial=0))
    return False


@settings(max_examples=70, deadline=None)
@given(st.sampled_from(list(GATES)), st.integers(0, 1 << 20))
def test_any_combination_is_the_same_or_named(kind: str, seed: int) -> None:
    require_equal_or_named(case_of(kind, seed))


@pytest.mark.parametrize("kind", list(GATES))
def test_most_are_lowered(kind: str) -> None:
    """So that a pass that refuses everything would be seen."""
    blocked = [require_equal_or_named(case_of(kind, seed)) for seed in range(30)]
    assert blocked.count(False) >= 15


@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("how", ["forward", "reverse", "bidirectional"])
def test_a_row_of_no_step_ends_with_zeros(kind: str, how: str) -> None:
    """As onnxruntime has it, whatever the state is that it began with."""
    directions, gates = 1 + (how == "bidirectional"), GATES[kind]
    draw = np.random.default_rng(0)
    weights = {n: draw.standard_normal((directions, gates * 2, 2)).astype(np.float32) for n in ("w", "r")}
    inputs = [("x", 1, (3, 2, 2)), ("l", 6, (2,)), ("h", 1, (directions, 2, 2))]
    feeds = {"x": draw.standard_normal((3, 2, 2)), "h": draw.standard_normal((directions, 2, 2)), "l": np.array([0, 2])}
    feeds = {name: array.astype(np.int32 if name == "l" else np.float32) for name, array in feeds.items()}
    outputs = ["y", "yh"]
    node = helper.make_node(kind, ["x", "w", "r", "", "l", "h"], outputs, name="n", hidden_size=2, direction=how, clip=2.0)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(name, 1, [None] * RANKS[name]) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    wanted = run(proto.SerializeToString(), feeds)
    assert not wanted[1][:, 0].any() and wanted[1][:, 1].any()
    assert not require_equal_or_named(Case(kind, named(ir.serde.deserialize_model(proto)), feeds, wanted))
