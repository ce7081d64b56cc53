"""Opening a port that was moved, damaged, or made by somebody who means harm: a PortError, never anything else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from porting import port_folder
from porting.errors import PortError
from porting.port_folder import open_port, read_manifest, sha256_of
from tests.small_ports import convert_folder, random_tensors, write_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A port with linked and written weights."""
    folder = tmp_path_factory.mktemp("made")
    source = write_folder(folder / "source", random_tensors({"matrix": (64, 64), "vector": (8192,)}))
    convert_folder(source, folder / "port", quantize=True)
    return folder / "port"


@pytest.fixture
def port(made: Path, tmp_path: Path) -> Path:
    """A copy of it, times kept."""
    return Path(shutil.copytree(made, tmp_path / "port"))


def edit(port: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite port.json."""
    manifest = json.loads((port / "port.json").read_text())
    change(manifest)
    (port / "port.json").write_text(json.dumps(manifest))


def list_again(port: Path, name: str) -> None:
    """Make port.json agree with a file, as somebody who means harm would."""
    found = (port / name).stat()

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"] = [f for f in manifest["files"] if f["path"] != name]
        entry = {"path": name, "size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": sha256_of(port / name)}
        manifest["files"].append(entry)

    edit(port, change)


def entry(port: Path, name: str) -> dict[str, Any]:
    return next(f for f in json.loads((port / "port.json").read_text())["files"] if f["path"] == name)


# --- changed, moved, incomplete -------------------------------------------------------------------------------------


def test_a_port_opens_where_it_was_copied_to(port: Path) -> None:
    opened = open_port(port)
    opened.verify()
    assert opened.side_file("tokenizer.json") == b'{"version": "1.0"}'
    assert opened.side_file("evidence/verdict.json") is None
    assert opened.identity() == sha256_of(port / "port.json")
    assert [o.name for o in opened.program().outputs][-1] == "out.vector"


def test_a_link_to_the_folder_itself_is_the_users_choice(port: Path) -> None:
    (port.parent / "latest").symlink_to("port")
    open_port(port.parent / "latest").verify()


@pytest.mark.parametrize("name", ["weights/weights.bin", "weights/model.safetensors", "model.onnx", "tokenizer.json"])
def test_a_touched_file_is_hashed(port: Path, name: str) -> None:
    os.utime(port / name, ns=(1, 1))
    open_port(port)
    data = bytearray((port / name).read_bytes())
    data[-1] ^= 1
    (port / name).write_bytes(data)
    with pytest.raises(PortError, match=f"has changed: {name} should have sha256"):
        open_port(port)


def test_a_change_that_keeps_size_and_time_is_found_by_verify(port: Path) -> None:
    path = port / "weights/weights.bin"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    opened = open_port(port)
    with pytest.raises(PortError, match=r"has changed: weights/weights\.bin"):
        opened.verify()


def test_a_file_of_another_size_is_refused_without_hashing(port: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (port / "weights/weights.bin").open("ab") as file:
        file.write(b"x")
    monkeypatch.setattr(port_folder, "sha256_of", None)
    with pytest.raises(PortError, match=r"should be \d+ bytes, is \d+"):
        open_port(port)


@pytest.mark.parametrize("name", ["weights/weights.bin", "model.onnx", "tokenizer.json", "weights"])
def test_a_missing_file(port: Path, name: str) -> None:
    (shutil.rmtree if (port / name).is_dir() else os.unlink)(port / name)
    with pytest.raises(PortError, match="missing: "):
        open_port(port)


def test_what_is_no_port_says_so(port: Path) -> None:
    for path, text in {
        port.parent / "nowhere": "no such port",
        port / "port.json": "this is a file",
        port / "weights": r"has no port\.json",
    }.items():
        with pytest.raises(PortError, match=text):
            open_port(path)


# --- port.json --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"schema": "porting.port/1"}',
        b'{"schema": "porting.port/2"}',
        b'{"schema": ["porting.port/1"]}',
        b'{"schema": "porting.port/1", "schema": "porting.port/1"}',
        b'{"schema": NaN}',
        b'{"schema": ' + b"9" * 10_000 + b"}",
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_manifest_that_is_none(port: Path, content: bytes) -> None:
    (port / "port.json").write_bytes(content)
    with pytest.raises(PortError) as caught:
        open_port(port)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 1000


def test_a_key_that_is_there_twice(port: Path) -> None:
    """Which of both a reader takes is its own choice."""
    text = (port / "port.json").read_text()
    (port / "port.json").write_text(text.replace("{", '{"kind": "other",', 1))
    with pytest.raises(PortError, match="a key occurs twice"):
        open_port(port)


def test_a_manifest_that_is_too_large_is_not_read(port: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_folder, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(PortError, match="larger than 100 bytes"):
        open_port(port)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../source/model.safetensors",
        "weights/../../source/model.safetensors",
        "..",
        ".",
        "",
        "./tokenizer.json",
        "weights//weights.bin",
        "weights/",
        "..\\secret",
        "C:/secret",
        "C:\\secret",
        "a\0b",
        "a\nb",
        "\ud800",
        "x" * 5000,
        "port.json",
        "tokenizer.json",
    ],
)
def test_a_listed_path_that_leaves_the_folder_or_is_spelt_twice(port: Path, path: str) -> None:
    hostile = {**entry(port, "tokenizer.json"), "path": path}
    edit(port, lambda manifest: manifest["files"].append(hostile))
    with pytest.raises(PortError, match=r"may not|missing"):
        open_port(port)


@pytest.mark.parametrize("size", [-1, 0, 1.0, True, "1", None, 10**30])
def test_a_size_that_is_none(port: Path, size: Any) -> None:
    edit(port, lambda manifest: manifest["files"][0].update(size=size))
    with pytest.raises(PortError, match=r"malformed|has changed"):
        open_port(port)


@pytest.mark.parametrize("name", ["tokenizer.json", "weights/model.safetensors", "model.onnx", "port.json", "weights"])
def test_symbolic_links_are_refused(port: Path, name: str) -> None:
    (port / name).rename(port.parent / "elsewhere")
    (port / name).symlink_to(port.parent / "elsewhere")
    with pytest.raises(PortError, match="symbolic links"):
        open_port(port)


def test_a_pipe_does_not_hold_us(port: Path) -> None:
    for name in ("tokenizer.json", "port.json"):
        (port / name).unlink()
        os.mkfifo(port / name)
        with pytest.raises(PortError, match="is no file"):
            open_port(port)


def field_edits() -> list[Any]:
    """(where, value) that a field of port.json may not have."""
    return [
        (("inputs",), [{"name": "x"}]),
        (("inputs",), [[[["x"]]]]),
        (("outputs", 0, "shape"), "ab"),
        (("outputs", 0, "shape"), [1.5]),
        (("outputs", 0, "shape"), [-1]),
        (("outputs", 0, "name"), 3),
        (("outputs", 0, "dtype"), None),
        (("state", "pairs"), [{}]),
        (("state", "pairs"), 7),
        (("state", "pairs"), [{"input": "a", "output": "b", "axis": "1"}]),
        (("state", "length"), 3),
        (("state", "advance"), "ab"),
        (("state", "advance"), ["a", 1e400]),
        (("state", "advance"), ["a"]),
        (("defaults",), {"x": "1"}),
        (("defaults",), {"x": True}),
        (("min_runtime",), {"onnxruntime": 1.28}),
        (("files",), []),
        (("files", 0), "model.onnx"),
        (("files", 0, "sha256"), "0" * 63),
        (("config",), None),
    ]


@pytest.mark.parametrize(("where", "value"), field_edits(), ids=str)
def test_a_field_of_the_wrong_kind(port: Path, where: tuple[Any, ...], value: Any) -> None:
    def change(manifest: Any) -> None:
        for key in where[:-1]:
            manifest = manifest[key]
        manifest[where[-1]] = value

    edit(port, change)
    with pytest.raises(PortError):
        open_port(port)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["..", "/", "model.onnx"]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)


def paths_of(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, child in items for found in [(*prefix, key), *paths_of(child, (*prefix, key))]]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_manifests_open_or_raise_port_errors(made: Path, data: st.DataObject) -> None:
    """One to three values of a good port.json are replaced by any JSON value, or removed."""
    manifest = json.loads((made / "port.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(paths_of(manifest)))
        place = manifest
        for key in way:
            place = place[key]
        if data.draw(st.booleans()):
            place[last] = data.draw(json_values)
        else:
            del place[last]
    folder = made.parent / "fuzzed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder, copy_function=os.link)
    (folder / "port.json").unlink()
    (folder / "port.json").write_text(json.dumps(manifest))
    try:
        opened = open_port(folder)
    except PortError:
        return
    opened.program()
    assert all(not Path(f["path"]).is_absolute() and ".." not in f["path"] for f in opened.manifest["files"])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
def test_fuzzed_bytes_are_no_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "port.json").write_bytes(content)
    with pytest.raises(PortError):
        read_manifest(tmp_path / "port.json")


# --- model.onnx -------------------------------------------------------------------------------------------------------


def with_tensor(port: Path, change: Callable[[onnx.ModelProto, onnx.TensorProto], None]) -> None:
    """Change model.onnx and its first external tensor, and make port.json agree."""
    model = onnx.load(str(port / "model.onnx"), load_external_data=False)
    change(model, next(t for t in model.graph.initializer if t.external_data))
    (port / "model.onnx").write_bytes(model.SerializeToString())
    list_again(port, "model.onnx")


def set_place(tensor: onnx.TensorProto, **values: str | None) -> None:
    kept = {e.key: e.value for e in tensor.external_data} | values
    del tensor.external_data[:]
    for key, value in kept.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize(
    "values",
    [
        {"location": "/etc/passwd"},
        {"location": "../source/model.safetensors"},
        {"location": "weights/../../source/model.safetensors"},
        {"location": "./weights/weights.bin"},
        {"location": "weights\\weights.bin"},
        {"location": "evidence/unlisted.bin"},
        {"location": "port.json"},
        {"location": ""},
        {"location": None},
        {"location": "*/_ORT_MEM_ADDR_/*", "offset": "4096"},  # onnxruntime's own mark for an address in memory
        {"offset": "1000000"},
        {"offset": "-1"},
        {"offset": "0x10"},
        {"offset": " 1"},
        {"offset": "1_0"},
        {"offset": "\u0661"},
        {"offset": "9" * 5000},
        {"offset": None},
        {"length": "1000000"},
        {"length": "-1"},
        {"length": ""},
        {"length": None},
    ],
    ids=lambda values: str(values)[:60],
)
def test_external_data_outside_the_listed_files(port: Path, values: dict[str, str | None]) -> None:
    (port / "evidence").mkdir()
    (port / "evidence" / "unlisted.bin").write_bytes(bytes(1 << 20))
    with_tensor(port, lambda model, tensor: set_place(tensor, **values))
    with pytest.raises(PortError, match=r"model\.onnx: tensor 'matrix\.codes'"):
        open_port(port)


def test_a_place_that_is_given_twice(port: Path) -> None:
    """Which of both a reader takes is its own choice."""
    with_tensor(
        port,
        lambda model, tensor: tensor.external_data.insert(0, onnx.StringStringEntryProto(key="location", value="/etc/passwd")),
    )
    with pytest.raises(PortError, match="needs one location"):
        open_port(port)


def hidden_in_a_constant(model: onnx.ModelProto, bad: onnx.TensorProto) -> None:
    model.graph.node.add(op_type="Constant", output=["c"]).attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=bad)


def hidden_in_a_list(model: onnx.ModelProto, bad: onnx.TensorProto) -> None:
    model.graph.node.add(op_type="Odd").attribute.add(name="many", type=onnx.AttributeProto.TENSORS, tensors=[bad])


def hidden_in_a_branch(model: onnx.ModelProto, bad: onnx.TensorProto) -> None:
    body = onnx.GraphProto(name="body", initializer=[bad])
    model.graph.node.add(op_type="If").attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH, g=body)


def hidden_in_a_function(model: onnx.ModelProto, bad: onnx.TensorProto) -> None:
    model.functions.add(name="f", domain="d").node.add(op_type="Constant").attribute.add(name="value", t=bad)


def hidden_as_sparse(model: onnx.ModelProto, bad: onnx.TensorProto) -> None:
    model.graph.sparse_initializer.add(values=bad)


def hidden_in_training(model: onnx.ModelProto, bad: onnx.TensorProto) -> None:
    model.training_info.add(initialization=onnx.GraphProto(initializer=[bad]))


@pytest.mark.parametrize(
    "hide",
    [hidden_in_a_constant, hidden_in_a_list, hidden_in_a_branch, hidden_in_a_function, hidden_as_sparse, hidden_in_training],
)
def test_external_data_is_found_wherever_it_hides(
    port: Path, hide: Callable[[onnx.ModelProto, onnx.TensorProto], None]
) -> None:
    bad = onnx.TensorProto(name="bad", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    set_place(bad, location="/etc/passwd", offset="0", length="4")
    with_tensor(port, lambda model, tensor: hide(model, bad))
    with pytest.raises(PortError, match=r"tensor 'bad' lies in '/etc/passwd'"):
        open_port(port)


@pytest.mark.parametrize("content", [b"not onnx", b"\x0a\xff\xff\xff\xff\x0f", b"\x3a\x04\x0a\x02\x62\x00" * 3 + b"\xff"])
def test_a_model_that_is_none(port: Path, content: bytes) -> None:
    (port / "model.onnx").write_bytes(content)
    list_again(port, "model.onnx")
    with pytest.raises(PortError, match=r"model\.onnx is no ONNX model"):
        open_port(port)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), min_size=1, max_size=8))
def test_fuzzed_models_open_or_raise_port_errors(made: Path, flips: list[tuple[int, int]]) -> None:
    """Flipped bytes, with a port.json that agrees: what opens points at nothing but listed files."""
    folder = made.parent / "fuzzed-model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder, copy_function=os.link)
    data = bytearray((folder / "model.onnx").read_bytes())
    for at, bits in flips:
        data[at % len(data)] ^= bits
    for name, content in (("model.onnx", bytes(data)), ("port.json", (made / "port.json").read_bytes())):
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    list_again(folder, "model.onnx")
    try:
        opened = open_port(folder)
    except PortError:
        return
    listed = {f["path"] for f in opened.manifest["files"]}
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    assert {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"} <= listed
