"""The tokenizer in GGUF metadata as Hugging Face's files, through the `tokenizers` package alone.

Source: the GGUF specification ("tokenizer"), llama.cpp's src/llama-vocab.cpp for defaults and for what a name in
tokenizer.ggml.pre stands for, and the tokenizer.json files of the models named at each entry of PRE_TOKENIZERS.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from porting.errors import CheckpointError, UnsupportedModel, nearest

from .gguf_header import Value

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
SPACE = "\u2581"  # SentencePiece's visible space
MAX_PIECE = 512  # characters; SentencePiece trains with 16, and every way to cut a piece in two is looked at

# Regular expressions that cut text into the words that merges stay inside. Where llama.cpp had to rewrite an expression for
# its own engine, the one here is the model's own, from its tokenizer.json.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
GPT2 = WORDS + r"|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """What a name in tokenizer.ggml.pre stands for.

    patterns:      applied one after the other, each to the pieces that the one before left
    ignore_merges: a word that is a token is taken whole, even when no merges lead to it
    add_bos:       when the file does not say
    nfc:           text is normalised to NFC first (llama.cpp never does; upstream's tokenizer.json decides)
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False


PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer((GPT2,)),  # openai-community/gpt2
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", WORDS, r"\p{N}+", r"[0-9][0-9][0-9]")),  # llama.cpp's own
    "smollm": PreTokenizer((r"\p{N}", GPT2)),  # HuggingFaceTB/SmolLM2: digits one by one, then GPT-2's
    "llama-bpe": PreTokenizer((LLAMA3,), ignore_merges=True, add_bos=True),  # meta-llama/Meta-Llama-3-8B
    "llama3": PreTokenizer((LLAMA3,), ignore_merges=True, add_bos=True),
    "llama-v3": PreTokenizer((LLAMA3,), ignore_merges=True, add_bos=True),
    "qwen2": PreTokenizer((QWEN2,), nfc=True),  # Qwen/Qwen2-7B, also Qwen2.5 and Qwen3
    "deepseek-r1-qwen": PreTokenizer((QWEN2,)),  # deepseek-ai/DeepSeek-R1-Distill-Qwen
    "tekken": PreTokenizer((TEKKEN,), ignore_merges=True, add_bos=True),  # mistralai/Mistral-Nemo
}


@dataclass(frozen=True)
class Vocabulary:
    """tokenizer.ggml.*, checked.

    tokens: text by id, each once; types: (tokens,) of token_type
    ids:    "bos", "eos", "unknown", "padding", ... -> id, those that the file names
    """

    path: Path
    metadata: Mapping[str, Value]
    tokens: list[str]
    types: np.ndarray
    ids: Mapping[str, int]

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path.name}: {what}", where=f"{self.path}, tokenizer")

    def flag(self, name: str, default: bool) -> bool:
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if type(value) is not bool:
            raise self.error(f"tokenizer.ggml.{name} should be a bool, got {value!r:.80}")
        return value

    def token(self, name: str) -> str | None:
        return self.tokens[self.ids[name]] if name in self.ids else None


def side_files(metadata: Mapping[str, Value], path: Path) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and generation_config.json; {} when the file has no tokenizer.

    raises: UnsupportedModel for a kind or pre-tokenizer that is not covered, CheckpointError for one that contradicts itself
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        return {}
    if not isinstance(kind, str) or kind not in ("gpt2", "llama", "no_vocab"):
        raise UnsupportedModel(
            f"tokenizer {kind!r:.80} is not covered",
            where=str(path),
            next="covered: gpt2 (byte-level BPE), llama (SentencePiece)",
        )
    if kind == "no_vocab":
        return {}
    vocabulary = _vocabulary(metadata, path)
    tokenizer, add_bos = byte_level_bpe(vocabulary) if kind == "gpt2" else sentencepiece_bpe(vocabulary)
    add_bos = vocabulary.flag("add_bos_token", add_bos and "bos" in vocabulary.ids)
    add_eos = vocabulary.flag("add_eos_token", False)
    _add_special_tokens(tokenizer, vocabulary)
    _frame(tokenizer, vocabulary, add_bos, add_eos)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": vocabulary.token("bos"),
        "eos_token": vocabulary.token("eos"),
        "unk_token": vocabulary.token("unknown"),
        "pad_token": vocabulary.token("padding"),
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
    }
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        if not isinstance(template, str):
            raise vocabulary.error("tokenizer.chat_template is not text")
        config["chat_template"] = template
    ids = vocabulary.ids
    stops = list(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if name in ids))  # each ends a generation
    generation: dict[str, Any] = {}
    if "bos" in ids:
        generation["bos_token_id"] = ids["bos"]
    if stops:
        generation["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    if "padding" in ids:
        generation["pad_token_id"] = ids["padding"]
    return {
        "tokenizer.json": tokenizer.to_str().encode("utf-8"),
        "tokenizer_config.json": _json({k: v for k, v in config.items() if v is not None}),
        "generation_config.json": _json(generation),
    }


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def _vocabulary(metadata: Mapping[str, Value], path: Path) -> Vocabulary:
    empty = Vocabulary(path, metadata, [], np.empty(0, np.int32), {})
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise empty.error("tokenizer.ggml.tokens should be a list of texts")
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]  # llama.cpp's name for a token without text
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise empty.error(f"the token {twice!r:.80} is given twice")
    types = metadata.get("tokenizer.ggml.token_type", np.full(len(tokens), NORMAL))
    if not isinstance(types, np.ndarray) or types.shape != (len(tokens),):
        raise empty.error(f"tokenizer.ggml.token_type should be {len(tokens)} numbers, one per token")
    ids = {}
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None:
            continue
        if type(value) is not int or not 0 <= value < len(tokens):
            raise empty.error(f"tokenizer.ggml.{name}_token_id is {value!r:.80}; there are {len(tokens)} tokens")
        ids[name] = value
    return Vocabulary(path, metadata, tokens, types, ids)


