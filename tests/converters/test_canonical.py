"""What each pass on the way to the canonical form does, what it refuses, and what holds of the whole table."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_bits import difference, named, run, same_bits, whole, written
from onnx import helper, numpy_helper

from porting.converters.graph_builder import MODULE
from porting.converters.passes.canonical import CANONICAL, canonical
from porting.converters.passes.constants_to_initializers import INLINE_BYTES, constants_to_initializers
from porting.converters.passes.convert_version import convert_version, obstacles
from porting.converters.passes.drop_identities import drop_identities
from porting.converters.passes.fold_constants import LARGE_BYTES, SMALL_BYTES, fold_constants
from porting.converters.passes.infer_shapes import infer_shapes
from porting.converters.passes.quantize_linear import SCHEMES
from porting.converters.passes.raise_ir_version import raise_ir_version
from porting.converters.passes.remove_unused import remove_unused
from porting.converters.passes.rewriting import bodies_of
from porting.converters.passes.scalar_inputs import scalar_inputs
from porting.converters.passes.tables import ONNXRUNTIME, lower
from porting.converters.passes.version_steps import NO_KERNEL, STOPS
from porting.errors import UnsupportedModel
from porting.types import Graph, TensorSpec
from porting.weights import Stream, array_stream, stream_of, tensors_of

RNG = np.random.default_rng(0)


def f32(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.3).astype(np.float32)


def shapes_from_shapes() -> Graph:
    """What exporters write for x.reshape(x.shape[0], -1, x.shape[2]), with Constant nodes, in opset 11."""
    return written(
        """(float[N, 8, 4] x) => (float[N, 8, 4] y) {
            s = Shape(x)
            zero = Constant<value_int = 0>() two = Constant<value = int64 {2}>() rest = Constant<value_ints = [-1]>()
            a = Gather<axis = 0>(s, zero) b = Gather<axis = 0>(s, two)
            c = Unsqueeze<axes = [0]>(a) d = Unsqueeze<axes = [0]>(b)
            t = Concat<axis = 0>(c, rest, d)
            r = Reshape(x, t) i = Identity(r) k = Cast<to = 1>(i) m = Dropout(k)
            y = Softmax<axis = 2>(m)
        }""",
        12,
    )


def branches() -> Graph:
    """An If that is decided by the shape of its input inside one that is not decided, and a Loop."""
    return written(
        """(float[2, 3] x, bool c, int64 n) => (float y, float z) {
            y = If (c) <
                then_branch = yes () => (float[2, 3] p) {
                    s = Size(x) six = Constant<value_int = 6>() e = Equal(s, six)
                    p = If (e) <
                        then_branch = in () => (float[2, 3] q) { one = Constant<value_float = 1.0>() q = Add(x, one) },
                        else_branch = out () => (float[2, 3] r) { one = Constant<value_float = 2.0>() r = Sub(x, one) } >
                },
                else_branch = no () => (float[2, 3] o) { one = Constant<value_float = 3.0>() o = Mul(x, one) } >
            true = Constant<value = bool {1}>()
            z = Loop (n, true, x) <
                body = step (int64 i, bool go, float[2, 3] h) => (bool more, float[2, 3] w) {
                    more = Identity(go) half = Constant<value_float = 0.5>() w = Mul(h, half)
                } >
        }""",
        16,
    )


def half_weights() -> Graph:
    return written(
        "(float[N, 64] x) => (float[N, 64] y) { f = Cast<to = 1>(w) g = Cast<to = 1>(b) m = MatMul(x, f) y = Add(m, g) }",
        17,
        w=f32(64, 64).astype(np.float16),
        b=f32(64).astype(np.float16),
    )


def old_convolutions() -> Graph:
    return written(
        """(float[1, 3, 12, 12] x) => (float[1, 4] y) {
            c = Conv<pads = [1, 1, 1, 1]>(x, w)
            n = BatchNormalization(c, s, s, s, v)
            r = Clip<min = 0.0, max = 6.0>(n)
            p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
            q = Upsample<mode = "nearest">(p, k)
            l = Slice<axes = [2, 3], starts = [1, 0], ends = [9, 100]>(q)
            o = Pad<pads = [0, 0, 0, 1, 0, 0, 1, 0], value = 0.5>(l)
            g = GlobalAveragePool(o) f = Flatten(g)
            y = LogSoftmax(f)
        }""",
        9,
        3,
        w=f32(4, 3, 3, 3),
        s=f32(4),
        v=np.abs(f32(4)) + 1,
        k=np.array([1, 1, 2, 2], np.float32),
    )


def texts_and_lists() -> Graph:
    return written(
        """(string[N] t, float[2, 3] x) => (string[N] u, float[4, 3] y) {
            i = Identity(t) u = StringConcat(i, t)
            l = SequenceConstruct(x, x) y = ConcatFromSequence<axis = 0>(l)
        }""",
        20,
    )


def contrib() -> Graph:
    return written(
        """(float[N, 8] x) => (float[N, 8] y) {
            a = com.microsoft.Gelu(x) s = Shape(a) r = Reshape(a, s) z = Identity(r) y = Relu(z)
        }""",
        17,
        contrib=True,
    )


MODELS: dict[str, tuple[Callable[[], Graph], dict]] = {
    "shapes": (shapes_from_shapes, {"x": f32(3, 8, 4)}),
    "branches": (branches, {"x": f32(2, 3), "c": np.array(True), "n": np.array(3)}),
    "other branch": (branches, {"x": f32(2, 3), "c": np.array(False), "n": np.array(0)}),
    "half weights": (half_weights, {"x": f32(3, 64)}),
    "opset 9": (old_convolutions, {"x": f32(1, 3, 12, 12)}),
    "texts": (texts_and_lists, {"t": np.array(["ab", "c"], object), "x": f32(2, 3)}),
    "contrib": (contrib, {"x": f32(5, 8)}),
}
STEPS = [pytest.param(model, i, id=f"{model}-{CANONICAL[i][0]}") for model in MODELS for i in range(len(CANONICAL))]


def before_step(model: str, position: int) -> Graph:
    graph = MODELS[model][0]()
    for _, change in CANONICAL[:position]:
        graph, _ = change(graph)
    return graph


def kinds(graph: Graph) -> Counter[str]:
    return Counter(node.op_type for body in bodies_of(graph.model) for node in body)


def require_same_results(before: Graph, after: Graph, feeds: dict) -> None:
    if all(
        value.shape is not None for value in after.model.graph.outputs
    ):  # the checker wants the rank of an output, runtimes do not
        onnx.checker.check_model(onnx.load_from_string(whole(after)), full_check=True)
    for optimised in (False, True):
        wanted, got = run(whole(before), feeds, optimised), run(whole(after), feeds, optimised)
        assert difference(got, wanted) == ""


# --- of every pass --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "position"), STEPS)
def test_a_pass_leaves_its_input_alone_counts_honestly_and_is_done_after_one_run(model, position):
    graph, change = before_step(model, position), CANONICAL[position][1]
    text = whole(graph)
    after, changes = change(graph)
    assert whole(graph) == text
    assert (changes > 0) == (whole(after) != text)
    again, more = change(after)
    assert more == 0
    assert whole(again) == whole(after)


@pytest.mark.parametrize(("model", "position"), STEPS)
def test_a_pass_changes_no_result(model, position):
    before = before_step(model, position)
    after, _ = CANONICAL[position][1](before)
    require_same_results(before, after, MODELS[model][1])


@pytest.mark.parametrize("model", MODELS)
def test_the_whole_table(model):
    make, feeds = MODELS[model]
    graph = make()
    after, applied = canonical(graph)
    require_same_results(graph, after, feeds)
    assert [entry["name"] for entry in applied] == [name for name, _ in CANONICAL]
    assert [v.name for v in after.model.graph.outputs] == [v.name for v in graph.model.graph.outputs]
    assert after.model.graph.opset_imports[""] == 24
    assert after.model.ir_version == 13
    names = [node.name for body in bodies_of(after.model) for node in body]
    assert len(set(names)) == len(names), "names stay unique"
    again, applied = canonical(after)
    assert not any(entry["changes"] for entry in applied)
    assert whole(again) == whole(after)


def test_every_pass_of_the_table_does_something_in_these_models():
    done = Counter()
    for make, _ in MODELS.values():
        done.update({entry["name"]: entry["changes"] for entry in canonical(make())[1]})
    assert [name for name, _ in CANONICAL if not done[name]] == ["scalar_inputs"]  # has a test of its own


def test_nodes_keep_their_module():
    graph = shapes_from_shapes()
    for node in graph.model.graph:
        node.metadata_props[MODULE] = f"module.{node.name}"
    for node in canonical(graph)[0].model.graph:
        assert node.metadata_props[MODULE].startswith("module."), node.name


# --- the shapes that exporters write ---------------------------------------------------------------------------------


def test_of_a_chain_of_shapes_only_what_is_dynamic_is_left():
    after, _ = canonical(shapes_from_shapes())
    assert kinds(after) == {"Shape": 1, "Gather": 1, "Unsqueeze": 1, "Concat": 1, "Reshape": 1, "Softmax": 1}


def test_with_fixed_shapes_the_chain_is_gone():
    graph = shapes_from_shapes()
    graph.model.graph.inputs[0].shape = ir.Shape([3, 8, 4])
    after, _ = canonical(graph)
    assert kinds(after) == {"Softmax": 1}, "a Reshape to the shape that is there goes too"


def test_a_decided_if_is_inlined_and_others_keep_their_names():
    graph = branches()
    after, applied = canonical(graph)
    assert {entry["name"]: entry["changes"] for entry in applied}["inline_if"] == 1
    left = [node.name for body in bodies_of(after.model) for node in body if node.op_type in ("If", "Loop")]
    assert left == [n.name for n in graph.model.graph if n.op_type in ("If", "Loop")]
    assert kinds(after)["Sub"] == 0 and kinds(after)["Add"] == 1


def test_inlining_renames_what_is_called_the_same_elsewhere():
    graph = written(
        """(float[2] x) => (float y, float z) {
            c = Constant<value = bool {1}>()
            y = If (c) < then_branch = a () => (float[2] v) { t = Neg(x) v = Relu(t) },
                         else_branch = b () => (float[2] w) { t = Abs(x) w = Relu(t) } >
            t = Exp(x) z = Add(t, x)
        }""",
        16,
    )
    after, _ = canonical(graph)
    assert kinds(after) == {"Neg": 1, "Relu": 1, "Exp": 1, "Add": 1}
    require_same_results(graph, after, {"x": f32(2)})


def test_an_if_that_gives_an_outer_value_or_one_value_twice():
    graph = written(
        """(float[2] x) => (float y, float z, float u) {
            c = Constant<value = bool {0}>() h = Neg(x)
            y, z, u = If (c) <
                then_branch = a () => (float[2] p, float[2] q, float[2] o) { p = Abs(x) q = Exp(x) o = Exp(x) },
                else_branch = b () => (float[2] r, float[2] s, float[2] w) { r = Identity(h) s = Identity(h) w = Relu(h) } >
        }""",
        16,
    )
    require_same_results(graph, canonical(graph)[0], {"x": f32(2)})


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


# --- versions -------------------------------------------------------------------------------------------------------

IMAGE = "float[1, 4, 8, 8] x"
OLD = {
    "softmax of several axes": (f"({IMAGE}) => (float y) {{ y = Softmax<axis = 2>(x) }}", 11),
    "softmax of a default axis": (f"({IMAGE}) => (float y) {{ y = Softmax(x) }}", 12),
    "log softmax from the end": (f"({IMAGE}) => (float y) {{ y = LogSoftmax<axis = -3>(x) }}", 11),
    "hardmax": (f"({IMAGE}) => (float y) {{ y = Hardmax<axis = 1>(x) }}", 9),
    "unsqueeze, squeeze": (f"({IMAGE}) => (float y) {{ u = Unsqueeze<axes = [0, -1]>(x) y = Squeeze<axes = [0, 5]>(u) }}", 11),
    "squeeze of all": (f"({IMAGE}) => (float y) {{ y = Squeeze(x) }}", 12),
    "reductions": (
        f"({IMAGE}) => (float y) {{ a = ReduceSum<axes = [1]>(x) b = ReduceMean<axes = [-1]>(a) c = ReduceMax<axes = [2, 3]>(x) "
        "d = ReduceL2(x) e = Add(b, c) y = Add(d, e) }",
        11,
    ),
    "split": (f"({IMAGE}) => (float y, float z) {{ y, z = Split<axis = 1, split = [1, 3]>(x) }}", 9),
    "split in equal parts": (f"({IMAGE}) => (float y, float z) {{ y, z = Split<axis = 1>(x) }}", 13),
    "slice": (f"({IMAGE}) => (float y) {{ y = Slice<starts = [1, -5], ends = [3, 100], axes = [1, 2]>(x) }}", 9),
    "top k": (f"({IMAGE}) => (float y, int64 z) {{ y, z = TopK<k = 3>(x) }}", 9),
    "clip without bounds": (f"({IMAGE}) => (float y) {{ h = Div(x, zero) y = Clip<max = 2.0>(h) }}", 9),
    "pad": (f'({IMAGE}) => (float y) {{ y = Pad<mode = "reflect", pads = [0, 0, 1, 2, 0, 0, 3, 0]>(x) }}', 9),
    "resize up": (f'({IMAGE}) => (float y) {{ y = Resize<mode = "nearest">(x, up) }}', 10),
    "resize down": (f'({IMAGE}) => (float y) {{ y = Resize<mode = "nearest">(x, down) }}', 10),
    "resize, linear": (f'({IMAGE}) => (float y) {{ y = Resize<mode = "linear">(x, both) }}', 10),
    "upsample": (f'({IMAGE}) => (float y) {{ y = Upsample<mode = "nearest">(x, up) }}', 9),
    "upsample, linear": (f'({IMAGE}) => (float y) {{ y = Upsample<mode = "linear">(x, up) }}', 9),
    "scatter": (f"({IMAGE}, int64[1, 1, 8, 8] i) => (float y) {{ y = Scatter<axis = 1>(x, i, upd) }}", 9),
    "dropout": (f"({IMAGE}) => (float y) {{ d = Dropout<ratio = 0.3>(x) y = Neg(d) }}", 9),
    "normalisation": (f"({IMAGE}) => (float y) {{ y = BatchNormalization(x, s, s, s, s) }}", 9),
    "grid sample": (f'({IMAGE}, float[1, 5, 6, 2] g) => (float y) {{ y = GridSample<mode = "bicubic">(x, g) }}', 16),
    "pad with a value": (f"({IMAGE}) => (float y) {{ y = Pad<pads = [0, 0, 1, 2, 0, 0, 3, 0], value = 0.5>(x) }}", 9),
    "fourier of a default axis": ("(float[1, 8, 5, 1] x) => (float y) { y = DFT(x) }", 17),
    "fourier": ("(float[1, 8, 5, 1] x) => (float y) { y = DFT<axis = 1>(x) }", 17),
    "recurrent": ("(float[5, 2, 4] x) => (float y, float h) { y, h = GRU<hidden_size = 3>(x, gw, gr) }", 9),
}
WEIGHTS = {
    "up": np.array([1, 1, 2, 3], np.float32),
    "down": np.array([1, 1, 0.6, 0.4], np.float32),
    "both": np.array([1, 1, 1.7, 0.4], np.float32),
    "zero": np.array(0, np.float32),
    "upd": f32(1, 1, 8, 8),
    "s": np.abs(f32(4)) + 1,
    "gw": f32(1, 9, 4),
    "gr": f32(1, 9, 3),
}


def old(name: str) -> tuple[Graph, dict]:
    text, opset = OLD[name]
    used = {k: v for k, v in WEIGHTS.items() if f" {k})" in text or f" {k}," in text}
    graph = written(text, opset, **used)
    feeds = {}
    for value in graph.model.graph.inputs:
        shape = [int(d) for d in value.shape]
        feeds[value.name] = f32(*shape) if value.dtype == ir.DataType.FLOAT else np.zeros(shape, np.int64)
    return graph, feeds


@pytest.mark.parametrize("name", OLD)
def test_an_operator_that_was_written_otherwise(name):
    graph, feeds = old(name)
    after, changes = convert_version(infer_shapes(graph)[0])
    assert changes and after.model.graph.opset_imports[""] == 24
    require_same_results(graph, after, feeds)


def test_softmax_of_several_axes_of_nothing():
    graph = written("(float[N, M, K] x) => (float y) { y = Softmax<axis = 1>(x) }", 11)
    require_same_results(graph, canonical(graph)[0], {"x": f32(2, 3, 0)})


def test_the_count_is_the_nodes_written_otherwise_and_the_opset():
    graph = written("(float[2, 3] x) => (float y) { a = Unsqueeze<axes = [0]>(x) b = Relu(a) y = Squeeze<axes = [0]>(b) }", 12)
    assert convert_version(graph)[1] == 3


def test_softmax_over_the_last_axis_needs_no_other_nodes_where_the_rank_shows_in_the_new_form_only():
    """In opset 12 onnx does not tell the rank of a Reshape whose shape is computed."""
    graph = written(
        "(float[N, 8] x, int64 k) => (float y) { a = Unsqueeze<axes = [0]>(k) t = Concat<axis = 0>(a, rest) r = Reshape(x, t) y = Softmax<axis = 1>(r) }",
        12,
        rest=np.array([-1]),
    )
    after, _ = canonical(graph)
    assert kinds(after)["Flatten"] == 0
    require_same_results(graph, after, {"x": f32(3, 8), "k": np.array(4)})


@pytest.mark.parametrize(
    ("text", "opset", "reached", "reason"),
    [
        (
            f"({IMAGE}) => (float y) {{ a = Unsqueeze<axes = [0]>(x) b = Squeeze<axes = [0]>(a) y = AveragePool<kernel_shape = [2, 2]>(b) }}",
            12,
            18,
            "slower",
        ),
        ("(float[1, 4, 8, 8] x, float[2, 4] r, int64[2] b) => (float y) { y = RoiAlign(x, r, b) }", 16, 21, "no kernel"),
        ("(float[1, 4, 8, 8] x, float[2, 4] r, int64[2] b) => (float y) { y = RoiAlign(x, r, b) }", 10, 21, "no kernel"),
        ("(int64[3] x) => (float y) { y = OneHot(x, d, v) }", 9, 10, "negative"),
        ("(double[3] x) => (double y) { y = Elu(x) }", 18, 18, "no kernel for its type"),
        (f'({IMAGE}, float[4] s) => (float y) {{ y = Resize<mode = "nearest">(x, s) }}', 10, 10, "not constant"),
        (f"({IMAGE}) => (float y, bool m) {{ y, m = Dropout(x) }}", 10, 11, "mask"),
    ],
)
def test_a_graph_stays_below_what_one_of_its_nodes_cannot_reach(text, opset, reached, reason):
    graph = written(text, opset, **({"d": np.array(5), "v": np.array([0, 1], np.float32)} if "OneHot" in text else {}))
    after, applied = canonical(graph)
    assert after.model.graph.opset_imports[""] == applied[-1]["opset"] == reached
    assert reason in applied[-1]["kept"][0]
    assert obstacles(after) == applied[-1]["kept"]
    feeds = {
        v.name: (f32 if v.dtype == ir.DataType.FLOAT else np.zeros)(
            *([[int(d) for d in v.shape]] if v.dtype != ir.DataType.FLOAT else [int(d) for d in v.shape])
        )
        for v in graph.model.graph.inputs
    }
    feeds = {n: a.astype(np.int64) if n in "b" or "OneHot" in text else a for n, a in feeds.items()}
    if "Resize" in text:
        feeds["s"] = np.array([1, 1, 2, 2], np.float32)
    require_same_results(graph, after, feeds)


def test_an_old_batch_normalisation_with_more_outputs_is_one_in_training():
    inputs = [f"float[4] {name}" for name in ("scale", "bias", "mean", "var")]
    graph = written(
        f"(float[2, 4] x, {', '.join(inputs)}) => (float y) {{ y, m, v, a, b = BatchNormalization(x, scale, bias, mean, var) }}",
        9,
    )
    after, applied = canonical(graph)
    assert after.model.graph.opset_imports[""] == 13 and "training" in applied[-1]["kept"][0]
    feeds = {value.name: np.abs(f32(*(int(d) for d in value.shape))) + 1 for value in graph.model.graph.inputs}
    require_same_results(graph, after, feeds)


@pytest.mark.parametrize("operator", [name for name in NO_KERNEL if name != "Bernoulli"])
def test_a_stop_for_want_of_a_kernel_is_still_needed(operator):
    """When onnxruntime has it, take the operator off NO_KERNEL. (Bernoulli is made of another of these.)"""
    random = operator in ("RandomNormal", "RandomUniform")
    attributes = {
        "Multinomial": {"sample_size": 2},
        "MaxRoiPool": {"pooled_shape": [2, 2]},
        "RandomNormal": {"shape": [2]},
        "RandomUniform": {"shape": [2]},
    }.get(operator, {})
    inputs = {"RoiAlign": ["x", "r", "b"], "MaxRoiPool": ["x", "r"]}.get(operator, [] if random else ["x"])
    shapes = {
        "x": [2, 4] if operator == "Multinomial" else [1, 4, 8, 8],
        "r": [2, 5 if operator == "MaxRoiPool" else 4],
        "b": [2],
    }
    specs = [helper.make_tensor_value_info(n, 7 if n == "b" else 1, shapes[n]) for n in inputs]
    result = helper.make_tensor_value_info("y", 6 if operator == "Multinomial" else 1, None)
    body = helper.make_graph([helper.make_node(operator, inputs, ["y"], **attributes)], "g", specs, [result])

    def loads(opset: int) -> bool:
        try:
            run(helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString(), {})
        except Exception as error:
            return "NOT_IMPLEMENTED" not in str(error)
        return True

    assert loads(STOPS[operator].version - 1) and not loads(STOPS[operator].version)


# --- speed, and the passes behind -----------------------------------------------------------------------------------


def long_chain(blocks: int) -> Graph:
    """22 nodes a block: what exporters of opset 11 write around a MatMul."""
    text = []
    x = "x"
    for n in range(blocks):
        text.append(f"""
            z{n} = Constant<value_int = 0>() t{n} = Constant<value_int = 2>() r{n} = Constant<value_ints = [-1]>()
            k{n} = Constant<value_int = 1>() m{n} = MatMul({x}, w) s{n} = Shape(m{n})
            a{n} = Gather(s{n}, z{n}) b{n} = Unsqueeze<axes = [0]>(a{n}) c{n} = Gather(s{n}, t{n}) d{n} = Mul(c{n}, k{n})
            e{n} = Unsqueeze<axes = [0]>(d{n}) f{n} = Concat<axis = 0>(b{n}, r{n}, e{n}) g{n} = Reshape(m{n}, f{n})
            h{n} = Identity(g{n}) i{n} = Cast<to = 1>(h{n}) j{n} = Softmax<axis = 2>(i{n}) l{n} = Dropout(j{n})
            o{n} = Constant<value_float = 1.0>() p{n} = Add(l{n}, o{n}) q{n} = Transpose<perm = [0, 2, 1]>(p{n})
            u{n} = Transpose<perm = [0, 2, 1]>(q{n}) v{n} = Relu(u{n})""")
        x = f"v{n}"
    return written(f"(float[N, 4, 8] x) => (float y) {{ {' '.join(text)} y = Neg({x}) }}", 12, w=f32(8, 8))


def test_three_thousand_nodes_take_a_few_seconds():
    graph = long_chain(140)
    assert len(graph.model.graph) > 3000
    start = time.process_time()
    after, _ = canonical(graph)
    assert time.process_time() - start < 10, "2 on the machine this was written on"
    assert len(after.model.graph) < 2000
    feeds = {"x": f32(2, 4, 8)}
    assert same_bits(run(whole(after), feeds), run(whole(graph), feeds))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ONNXRUNTIME)
def test_the_passes_of_the_targets_do_no_harm(model, precision):
    make, feeds = MODELS[model]
    graph, _ = canonical(make())
    if precision in SCHEMES and kinds(graph)["MatMul"] + kinds(graph)["Conv"]:
        with pytest.raises(UnsupportedModel, match="not quantised"):
            lower(graph, "cpu", precision)
        return
    after, _ = lower(graph, "cpu", precision)
    require_same_results(graph, after, feeds)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_linear_layers_of_any_type_behind_a_transposition(dtype):
    """torch exports write MatMul(x, Transpose(W)); onnxruntime's fused operator takes float32 only."""
    kind = {"float16": "float16", "float32": "float", "float64": "double", "bfloat16": "bfloat16"}[dtype]
    graph = written(f"({kind}[N, 8] x) => ({kind} y) {{ t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t) }}", 17)
    import ml_dtypes

    array = f32(16, 8).astype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    [tensor] = tensors_of(array_stream("w", array))
    body = graph.model.graph
    value = ir.Value(name="w", type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    body.register_initializer(value)
    next(iter(body)).replace_input_with(0, value)
    after, _ = lower(graph, "cpu", "fp32")
    assert kinds(after)["FusedMatMul"] == (dtype == "float32")
    if dtype in ("float32", "float64"):
        feeds = {"x": f32(3, 8).astype(dtype)}
        np.testing.assert_allclose(run(whole(after), feeds)[0], run(whole(graph), feeds)[0], rtol=1e-5, atol=1e-6)
