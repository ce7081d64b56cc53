"""What becomes a constant, what is folded and what is not, and which shapes are believed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from graph_bits import named, written
from onnx import helper, numpy_helper

from porting.converters.passes.canonical import canonical
from porting.converters.passes.constants_to_initializers import INLINE_BYTES, constants_to_initializers
from porting.converters.passes.fold_constants import LARGE_BYTES, SMALL_BYTES, fold_constants
from porting.converters.passes.infer_shapes import infer_shapes
from porting.converters.passes.raise_ir_version import raise_ir_version
from porting.types import Graph, TensorSpec
from porting.weights import Stream, stream_of, tensors_of
from tests.canonical_models import (
    f32,
    kinds,
    require_same_results,
)

# --- constants ------------------------------------------------------------------------------------------------------


def test_every_form_of_constant():
    graph = written(
        """() => (int64 a, int64[2] b, float c, float[2] d, string[2] e, float[2] f, int64 g) {
            a0 = Constant<value_int = 3>() b0 = Constant<value_ints = [4, 5]>() c0 = Constant<value_float = 1.5>()
            d0 = Constant<value_floats = [1.0, 2.0]>() e0 = Constant<value_strings = ["x", "y"]>()
            f0 = Constant<value = float[2] {1, 2}>() g = Constant<value_int = 7>()
            a = Identity(a0) b = Identity(b0) c = Identity(c0) d = Identity(d0) e = Identity(e0) f = Identity(f0)
        }""",
        13,
    )
    after, changes = constants_to_initializers(graph)
    assert changes == 6
    assert kinds(after) == {"Identity": 6, "Constant": 1}, "an output has to be made by a node"
    require_same_results(graph, after, {})


def test_a_large_constant_is_kept_outside_the_graph_and_a_small_one_inside():
    large = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(f32(INLINE_BYTES // 4 + 1)))
    small = helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(f32(INLINE_BYTES // 4)))
    nan = helper.make_node("Constant", [], ["n"], value=numpy_helper.from_array(np.full(300, np.nan, np.float32)))
    join = helper.make_node("Concat", ["w", "v", "n"], ["y"], axis=0)
    body = helper.make_graph([large, small, nan, join], "g", [], [helper.make_tensor_value_info("y", 1, [None])])
    after, _ = constants_to_initializers(named(ir.serde.deserialize_model(helper.make_model(body))))
    found = {name: stream_of(value.const_value) is not None for name, value in after.model.graph.initializers.items()}
    assert found == {"w": True, "v": False, "n": False}, "the writer refuses NaN in a weight"


def never(*_):
    raise AssertionError("a pass read a weight")


def test_weights_are_neither_read_nor_copied():
    """A table of 512 MiB that would have to be read to know the row that is taken from it, and to be written when it is cast."""
    stream = Stream([TensorSpec("table", "float16", (1 << 18, 1 << 10))], 1 << 18, ["table"], never)
    tensor = tensors_of(stream)[0]
    graph = written(
        "(int64[N] x) => (float y, float16[1024] z) { t = Cast<to = 1>(table) y = Gather(t, x) i = Constant<value_int = 5>() z = Gather(table, i) }",
        13,
    )
    body = graph.model.graph
    table = ir.Value(name="table", type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    body.register_initializer(table)
    for node in body:
        for place, value in enumerate(node.inputs):
            if value is not None and value.name == "table":
                node.replace_input_with(place, table)
    after, _ = canonical(graph)
    assert kinds(after) == {"Cast": 1, "Gather": 2}
    assert after.model.graph.initializers["table"].const_value is tensor
    assert after.model.graph.outputs[1].shape == ir.Shape([1024])


# --- folding --------------------------------------------------------------------------------------------------------


def folded(graph: Graph) -> Counter[str]:
    graph, _ = constants_to_initializers(graph)
    return kinds(fold_constants(infer_shapes(graph)[0])[0])


@pytest.mark.parametrize(
    ("elements", "left"), [(SMALL_BYTES // 4, 0), (SMALL_BYTES // 4 + 1, 1)], ids=["small", "one too many"]
)
def test_a_result_larger_than_what_it_is_made_of_is_folded_up_to_a_limit(elements, left):
    made = written("(float[N] x) => (float y) { c = ConstantOfShape(n) y = Add(x, c) }", 13, n=np.array([elements]))
    cast = written("(float[N] x) => (float y) { c = Cast<to = 1>(h) y = Add(x, c) }", 13, h=f32(elements).astype(np.float16))
    assert folded(made)["ConstantOfShape"] == left
    assert folded(cast)["Cast"] == left


@pytest.mark.parametrize(
    ("elements", "left"), [(LARGE_BYTES // 4, 0), (LARGE_BYTES // 4 + 1, 1)], ids=["small", "one too many"]
)
def test_a_result_as_large_as_what_it_is_made_of_is_folded_up_to_another_limit(elements, left):
    graph = written("(float[N] x) => (float y) { c = Reshape(w, s) y = Add(x, c) }", 13, w=f32(1, elements), s=np.array([-1]))
    assert folded(graph)["Reshape"] == left


@pytest.mark.parametrize(
    "node",
    [
        "Exp(w)",
        "Tanh(w)",
        "Pow(w, w)",
        "Reciprocal(w)",
        "ReduceSum(w)",
        "MatMul(w, w)",
        "RandomNormalLike(w)",
        "Softmax(w)",
        "com.microsoft.Gelu(w)",
        "Cast<to = 8>(w)",
        "Cast<to = 10>(w)",
        "Cast<to = 6>(far)",
        "Cast<to = 6>(nan)",
        "Div(zero, zero)",
        "Gather(w, out)",
    ],
)
def test_what_is_not_folded(node):
    """Values that depend on the runtime, or that the runtime refuses."""
    far, nan = np.array([3e9], np.float32), np.array([np.nan], np.float32)
    graph = written(
        f"() => (float y) {{ t = {node} y = Identity(t) }}",
        13,
        contrib=True,
        w=f32(3, 3),
        far=far,
        nan=nan,
        zero=np.array([0]),
        out=np.array(7),
    )
    assert sum(folded(graph).values()) == 2


def test_an_initializer_that_may_be_fed_is_no_constant():
    text = "(float[2] x, float[2] w, bool c) => (float y, float z) { n = Neg(w) y = Add(x, n) z = If (c) < then_branch = a () => (float[2] p) { p = Abs(x) }, else_branch = b () => (float[2] q) { q = Neg(x) } > }"
    graph = written(text, 13, w=f32(2), c=np.array(True))
    after, _ = canonical(graph)
    assert kinds(after) == kinds(graph)
    require_same_results(graph, after, {"x": f32(2), "w": f32(2), "c": np.array(False)})


def test_before_version_4_of_the_format_inputs_with_a_value_were_constants():
    graph = written("(float[2] x, float[2] w) => (float y) { n = Neg(w) y = Add(x, n) }", 13, 3, w=f32(2))
    after, changes = raise_ir_version(graph)
    assert changes == 2
    assert [v.name for v in after.model.graph.inputs] == ["x"]
    require_same_results(graph, after, {"x": f32(2)})
    assert kinds(canonical(graph)[0]) == {"Add": 1}


# --- shapes ---------------------------------------------------------------------------------------------------------


def test_stale_shapes_of_inner_values_and_outputs_are_not_believed():
    """An export with a batch of 1 whose input was made dynamic later: taken at its word, Shape would be folded to 1."""
    graph = written("(float[N, 4] x) => (float[1, 4] y) { a = Relu(x) s = Shape(a) r = ConstantOfShape(s) y = Add(a, r) }", 13)
    for node in graph.model.graph:
        if node.op_type in ("Relu", "ConstantOfShape"):
            node.outputs[0].shape, node.outputs[0].type = ir.Shape([1, 4]), ir.TensorType(ir.DataType.FLOAT)
    after, _ = canonical(graph)
    require_same_results(graph, after, {"x": f32(3, 4)})
    assert after.model.graph.outputs[0].shape == ir.Shape(["N", 4])


def test_an_output_keeps_the_names_of_its_dimensions_and_what_nobody_can_tell():
    graph = written(
        "(float[N, 4] x) => (float[batch, 4] y, float[rows, 4] z) { y = Relu(x) z = com.microsoft.Gelu(x) }", 17, contrib=True
    )
    after, _ = infer_shapes(graph)
    assert [v.shape for v in after.model.graph.outputs] == [ir.Shape(["batch", 4]), ir.Shape(["rows", 4])]


def test_a_type_behind_an_unknown_operator_is_believed_and_its_shape_is_not():
    graph = written("(float[N, 4] x) => (float y) { a = com.microsoft.Gelu(x) y = Relu(a) }", 17, contrib=True)
    value = next(iter(graph.model.graph)).outputs[0]
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, 4])
    after, changes = infer_shapes(graph)
    value = next(iter(after.model.graph)).outputs[0]
    assert changes == 1 and value.dtype == ir.DataType.FLOAT and value.shape is None


def test_a_type_behind_one_that_nobody_knows_is_believed():
    graph = written("(float[N, 4] x) => (float y) { a = com.microsoft.Gelu(x) b = Relu(a) y = Neg(b) }", 17, contrib=True)
    value = list(graph.model.graph)[1].outputs[0]
    value.type = ir.TensorType(ir.DataType.FLOAT)
    assert [n.outputs[0].dtype for n in infer_shapes(graph)[0].model.graph] == [None, ir.DataType.FLOAT, ir.DataType.FLOAT]
