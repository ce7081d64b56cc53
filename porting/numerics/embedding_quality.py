"""What a precision may cost an encoder: how far its vectors turn away from those of the reference."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from porting.errors import InputError, UsageError, nearest
from porting.numerics.quality import LIMITS_FILE
from porting.numerics.sketch import EstimatedDifference, Interval


@dataclass(frozen=True)
class EmbeddingLimit:
    """How far vectors of a precision may turn away.

    distance:   mean of 1 - cosine, at most
    derivation: what the report prints: source and factors
    """

    precision: str
    distance: float
    derivation: str


def cosine_distance(reference: np.ndarray, candidate: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """1 - cosine of every pair of vectors, float64, (vectors,). NaN where either holds one; 1 where one of both is zero, 0 where both are.

    reference, candidate: (..., size), floats
    mask:                 (...), which vectors count; None for all
    raises:               InputError for shapes that do not fit, and when no vector counts
    """
    reference, candidate = np.asarray(reference), np.asarray(candidate)
    fits = reference.shape == candidate.shape and reference.ndim >= 1 and (mask is None or mask.shape == reference.shape[:-1])
    if not fits:
        shapes = f"reference {reference.shape}, candidate {candidate.shape}, mask {None if mask is None else mask.shape}"
        raise InputError(f"vectors do not fit: {shapes}", where="embedding quality")
    counted = np.ones(reference.shape[:-1], bool) if mask is None else mask.astype(bool)
    a, b = reference[counted].astype(np.float64), candidate[counted].astype(np.float64)
    if not a.size:
        raise InputError("no vector is compared: these inputs show nothing", where="embedding quality")
    lengths = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    both = lengths[0] * lengths[1]
    cosines = np.divide((a * b).sum(-1), both, out=np.zeros_like(both), where=both != 0)
    cosines[(lengths[0] == 0) & (lengths[1] == 0)] = 1
    return 1 - cosines


def mean_distance(estimates: Sequence[EstimatedDifference]) -> Interval:
    """1 - cosine between what was sketched and what was compared with it, mean over pairs, each taken as one long vector.

    That is at least the mean over the vectors in them, weighted by their lengths (Cauchy-Schwarz), and more only by how unevenly lengths
    differ. One interval at the confidence of each: a distance is linear in the squared difference, and the standard deviation of a mean is
    at most the mean of the standard deviations, so the mean of the ends has what Chebyshev asks for.
    """
    low = np.mean([1 - one.cosine_high for one in estimates])
    high = np.mean([1 - one.cosine_low for one in estimates])
    return Interval(float(low), float(high))


def embedding_limit(precision: str, layers: int, override: float | None = None) -> EmbeddingLimit:
    """The limit of a precision, from limits.json.

    layers:   of the encoder; each adds its share of noise
    override: replaces the table's value; the derivation says so, and so must the report
    raises:   UsageError for a precision without a limit, or an override that is not a usable number
    """
    table = json.loads(LIMITS_FILE.read_text(encoding="utf-8"))
    rows = table["embedding"]
    if layers < 1:
        raise UsageError(f"an encoder of {layers} layers", where="quality")
    if precision == "fp32":
        limit, note = rows["fp32"], "half the square of a relative error of 1e-3"
    elif precision in rows["per_layer"]:
        share = rows["per_layer"][precision]
        source = table["sources"][rows["source"]]
        limit = share * layers
        note = f"{share:.3g} for each of {layers} layers, by the noise of codes in blocks of 32; {source['title']}, {source['section']}"
    else:
        known = ["fp32", *rows["per_layer"]]
        raise UsageError(f"no limit for embeddings in {precision!r}", where="quality", next=nearest(precision, known))
    if override is None:
        return EmbeddingLimit(precision, limit, note)
    if not 0 <= override < math.inf:
        raise UsageError(f"a distance of {override} is no limit", where="quality", next="1 - cosine, from 0 up")
    return EmbeddingLimit(precision, override, f"{note}; OVERRIDDEN by the caller: {override:.4g} instead of {limit:.4g}")
