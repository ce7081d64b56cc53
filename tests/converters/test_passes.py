"""One test over the whole table of passes, and what each pass refuses to touch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
from tiny import BOUND, MemoryCheckpoint, make, memory_checkpoint, program_of, run_chunks, scratch, serialised, token_ids

from porting.conversion import canonical_graph, convert
from porting.converters.graph_builder import MODULE
from porting.converters.passes.attention_to_gqa import attention_to_gqa
from porting.converters.passes.linear_to_fused import linear_to_fused
from porting.converters.passes.quantize_linear import SCHEMES, dequantize_rows, quantize_linear, quantize_rows
from porting.converters.passes.rewriting import copied
from porting.converters.passes.tables import ONNXRUNTIME, TABLES, lower
from porting.errors import UnsupportedModel, UsageError
from porting.session import open_session
from porting.types import Graph
from porting.weights import stream_of

MODELS = {
    "llama, tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", {}),
    "qwen2": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "intermediate_size": 75},
    ),
    "qwen3, biases": ("Qwen3ForCausalLM", {"attention_bias": True}),
}
# test_scatter_nd.py has the pass that finds nothing in a decoder
OF_DECODERS = {p: [step for step in table if step[0] != "scatter_nd_in_order"] for p, table in ONNXRUNTIME.items()}
STEPS = [(precision, position) for precision, table in OF_DECODERS.items() for position in range(len(table))]
REORDERED = BOUND  # attention_to_gqa and linear_to_fused sum the same float32 numbers in another order


@cache
def checkpoint(model: str) -> MemoryCheckpoint:
    architecture, changes = MODELS[model]
    return memory_checkpoint(make(scratch(), architecture, **changes))


def canonical(model: str = "mistral") -> Graph:
    return canonical_graph(checkpoint(model)).graph


def step_of(model: str, precision: str, position: int) -> tuple[Graph, Callable[[Graph], tuple[Graph, int]]]:
    """A pass of the table, and the graph that the passes before it make."""
    graph = canonical(model)
    for _, run in OF_DECODERS[precision][:position]:
        graph, _ = run(graph)
    return graph, OF_DECODERS[precision][position][1]


def kinds(graph: Graph) -> Counter:
    return Counter((node.domain, node.op_type) for node in graph.model.graph)


def each_step(test):
    test = pytest.mark.parametrize("model", MODELS)(test)
    return pytest.mark.parametrize(("precision", "position"), STEPS, ids=[f"{p}-{OF_DECODERS[p][i][0]}" for p, i in STEPS])(
        test
    )


def test_every_table_is_covered():
    assert {id(table) for table in TABLES.values()} == {id(ONNXRUNTIME)}, "a table of its own needs the tests below"


@each_step
def test_a_pass_leaves_its_input_alone_and_is_done_after_one_run(model, precision, position):
    graph, run = step_of(model, precision, position)
    before = serialised(graph)
    after, changes = run(graph)
    assert serialised(graph) == before
    assert changes > 0
    assert serialised(after) != before
    again, more = run(after)
    assert more == 0
    assert serialised(again) == serialised(after)


@each_step
def test_the_count_is_the_number_of_nodes_that_became_something_else(model, precision, position):
    graph, run = step_of(model, precision, position)
    after, changes = run(graph)
    old = {node.name: (node.domain, node.op_type) for node in graph.model.graph}
    became = [
        node.name
        for node in after.model.graph
        if old.get(node.name, (node.domain, node.op_type)) != (node.domain, node.op_type)
    ]
    assert len(became) == changes
    assert len({node.name for node in after.model.graph}) == len(after.model.graph), "names stay unique"


@each_step
def test_every_node_keeps_its_module(model, precision, position):
    graph, run = step_of(model, precision, position)
    after, _ = run(graph)
    modules = {node.name: node.metadata_props[MODULE] for node in graph.model.graph}
    for node in after.model.graph:
        assert node.metadata_props.get(MODULE) in modules.values(), node.name
        assert node.metadata_props[MODULE] == modules.get(node.name, node.metadata_props[MODULE])


@each_step
def test_no_weight_is_duplicated_or_read(model, precision, position):
    graph, run = step_of(model, precision, position)
    old = {v.name: v.const_value for v in graph.model.graph.initializers.values()}

    def never(*_):
        raise AssertionError("a pass read a weight")

    for tensor in old.values():
        if found := stream_of(tensor):
            found[0].make = never
    after, _ = run(graph)
    made = Counter()
    for name, value in after.model.graph.initializers.items():
        assert value.uses() or value.is_graph_output(), f"{name} is left without a reader"
        if name in old:
            assert value.const_value is old[name], "weights are shared, not copied"
        elif found := stream_of(value.const_value):
            made[(found[0].sources, found[1])] += 1
        else:
            assert value.const_value.nbytes < 1000, f"{name} is a new constant of the size of a weight"
    assert max(made.values(), default=1) == 1
    assert [v.name for v in after.model.graph.inputs] == [v.name for v in graph.model.graph.inputs]
    assert [(v.name, v.shape) for v in after.model.graph.outputs] == [(v.name, v.shape) for v in graph.model.graph.outputs]


def rounded(model: str, precision: str) -> MemoryCheckpoint:
    """The checkpoint with every linear layer replaced by what its codes stand for; a tied head is told apart from the embedding."""
    whole, scheme = checkpoint(model), SCHEMES[precision]
    arrays = dict(whole.arrays)
    arrays.setdefault("lm_head.weight", arrays["model.embed_tokens.weight"])
    for name, w in arrays.items():
        if w.ndim == 2 and name != "model.embed_tokens.weight":
            codes, scales, *points = quantize_rows(w, scheme)
            arrays[name] = dequantize_rows(codes, scales, points[0] if points else None, w.shape[1], scheme.bits)
    return MemoryCheckpoint({**whole.config, "tie_word_embeddings": False}, arrays)


def with_exact_activations(graph: Graph) -> Graph:
    """The same weights, without the rounding of activations that the operator does at its accuracy level 4."""
    graph = copied(graph)
    for node in graph.model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)
    return graph


def outputs(graph: Graph) -> np.ndarray:
    """Logits of two rows at once, then of one row in chunks and single steps."""
    ids, session = token_ids(2, 20), open_session(program_of(graph))
    together = session.run({"input_ids": ids})["logits"]
    return np.concatenate([*together, *run_chunks(session, ids[:1], (9, 5, *(1,) * 6))])


@each_step
def test_outputs_agree_before_and_after(model, precision, position):
    graph, run = step_of(model, precision, position)
    after, _ = run(graph)
    if "quantize" in OF_DECODERS[precision][position][0]:
        before, after = outputs(canonical_graph(rounded(model, precision)).graph), with_exact_activations(after)
        assert np.abs(before - outputs(graph)).max() > 100 * REORDERED, "rounding the weights should show at all"
    else:
        before = outputs(graph)
    np.testing.assert_allclose(outputs(after), before, rtol=0, atol=REORDERED)


@pytest.mark.parametrize("model", MODELS)
def test_what_each_table_makes_of_a_decoder(model):
    linears = 2 * 7 + 1
    assert kinds(canonical(model))[("", "MatMul")] == linears
    for precision, fused in (("fp32", "FusedMatMul"), ("int8", "MatMulNBits"), ("int4", "MatMulNBits")):
        graph, applied = lower(canonical(model), "cpu", precision)
        assert [s["changes"] for s in applied if s["name"] != "scatter_nd_in_order"] == [2, linears]
        made = kinds(graph)
        assert made[("com.microsoft", "GroupQueryAttention")] == 2
        assert made[("com.microsoft", fused)] == linears
        for gone in ("MatMul", "Attention", "TensorScatter", "LessOrEqual", "Range"):
            expected = 1 if gone == "Range" else 0  # the positions; the mask's columns are gone
            assert made[("", gone)] == expected, gone
        assert graph.model.graph.opset_imports == {"": 24, "com.microsoft": 1}


def test_any_prefix_of_a_table_can_be_made():
    graph, applied = lower(canonical(), "cpu", "int4", stop_after="attention_to_gqa")
    assert [step["name"] for step in applied] == ["attention_to_gqa"]
    assert kinds(graph)[("", "MatMul")] == 15
    with pytest.raises(UsageError, match="no pass 'attention'") as caught:
        lower(canonical(), "cpu", "int4", stop_after="attention")
    assert "attention_to_gqa" in caught.value.next
    with pytest.raises(UsageError, match="no precision 'int3'"):
        lower(canonical(), "cpu", "int3")
    with pytest.raises(UsageError, match="no passes for target kind 'tpu'"):
        lower(canonical(), "tpu", "int4")


# --- what a pass leaves alone: each change is made in layer 0, layer 1 still matches -----------------------------------


def node_of(graph: Graph, op_type: str, number: int = 0) -> ir.Node:
    return [node for node in graph.model.graph if node.op_type == op_type][number]


def attribute(op_type: str, name: str, value: object, number: int = 0) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        node = node_of(graph, op_type, number)
        if value is None:
            del node.attributes[name]
        else:
            node.attributes[name] = ir.convenience.convert_attribute(name, value)

    return change


def mark(text: str) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        node_of(graph, "Attention").metadata_props["porting.mask"] = text

    return change


def shape_of(find: Callable[[Graph], ir.Node], sizes: list[int]) -> Callable[[Graph], None]:
    """Give the Reshape that `find` returns another target shape."""

    def change(graph: Graph) -> None:
        value = ir.Value(name="test/shape", const_value=ir.Tensor(np.array(sizes), name="test/shape"))
        graph.model.graph.register_initializer(value)
        find(graph).replace_input_with(1, value)

    return change


def behind_attention(graph: Graph) -> ir.Node:
    transpose = node_of(graph, "Attention").outputs[0].uses()[0].node
    return transpose.outputs[0].uses()[0].node


def before_values(graph: Graph) -> ir.Node:
    """The Reshape that splits v into heads."""
    return node_of(graph, "TensorScatter", 1).inputs[1].producer().inputs[0].producer()


def drop_mark(graph: Graph) -> None:
    del node_of(graph, "Attention").metadata_props["porting.mask"]


def merged_otherwise(graph: Graph) -> None:
    behind_attention(graph).inputs[0].producer().attributes["perm"] = ir.AttrInt64s("perm", [0, 1, 2, 3])


def read_twice(graph: Graph) -> None:
    """Somebody else wants the attention before its heads are merged."""
    node = node_of(graph, "Attention")
    reader = ir.Node("", "Identity", [node.outputs[0]], name="test/reader", metadata_props={MODULE: "test"})
    reader.outputs[0].name = "test/read"
    graph.model.graph.append(reader)
    graph.model.graph.outputs.append(reader.outputs[0])


def written_elsewhere(graph: Graph) -> None:
    """The cache is written at another place than behind what is filled."""
    node = node_of(graph, "TensorScatter")
    place = ir.Node("", "Identity", [node.inputs[2]], name="test/place", metadata_props={MODULE: "test"})
    place.outputs[0].name = "test/place"
    graph.model.graph.insert_before(node, place)
    node.replace_input_with(2, place.outputs[0])


def another_input(graph: Graph) -> None:
    node = node_of(graph, "Attention")
    node.resize_inputs(7)
    node.replace_input_with(6, next(v for v in graph.model.graph.inputs if v.name == "past_length"))


def a_past_of_its_own(graph: Graph) -> None:
    node = node_of(graph, "Attention")
    inputs = {v.name: v for v in graph.model.graph.inputs}
    node.resize_inputs(6)
    for index, kind in ((4, "key"), (5, "value")):
        node.replace_input_with(index, inputs[f"cache.1.{kind}"])


def key_split_otherwise(graph: Graph) -> None:
    node_of(graph, "TensorScatter").inputs[1].producer().attributes["perm"] = ir.AttrInt64s("perm", [0, 1, 2, 3])


ATTENTION_TO_LEAVE = {
    "no mark": drop_mark,
    "another mark": mark("causal,alibi"),
    "a mark that only begins so": mark("causal,window=5,sink=2"),
    "another mask": mark("full"),
    "written along another axis": attribute("TensorScatter", "axis", 1),
    "values written along another axis": attribute("TensorScatter", "axis", 1, number=1),
    "no axis": attribute("TensorScatter", "axis", None),
    "a ring": attribute("TensorScatter", "mode", "circular"),
    "written elsewhere": written_elsewhere,
    "soft cap": attribute("Attention", "softcap", 30.0),
    "causal by attribute": attribute("Attention", "is_causal", 1),
    "no scale": attribute("Attention", "scale", None),
    "another input": another_input,
    "a past of its own": a_past_of_its_own,
    "read twice": read_twice,
    "merged in another order": merged_otherwise,
    "merged to another shape": shape_of(behind_attention, [1, -1, 96]),
    "values split into other heads": shape_of(before_values, [0, 0, 1, 16]),
    "values split otherwise": shape_of(before_values, [1, -1, 2, 8]),
    "keys split in another order": key_split_otherwise,
}


@pytest.mark.parametrize("case", ATTENTION_TO_LEAVE)
def test_attention_is_left_alone(case):
    graph = canonical()
    ATTENTION_TO_LEAVE[case](graph)
    after, changes = attention_to_gqa(graph)
    assert changes == 1
    (left,) = [node for node in after.model.graph if node.op_type == "Attention"]
    assert left.metadata_props[MODULE] == "model.layers.0.self_attn"


@pytest.mark.parametrize("head_dim", [6, 12])
def test_attention_with_heads_that_onnxruntime_refuses_is_left_alone(head_dim):
    whole = memory_checkpoint(make(scratch(), "LlamaForCausalLM", head_dim=head_dim))
    assert attention_to_gqa(canonical_graph(whole).graph)[1] == 0


def transposed_otherwise(graph: Graph) -> None:
    node = weight_transpose(graph)
    node.attributes["perm"] = ir.AttrInt64s("perm", [0, 1])


def weight_transpose(graph: Graph) -> ir.Node:
    return next(n for n in graph.model.graph if n.name == "model.layers.0.self_attn.q_proj/Transpose")


def transposed_by_default(graph: Graph) -> None:
    del weight_transpose(graph).attributes["perm"]


def behind_identity(graph: Graph) -> None:
    node = weight_transpose(graph)
    same = ir.Node("", "Identity", [node.inputs[0]], name="test/same", metadata_props={MODULE: "test"})
    same.outputs[0].name = "test/same"
    graph.model.graph.insert_before(node, same)
    node.replace_input_with(0, same.outputs[0])


def not_streamed(graph: Graph) -> None:
    value = weight_transpose(graph).inputs[0]
    value.const_value = ir.Tensor(np.ones((96, 48), np.float32), name=value.name)


def constant_node(graph: Graph) -> None:
    node = weight_transpose(graph)
    tensor = ir.Tensor(np.ones((96, 48), np.float32), name="test/constant")
    constant = ir.Node("", "Constant", [], attributes=[ir.AttrTensor("value", tensor)], name="test/constant")
    constant.outputs[0].name = "test/constant"
    graph.model.graph.insert_before(node, constant)
    node.replace_input_with(0, constant.outputs[0])


def another_operator(graph: Graph) -> None:
    node_of(graph, "MatMul").op_type = "Gemm"


@pytest.mark.parametrize("precision", SCHEMES)
def test_two_layers_of_one_weight_share_its_codes(precision):
    graph = canonical()
    first, second = (next(n for n in graph.model.graph if n.name == f"model.layers.{i}.mlp.up_proj/Transpose") for i in (0, 1))
    second.replace_input_with(0, first.inputs[0])
    before = outputs(canonical_graph(rounded_with_one_up_proj(precision)).graph)
    after, changes = quantize_linear(graph, SCHEMES[precision])
    assert changes == 15
    codes = {node.inputs[1].name for node in after.model.graph if node.op_type == "MatMulNBits" and "up_proj" in node.name}
    assert codes == {"model.layers.0.mlp.up_proj.weight.codes"}
    np.testing.assert_allclose(outputs(with_exact_activations(after)), before, rtol=0, atol=REORDERED)


def rounded_with_one_up_proj(precision: str) -> MemoryCheckpoint:
    whole = rounded("mistral", precision)
    whole.arrays["model.layers.1.mlp.up_proj.weight"] = whole.arrays["model.layers.0.mlp.up_proj.weight"]
    return whole


UNKNOWN_LINEARS = [transposed_otherwise, transposed_by_default, behind_identity, not_streamed, constant_node, another_operator]


@pytest.mark.parametrize("change", UNKNOWN_LINEARS, ids=lambda change: change.__name__)
def test_a_layer_left_unquantised_fails_the_conversion_by_name(change):
    graph = canonical()
    change(graph)
    for precision in SCHEMES:
        assert quantize_linear(graph, SCHEMES[precision])[1] == 14
        with pytest.raises(UnsupportedModel, match="1 layers were not quantised: ") as caught:
            lower(graph, "cpu", precision)
        expected = "test" if change is behind_identity else r"model.layers.0.self_attn.q_proj"
        assert expected in caught.value.what
        lower(graph, "cpu", precision, stop_after=f"quantize_linear_{precision}")  # to look at what was left
    if change is not not_streamed:
        assert linear_to_fused(graph)[1] == 14
    lower(graph, "cpu", "fp32")  # nothing is promised there


@pytest.mark.parametrize("precision", SCHEMES)
def test_a_conversion_that_leaves_a_layer_unquantised_writes_nothing(precision, tmp_path, monkeypatch):
    source = make(tmp_path / "source", "LlamaForCausalLM").folder
    parts = "porting.converters.architectures.decoder_parts"

    def linear(g, weights, name, x, n_in, n_out, bias=False):  # an architecture that spells its layers in another way
        with g.scope(name):
            return g.op("Einsum", x, g.weight(weights.take(f"{name}.weight", (n_out, n_in))), equation="bsi,oi->bso")

    monkeypatch.setattr(f"{parts}.linear", linear)
    with pytest.raises(UnsupportedModel, match=r"14 layers were not quantised: model\.layers\.0\.self_attn\.q_proj"):
        convert(source, tmp_path / "port", precision=precision)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
