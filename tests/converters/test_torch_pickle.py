"""pytorch_model.bin without torch: the same tensors as torch.load gives, and nothing in the file is ever executed."""

import os
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from porting.converters.checkpoints import pickle_machine, torch_pickle, torch_zip
from porting.converters.checkpoints.files import OpenFiles
from porting.converters.checkpoints.torch_pickle import StridedTensor, read_torch_file, strided_rows
from porting.converters.torch_storage import tensor_of
from porting.errors import CheckpointError, InputError, UnsupportedModel
from porting.weights import NUMPY_DTYPES

BASE = torch.arange(48, dtype=torch.float32).reshape(4, 12)


def saved(tmp_path, state, name="pytorch_model.bin", **options):
    path = tmp_path / name
    torch.save(state, path, **options)
    return path


def archive(tmp_path, data_pkl, extra=(), **storages):
    """A torch-like archive around a pickle written by hand."""
    path = tmp_path / "made.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("m/data.pkl", data_pkl)
        for name, content in [("m/version", "3\n"), *extra, *((f"m/data/{k}", v) for k, v in storages.items())]:
            file.writestr(name, content)
    return path


def read_all(path):
    """Every tensor of the file as an array."""
    files, arrays = OpenFiles(), {}
    for name, tensor in read_torch_file(path).items():
        if isinstance(tensor, StridedTensor):
            arrays[name] = strided_rows(tensor, 0, tensor.shape[0], lambda o, n: files.read(path, o, n))
        else:
            arrays[name] = files.read(path, tensor.offset, tensor.nbytes).view(NUMPY_DTYPES[tensor.dtype]).reshape(tensor.shape)
    files.close()
    return arrays


