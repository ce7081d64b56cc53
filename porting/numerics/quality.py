"""What a precision costs a language model: KL divergence, agreement of the top token, and the limits for both.

Logits are (positions, vocabulary) in any real dtype; sums are float64, logarithms natural, KL in nats. The limits are data
with their sources in limits.json beside this file; nothing here holds a number of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from porting.errors import InputError, UsageError, nearest

ROWS = 16  # positions at a time: 16 rows of 150,000 tokens are 20 MB of float64
LIMITS_FILE = Path(__file__).with_name("limits.json")


def kl_divergence(reference_logits: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Exact KL(reference || candidate) at each position.

    reference_logits, logits: (..., vocabulary); -inf is a probability of zero
    returns: (positions,) float64, nats; NaN where the candidate holds NaN or +inf, inf where it excludes a possible token
    raises:  InputError for different shapes, an empty one, or NaN or +inf in the reference
    """
    reference, candidate = _two_of_a_kind(reference_logits, logits)
    result = np.empty(len(reference))
    with np.errstate(invalid="ignore", divide="ignore"):
        for rows, r, c in _rows(reference, candidate):
            log_p, log_q = _log_softmax(r), _log_softmax(c)
            if np.isnan(log_p).any():
                raise InputError(f"the reference's logits at positions {rows.start} to {rows.stop - 1} hold NaN or +inf")
            gap = np.where(log_p == -np.inf, 0.0, log_p - log_q)
            result[rows] = np.maximum((np.exp(log_p) * gap).sum(-1), 0.0)  # rounding may leave -1e-17; NaN stays
    return result


def coarse_kl(top_ids: np.ndarray, top_logits: np.ndarray, logsumexp: np.ndarray, candidate_logits: np.ndarray) -> np.ndarray:
    """KL of both distributions lumped to the reference's top k tokens and one bucket for all the rest.

    A lower bound of the exact KL: lumping is a deterministic map, and by the data-processing inequality no map increases a
    divergence (Cover & Thomas, Elements of Information Theory, 2nd ed., theorem 2.7.1 for the log-sum inequality behind it).
    So a coarse KL above a limit shows that the exact one is; below it, it does not show the contrary. Equal when k is the
    whole vocabulary.

    top_ids, top_logits: (positions, k) of the reference; logsumexp: (positions,) over its whole vocabulary
    candidate_logits:    (..., vocabulary)
    returns: (positions,) float64, nats; NaN where the candidate holds NaN or +inf
    raises:  InputError for shapes or ids that do not fit
    """
    candidate = np.asarray(candidate_logits)
    candidate = candidate.reshape(-1, candidate.shape[-1]) if candidate.ndim else candidate
    ids, top, total = np.asarray(top_ids), np.asarray(top_logits, np.float64), np.asarray(logsumexp, np.float64)
    if ids.ndim != 2 or top.shape != ids.shape or total.shape != ids.shape[:1] or len(candidate) != len(ids):
        raise InputError(
            f"shapes do not fit: ids {ids.shape}, logits {top.shape}, logsumexp {total.shape}, candidate {candidate.shape}",
            where="coarse KL",
        )
    vocabulary = candidate.shape[1]
    if ids.size == 0 or ids.min() < 0 or ids.max() >= vocabulary or (np.diff(np.sort(ids, -1), axis=-1) == 0).any():
        raise InputError(f"top ids are not distinct tokens below {vocabulary}", where="coarse KL")
    result = np.empty(len(ids))
    with np.errstate(invalid="ignore", divide="ignore"):
        for rows, c, i in _rows(candidate, ids):
            log_q = _log_softmax(c)
            log_q_top = np.take_along_axis(log_q, i, -1)
            log_p_top = top[rows] - total[rows, None]
            p_top = np.exp(log_p_top)
            kl = (p_top * np.where(p_top == 0, 0.0, log_p_top - log_q_top)).sum(-1)
            if ids.shape[1] < vocabulary:
                np.put_along_axis(log_q, i, -np.inf, -1)
                p_rest = np.maximum(1.0 - p_top.sum(-1), 0.0)
                q_rest = np.exp(log_q).sum(-1)
                kl = kl + np.where(p_rest == 0, 0.0, p_rest * np.log(p_rest / q_rest))
            result[rows] = np.maximum(kl, 0.0)
    return result


def top1_agreement(reference_logits: np.ndarray, logits: np.ndarray) -> float:
    """Share of positions where both have the same most likely token; a row with NaN never agrees. (..., vocabulary) each."""
    reference, candidate = _two_of_a_kind(reference_logits, logits)
    agree = 0
    for _, r, c in _rows(reference, candidate):
        agree += int(((r.argmax(-1) == c.argmax(-1)) & ~np.isnan(r.max(-1)) & ~np.isnan(c.max(-1))).sum())
    return agree / len(reference)


def margins(reference_logits: np.ndarray) -> np.ndarray:
    """The reference's largest logit minus its second largest, (positions,) float64: how easily its top token flips."""
    reference = np.asarray(reference_logits)
    if reference.ndim < 1 or reference.shape[-1] < 2 or reference.size == 0:
        raise InputError(f"logits of shape {reference.shape} have no margin", where="margins")
    flat = reference.reshape(-1, reference.shape[-1])
    result = np.empty(len(flat))
    for rows, r, _ in _rows(flat, flat):
        two = np.partition(r, r.shape[-1] - 2, axis=-1)[:, -2:]
        result[rows] = two[:, 1] - two[:, 0]
    return result


