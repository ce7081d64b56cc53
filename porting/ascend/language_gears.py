"""Shapes of a language model with a static cache: one for decoding, and prompts in buckets.

    decode   input_ids (batch, 1)         every step after the prompt
    prefill  input_ids (batch, bucket)    a piece of the prompt, padded on the right

The cache has its whole capacity in every gear. How pieces are run in them stands in porting/gear_runs.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from porting.ascend.gear_requests import Request, named_sizes
from porting.ascend.gears import Gears, gears_of_sizes
from porting.ascend.soc import Soc
from porting.errors import UsageError
from porting.types import TensorSpec

BATCH, SEQUENCE, CAPACITY = "batch", "sequence", "capacity"  # the dimensions, as the converters name them
DEFAULT_CAPACITY = 1024  # positions; each is paid for in every step, for the whole cache is attended to and masked
DEFAULT_BUCKETS = (64, 256)
# inputs that are constants in a compiled graph: logits of every row, since padding stands behind the last
KEPT = {"logits_to_keep": 0}


def language_gears(inputs: Sequence[TensorSpec], soc: Soc, request: Request | None = None, context: int | None = None) -> Gears:
    """The gears of a port of kind "causal-lm", whose free dimensions are "batch", "sequence" and "capacity".

    request: by name; what no gear names has a default: batch 1, a cache of DEFAULT_CAPACITY positions or the model's own `context`, and
             DEFAULT_BUCKETS beside the 1 for decoding
    raises:  UsageError for numbers that cannot be meant, and as `gears_for`
    """
    request = request or Request()
    if request.image_size or request.dims:
        raise UsageError(
            "a language model has no images, and its cache has one capacity in all gears",
            where="--image-size" if request.image_size else "--dims",
            next='name sizes: --gears "capacity=2048" or --gears "sequence=1,capacity=2048; sequence=128,capacity=2048"',
        )
    given = named_sizes(request.named) if request.named.strip() else [{}]
    if request.batch.strip():
        if any(BATCH in gear for gear in given) or not request.batch.strip().isdigit():
            raise UsageError("a language model is compiled for one batch", where="--batch", next="name one number, once")
        given = [{**gear, BATCH: int(request.batch)} for gear in given]
    capacity = _one(given, CAPACITY, min(DEFAULT_CAPACITY, context or DEFAULT_CAPACITY))
    batch = _one(given, BATCH, 1)
    lengths = _lengths(given, capacity)
    if context is not None and capacity > context:
        raise UsageError(
            f"a cache of {capacity} positions, and the model was made for {context}",
            where="--gears",
            next=f"capacity={context}",
        )
    own = (BATCH, SEQUENCE, CAPACITY)
    rest = {name: size for name, size in given[0].items() if name not in own}  # for gears_of_sizes to refuse
    return gears_of_sizes(inputs, soc, [{**rest, BATCH: batch, SEQUENCE: n, CAPACITY: capacity} for n in lengths])


def _one(gears: Sequence[dict[str, int]], name: str, default: int) -> int:
    """The size that all gears give a dimension. raises: UsageError"""
    found = {gear.get(name) for gear in gears}
    if len(found) > 1:
        raise UsageError(
            f"{name} differs from gear to gear: {', '.join(str(n) for n in found)}",
            where="--gears",
            next=f"the cache is one for all gears, and so is its {name}",
        )
    return next(iter(found)) or default


def _lengths(gears: Sequence[dict[str, int]], capacity: int) -> tuple[int, ...]:
    """Sequence lengths, ascending. raises: UsageError"""
    named = [gear[SEQUENCE] for gear in gears if SEQUENCE in gear]
    if not named:
        return (1, *(n for n in DEFAULT_BUCKETS if n <= capacity))
    if len(named) < len(gears) or len(set(named)) < len(named):
        raise UsageError("a gear has no sequence, or the one of another", where="--gears", next="each has a length of its own")
    if 1 not in named:
        raise UsageError("no gear is for one token, and decoding has one a step", where="--gears", next="add sequence=1")
    if max(named) > capacity:
        raise UsageError(
            f"a gear of {max(named)} tokens, and a cache of {capacity}", where="--gears", next="name a larger capacity"
        )
    return tuple(sorted(named))
