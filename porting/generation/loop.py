"""The loop: prompt in chunks, then one token at a time on the session's state.

Everything that can be refused is refused before the first run: nothing is truncated, and no token is generated that would
not fit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from porting.errors import InputError, UsageError
from porting.gear_runs import fixed_capacity, run_tokens
from porting.generation.sampling import SamplingSettings, next_token
from porting.session import CAPACITY_STEP, Session

PREFILL_CHUNK = 128  # positions per run of the prompt: activations of more cost memory, of fewer time


def require_request_fits(
    prompt_ids: Sequence[int], max_new_tokens: int, *, context_limit: int | None, vocab_size: int | None
) -> None:
    """Refuse what cannot be generated, before anything slow.

    prompt_ids:    the whole prompt
    context_limit: positions that the model was made for; None when unknown
    vocab_size:    rows of its embedding; None when unknown
    raises:        UsageError for max_new_tokens below 1; InputError for an empty or too long prompt and unknown ids
    """
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {max_new_tokens!r}", where="generate", next="allowed: an integer, 1 or more")
    if not prompt_ids:
        raise InputError(
            "the prompt is empty: there is no token to start from",
            where="prompt",
            next="give some text; this tokenizer adds no token of its own to an empty one",
        )
    lowest, highest = min(prompt_ids), max(prompt_ids)
    if lowest < 0 or (vocab_size is not None and highest >= vocab_size):
        wrong = lowest if lowest < 0 else highest
        known = f"0 to {vocab_size - 1}" if vocab_size is not None else "0 and more"
        raise InputError(
            f"token id {wrong} at position {list(prompt_ids).index(wrong)} is out of the vocabulary ({known})",
            where="prompt",
            next="the tokenizer does not belong to this model: convert again with the right one",
        )
    if context_limit is not None and len(prompt_ids) + max_new_tokens > context_limit:
        room = context_limit - len(prompt_ids)
        raise InputError(
            f"prompt ({len(prompt_ids)} tokens) and max_new_tokens ({max_new_tokens}) exceed the context of {context_limit}",
            where="generate",
            next=f"ask for at most {room} new tokens" if room > 0 else f"shorten the prompt by at least {1 - room} tokens",
        )


def generate_tokens(
    session: Session,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    settings: SamplingSettings,
    stop_ids: Collection[int] = (),
    prefill_chunk: int = PREFILL_CHUNK,
    context_limit: int | None = None,
) -> Iterator[int]:
    """Token ids, one by one, at most `max_new_tokens`; a stop token is the last one given, as in transformers.

    session:       inputs input_ids int64 (batch, sequence) and, where it has it, logits_to_keep int64 (); output logits
                   float32 (batch, kept, vocab); its cache is session state
    prefill_chunk: prompt positions per run; only the last logits of each are asked for
    context_limit: prompt and new tokens together, None for no limit
    raises:        at the call: UsageError, InputError as `require_request_fits`, InputError for a session of another kind;
                   while iterating: RuntimeFailed for logits that cannot be sampled
    """
    inputs = {spec.name for spec in session.inputs}
    logits = next((spec for spec in session.outputs if spec.name == "logits"), None)
    if "input_ids" not in inputs or logits is None:
        raise InputError(
            f"this is not a language model: inputs {sorted(inputs)}, outputs {[spec.name for spec in session.outputs]}",
            where="generate",
            next="text needs input_ids and logits; `porting run` takes any port",
        )
    if isinstance(prefill_chunk, bool) or not isinstance(prefill_chunk, int) or prefill_chunk < 1:
        raise UsageError(f"prefill_chunk is {prefill_chunk!r}", where="generate", next="allowed: an integer, 1 or more")
    vocab_size = logits.shape[-1] if isinstance(logits.shape[-1], int) else None
    require_request_fits(prompt_ids, max_new_tokens, context_limit=context_limit, vocab_size=vocab_size)
    capacity, needed = (
        fixed_capacity(session.program),
        len(prompt_ids) + max_new_tokens - 1,
    )  # the last token is given, and not run
    if capacity is not None and needed > capacity:
        raise InputError(
            f"prompt ({len(prompt_ids)} tokens) and max_new_tokens ({max_new_tokens}) exceed the {capacity} positions of the cache",
            where="generate",
            next=f'ask for {needed - capacity} tokens less, or convert with a larger cache: --gears "capacity=..."',
        )
    last_only = {"logits_to_keep": np.asarray(1, np.int64)} if "logits_to_keep" in inputs else {}
    return _generated(session, prompt_ids, max_new_tokens, settings, frozenset(stop_ids), prefill_chunk, last_only)


def _generated(
    session: Session,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    settings: SamplingSettings,
    stop_ids: frozenset[int],
    prefill_chunk: int,
    last_only: dict[str, np.ndarray],
) -> Iterator[int]:
    prompt_length = len(prompt_ids)
    history = np.empty(prompt_length + max_new_tokens, np.int64)
    history[:prompt_length] = prompt_ids
    # Room for the prompt at once; for the answer the session grows it in steps, since attention may pay for all of it.
    state = session.new_state(fixed_capacity(session.program) or CAPACITY_STEP * (prompt_length // CAPACITY_STEP + 1))
    rng = settings.rng()
    for start in range(0, prompt_length, prefill_chunk):
        chunk = history[start : min(start + prefill_chunk, prompt_length)]
        logits = run_tokens(session, chunk[None], state, last_only)
    for length in range(prompt_length, prompt_length + max_new_tokens):
        token = next_token(logits[0, -1], history[:length], settings, rng)
        history[length] = token
        yield token
        if token in stop_ids or length + 1 == len(history):
            return
        logits = run_tokens(session, history[None, length : length + 1], state, last_only)


class StopStrings:
    """Cuts a stream of text before the first of some strings, also where one is spread over several pieces.

    raises: UsageError for an empty string
    """

    def __init__(self, strings: Collection[str]) -> None:
        if isinstance(strings, str) or not all(isinstance(s, str) and s for s in strings):
            raise UsageError(f"stop strings are {strings!r}", where="generate", next="allowed: a list of non-empty strings")
        self._strings = tuple(strings)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What may be shown of the text so far; what could begin a stop string is held back. "" for ever once one is found."""
        if self.found:
            return ""
        text = self._held + text
        places = [place for s in self._strings if (place := text.find(s)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        longest = max((len(s) for s in self._strings), default=1) - 1
        held = next((n for n in range(min(longest, len(text)), 0, -1) if self._may_begin(text[-n:])), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _may_begin(self, text: str) -> bool:
        return any(s.startswith(text) for s in self._strings)

    def flush(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return held
