"""Sizes and constants that are written into a graph: inputs, what is declared behind them, bodies too; the graph that went in stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.converters.passes.canonical import canonical
from porting.converters.passes.fixed_sizes import fixed_sizes
from porting.types import Graph, Limit
from tests.ascend.lowering_checks import read
from tests.graph_bits import run, whole

TEXT = """(float[n, s] x, int64 k, bool c) => (float[n, s] y) {
    shape = Shape(x) r = Reshape(x, shape) f = Cast<to = 1>(k)
    y = If(c) <
        then_branch = then () => (float[n, s] t) { t = Add(r, f) },
        else_branch = other () => (float[n, s] e) { e = Mul(r, f) }
    >
}"""


def made() -> Graph:
    graph = read(TEXT, 18)
    return Graph(graph.model, defaults={"k": 3}, ranges={"k": (0, 9)}, limits={"x": Limit(1, 8, None, "")})


@given(st.integers(1, 4), st.one_of(st.none(), st.integers(1, 5)), st.booleans())
@settings(max_examples=20, deadline=None)
def test_what_is_fixed_computes_the_same(rows: int, length: int | None, choice: bool) -> None:
    graph = made()
    before = whole(graph)
    fixed = fixed_sizes(graph, {"x": (rows, length)}, {"k": 3})
    assert whole(graph) == before, "the graph that went in is not to change"
    x = np.random.default_rng(0).standard_normal((rows, length or 4)).astype(np.float32)
    wanted = run(whole(graph), {"x": x, "k": np.array(3), "c": np.array(choice)})
    found = run(whole(canonical(fixed)[0]), {"x": x, "c": np.array(choice)})
    np.testing.assert_array_equal(found[0], wanted[0])


def test_declared_sizes_follow_and_a_constant_is_no_input() -> None:
    fixed = fixed_sizes(made(), {"x": (2, None)}, {"k": 3})
    body = fixed.model.graph
    assert [v.name for v in body.inputs] == ["x", "c"] and list(body.inputs[0].shape) == [2, ir.SymbolicDim("s")]
    assert (fixed.defaults, fixed.ranges) == ({}, {}) and set(fixed.limits) == {"x"}
    branch = next(n for n in body if n.op_type == "If").attributes["then_branch"].as_graph()
    assert list(branch.outputs[0].shape) == [2, ir.SymbolicDim("s")] and body.outputs[0].shape[0] == 2
    folded = canonical(fixed_sizes(made(), {"x": (2, 5)}, {"k": 3}))[0]
    assert "Shape" not in {n.op_type for n in folded.model.graph}
