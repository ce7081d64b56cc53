"""Choosing the next token from a row of logits.

The processors and their order are those of transformers: repetition penalty, temperature, top-k, top-p, then one draw.
Whatever the platform, a seed gives the same tokens for the same logits: the draw is one number of NumPy's PCG64 looked up
in a cumulative sum in double precision, with the tokens in order of their ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from porting.errors import InputError, RuntimeFailed, UsageError

# Within these bounds float32 logits up to 1e35 neither overflow nor underflow on the way through the processors.
TEMPERATURE_RANGE = (1e-3, 1e3)
PENALTY_RANGE = (1e-2, 1e2)


@dataclass(frozen=True)
class SamplingSettings:
    """How to choose a token. The defaults are greedy: the highest logit, of equal ones the lowest id.

    temperature:        0 is greedy; otherwise 0.001 to 1000
    top_k:              keep the k highest logits, and all that equal the k-th; 0 keeps all
    top_p:              keep the smallest set whose probabilities reach this; 1 keeps all; 0 < top_p <= 1
    repetition_penalty: divides positive and multiplies negative logits of tokens seen before, prompt included; 1 is none
    seed:               0 to 2**64 - 1
    raises:             UsageError for anything else, NaN included
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = TEMPERATURE_RANGE
        _require_number("temperature", self.temperature, f"0 (greedy), or {low} to {high}")
        if self.temperature != 0 and not low <= self.temperature <= high:
            raise _out_of_range("temperature", self.temperature, f"0 (greedy), or {low} to {high}")
        _require_integer("top_k", self.top_k, "0 (off) or more")
        if self.top_k < 0:
            raise _out_of_range("top_k", self.top_k, "0 (off) or more")
        _require_number("top_p", self.top_p, "above 0, up to 1 (off)")
        if not 0 < self.top_p <= 1:
            raise _out_of_range("top_p", self.top_p, "above 0, up to 1 (off)")
        low, high = PENALTY_RANGE
        _require_number("repetition_penalty", self.repetition_penalty, f"{low} to {high}, 1 is off")
        if not low <= self.repetition_penalty <= high:
            raise _out_of_range("repetition_penalty", self.repetition_penalty, f"{low} to {high}, 1 is off")
        _require_integer("seed", self.seed, "0 to 2**64 - 1")
        if not 0 <= self.seed < 2**64:
            raise _out_of_range("seed", self.seed, "0 to 2**64 - 1")

    def rng(self) -> np.random.Generator:
        """A fresh generator at the start of this seed's sequence."""
        return np.random.Generator(np.random.PCG64(self.seed))


def _out_of_range(name: str, value: object, allowed: str) -> UsageError:
    return UsageError(f"{name} is {value!r}", where="sampling settings", next=f"allowed: {allowed}")


def _require_number(name: str, value: object, allowed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _out_of_range(name, value, allowed)


def _require_integer(name: str, value: object, allowed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _out_of_range(name, value, f"an integer, {allowed}")


def settings_for(
    generation_config: Mapping[str, Any],
    *,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
) -> SamplingSettings:
    """Settings from what the user gave and what the model's authors recommend.

    Greedy unless the user asks for sampling with a temperature, top_k or top_p, whatever `do_sample` says: two people who
    run the same port get the same text. Who does ask gets the recommended value (generation_config.json) for what she left
    open: temperature (else 1), top_k (else off, where transformers assumes 50), top_p, repetition_penalty. Without a seed
    one is drawn, and the result carries it, so that every run can be repeated.

    raises: UsageError for values out of range and for top_k or top_p beside temperature 0, which would have no effect;
            InputError when generation_config.json holds a value out of range
    """
    wanted = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty}
    given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1, np.uint32)[0])
    if temperature == 0:
        without_effect = [name for name in ("top_k", "top_p") if name in given]
        if without_effect:
            raise UsageError(
                f"temperature 0 is greedy, so {' and '.join(without_effect)} would have no effect",
                where="sampling settings",
                next="give a temperature above 0, or leave the other out",
            )
    SamplingSettings(**given, seed=seed)  # what the user gave is judged first, as hers
    if temperature == 0 or not given.keys() & {"temperature", "top_k", "top_p"}:
        return SamplingSettings(**given, seed=seed)
    recommended = {name: generation_config[name] for name in wanted if generation_config.get(name) is not None}
    if recommended.get("temperature") == 0:  # "greedy" is no answer to how much chance she wants
        del recommended["temperature"]
    try:
        return SamplingSettings(**{"temperature": 1.0, **recommended, **given}, seed=seed)
    except UsageError as error:
        raise InputError(error.what, where="generation_config.json", next=f"repair it; {error.next}") from error


