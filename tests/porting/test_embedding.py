"""embed: texts to vectors; neither batch, order nor padding changes one; what it needs and does not get is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import OWN, make, scratch
from tiny_encoders import BOUND, WORDS, make_encoder, make_sentence_folder, tokenizer_json, upstream

import porting
from porting.cli import porting_command
from porting.conversion import convert
from porting.embedding import POOLINGS, Embedder
from porting.errors import InputError, UsageError

TEXTS = ["the boat", "nobody saw it go", "a boat lay still in the harbour and nobody saw it go and go", "it", "harbour"]


@pytest.fixture(scope="module")
def sentence() -> tuple[Path, object]:
    folder = scratch()
    model = make_sentence_folder(folder / "s")
    return convert(folder / "s", folder / "port").path, model


@pytest.fixture(scope="module")
def plain() -> tuple[Path, object]:
    """An encoder's folder that says nothing of pooling."""
    folder = scratch()
    model = make_encoder(folder / "s", "RobertaModel")
    (folder / "s" / "tokenizer.json").write_text(tokenizer_json())
    (folder / "s" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": int(1e30)}))
    return convert(folder / "s", folder / "port").path, model


def _ids(text: str) -> list[int]:
    return [1, *(10 + WORDS.index(word) for word in text.split()), 2]


def _alone(model: object, ids: list[int]) -> np.ndarray:
    """The mean over one text run by itself, by transformers."""
    return upstream(model, {"input_ids": np.array([ids])})["last_hidden_state"][0].mean(0)


def test_vectors_are_those_of_each_text_alone(sentence: tuple[Path, object]) -> None:
    port, model = sentence
    found = porting.embed(port, TEXTS)
    assert found.shape == (5, 48) and found.dtype == np.float32
    for text, vector in zip(TEXTS, found, strict=True):
        ids = _ids(text)
        cut = ids if len(ids) <= 12 else [*ids[:11], 2]  # max_seq_length 12, special tokens included
        wanted = _alone(model, cut)
        np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), rtol=0, atol=BOUND)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(5)), st.integers(1, 6))
def test_neither_order_nor_batch_changes_a_vector(order: list[int], batch_size: int) -> None:
    global _OPEN
    if _OPEN is None:
        folder = scratch()
        make_sentence_folder(folder / "s", architecture="RobertaModel")
        _OPEN = Embedder(convert(folder / "s", folder / "port").path)
    wanted = _OPEN(TEXTS, batch_size=1)
    np.testing.assert_allclose(_OPEN([TEXTS[i] for i in order], batch_size=batch_size), wanted[order], rtol=0, atol=BOUND)


_OPEN: Embedder | None = None


def test_case_spaces_and_prompt_are_as_the_folder_says(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    model = make_sentence_folder(folder)
    prompt = {"prompts": {"query": "go "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompt))
    (vector,) = porting.embed(convert(folder, tmp_path / "port").path, ["  The BOAT "])
    wanted = _alone(model, _ids("go the boat"))
    np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), rtol=0, atol=BOUND)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_port_that_does_not_say_is_pooled_as_asked(pooling: str, plain: tuple[Path, object]) -> None:
    port, model = plain
    found = porting.embed(port, TEXTS, pooling=pooling)
    for text, vector in zip(TEXTS, found, strict=True):
        hidden = upstream(model, {"input_ids": np.array([_ids(text)])})["last_hidden_state"][0]
        wanted = {
            "mean": hidden.mean(0),
            "cls": hidden[0],
            "max": hidden.max(0),
            "mean_sqrt_len": hidden.sum(0) / np.sqrt(len(hidden)),
        }[pooling]
        np.testing.assert_allclose(vector, wanted, rtol=0, atol=BOUND)
    unit = porting.embed(port, TEXTS, pooling=pooling, normalize=True)
    np.testing.assert_allclose(unit, found / np.linalg.norm(found, axis=1, keepdims=True), rtol=0, atol=1e-6)


def test_long_texts_are_cut_at_the_context(plain: tuple[Path, object]) -> None:
    port, model = plain
    with Embedder(port, pooling="mean") as embedder:
        assert embedder.limit == 34  # 40 positions behind the padding's, 5
        (vector,) = embedder(["boat " * 100])
    np.testing.assert_allclose(vector, _alone(model, [1, *[11] * 32, 2]), rtol=0, atol=BOUND)


def test_no_texts_make_no_vectors(sentence: tuple[Path, object]) -> None:
    assert porting.embed(sentence[0], []).shape == (0, 48)


def test_what_is_asked_wrongly_is_said(sentence: tuple[Path, object], plain: tuple[Path, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not say how"):
        porting.embed(plain[0], ["it"])
    with pytest.raises(UsageError, match="no pooling 'meen'") as caught:
        porting.embed(plain[0], ["it"], pooling="meen")
    assert "mean" in caught.value.next
    with pytest.raises(UsageError, match="an embedding of its own"):
        porting.embed(sentence[0], ["it"], pooling="cls")
    with pytest.raises(UsageError, match="a list of texts"):
        porting.embed(sentence[0], "it")
    with pytest.raises(UsageError, match="a batch of 0"):
        porting.embed(sentence[0], ["it"], batch_size=0)
    with pytest.raises(InputError, match="not Unicode"):
        porting.embed(sentence[0], ["\udcff"])
    make_sentence_folder(tmp_path / "s", tokenizer=False)
    with pytest.raises(InputError, match="no tokenizer"):
        porting.embed(convert(tmp_path / "s", tmp_path / "port").path, ["it"])
    make(tmp_path / "llama", next(iter(OWN)))
    with pytest.raises(InputError, match="no embeddings"):
        porting.embed(convert(tmp_path / "llama", tmp_path / "llama.port").path, ["it"])


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    make_sentence_folder(tmp_path / "s", vocab_size=15)
    with pytest.raises(InputError, match="gives id 21, the model has 15"):
        porting.embed(convert(tmp_path / "s", tmp_path / "port").path, ["go"])


def test_the_command(sentence: tuple[Path, object], plain: tuple[Path, object], tmp_path: Path) -> None:
    port, wanted = str(sentence[0]), porting.embed(sentence[0], TEXTS)
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(TEXTS[2:]) + "\n")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(porting_command, ["embed", *arguments], catch_exceptions=False, standalone_mode=True)
        assert result.exit_code == 0, result.output
        return result.stdout

    shown = json.loads(run(port, *TEXTS[:2], "--input-file", str(lines), "--json"))
    assert shown["schema"] == "porting.embed/1" and shown["shape"] == [5, 48] and shown["device"] == "cpu"
    np.testing.assert_allclose(shown["embeddings"], wanted, rtol=0, atol=1e-6)
    run(port, *TEXTS, "-o", str(tmp_path / "x.npy"))
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), wanted, rtol=0, atol=1e-6)
    table = run(port, *TEXTS[:2]).splitlines()
    assert table[1].startswith("+1.0000") and f"{float(wanted[0] @ wanted[1]):+.4f}" in table[2]
    unit = json.loads(run(str(plain[0]), "it", "--pooling", "cls", "--normalize", "--json"))["embeddings"]
    assert abs(np.linalg.norm(unit) - 1) < 1e-5
    with pytest.raises(UsageError, match="already exists"):
        run(port, "it", "-o", str(tmp_path / "x.npy"))
    with pytest.raises(UsageError, match="no text"):
        run(port)
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        run(port, "--input-file", str(tmp_path / "bytes"))
