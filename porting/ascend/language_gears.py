"""Shapes of a language model with a static cache: one for decoding, and prompts in buckets.

    decode   input_ids (batch, 1)         every step after the prompt
    prefill  input_ids (batch, bucket)    a piece of the prompt, padded on the right to the smallest bucket that holds it

The cache has its whole capacity in every gear. How a piece of n tokens is run in a bucket, with `filled` positions in the cache before it:

1. filled + bucket <= capacity: padding is written to the cache too, behind the piece, and must not reach its end;
2. padding is any valid token. No token of the piece sees it: it stands behind all of them, and attention is causal;
3. the logits are those of row n - 1, not of the last row;
4. afterwards the length is filled + n, not filled + bucket: the next run writes over what padding left, before anything can see it.

Rule 2 holds for causal attention alone, and rule 4 for a cache that is written in order: neither for bidirectional models (pad and mask those),
nor for caches that wrap around.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from porting.ascend.gear_options import LARGEST
from porting.ascend.gears import Gears, gears_of_sizes
from porting.ascend.graph_facts import GraphFacts
from porting.ascend.soc import Soc
from porting.checked_json import integer, object_with
from porting.errors import InputError, UsageError
from porting.types import TensorSpec

BATCH, SEQUENCE, CAPACITY = "batch", "sequence", "capacity"  # the dimensions, as the converters name them
MAX_BUCKETS = 255  # with the one for decoding they are the gears of an Ascend950


class Piece(NamedTuple):
    """A run of a prompt: tokens that count, and the gear's sequence length."""

    tokens: int
    bucket: int


@dataclass(frozen=True)
class LanguageGears:
    """
    batch:    rows
    capacity: positions of the cache
    buckets:  sequence lengths for prompts, ascending; () where a prompt is decoded token by token
    """

    gears: Gears
    batch: int
    capacity: int
    buckets: tuple[int, ...]

    def pieces(self, length: int, filled: int = 0) -> tuple[Piece, ...]:
        """How a prompt of `length` tokens is run behind `filled` positions. raises: InputError when the cache does not hold it"""
        if length < 1 or filled < 0 or filled + length > self.capacity:
            raise InputError(
                f"{length} tokens behind {filled} positions: the port was compiled for a cache of {self.capacity}",
                where="prefill",
                next="shorten the prompt, or compile with a larger capacity",
            )
        found = []
        while length:
            piece = self._next(length, filled)
            found.append(piece)
            length, filled = length - piece.tokens, filled + piece.tokens
        return tuple(found)

    def _next(self, length: int, filled: int) -> Piece:
        """The smallest bucket that holds the rest; where none does or the cache is too full for its padding, the largest one that is filled."""
        fitting = [bucket for bucket in (1, *self.buckets) if filled + bucket <= self.capacity]
        for bucket in fitting:
            if bucket >= length:
                return Piece(length, bucket)
        return Piece(fitting[-1], fitting[-1])

    def to_json(self) -> dict[str, Any]:
        """For port.json."""
        return {"batch": self.batch, "capacity": self.capacity, "buckets": list(self.buckets)}


def language_gears(
    inputs: Sequence[TensorSpec],
    soc: Soc,
    capacity: int,
    buckets: Sequence[int] = (),
    batch: int = 1,
    facts: GraphFacts | None = None,
) -> LanguageGears:
    """The gears of a port of kind "causal-lm", whose free dimensions are "batch", "sequence" and "capacity".

    facts:  of the graph; an input that says how many logits are kept has to be a constant in it
    raises: UsageError for numbers that cannot be meant, and as `gears_for`
    """
    for what, number in (("batch", batch), ("capacity", capacity)):
        if not 1 <= number <= LARGEST:
            raise UsageError(f"a {what} of {number}", where="language model", next=f"{what} is a whole number from 1")
    wrong = [bucket for bucket in buckets if not 2 <= bucket <= capacity]
    if wrong or len(set(buckets)) != len(buckets) or len(buckets) > MAX_BUCKETS:
        shown = f"bucket {wrong[0]}" if wrong else f"{len(buckets)} buckets, {len(set(buckets))} of them different"
        raise UsageError(
            f"{shown}: each is a length of its own, from 2 to the cache's {capacity}",
            where="language model",
            next="1 is there anyway, for decoding",
        )
    ordered = tuple(sorted(buckets))
    sizes = [{BATCH: batch, SEQUENCE: length, CAPACITY: capacity} for length in (1, *ordered)]
    return LanguageGears(gears_of_sizes(inputs, soc, sizes, facts), batch, capacity, ordered)


def language_gears_from_json(
    value: Any, inputs: Sequence[TensorSpec], soc: Soc, where: str = "port.json: language_gears"
) -> LanguageGears:
    """What `to_json` wrote, for the same inputs. raises: InputError"""
    fields = object_with(value, ("batch", "capacity", "buckets"), where)
    if not isinstance(fields["buckets"], list) or len(fields["buckets"]) > MAX_BUCKETS:
        raise InputError(f"expected at most {MAX_BUCKETS} buckets", where=where)
    batch, capacity = (integer(fields[name], 1, LARGEST, where) for name in ("batch", "capacity"))
    buckets = [integer(bucket, 2, capacity, where) for bucket in fields["buckets"]]
    try:
        return language_gears(inputs, soc, capacity, buckets, batch)
    except UsageError as error:
        raise InputError(error.what, where=where, next="convert again") from error


def padded(ids: np.ndarray, bucket: int, padding: int = 0) -> np.ndarray:
    """(batch, n) tokens of a piece -> (batch, bucket), padding on the right. raises: InputError when they do not fit"""
    if ids.ndim != 2 or not 1 <= ids.shape[1] <= bucket:
        raise InputError(f"tokens of shape {list(ids.shape)} in a bucket of {bucket}", where="prefill")
    return np.pad(ids, ((0, 0), (0, bucket - ids.shape[1])), constant_values=padding)