def next_token(logits: np.ndarray, history: np.ndarray, settings: SamplingSettings, rng: np.random.Generator) -> int:
    """The id of the next token.

    logits:  (vocab,) float32; left as it is, and not copied when greedy without a repetition penalty
    history: (n,) int64, ids of the prompt and of what was generated so far
    rng:     advanced by one draw when sampling, left alone when greedy
    raises:  RuntimeFailed when a logit is NaN or +inf, or all are -inf
    """
    if settings.temperature == 0:
        scores = _penalised(logits, history, settings.repetition_penalty)
        best = int(scores.argmax())  # a NaN counts as the highest
        _require_finite(scores[best])
        return best
    ids, probabilities = candidates(logits, history, settings)
    cumulative = np.cumsum(probabilities)
    drawn = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    return int(ids[drawn])


def candidates(logits: np.ndarray, history: np.ndarray, settings: SamplingSettings) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be drawn at a temperature above 0, and their probabilities.

    logits:  (vocab,) float32
    history: (n,) int64
    returns: (kept,) int64 ids in rising order, (kept,) float64 probabilities above 0 that sum to 1
    raises:  RuntimeFailed when a logit is NaN or +inf, or all are -inf
    source:  transformers 5.23, generation/logits_process.py, the order of GenerationMixin._get_logits_processor
    """
    scores = _penalised(logits, history, settings.repetition_penalty) / np.float32(settings.temperature)
    best = scores.max()  # NaN when there is one
    _require_finite(best)
    ids = np.arange(len(scores))
    if 0 < settings.top_k < len(scores):
        kth = np.partition(scores, -settings.top_k)[-settings.top_k]
        ids = np.flatnonzero(scores >= kth)
        scores = scores[ids]
    weights = np.exp(scores.astype(np.float64) - float(best))
    probabilities = weights / weights.sum()
    kept = probabilities > 0
    if settings.top_p < 1:
        kept &= _nucleus(probabilities, scores, settings.top_p)
    ids, probabilities = ids[kept], probabilities[kept]
    return ids, probabilities / probabilities.sum()


def _penalised(logits: np.ndarray, history: np.ndarray, penalty: float) -> np.ndarray:
    """`logits` itself when the penalty is 1, else a copy with the penalty applied once to every token of `history`."""
    if penalty == 1:
        return logits
    scores = logits.copy()
    seen = np.unique(history)
    values = scores[seen]
    scores[seen] = np.where(values < 0, values * np.float32(penalty), values / np.float32(penalty))
    return scores


def _nucleus(probabilities: np.ndarray, scores: np.ndarray, top_p: float) -> np.ndarray:
    """Mask of the smallest set of most probable tokens that reaches `top_p`; of equal ones the lower id stays first.

    probabilities: (n,) float64, sum 1
    scores:        (n,) their logits, which still differ where the probabilities round to the same number
    returns:       (n,) bool, at least one True. As in transformers: in rising order, a token goes while the sum up to and
                   including it is at most 1 - top_p
    """
    cut = 1.0 - top_p
    kept = probabilities >= cut / len(probabilities)  # all the others together stay below the cut: no need to sort them
    order = np.flatnonzero(kept)
    rising = order[np.argsort(-scores[order], kind="stable")][::-1]
    up_to = probabilities[~kept].sum() + np.cumsum(probabilities[rising])
    dropped = rising[:-1][up_to[:-1] <= cut]  # never the most probable one
    kept[dropped] = False
    return kept


def _require_finite(best: np.floating) -> None:
    if not np.isfinite(best):
        raise RuntimeFailed(
            f"the logits cannot be sampled: the highest is {best}",
            where="next token",
            next="`porting validate` holds the port against its reference",
        )
