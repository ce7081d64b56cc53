"""Running a port that knows a few shapes only, its gears: which gear a run is, and how what is smaller is made to fit one.

A compiled model that is fed another shape takes its largest gear and says nothing, so such a run is refused. Prompts of a language model run in
pieces, each padded on the right to a gear:

1. filled + bucket <= capacity: padding is written to the cache too, behind the piece, and must not reach its end;
2. padding is any valid token. No token of the piece sees it: it stands behind all of them, and attention is causal;
3. the logits are those of the piece's own rows;
4. afterwards the length is filled + n, not filled + bucket: the next run writes over what padding left, before anything can see it.

Rule 2 holds for causal attention alone, and rule 4 for a cache that is written in order: neither for bidirectional models (pad and mask those),
nor for caches that wrap around.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from porting.errors import InputError
from porting.types import Program, State
from porting.verdict import printable

if TYPE_CHECKING:
    from porting.session import Session

Shape = tuple[int, ...]
Gear = Mapping[str, Shape]  # of every input
SHOWN = 8  # gears in a message
LONGEST_NAME = 200  # characters of a gear in the name of a case
TOKENS, LOGITS = "input_ids", "logits"


class Piece(NamedTuple):
    """A run of a prompt: tokens that count, and the gear's sequence length."""

    tokens: int
    bucket: int


def gear_of(gears: Sequence[Gear], got: Mapping[str, Shape]) -> Gear:
    """The gear that has these shapes. raises: InputError naming the gears, when none has"""
    for gear in gears:
        if all(gear[name] == shape for name, shape in got.items()):
            return gear
    raise InputError(
        f"no gear has the shapes {shown(got)}; the port was compiled for {listed(gears)}",
        where="gears",
        next="pad to a gear, run it in pieces, or convert with a further gear: the device would take the largest gear and say nothing",
    )


def fitting(gears: Sequence[Gear], got: Mapping[str, Shape]) -> Gear:
    """The smallest gear that holds these shapes. raises: InputError when none does"""

    def size(gear: Gear) -> int:
        return sum(math.prod(gear[name]) for name in got)

    holding = [g for g in gears if all(all(a <= b for a, b in zip(s, g[n], strict=True)) for n, s in got.items())]
    if not holding:
        raise InputError(
            f"no gear holds the shapes {shown(got)}; the port was compiled for {listed(gears)}",
            where="gears",
            next="give less at once, or convert with a larger gear",
        )
    return min(holding, key=size)


def listed(gears: Sequence[Gear]) -> str:
    """The gears in words, the first few of many."""
    first = " | ".join(shown(gear) for gear in gears[:SHOWN])
    return first if len(gears) <= SHOWN else f"{first} and {len(gears) - SHOWN} more"


def shown(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{printable(str(name), 60)} {list(shape)}" for name, shape in shapes.items())


def name_of(gear: Mapping[str, Sequence[int]], gears: Sequence[Mapping[str, Sequence[int]]]) -> str:
    """A gear among others, in words that fit a name: by its shapes, or by its number and the first of them where they are many."""
    listed_shapes = shown(gear)
    if len(listed_shapes) <= LONGEST_NAME:
        return listed_shapes
    differing = [name for name in gear if len({tuple(one[name]) for one in gears}) > 1] or list(gear)
    place = [dict(one) for one in gears].index(dict(gear)) + 1
    return f"gear {place} of {len(gears)}, {shown({name: gear[name] for name in differing[:1]})}"


# --- language models ----------------------------------------------------------------------------------------------


def buckets_of(program: Program) -> tuple[int, ...]:
    """Sequence lengths that a language model's gears have, ascending; () for a program without gears."""
    return tuple(sorted({gear[TOKENS][1] for gear in program.gears}))


def fixed_capacity(program: Program) -> int | None:
    """Positions of a cache whose size is written into the graph; None where it grows, or there is none."""
    specs = {spec.name: spec for spec in program.inputs}
    sizes = {specs[p.input].shape[p.axis] for p in program.state.pairs if p.axis is not None}
    found = next(iter(sizes), None)
    return found if isinstance(found, int) else None


def pieces(length: int, filled: int, capacity: int, buckets: Sequence[int]) -> tuple[Piece, ...]:
    """How a prompt of `length` tokens is run behind `filled` positions.

    buckets: sequence lengths of the gears, ascending; without 1 among them a cache can be too full for its last tokens
    raises:  InputError when the cache does not hold it
    """
    if length < 1 or filled < 0 or filled + length > capacity:
        raise InputError(
            f"{length} tokens behind {filled} positions: the port was compiled for a cache of {capacity}",
            where="prefill",
            next="shorten the prompt, or convert with a larger capacity",
        )
    found = []
    while length:
        room = [bucket for bucket in buckets if filled + bucket <= capacity]
        if not room:
            raise InputError(
                f"{capacity - filled} positions are left, and no gear is as short: {', '.join(map(str, buckets))}",
                where="prefill",
                next="convert with a gear for one token",
            )
        # the smallest that holds the rest; where none does, or the cache is too full for its padding, the largest, which is filled
        bucket = next((bucket for bucket in room if bucket >= length), room[-1])
        piece = Piece(min(length, bucket), bucket)
        found.append(piece)
        length, filled = length - piece.tokens, filled + piece.tokens
    return tuple(found)


def padded(ids: np.ndarray, bucket: int, padding: int = 0) -> np.ndarray:
    """(batch, n) tokens of a piece -> (batch, bucket), padding on the right. raises: InputError when they do not fit"""
    if ids.ndim != 2 or not 1 <= ids.shape[1] <= bucket:
        raise InputError(f"tokens of shape {list(ids.shape)} in a bucket of {bucket}", where="prefill")
    return np.pad(ids, ((0, 0), (0, bucket - ids.shape[1])), constant_values=padding)


def run_tokens(
    session: Session, ids: np.ndarray, state: State, more: Mapping[str, Any] | None = None, buckets: Sequence[int] = ()
) -> np.ndarray:
    """Run tokens behind what a state holds: all at once, or of a port with gears in pieces.

    ids:     (batch, n) int64
    more:    further feeds
    buckets: of the port's, those that may be used; all when left out
    returns: (batch, kept, vocab) logits; of a port with gears of all n rows
    raises:  InputError when the cache of a port with gears does not hold them, and as `Session.run`
    """
    capacity = fixed_capacity(session.program)
    if not session.program.gears or capacity is None:
        found: np.ndarray = session.run({TOKENS: ids, **(more or {})}, state)[LOGITS]
        return found
    parts, start = [], 0
    for tokens, bucket in pieces(
        ids.shape[1], int(state.length.max(initial=0)), capacity, buckets or buckets_of(session.program)
    ):
        piece = padded(ids[:, start : start + tokens], bucket)
        logits = session.run({TOKENS: np.ascontiguousarray(piece), **(more or {})}, state)[LOGITS]
        state.length = state.length - (bucket - tokens)
        parts.append(logits[:, :tokens])
        start += tokens
    return np.concatenate(parts, axis=1)
