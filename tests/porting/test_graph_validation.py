"""Ports of graphs: right ones pass near their bound, wrong ones fail, and inputs that show nothing are an error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from porting.errors import InputError
from porting.feeds import Cases
from porting.golden_file import ModelIdentity
from porting.graph_golden import GraphGolden
from porting.graph_reference import OriginalReference
from porting.graph_runs import Run
from porting.graph_validation import _group, judge_graph
from porting.types import TensorSpec
from tests.graph_models import (
    D,
    Edit,
    F,
    array_of,
    attribute,
    branching,
    constant,
    golden_reference,
    judged,
    model,
    network,
    node,
    node_named,
    only,
    port_of,
    put,
    reference_of,
    weight,
)

# --- a small network ----------------------------------------------------------------------------------------------------


def test_a_right_port_passes_within_a_thousandth_to_a_tenth_of_its_bound(tmp_path: Path) -> None:
    verdict = judged(tmp_path, network()).require()
    found = {c.name: c for c in verdict.checks}
    y = found["relative error of y"]
    assert isinstance(y.bound, float) and 1e-7 < y.bound < 1e-5
    assert found["elements of ids that differ"].value == 0
    shapes = {tuple(case["x"]) for case in verdict.details["sizes"].values()}
    assert len({s[0] for s in shapes}) > 1 and len({s[1] for s in shapes}) > 1
    assert verdict.details["only_one_size"] == [] and verdict.details["ill_conditioned"] == []
    assert "Parker 1997" in y.detail


def _epsilon(proto: onnx.ModelProto) -> None:
    attribute(proto, "norm", "epsilon").f = 1e-3


def _axis(proto: onnx.ModelProto) -> None:
    attribute(proto, "weights", "axis").i = 1


def _swap(proto: onnx.ModelProto) -> None:
    node_named(proto, "q").input[1], node_named(proto, "k").input[1] = "wk", "wq"


def _one_weight(proto: onnx.ModelProto) -> None:
    wrong = array_of(proto, "wq")
    wrong[3, 5] *= 1.01
    put(proto, "wq", wrong)


def _half(proto: onnx.ModelProto) -> None:
    put(proto, "gain", array_of(proto, "gain").astype(np.float16).astype(np.float32))


def _scale(proto: onnx.ModelProto) -> None:
    put(proto, "scale", np.float32(array_of(proto, "scale") * np.float32(1 + 1e-4)))


@pytest.mark.parametrize("edit", [_epsilon, _axis, _swap, _one_weight, _half, _scale])
def test_a_wrong_port_fails_against_the_original_and_against_its_golden(tmp_path: Path, edit: Edit) -> None:
    reference = reference_of(tmp_path, network())
    wrong = port_of(tmp_path, network(), edit)
    verdict = judge_graph(wrong, reference, "cpu")
    assert verdict.verdict == "fail" and "y" in verdict.reason
    golden = golden_reference(reference, tmp_path)
    assert judge_graph(wrong, golden, "cpu").verdict == "fail"


def test_wrong_ids_alone_fail(tmp_path: Path) -> None:
    def last_of_ties(proto: onnx.ModelProto) -> None:
        n = node_named(proto, "ids")
        n.op_type = "ArgMin"

    verdict = judged(tmp_path, network(), last_of_ties)
    assert verdict.verdict == "fail" and verdict.reason.startswith("elements of ids that differ")


def test_a_port_that_computes_the_same_in_another_order_passes(tmp_path: Path) -> None:
    """The scores as two halves that are added, the mean as a sum: other roundings, the same mathematics."""

    def halves(proto: onnx.ModelProto) -> None:
        w = array_of(proto, "wq")
        proto.graph.initializer.extend([numpy_helper.from_array(w[: D // 2], "w1"), numpy_helper.from_array(w[D // 2 :], "w2")])
        at = [n.name for n in proto.graph.node].index("q")
        del proto.graph.node[at]
        split = [node("Split", "norm", "n1 n2", axis=-1), node("MatMul", "n1 w1", "q1"), node("MatMul", "n2 w2", "q2")]
        for n in [*split, node("Add", "q1 q2", "q")][::-1]:
            proto.graph.node.insert(at, n)

    check = next(c for c in judged(tmp_path, network(), halves).require().checks if c.name == "relative error of y")
    assert 0 < float(check.value or 0) <= float(check.bound or 0)


def cancelling(offset: float) -> onnx.ModelProto:
    """A product whose result nearly cancels: roundings of relative size u come out `offset` times larger."""
    nodes = [
        node("MatMul", "x w", "p"),
        node("Add", "p offset", "large"),
        node("ReduceMean", "large", "mean", axes=[-1], keepdims=1),
        node("Sub", "large mean", "y"),
    ]
    return model(nodes, {"x": ["batch", D]}, {"y": ["batch", D]}, [weight("w", D, D), constant("offset", offset)])


def _mean_of_halves(proto: onnx.ModelProto) -> None:
    """The mean as the sum of its terms over their number."""
    n = node_named(proto, "mean")
    n.op_type, n.name = "ReduceSum", "total"
    del n.attribute[:]
    n.attribute.append(helper.make_attribute("keepdims", 1))
    n.input.append("last")
    n.output[0] = "total"
    proto.graph.initializer.extend([constant("last", [-1], np.int64), constant("count", 1 / D)])
    at = [m.name for m in proto.graph.node].index("total")
    proto.graph.node.insert(at + 1, node("Mul", "total count", "mean"))


def test_the_bound_of_an_ill_conditioned_graph_grows_with_what_roundings_do(tmp_path: Path) -> None:
    bounds = []
    for offset in (0.0, 1e2, 1e4):
        folder = tmp_path / str(offset)
        folder.mkdir()
        verdict = judged(folder, cancelling(offset), _mean_of_halves).require()
        bounds.append(next(float(c.bound or 0) for c in verdict.checks if c.name == "relative error of y"))
    assert bounds[1] > 5 * bounds[0] and bounds[2] > 50 * bounds[1]


def test_where_roundings_hide_everything_a_difference_is_no_pass(tmp_path: Path) -> None:
    verdict = judged(tmp_path, cancelling(3e6), _mean_of_halves)
    assert verdict.verdict == "error" and "ill-conditioned" in verdict.reason
    (tmp_path / "same").mkdir()
    assert judged(tmp_path / "same", cancelling(3e6)).ok  # the same operators: bit for bit


def test_a_case_whose_output_is_zero_does_not_blind_the_others(tmp_path: Path) -> None:
    """exp underflows in two of four cases: no relative error there, and the bound of the other two is their own."""
    nodes = [node("MatMul", "x w", "p"), node("Exp", "p", "y")]
    proto = model(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]}, [constant("w", np.eye(4))])
    rng = np.random.default_rng(0)
    cases = Cases({f"case{i}": {"x": (rng.random((2, 4)) - 200 * (i > 1)).astype(np.float32)} for i in range(4)})
    check = judged(tmp_path, proto, cases=cases).require().checks[-1]
    assert check.name == "relative error of y" and float(check.bound or 0) < 1e-5

    def off(wrong: onnx.ModelProto) -> None:
        put(wrong, "w", (1 + 1e-4) * array_of(wrong, "w"))

    (tmp_path / "wrong").mkdir()
    assert judged(tmp_path / "wrong", proto, off, cases).verdict == "fail"


# --- inputs that show nothing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "shape", "what"),
    [
        ([node("Abs", "x", "a"), node("Neg", "a", "n"), node("Relu", "n", "y")], ["batch", 3], "is 0.0 everywhere"),
        ([node("Abs", "x", "a"), node("Neg", "a", "n"), node("Log", "n", "y")], ["batch", 3], "holds NaN"),
        ([node("Slice", "x zero zero", "y")], [0, 3], "is empty"),
    ],
)
def test_outputs_that_show_nothing_are_an_error(tmp_path: Path, nodes: list[Any], shape: list[Any], what: str) -> None:
    proto = model(nodes, {"x": ["batch", 3]}, {"y": shape}, [constant("zero", [0], np.int64)])
    with pytest.raises(InputError, match=f"these inputs show nothing: output 'y' {what}"):
        judged(tmp_path, proto)


def test_a_mask_of_minus_infinity_is_a_value_like_any_other(tmp_path: Path) -> None:
    nodes = [node("Less", "x zero", "low"), node("Where", "low never x", "y")]
    proto = model(nodes, {"x": ["batch", 7]}, {"y": ["batch", 7]}, [constant("zero", 0.0), constant("never", -math.inf)])
    judged(tmp_path, proto).require()


def test_a_constant_flag_beside_an_informative_output_is_listed(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "y"), node("ReduceMax", "x", "top", keepdims=0), node("Less", "top limit", "fine")]
    proto = model(nodes, {"x": ["batch", 5]}, {"y": ["batch", 5], "fine": ([], TensorProto.BOOL)}, [constant("limit", 1e9)])
    assert judged(tmp_path, proto).require().details["shows_nothing"] == ["fine is True everywhere"]


def test_a_model_that_gives_another_output_each_time_is_refused() -> None:
    class Restless:
        description = "a module with dropout on"
        count = 0

        def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
            self.count += 1
            return {"y": feeds["x"] + np.float32(self.count)}

        def close(self) -> None: ...

    spec = TensorSpec("x", "float32", (2, 5))
    reference = OriginalReference(Restless, only(x=np.ones((2, 5), np.float32)), [spec], [TensorSpec("y", "float32", (2, 5))])
    with pytest.raises(InputError, match="output 'y' of the original is another each time"):
        reference.prepare()


# --- branches -----------------------------------------------------------------------------------------------------------


def test_every_branch_is_taken_in_both(tmp_path: Path) -> None:
    verdict = judged(tmp_path, branching()).require()
    names = " ".join(c.name for c in verdict.checks)
    assert all(f"branch {b}:" in names for b in ("outer = then", "outer = else", "inner = then", "inner = else"))
    assert verdict.details["not_reached"] == [] and verdict.details["folded_ifs"] == []


@pytest.mark.parametrize(("branch", "initializer"), [("outer = else", "w_else"), ("inner = then", "w_deep")])
def test_a_fault_in_a_branch_that_no_case_takes_fails(tmp_path: Path, branch: str, initializer: str) -> None:
    def spoil(proto: onnx.ModelProto) -> None:
        bodies = [a.g for n in proto.graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
        bodies += [a.g for g in bodies for n in g.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
        tensor = next(t for g in bodies for t in g.initializer if t.name == initializer)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).T.copy(), initializer))

    reference = reference_of(tmp_path, branching())
    wrong = port_of(tmp_path, branching(), spoil)
    for one in (judge_graph(wrong, reference, "cpu"), judge_graph(wrong, golden_reference(reference, tmp_path), "cpu")):
        failed = [c.name for c in one.checks if c.verdict == "fail"]
        assert failed and all(name.startswith(f"branch {branch}") for name in failed)


def test_an_if_that_the_port_decided_for_itself_fails(tmp_path: Path) -> None:
    def decide(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.append(constant("always", True, np.bool_))
        node_named(proto, "outer").input[0] = "always"

    verdict = judged(tmp_path, branching(), decide)
    assert verdict.verdict == "fail" and "Ifs that depend on the inputs" in verdict.reason and "outer" in verdict.reason


# --- state --------------------------------------------------------------------------------------------------------------

H = 8


def recurrent() -> onnx.ModelProto:
    """An LSTM that gives and takes its state; x is (time, batch, D)."""
    nodes = [
        node("LSTM", "x w r b  h c", "raw hn cn", hidden_size=H, name="lstm"),
        node("Squeeze", "raw one", "y"),
    ]
    nodes[0].input.insert(4, "")
    weights = [
        weight("w", 1, 4 * H, D, scale=0.3),
        weight("r", 1, 4 * H, H, scale=0.3),
        weight("b", 1, 8 * H),
        constant("one", [1], np.int64),
    ]
    state = [1, "batch", H]
    inputs = {"x": ["time", "batch", D], "h": state, "c": state}
    return model(nodes, inputs, {"y": ["time", "batch", H], "hn": state, "cn": state}, weights)


STATE = {"h": "hn", "c": "cn"}


def _without_empty(proto: onnx.ModelProto) -> onnx.ModelProto:
    n = node_named(proto, "lstm")
    kept = ["x", "w", "r", "b", "", "h", "c"]
    del n.input[:]
    n.input.extend(kept)
    return proto


def test_state_is_carried_and_chunks_equal_the_whole(tmp_path: Path) -> None:
    verdict = judged(tmp_path, _without_empty(recurrent()), state=STATE).require()
    assert verdict.details["chunks_equal_the_whole"] is True
    assert any(c.name.startswith("state carried over 3 steps: relative error of y") for c in verdict.checks)
    assert "3 chunks" in verdict.details["runs"]


def test_swapped_state_fails(tmp_path: Path) -> None:
    proto = _without_empty(recurrent())
    reference = reference_of(tmp_path, proto, state=STATE)
    wrong = port_of(tmp_path, proto, state={"h": "cn", "c": "hn"})
    verdict = judge_graph(wrong, reference, "cpu")
    failed = [c.name for c in verdict.checks if c.verdict == "fail"]
    assert failed and all(name.startswith("state carried") for name in failed)
    assert judge_graph(wrong, golden_reference(reference, tmp_path), "cpu").verdict == "fail"


# --- the interface, texts, sequences ------------------------------------------------------------------------------------


def test_an_output_that_is_missing_fails(tmp_path: Path) -> None:
    def drop(proto: onnx.ModelProto) -> None:
        del proto.graph.output[1]

    verdict = judged(tmp_path, network(), drop)
    assert verdict.verdict == "fail" and "only one side has" in verdict.reason and "pooled" in verdict.reason


def test_sequences_are_compared_element_by_element(tmp_path: Path) -> None:
    nodes = [node("SplitToSequence", "x", "parts", axis=1, keepdims=1), node("MatMul", "x w", "y")]
    proto = model(nodes, {"x": ["batch", 3]}, {"y": ["batch", 3]}, [weight("w", 3, 3)])
    proto.graph.output.append(helper.make_tensor_sequence_value_info("parts", F, None))
    reference = reference_of(tmp_path, proto)
    reference.prepare()
    assert set(reference.recorded[0].steps[0]) == {"y", "parts: length", "parts[0]", "parts[1]", "parts[2]"}
    assert judge_graph(port_of(tmp_path, proto), reference, "cpu").ok


# --- goldens ------------------------------------------------------------------------------------------------------------


def test_a_right_port_passes_against_its_golden_file(tmp_path: Path) -> None:
    golden = golden_reference(reference_of(tmp_path, network()), tmp_path)
    verdict = judge_graph(port_of(tmp_path, network()), golden, "cpu").require()
    assert verdict.reference == "golden" and "hash only" in verdict.details["compared_with"]
    assert (tmp_path / "golden.json").stat().st_size < 200_000


def test_large_generated_inputs_are_kept_as_their_recipe_and_checked(tmp_path: Path) -> None:
    proto = model(
        [node("GlobalAveragePool", "image", "y")], {"image": ["batch", 3, "height", "width"]}, {"y": ["batch", 3, 1, 1]}, []
    )
    reference = reference_of(tmp_path, proto)
    golden_reference(reference, tmp_path)
    document = json.loads((tmp_path / "golden.json").read_bytes())
    assert all(case["arrays"] is None for case in document["content"]["inputs"].values())
    again = GraphGolden.load(tmp_path / "golden.json")
    for name, feeds in reference.cases.feeds.items():
        np.testing.assert_array_equal(again.cases[name]["image"], feeds["image"], strict=True)
    recipe = document["content"]["inputs"]["generated0"]["recipe"]
    recipe["seed"] += 1
    from porting.golden_file import file_bytes

    with pytest.raises(InputError, match="is not what it was when this was recorded"):
        GraphGolden.from_bytes(file_bytes(document["content"], document["schema"]))


def test_every_key_of_a_golden_is_needed_and_no_other_is_taken(tmp_path: Path) -> None:
    from porting.golden_file import file_bytes

    golden_reference(reference_of(tmp_path, branching()), tmp_path)
    document = json.loads((tmp_path / "golden.json").read_bytes())

    def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [path, *(p for key, child in list(children)[:4] for p in places(child, (*path, key)))]

    for path in places(document["content"]):
        for wrong in (None, -1, "x", [], {"unknown": 1}, 1 << 70, True):
            content = json.loads(json.dumps(document["content"]))
            if not path:
                content = wrong
            else:
                holder = content
                for key in path[:-1]:
                    holder = holder[key]
                if holder[path[-1]] == wrong:
                    continue
                holder[path[-1]] = wrong
            try:
                GraphGolden.from_bytes(file_bytes(content, document["schema"]))
            except InputError:
                continue


def test_a_golden_of_another_model_is_refused(tmp_path: Path) -> None:
    golden = golden_reference(reference_of(tmp_path, network()), tmp_path).golden
    assert golden.require_model(ModelIdentity("network", "0" * 64, {})) == ["m.onnx"]
    with pytest.raises(InputError, match="of another model"):
        golden.require_model(ModelIdentity("other", "0" * 64, {}))


def test_gears_that_one_input_does_not_tell_apart_are_judged_by_themselves() -> None:
    """Two of three gears have the same first input: under its shape alone the worse of them would stand for both."""
    gears = [{"a": (1, 4), "b": (1, 4)}, {"a": (1, 8), "b": (1, 4)}, {"a": (1, 8), "b": (1, 8)}]
    runs = [Run("x", (), ({name: np.zeros(shape, np.float32) for name, shape in gear.items()},)) for gear in gears]
    assert len({_group(run, gears) for run in runs}) == 3
    assert _group(runs[0], gears[::2]) == "gear a [1, 4]: ", "no more inputs than it takes"
