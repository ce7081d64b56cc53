"""The files beside a Hugging Face folder's weights that a port carries along: tokenizer, generation defaults, chat template."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from porting.errors import CheckpointError

from .bert_tokenizer import bert_tokenizer
from .files import read_whole
from .strict_json import parse_object

MAX_SIDE_FILE_BYTES = 256 << 20
JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
TEMPLATE = "chat_template.jinja"
VOCABULARY_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json", "vocab.txt")

# How Qwen2 splits text before BPE. Source: transformers 5.23.0, models/qwen2/tokenization_qwen2.py, PRETOKENIZE_REGEX
QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")


def side_files(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of every side file there is.

    tokenizer.json is made from vocab.json and merges.txt, or from vocab.txt, where it is missing and how to is certain (see
    `qwen2_tokenizer`, `bert_tokenizer`); where it cannot be, the vocabulary files are there as they are.
    raises: CheckpointError for a file that cannot be read, JSON that is none, a template that is not UTF-8
    """
    found = {name: _checked(folder / name) for name in (*JSON_FILES, TEMPLATE) if _exists(folder / name)}
    if "tokenizer.json" not in found:
        vocabulary = {name: _checked(folder / name) for name in VOCABULARY_FILES if _exists(folder / name)}
        made = qwen2_tokenizer({**found, **vocabulary}) or bert_tokenizer({**found, **vocabulary})
        found.update(vocabulary if made is None else {"tokenizer.json": made})
    return found


def _exists(path: Path) -> bool:
    return os.path.lexists(path)  # a link that leads nowhere is a damaged download, not an absent file


def _checked(path: Path) -> bytes:
    data = read_whole(path, MAX_SIDE_FILE_BYTES)
    if path.suffix == ".json":
        parse_object(data, path)
    elif path.suffix in (".jinja", ".txt"):
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{path.name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}",
                where=str(path),
                next="fetch the file again or save it as UTF-8",
            ) from error
    return data


def qwen2_tokenizer(files: dict[str, bytes]) -> bytes | None:
    """tokenizer.json from vocab.json, merges.txt and tokenizer_config.json, or None where that is not certain.

    Certain means: tokenizer_config.json names Qwen2's tokenizer, lists the added tokens with their ids, and the finished
    tokenizer gives every one of them that id. For other byte-level tokenizers (GPT2Tokenizer) the class does not fix how text
    is split: SmolLM2 names it too, and splits digits off.
    """
    if not {"vocab.json", "merges.txt", "tokenizer_config.json"} <= files.keys():
        return None
    config = json.loads(files["tokenizer_config.json"])
    added = config.get("added_tokens_decoder")
    if config.get("tokenizer_class") not in QWEN2_CLASSES or config.get("add_prefix_space") or not isinstance(added, dict):
        return None
    vocabulary = json.loads(files["vocab.json"])
    lines = files["merges.txt"].decode("utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version:")]
    if not all(type(i) is int and 0 <= i < 2**32 for i in vocabulary.values()) or not all(len(m) == 2 for m in merges):
        return None
    return _byte_level_bpe(vocabulary, [(left, right) for left, right in merges], added)


def _byte_level_bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]], added: dict[str, Any]) -> bytes | None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        entries = sorted((int(i), token) for i, token in added.items())
        flags = ("special", "single_word", "lstrip", "rstrip", "normalized")
        for number, token in entries:
            tokenizer.add_tokens([AddedToken(token["content"], **{flag: token[flag] for flag in flags})])
            if tokenizer.token_to_id(token["content"]) != number:
                return None
    except Exception:  # the tokenizers library raises plain Exception for merges that do not fit the vocabulary
        return None
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer.to_str().encode("utf-8")
