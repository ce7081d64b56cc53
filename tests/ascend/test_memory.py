"""Memory as a lower bound: bytes counted by hand, and against what a run really holds at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from porting.ascend.memory import MemoryBound, boards, memory_bound
from porting.ascend.soc import GIB, find_soc
from porting.errors import UsageError
from porting.types import Graph, StatePair, StateSpec
from porting.weights import array_stream, tensors_of
from tests.overflowing_models import model, tensor, value

node = helper.make_node


def graph(
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto] = (),
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
    **more,
) -> Graph:
    return Graph(ir.serde.deserialize_model(model(nodes, weights, inputs, outputs)), **more)


def chain() -> Graph:
    """(n, 10) -> (n, 1000) -> (n, 1000) -> (n, 5)"""
    nodes = [node("MatMul", ["x", "w1"], ["a"]), node("Relu", ["a"], ["b"]), node("MatMul", ["b", "w2"], ["y"])]
    weights = [tensor("w1", np.zeros((10, 1000))), tensor("w2", np.zeros((1000, 5)))]
    return graph(nodes, weights, [value("x", ["n", 10])], [value("y", ["n", 5])])


def test_weights_and_the_fullest_moment_by_hand() -> None:
    one = memory_bound(chain(), "fp32", {"n=1": {"n": 1}})
    # the input stays, a becomes b in its place, then b and y are there
    assert one.gears["n=1"].nbytes == 4 * (10 + 1000 + 5) and one.gears["n=1"].node == "y"
    found = memory_bound(chain(), "fp32", {"n=1": {"n": 1}, "n=8": {"n": 8}})
    assert found.weights == 4 * 15_000 and found.cache == 0 and list(found.gears) == ["n=8"], "the other is inside it"
    assert found.fullest.nbytes == 8 * one.gears["n=1"].nbytes
    assert found.total == found.weights + found.fullest.nbytes and "workspace" in found.content()["unknown"][0]


@pytest.mark.parametrize(("precision", "weight", "float_"), [("fp32", 4, 4), ("fp16", 2, 2), ("bf16", 2, 2), ("w8a8", 1, 2)])
def test_precisions(precision: str, weight: int, float_: int) -> None:
    found = memory_bound(chain(), precision, {"": {"n": 1}})
    assert found.weights == weight * 15_000 and found.fullest.nbytes == float_ * 1015


def test_half_floats_are_not_counted_as_more_than_they_are() -> None:
    half = helper.make_tensor("w", TensorProto.FLOAT16, [10, 20], np.zeros(200, np.float16))
    made = graph(
        [node("MatMul", ["x", "w"], ["y"])],
        [half],
        [value("x", [3, 10], TensorProto.FLOAT16)],
        [value("y", [3, 20], TensorProto.FLOAT16)],
    )
    for precision in ("fp32", "fp16"):
        found = memory_bound(made, precision)
        assert (found.weights, found.fullest.nbytes) == (2 * 200, 2 * (30 + 60))


def test_what_no_matrix_operator_reads_stays_float_and_integers_stay() -> None:
    nodes = [node("Gather", ["table", "i"], ["a"]), node("Add", ["a", "bias"], ["y"])]
    weights = [tensor("table", np.zeros((100, 4))), tensor("bias", np.zeros(4))]
    made = graph(nodes, weights, [value("i", [3], TensorProto.INT64)], [value("y", [3, 4])])
    found = memory_bound(made, "w8a8")
    assert found.weights == 2 * 404 and found.fullest.nbytes == 3 * 8 + 2 * 12


def test_a_tied_weight_counts_once() -> None:
    made = chain()
    other = made.model.clone()
    held = other.graph.initializers["w1"]
    second = ir.Value(name="w1 again", type=held.type, shape=held.shape, const_value=held.const_value)
    other.graph.register_initializer(second)
    assert memory_bound(Graph(other), "fp32").weights == memory_bound(made, "fp32").weights


def test_views_take_no_room_and_what_is_read_later_stays() -> None:
    nodes = [
        node("Exp", ["x"], ["a"]),
        node("Reshape", ["a", "s"], ["v"]),
        node("Transpose", ["v"], ["t"], perm=[1, 0]),
        node("Transpose", ["t"], ["u"], perm=[1, 0]),
        node("Add", ["u", "v"], ["y"]),
    ]
    shape = onnx.numpy_helper.from_array(np.array([50, 2]), "s")
    found = memory_bound(graph(nodes, [shape], [value("x", [100])], [value("y", [50, 2])]), "fp32")
    assert found.fullest.nbytes == 4 * 400 and found.fullest.node == "u", "x, a through its view, t and u"


def test_what_is_not_read_is_gone_after_its_node() -> None:
    nodes = [
        node("Split", ["x"], ["a", "b"], axis=0),
        node("Transpose", ["a"], ["c"], perm=[1, 0]),
        node("Transpose", ["c"], ["y"], perm=[1, 0]),
    ]
    found = memory_bound(graph(nodes, [], [value("x", [20, 5])], [value("y", [10, 5])]), "fp32")
    assert found.fullest.nbytes == 4 * (100 + 100), "b only while it is written"


def decoder(size: int | str = "capacity") -> Graph:
    nodes = [
        node("Concat", ["cache", "x"], ["longer"], axis=1),
        node("Reshape", ["longer", "shape"], ["new"]),
        node("ReduceSum", ["new", "axis"], ["y"]),
    ]
    made = graph(
        nodes,
        [onnx.numpy_helper.from_array(np.array(a), name) for name, a in (("axis", [1]), ("shape", [1, -1, 64]))],
        [value("x", [1, 1, 64]), value("cache", [1, size, 64])],
        [value("y", [1, 1, 64]), value("new", [1, None, 64])],
        state=StateSpec((StatePair("cache", "new", 1),)),
    )
    return made


def test_the_cache_is_counted_once_and_apart() -> None:
    found = memory_bound(decoder(), "fp16", capacity=2048)
    assert found.cache == 2 * 2048 * 64 and found.fullest.nbytes == 2 * (64 + 64), "its input and output are one buffer"
    assert memory_bound(decoder(), "fp16", {"": {"capacity": 16}}).cache == 2 * 16 * 64
    assert memory_bound(decoder(512), "fp16", capacity=2048).cache == 2 * 512 * 64, "a fixed size is not changed"


def test_unknown_sizes_are_counted() -> None:
    found = memory_bound(chain(), "fp32")
    assert found.fullest.nbytes == 0 and found.fullest.unsized == 4


def test_sizes_that_go_through_numbers_are_worked_out() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("ReduceProd", ["s"], ["n1"], keepdims=1),
        node("Concat", ["n1", "rest"], ["t"], axis=0),
        node("ReduceMax", ["x"], ["m"], axes=[0, 1]),
        node("Expand", ["m", "t"], ["e"]),
        node("Transpose", ["e"], ["y"], perm=[1, 0]),
    ]
    rest = onnx.numpy_helper.from_array(np.array([50]), "rest")
    made = graph(nodes, [rest], [value("x", ["n", 3])], [value("y", [50, None])])
    found = memory_bound(made, "fp32", {"": {"n": 8}}).fullest
    assert (found.nbytes, found.unsized) == (4 * (8 * 3 + 2 * 50 * 24), 0)


def test_what_hangs_on_constants_alone_is_no_activation() -> None:
    nodes = [node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"])]
    made = graph(nodes, [tensor("w", np.zeros((5, 1000)))], [value("x", [1, 1000])], [value("y", [1, 5])])
    held = made.model.graph.initializers["w"]
    held.const_value = tensors_of(array_stream("w", np.zeros((5, 1000), np.float32)))[0]  # as a weight in a file comes
    assert memory_bound(made, "fp32").fullest.nbytes == 4 * 1005


def test_bodies_keep_what_they_read_alive() -> None:
    branch = [
        helper.make_graph([node(kind, ["big"], [kind], name=kind)], kind, [], [value(kind, [1000])]) for kind in ("Neg", "Exp")
    ]
    nodes = [
        node("Transpose", ["x"], ["big"], perm=[0]),
        node("Transpose", ["x"], ["other"], perm=[0]),
        node("If", ["c"], ["i"], then_branch=branch[0], else_branch=branch[1]),
        node("Add", ["i", "other"], ["y"]),
    ]
    found = memory_bound(graph(nodes, [], [value("x", [1000]), value("c", [], TensorProto.BOOL)], [value("y", [1000])]), "fp32")
    assert found.fullest.nbytes == 4 * 4000 + 1 and found.fullest.node == "i"


# --- boards ----------------------------------------------------------------------------------------------------------


def bound(total: int) -> MemoryBound:
    nodes = [node("Neg", ["x"], ["y"])]
    found = memory_bound(graph(nodes, [], [value("x", [1])], [value("y", [1])]), "fp32")
    return MemoryBound("fp32", total - found.fullest.nbytes, 0, found.gears)


def test_a_soc_with_several_boards_names_them_all() -> None:
    found = boards(bound(30 * GIB), find_soc("Ascend310P3"))
    assert [(b.nbytes, b.cards_at_least) for b in found] == [(21 * GIB, 2), (44 * GIB, 1)]
    assert [(b.cards_at_least, b.known_from) for b in boards(bound(30 * GIB), find_soc("Ascend310P3"), 10 * GIB)] == [
        (3, "--device-memory")
    ]
    assert [b.cards_at_least for b in boards(bound(64 * GIB), find_soc("Ascend910B3"))] == [1]
    assert [b.cards_at_least for b in boards(bound(64 * GIB + 1), find_soc("Ascend910B3"))] == [2]
    assert not boards(bound(GIB), find_soc("Ascend910A")), "no board is known"


def test_errors() -> None:
    with pytest.raises(UsageError, match="no memory is known of precision 'fp8'"):
        memory_bound(chain(), "fp8")
    with pytest.raises(UsageError, match="no input has a dimension 'batch'") as error:
        memory_bound(chain(), "fp32", {"b": {"batch": 1}})
    assert "known: n" in error.value.next
    with pytest.raises(UsageError, match="0 bytes"):
        boards(bound(GIB), find_soc("Ascend910B3"), 0)


# --- the walk, against a simulation ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12), st.integers(0, 12))
def test_the_walk_is_what_reference_counting_holds(edges: list[tuple[int, int]], last: int) -> None:
    """Nodes that read two earlier values each and write rows of one more; Concat never writes in place."""
    names, nodes, rows = ["x"], [], {"x": 1}
    for number, (a, b) in enumerate(edges):
        first, second = names[a % len(names)], names[b % len(names)]
        nodes.append(node("Concat", [first, second], [f"v{number}"], axis=0))
        rows[f"v{number}"] = min(rows[first] + rows[second], 1 << 20)
        names.append(f"v{number}")
    output = names[1 + last % (len(names) - 1)]
    made = graph(nodes, [], [value("x", [1])], [value(output, [rows[output]])])
    found = memory_bound(made, "fp32").fullest.nbytes
    held, most = {"x"}, 1
    for number, one in enumerate(nodes):
        held |= {one.output[0]}
        most = max(most, sum(rows[n] for n in held))
        later = {n for other in nodes[number + 1 :] for n in other.input} | {"x", output}
        held &= later
    assert found == 4 * most
