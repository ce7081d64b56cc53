"""Reading .onnx files: what is refused and how it says so, what passes, and that nothing is changed on the way."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import porting
from porting.converters.checkpoints.onnx_file import OnnxFile, read_proto
from porting.converters.checkpoints.onnx_wire import INLINE_BYTES, parse_model
from porting.errors import CheckpointError, InputError, PortingError, UnsupportedModel, UsageError
from porting.port_writer import Source, write_port
from porting.types import is_graph
from porting.weights import stream_of

node = helper.make_node
MANIFEST: dict[str, Any] = {"kind": "graph", "architecture": "", "target": "cpu", "config": {}, "tensors": {}, "passes": []}
MANIFEST |= {"precision": "fp32", "min_runtime": {}}
BIG = (40, 30)  # float32: 4,800 bytes, above INLINE_BYTES


# --- small models -----------------------------------------------------------------------------------------------------


def value(name: str, shape: Sequence[Any] | None = (2, 3), dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def raw_dims(name: str, dims: Sequence[Any]) -> onnx.ValueInfoProto:
    """Dimensions as they are given: helper.make_tensor_value_info corrects them."""
    made = value(name, None)
    made.type.tensor_type.shape.SetInParent()
    for dim in dims:
        added = made.type.tensor_type.shape.dim.add()
        if isinstance(dim, str):
            added.dim_param = dim
        elif dim is not None:
            added.dim_value = dim
    return made


def tensor(name: str, array: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def weight(name: str, shape: Sequence[int] = BIG, seed: int = 0) -> onnx.TensorProto:
    return tensor(name, np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32))


def external(name: str, location: str, shape: Sequence[int] = BIG, **place: Any) -> onnx.TensorProto:
    """A float32 tensor elsewhere."""
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, entry in {"location": location, **place}.items():
        made.external_data.add(key=key, value=str(entry))
    return made


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    tensors: Sequence[onnx.TensorProto] = (),
    opsets: Sequence[tuple[str, int]] = (("", 17),),
    ir_version: int = 8,
    functions: Sequence[onnx.FunctionProto] = (),
    **graph: Any,
) -> onnx.ModelProto:
    """x -> nodes -> y, both float32[2, 3] unless told."""
    body = helper.make_graph(nodes, "tiny", inputs or [value("x")], outputs or [value("y")], list(tensors), **graph)
    imports = [helper.make_opsetid(*entry) for entry in opsets]
    made = helper.make_model(body, opset_imports=imports, functions=functions, producer_name="hand")
    made.ir_version = ir_version
    return made


def relu(source: str = "x", target: str = "y", **more: Any) -> onnx.NodeProto:
    return node("Relu", [source], [target], **more)


def add_weight(**more: Any) -> onnx.ModelProto:
    """y = x + w, w above INLINE_BYTES."""
    more.setdefault("tensors", [weight("w")])
    return model([node("Add", ["x", "w"], ["y"])], [value("x", BIG)], [value("y", BIG)], **more)


def branch(nodes: Sequence[onnx.NodeProto], output: str, tensors: Sequence[onnx.TensorProto] = ()) -> onnx.GraphProto:
    return helper.make_graph(nodes, "branch", [], [value(output, None)], list(tensors))


def choice(then: onnx.GraphProto, other: onnx.GraphProto | None = None, output: str = "y", **more: Any) -> onnx.NodeProto:
    return node("If", ["c"], [output], then_branch=then, else_branch=other or then, **more)


YES = tensor("c", np.array(True))


def saved(folder: Path, made: onnx.ModelProto | bytes, name: str = "m.onnx") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path


def feeds_of(source: OnnxFile, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {spec.name: [d if isinstance(d, int) else 3 for d in spec.shape] for spec in source.inputs}
    return {spec.name: rng.integers(-9, 9, shapes[spec.name]).astype(spec.dtype) for spec in source.inputs}


def plain_run(path: Path, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The untouched file in onnxruntime, as the backend would set it up."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_ported(path: Path, folder: Path, **options: Any) -> porting.port_folder.Port:
    """A port of the file, opened and run, gives what the file gives, bit for bit. Returns the port."""
    expected = plain_run(path, feeds_of(OnnxFile(path)))  # before: nothing that porting does may break the file
    with contextlib.closing(OnnxFile(path)) as source:
        destination = folder / "made.port"
        port = write_port(
            source.graph(), destination, MANIFEST, Source(source.format, tuple(source.files)), force=True, **options
        )
        feeds = feeds_of(source)
    with porting.load(destination, "cpu,optimization=off") as session:
        got = session.run(feeds)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, strict=True)
    again = plain_run(path, feeds)
    assert all(np.array_equal(again[name], expected[name]) for name in expected)
    return port


def refused(path: Path, kind: type[PortingError], *parts: str) -> PortingError:
    """The error of opening a file; every part is in what it says, and it says where and what next."""
    with pytest.raises(kind) as caught:
        OnnxFile(path).graph()
    assert type(caught.value) is kind and caught.value.exit_code == 2
    assert caught.value.where and caught.value.next
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    return caught.value


# --- the bytes ----------------------------------------------------------------------------------------------------------


def test_large_tensors_stay_in_the_file_and_everything_else_is_read(tmp_path):
    made = add_weight(tensors=[weight("w"), tensor("small", np.arange(4.0, dtype=np.float32))])
    path = saved(tmp_path, made)
    found = parse_model(path)
    entries = {e.key: e.value for e in found.graph.initializer[0].external_data}
    raw = path.read_bytes()[int(entries["offset"]) :][: int(entries["length"])]
    assert raw == made.graph.initializer[0].raw_data and entries["location"] == path.name
    assert found.graph.initializer[1] == made.graph.initializer[1]
    made.graph.initializer[0].CopyFrom(found.graph.initializer[0])
    assert found == made


@pytest.mark.parametrize("where", ["subgraph", "constant", "function", "deep"])
def test_large_tensors_are_found_at_any_depth(tmp_path, where):
    w, constant = weight("w"), node("Constant", [], ["k"], value=weight("k"))
    inner = branch([node("Add", ["x", "w"], ["r"])], "r", [w])
    deep = branch([choice(inner, output="r2")], "r2")
    nodes = {
        "subgraph": [choice(inner)],
        "deep": [choice(deep)],
        "constant": [constant, node("Add", ["x", "k"], ["y"])],
        "function": [node("F", ["x"], ["y"], domain="my")],
    }[where]
    body = helper.make_function(
        "my", "F", ["a"], ["b"], [constant, node("Add", ["a", "k"], ["b"])], [helper.make_opsetid("", 17)]
    )
    functions = [body] if where == "function" else []
    made = model(nodes, [value("x", BIG)], [value("y", BIG)], [YES], opsets=[("", 17), ("my", 1)], functions=functions)
    path = saved(tmp_path, made)
    assert parse_model(path).ByteSize() < 1500 < made.ByteSize()
    assert_ported(path, tmp_path)


def test_an_explicit_default_location_after_the_data_is_no_contradiction(tmp_path):
    made = add_weight()
    made.graph.initializer[0].data_location = TensorProto.DEFAULT  # as exporters write it, field 14 after field 9
    assert_ported(saved(tmp_path, made), tmp_path)


@pytest.mark.parametrize(
    ("content", "kind", "part"),
    [
        (b"", CheckpointError, "is empty"),
        (b"<!doctype html><html>", CheckpointError, "no ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", CheckpointError, "Git LFS pointer"),
        (b"\xff" * 40, CheckpointError, "longer than 10 bytes"),
        (b"\x08\x08", CheckpointError, "holds no graph"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", CheckpointError, "cut short"),
        (b"\x0b\x0c", CheckpointError, "wire type 3"),
        (b"\x02\x00", CheckpointError, "number 0"),
        (b"\x09\x00", CheckpointError, "cut short"),
        (b"\x12\x02\xff\xfe", CheckpointError, "producer_name that is no UTF-8"),
    ],
)
def test_files_that_are_no_onnx_are_refused(tmp_path, content, kind, part):
    refused(saved(tmp_path, content), kind, part)


def test_missing_files_folders_and_pipes_are_refused(tmp_path):
    refused(tmp_path / "none.onnx", CheckpointError, "does not exist")
    refused(tmp_path, CheckpointError, "expected a file, got a folder")
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(tmp_path / "pipe.onnx", CheckpointError, "a pipe or device")


def test_two_gib_are_refused_with_the_way_out(tmp_path):
    path = saved(tmp_path, model([relu()]))
    os.truncate(path, 2**31)  # sparse
    refused(path, UnsupportedModel, "2,147,483,648 bytes", "save_as_external_data=True")


def test_a_model_cut_anywhere_is_refused_or_whole(tmp_path):
    """Only a cut between fields of the model itself can leave one that is whole, for it lacks what came after: here the imports."""
    raw = model([relu()]).SerializeToString()
    for length in range(len(raw)):
        refused(saved(tmp_path, raw[:length]), CheckpointError)


def test_a_length_inside_that_runs_out_of_its_message_is_refused(tmp_path):
    raw = bytearray(add_weight().SerializeToString())
    at = raw.index(b"\x4a\xc0\x25")  # raw_data, 4,800 bytes
    raw[at + 1 : at + 3] = b"\xc1\x25"
    refused(saved(tmp_path, bytes(raw)), CheckpointError, "the message that holds it")


def test_nesting_without_end_is_refused(tmp_path):
    """Written by hand: protobuf itself refuses to make it."""

    def field(number: int, content: bytes) -> bytes:
        length, size = b"", len(content)
        while size > 127:
            length, size = length + bytes([size % 128 + 128]), size // 128
        return bytes([number * 8 + 2]) + length + bytes([size]) + content

    body = field(5, weight("w").SerializeToString())  # a graph with one initializer
    for _ in range(40):
        body = field(1, field(5, field(6, body)))  # in an attribute of a node of another
    refused(saved(tmp_path, b"\x08\x08" + field(7, body)), CheckpointError, "messages lie more than 100 deep")


@pytest.fixture(scope="module")
def rich_model(tmp_path_factory) -> bytes:
    """One of everything, for mutation."""
    inner = branch([node("Add", ["x", "w"], ["r"]), relu("r", "q")], "q", [weight("w", (1, 400))])
    body = helper.make_function(
        "my", "F", ["a"], ["b"], [relu("a", "t"), node("Neg", ["t"], ["b"])], [helper.make_opsetid("", 17)]
    )
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [1, 400], list(range(400)))
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("sparse", TensorProto.FLOAT, [2], [3.0, 4.0]), tensor("", np.array([0, 5])), [1, 400]
    )
    nodes = [choice(inner, output="a"), node("F", ["a"], ["b"], domain="my"), node("Add", ["b", "typed"], ["d"])]
    nodes += [node("Add", ["d", "sparse"], ["e"]), node("Dropout", ["e", "", "no"], ["y"])]
    shape = ["batch", 400]
    made = model(
        nodes,
        [value("x", shape)],
        [value("y", shape)],
        [YES, typed, tensor("no", np.array(False))],
        opsets=[("", 17), ("my", 1)],
        functions=[body],
        sparse_initializer=[sparse],
        value_info=[value("a", shape)],
    )
    return made.SerializeToString()


def test_the_model_for_mutation_is_sound(tmp_path, rich_model):
    assert_ported(saved(tmp_path, rich_model), tmp_path)


def opened_or_refused(path: Path) -> PortingError | None:
    try:
        with contextlib.closing(OnnxFile(path)) as source:
            model = source.graph().model
            source.accounting()
        for body in (model.graph, *model.graph.subgraphs()):
            for held in body.initializers.values():
                if stream_of(held.const_value) is None:
                    held.const_value.numpy()
    except PortingError as error:
        return error
    return None


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_changed_bytes_give_a_graph_or_an_error_for_the_user(tmp_path, rich_model, seed):
    rng = random.Random(seed)
    raw = bytearray(rich_model)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(raw))
        match rng.randrange(4):
            case 0:
                raw[at] = rng.randrange(256)
            case 1:
                raw[at] ^= 1 << rng.randrange(8)
            case 2:
                del raw[at : at + rng.randrange(1, 9)]
            case 3:
                raw[at:at] = rng.randbytes(rng.randrange(1, 9))
    error = opened_or_refused(saved(tmp_path, bytes(raw)))
    assert error is None or (error.where and error.next)


def messages_in(message: Any) -> list[Any]:
    found = [message]
    for field, content in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in content if field.is_repeated else [content]:
                found += messages_in(part)
    return found


def bend(message: Any, rng: random.Random, names: Sequence[str]) -> None:
    """Change one field: take it away, give it another value of its type, or repeat a part of it."""
    field = rng.choice(message.DESCRIPTOR.fields)
    odd = {
        field.TYPE_STRING: [*names, "", "-1", "../w", "9" * 30],
        field.TYPE_BYTES: [b"", b"\0", bytes(3000)],
        field.TYPE_FLOAT: [0.0, float("nan")],
        field.TYPE_DOUBLE: [0.0],
        field.TYPE_ENUM: [] if field.enum_type is None else list(field.enum_type.values_by_number),
    }.get(field.type, [0, 1, 2, 7, 200, 2**31 - 1] + [-1, 2**62, -(2**63)] * (field.type == field.TYPE_INT64))
    whole = getattr(message, field.name)
    if not field.is_repeated and field.type != field.TYPE_MESSAGE and rng.random() < 0.8:
        setattr(message, field.name, rng.choice(odd))
    elif field.is_repeated and field.type != field.TYPE_MESSAGE and rng.random() < 0.6:
        whole.append(rng.choice(odd))
    elif field.is_repeated and len(whole) and rng.random() < 0.7:
        part = rng.randrange(len(whole))
        if rng.random() < 0.5:
            del whole[part]
        else:
            whole.extend([whole[part]])
    elif field.is_repeated and field.type == field.TYPE_MESSAGE and rng.random() < 0.5:
        whole.add()
    else:
        message.ClearField(field.name)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_changed_fields_give_a_graph_or_an_error_for_the_user(tmp_path, rich_model, seed):
    rng, proto = random.Random(seed), onnx.ModelProto.FromString(rich_model)
    names = sorted({name for n in proto.graph.node for name in (*n.input, *n.output, n.op_type)})
    for _ in range(rng.choice([1, 1, 2, 4])):
        bend(rng.choice(messages_in(proto)), rng, names)
    error = opened_or_refused(saved(tmp_path, proto))
    assert error is None or (error.where and error.next)


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


# --- tensors ------------------------------------------------------------------------------------------------------------


def changed(array: Any = None, **fields: Any) -> onnx.TensorProto:
    made = tensor("w", np.ones((2, 3), np.float32) if array is None else array)
    for key, entry in fields.items():
        if isinstance(entry, list):
            del getattr(made, key)[:]
            getattr(made, key).extend(entry)
        else:
            setattr(made, key, entry)
    return made


@pytest.mark.parametrize(
    ("made", "part"),
    [
        (changed(raw_data=b"123"), "FLOAT[2, 3] takes 24 bytes, 3 are there"),
        (changed(dims=[2, 4]), "takes 32 bytes, 24 are there"),
        (changed(dims=[-2, -3]), "shape [-2, -3]"),
        (changed(dims=[2**62, 2**62]), "shape [4611686018427387904"),
        (changed(dims=[0, 2**62, 2**62]), "shape [0, 4611686018427387904"),
        (changed(data_type=0), "unknown dtype 0"),
        (changed(data_type=99), "unknown dtype 99"),
        (TensorProto(name="w", data_type=1, dims=[3], float_data=[1, 2, 3, 4]), "takes 3 numbers, 4 are there"),
        (TensorProto(name="w", data_type=1, dims=[2]), "takes 2 numbers, 0 are there"),
        (TensorProto(name="w", data_type=22, dims=[3], int32_data=[1]), "takes 2 numbers, 1 are there"),
        (TensorProto(name="w", data_type=8, dims=[2], string_data=[b"a"]), "takes 2 numbers, 1 are there"),
        (
            TensorProto(name="w", data_type=1, dims=[1], float_data=[1], int64_data=[1]),
            "several fields: float_data, int64_data",
        ),
        (changed(float_data=[1.0] * 6), "several fields: raw_data, float_data"),
        (changed(raw_data=b"\0" * 4096), "takes 24 bytes, 4,096 are given"),
    ],
)
def test_tensors_whose_bytes_do_not_fit_are_refused(tmp_path, made, part):
    error = refused(saved(tmp_path, model([node("Add", ["x", "w"], ["y"])], tensors=[made])), CheckpointError, part)
    assert "'w'" in error.where
    inner = branch([node("Add", ["x", "w"], ["r"])], "r", [made])
    refused(saved(tmp_path, model([choice(inner)], tensors=[YES])), CheckpointError, part)


def test_segments_are_refused(tmp_path):
    made = changed()
    made.segment.begin, made.segment.end = 0, 1
    refused(saved(tmp_path, model([relu()], tensors=[made])), CheckpointError, "segments")


def with_external(folder: Path, made: onnx.TensorProto, content: bytes | None = None) -> Path:
    """y = x + w with w elsewhere; `content` is in w.bin."""
    folder.mkdir(exist_ok=True)
    if content is not None:
        (folder / "w.bin").write_bytes(content)
    return saved(folder, add_weight(tensors=[made]))


@pytest.mark.parametrize(
    ("made", "part"),
    [
        (external("w", "none.bin"), "missing: 'none.bin'"),
        (external("w", "../w.bin"), "must lie in the folder"),
        (external("w", "a/../w.bin"), "must lie in the folder"),
        (external("w", "/etc/passwd"), "must lie in the folder"),
        (external("w", ""), "must lie in the folder"),
        (external("w", "w.bin\0"), "must lie in the folder"),
        (external("w", "w.bin", offset=1), "ends at byte 4,801, the file has 4,800"),
        (external("w", "w.bin", offset=10**18), "too short"),
        (external("w", "w.bin", offset=-1), "offset is '-1', which is no size"),
        (external("w", "w.bin", offset="9" * 30), "which is no size"),
        (external("w", "w.bin", length="0x10"), "length is '0x10'"),
        (external("w", "w.bin", length=4799), "takes 4,800 bytes, 4,799 are given"),
        (external("w", "w.bin/x"), "cannot be read"),
        (external("w", "."), "is none"),
    ],
)
def test_external_data_that_cannot_be_used_is_refused(tmp_path, made, part):
    refused(with_external(tmp_path, made, bytes(4800)), CheckpointError, part, "'w'")


def test_external_data_in_two_places_or_of_strings_is_refused(tmp_path):
    twice = external("w", "w.bin")
    twice.external_data.add(key="location", value="v.bin")
    refused(with_external(tmp_path, twice, bytes(4800)), CheckpointError, "several places")
    both = external("w", "w.bin", (2, 3))
    both.raw_data = bytes(24)
    refused(with_external(tmp_path, both, bytes(4800)), CheckpointError, "several places")
    large = external("w", "w.bin")
    large.raw_data = bytes(4800)
    refused(with_external(tmp_path, large, bytes(4800)), CheckpointError, "several places")
    strings = external("w", "w.bin")
    strings.data_type = TensorProto.STRING
    refused(with_external(tmp_path, strings, bytes(4800)), CheckpointError, "strings")


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4800))
    path = with_external(tmp_path / "m", external("w", "w.bin"))
    (path.parent / "w.bin").symlink_to(tmp_path / "secret")
    refused(path, CheckpointError, "symbolic link that leaves it", "cp -rL")
    folder = with_external(tmp_path / "n", external("w", "sub/secret"))
    (folder.parent / "sub").symlink_to(tmp_path)
    refused(folder, CheckpointError, "symbolic link that leaves it")


def test_a_download_cache_of_links_passes_as_in_onnxruntime(tmp_path):
    """Snapshot folders of links into one folder of blobs, the model's own file included."""
    blobs = with_external(tmp_path / "blobs", external("w", "w.bin"), weight("w").raw_data)
    (tmp_path / "snapshot").mkdir()
    for name in ("m.onnx", "w.bin"):
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{name}")
    assert blobs.exists()
    port = assert_ported(tmp_path / "snapshot" / "m.onnx", tmp_path)
    assert port.manifest["weights"]["linked_bytes"] == 4800


