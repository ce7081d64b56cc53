"""The safetensors header: what the library writes is read alike, everything that lies is refused by name."""

import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from porting.converters.checkpoints import safetensors as reader
from porting.converters.checkpoints.safetensors import read_header
from porting.errors import CheckpointError
from porting.weights import NUMPY_DTYPES
from tests.unprivileged import as_unprivileged, open_folder

ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def written(path, header, data=b""):
    """A file of this header (bytes, or what JSON makes of it) and data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def test_every_dtype_and_shape_is_found_where_the_library_wrote_it(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {d.name: rng.integers(0, 2, (3, 5)).astype(d) for k, d in NUMPY_DTYPES.items() if not k.startswith("F8")}
    arrays |= {"scalar": np.array(3, np.float16), "empty": np.empty((0, 3), np.float32), "one": np.ones((1, 1, 1), np.int8)}
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, metadata={"format": "pt"})
    found = read_header(path)
    assert found.keys() == arrays.keys()
    raw = path.read_bytes()
    for name, tensor in found.items():
        assert (tensor.name, tensor.file, tensor.plain, tensor.shape) == (name, path, True, arrays[name].shape)
        assert NUMPY_DTYPES[tensor.dtype] == arrays[name].dtype
        assert raw[tensor.offset : tensor.offset + tensor.nbytes] == arrays[name].tobytes()


def test_float8_is_read(tmp_path):
    values = np.array([0.5, -2], ml_dtypes.float8_e4m3fn)
    header = {"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    tensor = read_header(written(tmp_path / "a.safetensors", header, values.tobytes()))["a"]
    assert (tensor.dtype, tensor.nbytes) == ("F8_E4M3", 2)


def test_a_file_without_tensors_is_no_error(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    assert read_header(tmp_path / "a.safetensors") == {}


def entry(**changes):
    return {"a": {**ONE, **changes}}


BAD_HEADERS = {
    "not json": (b"{nonsense", b"", "is not JSON: .* line 1, column 2"),
    "not utf-8": (b'{"\xff": 1}', b"", "is not UTF-8: byte 0xff at offset 2"),
    "not an object": (b"[1]", b"", r"expected its header to begin with '\{', got b'\['"),
    "leading space": (b" {}", b"", "expected its header to begin"),
    "empty header": (b"", b"", "expected its header to begin"),
    "deep": (b'{"a":' * 100_000, b"", "is not usable JSON: maximum recursion"),
    "endless number": (b'{"a":' + b"9" * 5000 + b"}", b"", "is not usable JSON: Exceeds the limit"),
    "half a surrogate pair": (b'{"\\ud800": 1}', b"", "not Unicode"),
    "key twice": (b'{"a":%b,"a":%b}' % ((json.dumps(ONE).encode(),) * 2), b"1234", "gives the key 'a' twice"),
    "NaN": (b'{"a":\n  NaN}', b"", "holds NaN, which is not JSON at line 2, column 3"),
    "metadata": ({"__metadata__": {"a": 1}}, b"", "__metadata__ that is not a map of text to text"),
    "entry is a list": ({"a": [1]}, b"", "describes a tensor by list"),
    "missing key": ({"a": {"dtype": "F32"}}, b"", "describes a tensor by dtype; expected data_offsets, dtype, shape"),
    "unknown key": (entry(strides=[1]), b"1234", "describes a tensor by data_offsets, dtype, shape, strides"),
    "unknown dtype": (entry(dtype="F33"), b"1234", "dtype 'F33'; expected one of F64, F32"),
    "dtype is a list": (entry(dtype=[]), b"1234", r"dtype \[\]"),
    "negative shape": (entry(shape=[-1, -1]), b"1234", r"shape \[-1, -1\]"),
    "float shape": (entry(shape=[1.0]), b"1234", r"shape \[1.0\]"),
    "bool shape": (entry(shape=[True]), b"1234", r"shape \[True\]"),
    "text shape": (entry(shape="1"), b"1234", "shape 1;"),
    "too many dimensions": (entry(shape=[1] * 33), b"1234", "expected at most 32 sane integers"),
    "huge dimension": (entry(shape=[2**64]), b"1234", "shape"),
    "empty but impossible": (entry(shape=[0, 2**62], data_offsets=[0, 0]), b"", "shape"),
    "reversed offsets": (entry(data_offsets=[4, 0]), b"1234", r"data_offsets \[4, 0\]; expected \[begin, end\]"),
    "three offsets": (entry(data_offsets=[0, 4, 8]), b"1234", r"data_offsets \[0, 4, 8\]"),
    "negative offset": (entry(data_offsets=[-4, 0]), b"1234", r"data_offsets \[-4, 0\]"),
    "past the end": (entry(data_offsets=[0, 4]), b"123", "ends at byte 4 of the data, of which there are 3"),
    "too few bytes": (entry(shape=[2]), b"1234", r"gives a tensor 4 bytes; F32\[2\] takes 8"),
    "too many bytes": (entry(data_offsets=[0, 8]), b"12345678", r"gives a tensor 8 bytes; F32\[1\] takes 4"),
    "hole before": (entry(data_offsets=[4, 8]), b"12345678", "leaves a hole after the header: expected it at byte"),
    "hole between": (
        {"a": ONE, "b": {**ONE, "data_offsets": [8, 12]}},
        b"1" * 12,
        "leaves a hole after 'a': expected it at byte",
    ),
    "overlap": ({"a": ONE, "b": {**ONE, "dtype": "F16", "shape": [3], "data_offsets": [2, 8]}}, b"1" * 8, "overlaps 'a'"),
    "same bytes": ({"a": ONE, "b": ONE}, b"1234", "overlaps 'a'"),
    "bytes after the last": ({"a": ONE}, b"12345", "has .* bytes, but its tensors end at byte"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_bad_header_is_refused_by_name(tmp_path, case):
    header, data, text = BAD_HEADERS[case]
    with pytest.raises(CheckpointError, match=text) as caught:
        read_header(written(tmp_path / "bad.safetensors", header, data))
    assert caught.value.exit_code == 2
    assert "bad.safetensors" in caught.value.what
    assert str(tmp_path) in caught.value.where
    assert caught.value.next


@pytest.mark.parametrize("case", ["negative shape", "past the end", "hole between", "overlap", "too few bytes"])
def test_the_tensor_is_named(tmp_path, case):
    header, data, _ = BAD_HEADERS[case]
    name = "b" if case in ("hole between", "overlap") else "a"
    with pytest.raises(CheckpointError) as caught:
        read_header(written(tmp_path / "bad.safetensors", header, data))
    assert caught.value.where.endswith(f"tensor {name!r}")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "expected at least 8 bytes, got 0"),
        (b"1234567", "expected at least 8 bytes, got 7"),
        (struct.pack("<Q", 9) + b"{}", "declares a header of 9 bytes, but the file has 10 bytes in all"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "declares a header of 18446744073709551615 bytes; the format allows"),
    ],
)
def test_a_lying_length_is_refused(tmp_path, content, text):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=text):
        read_header(path)


def test_a_header_over_the_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", reader.MAX_HEADER_BYTES + 1))
    os.truncate(path, reader.MAX_HEADER_BYTES + 100)  # sparse
    with pytest.raises(CheckpointError, match="the format allows 100000000"):
        read_header(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, text in [
        ("missing", "the file does not exist"),
        ("pipe", "expected a file, got a pipe"),  # and does not wait for a writer
        (".", "expected a file, got a folder"),
        ("loop", "lead in a circle"),
    ]:
        with pytest.raises(CheckpointError, match=text):
            read_header(tmp_path / name)


def test_no_permission_is_said_to_a_user_without_rights():
    with open_folder() as folder:
        save_file({"a": np.ones(2, np.float32)}, folder / "closed.safetensors")
        save_file({"a": np.ones(2, np.float32)}, folder / "open.safetensors")
        (folder / "closed.safetensors").chmod(0)
        (folder / "open.safetensors").chmod(0o444)
        assert as_unprivileged(lambda: list(read_header(folder / "open.safetensors"))) == ["a"]
        with pytest.raises(CheckpointError, match=r"closed\.safetensors cannot be read: no permission") as caught:
            as_unprivileged(lambda: read_header(folder / "closed.safetensors"))
        assert caught.value.exit_code == 2


def test_descriptors_are_given_back(tmp_path):
    good = written(tmp_path / "a.safetensors", {"a": ONE}, b"1234")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        read_header(good)
        with pytest.raises(CheckpointError):
            read_header(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10) | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I8", "F16", "X"]) | values,
        "shape": st.lists(st.integers(0, 4), max_size=3) | values,
        "data_offsets": st.lists(st.integers(0, 24), min_size=2, max_size=2) | values,
    }
)
headers = st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), entries | values, max_size=3)
raw_headers = headers.map(lambda h: json.dumps(h).encode()) | st.binary(max_size=40)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(header=b"{}", data=b"", declared=2)
@given(header=raw_headers, data=st.binary(max_size=24), declared=st.none() | st.integers(0, 2**64 - 1))
def test_any_bytes_give_tensors_inside_the_file_or_a_checkpoint_error(tmp_path, header, data, declared):
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if declared is None else declared) + header + data)
    try:
        found = read_header(path)
    except CheckpointError:
        return
    assert sum(t.nbytes for t in found.values()) + 8 + len(header) == path.stat().st_size
    try:
        with safe_open(path, "np") as library:  # nothing passes here that the reference refuses
            assert set(library.keys()) == found.keys()
    except SafetensorError as error:
        pytest.fail(f"taken here, refused by safetensors: {error}")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.none() | st.integers(0, 400))
def test_one_byte_flipped_or_the_end_cut_off_never_escapes(tmp_path, place, byte, cut):
    path = tmp_path / "flip.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.int8), "c": np.ones((), np.float64)}, path)
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] = byte
    path.write_bytes(raw[:cut])
    try:
        found = read_header(path)
    except CheckpointError:
        return
    assert all(t.offset + t.nbytes <= len(raw[:cut]) for t in found.values())
