"""Checkpoints that are damaged, lie or attack, from the command line: the right exit code, a clear message, nothing that loads."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny import OWN, make

import porting
from porting import cli
from porting.errors import InputError
from porting.npz import read_npz, write_npz

LLAMA = "LlamaForCausalLM"
assert LLAMA in OWN
WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
SHARD = "model-00001-of-00001.safetensors"

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("checkpoint") / "tiny", LLAMA).folder


# --- how a checkpoint is damaged -----------------------------------------------------------------------------------


def header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Rewrite the JSON header of the safetensors file; the data stays."""

    def damage(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        size = int.from_bytes(data[:8], "little")
        found = json.loads(data[8 : 8 + size])
        found = change(found) or found
        text = json.dumps(found).encode() if isinstance(found, dict) else found
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])

    return damage


def moved(by: int) -> Damage:
    def change(found: dict[str, Any]) -> None:
        start, stop = found["model.norm.weight"]["data_offsets"]
        found["model.norm.weight"]["data_offsets"] = [start + by, stop + by]

    return header(change)


def overlapping(found: dict[str, Any]) -> None:
    found["model.layers.0.input_layernorm.weight"]["data_offsets"] = found["model.norm.weight"]["data_offsets"]


def config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        found = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**found, **changes}))

    return damage


def tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS)

    return damage


def spoiled(value: float) -> Damage:
    def change(found: dict[str, np.ndarray]) -> None:
        found["model.layers.1.mlp.up_proj.weight"][3, 4] = value

    return tensors(change)


def written(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content) and None  # type: ignore[return-value]


def cut(name: str, to: float) -> Damage:
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * to))


def index(weight_map: dict[str, str]) -> Damage:
    def damage(folder: Path) -> None:
        found = dict.fromkeys(load_file(folder / WEIGHTS), SHARD)
        (folder / WEIGHTS).rename(folder / SHARD)  # transformers, like us, looks for the single file first
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {**found, **weight_map}}))

    return damage


