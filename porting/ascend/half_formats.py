"""The number formats that Ascend computes in, and what an array loses in them: what becomes too large, zero, or coarse."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

CHUNK = 1 << 20  # elements that are looked at together: a few temporaries of this size, however large the array


@dataclass(frozen=True)
class Format:
    """A binary format of IEEE 754's kind, which float32 is rounded to.

    name:     numpy's or ml_dtypes' name
    bits:     of the significand, the one that is not stored included
    exponent: of the largest numbers
    """

    name: str
    bits: int
    exponent: int

    @property
    def unit_roundoff(self) -> float:
        return 2.0**-self.bits

    @property
    def largest(self) -> float:
        return (2 - 2.0 ** (1 - self.bits)) * 2.0**self.exponent

    @property
    def overflows_from(self) -> float:
        """The smallest magnitude that is rounded to infinity."""
        return (2 - 2.0**-self.bits) * 2.0**self.exponent

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (1 - self.exponent)

    @property
    def smallest(self) -> float:
        """The smallest number above zero, a subnormal one."""
        return self.smallest_normal * 2.0 ** (1 - self.bits)


FORMATS = {"fp16": Format("float16", 11, 15), "bf16": Format("bfloat16", 8, 127)}


@dataclass(frozen=True)
class Magnitudes:
    """What an array of float32 holds, and what a format makes of it. Counts are of elements.

    lowest, highest: of the finite elements; 0 where there are none
    zeros:           not zero, and rounded to zero
    subnormals:      rounded to a subnormal number, of fewer bits than the format has
    too_large:       finite, and rounded to infinity
    infinite, nan:   as they are
    """

    elements: int = 0
    nonzero: int = 0
    lowest: float = 0.0
    highest: float = 0.0
    zeros: int = 0
    subnormals: int = 0
    too_large: int = 0
    infinite: int = 0
    nan: int = 0

    def __add__(self, other: Magnitudes) -> Magnitudes:
        added = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Magnitudes(**{**added, "lowest": min(self.lowest, other.lowest), "highest": max(self.highest, other.highest)})

    @property
    def largest(self) -> float:
        """The largest finite magnitude."""
        return max(-self.lowest, self.highest)

    @property
    def lost_share(self) -> float:
        """Of the elements that are not zero, those that become zero or subnormal."""
        return (self.zeros + self.subnormals) / self.nonzero if self.nonzero else 0.0

    @property
    def zero_share(self) -> float:
        return self.zeros / self.nonzero if self.nonzero else 0.0

    @property
    def is_lost(self) -> bool:
        """Whether no element is left as a normal number, and some were."""
        return self.nonzero > 0 and self.zeros + self.subnormals == self.nonzero


def magnitudes(array: np.ndarray, form: Format) -> Magnitudes:
    """What `form` makes of an array of float32 or narrower floats; memory of CHUNK elements."""
    flat = np.asarray(array).reshape(-1)
    parts = (_of_chunk(flat[i : i + CHUNK].astype(np.float32, copy=False), form) for i in range(0, flat.size, CHUNK))
    return sum(parts, Magnitudes())


def _of_chunk(chunk: np.ndarray, form: Format) -> Magnitudes:
    size = np.abs(chunk)
    finite = np.isfinite(size)
    nan = int(np.count_nonzero(np.isnan(size)))
    infinite = chunk.size - int(np.count_nonzero(finite)) - nan
    zeros = int(np.count_nonzero((size > 0) & (size <= np.float32(form.smallest / 2))))  # a tie goes to the even one, zero
    small = int(np.count_nonzero((size > 0) & (size < np.float32(form.smallest_normal - form.smallest / 2))))
    kept = chunk if infinite + nan == 0 else chunk[finite]
    return Magnitudes(
        elements=chunk.size,
        nonzero=int(np.count_nonzero(chunk)),
        lowest=min(0.0, float(kept.min(initial=math.inf))) if kept.size else 0.0,
        highest=max(0.0, float(kept.max(initial=-math.inf))) if kept.size else 0.0,
        zeros=zeros,
        subnormals=small - zeros,
        too_large=int(np.count_nonzero(finite & (size >= np.float32(form.overflows_from)))),
        infinite=infinite,
        nan=nan,
    )
