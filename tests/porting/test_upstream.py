"""The upstream reference holds the weights that we decoded, all of them, or is not used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import BOUND, OWN, Tiny, make, token_ids

from porting.converters.checkpoints.open import open_checkpoint
from porting.errors import EvidenceUnavailable
from porting.upstream import load_upstream, upstream_logits, upstream_version

LLAMA = "LlamaForCausalLM"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make(tmp_path_factory.mktemp("checkpoint") / "tiny", LLAMA, tie_word_embeddings=True)


@pytest.mark.parametrize("architecture", OWN)
def test_it_is_the_model_that_transformers_saved(architecture: str, tmp_path: Path) -> None:
    tiny = make(tmp_path / "tiny", architecture)
    ids = token_ids(2, 19)
    found = upstream_logits(open_checkpoint(tiny.folder), architecture, {"a": ids, "b": ids[:1, :5]})
    np.testing.assert_allclose(found["a"], tiny.logits(ids), rtol=0, atol=BOUND)
    np.testing.assert_allclose(found["b"], tiny.logits(ids[:1, :5]), rtol=0, atol=BOUND)
    assert found["a"].dtype == np.float32


def test_every_parameter_is_set(tiny: Tiny) -> None:
    model = load_upstream(open_checkpoint(tiny.folder), LLAMA)
    held = load_file(tiny.folder / "model.safetensors")
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), held[name])
    assert not model.training and model.lm_head.weight is model.model.embed_tokens.weight


def test_tensors_that_do_not_agree_are_no_reference(tiny: Tiny, tmp_path: Path) -> None:
    for number, (change, said) in enumerate(
        (
            (lambda t: t.pop("model.norm.weight"), r"missing \['model\.norm\.weight'\]"),
            (lambda t: t.update(odd=np.ones(3, np.float32)), r"extra \['odd'\]"),
            (
                lambda t: t.update({"model.norm.weight": np.ones((48, 1), np.float32)}),
                r"another shape \['model\.norm\.weight'\]",
            ),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text((tiny.folder / "config.json").read_text())
        tensors = load_file(tiny.folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(EvidenceUnavailable, match=said):
            load_upstream(open_checkpoint(folder), LLAMA)


def test_a_class_or_a_config_that_transformers_does_not_take(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.folder)
    with pytest.raises(EvidenceUnavailable, match="has no OddForCausalLM"):
        load_upstream(checkpoint, "OddForCausalLM")
    checkpoint.config = {**json.loads((tiny.folder / "config.json").read_text()), "num_attention_heads": 5}
    with pytest.raises(EvidenceUnavailable, match="cannot build this LlamaForCausalLM"):
        load_upstream(checkpoint, LLAMA)


def test_what_is_installed_and_broken_is_said(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # makes `import transformers` fail
    assert upstream_version() is not None
    with pytest.raises(EvidenceUnavailable, match="installed and cannot be imported: ModuleNotFoundError") as error:
        upstream_logits(open_checkpoint(tiny.folder), LLAMA, {"a": token_ids(1, 3)})
    assert error.value.exit_code == 3 and "golden" in error.value.next