def is_a_folder(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def escapes(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder.parent / "outside.safetensors")
    index({"model.norm.weight": "../outside.safetensors"})(folder)


BAD: dict[str, tuple[Damage, str]] = {
    "truncated weights": (cut(WEIGHTS, 0.5), r"model\.safetensors"),
    "truncated in its header": (cut(WEIGHTS, 0.001), r"model\.safetensors"),
    "zero bytes": (cut(WEIGHTS, 0), r"model\.safetensors"),
    "a header longer than the file": (
        written(WEIGHTS, struct.pack("<Q", 1 << 62) + b"{}"),
        r"model\.safetensors",
    ),
    "a header that is no JSON": (header(lambda found: b"[" * 5000), r"model\.safetensors"),
    "an offset past the end": (moved(1 << 40), "model.norm.weight"),
    "a negative offset": (moved(-(1 << 20)), "model.norm.weight"),
    "offsets that overlap": (header(overlapping), "hole|overlap"),
    "a shape that its bytes do not have": (
        header(lambda found: found["model.norm.weight"].update(shape=[49])),
        "model.norm.weight",
    ),
    "a dtype that nobody knows": (header(lambda found: found["model.norm.weight"].update(dtype="F7")), "F7"),
    "a missing shard": (index({"model.norm.weight": "model-00002.safetensors"}), r"model-00002\.safetensors"),
    "an index that names a file outside": (escapes, "outside"),
    "an absolute path in the index": (index({"model.norm.weight": "/etc/passwd"}), "/etc/passwd"),
    "NaN weights": (spoiled(np.nan), r"model\.layers\.1\.mlp\.up_proj\.weight.*nan at \[3, 4\]"),
    "infinite weights": (spoiled(np.inf), r"inf at \[3, 4\]"),
    "a missing tensor": (tensors(lambda found: found.pop("model.norm.weight")), "missing: model.norm.weight"),
    "a tensor too many": (tensors(lambda found: found.update(odd=np.ones(2, np.float32))), "left over: odd"),
    "a folder in place of the weights": (is_a_folder(WEIGHTS), r"model\.safetensors"),
    "a folder in place of the config": (is_a_folder(CONFIG), r"config\.json"),
    "a config that is no JSON": (written(CONFIG, b"{'a': 1}"), r"config\.json"),
    "a config of zero bytes": (written(CONFIG, b""), r"config\.json"),
    "a config that is a list": (written(CONFIG, b"[]"), r"config\.json"),
    "a config without an architecture": (config(architectures=None), "architectures"),
    "an architecture that nobody covers": (config(architectures=["LlamaForCausalLN"]), "did you mean 'LlamaForCausalLM'"),
    "a config with other sizes": (config(intermediate_size=96), r"up_proj\.weight.*\[96, 48\].*\[80, 48\]"),
    "a config with more layers": (config(num_hidden_layers=3), r"missing: .*model\.layers\.2"),
    "a config with fewer layers": (config(num_hidden_layers=1), r"left over: .*model\.layers\.1"),
    "a billion layers": (config(num_hidden_layers=10**9), "num_hidden_layers"),
    "a key that changes the maths": (config(attention_trick="yes"), "attention_trick"),
    "a rope scaling that nobody knows": (config(rope_parameters={"rope_type": "magic", "factor": 2}), "magic"),
    "heads that do not divide": (config(num_key_value_heads=4), "num_key_value_heads"),
    "a vocabulary as text": (config(vocab_size="101"), "vocab_size"),
    "a hidden size that its heads do not divide": (config(hidden_size=50, head_dim=None), "hidden_size 50"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads"),
    "heads as text": (config(num_attention_heads="6"), "num_attention_heads"),
    "a negative epsilon": (config(rms_norm_eps=-1), "rms_norm_eps"),
    "a rope scaling that is no object": (config(rope_parameters="x"), "rope"),
    "rope theta twice": (
        config(rope_theta=1e4, rope_parameters={"rope_type": "default", "rope_theta": 2e4}),
        "rope_theta is given twice",
    ),
    "no positions": (config(max_position_embeddings=0), "max_position_embeddings"),
    "kinds of layers that are not as many": (config(layer_types=["full_attention"]), "layer_types has 1 entries"),
    "a tokenizer that is no JSON": (written("tokenizer.json", b"\xff\xfe"), "tokenizer"),
}


def damaged(good: Path, tmp_path: Path, damage: Damage) -> Path:
    folder = tmp_path / "bad"
    shutil.copytree(good, folder)
    damage(folder)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli._exit_code([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("name", BAD)
def test_a_bad_checkpoint_is_refused_by_name(name: str, good: Path, tmp_path: Path, run: Any) -> None:
    damage, said = BAD[name]
    folder = damaged(good, tmp_path, damage)
    # a tokenizer does not change a weight: `convert` carries it over, and what needs it says what is wrong with it
    commands = ("port",) if "tokenizer" in name else ("convert", "port")
    for command in commands:
        code, out, err = run(command, folder, "-o", tmp_path / "new", "--quiet")
        assert code == 2 and out == "" and err.startswith("error: ") and "Traceback" not in err, err
        assert re.search(said, err, re.DOTALL), err
        assert "\n  next:  " in err, err
        assert not (tmp_path / "new").exists() and not list(tmp_path.rglob("port.json"))


@pytest.mark.parametrize("command", ["convert", "plan", "inspect", "port", "record"])
@pytest.mark.parametrize("name", ["nothing", "empty_folder", "empty_file", "text", "half.gguf"])
def test_what_is_no_checkpoint_at_all(command: str, name: str, tmp_path: Path, run: Any) -> None:
    (tmp_path / "empty_folder").mkdir()
    (tmp_path / "empty_file").touch()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "half.gguf").write_bytes(b"GGUF\x03\x00")
    before = sorted(os.listdir(tmp_path))
    code, out, err = run(
        command, tmp_path / name, *(() if command in ("plan", "inspect") else ("-o", tmp_path / "new")), "--quiet"
    )
    assert code == 2 and out == "" and err.startswith("error: ") and name in err and "\n  next:  " in err, err
    assert sorted(os.listdir(tmp_path)) == before


# --- tokenizers and chat templates: the port is right, what speaks through it is refused ----------------------------

WORDS = {"x": 0, **{f"w{i}": i for i in range(1, 101)}}
TOKENIZER = {
    "version": "1.0",
    "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "x"},
    "pre_tokenizer": {"type": "WhitespaceSplit"},
}
ESCAPES = "{{ ''.__class__.__mro__[1].__subclasses__() }}"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no tokenizer"),
        ({"tokenizer.json": {"version": "1.0", "model": {"type": "Magic"}}}, "tokenizer"),
        ({"tokenizer.json": TOKENIZER, "tokenizer_config.json": {"chat_template": ESCAPES}}, "chat template|unsafe"),
        ({"tokenizer.json": TOKENIZER, "tokenizer_config.json": {"chat_template": "{% for"}}, "chat template"),
        (
            {"tokenizer.json": TOKENIZER, "tokenizer_config.json": {"chat_template": "{{ messages.append(1) }}"}},
            "chat template|unsafe",
        ),
    ],
)
def test_a_port_that_cannot_speak_says_why(files: dict[str, Any], said: str, good: Path, tmp_path: Path, run: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    code, _, err = run("convert", folder, "-o", tmp_path / "port", "--quiet")
    assert code == 0, err
    code, out, err = run("generate", tmp_path / "port", "w1 w2", "--max-new-tokens", "2", "--quiet")
    assert code == 2 and out == "" and re.search(said, err), err


def test_a_tokenizer_of_another_model(good: Path, tmp_path: Path, run: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    larger = {**TOKENIZER, "model": {"type": "WordLevel", "vocab": {**WORDS, "The": 5000}, "unk_token": "x"}}
    (folder / "tokenizer.json").write_text(json.dumps(larger))
    code, _, err = run("port", folder, "-o", tmp_path / "port", "--quiet")
    assert code == 2 and "the tokenizer gives id 5000, the model has 101" in err and not (tmp_path / "port").exists()


# --- resources -----------------------------------------------------------------------------------------------------

PORTING = [sys.executable, "-m", "porting"]


def on_a_full_disk(room: int, *arguments: object) -> dict[str, str]:
    """The error of porting, with exit code 4, where files of `room` bytes fit.

    A limit on the size of files stands in for a full disk: the same errors from the same calls (EFBIG), without a mount.
    """

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    command = [*PORTING, *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode == 4, done.stderr
    error: dict[str, str] = json.loads(done.stdout)["error"]
    assert error["what"].startswith("the disk is full")
    return error


def test_a_full_disk_is_said_and_leaves_nothing(good: Path, tmp_path: Path) -> None:
    error = on_a_full_disk(50_000, "convert", good, "-o", tmp_path / "port", "--weights", "copy")
    assert "`porting convert --resume`" in error["next"]
    assert not list(tmp_path.rglob("port.json"))


def test_a_full_disk_where_nothing_can_be_resumed(good: Path, tmp_path: Path) -> None:
    """`run` has no --resume, so its error does not name one."""
    porting.convert(good, tmp_path / "port")
    np.savez(tmp_path / "x.npz", input_ids=np.ones((1, 3), np.int64))
    before = sorted(os.listdir(tmp_path))
    error = on_a_full_disk(500, "run", tmp_path / "port", "--input", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    assert error["next"] == "free space and run again"
    assert sorted(os.listdir(tmp_path)) == before


# --- arrays from outside -------------------------------------------------------------------------------------------


def npz(tmp_path: Path, **arrays: np.ndarray) -> bytes:
    np.savez(tmp_path / "a.npz", **arrays)
    return (tmp_path / "a.npz").read_bytes()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_npz_crashes_the_reader(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "npz"
    folder.mkdir(exist_ok=True)
    good = npz(folder, a=np.arange(6).reshape(2, 3), b=np.ones(2, np.float32))
    kind = data.draw(st.sampled_from(["cut", "flip", "noise"]))
    if kind == "cut":
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    elif kind == "flip":
        changed = bytearray(good)
        for _ in range(data.draw(st.integers(1, 4))):
            changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
        bad = bytes(changed)
    else:
        bad = b"PK\x03\x04" + data.draw(st.binary(max_size=200))
    (folder / "bad.npz").write_bytes(bad)
    try:
        for array in read_npz(folder / "bad.npz").values():
            assert array.dtype.kind in "biufc"
    except InputError as error:
        if str(folder / "bad.npz") not in error.where:
            raise


def test_an_npz_gives_what_numpy_put_in(tmp_path: Path) -> None:
    arrays = {
        "file": np.arange(6, dtype=np.int16).reshape(2, 3),  # numpy's own writer has arguments of these names
        "allow_pickle": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "big-endian": np.array([1, 2], ">i4"),
        "a/b": np.array([True, False]),
    }
    write_npz(tmp_path / "x.npz", arrays)
    found = read_npz(tmp_path / "x.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype.newbyteorder("=")
        with np.load(tmp_path / "x.npz") as theirs:
            np.testing.assert_array_equal(theirs[name], array)
    assert os.listdir(tmp_path) == ["x.npz"]


def test_a_header_that_claims_a_terabyte(tmp_path: Path) -> None:
    text = b"{'descr': '<i8', 'fortran_order': False, 'shape': (999999999999,), }"
    text += b" " * (117 - len(text)) + b"\n"
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"12345678")
    with pytest.raises(InputError, match="the header says 7999999999992 bytes, the file holds 8"):
        read_npz(tmp_path / "b.npz")


def test_python_callers_get_the_same_errors(good: Path, tmp_path: Path) -> None:
    folder = damaged(good, tmp_path, BAD["NaN weights"][0])
    with pytest.raises(porting.PortingError, match=r"up_proj\.weight"):
        porting.convert(folder, tmp_path / "port")
