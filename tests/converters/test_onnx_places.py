"""Where an .onnx file says that its tensors lie, and functions that are called like operators: what is taken at its word and what not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from porting.converters.checkpoints import onnx_tensors
from porting.converters.checkpoints.onnx_file import OnnxFile, read_proto
from porting.errors import CheckpointError, UnsupportedModel

W = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
BYTES = b"before" + W.tobytes() + b"after"
SHA1 = hashlib.sha1(BYTES).hexdigest()


def outside(folder: Path, in_body: bool = False, **place: str) -> Path:
    """y = x w, w in another file."""
    (folder / "w.bin").write_bytes(BYTES)
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[8, 8], data_location=TensorProto.EXTERNAL)
    for key, entry in {"location": "w.bin", "offset": "6", "length": "256", **place}.items():
        tensor.external_data.add(key=key, value=entry)
    nodes, weights = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], [tensor]
    if in_body:
        inner = helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [tensor])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner, name="choice")]
        weights = [numpy_helper.from_array(np.asarray(True), "c")]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], weights)
    path = folder / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return path


@pytest.mark.parametrize("in_body", [False, True])
@pytest.mark.parametrize("checksum", [SHA1, SHA1.upper()])
def test_a_file_with_the_checksum_that_the_model_states_is_taken(tmp_path: Path, checksum: str, in_body: bool) -> None:
    path = outside(tmp_path, in_body, checksum=checksum)
    read_proto(path)
    OnnxFile(path).close()


@pytest.mark.parametrize("in_body", [False, True])
@pytest.mark.parametrize("checksum", ["0" * 40, "", hashlib.sha256(BYTES).hexdigest(), hashlib.sha1(W.tobytes()).hexdigest()])
def test_another_file_than_the_checksum_says_is_refused(tmp_path: Path, checksum: str, in_body: bool) -> None:
    """ONNX: the SHA1 of the whole file."""
    path = outside(tmp_path, in_body, checksum=checksum)
    for read in (read_proto, OnnxFile):
        with pytest.raises(CheckpointError, match=f"w.bin is not the file .*{SHA1}") as caught:
            read(path)  # type: ignore[operator]
        assert "tensor 'w'" in caught.value.where


def test_a_file_that_changed_since_it_was_hashed_is_hashed_again(tmp_path: Path) -> None:
    path = outside(tmp_path, checksum=SHA1)
    read_proto(path)
    (tmp_path / "w.bin").write_bytes(BYTES + b"X")
    with pytest.raises(CheckpointError, match="not the file"):
        read_proto(path)


def test_a_file_is_hashed_once_and_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    read = onnx_tensors.read_exactly

    def counted(fd: int, offset: int, nbytes: int, path: Path) -> np.ndarray:
        sizes.append(nbytes)
        return read(fd, offset, nbytes, path)

    monkeypatch.setattr(onnx_tensors, "read_exactly", counted)
    monkeypatch.setattr(onnx_tensors, "HASHED_AT_ONCE", 100)
    path = outside(tmp_path, checksum=SHA1)
    for _ in range(3):
        read_proto(path)
    assert sizes == [100, 100, 67]


@pytest.mark.parametrize("key", ["basepath", "Checksum", "odd", ""])
def test_unknown_keys_of_external_data_are_refused(tmp_path: Path, key: str) -> None:
    path = outside(tmp_path, **{key: "1"})
    with pytest.raises(CheckpointError, match=f"unknown key '{key}'") as caught:
        read_proto(path)
    assert "checksum, length, location, offset" in caught.value.next
    with pytest.raises(Exception, match="model format error"):
        onnxruntime.InferenceSession(str(path))


def test_weights_that_onnxruntime_packed_beside_a_tensor_are_left_alone(tmp_path: Path) -> None:
    path = outside(tmp_path, prepacked_0="w|6|256|key")
    onnxruntime.InferenceSession(str(path))
    source = OnnxFile(path)
    value = source.graph().model.graph.initializers["w"]
    assert value.const_value is not None and np.array_equal(value.const_value.numpy(), W)
    source.close()


# --- functions with the name of an operator -----------------------------------------------------------------------------


def with_function(folder: Path, domain: str, name: str) -> Path:
    """y = f(x), and f(a) = a a."""
    text = f"""
    <ir_version: 9, opset_import: ["" : 17, "{domain}" : 1]>
    test (float[N, 8] x) => (float[N, 8] y) {{ y = {domain}.{name}(x) }}
    <domain: "{domain}", opset_import: ["" : 17]>
    {name} (a) => (b) {{ b = Mul(a, a) }}
    """
    path = folder / "m.onnx"
    path.write_bytes(parser.parse_model(text).SerializeToString())
    return path


def runs_as_written(path: Path) -> bool:
    x = W[:2]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.array_equal(session.run(None, {"x": x})[0], x * x)


@pytest.mark.parametrize("name", ["Gelu", "QuickGelu"])
def test_a_function_in_place_of_which_onnxruntime_runs_its_own_operator_is_refused(tmp_path: Path, name: str) -> None:
    path = with_function(tmp_path, "com.microsoft", name)
    assert not runs_as_written(path)
    for read in (read_proto, OnnxFile):
        with pytest.raises(UnsupportedModel, match=f"the operator {name} of com.microsoft, which onnxruntime runs") as caught:
            read(path)  # type: ignore[operator]
        assert f"function com.microsoft::{name}" in caught.value.where


@pytest.mark.parametrize(("domain", "name"), [("com.microsoft", "Square"), ("my.own", "Gelu"), ("my.own", "Relu")])
def test_a_function_with_a_name_of_its_own_is_taken(tmp_path: Path, domain: str, name: str) -> None:
    path = with_function(tmp_path, domain, name)
    assert runs_as_written(path)
    assert [node.op_type for node in read_proto(path).graph.node] == ["Mul"]


@pytest.mark.parametrize(("domain", "name"), [("ai.onnx.ml", "Normalizer"), ("", "SimplifiedLayerNormalization")])
def test_functions_called_like_other_operators_of_onnxruntime_are_refused(tmp_path: Path, domain: str, name: str) -> None:
    function = helper.make_function(
        domain, name, ["a"], ["b"], [helper.make_node("Mul", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 8]) for n in "xy"]
    graph = helper.make_graph([helper.make_node(name, ["x"], ["y"], domain=domain)], "g", infos[:1], infos[1:])
    imports = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 3)] if domain else [])]
    proto = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=9)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(UnsupportedModel, match=f"the operator {name} of {domain or 'ai.onnx'}"):
        read_proto(path)
    assert isinstance(onnx.load(str(path)), onnx.ModelProto)