# --- weights ------------------------------------------------------------------------------------------------------------


def test_embedded_weights_are_linked_at_any_offset(tmp_path):
    offsets = set()
    for length in range(4):
        made = add_weight()
        made.graph.name = "g" * (length + 1)
        path = saved(tmp_path, made)
        port = assert_ported(path, tmp_path)
        assert port.manifest["weights"] == {"linked_bytes": 4800, "written_bytes": 0, "not_linked": {}}
        assert os.path.samefile(port.path / "weights" / "m.onnx", path)
        offsets.add(int(parse_model(path).graph.initializer[0].external_data[1].value) % 4)
    assert offsets == {0, 1, 2, 3}


@pytest.mark.parametrize("weights", ["link", "copy"])
def test_external_weights_are_linked_or_copied(tmp_path, weights):
    content = b"abc" + weight("w").raw_data
    path = with_external(tmp_path, external("w", "w.bin", offset=3, length=4800), content)
    port = assert_ported(path, tmp_path, weights=weights)
    assert port.manifest["weights"]["linked_bytes"] == (4800 if weights == "link" else 0)
    assert [p.name for p in OnnxFile(path).files] == ["m.onnx", "w.bin"]


def test_small_external_tensors_come_into_the_graph(tmp_path):
    small = external("w", "sub/w.bin", (2, 3), offset=4)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(bytes(4) + np.arange(6, dtype=np.float32).tobytes())
    path = saved(tmp_path, model([node("Add", ["x", "w"], ["y"])], tensors=[small]))
    port = assert_ported(path, tmp_path)
    assert port.manifest["weights"]["linked_bytes"] == 0


