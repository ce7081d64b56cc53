"""Goldens: small, exact on the way through the disk, and refused with a reason when anything about them is off."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting import checked_json
from porting import golden_file as goldens
from porting.errors import InputError
from porting.golden import Golden, GoldenCase, ModelIdentity
from porting.numerics.sketch import estimate_difference, sketch

MODEL = ModelIdentity("LlamaForCausalLM", "c" * 64, {"model.safetensors": "a" * 64})


def golden_of(cases: dict[str, GoldenCase]) -> Golden:
    return Golden(MODEL, {"torch": "2.13.0", "numpy": "2.4"}, "transformers LlamaForCausalLM", "fp32", "cpu", cases)


def small(**changes: Any) -> Golden:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, 4, 50)).astype(np.float32)
    case = {
        "inputs": {"input_ids": np.arange(4, dtype=np.int64)[None], "mask": np.ones((1, 4), np.bool_)},
        "outputs": {
            "logits": sketch(logits, top_k=5),
            "hidden": sketch(rng.standard_normal((4, 8)).astype(np.float16), buckets=16),
        },
    }
    return golden_of({"prefill": GoldenCase(**{**case, **changes})})


def document() -> dict[str, Any]:
    return json.loads(small().to_bytes())


def sealed(content: Any, **changes: Any) -> bytes:
    """A file whose hash is right, whatever its content: written here by the specification, not by the code under test."""
    dump = lambda value: json.dumps(value, sort_keys=True, separators=(",", ":")).encode()  # noqa: E731
    whole = {"content": content, "schema": "porting.golden/1", "sha256": hashlib.sha256(dump(content)).hexdigest(), **changes}
    return dump(whole) + b"\n"


def test_round_trip(tmp_path: Path):
    golden = small()
    golden.save(tmp_path / "g.json")
    again = Golden.load(tmp_path / "g.json")
    assert again.to_bytes() == golden.to_bytes() == (tmp_path / "g.json").read_bytes()
    assert again.model == MODEL
    assert (again.reference, again.precision, again.device) == ("transformers LlamaForCausalLM", "fp32", "cpu")
    assert again.integrity == "hash only, unsigned"
    case, before = again.cases["prefill"], golden.cases["prefill"]
    assert case.inputs["input_ids"].tolist() == [[0, 1, 2, 3]]
    assert case.inputs["mask"].dtype == np.bool_
    for name, old in before.outputs.items():
        new = case.outputs[name]
        assert (new.shape, new.dtype, new.l2_norm, new.mean, new.minimum, new.maximum) == (
            (old.shape, old.dtype, old.l2_norm, old.mean, old.minimum, old.maximum)
        )
        assert new.buckets.tolist() == old.buckets.tolist()
    for part in ("top_ids", "top_values", "logsumexp"):
        assert getattr(case.outputs["logits"], part).tolist() == getattr(before.outputs["logits"], part).tolist()
    assert case.outputs["hidden"].top_ids is None


def test_a_loaded_golden_judges_like_the_one_that_was_recorded(tmp_path: Path):
    logits = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    golden_of({"a": GoldenCase({}, {"logits": sketch(logits)})}).save(tmp_path / "g")
    loaded = Golden.load(tmp_path / "g").cases["a"].outputs["logits"]
    assert estimate_difference(loaded, logits).rel_l2 == 0
    assert estimate_difference(loaded, logits * np.float32(1.01)).rel_l2 == pytest.approx(0.01, rel=0.2)


def test_96_positions_of_a_large_vocabulary_are_kilobytes(tmp_path: Path):
    logits = (np.random.default_rng(0).standard_normal((1, 96, 49152)) * 4).astype(np.float32)
    case = GoldenCase({"input_ids": np.zeros((1, 96), np.int64)}, {"logits": sketch(logits, top_k=64)})
    golden_of({"text": case}).save(tmp_path / "g")
    assert (tmp_path / "g").stat().st_size < 150_000


def test_saving_is_atomic_and_readable_by_others(tmp_path: Path, monkeypatch):
    target = tmp_path / "g.json"
    small().save(target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    before = target.read_bytes()
    monkeypatch.setattr(goldens.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(goldens.OutOfResources, match="No space left"):
        small().save(target)
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["g.json"]


def test_places_that_cannot_be_used(tmp_path: Path):
    with pytest.raises(InputError, match="cannot write a golden: No such file or directory"):
        small().save(tmp_path / "none" / "g.json")
    with pytest.raises(InputError, match="no such file"):
        Golden.load(tmp_path / "g.json")
    with pytest.raises(InputError, match="not a file"):
        Golden.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer for ever
    with pytest.raises(InputError, match="not a file"):
        Golden.load(tmp_path / "pipe")


def test_no_changed_byte_goes_unnoticed():
    data = small().to_bytes()
    rng = np.random.default_rng(0)
    for at in [*range(40), *range(len(data) - 120, len(data)), *rng.integers(0, len(data), 300).tolist()]:
        changed = bytearray(data)
        changed[at] ^= int(rng.integers(1, 256))
        with pytest.raises(InputError):
            Golden.from_bytes(bytes(changed))
    for spaced in (data + b" ", b" " + data, data[:-1], data.replace(b",", b", ", 1)):
        with pytest.raises(InputError, match="changed since it was recorded"):
            Golden.from_bytes(spaced)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no JSON object, or truncated"),
        (b"PK\x03\x04", "no JSON object, or truncated"),
        (b"{}", "not a golden: schema 'None'"),
        (b'{"a": 1.5}', "only integers stand"),
        (b'{"a": NaN}', "only integers stand"),
        (b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "not a golden"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not a golden"),
        (b'{"schema":"porting.verdict/1"}', "not a golden: schema 'porting.verdict/1'"),
        (b'{"schema":"porting.golden/2"}', "written by a newer version: schema 'porting.golden/2'"),
    ],
)
def test_what_is_no_golden(data, message):
    with pytest.raises(InputError, match=message):
        Golden.from_bytes(data)


def test_a_truncated_file_says_so(tmp_path: Path):
    (tmp_path / "g").write_bytes(small().to_bytes()[:700])
    with pytest.raises(InputError, match="truncated") as caught:
        Golden.load(tmp_path / "g")
    assert str(tmp_path / "g") in caught.value.where


def test_a_file_beyond_the_limit_is_not_read(monkeypatch):
    monkeypatch.setattr(goldens, "MAX_FILE_BYTES", 100)
    with pytest.raises(InputError, match="more than 100 bytes"):
        Golden.from_bytes(b"{" * 101)


def test_arrays_beyond_the_limit_are_not_decoded(monkeypatch):
    data = small().to_bytes()
    monkeypatch.setattr(checked_json, "MAX_ARRAY_BYTES", 1000)
    with pytest.raises(InputError, match="expected 256 float64 in base64"):
        Golden.from_bytes(data)


def edits() -> list[tuple[Any, str]]:
    def case(d):
        return d["cases"]["prefill"]

    def logits(d):
        return case(d)["outputs"]["logits"]

    def ids(d):
        return case(d)["inputs"]["input_ids"]

    def b64(values, dtype):
        return base64.b64encode(np.asarray(values, dtype).tobytes()).decode()

    return [
        (lambda d: d.update(extra=1), "unknown key 'extra'"),
        (lambda d: d.pop("tools"), "missing key 'tools'"),
        (lambda d: d["model"].update(licence="x"), "unknown key 'licence'"),
        (lambda d: d["model"].update(architecture=3), "expected a text"),
        (lambda d: d["model"]["files"].update({"x" * 600: ""}), "expected a text of at most 512"),
        (lambda d: d.update(cases={}), "nothing to compare with"),
        (lambda d: d.update(cases=[]), "expected an object, got list"),
        (lambda d: ids(d).update(dtype="object"), "dtype 'object' is not one of"),
        (lambda d: ids(d).update(shape=[1, 5]), "expected 5 int64 in base64"),
        (lambda d: ids(d).update(shape=[-1, 4]), "expected an integer in"),
        (lambda d: ids(d).update(shape=[True, 4]), "expected an integer in"),
        (lambda d: ids(d).update(shape=[1 << 13, 1 << 13]), "has more than"),
        (lambda d: ids(d).update(shape=[10**4000]), "expected an integer in"),
        (lambda d: ids(d).update(shape=[1] * 40), "at most 16 axes"),
        (lambda d: ids(d).update(data="!" * 44), "not base64"),
        (lambda d: logits(d).update(shape=[1, 4, 1 << 60]), "expected an integer in"),
        (lambda d: logits(d).update(dtype="float33"), "dtype 'float33' is not one of"),
        (lambda d: logits(d).update(dtype=[]), r"dtype '\[\]' is not one of"),
        (lambda d: logits(d).update(l2_norm="nan"), "not finite"),
        (lambda d: logits(d).update(l2_norm="a lot"), "unreadable"),
        (lambda d: logits(d).update(l2_norm=3), "expected a text"),
        (lambda d: logits(d).update(nan_count=1), "the reference itself holds NaN"),
        (lambda d: logits(d).update(nan_count=201), "expected an integer in"),
        (lambda d: logits(d).update(seed="-00000000000000f"), "unreadable"),
        (lambda d: logits(d).update(seed="zz"), "unreadable"),
        (lambda d: logits(d).update(seed="0x0000000000000f"), "not 16 hexadecimal digits"),
        (lambda d: logits(d).update(buckets=""), "expected 2 float64"),
        (lambda d: logits(d).update(buckets=b64([1.0] * 100, "<f8")), "expected 64 float64"),
        (lambda d: logits(d).update(buckets=b64([np.nan] * 64, "<f8")), "buckets are not finite"),
        (lambda d: logits(d)["top"].update(k=51), "expected an integer in"),
        (lambda d: logits(d)["top"].update(k=4), "in base64"),
        (lambda d: logits(d)["top"].update(ids=b64([[0, 1, 2, 3, 50]] * 4, "<i4")), "top tokens are not distinct"),
        (lambda d: logits(d)["top"].update(ids=b64([[0, 1, 2, 3, 3]] * 4, "<i4")), "top tokens are not distinct"),
        (lambda d: logits(d)["top"].update(values=b64([[1, 2, 3, 4, 5]] * 4, "<f4")), "top tokens are not distinct"),
        (lambda d: logits(d)["top"].update(values=b64([[np.nan] * 5] * 4, "<f4")), "top tokens are not distinct"),
        (lambda d: logits(d)["top"].update(logsumexp=b64([np.inf] * 4, "<f8")), "top tokens are not distinct"),
    ]


@pytest.mark.parametrize(("edit", "message"), edits())
def test_content_that_cannot_be_meant_is_refused_even_with_a_right_hash(edit, message):
    content = document()["content"]
    edit(content)
    with pytest.raises(InputError, match=message):
        Golden.from_bytes(sealed(content))


def test_the_specification_alone_is_enough_to_write_one():
    data = small().to_bytes()
    assert sealed(document()["content"]) == data
    with pytest.raises(InputError, match="unknown key 'signed'"):
        Golden.from_bytes(sealed(document()["content"], signed=True))


def test_keys_given_twice_are_refused():
    data = small().to_bytes()
    twice = data.replace(b'"schema":', b'"schema":"porting.golden/1","schema":', 1)
    with pytest.raises(InputError, match="changed since it was recorded"):
        Golden.from_bytes(twice)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": {"y": sketch(np.array([1.0, np.nan]))}}, "the reference itself holds NaN"),
        ({"outputs": {"y": sketch(np.array([np.inf, np.inf]))}}, "empty or not finite"),
        ({"outputs": {}}, "nothing to compare with"),
        ({"inputs": {"x": np.array(["text"])}}, "does not go into a golden"),
        ({"inputs": {"x": np.zeros(1 << 22)}}, "does not go into a golden"),
    ],
)
def test_what_shows_nothing_is_not_written(changes, message):
    with pytest.raises(InputError, match=message):
        small(**changes).to_bytes()


def test_another_model_is_refused_and_other_files_are_named():
    golden = small()
    assert golden.require_model(MODEL) == []
    gguf = ModelIdentity(MODEL.architecture, MODEL.config_sha256, {"model.gguf": "b" * 64})
    assert golden.require_model(gguf) == ["model.gguf", "model.safetensors"]
    for other in (ModelIdentity("Qwen2ForCausalLM", "c" * 64, {}), ModelIdentity(MODEL.architecture, "d" * 64, {})):
        with pytest.raises(InputError, match="this golden is of another model"):
            golden.require_model(other)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def paths_of(value: Any, at: tuple = ()) -> list[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [p for key, inner in items for p in paths_of(inner, (*at, key))]


PATHS = paths_of(document()["content"])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PATHS), JSON)
def test_any_value_in_any_place_loads_or_is_refused(path, value):
    content = inner = document()["content"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with contextlib.suppress(InputError):
        assert Golden.from_bytes(sealed(content)).cases


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data):
    for given_bytes in (data, b"{" + data + b"}"):
        with pytest.raises(InputError):
            Golden.from_bytes(given_bytes)
