"""Outputs that one number cannot judge: small elements beside huge ones, outputs that stay the same, branches that nothing reaches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import porting
from porting.errors import InputError
from porting.graph_golden import GraphGolden
from porting.graph_golden_parts import ExpectedSketch
from porting.graph_judgement import stretched
from porting.graph_outputs import SCALES, WIDE, Difference, ExpectedArray, compressed, relative_error, small_scales
from porting.graph_validation import _decide, judge_graph
from porting.onnx_facts import valued_names
from porting.types import TensorSpec
from tests.graph_models import (
    D,
    Edit,
    array_of,
    attribute,
    branching,
    constant,
    golden_reference,
    judged,
    model,
    node,
    only,
    port_of,
    put,
    reference_of,
    weight,
)


def masked() -> onnx.ModelProto:
    """y = x w + b, and one of b is minus a thousand million: a class that is never to be chosen."""
    shift = np.random.default_rng(5).standard_normal(8).astype(np.float32)
    shift[3] = -1e9
    nodes = [node("MatMul", "x w", "p"), node("Add", "p b", "y")]
    return model(nodes, {"x": ["batch", 16]}, {"y": ["batch", 8]}, [weight("w", 16, 8), constant("b", shift)])


def other_weight(proto: onnx.ModelProto) -> None:
    put(proto, "w", array_of(proto, "w")[::-1].copy())


def a_thousandth_off(proto: onnx.ModelProto) -> None:
    put(proto, "w", array_of(proto, "w") * np.float32(1.001))


@pytest.mark.parametrize("edit", [other_weight, a_thousandth_off])
def test_a_huge_element_does_not_hide_the_others(tmp_path: Path, edit: Edit) -> None:
    reference = reference_of(tmp_path, masked())
    (tmp_path / "wrong").mkdir()
    right, wrong = port_of(tmp_path, masked()), port_of(tmp_path / "wrong", masked(), edit)
    assert judge_graph(right, reference, "cpu").require().ok
    verdict = judge_graph(wrong, reference, "cpu")
    assert verdict.verdict == "fail" and "asinh(y" in verdict.reason
    golden = golden_reference(reference, tmp_path)
    assert judge_graph(wrong, golden, "cpu").verdict == "fail" and judge_graph(right, golden, "cpu").ok


def test_the_small_elements_of_a_golden_are_read_back(tmp_path: Path) -> None:
    golden_reference(reference_of(tmp_path, masked()), tmp_path)
    again = GraphGolden.load(tmp_path / "golden.json")
    small = [of_step["y"] for one in again.recorded for of_step in one.small]
    assert len(small) == len(again.recorded) and all(0 < s.scale < 10 and 0 < s.noise < 1e-5 for s in small)


@given(st.integers(0, 1000), st.floats(1e-6, 1e6))
@settings(max_examples=30, deadline=None)
def test_scales_do_not_depend_on_the_unit(seed: int, unit: float) -> None:
    array = np.exp(np.random.default_rng(seed).standard_normal(2000) * 5)
    scales, others = small_scales(array), small_scales(array * unit)
    np.testing.assert_allclose(np.asarray(scales) * unit, others, rtol=1e-12)
    assert len(scales) == len(SCALES) and relative_error(compressed(array, scales[0]), compressed(array, scales[0])) == 0


def test_an_output_of_one_size_needs_no_second_look() -> None:
    rng = np.random.default_rng(0)
    assert small_scales(rng.standard_normal(10_000)) == [] and small_scales(rng.random(10_000)) == []
    assert small_scales(np.zeros(5)) == [] and small_scales(np.asarray([np.inf, 0.0])) == []
    beside = np.append(rng.standard_normal(999), 1e3 * WIDE)
    assert small_scales(beside)[0] == pytest.approx(np.quantile(np.abs(beside), SCALES[0]))


def test_equal_infinities_are_equal_beside_small_elements() -> None:
    array = np.asarray([-np.inf, 1e9, 1.0, 2.0, -0.5])
    expected = ExpectedArray(array)
    assert expected.compare_small("y", array, 0.5).value == 0
    assert expected.compare_small("y", np.asarray([-np.inf, 1e9, 1.0, 2.0, -0.6]), 0.5).value > 1e-3
    assert not expected.compare_small("y", np.asarray([np.inf, 1e9, 1.0, 2.0, -0.5]), 0.5).value <= 1e3


# --- outputs that stay the same -----------------------------------------------------------------------------------------


def deaf(floats: bool) -> onnx.ModelProto:
    """y depends on x by the look of the graph, and is the same for every x."""
    nodes = [
        node("Abs", "x", "a"),
        node("Clip", "a big big", "capped"),
        node("Add", "capped table", "y"),
        *([] if floats else [node("Cast", "y", "ids", to=TensorProto.INT64), node("Relu", "x", "z")]),
    ]
    outputs = {"y": ["batch", 3]} if floats else {"ids": (["batch", 3], TensorProto.INT64), "z": ["batch", 3]}
    weights = [constant("big", 9.0), constant("table", [1.0, 2.0, 3.0])]
    return model(nodes, {"x": ["batch", 3]}, outputs, weights)


def test_an_output_that_stays_the_same_shows_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"output 'y' is the same in \d cases that differ in what it depends on"):
        judged(tmp_path, deaf(True))


def test_ids_that_stay_the_same_are_listed(tmp_path: Path) -> None:
    (line,) = judged(tmp_path, deaf(False)).require().details["shows_nothing"]
    assert line.startswith("ids is the same in ")


def test_an_output_of_an_input_that_the_cases_share_is_no_error(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "y"), node("Sqrt", "rate", "root")]
    proto = model(nodes, {"x": ["batch", 3], "rate": [2]}, {"y": ["batch", 3], "root": [2]}, [])
    rate = np.asarray([1.0, 4.0], np.float32)
    cases = only(x=np.ones((2, 3), np.float32), rate=rate)
    feeds = {**cases.feeds, "other": {"x": np.full((2, 3), 2.0, np.float32), "rate": rate}}
    from porting.feeds import Cases

    feeds["given"]["x"][0] = 3.0
    feeds["other"]["x"][0] = 5.0
    judged(tmp_path, proto, cases=Cases(feeds)).require()


def test_an_input_that_a_model_ignores_does_not_make_an_output_one_that_stays_the_same(tmp_path: Path) -> None:
    """By the look of the graph y depends on the rate, which is clipped away; two cases differ in nothing else."""
    from porting.feeds import Cases

    nodes = [node("Clip", "rate one one", "same"), node("Mul", "x same", "y")]
    proto = model(nodes, {"x": ["batch", 3], "rate": []}, {"y": ["batch", 3]}, [constant("one", 1.0)])
    x = np.ones((2, 3), np.float32) * np.arange(3, dtype=np.float32)
    rates = {f"rate{i}": {"x": x, "rate": np.asarray(i, np.float32)} for i in range(2)}
    judged(tmp_path, proto, cases=Cases(rates)).require()


# --- branches that no inputs reach ---------------------------------------------------------------------------------------


def unreachable(by_values: bool) -> onnx.ModelProto:
    proto = branching()
    other = attribute(proto, "outer", "else_branch").g
    other.node[0].output[0] = other.node[0].name = "e0"
    other.node.append(node("Reshape", "e0 odd", "e"))
    other.initializer.append(constant("odd", [7, D], np.int64))
    if not by_values:
        usual = next(n for n in proto.graph.node if n.output[0] == "mean")
        usual.CopyFrom(node("Shape", "x", "shape"))
        less = next(n for n in proto.graph.node if n.output[0] == "usual")
        less.CopyFrom(node("Less", "rows limit", "usual"))
        small = next(n for n in proto.graph.node if n.output[0] == "small")
        small.input[0] = "rows"
        proto.graph.node.insert(1, helper.make_node("Cast", ["shape"], ["sizes"], "sizes", to=TensorProto.FLOAT))
        proto.graph.node.insert(2, helper.make_node("ReduceMean", ["sizes"], ["rows"], "rows", keepdims=0))
    return proto


def test_a_branch_that_values_lead_to_and_no_input_reaches_is_no_pass(tmp_path: Path) -> None:
    verdict = judged(tmp_path, unreachable(True))
    assert verdict.verdict == "error" and verdict.exit_code == 3
    assert "branches that no inputs reach 1" in verdict.reason and "outer = else" in verdict.reason
    (line,) = verdict.details["not_reached"]
    assert line.startswith("outer = else: the original")
    reference = reference_of(tmp_path, unreachable(True))
    golden = golden_reference(reference, tmp_path)
    (tmp_path / "again").mkdir()
    assert judge_graph(port_of(tmp_path / "again", unreachable(True)), golden, "cpu").verdict == "error"


def test_a_branch_that_only_other_sizes_take_is_said_in_the_first_line(tmp_path: Path) -> None:
    verdict = judged(tmp_path, unreachable(False)).require()
    assert verdict.reason.startswith("NOT shown: 1 branches of Ifs that these sizes do not take; ")


# --- examples, made longer ------------------------------------------------------------------------------------------------


def test_a_repeated_example_has_no_ties() -> None:
    class Sizes:
        def run(self, feeds: object) -> dict[str, np.ndarray]:
            return {}

    spec = TensorSpec("x", "float32", ("batch", 5))
    x = np.linspace(1, 2, 10, dtype=np.float32).reshape(2, 5)
    cases = stretched({"example0": {"x": x}}, [spec], Sizes()).feeds
    longer = cases["example0, batch doubled"]["x"]
    assert longer.shape == (4, 5) and longer.dtype == np.float32 and len(np.unique(longer)) == 20
    np.testing.assert_allclose(longer[2:], x, rtol=0.0101)


def two_widths() -> onnx.ModelProto:
    """One branch takes any x, the other only images 96 wide; a flag says which."""
    any_y = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    only_y = helper.make_tensor_value_info("e", TensorProto.FLOAT, None)
    weights = [weight("w", 96, 96, scale=0.1)]
    chosen = helper.make_node(
        "If",
        ["flag"],
        ["y"],
        name="chosen",
        then_branch=helper.make_graph([node("Relu", "image", "t")], "t", [], [any_y]),
        else_branch=helper.make_graph([node("MatMul", "image w", "e")], "e", [], [only_y], weights),
    )
    size = ["batch", 3, "height", "width"]
    nodes = [node("ReduceMean", "image", "mean", keepdims=0), node("Less", "mean limit", "flag"), chosen]
    return model(nodes, {"image": size}, {"y": size}, [constant("limit", 1e3)])


def test_a_branch_that_the_users_inputs_do_not_reach_is_tried_on_generated_ones(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(two_widths(), str(path))
    small = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)
    np.savez(tmp_path / "given.npz", image=small)
    verdict = porting.port(path, tmp_path / "m.port", inputs=[tmp_path / "given.npz"]).require()
    assert any(run.startswith("chosen = else, also generated") for run in verdict.details["runs"])
    golden = tmp_path / "golden.json"
    porting.record(path, golden, inputs=[tmp_path / "given.npz"])
    verdict = porting.validate(tmp_path / "m.port", against=golden).require()
    assert any(run.startswith("chosen = else, also generated") for run in verdict.details["runs"])


@pytest.mark.parametrize(
    ("nodes", "valued"),
    [
        ([node("NonZero", "x", "n"), node("Shape", "n", "size")], True),
        ([node("NonZero", "x", "n"), node("Transpose", "n", "t", perm=[1, 0]), node("Size", "t", "size")], True),
        ([node("Relu", "x", "n"), node("Shape", "n", "size")], False),
        ([node("Shape", "x", "s"), node("ConstantOfShape", "s", "n"), node("Shape", "n", "size")], False),
        ([node("Cast", "x", "c", to=TensorProto.INT64), node("ConstantOfShape", "c", "n"), node("Shape", "n", "size")], True),
    ],
)
def test_what_asks_for_a_size_that_values_decide_depends_on_values(nodes: list[onnx.NodeProto], valued: bool) -> None:
    proto = model(nodes, {"x": ["n"]}, {"size": ([1], TensorProto.INT64)}, [])
    assert ("size" in valued_names(proto.graph)) is valued


@pytest.mark.parametrize(
    ("least", "most", "held"),
    [(0.5e-4, 0.9e-4, "pass"), (0.5e-4, 1.1e-4, "open"), (1.1e-4, 2e-4, "fail"), (None, 1.1e-4, "fail")],
)
def test_an_estimate_decides_where_both_its_ends_do(least: float | None, most: float, held: str) -> None:
    found = Difference(most, "y", least=least)
    assert _decide(False, found, 1e-4, 0.0, 0.0) == (held, 1e-4)


@pytest.mark.parametrize(
    ("noise", "may_cost", "error", "expected"),
    [
        (1e-5, 0.03, 0.02, ("pass", 0.03)),  # what a narrower format costs is no sign of a graph that is ill-conditioned
        (1e-5, 0.03, 0.04, ("fail", 0.03)),
        (1e-4, 1e-5, 2e-4, ("fail", 1e-4)),  # and allows nothing where the graph's own noise is more
        (0.05, 0.03, 0.02, ("undecided", 0.05)),
        (0.05, 0.0, 0.06, ("fail", 0.05)),
    ],
)
def test_what_a_format_costs_is_allowed_beside_the_noise(
    noise: float, may_cost: float, error: float, expected: tuple[str, float]
) -> None:
    assert _decide(False, Difference(error, "y"), noise, may_cost, 0.0) == expected


def test_an_estimate_astride_the_bound_ends_in_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = golden_reference(reference_of(tmp_path, wide()), tmp_path)
    port = port_of(tmp_path, wide())
    monkeypatch.setattr(ExpectedSketch, "compare", lambda self, name, array: Difference(1.0, name, least=1e-9))
    verdict = judge_graph(port, golden, "cpu")
    assert verdict.verdict == "error" and "the golden keeps a sketch, by which it is 1.0e-09 to 1.0e+00" in verdict.reason


def wide() -> onnx.ModelProto:
    """More elements than a golden keeps whole."""
    return model([node("MatMul", "x w", "y")], {"x": ["batch", 16]}, {"y": ["batch", 3000]}, [weight("w", 16, 3000)])
