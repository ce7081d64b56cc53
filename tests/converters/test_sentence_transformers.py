"""sentence-transformers folders: pooling, dense layers and normalisation in the graph, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tiny import program_of, scratch
from tiny_encoders import BOUND, SHOWS, feeds_of, make_sentence_folder, upstream

from porting.conversion import canonical_graph, convert
from porting.converters.checkpoints.open import open_checkpoint
from porting.encoder_reference import EncoderReference
from porting.errors import CheckpointError, PortingError, UnsupportedModel
from porting.session import load, open_session

POOLINGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")


def _embedding(folder: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return open_session(program_of(canonical_graph(open_checkpoint(folder)).graph)).run(feeds)["sentence_embedding"]


def _pooled(hidden: np.ndarray, mask: np.ndarray, pooling: str) -> np.ndarray:
    """One row at a time, without any mask arithmetic."""
    rows = []
    for states, shown in zip(hidden, mask.astype(bool), strict=True):
        seen = states[shown]
        found = {
            "cls_token": lambda s=states: s[0],
            "mean_tokens": lambda s=seen: s.mean(0),
            "max_tokens": lambda s=seen: s.max(0),
            "mean_sqrt_len_tokens": lambda s=seen: s.sum(0) / np.sqrt(len(s)),
        }
        rows.append(found[pooling]())
    return np.stack(rows)


@pytest.mark.parametrize("architecture", ["BertModel", "RobertaModel", "XLMRobertaModel"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_with_what_may_follow(pooling: str, architecture: str, tmp_path: Path) -> None:
    steps = ("Dropout", "Dense", "Normalize", "Dense") if pooling in ("cls_token", "mean_tokens") else ()
    model = make_sentence_folder(tmp_path / "s", f"pooling_mode_{pooling}", steps, architecture=architecture)
    feeds = feeds_of()
    wanted = _pooled(upstream(model, feeds)["last_hidden_state"], feeds["attention_mask"], pooling)
    for kind, place in ((kind, f"{n}_{kind}") for n, kind in enumerate(steps, 2)):
        if kind == "Dense":
            dense = load_file(tmp_path / "s" / place / "model.safetensors")
            wanted = np.tanh(wanted @ dense["linear.weight"].T + dense["linear.bias"])
        if kind == "Normalize":
            wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    found = _embedding(tmp_path / "s", feeds)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=BOUND)
    reference = EncoderReference(open_checkpoint(tmp_path / "s")).run(feeds)["sentence_embedding"]
    np.testing.assert_allclose(found, reference, rtol=0, atol=BOUND)
    ported = convert(tmp_path / "s", tmp_path / "port").path
    with load(ported) as session:
        assert session.outputs[-1].name == "sentence_embedding" and session.outputs[-1].shape[1] == wanted.shape[1]
        np.testing.assert_allclose(session.run(feeds)["sentence_embedding"], wanted, rtol=0, atol=BOUND)


@pytest.mark.parametrize("pooling", ["mean_tokens", "max_tokens", "mean_sqrt_len_tokens"])
def test_a_text_without_tokens_has_a_finite_embedding(pooling: str, tmp_path: Path) -> None:
    make_sentence_folder(tmp_path / "s", f"pooling_mode_{pooling}")
    feeds = feeds_of()
    feeds["attention_mask"][0] = 0
    found = _embedding(tmp_path / "s", feeds)
    assert np.isfinite(found).all()
    wanted = EncoderReference(open_checkpoint(tmp_path / "s")).run(feeds)["sentence_embedding"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=BOUND)


def test_the_poolings_are_told_apart(tmp_path: Path) -> None:
    """Otherwise a bound would say nothing."""
    found = []
    for pooling in POOLINGS:
        make_sentence_folder(tmp_path / pooling, f"pooling_mode_{pooling}")
        found.append(_embedding(tmp_path / pooling, feeds_of()))
    normalised_alike = {
        ("mean_tokens", "mean_sqrt_len_tokens")
    }  # they differ by a factor per text, which normalising takes away
    for i, a in enumerate(POOLINGS):
        for j in range(i + 1, len(POOLINGS)):
            assert (np.abs(found[i] - found[j]).max() > SHOWS) == ((a, POOLINGS[j]) not in normalised_alike)


def test_the_encoder_may_have_a_folder_and_a_head(tmp_path: Path) -> None:
    """0_Transformer/ of older versions; and upstream takes the bare encoder, whatever config.json names."""
    make_sentence_folder(tmp_path / "a", inside="0_Transformer")
    make_sentence_folder(tmp_path / "b")
    config = tmp_path / "b" / "config.json"
    config.write_text(config.read_text().replace('"BertModel"', '"BertForMaskedLM"'))
    checkpoint = open_checkpoint(tmp_path / "b")
    assert checkpoint.config["architectures"] == ["BertModel"]
    np.testing.assert_array_equal(_embedding(tmp_path / "a", feeds_of()), _embedding(tmp_path / "b", feeds_of()))


def test_what_the_folder_says_is_in_config_and_files(tmp_path: Path) -> None:
    make_sentence_folder(tmp_path / "s", steps=("Dense",))
    settings_file = tmp_path / "s" / "config_sentence_transformers.json"
    prompts = {"query": "query: ", "passage": "passage: "}
    settings_file.write_text(json.dumps({"__version__": {}, "prompts": prompts, "default_prompt_name": "query"}))
    checkpoint = open_checkpoint(tmp_path / "s")
    assert checkpoint.config["sentence_transformers"] == {
        "pooling": "mean",
        "steps": [{"kind": "dense", "name": "2_Dense", "out_features": 41, "bias": True, "activation": "tanh"}],
        "max_seq_length": 12,
        "do_lower_case": True,
        "prompt": "query: ",
    }
    names = {str(file.relative_to(tmp_path / "s")) for file in checkpoint.files}
    assert names >= {"modules.json", "config.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"}
    assert "tokenizer.json" in checkpoint.side_files()
    assert checkpoint.rows("2_Dense.linear.bias", 0, 41).shape == (41,)
    assert "2_Dense.linear.weight" in canonical_graph(checkpoint).tensors["used"]


def test_a_dense_layer_of_another_size_is_refused_by_name(tmp_path: Path) -> None:
    make_sentence_folder(tmp_path / "s", steps=("Dense", "Dense"))
    shutil.copy(tmp_path / "s" / "2_Dense" / "model.safetensors", tmp_path / "s" / "3_Dense" / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"3_Dense.linear.weight: the config asks for \[34, 41\], the file holds \[41, 48\]"
    ):
        canonical_graph(open_checkpoint(tmp_path / "s"))


def _modules(change: Callable[[list[dict[str, Any]]], Any]) -> tuple[str, Callable[[Any], Any]]:
    return "modules.json", change


def _set(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config.update(values)


_NONE = dict.fromkeys((f"pooling_mode_{name}" for name in POOLINGS), False)
REFUSED: dict[str, tuple[str, Callable[[Any], Any], type[PortingError], str]] = {
    "two poolings": ("1_Pooling/config.json", _set(pooling_mode_cls_token=True), UnsupportedModel, "cls and mean"),
    "no pooling": ("1_Pooling/config.json", _set(**_NONE), UnsupportedModel, "by nothing"),
    "last token": ("1_Pooling/config.json", _set(**_NONE, pooling_mode_lasttoken=True), UnsupportedModel, "lasttoken"),
    "pooling by name": ("1_Pooling/config.json", _set(pooling_mode="weightedmean"), UnsupportedModel, "weightedmean"),
    "prompt left out": ("1_Pooling/config.json", _set(include_prompt=False), UnsupportedModel, "include_prompt=False"),
    "unknown pooling key": ("1_Pooling/config.json", _set(odd=1), UnsupportedModel, "odd=1"),
    "another size": ("1_Pooling/config.json", _set(word_embedding_dimension=3), CheckpointError, "hidden_size 48"),
    "another activation": ("2_Dense/config.json", _set(activation_function="my.Own"), UnsupportedModel, "'my.Own'"),
    "sizes that are none": ("2_Dense/config.json", _set(out_features="many"), CheckpointError, "out_features"),
    "arguments of the model": ("sentence_bert_config.json", _set(model_args={"a": 1}), UnsupportedModel, "model_args"),
    "a length that is none": ("sentence_bert_config.json", _set(max_seq_length=-1), CheckpointError, "length"),
    "another encoder": ("config.json", _set(architectures=["MPNetModel"]), UnsupportedModel, "MPNetModel"),
    "layer norm": (*_modules(lambda m: m[2].update(type="sentence_transformers.models.LayerNorm")), UnsupportedModel, "'LayerNorm'"),
    "code of its own": (*_modules(lambda m: m[2].update(type="custom_st.Step")), UnsupportedModel, "code of its own"),
    "no pooling module": (*_modules(lambda m: m.pop(1)), UnsupportedModel, "lists Transformer, Dense"),
    "a path out": (*_modules(lambda m: m[1].update(path="../1_Pooling")), CheckpointError, "directly beside"),
    "an absolute path": (*_modules(lambda m: m[0].update(path="/tmp")), CheckpointError, "directly beside"),
    "a folder twice": (*_modules(lambda m: m[2].update(path="1_Pooling")), CheckpointError, "twice"),
    "no folder": (*_modules(lambda m: m[1].update(path="9_Pooling")), CheckpointError, "does not exist"),
    "no object": (*_modules(lambda m: m.append(3)), CheckpointError, "got 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_covered_is_refused_by_name(case: str, tmp_path: Path) -> None:
    file, change, kind, said = REFUSED[case]
    make_sentence_folder(tmp_path / "s", steps=("Dense", "Normalize"))
    content = json.loads((tmp_path / "s" / file).read_text())
    change(content)
    (tmp_path / "s" / file).write_text(json.dumps(content))
    with pytest.raises(kind, match=said):
        canonical_graph(open_checkpoint(tmp_path / "s"))


@pytest.mark.parametrize("name", ["query", ["a"], 3])
def test_a_default_prompt_that_is_not_there_is_refused(name: Any, tmp_path: Path) -> None:
    make_sentence_folder(tmp_path / "s")
    (tmp_path / "s" / "config_sentence_transformers.json").write_text(
        json.dumps({"default_prompt_name": name, "prompts": {"a": "b"}})
    )
    with pytest.raises(CheckpointError, match="none of the prompts"):
        open_checkpoint(tmp_path / "s")


_FUZZED = scratch() / "s"
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from(["", "Dense", "2_Dense", "..", "mean", "\0", "a/b"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "path", "bias"]), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_description_is_an_error_and_never_a_crash(data: st.DataObject) -> None:
    if not _FUZZED.exists():
        make_sentence_folder(_FUZZED, steps=("Dense", "Normalize"))
    file = _FUZZED / data.draw(
        st.sampled_from(["modules.json", "1_Pooling/config.json", "2_Dense/config.json", "sentence_bert_config.json"])
    )
    before = file.read_text()
    content = json.loads(before)
    target = data.draw(st.sampled_from(content)) if isinstance(content, list) else content
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(_VALUES)
    try:
        file.write_text(json.dumps(content))
        canonical_graph(open_checkpoint(_FUZZED))
    except PortingError:
        pass  # said, with what and where; anything else is ours to mend
    finally:
        file.write_text(before)
