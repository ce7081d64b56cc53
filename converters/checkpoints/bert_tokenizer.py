"""tokenizer.json for a folder of BERT's first years, which has vocab.txt alone.

Source: transformers 5.23, models/bert/tokenization_bert.py; WordPiece as in arXiv 1609.08144, section 4.1.
"""

from __future__ import annotations

import json
from typing import Any

CLASSES = ("BertTokenizer", "BertTokenizerFast")
SPECIAL = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}


def bert_tokenizer(files: dict[str, bytes]) -> bytes | None:
    """tokenizer.json from vocab.txt and tokenizer_config.json, or None where that is not certain.

    Certain means: tokenizer_config.json names BERT's tokenizer, or no class and whether to lower the case, which only BERT's family asks;
    and every special token is in the vocabulary.
    """
    if not {"vocab.txt", "tokenizer_config.json"} <= files.keys():
        return None
    config = json.loads(files["tokenizer_config.json"])
    named = config.get("tokenizer_class")
    lower, chinese, accents = (
        config.get(k, d) for k, d in (("do_lower_case", True), ("tokenize_chinese_chars", True), ("strip_accents", None))
    )
    if not (named in CLASSES if named is not None else "do_lower_case" in config):
        return None
    if not (isinstance(lower, bool) and isinstance(chinese, bool) and isinstance(accents, bool | None)):
        return None
    given = {**config, **json.loads(files.get("special_tokens_map.json", b"{}"))}
    special = {kind: _content(given.get(kind, usual)) for kind, usual in SPECIAL.items()}
    lines = files["vocab.txt"].decode("utf-8").split("\n")
    vocabulary = {line.rstrip("\r"): i for i, line in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    added = config.get("added_tokens_decoder") or {}
    if "added_tokens.json" in files or not isinstance(added, dict):
        return None
    if any(str(vocabulary.get(_content(token))) != number for number, token in added.items()):
        return None  # a token beside the vocabulary
    if not set(special.values()) <= vocabulary.keys():
        return None
    return _word_piece(vocabulary, special, lower, chinese, accents)


def _content(token: Any) -> str:
    return str(token.get("content")) if isinstance(token, dict) else str(token)


def _word_piece(vocabulary: dict[str, int], special: dict[str, str], lower: bool, chinese: bool, accents: bool | None) -> bytes:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special.values()])
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=accents, lowercase=lower
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, last = special["cls_token"], special["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
        special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return str(tokenizer.to_str()).encode("utf-8")
