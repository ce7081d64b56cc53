"""Nodes that do nothing go, those that do something stay, and so does what somebody reads."""

from __future__ import annotations

import numpy as np
import pytest
from graph_bits import run, whole, written

from porting.converters.passes.canonical import canonical
from porting.converters.passes.drop_identities import drop_identities
from porting.converters.passes.infer_shapes import infer_shapes
from porting.converters.passes.remove_unused import remove_unused
from porting.converters.passes.scalar_inputs import scalar_inputs
from porting.types import Graph
from tests.canonical_models import (
    f32,
    kinds,
    require_same_results,
)

# --- identities -----------------------------------------------------------------------------------------------------

SAME = {
    "Identity(h)": 13,
    "Dropout(h)": 13,
    "Cast<to = 1>(h)": 13,
    "Transpose<perm = [0, 1, 2]>(h)": 13,
    "Reshape(h, copy)": 13,
    "Reshape(h, one_open)": 13,
    "Expand(h, ones)": 13,
    "Tile(h, ones)": 13,
    "Pad(h, zeros)": 13,
    "Slice(h, starts, far)": 13,
    "Concat<axis = 1>(h)": 13,
    "Sum(h)": 13,
    "Mean(h)": 13,
    "Max(h)": 13,
    "Min(h)": 13,
    "Pad<pads = [0, 0, 0, 0, 0, 0]>(h)": 10,
    "Slice<starts = [0], ends = [9223372036854775807], axes = [1]>(h)": 9,
}
OTHER = {
    "Cast<to = 11>(h)": 13,
    "Transpose(h)": 13,
    "Transpose<perm = [1, 0, 2]>(h)": 13,
    "Reshape(h, other)": 13,
    "Expand(h, twos)": 13,
    "Tile(h, twos)": 13,
    "Pad(h, shifted)": 13,
    "Slice(h, starts, near)": 13,
    "Slice(h, last, first, axis, back)": 13,
    "Slice(h, zero, far_off, axis, two)": 13,
    "Concat<axis = 1>(h, h)": 13,
    "Sum(h, h)": 13,
    "Max(h, x)": 13,
}
NUMBERS = {
    "copy": [0, 0, 0],
    "one_open": [0, -1, 4],
    "other": [0, 4, -1],
    "ones": [1, 1, 1],
    "twos": [2, 1, 1],
    "zeros": [0] * 6,
    "shifted": [0, 1, 0, 0, -1, 0],
    "starts": [0, 0],
    "far": [2**31 - 1, 2**63 - 1],
    "near": [1, 2],
    "last": [-1],
    "first": [-(2**63)],
    "axis": [2],
    "zero": [0],
    "far_off": [2**63 - 1],
    "two": [2],
    "back": [-1],
}


def around(node: str, opset: int) -> Graph:
    numbers = {name: np.array(values) for name, values in NUMBERS.items() if name in node}
    result = "double" if "11" in node else "float"
    return written(f"(float[N, 2, 4] x) => ({result} y) {{ h = Neg(x) t = {node} y = Abs(t) }}", opset, **numbers)


@pytest.mark.parametrize("node", SAME)
def test_a_node_that_gives_what_it_gets_goes(node):
    graph, _ = infer_shapes(around(node, SAME[node]))
    after, changes = drop_identities(graph)
    assert changes == 1 and kinds(after) == {"Neg": 1, "Abs": 1}
    require_same_results(graph, after, {"x": f32(3, 2, 4)})


@pytest.mark.parametrize("node", OTHER)
def test_a_node_that_does_something_stays(node):
    graph, _ = infer_shapes(around(node, OTHER[node]))
    assert drop_identities(graph)[1] == 0


def test_a_reshape_to_no_elements_stays():
    """With allowzero a 0 is no copy: (0, 5, 4) becomes (0, 0, 4)."""
    text = "(float[N, M, 4] x) => (float y) { h = Neg(x) t = Reshape<allowzero = 1>(h, copy) y = Abs(t) }"
    graph = written(text, 14, copy=np.array([0, 0, 4]))
    after, _ = canonical(graph)
    assert kinds(after)["Reshape"] == 1
    require_same_results(graph, after, {"x": f32(0, 5, 4)})


