"""Text to token ids and back: `tokenizers` does the work; here is what its errors mean, and streaming.

Two things need care when tokens are printed one by one. A character of several bytes may come in several tokens, and a
tokenizer of the SentencePiece kind drops the space before the first word of what it decodes. Both are solved by decoding a
short window of tokens with and without the new one, and printing the difference once it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from porting.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no character, or not yet
CONTEXT_TOKENS = 6  # tokens of the prompt that decide about the first space: a word, and special tokens that print nothing
MAX_HELD_TOKENS = 16  # a character has at most 4 bytes; more tokens than this are held only by bytes that are no text


def tokenizer_from_bytes(data: bytes | None, where: str = "tokenizer.json") -> Tokenizer:
    """The tokenizer in a tokenizer.json.

    data:   the file's bytes, None when there is no such file
    raises: InputError when it is missing or cannot be read
    """
    if data is None:
        raise InputError(
            "there is no tokenizer",
            where=where,
            next="put the checkpoint's tokenizer.json beside its weights and convert again, or feed ids with `porting run`",
        )
    from tokenizers import Tokenizer

    def read() -> Tokenizer:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
        tokenizer.no_truncation()  # a file may ask for both, and either would change a prompt in silence
        tokenizer.no_padding()
        return tokenizer

    return _guarded(read, "the tokenizer cannot be read", where, "convert again from an undamaged checkpoint")


def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Token ids of a text.

    add_special_tokens: True for a bare prompt (the tokenizer's own BOS); False for a rendered chat, which holds its own
    raises:             InputError for text that is not Unicode (an undecodable byte of the command line) or makes the
                        tokenizer fail
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the prompt is not Unicode text: {error.reason} at character {error.start}",
            where="prompt",
            next="check the terminal's or the file's encoding; UTF-8 is expected",
        ) from error
    return _guarded(
        lambda: tokenizer.encode(text, add_special_tokens=add_special_tokens).ids,
        "the tokenizer failed on the prompt",
        "tokenizer.json",
        "the tokenizer may be damaged: convert again from an undamaged checkpoint",
    )


def _guarded(work: Callable[[], Any], what: str, where: str, next_step: str) -> Any:
    """Run `work`; whatever the native library raises, its panics included (no `Exception`), becomes an InputError."""
    try:
        return work()
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        reason = "".join(c if c.isprintable() else " " for c in str(error))[:300]
        raise InputError(f"{what}: {type(error).__name__}: {reason}", where=where, next=next_step) from error


class Detokenizer:
    """Tokens in, text out, as soon as it is certain. Special tokens print nothing.

    Well-formed text comes out exactly as decoding all tokens at once gives it; never half a character.

    context: ids before the first token (the prompt), which decide whether its leading space is kept
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        before = list(context[-CONTEXT_TOKENS:])
        if self._decode(before).endswith(REPLACEMENT):  # the prompt ends within a character: nothing to compare with
            before = []
        self._ids = before  # the window: printed tokens [0, _printed) that give context, then the held ones
        self._printed = len(before)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        """The text that this token completes; "" while a character is unfinished."""
        self._ids.append(token_id)
        before, now = self._decode(self._ids[: self._printed]), self._decode(self._ids)
        if now.endswith(REPLACEMENT) and len(self._ids) - self._printed < MAX_HELD_TOKENS:
            return ""
        if len(now) > len(before):  # else the token printed nothing, and the window keeps what gives context
            del self._ids[: self._printed]
        self._printed = len(self._ids)
        return now[len(before) :]

    def flush(self) -> str:
        """What is still held, at the end: U+FFFD in place of a character that was never finished."""
        before, now = self._decode(self._ids[: self._printed]), self._decode(self._ids)
        self._printed = len(self._ids)
        return now[len(before) :]