def test_weights_inside_a_branch_are_copied_and_the_original_stays_loadable(tmp_path):
    """onnxruntime refuses a file with several hard links as external data inside a node."""
    inner = branch([node("Add", ["x", "w"], ["r"])], "r", [external("w", "w.bin")])
    nodes = [choice(inner, output="z"), node("Add", ["z", "v"], ["y"])]
    tensors = [YES, external("v", "w.bin", offset=4800)]
    (tmp_path / "w.bin").write_bytes(weight("w", (80, 30)).raw_data)
    path = saved(tmp_path, model(nodes, [value("x", BIG)], [value("y", BIG)], tensors))
    port = assert_ported(path, tmp_path)
    assert port.manifest["weights"]["linked_bytes"] == 0 and (tmp_path / "w.bin").stat().st_nlink == 1


def test_read_proto_of_a_linked_file_runs_from_its_bytes(tmp_path):
    """Its weights are external data of the file itself, those inside nodes apart, so that onnxruntime follows them."""
    inner = branch([node("Add", ["x", "w"], ["r"])], "r", [weight("w")])
    nodes = [choice(inner, output="z"), node("Constant", [], ["k"], value=weight("k", seed=2)), node("Add", ["z", "k"], ["s"])]
    nodes += [node("Add", ["s", "v"], ["y"])]
    path = saved(tmp_path, model(nodes, [value("x", BIG)], [value("y", BIG)], [YES, weight("v", seed=1)]))
    os.link(path, tmp_path / "second name")
    proto = read_proto(path)
    assert proto.graph.initializer[1].data_location == TensorProto.EXTERNAL
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    feeds = feeds_of(OnnxFile(path))
    got = onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)[0]
    np.testing.assert_array_equal(got, plain_run(path, feeds)["y"])