def test_dropout_in_training_stays():
    graph = written(
        "(float[3] x) => (float y) { h = Neg(x) d = Dropout(h, r, t) y = Abs(d) }",
        13,
        r=np.array(0.5, np.float32),
        t=np.array(True),
    )
    assert drop_identities(graph)[1] == 0


@pytest.mark.parametrize(
    "text",
    [
        "(float[3] x) => (float y) { y = Identity(x) }",
        "(float[3] x) => (float y, float z) { z = Neg(x) y = Identity(z) }",
        "() => (float[3] y) { y = Identity(w) }",
        "(float[3] x, bool c) => (float y) { h = Neg(x) y = If (c) < then_branch = a () => (float[3] p) { p = Identity(h) }, else_branch = b () => (float[3] q) { q = Abs(h) } > }",
    ],
    ids=["input", "another output", "initializer", "outer value"],
)
def test_an_identity_that_names_an_output_stays(text):
    graph = written(text, 13, **({"w": f32(3)} if "w)" in text else {}))
    assert drop_identities(graph)[1] == 0


def test_what_is_made_just_for_an_output_takes_its_name():
    after, changes = drop_identities(written("(float[3] x) => (float y) { h = Neg(x) y = Identity(h) }", 13))
    assert changes == 1
    assert [v.name for v in after.model.graph.outputs] == ["y"]


# --- what nobody reads ----------------------------------------------------------------------------------------------


def test_nodes_initializers_and_imports_that_nobody_reads_go():
    graph = written(
        """(float[2] x, float[2] unused, bool c) => (float y) {
            a = Exp(x) b = Neg(a)
            y = If (c) < then_branch = t () => (float[2] p) { d = Neg(w) p = Abs(x) }, else_branch = e () => (float[2] q) { q = Neg(x) } >
        }""",
        13,
        contrib=True,
        w=f32(2),
    )
    after, changes = remove_unused(graph)
    assert changes == 5, "three nodes, a weight and an import"
    assert [v.name for v in after.model.graph.inputs] == ["x", "unused", "c"]
    assert not after.model.graph.initializers and set(after.model.graph.opset_imports) == {""}


def test_what_only_a_branch_reads_goes_with_it():
    """A node that is gone still holds its bodies, and what is read in them looked as if it were in use."""
    graph = written(
        """(float[2] x, bool c) => (float y) {
            a = Exp(x) b = Sin(x) t = Constant<value = bool {1}>()
            d = If (c) < then_branch = p () => (float[2] e) { e = Neg(a) }, else_branch = q () => (float[2] f) { f = Abs(a) } >
            y = If (t) < then_branch = r () => (float[2] g) { g = Neg(x) }, else_branch = s () => (float[2] h) { h = Abs(b) } >
        }""",
        24,
    )
    after, _ = canonical(graph)
    assert kinds(after) == {"Neg": 1} and not after.model.graph.initializers


def test_batch_normalisation_in_training_is_not_turned_into_inference():
    graph = written(
        "(float[2, 3] x) => (float y) { y, m, v = BatchNormalization<training_mode = 1>(x, s, s, s, s) }", 15, s=np.abs(f32(3))
    )
    node = next(iter(remove_unused(graph)[0].model.graph))
    assert node.attributes["training_mode"].as_int() == 1


def test_a_range_over_vectors_of_one_element():
    """onnxruntime runs this as long as it does not know that n is a vector."""
    graph = written(
        "(int64[1] n) => (int64 y) { z = Constant<value_int = 0>() o = Constant<value_int = 1>() y = Range(z, n, o) }", 13
    )
    after, changes = scalar_inputs(infer_shapes(graph)[0])
    assert changes == 1
    assert run(whole(after), {"n": np.array([3])})[0].tolist() == [0, 1, 2]
