"""Large weights of branches lie in the main graph."""

from __future__ import annotations

import numpy as np
import onnx.helper as oh
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.ascend.graph_facts import facts_of
from porting.ascend.rules import judge
from porting.ascend.soc import find_soc
from porting.converters.passes.ascend.branch_weights import branch_weights
from porting.types import Graph
from tests.ascend.lowering_checks import require_lowered


def branching(sizes: tuple[int, int], nested: bool = False) -> Graph:
    """An If whose branches add weights of the same name and other numbers; with `nested` the first lies in an If of its own."""

    def body(name: str, size: int, wrapped: bool) -> object:
        weight = oh.make_tensor("w", 1, [size, 2], np.random.default_rng(size).standard_normal((size, 2)))
        nodes = [
            oh.make_node("MatMul", ["w", "x"], [f"{name}.p"], f"{name}.mm"),
            oh.make_node("ReduceSum", [f"{name}.p"], [name], f"{name}.sum"),
        ]
        made = oh.make_graph(nodes, name, [], [oh.make_tensor_value_info(name, 1, [1])], [weight])
        if not wrapped:
            return made
        node = oh.make_node("If", ["c"], ["outer"], "inner", then_branch=made, else_branch=body("other", 1, False))
        return oh.make_graph([node], "outer", [], [oh.make_tensor_value_info("outer", 1, [1])])

    node = oh.make_node(
        "If", ["c"], ["y"], "n", then_branch=body("a", sizes[0], nested), else_branch=body("b", sizes[1], False)
    )
    fed = [oh.make_tensor_value_info("c", 9, []), oh.make_tensor_value_info("x", 1, [2])]
    graph = oh.make_graph([node], "g", fed, [oh.make_tensor_value_info("y", 1, [1])])
    return Graph(ir.from_proto(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=8)))


@settings(max_examples=15, deadline=None)
@given(st.tuples(st.sampled_from([1, 128, 129, 300]), st.sampled_from([1, 128, 129, 300])), st.booleans(), st.booleans())
def test_large_weights_move_and_no_bit_changes(sizes: tuple[int, int], nested: bool, taken: bool) -> None:
    graph = branching(sizes, nested)
    large = sum(size * 8 > 1024 for size in sizes)
    lowered, changes = branch_weights(graph)
    assert changes == large == len(lowered.model.graph.initializers)
    assert branch_weights(lowered)[1] == 0
    if large:
        require_lowered(
            branch_weights, graph, {"c": np.array(taken), "x": np.ones(2, np.float32)}, changes=large, branches=False
        )


@pytest.mark.parametrize("nested", [False, True])
def test_the_rule_has_nothing_more_to_say(nested: bool) -> None:
    graph = branching((300, 300), nested)
    soc = find_soc("Ascend910B3")
    assert "if-weights-outside" in {f.rule.id for f in judge(facts_of(graph), soc)}
    lowered, _ = branch_weights(graph)
    assert sorted(lowered.model.graph.initializers) == (["w_2", "w_3"] if nested else ["w", "w_2"]), "w is a small one's"
    assert "if-weights-outside" not in {f.rule.id for f in judge(facts_of(lowered), soc)}


def test_what_a_branch_returns_stays() -> None:
    weight = oh.make_tensor("w", 1, [1000], np.ones(1000))
    bodies = [oh.make_graph([], n, [], [oh.make_tensor_value_info("w", 1, [1000])], [weight]) for n in "ab"]
    node = oh.make_node("If", ["c"], ["y"], "n", then_branch=bodies[0], else_branch=bodies[1])
    graph = oh.make_graph([node], "g", [oh.make_tensor_value_info("c", 9, [])], [oh.make_tensor_value_info("y", 1, [1000])])
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=8)
    assert branch_weights(Graph(ir.from_proto(model)))[1] == 0
