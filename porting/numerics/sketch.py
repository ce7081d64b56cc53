"""A tensor in kilobytes: statistics, a count-sketch from which differences are estimated, and the top of every row of logits.

The count-sketch (Charikar, Chen & Farach-Colton 2002) adds every element, with a random sign, to one of 256 buckets. It is
linear, so sketch(x) - sketch(y) is the sketch of x - y, and its squared length estimates |x - y|^2 without bias and with

    variance = 2 / buckets * (|x - y|_2^4 - |x - y|_4^4)  <=  2 / buckets * |x - y|_2^4

(Thorup & Zhang 2012, section 2; 4-wise independence suffices). Signs and buckets come from SplitMix64 by the element's
position; docs/golden_format.md specifies them to the bit, so that another language gets the same sketch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from porting.errors import InputError

BUCKETS = 256
SEED = 0x706F7274696E67  # "porting" in ASCII; any constant does, and every sketch states its own
CHUNK = 1 << 14  # elements: the hash's temporaries stay in the cache
TOP_ROWS = 8  # rows of logits at a time


@dataclass(frozen=True, eq=False)
class Sketch:
    """What is kept of a tensor. Statistics and buckets are over its finite elements, in float64.

    shape, dtype:   of the tensor; dtype by numpy's or ml_dtypes' name
    l2_norm, mean, minimum, maximum: NaN for the last three when nothing is finite
    nan_count, inf_count: elements
    seed:           of the hash
    buckets:        (buckets,) float64, a power of two of them
    top_ids:        (rows, k) int64, per row of the last axis, largest first, ties by lower id; None unless asked for
    top_values:     (rows, k) float32, the logits at top_ids
    logsumexp:      (rows,) float64, natural logarithm, over the whole row
    """

    shape: tuple[int, ...]
    dtype: str
    l2_norm: float
    mean: float
    minimum: float
    maximum: float
    nan_count: int
    inf_count: int
    seed: int
    buckets: np.ndarray = field(repr=False)
    top_ids: np.ndarray | None = field(default=None, repr=False)
    top_values: np.ndarray | None = field(default=None, repr=False)
    logsumexp: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Interval:
    """What an estimate tells of a number: it lies from `low` to `high`, both included. NaN where nothing is told."""

    low: float
    high: float


@dataclass(frozen=True)
class EstimatedDifference:
    """A difference estimated from a sketch. Each interval holds the true value with at least `confidence`, whatever the data.

    rel_l2: |y - x| / |x|; cosine: of the angle between both
    finite: False when NaN or inf counts differ: then the values are NaN and nothing passes
    """

    rel_l2: float
    rel_l2_low: float
    rel_l2_high: float
    cosine: float
    cosine_low: float
    cosine_high: float
    confidence: float
    finite: bool


def sketch(array: np.ndarray, *, top_k: int = 0, seed: int = SEED, buckets: int = BUCKETS) -> Sketch:
    """Sketch a tensor, streamed: beside the buckets, memory for one chunk.

    array:   any real dtype, at least one element
    top_k:   tokens to keep per row of the last axis, for logits; cut to the row's length
    raises:  InputError for an empty or non-numeric array, buckets that are no power of two, or logits without a finite row
    """
    array = np.asarray(array)
    if array.size == 0 or not _is_real(array.dtype):
        raise InputError(f"cannot sketch {array.dtype} of shape {array.shape}", where="sketch")
    sums = _Running(seed, buckets)
    for start, values in _chunks(array):
        sums.add(start, values)
    top = _top(array, top_k) if top_k else (None, None, None)
    return Sketch(array.shape, str(array.dtype), *sums.statistics(), sums.nan_count, sums.inf_count, seed, sums.buckets, *top)


def estimate_difference(of: Sketch, array: np.ndarray, *, confidence: float = 0.95) -> EstimatedDifference:
    """How far `array` is from the tensor that was sketched.

    |x - y|^2 is estimated by the sketch's squared length; the interval is Chebyshev's from the variance above, hence valid for
    any data and wider than it would have to be for dense differences: with 256 buckets and 95 % the relative error lies
    within -15 % and +29 % of the estimate, while its standard error for dense differences is 4 %. The cosine follows from the
    exact norms of both: cos = (|x|^2 + |y|^2 - |x - y|^2) / (2 |x| |y|).

    confidence: in (0, 1 - 2 / buckets)
    raises: InputError when shape or dtype differ, or the confidence is out of reach
    """
    array = np.asarray(array)
    if (array.shape, str(array.dtype)) != (of.shape, of.dtype):
        raise InputError(
            f"expected {of.dtype}{list(of.shape)}, got {array.dtype}{list(array.shape)}",
            where="sketch",
            next="nothing is cast or broadcast silently",
        )
    count = len(of.buckets)
    spread = math.sqrt(2 / (count * (1 - confidence))) if 0 < confidence < 1 else math.inf
    if spread >= 1:
        raise InputError(f"{count} buckets cannot give a confidence of {confidence}", where="sketch")
    sums = _Running(of.seed, count)
    for start, values in _chunks(array):
        sums.add(start, values)
    if (sums.nan_count, sums.inf_count) != (of.nan_count, of.inf_count) or of.nan_count:
        nan = math.nan
        return EstimatedDifference(nan, nan, nan, nan, nan, nan, confidence, False)
    gap = sums.buckets - of.buckets
    square = float(gap @ gap)
    squares = square, square / (1 + spread), square / (1 - spread)
    norm, other = of.l2_norm, math.sqrt(sums.squares)
    rel = [math.sqrt(s) / norm if norm else (0.0 if s == 0 else math.inf) for s in squares]
    product = 2 * norm * other
    cos = [max(-1.0, min(1.0, (norm**2 + other**2 - s) / product)) if product else math.nan for s in squares]
    return EstimatedDifference(rel[0], rel[1], rel[2], cos[0], cos[2], cos[1], confidence, True)


def splitmix64(seed: int, start: int, count: int) -> np.ndarray:
    """Outputs number start + 1 to start + count of SplitMix64 seeded with `seed`, (count,) uint64.

    source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 17 with Vigna's constants
    """
    z = np.arange(start + 1, start + 1 + count, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(seed)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


class _Running:
    """Statistics and buckets of a stream of values."""

    def __init__(self, seed: int, buckets: int) -> None:
        if buckets < 2 or buckets & (buckets - 1) or not 0 <= seed < 1 << 64:
            raise InputError(f"{buckets} buckets with seed {seed}: need a power of two and 64 bits", where="sketch")
        self.seed, self.shift = seed, np.uint64(64 - (buckets.bit_length() - 1))
        self.buckets = np.zeros(buckets)
        self.squares = self.total = 0.0
        self.count = self.nan_count = self.inf_count = 0
        self.minimum, self.maximum = math.inf, -math.inf

    def add(self, start: int, values: np.ndarray) -> None:
        h = splitmix64(self.seed, start, len(values))
        finite = np.isfinite(values)
        if not finite.all():
            self.nan_count += int(np.isnan(values).sum())
            self.inf_count += int(np.isinf(values).sum())
            values, h = values[finite], h[finite]
            if not len(values):
                return
        self.count += len(values)
        self.total += float(values.sum())
        self.squares += float(np.square(values).sum())  # not `@`: BLAS starts threads for it, far slower on a busy machine
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))
        signed = np.where((h & np.uint64(1)).astype(bool), -values, values)
        self.buckets += np.bincount((h >> self.shift).astype(np.intp), signed, len(self.buckets))

    def statistics(self) -> tuple[float, float, float, float]:
        if not self.count:
            return 0.0, math.nan, math.nan, math.nan
        return math.sqrt(self.squares), self.total / self.count, self.minimum, self.maximum


def _is_real(dtype: np.dtype) -> bool:
    return dtype.kind in "biuf" or (dtype.kind == "V" and dtype.isbuiltin == 2)  # the latter are ml_dtypes' numbers


def _chunks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Position in C order and the values there as float64. `.flat` copies no more than the chunk, but slowly."""
    flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
    for start in range(0, array.size, CHUNK):
        yield start, flat[start : start + CHUNK].astype(np.float64)


def _top(array: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, values and logsumexp of every row of logits."""
    if array.ndim < 1 or top_k < 1:
        raise InputError(f"no top {top_k} of shape {array.shape}", where="sketch")
    rows = array.reshape(-1, array.shape[-1])
    k = min(top_k, rows.shape[1])
    ids, values, totals = np.empty((len(rows), k), np.int64), np.empty((len(rows), k), np.float32), np.empty(len(rows))
    for start in range(0, len(rows), TOP_ROWS):
        part = rows[start : start + TOP_ROWS].astype(np.float64)
        peak = part.max(-1, keepdims=True)
        if not np.isfinite(peak).all():
            raise InputError(
                f"rows {start} to {start + len(part) - 1} of the logits have no finite largest value", where="sketch"
            )
        totals[start : start + len(part)] = peak[:, 0] + np.log(np.exp(part - peak).sum(-1))
        for i, row in enumerate(part, start):
            # every element that ties with the k-th stays a candidate, so that ties resolve by id and not by partition's whim
            candidates = np.flatnonzero(row >= np.partition(row, len(row) - k)[len(row) - k])
            order = np.argsort(-row[candidates], kind="stable")[:k]
            ids[i], values[i] = candidates[order], row[candidates[order]]
    return ids, values, totals
