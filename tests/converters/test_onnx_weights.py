"""Tensors of .onnx files: those that cannot be used are refused, the others are linked or copied bit for bit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from porting.converters.checkpoints.onnx_file import OnnxFile, read_proto
from porting.converters.checkpoints.onnx_wire import parse_model
from porting.errors import CheckpointError, UnsupportedModel
from porting.port_writer import Source, write_port
from porting.weights import stream_of
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
    refused,
    relu,
    saved,
    tensor,
    value,
    weight,
)

# --- tensors ------------------------------------------------------------------------------------------------------------


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
