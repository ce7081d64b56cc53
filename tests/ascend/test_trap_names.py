"""Names of nodes that are legal, and what branches of an If reach outside of themselves."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.ascend.graph_facts import facts_of
from porting.ascend.rules import judge
from porting.ascend.soc import find_soc
from porting.converters.passes.ascend.if_captures import if_captures
from porting.converters.passes.ascend.legal_names import legal_names
from porting.converters.passes.rewriting import bodies_of
from porting.types import Graph
from tests.ascend.lowering_checks import in_branches, read
from tests.graph_bits import named, run, same_bits, whole


def names_of(graph: Graph) -> list[str]:
    return [str(node.name) for body in bodies_of(graph.model) for node in body]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab:;, _2\"'\\\n", max_size=4), min_size=3, max_size=3))
def test_names_are_unique_and_legal(names: list[str]) -> None:
    graph = in_branches(read("(float[2] x) => (float y) { a = Neg(x) b = Abs(a) y = Neg(b) }", 17))
    feeds = {"x": np.ones(2, np.float32), "choice": np.array(True)}
    wanted = run(whole(graph), feeds)[0]
    nodes = [node for body in bodies_of(graph.model) for node in body]
    for place, node in enumerate(nodes):
        node.name = names[place % 3]
    before, legal = whole(graph), [n for n in names_of(graph) if n and not set(n) & set(":;, \"'\\\n")]
    lowered, changes = legal_names(graph)
    got = names_of(lowered)
    assert whole(graph) == before and legal_names(lowered)[1] == 0
    assert changes == sum(a != b for a, b in zip(names_of(graph), got, strict=True)) >= len(got) - len(set(legal))
    assert len(set(got)) == len(got) and all(n and not set(n) & set(":;, \"'\\\n") for n in got)
    assert set(legal) <= set(got), "a legal name is kept by the first that has it"
    assert same_bits(run(whole(lowered), feeds)[0], wanted)


INNER = """
<ir_version: 8, opset_import: ["" : 17]>
g (bool c, bool d, float[2] x, float[2] w) => (float[2] y) {
  z = Neg(x)
  y = If (c) <
    then_branch = t () => (float[2] ty) {
      ty = If (d) <
        then_branch = tt () => (float[2] tty) { tty = Add(z, w) },
        else_branch = te () => (float[2] tey) { tey = Abs(z) }
      >
    },
    else_branch = e () => (float[2] ey) { ew = Neg(w) ey = Add(ew, z) }
  >
}
"""


def rules_that_speak(graph: Graph) -> set[str]:
    return {finding.rule.id for finding in judge(facts_of(graph), find_soc("Ascend910B3"))}


def test_what_inner_branches_reach_is_read_by_the_branch_between() -> None:
    graph = named(ir.serde.deserialize_model(onnx.parser.parse_model(INNER)))
    assert "if-captures-deeper" in rules_that_speak(graph)
    before = whole(graph)
    lowered, changes = if_captures(graph)
    assert changes == 2 and whole(graph) == before and if_captures(lowered)[1] == 0
    assert "if-captures-deeper" not in rules_that_speak(lowered)
    for c in (True, False):
        for d in (True, False):
            feeds = {"c": np.array(c), "d": np.array(d), "x": np.array([1, -2], np.float32), "w": np.array([3, 4], np.float32)}
            assert same_bits(run(whole(lowered), feeds)[0], run(before, feeds)[0])


def test_a_branch_that_returns_an_outer_tensor_returns_a_copy() -> None:
    """onnxruntime refuses such a model, so that only what comes out is run."""
    graph = named(ir.serde.deserialize_model(onnx.parser.parse_model(INNER)))
    node = next(node for node in graph.model.graph if node.op_type == "If")
    branch, z = node.attributes["else_branch"].as_graph(), graph.model.graph[0].outputs[0]
    branch.outputs[0] = z
    lowered, changes = if_captures(graph)
    assert changes == 3 and "if-returns-outer" not in rules_that_speak(lowered)
    feeds = {"c": np.array(False), "d": np.array(False), "x": np.array([1, -2], np.float32), "w": np.zeros(2, np.float32)}
    assert run(whole(lowered), feeds)[0].tolist() == [-1, 2]
