"""Text from a port that holds a language model.

generated = porting.generate("model.port", "What is the capital of France?", max_new_tokens=64)
print(generated.text, generated.finish_reason, generated.tokens_per_second)

sampling.py   logits -> one token            tokens.py   text <-> tokens, streaming
chat.py       messages -> prompt             loop.py     prompt -> tokens, on a session
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from porting.errors import InputError, UsageError
from porting.generation.chat import ChatTemplate, chat_template_from, json_object
from porting.generation.loop import PREFILL_CHUNK, StopStrings, generate_tokens, require_request_fits
from porting.generation.sampling import SamplingSettings, settings_for
from porting.generation.tokens import Detokenizer, encode, tokenizer_from_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from porting.session import Session
    from porting.types import Program

SIDE_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
MAX_NEW_TOKENS = 256


class LanguagePort(Protocol):
    """What is needed of a port; porting.open_port gives one."""

    manifest: Mapping[str, Any]  # manifest["config"]: the model's config.json

    def side_file(self, name: str) -> bytes | None: ...

    def program(self) -> Program: ...


@dataclass(frozen=True)
class Generated:
    """What came out.

    text:            without special tokens and stop strings; with the space that joins it to a bare prompt, if there is one
    token_ids:       new tokens, the stop token included
    finish_reason:   "stop" (a stop token or string), "length" (max_new_tokens), "interrupted" (Ctrl-C)
    prompt_tokens:   length of the prompt
    settings:        what it was sampled with, the seed included
    device:          the one that ran, as in cuda:1; of `cuda-or-cpu` the one that was taken
    load_seconds:    opening the session; 0 for one that was open
    prefill_seconds: from there until the first token
    decode_seconds:  from there until the last token
    tokens_per_second: of decoding, the first token left out since it belongs to the prompt; None for fewer than two
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    settings: SamplingSettings
    device: str
    load_seconds: float
    prefill_seconds: float
    decode_seconds: float
    tokens_per_second: float | None


