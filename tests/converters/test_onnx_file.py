"""An .onnx file as a source: its inputs, outputs, state and functions, and that nothing is changed on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import porting
from porting.converters.checkpoints.onnx_file import OnnxFile
from porting.converters.checkpoints.onnx_wire import INLINE_BYTES
from porting.errors import CheckpointError, InputError, UnsupportedModel, UsageError
from porting.port_writer import Source, write_port
from porting.types import is_graph
from tests.onnx_files import (
    BIG,
    MANIFEST,
    YES,
    add_weight,
    assert_ported,
    branch,
    changed,
    choice,
    external,
    feeds_of,
    model,
    node,
    plain_run,
    raw_dims,
    refused,
    relu,
    saved,
    tensor,
    value,
    weight,
)

# --- inputs, outputs, state ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_that_are_inputs_become_constants(tmp_path, ir_version):
    made = model([node("Add", ["x", "w"], ["y"])], [value("w"), value("x")], tensors=[changed()], ir_version=ir_version)
    path = saved(tmp_path, made)
    source = OnnxFile(path)
    assert [str(spec) for spec in source.inputs] == ["x: float32[2, 3]"]
    assert source.facts["constant_inputs"] == ([] if ir_version == 3 else ["w"])  # IR version 3 has no other initializers
    assert [v.name for v in source.graph().model.graph.inputs] == ["x"]
    onnx.checker.check_model(ir.to_proto(source.graph().model))  # before IR version 4 an initializer had to be an input
    assert_ported(path, tmp_path)


@pytest.mark.parametrize("dims", [[-1, 3], ["-1", 3], ["?", 3], [None, 3]])
def test_unknown_dimensions_in_all_spellings(tmp_path, dims):
    path = saved(tmp_path, model([relu()], [raw_dims("x", dims)], [raw_dims("y", dims)]))
    source = OnnxFile(path)
    assert source.inputs[0].shape == (None, 3) == source.outputs[0].shape
    assert_ported(path, tmp_path)


@pytest.mark.parametrize("said", [None, (7, 7), (7, 7, 7), (2, "n")])
def test_output_shapes_that_are_missing_or_wrong_follow_from_the_inputs(tmp_path, said):
    path = saved(tmp_path, model([relu()], [value("x", ("n", 3))], [value("y", said)]))
    assert str(OnnxFile(path).outputs[0]) == "y: float32[n, 3]"


def test_an_output_of_unknown_rank_is_named_in_the_facts(tmp_path):
    nodes = [node("Reshape", ["x", "s"], ["y"])]
    path = saved(tmp_path, model(nodes, [value("x"), value("s", ("rank",), TensorProto.INT64)], [value("y", None)]))
    source = OnnxFile(path)
    assert source.outputs[0].shape == () and source.facts["outputs_of_unknown_rank"] == ["y"]
    assert source.graph().model.graph.outputs[0].shape is None
    known = saved(tmp_path, model([relu()]))
    assert OnnxFile(known).facts["outputs_of_unknown_rank"] == []


def test_wrong_claims_about_values_in_between_are_not_passed_on(tmp_path):
    nodes = [relu("x", "a"), relu("a", "y")]
    path = saved(tmp_path, model(nodes, outputs=[value("y", None)], value_info=[value("a", (9, 9))]))
    assert OnnxFile(path).outputs[0].shape == (2, 3)
    assert_ported(path, tmp_path)
    graph = OnnxFile(path).graph().model.graph
    assert graph.node(0).outputs[0].shape is None


def test_strings_and_sequences_are_described(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, ["n", 4])
    rows = helper.make_tensor_sequence_value_info("rows", TensorProto.FLOAT, None)
    words = value("words", ["n"], TensorProto.STRING)
    nodes = [node("SequenceAt", ["s", "zero"], ["y"]), node("Identity", ["words"], ["same"]), node("Identity", ["s"], ["rows"])]
    outputs = [value("y", None), value("same", ["n"], TensorProto.STRING), rows]
    path = saved(tmp_path, model(nodes, [sequence, words], outputs, [tensor("zero", np.array(0))]))
    source = OnnxFile(path)
    assert [str(spec) for spec in source.inputs] == ["s: sequence(float32)[n, 4]", "words: string[n]"]
    assert [spec.dtype for spec in source.outputs] == ["float32", "string", "sequence(float32)"]
    assert source.graph()


def test_interfaces_that_are_not_covered_are_refused_by_name(tmp_path):
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    optional = helper.make_value_info("maybe", helper.make_optional_type_proto(kind))
    refused(saved(tmp_path, model([relu()], [value("x"), optional])), UnsupportedModel, "'maybe'", "optional")
    table = helper.make_value_info("table", helper.make_map_type_proto(TensorProto.INT64, kind))
    refused(saved(tmp_path, model([relu()], [value("x"), table])), UnsupportedModel, "'table'", "map")
    few = helper.make_value_info("few", helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [2]))
    refused(saved(tmp_path, model([relu()], [value("x"), few])), UnsupportedModel, "'few'", "sparse tensor")
    nested = helper.make_value_info("deep", helper.make_sequence_type_proto(helper.make_sequence_type_proto(kind)))
    refused(saved(tmp_path, model([relu()], [value("x"), nested])), UnsupportedModel, "'deep'", "a sequence of sequences")
    refused(saved(tmp_path, model([relu()], [value("x", None)])), UnsupportedModel, "'x' has no rank")
    refused(saved(tmp_path, model([relu()], [onnx.ValueInfoProto(name="x")])), UnsupportedModel, "'x' has no dtype")
    refused(saved(tmp_path, model([relu()], [value("x", (2,), 77)])), CheckpointError, "'x' has the unknown dtype 77")


def recurrent() -> onnx.ModelProto:
    nodes = [node("Add", ["x", "h"], ["hn"]), relu("hn", "y"), node("Cast", ["hn"], ["wide"], to=TensorProto.DOUBLE)]
    nodes += [node("Unsqueeze", ["hn", "zero"], ["tall"]), node("Concat", ["hn", "hn"], ["long"], axis=0)]
    outputs = [value("y"), value("hn", None), value("wide", None, TensorProto.DOUBLE), value("tall", None), value("long", None)]
    return model(nodes, [value("x"), value("h")], outputs, [tensor("zero", np.array([0]))])


def test_state_pairs_reach_the_graph_and_the_session(tmp_path):
    source = OnnxFile(saved(tmp_path, recurrent()), state={"h": "hn"})
    graph = source.graph()
    assert [(p.input, p.output, p.axis) for p in graph.state.pairs] == [("h", "hn", None)]
    write_port(graph, tmp_path / "r.port", MANIFEST, Source("onnx", tuple(source.files)))
    ones = np.ones((2, 3), np.float32)
    with porting.load(tmp_path / "r.port") as session:
        state = session.new_state()
        got = [session.run({"x": ones}, state)["y"][0, 0] for _ in range(3)]
    assert got == [1, 2, 3]


@pytest.mark.parametrize(
    ("state", "part"),
    [
        ({"g": "hn"}, "no input 'g'"),
        ({"h": "hm"}, "no output 'hm'"),
        ({"h": "wide"}, "wide: float64[2, 3] cannot be the next value of h: float32[2, 3]"),
        ({"h": "tall"}, "tall: float32[1, 2, 3] cannot be"),
        ({"h": "long"}, "long: float32[4, 3] cannot be"),
        ({"h": "hn", "x": "hn"}, "next value of two inputs"),
    ],
)
def test_state_that_does_not_fit_is_refused(tmp_path, state, part):
    path = saved(tmp_path, recurrent())
    with pytest.raises(UsageError) as caught:
        OnnxFile(path, state=state)
    assert part in caught.value.what and caught.value.where and caught.value.next


# --- functions ----------------------------------------------------------------------------------------------------------


def function(
    name: str, nodes: Sequence[onnx.NodeProto], opset: int = 17, domain: str = "my", **more: Any
) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my", 1)]
    return helper.make_function(domain, name, ["a"], ["b"], nodes, imports, **more)


def calls(*functions: onnx.FunctionProto, twice: bool = False) -> onnx.ModelProto:
    call = [node("F", ["x"], ["m"], domain="my"), node("F", ["m"], ["y"], domain="my")]
    nodes = call if twice else [node("F", ["x"], ["y"], domain="my")]
    return model(nodes, opsets=[("", 17), ("my", 1)], functions=functions)


def test_functions_are_inlined_with_names_of_their_own(tmp_path):
    inner = function("G", [relu("a", "t", name="r"), node("Neg", ["t"], ["b"], name="n")])
    outer = function("F", [node("G", ["a"], ["t"], domain="my", name="g"), relu("t", "b", name="r")])
    path = saved(tmp_path, calls(outer, inner, twice=True))
    graph = OnnxFile(path).graph().model
    names = [n.name for n in graph.graph]
    assert [n.op_type for n in graph.graph] == ["Relu", "Neg", "Relu"] * 2 and len(set(names)) == 6 and not graph.functions
    assert names == [n.name for n in OnnxFile(path).graph().model.graph]
    assert_ported(path, tmp_path)
    assert OnnxFile(path).facts["functions"] == ["my::F", "my::G"]


def test_an_inlined_node_takes_no_name_of_a_branch(tmp_path):
    inner = branch([relu("x", "q", name="r_2")], "q")
    made = calls(function("F", [relu("a", "b", name="r")]), twice=True)
    made.graph.node[1].output[0] = "z"
    made.graph.node.extend([choice(inner, branch([relu("x", "q")], "q"), output="u"), node("Add", ["z", "u"], ["y"])])
    made.graph.initializer.append(YES)
    path = saved(tmp_path, made)
    graph = OnnxFile(path).graph().model.graph
    names = [n.name for n in graph.all_nodes()]
    assert len(set(names)) == len(names)
    assert "r_2" in [n.name for body in graph.subgraphs() for n in body]
    assert_ported(path, tmp_path)


def test_attributes_of_a_function_reach_its_nodes(tmp_path):
    leaky = node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    made = model(
        [node("F", ["x"], ["y"], domain="my", slope=0.25)],
        opsets=[("", 17), ("my", 1)],
        functions=[function("F", [leaky], attributes=["slope"])],
    )
    assert_ported(saved(tmp_path, made), tmp_path)


def test_functions_that_cannot_be_meant_are_refused(tmp_path):
    one = function("F", [relu("a", "b")])
    refused(saved(tmp_path, calls(one, one)), CheckpointError, "defined twice")
    itself = function("F", [node("F", ["a"], ["b"], domain="my")])
    refused(saved(tmp_path, calls(itself)), CheckpointError, "call themselves", "my::F")
    other = function("F", [relu("a", "b")], opset=12)
    refused(saved(tmp_path, calls(other)), UnsupportedModel, "Relu is another version at opset 12", "my::F")
    same = function("F", [node("HardSwish", ["a"], ["b"])], opset=15)  # came with 14, next version with 22
    assert_ported(saved(tmp_path, calls(same)), tmp_path)
    shadow = function("Relu", [node("Neg", ["a"], ["b"])], domain="")
    refused(saved(tmp_path, model([relu()], functions=[shadow])), UnsupportedModel, "called like the operator Relu")
    unknown = function("F", [relu("nothing", "b", name="inside")])
    refused(saved(tmp_path, calls(unknown)), CheckpointError, "'nothing'", "my::F", "'inside'")


def test_functions_that_would_fill_memory_are_refused(tmp_path):
    levels = [function("F0", [relu("a", "b")])]
    for level in range(1, 9):
        inside = [
            node(f"F{level - 1}", [f"t{i}" if i else "a"], [f"t{i + 1}" if i < 9 else "b"], domain="my") for i in range(10)
        ]
        levels.append(function(f"F{level}", inside))
    made = model([node("F8", ["x"], ["y"], domain="my")], opsets=[("", 17), ("my", 1)], functions=levels)
    refused(saved(tmp_path, made), UnsupportedModel, "100,000,000 nodes")


# --- the source as a whole ----------------------------------------------------------------------------------------------


def test_it_is_a_graph_source(tmp_path):
    path = saved(tmp_path, add_weight())
    source = OnnxFile(path, examples=[{"x": np.zeros(BIG, np.float32)}])
    assert is_graph(source) and source.format == "onnx" and source.name == "tiny" and source.onnx_path == path
    assert len(source.examples) == 1
    assert source.facts == {
        "producer": "hand",
        "ir_version": 8,
        "opset": {"": 17},
        "functions": [],
        "constant_inputs": [],
        "outputs_of_unknown_rank": [],
    }
    graph = source.graph()
    graph.model.graph.initializers["w"].const_value = None
    assert source.graph().model.graph.initializers["w"].const_value is not None, "each call gives a graph of its own"
    source.close()
    source.close()
    with pytest.raises(UsageError, match="closed"):
        source.graph().model.graph.initializers["w"].const_value.numpy()


def test_the_original_runs(tmp_path):
    path = saved(tmp_path, add_weight())
    source = OnnxFile(path)
    feeds = feeds_of(source)
    with contextlib.closing(source.original()) as original:
        np.testing.assert_array_equal(original.run(feeds)["y"], plain_run(path, feeds)["y"])


def test_metadata_is_kept_and_annotations_do_no_harm(tmp_path):
    made = add_weight()
    helper.set_model_props(made, {"character": "abc"})
    made.graph.quantization_annotation.add(tensor_name="x")
    source = OnnxFile(saved(tmp_path, made))
    assert source.graph().model.metadata_props["character"] == "abc"
    assert_ported(source.path, tmp_path)


def test_three_thousand_nodes_take_a_second(tmp_path):
    nodes = [node("Add", [f"v{i}" if i else "x", f"w{i}"], [f"v{i + 1}" if i < 2999 else "y"]) for i in range(3000)]
    tensors = [weight(f"w{i}", (1, 300)) for i in range(3000)]
    path = saved(tmp_path, model(nodes, [value("x", (1, 300))], [value("y", None)], tensors))
    import time

    start = time.process_time()
    OnnxFile(path).graph()
    assert time.process_time() - start < 3  # 1.0 s on a quiet machine; the whole of the graph work may take 10


# --- any small graph ----------------------------------------------------------------------------------------------------

UNARY, BINARY = ("Relu", "Neg", "Abs", "Identity", "Sigmoid"), ("Add", "Mul", "Sub", "Max")


@st.composite
def small_models(draw: Any) -> tuple[onnx.ModelProto, bytes]:
    """Elementwise graphs with weights large and small, embedded, typed and external, branches and functions; and w.bin."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    names, nodes, tensors, blob = ["x"], [], [YES], bytearray(b"?")
    columns = draw(st.sampled_from([3, 301]))

    def held(name: str) -> onnx.TensorProto:
        array = rng.integers(-4, 5, draw(st.sampled_from([(), (columns,), (2, columns)]))).astype(np.float32)
        match draw(st.sampled_from(["raw", "typed", "external"])):
            case "raw":
                return tensor(name, array)
            case "typed":
                return helper.make_tensor(name, TensorProto.FLOAT, array.shape, array.reshape(-1))
        made = external(name, "w.bin", array.shape, offset=len(blob), length=array.nbytes)
        blob.extend(array.tobytes() + bytes(draw(st.integers(0, 3))))
        return made

    for i in range(draw(st.integers(1, 8))):
        source, output = draw(st.sampled_from(names)), f"v{i}"
        name = draw(st.sampled_from(["", "same", f"n{i}"]))
        match draw(st.sampled_from(["unary", "binary", "weight", "constant", "if", "function"])):
            case "unary":
                nodes.append(node(draw(st.sampled_from(UNARY)), [source], [output], name=name))
            case "binary":
                nodes.append(node(draw(st.sampled_from(BINARY)), [source, draw(st.sampled_from(names))], [output], name=name))
            case "weight":
                tensors.append(held(f"w{i}"))
                nodes.append(node(draw(st.sampled_from(BINARY)), [source, f"w{i}"], [output], name=name))
            case "constant":
                array = rng.integers(-4, 5, (2, columns)).astype(np.float32)
                nodes.append(node("Constant", [], [f"k{i}"], value=tensor("", array)))
                nodes.append(node("Add", [source, f"k{i}"], [output], name=name))
            case "if":
                inner = branch([node("Mul", [source, "inner"], ["r"])], "r", [held("inner")])
                nodes.append(choice(inner, branch([relu(source, "r")], "r"), output, name=name))
            case "function":
                nodes.append(node("F", [source], [output], domain="my", name=name))
        names.append(output)
    rank_free = [value(n, None) for n in draw(st.lists(st.sampled_from(names[1:]), min_size=1, unique=True))]
    rng.shuffle(order := list(range(len(nodes))))
    if draw(st.booleans()):
        nodes = [nodes[i] for i in order]
    function_ = function("F", [relu("a", "t", name="same"), node("Neg", ["t"], ["b"])])
    opsets, inputs = [("", 17), ("my", 1)], [value("x", (2, columns))]
    return model(nodes, inputs, rank_free, tensors, opsets, functions=[function_]), bytes(blob)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=small_models(), weights=st.sampled_from(["link", "copy"]))
def test_any_small_graph_computes_the_same_as_a_port(tmp_path, made, weights):
    proto, blob = made
    for n in proto.graph.node:  # onnxruntime refuses two nodes of one name
        n.name = "" if n.name == "same" else n.name
    (tmp_path / "w.bin").unlink(missing_ok=True)
    (tmp_path / "w.bin").write_bytes(blob)
    (tmp_path / "m.onnx").unlink(missing_ok=True)
    assert_ported(saved(tmp_path, proto), tmp_path, weights=weights)


def test_input_errors_are_input_errors():
    assert issubclass(CheckpointError, InputError) and issubclass(UnsupportedModel, InputError) and INLINE_BYTES == 1024