def bits(tensor):
    """The bytes of a torch tensor in C order."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
STATES = {
    "dtypes": {str(d): BASE.to(getattr(torch, d)) for d in DTYPES},
    "shapes": {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "empty2": torch.zeros(3, 0),
        "ones": torch.ones(1, 1, 1),
    },
    "parameters": torch.nn.Linear(3, 2).state_dict(keep_vars=True),
    "state dict": torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict(),
    "tied": {"embed": BASE, "head": BASE, "part": BASE[1:3], "row": BASE[2]},
    "strided": {"t": BASE.t(), "columns": BASE[:, 2:5], "step": BASE[::2, ::3], "cube": BASE.reshape(2, 6, 4).permute(2, 0, 1)},
    "wrapped": {"state_dict": {"a": BASE}, "epoch": 3, "note": "text", "loss": 0.5},
    "wrapped again": {"model_state_dict": OrderedDict(a=BASE), "steps": [1, 2]},
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("case", STATES)
def test_every_tensor_equals_torchs_own(tmp_path, case, protocol):
    path = saved(tmp_path, STATES[case], pickle_protocol=protocol)
    expected = torch.load(path, weights_only=False)  # its restricted loader does not know protocol 4; the file is ours
    expected = expected.get("state_dict", expected.get("model_state_dict", expected))
    found = read_all(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
        assert found[name].tobytes() == bits(tensor)


def test_plain_says_whether_the_bytes_are_the_tensor(tmp_path):
    found = read_torch_file(saved(tmp_path, {**STATES["tied"], **STATES["strided"], "axis of one": BASE[:, :1].t()}))
    assert {n for n, t in found.items() if not t.plain} == {"t", "columns", "step", "cube", "axis of one"}
    assert found["embed"].offset == found["head"].offset
    assert found["part"].offset == found["embed"].offset + 12 * 4
    assert read_torch_file(saved(tmp_path, {"a": BASE[:, None].transpose(0, 1)}))["a"].plain  # strides of size 1 do not count


def test_strided_rows_never_read_much_more_than_they_give(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "SPARSE_READ_BYTES", 64)
    weight = torch.randn(64, 96)
    tensor = read_torch_file(saved(tmp_path, {"a": weight.t()}))["a"]
    files, reads = OpenFiles(), []

    def read(offset, nbytes):
        reads.append(nbytes)
        return files.read(tensor.file, offset, nbytes)

    for start, stop in [(0, 96), (5, 9), (95, 96), (7, 7)]:
        reads.clear()
        rows = strided_rows(tensor, start, stop, read)
        assert np.array_equal(rows, weight.t()[start:stop].numpy())
        assert max(reads, default=0) <= max(2 * rows.nbytes, 64)
    files.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_view_of_a_storage_is_read_right(tmp_path, data):
    view = torch.arange(120, dtype=torch.int16).reshape(data.draw(st.sampled_from([(4, 5, 6), (10, 12), (2, 3, 4, 5)])))
    view = view.permute(*data.draw(st.permutations(range(view.ndim))))
    for axis in range(view.ndim):
        start = data.draw(st.integers(0, view.shape[axis] - 1))
        steps = [slice(None)] * axis + [slice(start, None, data.draw(st.integers(1, 3)))]
        view = view[tuple(steps)]
    assert np.array_equal(read_all(saved(tmp_path, {"a": view}))["a"], view.numpy())


# --- code --------------------------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("function", "name"), [(os.system, "posix.system"), (eval, "eval"), (getattr, "getattr"), (__import__, "__import__")]
)
def test_code_is_refused_and_does_not_run(tmp_path, function, name, protocol):
    sentinel = tmp_path / "it ran"
    argument = f"touch '{sentinel}'" if function is os.system else f"open({str(sentinel)!r}, 'w')"
    state = {"a": BASE, "evil": Calls(function, argument)}
    path = saved(tmp_path, state, pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=f"is code, not data: it calls .*{name}") as caught:
        read_torch_file(path)
    assert "safetensors" in caught.value.next
    assert not sentinel.exists()
    if function is os.system:  # the file is what it claims to be: torch, told to trust it, does run it
        torch.load(path, weights_only=False)
        assert sentinel.exists()


class Builds:
    """Pickles as an object with attributes."""


def test_objects_and_other_constructs_are_refused(tmp_path):
    cases = {
        "a whole module": (torch.nn.Linear(2, 2), "operation NEWOBJ|torch.nn"),
        "an object": (Builds(), "calls .*Builds|copyreg._reconstructor"),
        "a set": ({"a": {1, 2}}, "__builtin__.set"),
        "a float8 tensor": ({"a": BASE.to(torch.float8_e4m3fn)}, "UntypedStorage"),
        "a complex tensor": ({"a": BASE.to(torch.complex64)}, "ComplexFloatStorage"),
        "a numpy array": ({"a": np.ones(2)}, "_codecs.encode|numpy"),
        "a sparse tensor": ({"a": BASE.to_sparse()}, "calls torch.serialization._get_layout"),
    }
    for what, (state, text) in cases.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = saved(tmp_path, state)
        with pytest.raises(CheckpointError, match=text):
            pytest.fail(f"{what} was taken: {read_torch_file(path)}")


def test_inst_and_obj_and_ext_operations_are_refused(tmp_path):
    sentinel = tmp_path / "it ran"
    command = f"touch '{sentinel}'".encode()
    for code in [
        b"(S'" + command + b"'\niposix\nsystem\n.",  # INST
        b"(cposix\nsystem\nX" + struct.pack("<I", len(command)) + command + b"o.",  # OBJ
        b"cposix\nsystem\n(X" + struct.pack("<I", len(command)) + command + b"t\x81.",  # NEWOBJ
        b"\x82\x01.",  # EXT1
        b"P1\n.",  # PERSID, whose text form torch does not write
    ]:
        with pytest.raises(CheckpointError):
            read_torch_file(archive(tmp_path, code))
    assert not sentinel.exists()


# --- bad pickles -------------------------------------------------------------------------------------------------

TEXT = {name: pickle.dumps(name, 2)[2:-1] for name in ("storage", "0", "cpu", "a", "b")}


def tensor_pickle(storage="FloatStorage", numel=4, offset=0, shape=(4,), strides=(1,), tail=b"\x89}"):
    """{"a": a tensor} as torch pickles it, with any numbers."""
    number = {value: pickle.dumps(value, 2)[2:-1] for value in (numel, offset, shape, strides)}
    return (
        b"\x80\x02}" + TEXT["a"] + b"ctorch._utils\n_rebuild_tensor_v2\n("
        b"(" + TEXT["storage"] + b"ctorch\n" + storage.encode() + b"\n" + TEXT["0"] + TEXT["cpu"] + number[numel] + b"tQ"
        + number[offset] + number[shape] + number[strides] + tail + b"tRs."
    )  # fmt: skip


DATA = np.arange(4, dtype=np.float32).tobytes()


def test_the_pickle_made_by_hand_is_good(tmp_path):
    path = archive(tmp_path, tensor_pickle(), **{"0": DATA})
    assert read_all(path)["a"].tolist() == [0, 1, 2, 3]
    assert torch.load(path, weights_only=True)["a"].tolist() == [0, 1, 2, 3]


BAD_NUMBERS = {
    "storage longer than its entry": ({"numel": 5}, "declares storage '0' as 5 elements of F32, 20 bytes; its entry has 16"),
    "storage shorter than its entry": ({"numel": 3}, "12 bytes; its entry has 16"),
    "negative number of elements": ({"numel": -4}, "number of elements that is none"),
    "a bool as number of elements": ({"numel": True}, "number of elements that is none"),
    "huge number of elements": ({"numel": 2**70}, "number of elements that is none"),
    "past the end": ({"offset": 1}, r"shape \(4,\), strides \(1,\), offset 1 in a storage of 4 elements"),
    "past the end by strides": ({"shape": (2,), "strides": (4,)}, "strides .4,., offset 0 in a storage of 4"),
    "negative offset": ({"offset": -1}, "malformed offset"),
    "negative shape": ({"shape": (-4,)}, "malformed offset, shape or strides"),
    "negative stride": ({"strides": (-1,)}, "malformed offset, shape or strides"),
    "float shape": ({"shape": (4.0,)}, "malformed offset, shape or strides"),
    "ranks differ": ({"strides": (1, 1)}, "malformed offset, shape or strides"),
    "expanded to terabytes": ({"shape": (2**40,), "strides": (0,)}, "elements overlap"),
    "expanded": ({"shape": (2, 2), "strides": (0, 1)}, "elements overlap"),
    "unfolded": ({"shape": (3, 2), "strides": (1, 1)}, "elements overlap"),
    "empty but impossible": ({"shape": (0, 2**62), "strides": (1, 1)}, "impossible shape"),
    "hooks": ({"tail": b"\x89}" + TEXT["a"] + TEXT["b"] + b"s"}, "hooks, which are code"),
    "conjugated": ({"tail": b"\x89}}" + TEXT["a"] + b"\x88s"}, "conjugate or negative bit"),
    "too few arguments": ({"tail": b""}, "_rebuild_tensor_v2 with arguments that torch does not write"),
}


@pytest.mark.parametrize("case", BAD_NUMBERS)
def test_a_lying_tensor_is_refused(tmp_path, case):
    changes, text = BAD_NUMBERS[case]
    with pytest.raises(CheckpointError, match=text) as caught:
        read_torch_file(archive(tmp_path, tensor_pickle(**changes), **{"0": DATA}))
    assert "made.bin" in caught.value.what
    assert "m/data.pkl" in caught.value.where
    assert caught.value.next


@pytest.mark.parametrize(
    ("data_pkl", "text"),
    [
        (b"", "damaged pickle"),
        (b"\x80\x02", "damaged pickle"),
        (b"\x80\x02}", "damaged pickle"),
        (b"}}.", "2 values left at its end"),
        (b"(.", "1 values left at its end"),
        (b"\x80\x02h\x07.", "damaged pickle: KeyError"),
        (b"X\xff\xff\xff\x7fabc.", "damaged pickle"),  # a text of 2 GiB in a file of a few bytes
        (b"\x8d" + b"\xff" * 7 + b"\x7fabc.", "damaged pickle"),
        (b"}" + TEXT["a"] + b"K\x01u.", "a run of items without its mark"),
        (b"}(" + TEXT["a"] + b"K\x01" + TEXT["a"] + b"K\x02u.", "the key 'a' given twice"),
        (b"}(" + TEXT["a"] + b"u.", "added to what is no dict"),
        (b"Ns.", "without its operands"),
        (b"N}NK\x01s.", "neither text nor number"),
        (
            tensor_pickle().replace(b"ctorch\n", b"cevil\n"),
            "a storage of type evil.FloatStorage; expected one of torch's Double",
        ),
        (b"NQ.", "refers to something that is not a storage"),
        (b"]K\x01a.", "no state dict: expected tensors by name, got list"),
        (b"K\x01.", "no state dict: expected tensors by name, got int"),
        (b"}" + TEXT["a"] + b"K\x01s.", "more than tensors by name; not tensors: 'a'"),
        (b"}" + TEXT["a"] + b"]s.", "not tensors: 'a'"),
        (b"NN.", "2 values"),
        (b"}Nb.", "attributes of what is no state dict"),
        (b"N}b.", "attributes of what is no state dict"),
        (b"}}R.", "a call of something that is no name"),
    ],
)
def test_a_damaged_pickle_is_refused(tmp_path, data_pkl, text):
    with pytest.raises(CheckpointError, match=text):
        read_torch_file(archive(tmp_path, data_pkl))


def test_a_huge_memo_index_costs_nothing(tmp_path):
    assert read_torch_file(archive(tmp_path, b"}r\xff\xff\xff\xff.")) == {}  # CPython's unpickler would allocate 64 GiB


def test_a_deeply_nested_key_does_not_reach_the_c_stack(tmp_path):
    with pytest.raises(CheckpointError, match="neither text nor number"):
        read_torch_file(archive(tmp_path, b"})" + b"\x85" * 200_000 + b"K\x01s."))


def test_a_pickle_that_goes_on_and_on_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_machine, "MAX_OPERATIONS", 1000)
    with pytest.raises(CheckpointError, match="more than 1000 operations"):
        read_torch_file(archive(tmp_path, b"}" * 2000 + b"."))


def test_a_parameter_with_hooks_is_refused(tmp_path):
    plain = tensor_pickle()
    start = plain.index(b"ctorch._utils")
    parameter = plain[:start] + b"ctorch._utils\n_rebuild_parameter\n(" + plain[start:-2] + b"\x88%stRs."
    good = archive(tmp_path, parameter % b"}", **{"0": DATA})
    assert read_all(good)["a"].tolist() == [0, 1, 2, 3]
    with pytest.raises(CheckpointError, match="has a parameter with hooks, which are code") as caught:
        read_torch_file(archive(tmp_path, parameter % (b"}" + TEXT["a"] + TEXT["b"] + b"s"), **{"0": DATA}))
    assert "where you trust the file" in caught.value.next


def test_keys_that_are_no_tensors_are_named(tmp_path):
    state = {"weight": BASE, "optimizer": {"lr": 0.1}, "epoch": 3}
    with pytest.raises(CheckpointError, match="not tensors: 'optimizer', 'epoch'") as caught:
        read_torch_file(saved(tmp_path, state))
    assert "optimiser" in caught.value.next


# --- bad archives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_the_format_before_torch_1_6_is_read_as_torch_reads_it(tmp_path, protocol):
    shared = torch.arange(12.0).reshape(3, 4)
    state = {
        "a": BASE,
        "t": shared.t(),
        "row": shared[1],
        "half": BASE.half(),
        "bf": BASE.bfloat16(),
        "n": torch.tensor(3),
        "e": torch.empty(0, 2),
    }
    path = saved(tmp_path, state, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    found = read_torch_file(path)
    assert {n: (t.dtype, t.shape) for n, t in found.items() if n in "an"} == {"a": ("F32", tuple(BASE.shape)), "n": ("I64", ())}
    assert found["row"].offset - found["t"].offset == 4 * 4  # of one storage, four float32 further on
    for name, tensor in torch.load(path, weights_only=False).items():
        assert torch.equal(tensor_of(found[name]), tensor), name


def test_an_old_file_that_is_cut_or_of_another_machine_is_refused(tmp_path):
    path = saved(tmp_path, {"a": BASE}, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    with pytest.raises(CheckpointError, match="is cut off"):
        read_torch_file(path)
    path.write_bytes(raw.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    with pytest.raises(UnsupportedModel, match="big-endian"):
        read_torch_file(path)
    path.write_bytes(b"\x80\x02K\x01.")
    with pytest.raises(CheckpointError, match=r"none that torch\.save wrote"):
        read_torch_file(path)


def test_scripted_and_foreign_files_say_what_to_do(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "scripted.bin")
    with pytest.raises(UnsupportedModel, match="TorchScript archive, which holds code"):
        read_torch_file(tmp_path / "scripted.bin")
    with zipfile.ZipFile(tmp_path / "other.bin", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"expected one NAME/data.pkl in the archive, got 'readme.txt'"):
        read_torch_file(tmp_path / "other.bin")
    for content, text in [
        (b"", "got b''"),
        (b"PK", "got b'PK'"),
        (b"hello world", "begins with PK"),
        (b"PK\3\4", "zip directory"),
    ]:
        (tmp_path / "bad.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match=text):
            read_torch_file(tmp_path / "bad.bin")


def test_big_endian_is_refused(tmp_path):
    for order, text in [("big", "expected 'little', got 'big'"), ("x" * 99, "expected 'little', got ''")]:
        with pytest.raises(UnsupportedModel, match=text):
            read_torch_file(archive(tmp_path, tensor_pickle(), [("m/byteorder", order)], **{"0": DATA}))
    path = archive(tmp_path, tensor_pickle(), [("m/byteorder", "little")], **{"0": DATA})
    assert read_torch_file(path).keys() == {"a"}


def test_a_missing_storage_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="refers to storage '0', which the archive does not have"):
        read_torch_file(archive(tmp_path, tensor_pickle(), **{"1": DATA}))


def test_compressed_entries_are_refused_unread(tmp_path):
    """A bomb: 200 MB of zeros in 200 kB."""
    path = tmp_path / "bomb.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/data.pkl", bytes(200_000_000))
    with pytest.raises(CheckpointError, match=r"'m/data\.pkl' compressed or encrypted"):
        read_torch_file(path)


def test_a_huge_pickle_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_zip, "MAX_PICKLE_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"has a data.pkl of \d+ bytes; at most 100 are taken"):
        read_torch_file(saved(tmp_path, {"a": BASE}))


def directory_of(raw):
    """(offset of the end record, offset of the central directory) of a zip archive without zip64 records."""
    end = raw.rindex(b"PK\5\6")
    return end, struct.unpack_from("<I", raw, end + 16)[0]


def test_a_lying_directory_is_refused(tmp_path, monkeypatch):
    good = bytearray(archive(tmp_path, tensor_pickle(), **{"0": DATA}).read_bytes())
    end, directory = directory_of(good)
    second = good.rindex(b"PK\1\2")  # m/data/0
    lies = {
        "size of an entry": (
            second + 20,
            struct.pack("<II", 999, 999),
            "of 999 bytes at byte .*, where there is no such entry",
        ),
        "place of an entry": (second + 42, struct.pack("<I", directory), "outside the file's data"),
        "both at one place": (second + 42, struct.pack("<I", 0), "which calls itself b'm/data.pkl'"),
        "method of an entry": (second + 10, struct.pack("<H", 8), "compressed or encrypted"),
        "encryption of an entry": (second + 8, struct.pack("<H", 1), "compressed or encrypted"),
        "name of an entry": (second + 46, b"m/data/7", "'m/data/7', which calls itself b'm/data/0'"),
        "place of the directory": (end + 16, struct.pack("<I", directory + 4), "at byte -4, outside the file's data"),
    }
    for what, (place, replacement, text) in lies.items():
        raw = bytearray(good)
        raw[place : place + len(replacement)] = replacement
        (tmp_path / "lie.bin").write_bytes(raw)
        with pytest.raises(CheckpointError, match=text):
            pytest.fail(f"{what}: {read_torch_file(tmp_path / 'lie.bin')}")
    monkeypatch.setattr(torch_zip, "MAX_DIRECTORY_BYTES", end - directory - 1)
    with pytest.raises(CheckpointError, match=f"its directory claims {end - directory} bytes"):
        torch_zip.TorchZip(tmp_path / "made.bin")


def test_an_entry_twice_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = archive(tmp_path, tensor_pickle(), [("m/data/0", DATA)], **{"0": DATA})
    with pytest.raises(CheckpointError, match="has the entry 'm/data/0' twice"):
        read_torch_file(path)


def test_an_entry_inside_another_is_refused(tmp_path):
    inner = zipfile.ZipInfo("m/data/1")
    inner.file_size = inner.compress_size = len(DATA)
    inner.CRC = 0
    hidden = inner.FileHeader() + DATA
    path = archive(tmp_path, tensor_pickle(), **{"0": hidden, "1": DATA})
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, raw.rindex(b"PK\1\2") + 42, raw.index(hidden))
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="has the entry 'm/data/1' overlapping the one before it"):
        read_torch_file(path)


# --- fuzzing -----------------------------------------------------------------------------------------------------


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, 1000),
)
def test_flipped_and_cut_files_give_tensors_inside_the_file_or_an_input_error(tmp_path, edits, cut):
    raw = bytearray(archive(tmp_path, tensor_pickle(), **{"0": DATA}).read_bytes())
    for place, byte in edits:
        raw[place % len(raw)] = byte
    path = tmp_path / "fuzz.bin"
    path.write_bytes(raw[:cut])
    try:
        found = read_torch_file(path)
    except InputError:
        return
    assert all(t.offset + t.nbytes <= path.stat().st_size for t in found.values())


OPCODES = st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes])
PIECES = OPCODES | st.sampled_from([*TEXT.values(), b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"])


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(pieces=[tensor_pickle()])
@given(pieces=st.lists(PIECES | st.binary(min_size=1, max_size=4), max_size=40))
def test_any_pickle_gives_a_value_or_is_refused(tmp_path, pieces):
    builder = torch_pickle._Builder(tmp_path, torch_zip.TorchZip(archive(tmp_path, b"}.", **{"0": DATA})))
    try:
        pickle_machine.state_of(b"".join(pieces) + b".", builder.call, builder.storage)
    except pickle_machine.PickleRefused:
        return
