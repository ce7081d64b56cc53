"""One output against what it should be: how far apart, and where."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SCALES = (0.01, 0.1, 0.5)  # quantiles; the first at which roundings do not drown what is looked at is taken
WIDE = 100  # how far above its small elements the root mean square of an output is, when it hides them. A normal distribution has 80


@dataclass(frozen=True)
class Difference:
    """A port's output against the reference's.

    value:     relative L2 error; of exact outputs the number of elements that differ
    where:     the place of the largest
    problem:   why both cannot be compared, "" when they can
    undecided: why the difference may be there in a right port, "" when it may not
    least:     of an estimate, whose value is the most that it may be, the least; None where the value is the difference itself
    """

    value: float
    where: str
    problem: str = ""
    undecided: str = ""
    least: float | None = None


class Expected(Protocol):
    """One output of one step, as it should be.

    exact: integers, booleans and texts, of which every element has to be equal
    """

    @property
    def exact(self) -> bool: ...
    def compare(self, name: str, array: np.ndarray) -> Difference: ...
    def compare_small(self, name: str, array: np.ndarray, scale: float) -> Difference:
        """The same of asinh(x / scale), of a float output that `compare` finds comparable. scale: what was measured with"""


@dataclass(frozen=True, eq=False)
class ExpectedArray:
    """The array itself.

    unstable: elements of an exact output that roundings change, which say nothing; None where none do
    """

    array: np.ndarray
    unstable: np.ndarray | None = None

    @property
    def exact(self) -> bool:
        return is_exact(self.array.dtype)

    def compare(self, name: str, array: np.ndarray) -> Difference:
        problem = misfit(self.array.shape, str(self.array.dtype), array)
        if problem:
            return Difference(math.inf, name, problem)
        if self.exact:
            wrong = self.array != array
            stable = wrong if self.unstable is None else wrong & ~self.unstable
            undecided = ""
            if self.unstable is not None and self.unstable.all() and np.any(wrong):
                undecided = "roundings alone change every element of this output, and these differ; use other inputs"
                stable = wrong
            return Difference(int(np.count_nonzero(stable)), _place(name, stable), undecided=undecided)
        return Difference(relative_error(self.array, array), _place(name, _gap(self.array, array)))

    def compare_small(self, name: str, array: np.ndarray, scale: float) -> Difference:
        wanted, got = compressed(self.array, scale), compressed(array, scale)
        return Difference(relative_error(wanted, got), _place(name, _gap(wanted, got)))


def is_exact(dtype: np.dtype) -> bool:
    """Integers, booleans and texts."""
    return dtype.kind in "biuOUS"


def misfit(shape: tuple[int, ...], dtype: str, array: np.ndarray) -> str:
    """Why an output cannot be compared; "" when it can."""
    wanted, got = (dtype, shape), (str(array.dtype), array.shape)
    if wanted == got or (wanted[1] == got[1] and {dtype, str(array.dtype)[:2]} <= {"object", "<U", "ob"}):
        return ""
    return f"expected {dtype}{list(shape)}, got {array.dtype}{list(array.shape)}"


def relative_error(reference: np.ndarray, candidate: np.ndarray) -> float:
    """|candidate - reference| / |reference| in L2; equal infinities are equal, any other non-finite difference is NaN or inf."""
    r, c = reference.astype(np.float64), candidate.astype(np.float64)
    same = reference == candidate
    r, c = np.where(same & np.isinf(r), 0.0, r), np.where(same & np.isinf(c), 0.0, c)
    scale = max(float(np.abs(r[np.isfinite(r)]).max(initial=0.0)), np.finfo(np.float64).tiny)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = math.sqrt(float(np.square((c - r) / scale).sum()))
        size = math.sqrt(float(np.square(r / scale).sum()))
    return difference / size if size else (0.0 if difference == 0 else difference if math.isnan(difference) else math.inf)


def compressed(array: np.ndarray, scale: float) -> np.ndarray:
    """asinh(x / scale), float64: x / scale of small elements, and the logarithm of large ones, which then hide the small no more."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.arcsinh(array.astype(np.float64) / scale)


def small_scales(array: np.ndarray) -> list[float]:
    """Scales of an output whose small elements do not show in its L2 norm, smallest first; none where all show.

    They are the quantiles SCALES of the sizes of its elements that are neither 0 nor infinite.
    """
    sizes = np.abs(array[np.isfinite(array) & (array != 0)].astype(np.float64))
    if not sizes.size:
        return []
    largest = sizes.max()
    if math.sqrt(float(np.square(sizes / largest).mean())) * largest <= WIDE * np.quantile(sizes, SCALES[0]):
        return []
    return sorted({float(scale) for scale in np.quantile(sizes, SCALES)})


def _gap(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(reference == candidate, 0.0, np.abs(candidate.astype(np.float64) - reference.astype(np.float64)))


def _place(name: str, gap: np.ndarray) -> str:
    if not gap.size:
        return name
    index = np.unravel_index(int(np.argmax(gap)), gap.shape)  # numpy's argmax stops at the first NaN
    return f"{name}[{', '.join(str(int(i)) for i in index)}]" if index else name
