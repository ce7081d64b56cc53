"""Text to tokens and back: damaged tokenizer files are refused, and streamed text is what decoding all at once gives."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from porting.errors import InputError
from porting.generation.tokens import Detokenizer, encode, tokenizer_from_bytes


def byte_level() -> Tokenizer:
    """256 bytes, a merged " t", and two special tokens. Ids of bytes are those of the sorted byte alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)} | {"Ġt": len(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "t")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|go|>", special=True)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """The SentencePiece kind: words with a leading mark, bytes for the rest, the first space of a text dropped."""
    words = ["<unk>", "</s>", "▁", "▁Hello", "▁world", "a", "b", "H", "i", "."]
    vocab = [(w, -1.0 - i) for i, w in enumerate(words)] + [(f"<0x{b:02X}>", -20.0) for b in range(256)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


BYTES, PIECES = byte_level(), byte_fallback()


def streamed(tokenizer: Tokenizer, ids: list[int], context: Sequence[int] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, context)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


TEXT = st.text(alphabet=st.one_of(st.sampled_from(" \n▁Helloworldab.é中😀👩‍👩‍👧"), st.characters(codec="utf-8")), max_size=25)


@settings(max_examples=150, deadline=None)
@given(TEXT, TEXT, st.sampled_from(["bytes", "pieces"]))
@example("", " Hello world", "pieces")
@example("Hello", " world 😀", "pieces")
@example("", "  😀😀 t", "bytes")
def test_streamed_text_is_the_decoded_text_and_never_half_a_character(before, text, kind):
    tokenizer = BYTES if kind == "bytes" else PIECES
    context = tokenizer.encode(before, add_special_tokens=False).ids
    ids = tokenizer.encode(before + text, add_special_tokens=False).ids
    assume(ids[: len(context)] == context)
    ids = ids[len(context) :]
    start, whole = tokenizer.decode(context), tokenizer.decode(context + ids)
    assume(whole.startswith(start) and "\ufffd" not in whole)
    pieces = streamed(tokenizer, ids, context)
    assert "".join(pieces) == whole[len(start) :]
    assert pieces[-1] == ""  # nothing was held to the end
    shown = ""
    for piece in pieces:
        shown += piece
        assert (start + shown) == whole[: len(start) + len(shown)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 258), max_size=40))
def test_any_bytes_stream_to_their_decoding(ids):
    assert "".join(streamed(BYTES, ids)) == BYTES.decode(ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 265), max_size=40))
def test_any_pieces_stream_all_the_characters_of_their_decoding(ids):
    """Decoding all at once replaces a whole run of bytes when one of it is wrong; what was printed before that stays."""
    shown = iter("".join(streamed(PIECES, ids)))
    assert all(character in shown for character in PIECES.decode(ids) if character != "\ufffd")  # in this order


def test_each_character_comes_with_its_last_byte():
    ids = BYTES.encode("é😀 t").ids
    assert streamed(BYTES, ids) == ["", "é", "", "", "", "😀", " t", ""]
    ids = PIECES.encode("a😀b").ids
    assert [p for p in streamed(PIECES, ids) if p] == ["a", "😀", "b"]


def test_the_space_after_a_prompt_is_kept_and_the_first_one_of_an_answer_dropped():
    hello, world, end = (PIECES.token_to_id(t) for t in ("▁Hello", "▁world", "</s>"))
    assert "".join(streamed(PIECES, [world], [hello])) == " world"
    assert "".join(streamed(PIECES, [hello, world])) == "Hello world"
    assert "".join(streamed(PIECES, [hello, end, world], [end])) == "Hello world"


def test_special_tokens_print_nothing():
    end = BYTES.token_to_id("<|end|>")
    assert streamed(BYTES, [end, *BYTES.encode("a").ids, end]) == ["", "a", "", ""]


def test_an_unfinished_character_ends_as_one_replacement():
    assert streamed(BYTES, BYTES.encode("a😀").ids[:-1]) == ["a", "", "", "", "\ufffd"]


def test_bytes_that_are_no_text_are_not_held_for_ever():
    stray = BYTES.encode("é").ids[1]
    pieces = streamed(BYTES, [stray] * 100)
    assert "".join(pieces) == "\ufffd" * 100
    assert sum(bool(p) for p in pieces) > 5


def test_a_prompt_is_never_truncated_or_padded_by_its_tokenizer():
    asks = byte_level()
    asks.enable_truncation(3)
    asks.enable_padding(length=64)
    tokenizer = tokenizer_from_bytes(asks.to_str().encode())
    assert len(encode(tokenizer, "abcdefghij", add_special_tokens=True)) == 10


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, "there is no tokenizer"),
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read: UnicodeDecodeError"),
        (b"{}", "cannot be read"),
        (BYTES.to_str().encode()[:-40], "cannot be read"),
        (b'{"model": {"type": "New"}}', "cannot be read"),
    ],
)
def test_a_missing_or_damaged_tokenizer_is_refused(data, expected):
    with pytest.raises(InputError, match=expected) as caught:
        tokenizer_from_bytes(data)
    assert caught.value.where == "tokenizer.json"
    assert caught.value.next


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_tokenizer_with_any_damage_works_or_is_refused(data):
    """Native code reads the file: no damage may end in its panic."""
    content = json.loads(PIECES.to_str())
    part = data.draw(st.sampled_from(["model", "pre_tokenizer", "decoder", "added_tokens", "normalizer", "post_processor"]))
    junk = st.one_of(st.none(), st.integers(-2, 2**40), st.text(max_size=3), st.lists(st.integers(), max_size=2), st.just({}))
    if isinstance(content[part], dict):
        content[part][data.draw(st.sampled_from(sorted(content[part])))] = data.draw(junk)
    else:
        content[part] = data.draw(junk)
    try:
        tokenizer = tokenizer_from_bytes(json.dumps(content).encode())
        encode(tokenizer, "Hello a😀", add_special_tokens=True)
    except InputError as error:
        assert error.where == "tokenizer.json"  # noqa: PT017 - either outcome is right


def test_a_prompt_that_is_no_unicode_is_refused():
    with pytest.raises(InputError, match="not Unicode text: surrogates not allowed at character 2"):
        encode(BYTES, "ab\udcff", add_special_tokens=True)