@dataclass(frozen=True)
class Divergence:
    """The first position where two token sequences part. A token is None where a sequence has ended.

    margin: the reference's margin there; small means that the tokens were nearly equally likely
    """

    position: int
    reference_token: int | None
    token: int | None
    margin: float


def first_divergence(
    reference_tokens: Sequence[int], tokens: Sequence[int], reference_margins: Sequence[float] | np.ndarray
) -> Divergence | None:
    """Where two greedy sequences part, or None when they are the same.

    reference_margins: one per reference token, in its order
    raises: InputError when there is not one margin per reference token
    """
    if len(reference_margins) != len(reference_tokens):
        raise InputError(f"{len(reference_tokens)} tokens and {len(reference_margins)} margins", where="first divergence")
    for i in range(max(len(reference_tokens), len(tokens))):
        expected = int(reference_tokens[i]) if i < len(reference_tokens) else None
        got = int(tokens[i]) if i < len(tokens) else None
        if expected != got:
            return Divergence(i, expected, got, float(reference_margins[i]) if expected is not None else math.nan)
    return None


@dataclass(frozen=True)
class QualityLimits:
    """What a precision may cost, and where that comes from.

    mean_kl:        nats, at most
    top1_agreement: share of positions, at least, over many positions; `agreement_floor` for a few
    derivation:     what the report prints: source, factors, and every override
    overridden:     name -> the table's value that the caller replaced; a report repeats it
    """

    precision: str
    mean_kl: float
    top1_agreement: float
    derivation: str
    overridden: Mapping[str, float] = field(default_factory=dict)

    def agreement_floor(self, positions: int) -> float:
        """The agreement below which `positions` samples show that the limit is missed (binomial, one-sided 1 %)."""
        spread = math.sqrt(self.top1_agreement * (1 - self.top1_agreement) / positions)
        return self.top1_agreement - _table()["agreement_sampling"]["z"] * spread


def quality_limits(
    precision: str, *, parameters: int | None = None, override: Mapping[str, float] | None = None
) -> QualityLimits:
    """The limits of a precision, from limits.json.

    parameters: of the model; relaxes the limits of models smaller than the published ones by the table's scaling law
    override:   {"mean_kl": ..., "top1_agreement": ...} replaces values; the result says so, and so must the report
    raises:     UsageError for a precision without limits, or an override that is not a usable number
    """
    table = _table()
    rows = table["precisions"]
    if precision not in rows:
        raise UsageError(f"no quality limits for precision {precision!r}", where="quality", next=nearest(precision, list(rows)))
    row, source = rows[precision], table["sources"][rows[precision]["source"]]
    factor, size_note = _size_factor(table["size_law"], parameters if row["scales_with_size"] else None)
    flips = (1 - row["top1_agreement"]) * factor ** table["flip_law"]["exponent_of_kl"]
    values = {"mean_kl": row["mean_kl"] * factor, "top1_agreement": max(0.0, 1 - flips)}
    derivation = f"{source['title']}, {source['section']}; times {row['kl_factor']} for this precision{size_note}"
    replaced = {}
    for name, value in (override or {}).items():
        if name not in values:
            raise UsageError(f"unknown limit {name!r}", where="quality", next=nearest(name, list(values)))
        if not (0 <= value < math.inf) or (name == "top1_agreement" and value > 1):
            raise UsageError(f"{name} = {value} is no limit", where="quality", next="a share in [0, 1], or nats >= 0")
        replaced[name] = values[name]
        derivation += f"; OVERRIDDEN by the caller: {name} {value:.4g} instead of {values[name]:.4g}"
        values[name] = float(value)
    return QualityLimits(precision, values["mean_kl"], values["top1_agreement"], derivation, replaced)


@cache
def _table() -> dict[str, Any]:
    return json.loads(LIMITS_FILE.read_text(encoding="utf-8"))


def _size_factor(law: Mapping[str, Any], parameters: int | None) -> tuple[float, str]:
    if parameters is None or parameters >= law["reference_parameters"]:
        return 1.0, ""
    if parameters < 1:
        raise UsageError(f"a model of {parameters} parameters", where="quality")
    factor = (law["reference_parameters"] / parameters) ** law["exponent"]
    return factor, f"; times {factor:.3g} for {parameters / 1e6:.4g}M parameters ({law['source'].partition(',')[0]})"


def _two_of_a_kind(reference: np.ndarray, candidate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reference, candidate = np.asarray(reference), np.asarray(candidate)
    if reference.shape != candidate.shape or reference.ndim < 1 or reference.size == 0:
        raise InputError(f"logits do not fit: reference {reference.shape}, candidate {candidate.shape}", where="quality")
    return reference.reshape(-1, reference.shape[-1]), candidate.reshape(-1, candidate.shape[-1])


def _rows(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """A few rows of both at a time; logits as float64, ids as they are."""
    for start in range(0, len(a), ROWS):
        rows = slice(start, min(start + ROWS, len(a)))
        yield rows, _widened(a[rows]), _widened(b[rows])


def _widened(x: np.ndarray) -> np.ndarray:
    return x if x.dtype.kind in "iu" else x.astype(np.float64)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