DTYPES = ["float32", "float64", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"]
DTYPES += ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("typed", [False, True])
def test_weights_of_every_dtype_come_out_bit_for_bit(tmp_path, dtype, typed):
    numpy_dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 9, (7, 301)).astype(numpy_dtype)
    kind = helper.np_dtype_to_tensor_dtype(numpy_dtype)
    if typed:
        flat = array.reshape(-1)
        held = helper.make_tensor("w", kind, array.shape, flat if numpy_dtype.kind != "b" else flat.astype(int))
        assert not held.HasField("raw_data")
    else:
        held = helper.make_tensor("w", kind, array.shape, array.tobytes(), raw=True)
    nodes = [relu(), node("Cast", ["w"], ["z"], to=TensorProto.FLOAT)]
    path = saved(
        tmp_path, model(nodes, outputs=[value("y"), value("z", None)], tensors=[held], opsets=[("", 19)], ir_version=9)
    )
    source = OnnxFile(path)
    found = stream_of(source.graph().model.graph.initializers["w"].const_value)
    assert found is not None and (found[0].stored is None) == typed
    got = np.concatenate([arrays[0] for _, _, arrays in found[0].stripes()])
    assert got.dtype == numpy_dtype
    np.testing.assert_array_equal(got.view(np.uint8), array.view(np.uint8))
    if dtype != "uint16":  # onnxruntime casts all of these but that one from constants
        assert_ported(path, tmp_path)


