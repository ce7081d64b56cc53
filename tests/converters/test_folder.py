"""Hugging Face folders: rows equal the libraries' own loaders, and every way a folder can be wrong is refused by name."""

import gc
import json
import os
import shutil
import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from porting.converters.checkpoints import open as open_module
from porting.converters.checkpoints.folder import FolderCheckpoint
from porting.converters.checkpoints.open import open_checkpoint
from porting.errors import CheckpointError, InputError, PortingError, UsageError
from porting.types import Checkpoint
from porting.weights import source_stream
from tests.unprivileged import as_unprivileged, open_folder

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 4}
WEIGHTS = {
    "embed": torch.randn(7, 4),
    "half": torch.randn(3, 4).half(),
    "brain": torch.randn(2, 3, 4).bfloat16(),
    "double": torch.randn(5).double(),
    "steps": torch.arange(6),
    "mask": torch.tensor([[True, False], [False, True]]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "columns": torch.zeros(4, 0),
}
NAMES = list(WEIGHTS)


def folder_of(path, kind="safetensors", shards=1, config=CONFIG, weights=WEIGHTS):
    """A folder as upstream saves it."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    base, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    save = save_file if kind == "safetensors" else torch.save
    if shards == 1:
        save(dict(weights), path / f"{base}.{suffix}")
        return path
    weight_map = {}
    for i in range(shards):
        part = {name: tensor for n, (name, tensor) in enumerate(weights.items()) if n % shards == i}
        file = f"{base}-{i + 1:05}-of-{shards:05}.{suffix}"
        save(part, path / file)
        weight_map |= dict.fromkeys(part, file)
    (path / f"{base}.{suffix}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


def edited_index(path, change):
    """Apply `change` to the weight_map of the folder's only index."""
    index = next(path.glob("*.index.json"))
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))
    return path


def same(array, tensor):
    """Equal dtype, shape and bytes."""
    bits = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return (str(array.dtype), array.shape, array.tobytes()) == (str(tensor.dtype)[6:], tuple(tensor.shape), bits)


