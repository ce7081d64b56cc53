"""The table of passes to the canonical form: what holds of each pass and of the whole, on the shapes that exporters write."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_bits import run, same_bits, whole, written

from porting.converters.graph_builder import MODULE
from porting.converters.passes.canonical import CANONICAL, canonical
from porting.converters.passes.quantize_linear import SCHEMES
from porting.converters.passes.rewriting import CONTROL_FLOW, bodies_of
from porting.converters.passes.tables import ONNXRUNTIME, lower
from porting.errors import UnsupportedModel
from porting.types import Graph
from porting.weights import array_stream, tensors_of
from tests.canonical_models import (
    MODELS,
    STEPS,
    before_step,
    branches,
    f32,
    kinds,
    require_same_results,
    shapes_from_shapes,
)

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


def test_operators_that_hold_graphs() -> None:
    """`bodies_of` looks into no others of ai.onnx: a later one would be overlooked."""
    schemas = [s for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""]
    kinds = (onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS)
    assert {s.name for s in schemas if any(a.type in kinds for a in s.attributes.values())} == CONTROL_FLOW