@dataclass(frozen=True)
class TextSide:
    """The part of a language model that is not its graph.

    stop_ids:          end-of-text ids: generation_config.json's, else config.json's
    context_limit:     max_position_embeddings; None when the config has none
    vocab_size:        rows of the embedding; None when the config has none
    generation_config: the authors' recommended settings; {} when there are none
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    stop_ids: frozenset[int]
    context_limit: int | None
    vocab_size: int | None
    generation_config: Mapping[str, Any]

    def prompt_ids(self, prompt: str | Sequence[Mapping[str, Any]], chat: bool | None = None) -> list[int]:
        """Token ids of a text or a conversation.

        chat:   True: through the chat template; False: as it is; None: through the template when there is one
        raises: InputError when a template is needed and there is none or it cannot be used; UsageError for a
                conversation with chat=False
        """
        is_conversation = not isinstance(prompt, str)
        if chat is False and is_conversation:
            raise UsageError("a conversation needs the chat template", where="generate", next="give one text, or chat=True")
        if self.template is None and (chat or is_conversation):
            raise InputError(
                "this model has no chat template",
                where="tokenizer_config.json, chat_template.jinja",
                next="give a bare prompt with chat=False (on the command line --no-chat)",
            )
        if self.template is None or chat is False:
            return encode(self.tokenizer, str(prompt), add_special_tokens=True)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return encode(self.tokenizer, self.template.render(messages), add_special_tokens=False)


def text_side(port: LanguagePort) -> TextSide:
    """Read a port's tokenizer, chat template and limits; nothing of the model itself.

    raises: InputError for a missing or damaged file
    """
    found = {name: port.side_file(name) for name in SIDE_FILES}
    side_files = {name: data for name, data in found.items() if data is not None}
    config = port.manifest.get("config")
    if not isinstance(config, Mapping):
        raise InputError("this port holds no language model: it has no model config", where="port.json, config")
    generation_config = json_object(side_files, "generation_config.json")
    stop_source = generation_config if generation_config.get("eos_token_id") is not None else config
    return TextSide(
        tokenizer=tokenizer_from_bytes(side_files.get("tokenizer.json")),
        template=chat_template_from(side_files),
        stop_ids=_stop_ids(stop_source.get("eos_token_id")),
        context_limit=_positive(config, "max_position_embeddings"),
        vocab_size=_positive(config, "vocab_size"),
        generation_config=generation_config,
    )


def _stop_ids(value: Any) -> frozenset[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise InputError(f"eos_token_id is {value!r}, expected token ids", where="generation_config.json or port.json, config")
    return frozenset(ids)


def _positive(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InputError(f"{key} is {value!r}, expected a positive integer", where="port.json, config")
    return value


def generate(
    port: str | Path | LanguagePort,
    prompt: str | Sequence[Mapping[str, Any]],
    device: str = "cpu",
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    chat: bool | None = None,
    on_text: Callable[[str], None] | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    stop: Collection[str] = (),
    context_limit: int | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
    session: Session | None = None,
) -> Generated:
    """Continue a text, or answer in a chat.

    port:          a port's folder, or an opened port
    prompt:        a text, or a conversation [{"role": "user", "content": "..."}, ...]
    chat:          see TextSide.prompt_ids
    on_text:       called with each piece of text as soon as it is certain; the pieces together are `text`
    temperature, top_k, top_p, repetition_penalty, seed: greedy unless one of the first three asks for sampling;
                   see porting.generation.sampling.settings_for
    stop:          strings that end the text, and are left out of it
    context_limit: instead of the config's max_position_embeddings
    session:       an open session of this port, which stays open; `device` is then its own
    raises:        UsageError, InputError (the request does not fit, a file is missing or damaged), DeviceUnavailable,
                   RuntimeFailed. Ctrl-C while tokens are generated is no error: the text so far, "interrupted"
    """
    if isinstance(port, str | Path):
        from porting.port_folder import open_port

        opened_port: LanguagePort = open_port(port)
    else:
        opened_port = port
    side = text_side(opened_port)
    settings = settings_for(
        side.generation_config,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    limit = side.context_limit if context_limit is None else context_limit
    cut = StopStrings(stop)
    ids = side.prompt_ids(prompt, chat)
    require_request_fits(ids, max_new_tokens, context_limit=limit, vocab_size=side.vocab_size)  # before the slow part
    started = time.perf_counter()
    if session is None:
        from porting.session import open_session

        with open_session(opened_port.program(), device) as opened:
            load_seconds = time.perf_counter() - started
            tokens = generate_tokens(opened, ids, max_new_tokens, settings, side.stop_ids, prefill_chunk, limit)
            return _collect(tokens, ids, side, settings, cut, on_text, str(opened.device), load_seconds)
    tokens = generate_tokens(session, ids, max_new_tokens, settings, side.stop_ids, prefill_chunk, limit)
    return _collect(tokens, ids, side, settings, cut, on_text, str(session.device), 0.0)


def _collect(
    tokens: Iterator[int],
    prompt_ids: list[int],
    side: TextSide,
    settings: SamplingSettings,
    cut: StopStrings,
    on_text: Callable[[str], None] | None,
    device: str,
    load_seconds: float,
) -> Generated:
    """Run the loop to its end, and turn tokens into text on the way."""
    pieces: list[str] = []
    token_ids: list[int] = []
    detokenizer = Detokenizer(side.tokenizer, prompt_ids)

    def show(text: str) -> None:
        if text:
            pieces.append(text)
            if on_text is not None:
                on_text(text)

    started = first = last = time.perf_counter()
    reason = "length"
    try:
        for token in tokens:
            last = time.perf_counter()
            first = first if token_ids else last
            token_ids.append(token)
            show(cut.push(detokenizer.push(token)))
            if token in side.stop_ids or cut.found:
                reason = "stop"
                break
    except KeyboardInterrupt:
        reason = "interrupted"
        last = time.perf_counter()
        first = first if token_ids else last
    show(cut.push(detokenizer.flush()))
    show(cut.flush())
    steps, decode_seconds = len(token_ids) - 1, last - first
    return Generated(
        text="".join(pieces),
        token_ids=tuple(token_ids),
        finish_reason="stop" if cut.found and reason == "length" else reason,
        prompt_tokens=len(prompt_ids),
        settings=settings,
        device=device,
        load_seconds=load_seconds,
        prefill_seconds=first - started,
        decode_seconds=decode_seconds,
        tokens_per_second=steps / decode_seconds if steps > 0 and decode_seconds > 0 else None,
    )


__all__ = [
    "ChatTemplate",
    "Detokenizer",
    "Generated",
    "LanguagePort",
    "SamplingSettings",
    "StopStrings",
    "TextSide",
    "generate",
    "generate_tokens",
    "settings_for",
    "text_side",
]