def byte_level_bpe(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """Model "gpt2": BPE over bytes spelled as characters. Returns the tokenizer and whether a BOS is usual for it.

    raises: UnsupportedModel for a pre-tokenizer that is not in PRE_TOKENIZERS
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = vocabulary.metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise UnsupportedModel(
            "the file does not name its pre-tokenizer" if name is None else f"pre-tokenizer {name!r:.80} is not covered",
            where=f"{vocabulary.path}, tokenizer.ggml.pre",
            next=nearest(str(name), list(PRE_TOKENIZERS)),
        )
    merges = vocabulary.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise vocabulary.error("tokenizer.ggml.merges should be a list of texts")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    pre = PRE_TOKENIZERS[name]
    vocab = {token: i for i, token in enumerate(vocabulary.tokens)}
    try:
        tokenizer = Tokenizer(models.BPE(vocab, pairs, ignore_merges=pre.ignore_merges))
    except Exception as error:  # the package raises plain Exception, for a merge of or into something that is no token
        raise vocabulary.error(f"the merges do not fit the tokens: {error}") from error
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre.add_bos


def sentencepiece_bpe(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """Model "llama": SentencePiece's BPE, whose merges follow from the scores. Returns the tokenizer, and True: a BOS is usual.

    As in llama.cpp, and in the tokenizer.json of Llama 2, each stretch of text between special tokens gets the space in front.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    if vocabulary.flag("remove_extra_whitespaces", False) or "tokenizer.ggml.precompiled_charsmap" in vocabulary.metadata:
        raise UnsupportedModel("a SentencePiece tokenizer that rewrites its text is not covered", where=str(vocabulary.path))
    unknown = vocabulary.token("unknown")
    if unknown is None:
        unknown = next((t for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == UNKNOWN), None)
    if unknown is None:  # without one, text that has no piece would vanish
        raise vocabulary.error("the file names no unknown token")
    vocab = {token: i for i, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab,
            merges_from_scores(vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=BYTE in vocabulary.types,
        )
    )
    prefix = vocabulary.flag("add_space_prefix", True)
    visible = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), visible]) if prefix else visible
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer, True


def merges_from_scores(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, best score first.

    SentencePiece joins the neighbours whose union has the best score, the leftmost among equals; BPE applies the first of its
    merges that fits, the leftmost among equals. Only ordinary pieces take part: no control, byte or unused token.
    """
    scores = vocabulary.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or scores.shape != (len(vocabulary.tokens),) or not np.isfinite(scores).all():
        raise vocabulary.error(f"tokenizer.ggml.scores should be {len(vocabulary.tokens)} finite numbers, one per token")
    ordinary = np.isin(vocabulary.types, (NORMAL, USER_DEFINED))
    pieces = {vocabulary.tokens[i] for i in np.flatnonzero(ordinary)}
    merges: list[tuple[str, str]] = []
    for i in np.argsort(-scores.astype(np.float64), kind="stable"):
        piece = vocabulary.tokens[i]
        if not ordinary[i]:
            continue
        if len(piece) > MAX_PIECE:
            raise vocabulary.error(f"a piece of {len(piece)} characters; at most {MAX_PIECE} are taken")
        cuts = range(len(piece) - 1, 0, -1)  # the longer left part first: what joining from the left arrives at
        merges += [(piece[:cut], piece[cut:]) for cut in cuts if piece[:cut] in pieces and piece[cut:] in pieces]
    return merges


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Tokens that are found whole in the text: control tokens (hidden when decoding for a reader) and user-defined ones."""
    from tokenizers import AddedToken

    def of(*kinds: int) -> list[str]:
        return [vocabulary.tokens[i] for i in np.flatnonzero(np.isin(vocabulary.types, kinds))]

    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in of(CONTROL, UNKNOWN)])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in of(USER_DEFINED)])


def _frame(tokenizer: Tokenizer, vocabulary: Vocabulary, add_bos: bool, add_eos: bool) -> None:
    """BOS before and EOS after every text, where the file wants them."""
    from tokenizers import processors

    wanted = [name for name, add in (("bos", add_bos), ("eos", add_eos)) if add]
    missing = [name for name in wanted if name not in vocabulary.ids]
    if missing:
        raise vocabulary.error(f"the tokenizer adds a token that the file does not name: {', '.join(missing)}_token_id")
    if not wanted:
        return

    def framed(text: str, number: int) -> list[str]:
        before = [f"{vocabulary.token('bos')}:{number}"] if add_bos else []
        return [*before, f"{text}:{number}", *([f"{vocabulary.token('eos')}:{number}"] if add_eos else [])]

    try:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=framed("$A", 0),
            pair=framed("$A", 0) + framed("$B", 1),
            special_tokens=[(vocabulary.tokens[vocabulary.ids[name]], vocabulary.ids[name]) for name in wanted],
        )
    except Exception as error:  # a token such as "$A" or "a:b" means something else in a template
        raise vocabulary.error(f"the tokenizer adds a token that the tokenizers package cannot take: {error}") from error