@pytest.mark.parametrize("kind", ["safetensors", "pytorch"])
@pytest.mark.parametrize("shards", [1, 3])
def test_rows_equal_the_libraries_own(tmp_path, kind, shards):
    path = folder_of(tmp_path / "model", kind, shards)
    expected = {}
    for file in (*path.glob("*.safetensors"), *path.glob("*.bin")):
        expected |= load_file(file) if kind == "safetensors" else torch.load(file, weights_only=True)
    with open_checkpoint(path) as checkpoint:
        assert isinstance(checkpoint, Checkpoint)
        assert (checkpoint.format, checkpoint.config, checkpoint.path) == (kind, CONFIG, path)
        assert {f.name for f in checkpoint.files} == {f.name for f in path.iterdir()}
        assert checkpoint.tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            count = tensor.shape[0] if tensor.ndim else 1
            assert same(checkpoint.rows(name, 0, count), tensor)
            if tensor.ndim:
                for start, stop in [(0, 0), (count, count), (count // 2, count), (0, count // 2)]:
                    assert same(checkpoint.rows(name, start, stop), tensor[start:stop])


def test_rows_are_fresh_writeable_and_contiguous(tmp_path):
    checkpoint = FolderCheckpoint(folder_of(tmp_path, "pytorch", weights={"t": WEIGHTS["embed"].t(), "w": WEIGHTS["embed"]}))
    for name in ("t", "w"):
        rows = checkpoint.rows(name, 1, 3)
        assert rows.flags.c_contiguous
        assert rows.flags.writeable
        rows[...] = 0
        assert checkpoint.rows(name, 1, 3).any()


def test_a_stream_of_the_checkpoint_gives_the_tensor(tmp_path):
    """The contract with the writer: what `plain` promises, `source_stream` may hard link."""
    weights = {"plain": WEIGHTS["embed"], "turned": WEIGHTS["embed"].t(), "scalar": WEIGHTS["scalar"]}
    checkpoint = FolderCheckpoint(folder_of(tmp_path, "pytorch", weights=weights))
    for name, tensor in weights.items():
        stream = source_stream(checkpoint, name)
        parts = [arrays[0].reshape(-1) for _, _, arrays in stream.stripes()]
        assert np.array_equal(np.concatenate(parts), tensor.flatten().numpy())
        assert (stream.stored is None) == (name == "turned")
        if stream.stored:
            raw = stream.stored.file.read_bytes()[stream.stored.offset :][: stream.stored.nbytes]
            assert raw == tensor.contiguous().numpy().tobytes()


def test_the_callers_mistakes_are_told_from_bad_input(tmp_path):
    checkpoint = FolderCheckpoint(folder_of(tmp_path))
    with pytest.raises(KeyError):
        checkpoint.rows("nope", 0, 1)
    for start, stop in [(-1, 1), (2, 1), (0, 8)]:
        with pytest.raises(IndexError, match=r"of 'embed', which has 7"):
            checkpoint.rows("embed", start, stop)
    assert checkpoint.rows("scalar", 0, 1).shape == ()
    assert checkpoint.rows("scalar", 0, 0).shape == (0,)


def test_threads_read_the_right_rows(tmp_path):
    weight = torch.arange(4000).reshape(1000, 4)
    checkpoint = FolderCheckpoint(folder_of(tmp_path, weights={"w": weight, "v": weight + 1}))
    wrong = []

    def work(offset):
        for start in range(offset, 1000, 4):
            for name, shift in (("w", 0), ("v", 1)):
                if not np.array_equal(checkpoint.rows(name, start, start + 1)[0], weight[start].numpy() + shift):
                    wrong.append((name, start))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_one_descriptor_per_file_until_close_or_the_end(tmp_path):
    path = folder_of(tmp_path / "model", shards=3)
    gc.collect()
    before = descriptors()
    for end in ("close", "with", "garbage"):
        checkpoint = FolderCheckpoint(path)
        assert descriptors() == before
        for _ in range(3):
            for name in NAMES:
                checkpoint.rows(name, 0, 0)
        assert descriptors() == before + 3
        if end == "close":
            checkpoint.close()
            checkpoint.close()
            with pytest.raises(UsageError, match="the checkpoint is closed"):
                checkpoint.rows("embed", 0, 1)
        elif end == "with":
            with checkpoint:
                pass
        else:
            del checkpoint
            gc.collect()
        assert descriptors() == before


def test_a_file_cut_off_after_opening_is_refused(tmp_path):
    checkpoint = FolderCheckpoint(folder_of(tmp_path))
    os.truncate(tmp_path / "model.safetensors", checkpoint.tensors["embed"].offset + 20)
    with pytest.raises(CheckpointError, match=r"model\.safetensors ends too early: expected 112 bytes from offset \d+, got 20"):
        checkpoint.rows("embed", 0, 7)


@pytest.mark.parametrize("kind", ["safetensors", "pytorch"])
def test_a_byte_that_is_no_bool_is_refused(tmp_path, kind):
    path = folder_of(tmp_path, kind)
    checkpoint = FolderCheckpoint(path)
    tensor = checkpoint.tensors["mask"]
    with open(tensor.file, "r+b") as file:
        file.seek(tensor.offset + 2)
        file.write(b"\x07")
    checkpoint.rows("mask", 0, 1)
    with pytest.raises(CheckpointError, match="a boolean tensor holds the byte 7; expected 0 or 1"):
        checkpoint.rows("mask", 1, 2)


# --- which files -------------------------------------------------------------------------------------------------


def test_safetensors_and_the_whole_file_come_first(tmp_path):
    folder_of(tmp_path, "pytorch", 2)
    assert FolderCheckpoint(tmp_path).files[1].name == "pytorch_model.bin.index.json"
    folder_of(tmp_path, "pytorch")
    assert FolderCheckpoint(tmp_path).files[1].name == "pytorch_model.bin"
    folder_of(tmp_path, "safetensors", 2)
    assert FolderCheckpoint(tmp_path).files[1].name == "model.safetensors.index.json"
    folder_of(tmp_path, "safetensors")
    assert [f.name for f in FolderCheckpoint(tmp_path).files] == ["config.json", "model.safetensors"]


def test_a_cache_made_of_links_is_read(tmp_path):
    """A Hugging Face cache: snapshots/<revision>/<name> -> ../../blobs/<hash>."""
    blobs = folder_of(tmp_path / "blobs", shards=2)
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert same(FolderCheckpoint(snapshot).rows("embed", 0, 7), WEIGHTS["embed"])
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    (snapshot / "model-00002-of-00002.safetensors").symlink_to("../../blobs/gone")
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors cannot be read: the file does not exist"):
        FolderCheckpoint(snapshot)


def test_no_weights_says_what_was_looked_for(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    looked_for = r"model\.safetensors, model\.safetensors\.index\.json, pytorch_model\.bin, pytorch_model\.bin\.index\.json"
    with pytest.raises(CheckpointError, match=f"no weights in .*: looked for {looked_for}\n"):
        FolderCheckpoint(tmp_path)
    (tmp_path / "model.Q4_0.gguf").touch()
    with pytest.raises(CheckpointError, match=r"found model\.Q4_0\.gguf\n.*\n.*given by its own name"):
        FolderCheckpoint(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"found model-00001-of-00002\.safetensors\n.*\n.*fetch the index as well"):
        FolderCheckpoint(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "pytorch"])
class TestIndex:
    @pytest.mark.parametrize(
        "name", ["../{}", "/tmp/{}", "sub/{}", "..", ".", "", "a\\{}", "{}\0", 3, None, ["{}"]], ids=lambda n: repr(n)
    )
    def test_a_name_outside_the_folder_is_refused(self, tmp_path, kind, name):
        path = folder_of(tmp_path / "model", kind, 2)
        shard = next(f.name for f in path.iterdir() if "00001-of" in f.name)
        for place in (tmp_path, path / "sub"):
            place.mkdir(exist_ok=True)
            shutil.copy(path / shard, place)
        hostile = name.format(shard) if isinstance(name, str) else name
        edited_index(path, lambda weight_map: weight_map.update(embed=hostile))
        with pytest.raises(CheckpointError, match="for 'embed': expected the name of a file in its folder"):
            FolderCheckpoint(path)

    def test_a_missing_shard_is_named(self, tmp_path, kind):
        path = folder_of(tmp_path, kind, 3)
        gone = next(f for f in path.iterdir() if "00002-of" in f.name)
        gone.unlink()
        with pytest.raises(CheckpointError, match=f"lists 1 of 3 shards that are missing: {gone.name}"):
            FolderCheckpoint(path)

    def test_a_listed_tensor_that_the_shard_lacks_is_named(self, tmp_path, kind):
        path = edited_index(folder_of(tmp_path, kind, 2), lambda m: m.update(ghost=m["embed"]))
        with pytest.raises(CheckpointError, match=r"lists tensors that .*00001-of-00002\.\w+ does not have: ghost"):
            FolderCheckpoint(path)

    def test_a_tensor_in_another_shard_than_listed_is_named(self, tmp_path, kind):
        path = edited_index(folder_of(tmp_path, kind, 2), lambda m: m.update(embed=m["half"]))
        with pytest.raises(CheckpointError, match=r"does not list tensors that .*00001-of-00002\.\w+ has: embed"):
            FolderCheckpoint(path)

    def test_an_unlisted_tensor_is_named(self, tmp_path, kind):
        path = edited_index(folder_of(tmp_path, kind, 2), lambda m: m.pop("scalar"))
        with pytest.raises(CheckpointError, match=r"does not list tensors that .*00001-of-00002\.\w+ has: scalar"):
            FolderCheckpoint(path)

    def test_a_tensor_in_two_shards_is_named(self, tmp_path, kind):
        path = folder_of(tmp_path, kind, 2)
        second = next(f for f in path.iterdir() if "00002-of" in f.name)
        content = {n: t for i, (n, t) in enumerate(WEIGHTS.items()) if i % 2 == 1} | {"embed": WEIGHTS["embed"]}
        (save_file if kind == "safetensors" else torch.save)(content, second)
        with pytest.raises(
            CheckpointError, match=r"hold the same tensors; .*00002-of-00002\.\w+: 'embed' \(also in .*00001-of"
        ):
            FolderCheckpoint(path)

    def test_a_shard_left_from_another_upload_is_refused_and_other_files_are_not(self, tmp_path, kind):
        path = folder_of(tmp_path, kind, 2)
        suffix = "safetensors" if kind == "safetensors" else "bin"
        for harmless in (f"consolidated.{suffix}", f"adapter_model.{suffix}", "training_args.bin"):
            (path / harmless).touch()
        FolderCheckpoint(path)
        stale = f"{'model' if kind == 'safetensors' else 'pytorch_model'}-00003-of-00005.{suffix}"
        (path / stale).touch()
        with pytest.raises(CheckpointError, match=f"does not list {stale}, which lie beside it"):
            FolderCheckpoint(path)

    @pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}', "[]", "", "{", '{"weight_map": 1}'])
    def test_an_index_that_is_none_is_refused(self, tmp_path, kind, content):
        path = folder_of(tmp_path, kind, 2)
        index = next(path.glob("*.index.json"))
        index.write_text(content)
        with pytest.raises(CheckpointError, match=r"\.index\.json (has no weight_map|is|holds)"):
            FolderCheckpoint(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty: expected a JSON object, got 0 bytes"),
        (b'{"a": 1,\n  oops}', "is not JSON: .* at line 2, column 3"),
        (b"[1]", ".*expected an object, got list"),
        (b"3", ".*expected an object, got int"),
        (b'{"a": 1, "b": "NaN",\n "c": -Infinity}', "holds -Infinity, which is not JSON at line 2, column 7"),
        (b'{"a": NaN}', "holds NaN, which is not JSON at line 1, column 7"),
        (b'{"a": 1, "a": 2}', "gives the key 'a' twice"),
        (b'{"a": "\xe9"}', "is not UTF-8: byte 0xe9 at offset 7"),
        (b'\xef\xbb\xbf{"a": 1}', "is not JSON: .*BOM"),
        (b"[" * 200_000, "is not usable JSON: maximum recursion"),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path, content, text):
    folder_of(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"config.json {text}") as caught:
        FolderCheckpoint(tmp_path)
    assert (caught.value.exit_code, caught.value.where) == (2, str(tmp_path / "config.json"))


def test_bad_weights_are_refused_through_the_folder(tmp_path):
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = folder_of(tmp_path / name.partition(".")[2], "safetensors" if name.endswith("s") else "pytorch")
        size = (path / name).stat().st_size
        for keep in (0, 3, 100, size - 1):
            shutil.copy(path / name, tmp_path / "whole")
            os.truncate(path / name, keep)
            with pytest.raises(CheckpointError, match=name):
                FolderCheckpoint(path)
            shutil.move(tmp_path / "whole", path / name)
        (path / name).unlink()
        (path / name).mkdir()
        with pytest.raises(CheckpointError, match=f"{name} cannot be read: expected a file, got a folder"):
            FolderCheckpoint(path)


def test_no_permission_is_said_to_a_user_without_rights():
    with open_folder() as base:
        path = folder_of(base / "model")
        for file in path.iterdir():
            file.chmod(0o644)
        read = lambda: open_checkpoint(path).rows("embed", 0, 7).tolist()  # noqa: E731
        assert as_unprivileged(read) == WEIGHTS["embed"].tolist()
        for closed, text in [
            (path / "config.json", "config.json cannot be read: no permission"),
            (path / "model.safetensors", "model.safetensors cannot be read: no permission"),
            (path, "model cannot be read: no permission"),
        ]:
            mode = closed.stat().st_mode
            closed.chmod(0)
            with pytest.raises(CheckpointError, match=text) as caught:
                as_unprivileged(read)
            assert caught.value.exit_code == 2
            closed.chmod(mode)
        path.chmod(0o711)  # can be entered, not listed
        with pytest.raises(CheckpointError, match="model cannot be read: no permission"):
            as_unprivileged(read)
        base.chmod(0)
        with pytest.raises(InputError, match="model cannot be read: no permission"):
            as_unprivileged(read)
        base.chmod(0o755)


# --- side files --------------------------------------------------------------------------------------------------


def test_side_files_are_given_as_they_are(tmp_path):
    folder_of(tmp_path)
    files = {
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b'{"model_max_length": 1000000000000000019884624838656}',
        "generation_config.json": b"{}",
        "special_tokens_map.json": b"{}",
        "chat_template.jinja": "{{ 'é' }}".encode(),
    }
    ignored = {"vocab.json": b"{}", "merges.txt": b"", "README.md": b"hello"}  # tokenizer.json says it all
    for name, content in (files | ignored).items():
        (tmp_path / name).write_bytes(content)
    assert FolderCheckpoint(tmp_path).side_files() == files


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("tokenizer.json", b"{", "tokenizer.json is not JSON"),
        ("tokenizer_config.json", b"", "tokenizer_config.json is empty"),
        ("generation_config.json", b"[]", "generation_config.json holds the wrong kind of JSON"),
        ("special_tokens_map.json", b"\xff", "special_tokens_map.json is not UTF-8"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8: byte 0xff at offset 0"),
        ("vocab.json", b"x", "vocab.json is not JSON"),
        ("merges.txt", b"\xff", "merges.txt is not UTF-8"),
    ],
)
def test_a_damaged_side_file_is_refused(tmp_path, name, content, text):
    folder_of(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=text):
        FolderCheckpoint(tmp_path).side_files()


