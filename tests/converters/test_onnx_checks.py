"""What is refused in the graph of an .onnx file, and how it says so; what looks odd and passes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import porting
from porting.converters.checkpoints.onnx_file import OnnxFile, read_proto
from porting.errors import CheckpointError, UnsupportedModel
from porting.port_writer import Source, write_port
from tests.onnx_files import (
    BIG,
    MANIFEST,
    YES,
    add_weight,
    assert_ported,
    branch,
    changed,
    choice,
    feeds_of,
    model,
    node,
    plain_run,
    refused,
    relu,
    saved,
    tensor,
    value,
    weight,
)

# --- versions and operators ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [1, 5, 25, 26, 30])
def test_opsets_outside_the_range_are_refused_with_the_range(tmp_path, opset):
    refused(saved(tmp_path, model([relu()], opsets=[("", opset)])), UnsupportedModel, f"opset {opset}", "6 to 24")


@pytest.mark.parametrize("opset", [6, 7, 8, 9, 17, 24])
def test_opsets_in_the_range_pass(tmp_path, opset):
    assert_ported(saved(tmp_path, model([relu()], opsets=[("", opset)])), tmp_path)


@pytest.mark.parametrize(
    "opsets",
    [
        [("", 17), ("", 17)],
        [("", 17), ("ai.onnx", 17)],
        [("ai.onnx", 17)],
        [("", 17), ("never.heard.of", 3), ("ai.onnx.training", 1), ("com.microsoft", 1)],
    ],
)
def test_odd_imports_that_change_nothing_pass(tmp_path, opsets):
    path = saved(tmp_path, model([relu(domain="ai.onnx")], opsets=opsets))
    assert_ported(path, tmp_path)
    assert OnnxFile(path).facts["opset"][""] == 17


def test_imports_that_do_not_say_what_is_meant_are_refused(tmp_path):
    differ = model([relu()], opsets=[("", 17), ("ai.onnx", 16)])
    refused(saved(tmp_path, differ), CheckpointError, "as version 17 and as 16")
    missing = model([relu(name="first")], opsets=[("ai.onnx.ml", 2)])
    refused(saved(tmp_path, missing), CheckpointError, "does not say which opset", "first")
    newer = model([relu()], opsets=[("", 17), ("com.microsoft", 7)])
    refused(saved(tmp_path, newer), UnsupportedModel, "version 7 of domain 'com.microsoft'")


def test_a_known_domain_without_import_gets_the_version_that_onnxruntime_takes(tmp_path):
    path = saved(tmp_path, model([node("Gelu", ["x"], ["y"], domain="com.microsoft")]))
    assert_ported(path, tmp_path)
    assert OnnxFile(path).facts["opset"] == {"": 17, "com.microsoft": 1}
    only_ml = model([node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml", norm="L2")], opsets=[("ai.onnx.ml", 1)])
    assert_ported(saved(tmp_path, only_ml), tmp_path)


def test_ir_version_14_is_read_as_13(tmp_path):
    """It adds two dtypes and a type, none of which is here; onnxruntime 1.31 refuses the number alone."""
    path = saved(tmp_path, add_weight(ir_version=14))
    with pytest.raises(Exception, match="Unsupported model IR version"):
        plain_run(path, {})
    source = OnnxFile(path)
    assert source.facts["ir_version"] == 14 and source.graph().model.ir_version == 13 and read_proto(path).ir_version == 13
    thirteen = saved(tmp_path, add_weight(ir_version=13), "thirteen.onnx")
    port = write_port(source.graph(), tmp_path / "p", MANIFEST, Source("onnx", tuple(source.files)))
    feeds = feeds_of(source)
    with porting.load(port.path) as session:
        np.testing.assert_array_equal(session.run(feeds)["y"], plain_run(thirteen, feeds)["y"])


def test_ir_versions_that_say_nothing_or_too_much_are_refused(tmp_path):
    refused(saved(tmp_path, model([relu()], ir_version=0)), CheckpointError, "no IR version")
    refused(saved(tmp_path, model([relu()], ir_version=15)), UnsupportedModel, "IR version 15", "1 to 14")
    six_bits = TensorProto(name="w", data_type=27, dims=[4], raw_data=b"abc")
    refused(saved(tmp_path, model([relu()], tensors=[six_bits], ir_version=14)), UnsupportedModel, "FLOAT6E2M3")


@pytest.mark.parametrize(
    ("made", "parts"),
    [
        (node("Foo", ["x"], ["y"], domain="foo.bar", name="odd"), ["unknown domain 'foo.bar'", "odd", "com.microsoft"]),
        (node("Relux", ["x"], ["y"], name="odd"), ["unknown operator 'Relux'", "odd", "did you mean 'Relu'?"]),
        (node("Gelu", ["x"], ["y"], name="odd"), ["unknown operator 'Gelu'", "came with version 20"]),
        (node("Upsample", ["x", "x"], ["y"], name="odd"), ["'Upsample' was withdrawn in version 10", "odd"]),
        (node("Adam", ["x"], ["y"], domain="ai.onnx.preview.training", name="odd"), ["belongs to training", "odd"]),
        (node("Affine", ["x"], ["y"], name="odd"), ["unknown operator 'Affine'"]),
        (
            node("Normalizerx", ["x"], ["y"], domain="ai.onnx.ml"),
            ["unknown operator 'Normalizerx' in ai.onnx.ml 5", "'Normalizer'"],
        ),
    ],
)
def test_operators_that_nobody_knows_are_refused_by_name(tmp_path, made, parts):
    refused(saved(tmp_path, model([made])), UnsupportedModel, *parts)
    inner = branch([onnx.NodeProto.FromString(made.SerializeToString())], "y")
    inner.node[0].output[0], inner.output[0].name = "r", "r"
    refused(saved(tmp_path, model([choice(inner)], tensors=[YES])), UnsupportedModel, parts[0])


@pytest.mark.parametrize(
    ("made", "opset"),
    [
        (node("SimplifiedLayerNormalization", ["x", "s"], ["y"]), 17),
        (node("LayerNormalization", ["x", "s"], ["y"]), 11),
        (node("ThresholdedRelu", ["x"], ["y"]), 9),
    ],
)
def test_operators_that_onnxruntime_adds_to_the_standard_domain_pass(tmp_path, made, opset):
    path = saved(tmp_path, model([made], tensors=[tensor("s", np.ones(3, np.float32))], opsets=[("", opset)]))
    assert_ported(path, tmp_path)


def test_group_normalization_18_passes(tmp_path):
    made = node("GroupNormalization", ["x", "s", "s"], ["y"], num_groups=1)
    tensors = [tensor("s", np.ones(1, np.float32))]
    path = saved(tmp_path, model([made], [value("x", (1, 2, 3))], [value("y", None)], tensors, opsets=[("", 18)]))
    assert_ported(path, tmp_path)


# --- names, order, scopes -----------------------------------------------------------------------------------------------


def test_names_that_do_not_meet_are_refused_with_the_node(tmp_path):
    refused(
        saved(tmp_path, model([relu("xx", "y", name="here")])),
        CheckpointError,
        "reads 'xx', which nothing makes",
        "'here'",
        "'x'?",
    )
    refused(saved(tmp_path, model([relu(name="one"), relu(name="two")])), CheckpointError, "'y' is made twice", "'two'")
    refused(saved(tmp_path, model([relu("x", "z")])), CheckpointError, "the output 'y' is made by nothing")
    refused(
        saved(tmp_path, model([relu("x", "w"), relu("w", "y")], tensors=[weight("w")])), CheckpointError, "'w' is made twice"
    )
    refused(
        saved(tmp_path, add_weight(tensors=[weight("w"), weight("w")])), CheckpointError, "initializer 'w' is there 2 times"
    )
    refused(saved(tmp_path, model([relu()], [value("x"), value("x")])), CheckpointError, "input 'x' is there 2 times")
    refused(saved(tmp_path, add_weight(tensors=[weight("w"), weight("")])), CheckpointError, "initializer has no name")


def test_names_inside_are_checked_too(tmp_path):
    reads = branch([relu("nowhere", "r", name="inside")], "r")
    refused(saved(tmp_path, model([choice(reads, name="if")], tensors=[YES])), CheckpointError, "'nowhere'", "'if'", "'inside'")
    twice = branch([relu("x", "r"), relu("x", "r")], "r")
    refused(saved(tmp_path, model([choice(twice)], tensors=[YES])), CheckpointError, "'r' is made twice")
    shadow = branch([relu("x", "a", name="inside")], "a")
    made = model([relu("x", "a"), choice(shadow)], tensors=[YES])
    refused(saved(tmp_path, made), CheckpointError, "'a' is made twice: in a graph and inside it", "'inside'")
    refused(saved(tmp_path, model([choice(branch([], "x"))], tensors=[YES])), CheckpointError, "output 'x' is made by nothing")
    leak = branch([relu("x", "r")], "r")
    made = model([choice(leak, output="z"), relu("r", "y", name="outside")], tensors=[YES])
    refused(saved(tmp_path, made), CheckpointError, "'r'", "'outside'")


def test_cycles_are_refused_with_their_nodes(tmp_path):
    ring = [node("Add", ["x", "b"], ["a"], name="first"), relu("a", "b", name="second"), relu("b", "y")]
    refused(saved(tmp_path, model(ring)), CheckpointError, "cyclic", "first", "second")
    through = branch([relu("y", "r")], "r")
    refused(saved(tmp_path, model([choice(through, name="loops")], tensors=[YES])), CheckpointError, "cyclic", "loops")


def test_nodes_in_any_order_pass_and_come_sorted(tmp_path):
    late = branch([relu("later", "r")], "r")
    made = model(
        [relu("a", "y", name="last"), choice(late, output="a", name="middle"), relu("x", "later", name="first")], tensors=[YES]
    )
    path = saved(tmp_path, made)
    assert [n.name for n in read_proto(path).graph.node] == ["first", "middle", "last"]
    assert_ported(path, tmp_path)


def test_every_node_gets_a_name_of_its_own_and_keeps_one_it_has(tmp_path):
    inner = branch([relu("x", "r", name="same"), relu("r", "q")], "q")
    nodes = [
        relu("x", "a", name="same"),
        relu("a", "b"),
        relu("b", "d", name="same"),
        choice(inner, output="e"),
        relu("e", "y"),
    ]
    nodes += [relu("x", "z", name="Relu/b")]
    path = saved(tmp_path, model(nodes, tensors=[YES]))
    outer = [n.name for n in read_proto(path).graph.node]
    assert outer == ["same", "Relu/b_2", "same_2", "If/e", "Relu/y", "Relu/b"]
    graph = OnnxFile(path).graph().model.graph
    assert [n.name for n in graph] == outer
    assert [n.name for n in graph.all_nodes()].count("same_3") == 2 - 1
    names = [n.name for n in graph.all_nodes()]
    assert len(set(names)) == len(names) == 10
    assert names == [n.name for n in OnnxFile(path).graph().model.graph.all_nodes()]


def test_sibling_and_loop_scopes_may_share_names_and_shadow(tmp_path):
    one, other = branch([relu("x", "a")], "a"), branch([node("Neg", ["x"], ["a"])], "a")
    assert_ported(saved(tmp_path, model([choice(one, other)], tensors=[YES])), tmp_path)
    shadow = branch([node("Add", ["x", "w"], ["r"])], "r", [tensor("w", np.full((2, 3), 9, np.float32))])
    nodes = [choice(shadow, output="z"), node("Add", ["z", "w"], ["y"])]
    path = saved(tmp_path, model(nodes, tensors=[YES, tensor("w", np.full((2, 3), 5, np.float32))]))
    assert_ported(path, tmp_path)
    outer = {v.name for v in OnnxFile(path).graph().model.graph.initializers.values()}
    for body in OnnxFile(path).graph().model.graph.subgraphs():
        assert not outer & body.initializers.keys()  # renamed: a pass may now move nodes freely
    state = [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("x", None)]
    given_back = [value("go", [], TensorProto.BOOL), value("more", None), value("more", None)]
    loop = helper.make_graph([node("Add", ["x", "x"], ["more"])], "body", state, given_back)
    nodes = [node("Loop", ["n", "c", "x"], ["y", "all"], body=loop)]
    made = model(nodes, outputs=[value("y"), value("all", None)], tensors=[YES, tensor("n", np.array(3))])
    assert_ported(saved(tmp_path, made), tmp_path)


def test_outputs_that_are_inputs_initializers_or_listed_twice_pass(tmp_path):
    outputs = [value("y"), value("x"), value("w", BIG), value("y"), value("k", BIG)]
    made = model([relu(), node("Constant", [], ["k"], value=weight("k", seed=1))], outputs=outputs, tensors=[weight("w")])
    path = saved(tmp_path, made)
    assert_ported(path, tmp_path)
    assert [spec.name for spec in OnnxFile(path).outputs] == ["y", "x", "w", "k"]


# --- randomness ---------------------------------------------------------------------------------------------------------

FLAGS = [tensor("half", np.float32(0.5)), tensor("on", np.array(True)), tensor("off", np.array(False))]
SHAPE = {"shape": [2, 3]}


@pytest.mark.parametrize(
    "made",
    [
        node("RandomNormal", [], ["r"], name="dice", **SHAPE),
        node("RandomUniform", [], ["r"], name="dice", **SHAPE),
        node("RandomNormalLike", ["x"], ["r"], name="dice"),
        node("RandomUniformLike", ["x"], ["r"], name="dice"),
        node("Bernoulli", ["x"], ["r"], name="dice"),
        node("Multinomial", ["x"], ["r"], name="dice", dtype=TensorProto.INT32),
        node("Dropout", ["x", "half", "on"], ["r"], name="dice"),
        node("Dropout", ["x", "half", "asked"], ["r"], name="dice"),
    ],
)
def test_random_nodes_are_refused_unless_seeded(tmp_path, made):
    def whole(random_node: onnx.NodeProto) -> onnx.ModelProto:
        nodes = [random_node, node("Cast", ["r"], ["y"], to=TensorProto.FLOAT)]
        inputs = [value("x"), value("asked", [], TensorProto.BOOL)]
        return model(nodes, inputs, [value("y", None)], FLAGS)

    refused(saved(tmp_path, whole(made)), UnsupportedModel, "'dice'", "seed")
    seeded = onnx.NodeProto.FromString(made.SerializeToString())
    seeded.attribute.append(helper.make_attribute("seed", 7.0 if made.op_type not in ("Dropout",) else 7))
    assert OnnxFile(saved(tmp_path, whole(seeded))).graph()


def test_dropout_that_does_nothing_passes(tmp_path):
    constant = node("Constant", [], ["no"], value=FLAGS[2])
    nodes = [
        constant,
        node("Dropout", ["x"], ["a"]),
        node("Dropout", ["a", "half", "off"], ["b"]),
        node("Dropout", ["b", "", "no"], ["d"]),
    ]
    inner = branch([node("Dropout", ["d", "", "off"], ["r"])], "r")
    assert_ported(saved(tmp_path, model([*nodes, choice(inner)], tensors=[*FLAGS, YES])), tmp_path)


def test_a_dropout_in_a_function_counts(tmp_path):
    body = [node("Dropout", ["a", "", "t"], ["b"], name="dice")]
    function = helper.make_function("my", "F", ["a", "t"], ["b"], body, [helper.make_opsetid("", 17)])
    call = node("F", ["x", "off"], ["y"], domain="my")
    path = saved(tmp_path, model([call], tensors=FLAGS, opsets=[("", 17), ("my", 1)], functions=[function]))
    refused(path, UnsupportedModel, "my::F", "'dice'", "may train")
    body[0].CopyFrom(node("RandomNormalLike", ["a"], ["b"], name="dice"))
    body[0].attribute.add(name="seed", ref_attr_name="seed", type=onnx.AttributeProto.FLOAT)  # the caller gives none
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function("my", "F", ["a", "t"], ["b"], body, imports, attributes=["seed"])
    path = saved(tmp_path, model([call], tensors=FLAGS, opsets=[("", 17), ("my", 1)], functions=[function]))
    refused(path, UnsupportedModel, "my::F", "'dice'", "has no seed")


# --- attributes and annotations -------------------------------------------------------------------------------------------


def test_attributes_that_hold_nothing_are_refused(tmp_path):
    for odd, part in [
        (onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR), "'value' is empty"),
        (onnx.AttributeProto(name="alpha", f=1.0), "'alpha' has no type"),
        (onnx.AttributeProto(type=onnx.AttributeProto.FLOAT), "has no name"),
    ]:
        made = relu(name="here")
        made.attribute.append(odd)
        refused(saved(tmp_path, model([made])), CheckpointError, part, "'here'")
    made = node("LeakyRelu", ["x"], ["y"], alpha=0.5)
    made.attribute.append(made.attribute[0])
    refused(saved(tmp_path, model([made])), CheckpointError, "attribute 'alpha' is there 2 times")


def test_leftovers_that_onnxruntime_ignores_are_ignored(tmp_path):
    made = model([node("Add", ["x", "w"], ["y"])], tensors=[changed()])
    made.graph.node[0].device_configurations.add(configuration_id="two cards")
    made.configuration.add(name="two cards", num_devices=2)
    made.graph.initializer[0].external_data.add(key="location", value="gone.bin")  # data_location says otherwise
    made.graph.output[0].ClearField("type")
    path = saved(tmp_path, made)
    assert str(OnnxFile(path).outputs[0]) == "y: float32[2, 3]"
    assert_ported(path, tmp_path)