def test_what_has_no_stream_stays_in_the_graph(tmp_path):
    four = TensorProto(name="four", data_type=TensorProto.INT4, dims=[4000], raw_data=bytes(range(250)) * 8)
    words = helper.make_tensor("words", TensorProto.STRING, [400], [b"word"] * 400)
    outputs = [value("y"), value("f", None), value("count", None, TensorProto.INT64)]
    nodes = [relu(), node("Cast", ["four"], ["f"], to=TensorProto.FLOAT), node("Shape", ["words"], ["count"])]
    made = model(nodes, outputs=outputs, tensors=[four, words], opsets=[("", 21)], ir_version=10)
    graph = OnnxFile(saved(tmp_path, made)).graph().model.graph
    assert all(stream_of(v.const_value) is None for v in graph.initializers.values())
    assert_ported(saved(tmp_path, made), tmp_path)


def test_nan_weights_are_refused_and_infinite_ones_pass(tmp_path):
    array = np.zeros(BIG, np.float32)
    array[3, 4] = -np.inf
    assert_ported(saved(tmp_path, add_weight(tensors=[tensor("w", array)])), tmp_path)
    array[3, 4] = np.nan
    source = OnnxFile(saved(tmp_path, add_weight(tensors=[tensor("w", array)])))
    with pytest.raises(CheckpointError, match=r"'w' holds nan at \[3, 4\]"):
        write_port(source.graph(), tmp_path / "nan.port", MANIFEST, Source("onnx", tuple(source.files)))


