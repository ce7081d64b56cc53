"""tokenizer.json from vocab.txt: the ids are upstream's, or none is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.converters.checkpoints.bert_tokenizer import bert_tokenizer
from porting.converters.checkpoints.side_files import side_files
from porting.generation.tokens import tokenizer_from_bytes

WORDS = [
    "[PAD]",
    "[unused0]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "boat",
    "##s",
    "Boat",
    "cafe",
    "caf\u00e9",
    "\u4eba",
    "##\u4eba",
]
WORDS += [*"abcdefghijklmnopqrstuvwxyzBC.,!'-", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz\u00e9")]
TEXTS = [
    "The boats, the Boat!",
    "caf\u00e9 cafe CAF\u00c9",
    "\u4eba\u4eba a\u4eba",
    "don't [MASK] \t\x00 it\u200b",
    "",
    "x" * 120,
    "[sep] [SEP]",
]
CONFIGS: list[dict[str, Any]] = [
    {"tokenizer_class": "BertTokenizer"},
    {"do_lower_case": False, "added_tokens_decoder": {"3": {"content": "[CLS]", "special": True}}},
    {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False},
    {"do_lower_case": False, "strip_accents": True, "tokenizer_class": "BertTokenizerFast"},
]


def _folder(path: Path, config: dict[str, Any] | None, words: list[str] = WORDS) -> Path:
    path.mkdir(exist_ok=True)
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_ids_and_types_are_those_of_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    import transformers

    folder = _folder(tmp_path / "t", config)
    ours = tokenizer_from_bytes(side_files(folder)["tokenizer.json"])
    theirs = transformers.BertTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
    pair, wanted = ours.encode(TEXTS[0], TEXTS[1]), theirs(TEXTS[0], TEXTS[1])
    assert pair.ids == wanted["input_ids"] and pair.type_ids == wanted["token_type_ids"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, WORDS),
        ({"model_max_length": 512}, WORDS),
        ({"tokenizer_class": "RoFormerTokenizer", "do_lower_case": True}, WORDS),
        ({"tokenizer_class": "BertTokenizer", "do_lower_case": "yes"}, WORDS),
        ({"tokenizer_class": "BertTokenizer"}, [w for w in WORDS if w != "[MASK]"]),
        ({"tokenizer_class": "BertTokenizer", "cls_token": "<s>"}, WORDS),
        ({"tokenizer_class": "BertTokenizer", "added_tokens_decoder": [1]}, WORDS),
        ({"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {"900": {"content": "[NEW]"}}}, WORDS),
    ],
    ids=str,
)
def test_none_is_made_where_it_is_not_certain(config: dict[str, Any] | None, words: list[str], tmp_path: Path) -> None:
    found = side_files(_folder(tmp_path / "t", config, words))
    assert "tokenizer.json" not in found and "vocab.txt" in found


_VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=1)
_KEYS = ["tokenizer_class", "do_lower_case", "strip_accents", "cls_token", "added_tokens_decoder", "tokenize_chinese_chars"]


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from(_KEYS), _VALUES | st.dictionaries(st.text(max_size=2), _VALUES, max_size=2)),
    st.text(max_size=20),
)
def test_whatever_the_config_says_it_is_made_or_not(config: dict[str, Any], extra: str) -> None:
    made = bert_tokenizer(
        {"vocab.txt": "\n".join([*WORDS, extra]).encode(), "tokenizer_config.json": json.dumps(config).encode()}
    )
    assert made is None or tokenizer_from_bytes(made).token_to_id("[CLS]") == 3
