"""What a model is validated on: the same on every machine, inside the model, and enough to show something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from porting.errors import InputError
from porting.inputs import POSITIONS, TEXTS, cases_of, inputs_from_npz, language_model_inputs, require_cases

CONFIG = {"vocab_size": 50, "max_position_embeddings": 20}


def tokenizer(vocabulary: dict[str, int]) -> bytes:
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"}
    return json.dumps({"version": "1.0", "model": model, "pre_tokenizer": {"type": "Whitespace"}}).encode()


def test_seeded_ids_are_fixed_for_ever() -> None:
    """A golden recorded on one machine holds them, and a port elsewhere is run on its own copy of them."""
    cases = language_model_inputs({"vocab_size": 1000}, None)
    assert list(cases) == ["seeded0", "seeded1", "seeded2", "seeded3"]
    assert cases["seeded0"].shape == (1, POSITIONS) and cases["seeded0"].dtype == np.int64
    assert cases["seeded0"][0, :5].tolist() == [213, 4, 461, 615, 825]


def test_texts_go_through_the_tokenizer_and_stop_at_the_context() -> None:
    cases = language_model_inputs(CONFIG, tokenizer({"?": 0, "the": 3}))
    assert set(cases) <= set(TEXTS) and "prose" in cases
    assert all(ids.shape == (1, 20) for name, ids in cases.items() if name != "chinese")
    assert 3 in cases["prose"]


@pytest.mark.parametrize(
    ("config", "tokens", "said"),
    [
        ({"vocab_size": 50}, tokenizer({"?": 77}), "gives id 77, the model has 50"),
        ({}, None, "vocab_size should be a positive number, got None"),
        ({"vocab_size": "50"}, None, "vocab_size"),
        ({"vocab_size": True}, None, "vocab_size"),
        ({"vocab_size": 50, "max_position_embeddings": -1}, None, "max_position_embeddings"),
        ({"vocab_size": 50}, b"{}", "tokenizer"),
        ({"vocab_size": 50, "max_position_embeddings": 1}, tokenizer({"?": 0}), "show nothing"),
    ],
)
def test_what_makes_no_inputs(config: dict[str, Any], tokens: bytes | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        language_model_inputs(config, tokens)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": np.ones((1, 3), np.float32)}, r"'a' should be \(batch, sequence\) integers, got float32"),
        ({"a": np.ones(3, np.int64)}, r"got int64\[3\]"),
        ({"a": np.ones((1, 0), np.int64)}, r"got int64\[1, 0\]"),
        ({"a": np.ones((0, 3), np.int64)}, r"got int64\[0, 3\]"),
        ({"good": np.ones((1, 3), np.int64), "bad": np.array([[1, 50]])}, r"'bad' has ids outside the vocabulary, 0\.\.49"),
        ({"a": np.array([[-1, 2]])}, "outside"),
        ({"a": np.array([[1, 2**63]], np.uint64)}, "beyond every vocabulary"),
        ({"a": np.ones((1, 21), np.int64)}, "21 positions, the model's context is 20"),
        ({"a": np.ones((5, 1), np.int64)}, "no case has two positions"),
        ({}, "no case has two positions"),
        ({"a": np.array([[True, False]])}, "got bool"),
    ],
)
def test_cases_that_do_not_fit(arrays: dict[str, np.ndarray], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=said) as error:
        inputs_from_npz(tmp_path / "x.npz", CONFIG)
    assert error.value.where.startswith(str(tmp_path / "x.npz"))


def test_cases_of_a_user(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array([[1, 2], [3, 4]], np.uint8), b=np.array([[5]]))
    cases = cases_of(CONFIG, None, [tmp_path / "x.npz"])
    assert cases["a"].dtype == np.int64 and cases["a"].tolist() == [[1, 2], [3, 4]] and cases["b"].shape == (1, 1)
    require_cases(cases, CONFIG, "x")
    with pytest.raises(InputError, match="No such file"):
        cases_of(CONFIG, None, [tmp_path / "none.npz"])