def test_large_constants_become_initializers_and_small_ones_stay(tmp_path):
    small = node("Constant", [], ["s"], value=tensor("", np.float32(2)))
    nodes = [
        node("Constant", [], ["k"], value=weight("k")),
        small,
        node("Add", ["x", "k"], ["a"]),
        node("Mul", ["a", "s"], ["y"]),
    ]
    path = saved(tmp_path, model(nodes, [value("x", BIG)], [value("y", BIG)]))
    source = OnnxFile(path)
    assert [n.op_type for n in source.graph().model.graph] == ["Constant", "Add", "Mul"]
    assert source.accounting() == {"used": ["k"], "dropped": [], "parameters": 1200}
    assert assert_ported(path, tmp_path).manifest["weights"]["linked_bytes"] == 4800


def test_tensors_that_nobody_reads_are_named_as_dropped(tmp_path):
    inner = branch([node("Add", ["x", "w"], ["r"])], "r", [weight("inside")])
    path = saved(tmp_path, model([choice(inner)], [value("x", BIG)], [value("y", BIG)], [YES, weight("w"), weight("idle")]))
    source = OnnxFile(path)
    found = source.accounting()
    assert found["used"] == ["c", "w"] and found["parameters"] == 1201
    assert {entry["name"] for entry in found["dropped"]} == {"idle", "inside"}
    assert all(entry["reason"] == "no node reads it" for entry in found["dropped"])
    assert_ported(path, tmp_path)


