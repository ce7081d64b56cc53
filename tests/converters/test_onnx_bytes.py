"""Reading the bytes of .onnx files: what is read and what stays, files that are none, cut short, too large or changed at random."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from porting.converters.checkpoints.onnx_file import OnnxFile
from porting.converters.checkpoints.onnx_wire import parse_model
from porting.errors import CheckpointError, PortingError, UnsupportedModel
from porting.weights import stream_of
from tests.onnx_files import (
    BIG,
    YES,
    add_weight,
    assert_ported,
    branch,
    choice,
    model,
    node,
    refused,
    relu,
    saved,
    tensor,
    value,
    weight,
)


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
