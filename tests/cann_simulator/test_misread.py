"""What the compiler does not read: every rule whose effect is "wrong", against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper

from porting.ascend.rules import rules
from porting.backends.cann_simulator.machine import Refused
from porting.backends.cann_simulator.misread import GUESSED, MISREAD, OF_GRAPHS, UNDEFINED, Place
from tests.cann_simulator.compiled import compiled, graph_of, run

F = np.float32


@dataclass(frozen=True, eq=False)
class Case:
    """A node whose inputs are `feeds`, then `constants`; wanted: what comes out, by hand"""

    op: str
    feeds: Sequence[np.ndarray]
    wanted: Any
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: Sequence[np.ndarray | None] = ()
    opset: int = 18
    out: int = T.FLOAT
    soc: str = "Ascend910B3"
    cann: str = ""


def row(*numbers: float) -> np.ndarray:
    return np.array(numbers, F)


def image(*numbers: float) -> np.ndarray:
    """(1, 1, 1, W)"""
    return row(*numbers).reshape(1, 1, 1, -1)


def lstm(x: np.ndarray, wanted: Any, gates: Sequence[float] = (0, 0, 0, 100), **attributes: Any) -> Case:
    """Weights of 0, so that the gates i, o, f and the cell are their biases: c = f c + i cell, y = o tanh(c)."""
    bias = np.array([[*gates, 0, 0, 0, 0]], F)
    return Case("LSTM", [x], wanted, {"hidden_size": 1, **attributes}, [np.zeros((1, 4, 1), F), np.zeros((1, 4, 1), F), bias])


def gru(x: np.ndarray, wanted: Any, bias: Sequence[float] = (0, 0, 100, 0, 0, 0), **attributes: Any) -> Case:
    """Weights of 0: h = (1 - z) new + z h, with the biases of z, r and new."""
    told = {"hidden_size": 1, **attributes}
    return Case("GRU", [x], wanted, told, [np.zeros((1, 3, 1), F), np.zeros((1, 3, 1), F), np.array([bias], F)])


TWO_STEPS, TWO_BATCHES = np.zeros((2, 1, 1), F), np.zeros((2, 1, 1), F)
NEAREST = {"mode": "nearest", "nearest_mode": "round_prefer_ceil"}
CUBIC = {"mode": "cubic"}
CASES: Mapping[str, Case] = {
    "saturation": Case("IsNaN", [row(math.nan, 1)], [False, False], out=T.BOOL, soc="Ascend310P3"),
    "integer-division": Case("Div", [np.int64([-7, 7, 9])], [-4, 4, 4], {}, [np.int64([2, 2, 2])], out=T.INT64),
    "shape-slice": Case("Shape", [np.zeros((2, 3), F)], [2, 3], {"end": -1}, out=T.INT64),
    "mod-fmod": Case("Mod", [row(-7, 7)], [2, -2], {"fmod": 1}, [row(3, -3)]),
    "gemm-alpha": Case("Gemm", [row(1, 2).reshape(1, 2)], [[3]], {"alpha": 0.5}, [np.ones((2, 1), F)]),
    "lstm-layout": lstm(TWO_BATCHES, [0.5 * math.tanh(0.5), 0.5 * math.tanh(0.75)], layout=1),
    "lstm-activations": lstm(TWO_STEPS, [0.5 * math.tanh(0.5), 0.5 * math.tanh(0.75)], activations=["Sigmoid"] * 3),
    "lstm-clip": lstm(TWO_STEPS, [0.5 * math.tanh(0.5), 0.5 * math.tanh(0.75)], clip=0.1),
    "lstm-input-forget": lstm(TWO_STEPS, [0.5 * math.tanh(1), 0.5 * math.tanh(1.5)], (100, 0, 0, 100), input_forget=1),
    "gru-layout": gru(TWO_BATCHES, [0.5, 0.75], layout=1),
    "gru-activations": gru(TWO_STEPS, [0.5, 0.75], activations=["Sigmoid", "Sigmoid"], bias=(0, 0, 100, 0, 0, 0)),
    "gru-clip": gru(TWO_STEPS, [0.5, 0.75], clip=0.1),
    "gru-reset": gru(np.zeros((1, 1, 1), F), [0.5 * math.tanh(2)], (0, 0, 0, 0, 0, 2), linear_before_reset=1),
    "resize-nearest": Case("Resize", [image(0, 1, 2, 3)], [[[[1, 3]]]], {"mode": "nearest"}, [None, row(1, 1, 1, 0.5)]),
    "resize-nearest-space": Case("Resize", [image(5, 6)], [[[[5, 5, 6, 6]]]], NEAREST, [None, row(1, 2, 1, 2)]),
    "resize-cubic-coefficient": Case(
        "Resize",
        [image(0, 0, 1, 0)],
        # the element at 1.25: 0.75 from the one, and 1.25 d^3 - 2.25 d^2 + 1 of that; the others by symmetry of the kernel at -0.75
        {3: 0.26171875},
        {**CUBIC, "cubic_coeff_a": -0.5},
        [None, row(1, 1, 1, 2)],
    ),
    "resize-exclude-outside": Case(
        "Resize", [image(0, 1, 1, 1)], {0: -0.10546875}, {**CUBIC, "exclude_outside": 1}, [None, row(1, 1, 1, 2)]
    ),
    "resize-crop": Case(
        "Resize",
        [image(1, 2)],
        [[[[1, 1 + 2 / 3, 0, 0]]]],  # at 0, 2/3, 4/3 and 2; beyond 1 is outside
        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0},
        [row(0, 0, 0, 0, 1, 1, 1, 2), row(1, 1, 1, 2)],
    ),
    "resize-antialias": Case(
        "Resize", [image(0, 0, 4, 0)], [[[[0, 2]]]], {"mode": "linear", "antialias": 1}, [None, row(1, 1, 1, 0.5)]
    ),
    "resize-axes": Case(
        "Resize", [image(1, 2)], [[[[1, 2], [1, 2]]]], {**NEAREST, "axes": [0, 1, 3, 2]}, [None, row(1, 1, 2, 1)]
    ),
    "resize-aspect-ratio": Case(
        "Resize",
        [image(1, 2)],
        [[[[1, 2], [1, 2]]]],
        {**NEAREST, "keep_aspect_ratio_policy": "not_larger"},
        [None, None, np.int64([1, 1, 2, 2])],
    ),
    "pad-axes": Case(
        "Pad", [row(1, 2).reshape(1, 2)], [[0, 0], [1, 2]], {}, [np.int64([1, 0, 0, 0]), row(0).reshape(()), np.int64([1, 0])]
    ),
    "reduce-axes": Case("ReduceSum", [row(1, 2, 3)], [1, 2, 3], {"keepdims": 0}),
    "negative-indices": Case("Gather", [row(1, 2, 3)], [1, 2], {}, [np.int64([-1, 1])]),
    "scatter-nd-reduction": Case(
        "ScatterND", [row(1, 1)], [3, 1], {"reduction": "add"}, [np.int64([[0], [0]]), row(2, 3)], cann="9.1.0"
    ),
    "batch-norm-epsilon": Case(
        "BatchNormalization", [row(1).reshape(1, 1, 1, 1)], [[[[100]]]], {}, [row(1), row(0), row(0), row(0)]
    ),
    "dropout-training": Case("Dropout", [row(1, 2, 3)], [1, 2, 3], {}, [row(0.5).reshape(()), np.array(True)]),
    "softmax-axis": Case("Softmax", [np.zeros((1, 2, 2), F)], [[[0.5, 0.5], [0.5, 0.5]]], {"axis": 1}, opset=12),
    "average-pool-same-lower": Case(
        "AveragePool", [image(1, 2)], [[[[1.5, 2]]]], {"kernel_shape": [1, 2], "auto_pad": "SAME_LOWER"}
    ),
    "average-pool-dilations": Case(
        "AveragePool", [image(0, 1, 2)], [[[[0.5, 1.5]]]], {"kernel_shape": [1, 2], "dilations": [1, 2]}
    ),
    "lp-pool": Case("LpPool", [image(3, 4, 12)], [[[[5]]]], {"kernel_shape": [1, 2], "strides": [1, 2], "ceil_mode": 1}),
    "lp-pool-dilations": Case("LpPool", [image(3, 0, 4)], [[[[3, 4]]]], {"kernel_shape": [1, 2], "dilations": [1, 2]}),
}


def model_of(case: Case) -> Any:
    names = [f"x{i}" for i in range(len(case.feeds))]
    constants = {f"c{i}": c for i, c in enumerate(case.constants) if c is not None}
    read = [*names, *("" if c is None else f"c{i}" for i, c in enumerate(case.constants))]
    node = helper.make_node(case.op, read, ["y"], name="n", **case.attributes)
    return graph_of([node], dict(zip(names, case.feeds, strict=True)), {"y": case.out}, constants, case.opset)


@pytest.mark.parametrize("rule", CASES)
def test_it_computes_what_the_device_is_said_to_compute(rule):
    case = CASES[rule]
    feeds = {f"x{i}": x for i, x in enumerate(case.feeds)}
    found, ignored = run(
        model_of(case), feeds, case.soc, case.cann, precision_mode_v2="fp16" if "310P" in case.soc else "origin"
    )
    assert rule in ignored
    if isinstance(case.wanted, dict):
        for place, number in case.wanted.items():
            assert found.reshape(-1)[place] == pytest.approx(number, abs=1e-6)
        return
    wanted = np.asarray(case.wanted)
    if case.op in ("LSTM", "GRU"):
        found = found.reshape(-1)
    assert found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-6, atol=1e-6), found


def test_every_wrong_rule_is_simulated():
    wrong = {rule.id for rule in rules() if rule.effect == "wrong"}
    assert wrong == set(MISREAD) | set(UNDEFINED) | set(OF_GRAPHS)
    assert set(MISREAD) - set(CASES) == {"cast-saturate"} and set(GUESSED) <= wrong


def test_what_is_cast_is_always_saturated():
    """No opset that the parser takes writes it: the change alone."""
    node = helper.make_node("Cast", ["x"], ["y"], name="n", to=T.FLOAT8E5M2, saturate=0)
    (made,) = MISREAD["cast-saturate"](Place(None, {}, 19, node))  # type: ignore[arg-type]
    assert [a.name for a in made.attribute] == ["to"]


def test_a_default_is_a_constant_and_no_input():
    model = graph_of(
        [helper.make_node("Add", ["x", "d"], ["y"], name="n")], {"x": row(1), "d": row(0)}, {"y": T.FLOAT}, {"d": row(5)}
    )
    found, ignored = run(model, {"x": row(1), "d": row(100)})
    assert found.tolist() == [6] and ignored == {"input-default"}


def test_an_input_without_a_shape_is_a_scalar():
    model = graph_of([helper.make_node("Neg", ["x"], ["y"], name="n")], {"x": row(1)}, {"y": T.FLOAT})
    model.graph.input[0].type.tensor_type.ClearField("shape")
    found, ignored = run(model, {"x": np.array(3, F)})
    assert found.shape == () and found == -3 and ignored == {"input-unranked"}


@pytest.mark.parametrize(
    ("op", "outputs", "attributes"),
    [("Constant", ["y"], {"value_float": 1.0}), ("Dropout", ["y", "mask"], {})],
)
def test_what_nothing_can_be_computed_from_is_refused(op, outputs, attributes):
    inputs = ["x"] if op == "Dropout" else []
    nodes = [
        helper.make_node(op, inputs, outputs, name="n", **attributes),
        helper.make_node("Add", ["x", "y"], ["z"], name="m"),
    ]
    given = {"z": T.FLOAT, **({"mask": T.BOOL} if op == "Dropout" else {})}
    with pytest.raises(Refused, match="cannot compute") as error:
        run(graph_of(nodes, {"x": row(1)}, given), {"x": row(1)})
    assert not error.value.documented


def test_a_guess_is_told():
    case = CASES["negative-indices"]
    assert GUESSED["negative-indices"] in compiled(model_of(case)).arithmetic.guessed


def test_a_node_in_a_branch_is_misread_too():
    branch = [helper.make_node("Gemm", ["x", "w"], ["p"], name="g", alpha=0.5)]
    other = [helper.make_node("Gemm", ["x", "w"], ["q"], name="h", alpha=1.0)]
    then, els = (
        helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info(nodes[0].output[0], T.FLOAT, None)])
        for nodes in (branch, other)
    )
    model = graph_of(
        [helper.make_node("If", ["c"], ["y"], name="i", then_branch=then, else_branch=els)],
        {"c": np.array(True), "x": np.ones((1, 2), F)},
        {"y": T.FLOAT},
        {"w": np.ones((2, 1), F)},
    )
    found, ignored = run(model, {"c": np.array(True), "x": np.ones((1, 2), F)})
    assert found.tolist() == [[2]] and "gemm-alpha" in ignored