def sparse(values: Sequence[float], places: Any, dims: Sequence[int], name: str = "w") -> onnx.SparseTensorProto:
    made = helper.make_tensor(name, TensorProto.FLOAT, [len(values)], values)
    return helper.make_sparse_tensor(made, tensor("", np.array(places, np.int64)), dims)


@pytest.mark.parametrize("places", [[0, 5], [[0, 0], [1, 2]]])
def test_sparse_tensors_are_written_out(tmp_path, places):
    as_initializer = model([node("Add", ["x", "w"], ["y"])], sparse_initializer=[sparse([3.0, 4.0], places, [2, 3])])
    assert_ported(saved(tmp_path, as_initializer), tmp_path)
    constant = node("Constant", [], ["k"], sparse_value=sparse([3.0, 4.0], places, [2, 3]))
    assert_ported(saved(tmp_path, model([constant, node("Add", ["x", "k"], ["y"])])), tmp_path)
    path = saved(tmp_path, as_initializer)
    np.testing.assert_array_equal(
        OnnxFile(path).graph().model.graph.initializers["w"].const_value.numpy(), [[3, 0, 0], [0, 0, 4]]
    )


@pytest.mark.parametrize(
    ("made", "kind", "part"),
    [
        (sparse([1.0, 2.0], [0, 6], [2, 3]), CheckpointError, "do not fit its shape"),
        (sparse([1.0, 2.0], [-1, 0], [2, 3]), CheckpointError, "do not fit its shape"),
        (sparse([1.0, 2.0], [0], [2, 3]), CheckpointError, "do not fit its shape"),
        (sparse([1.0], [[0, 3]], [2, 3]), CheckpointError, "do not fit its shape"),
        (sparse([1.0], [0], [1 << 20, 1 << 10]), UnsupportedModel, "268,435,456 bytes in all"),
        (sparse([1.0], [0], [2**62, 2**62]), CheckpointError, "shape"),
    ],
)
def test_sparse_tensors_that_do_not_fit_are_refused(tmp_path, made, kind, part):
    refused(saved(tmp_path, model([node("Add", ["x", "w"], ["y"])], sparse_initializer=[made])), kind, part, "'w'")


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