def qwen2_files(path):
    """A small byte-level vocabulary, trained here, in Qwen2's old form."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["the cat isn't 1234 on the mat, the hat café is 99\n\n"] * 9, trainer)
    tokenizer.model.save(str(path))
    size = tokenizer.get_vocab_size()
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {str(size): {"content": "<|endoftext|>", **flags}, str(size + 1): {"content": "<|im_start|>", **flags}}
    config = {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "added_tokens_decoder": added}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return config


def test_a_qwen2_tokenizer_is_made_from_its_vocabulary(tmp_path):
    from tokenizers import Tokenizer
    from transformers import Qwen2Tokenizer

    folder_of(tmp_path)
    qwen2_files(tmp_path)
    files = FolderCheckpoint(tmp_path).side_files()
    assert set(files) == {"tokenizer_config.json", "tokenizer.json"}
    ours = Tokenizer.from_str(files["tokenizer.json"].decode())
    upstream = Qwen2Tokenizer.from_pretrained(tmp_path)
    for text in [
        "the cat isn't on the mat",
        "1234 hats,\n\n  99  café",
        "cafe\u0301 É",
        "<|im_start|>the hat<|endoftext|>",
        "😀",
        "",
    ]:
        ids = ours.encode(text).ids
        assert ids == upstream(text)["input_ids"]
        assert ours.decode(ids, skip_special_tokens=False) == upstream.decode(ids)


def test_a_tokenizer_is_not_guessed(tmp_path):
    folder_of(tmp_path)
    config = qwen2_files(tmp_path)
    number = next(iter(config["added_tokens_decoder"]))
    cases = {
        "another class": {"tokenizer_class": "GPT2Tokenizer"},
        "a prefix space": {"add_prefix_space": True},
        "no added tokens": {"added_tokens_decoder": None},
        "an id it would not get": {"added_tokens_decoder": {"9999": config["added_tokens_decoder"][number]}},
        "an id that is none": {"added_tokens_decoder": {"x": config["added_tokens_decoder"][number]}},
    }
    for what, change in cases.items():
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | change))
        files = FolderCheckpoint(tmp_path).side_files()
        assert set(files) == {"tokenizer_config.json", "vocab.json", "merges.txt"}, what
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nnot there\n")
    assert "tokenizer.json" not in FolderCheckpoint(tmp_path).side_files()


# --- open_checkpoint ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "kind", "text"),
    [
        ("model.safetensors", b"x", InputError, "one file of a model: the folder with config.json and the weights is needed"),
        ("pytorch_model.bin", b"PK\3\4", InputError, "one file of a model: the folder"),
        ("config.json", b"{}", InputError, "one file of a model: the folder"),
        ("model.pt", b"PK\3\4", InputError, "weights alone need the code of their module"),
        ("model.PTH", b"", InputError, "--model package.module:factory --weights model.PTH"),
        ("model.pt2", b"PK\3\4", InputError, "holds no program"),
        ("model.gguf", b"GGML1234", CheckpointError, "expected it to begin with b'GGUF', got b'GGML'"),
        ("model.gguf", b"", CheckpointError, "expected it to begin with b'GGUF', got b''"),
        ("notes.txt", b"hello", InputError, "is no model that is known: it begins with b'hell'"),
    ],
)
def test_a_file_that_is_no_model_says_what_to_give(tmp_path, name, content, kind, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=text) as caught:
        open_checkpoint(str(tmp_path / name))
    assert caught.value.exit_code == 2
    assert caught.value.next


def test_the_folder_is_offered_where_there_is_one(tmp_path):
    folder_of(tmp_path)
    with pytest.raises(InputError, match=f"give the folder: {tmp_path}"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for source, text in [
        ("", "the path is empty"),
        ("org/name-of-a-model", "no such file or folder: 'org/name-of-a-model'\n.*\n.*nothing is downloaded"),
        (tmp_path / "missing", "no such file or folder"),
        (tmp_path / "file" / "x", "goes through something that is not a folder"),
        (tmp_path / "pipe", "pipe is neither a file nor a folder"),
        ("a\0b", "is not a path"),
        ("x" * 5000, "cannot be read"),
        (tmp_path, "the folder holds no model: expected config.json or a .gguf file, got file, pipe"),
    ]:
        with pytest.raises(InputError, match=text):
            open_checkpoint(source)


def test_gguf_files_are_found_by_their_first_bytes(tmp_path, monkeypatch):
    import sys
    import types

    reader = types.ModuleType("gguf")
    reader.GgufCheckpoint = lambda path: ("gguf", path)
    monkeypatch.setitem(sys.modules, f"{open_module.__package__}.gguf", reader)
    (tmp_path / "a.bin").write_bytes(b"GGUF1234")
    assert open_checkpoint(tmp_path / "a.bin") == ("gguf", tmp_path / "a.bin")
    (tmp_path / "a.bin").rename(tmp_path / "A.GGUF")
    assert open_checkpoint(tmp_path) == ("gguf", tmp_path / "A.GGUF")
    (tmp_path / "b.gguf").touch()
    with pytest.raises(InputError, match=r"holds 2 \.gguf files and no config\.json: A\.GGUF, b\.gguf\n.*\n.*/A\.GGUF"):
        open_checkpoint(tmp_path)
    folder_of(tmp_path)
    assert isinstance(open_checkpoint(tmp_path), FolderCheckpoint)


# --- fuzzing -----------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
FILES = (
    st.sampled_from(["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "../x", "config.json"]) | VALUES
)
INDEXES = st.fixed_dictionaries({"weight_map": st.dictionaries(st.sampled_from([*NAMES, "x"]) | st.text(max_size=3), FILES)})


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(content=b"\x00")
@given(
    content=INDEXES.map(lambda v: json.dumps(v).encode())
    | VALUES.map(lambda v: json.dumps(v).encode())
    | st.binary(max_size=40)
)
def test_any_index_gives_the_whole_model_or_a_porting_error(tmp_path, content):
    path = tmp_path / "model"
    if not path.exists():
        folder_of(path, shards=2)
    (path / "model.safetensors.index.json").write_bytes(content)
    try:
        checkpoint = FolderCheckpoint(path)
    except PortingError:
        return
    assert checkpoint.tensors.keys() == WEIGHTS.keys()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=VALUES.map(lambda v: json.dumps(v).encode()) | st.binary(max_size=40))
def test_any_config_is_an_object_or_a_porting_error(tmp_path, content):
    if not (tmp_path / "config.json").exists():
        folder_of(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    try:
        checkpoint = FolderCheckpoint(tmp_path)
    except PortingError:
        return
    assert checkpoint.config == json.loads(content)
