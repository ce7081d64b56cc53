"""How far one tensor is from another: the numbers of a comparison, never its judgement.

Sums are kept in float64 and taken in blocks, so that memory does not grow with the tensors. Integers and booleans are
compared exactly. What cannot be compared is an error, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from porting.errors import InputError

BLOCK = 1 << 14  # elements; 128 KiB of float64, which stays in the cache


@dataclass(frozen=True)
class TensorDifference:
    """A candidate against a reference of the same shape and dtype.

    count:      elements
    mismatches: elements that are not equal (two NaN are not)
    max_abs:    largest |candidate - reference|; NaN where the candidate has one, inf against an infinity of the other sign
    max_rel:    largest |candidate - reference| / max(|reference|, floor)
    floor:      below it an element's error is judged against the floor; the reference's root mean square unless given
    cosine:     of the angle between the flattened tensors, in [-1, 1]
    sqnr_db:    10 log10(|reference|^2 / |difference|^2) in dB; inf when nothing differs
    rel_l2:     |difference| / |reference|
    worst:      index of max_abs; of the first NaN when the candidate has one
    worst_reference, worst_candidate: the values there
    """

    shape: tuple[int, ...]
    dtype: str
    count: int
    mismatches: int
    max_abs: float
    max_rel: float
    floor: float
    cosine: float
    sqnr_db: float
    rel_l2: float
    reference_nan: int
    reference_inf: int
    candidate_nan: int
    candidate_inf: int
    worst: tuple[int, ...]
    worst_reference: float
    worst_candidate: float

    def where(self, name: str) -> str:
        """`logits[0, 417]`"""
        return f"{name}[{', '.join(map(str, self.worst))}]"


def compare(
    reference: np.ndarray, candidate: np.ndarray, *, name: str = "tensor", floor: float | None = None
) -> TensorDifference:
    """Measure `candidate` against `reference`.

    reference, candidate: same shape and dtype, any real numeric dtype (ml_dtypes' included)
    raises: InputError when shapes or dtypes differ, when a dtype is not real, and when the reference shows nothing
            (`require_informative`). Equal infinities count as equal; in the candidate NaN and inf are numbers to report
    """
    reference, candidate = np.asarray(reference), np.asarray(candidate)
    for what, expected, got in (
        ("shape", reference.shape, candidate.shape),
        ("dtype", reference.dtype, candidate.dtype),
    ):
        if expected != got:
            raise InputError(
                f"{what} differs: expected {expected}, got {got}", where=name, next="nothing is cast or broadcast silently"
            )
    require_informative(reference, name)
    scale, rms = _scale_and_rms(reference)
    used_floor = rms if floor is None else floor
    sums = _Sums(scale, used_floor)
    for start, r, c in _blocks(reference, candidate):
        sums.add(start, r, c)
    worst = tuple(int(i) for i in np.unravel_index(sums.worst, reference.shape))
    return TensorDifference(
        shape=reference.shape,
        dtype=str(reference.dtype),
        count=reference.size,
        mismatches=sums.mismatches,
        max_abs=sums.max_abs,
        max_rel=sums.max_rel,
        floor=used_floor,
        cosine=sums.cosine(),
        sqnr_db=sums.sqnr_db(),
        rel_l2=math.sqrt(sums.dd / sums.rr) if sums.rr else (math.nan if math.isnan(sums.dd) else math.inf if sums.dd else 0.0),
        reference_nan=0,  # require_informative saw to it
        reference_inf=sums.inf_r,
        candidate_nan=sums.nan_c,
        candidate_inf=sums.inf_c,
        worst=worst,
        worst_reference=float(reference[worst]),
        worst_candidate=float(candidate[worst]),
    )


def require_informative(reference: np.ndarray, name: str) -> None:
    """A reference against which a comparison shows something.

    raises: InputError when it is empty, holds a NaN, has no finite element, or is one constant over several elements
    """
    reference = np.asarray(reference)
    _require_real(reference, name)
    if reference.size == 0:
        raise InputError(f"the reference is empty, shape {reference.shape}", where=name, next="use inputs that give an output")
    lowest, highest, finite = math.inf, -math.inf, False
    for _, values in _float_blocks(reference):
        if np.isnan(values).any():
            raise InputError(
                "the reference itself holds NaN: these inputs show nothing",
                where=name,
                next="use inputs on which the source gives finite outputs, or look for the fault in the source",
            )
        lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
        finite = finite or bool(np.isfinite(values).any())
    if not finite or (lowest == highest and reference.size > 1):
        raise InputError(
            f"the reference is {lowest:g} everywhere: these inputs show nothing",
            where=name,
            next="use inputs on which the output varies",
        )


def _require_real(array: np.ndarray, name: str) -> None:
    # ml_dtypes' types are of kind "V" with a name of their own; structured and raw void types have fields or no cast to float64
    if array.dtype.kind in "biuf" or (array.dtype.kind == "V" and array.dtype.isbuiltin == 2):
        return
    raise InputError(f"dtype {array.dtype} is not a real number", where=name, next="compare tensors of numbers")


def _scale_and_rms(reference: np.ndarray) -> tuple[float, float]:
    """Largest finite magnitude (1 when all is zero) and root mean square over the finite elements."""
    scale = max(float(np.abs(np.where(np.isfinite(v), v, 0)).max()) for _, v in _float_blocks(reference)) or 1.0
    squares, count = 0.0, 0
    for _, values in _float_blocks(reference):
        finite = values[np.isfinite(values)] / scale
        squares += _product(finite, finite)
        count += finite.size
    return scale, scale * math.sqrt(squares / count)


def _blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Flat position, and the same stretch of both in C order. `.flat` copies no more than the stretch, but slowly."""
    a_flat, b_flat = _flat(a), _flat(b)
    for start in range(0, a.size, BLOCK):
        yield start, a_flat[start : start + BLOCK], b_flat[start : start + BLOCK]


def _float_blocks(a: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    flat = _flat(a)
    for start in range(0, a.size, BLOCK):
        yield start, flat[start : start + BLOCK].astype(np.float64)


def _flat(a: np.ndarray) -> np.ndarray | np.flatiter:
    return a.reshape(-1) if a.flags.c_contiguous else a.flat


def _product(a: np.ndarray, b: np.ndarray) -> float:
    """Inner product. Not `@`: BLAS starts threads for it, 30 times slower where other processes are busy; and this sums pairwise."""
    return float((a * b).sum())


class _Sums:
    """Running sums of a comparison. Values are divided by `scale` before they are squared: no overflow, no underflow to zero."""

    def __init__(self, scale: float, floor: float) -> None:
        self.scale, self.floor = scale, floor
        self.rr = self.cc = self.rc = self.dd = 0.0
        self.max_abs = self.max_rel = 0.0
        self.mismatches = self.nan_c = self.inf_c = self.inf_r = 0
        self.worst = 0

    def add(self, start: int, r: np.ndarray, c: np.ndarray) -> None:
        differs = r != c
        self.mismatches += int(np.count_nonzero(differs))
        r64, c64 = r.astype(np.float64), c.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            gap = np.where(differs, _exact_gap(r, c, r64, c64), 0.0)
            same_inf = ~differs & np.isinf(r64)
            r64[same_inf] = c64[same_inf] = 0.0
            self._find_worst(start, gap, np.abs(r64))
            self.nan_c += int(np.isnan(c64).sum())
            self.inf_c += int(np.isinf(c64).sum() + same_inf.sum())
            self.inf_r += int(np.isinf(r64).sum() + same_inf.sum())
            r64, c64, gap = r64 / self.scale, c64 / self.scale, gap / self.scale
            self.rr += _product(r64, r64)
            self.cc += _product(c64, c64)
            self.rc += _product(r64, c64)
            self.dd += _product(gap, gap)

    def _find_worst(self, start: int, gap: np.ndarray, size: np.ndarray) -> None:
        if math.isnan(self.max_abs):
            return
        at = int(np.argmax(gap))  # numpy's argmax stops at the first NaN
        if gap[at] > self.max_abs or math.isnan(gap[at]):
            self.max_abs, self.worst = float(gap[at]), start + at
        relative = np.where(gap == 0, 0.0, gap / np.maximum(size, self.floor))
        self.max_rel = float(np.maximum(self.max_rel, relative.max()))

    def cosine(self) -> float:
        if self.mismatches == 0:
            return 1.0
        length = math.sqrt(self.rr) * math.sqrt(self.cc)
        return max(-1.0, min(1.0, self.rc / length)) if length > 0 and math.isfinite(length) else math.nan

    def sqnr_db(self) -> float:
        if self.dd == 0:
            return math.inf
        return 10 * math.log10(self.rr / self.dd) if self.rr > 0 and math.isfinite(self.dd) else -math.inf


def _exact_gap(r: np.ndarray, c: np.ndarray, r64: np.ndarray, c64: np.ndarray) -> np.ndarray:
    """|c - r| as float64. For 64-bit integers by unsigned wrap-around: float64 holds only 53 bits of either."""
    if r.dtype.kind in "iu" and r.dtype.itemsize == 8:
        a, b = r.astype(np.uint64), c.astype(np.uint64)
        return np.where(c > r, b - a, a - b).astype(np.float64)
    return np.abs(c64 - r64)
