"""Quantised encoders against a golden: what its sketches leave open is no failure, and no pass either."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import make_encoder

import porting
from porting import encoder_validation, fidelity, graph_golden_parts
from porting.conversion import convert
from porting.encoder_validation import interval_check
from porting.numerics.embedding_quality import EmbeddingLimit, cosine_distance, mean_distance
from porting.numerics.sketch import Interval, estimate_difference, sketch

HIDDEN = "quality: mean cosine distance of last_hidden_state"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    make_encoder(folder / "s", "BertModel", hidden_size=64, num_attention_heads=4)
    porting.record(folder / "s", folder / "kept.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_golden_parts, "KEPT_ELEMENTS", 0)  # sketches even of what is small
        porting.record(folder / "s", folder / "golden.json")
    return {
        "source": folder / "s",
        "kept": folder / "kept.json",
        "golden": folder / "golden.json",
        "port": convert(folder / "s", folder / "port", precision="int8").path,
    }


def _with_limit(monkeypatch: pytest.MonkeyPatch, distance: float) -> None:
    limit = EmbeddingLimit("int8", distance, "the test's own")
    monkeypatch.setattr(encoder_validation, "embedding_limit", lambda precision, layers: limit)


def _check(verdict: Any) -> Any:
    (found,) = [check for check in verdict.checks if check.name.startswith(HIDDEN)]
    return found


def test_the_exact_distance_lies_in_what_the_golden_tells(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit from both sides of the interval, and inside of it on both sides of the exact distance."""
    _with_limit(monkeypatch, 1.0)
    exact = _check(porting.validate(made["port"], made["source"])).value
    assert exact > 1e-7
    for factor, outcome in ((0.3, "fail"), (0.95, "error"), (1.05, "error"), (3.0, "pass")):
        _with_limit(monkeypatch, exact * factor)
        verdict = porting.validate(made["port"], made["golden"])
        assert _check(verdict).verdict == outcome, (factor, _check(verdict))
        others = [c for c in verdict.checks if not c.name.startswith("quality")]
        assert others and all(c.verdict == "pass" for c in others)


def test_an_undecided_distance_ends_in_3_and_says_what_decides(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def limit(precision: str, layers: int) -> EmbeddingLimit:
        return EmbeddingLimit(precision, distance, "the test's own")

    monkeypatch.setattr(encoder_validation, "embedding_limit", limit)
    distance = 1.0
    exact = max(c.value for c in porting.validate(made["port"], made["source"]).checks if "cosine distance" in c.name)
    distance = exact * 1.05
    verdict = porting.validate(made["port"], made["golden"])
    assert verdict.verdict == "error" and verdict.exit_code == 3
    assert "validate against the source" in verdict.line() and "95 %" in verdict.line()
    assert porting.validate(made["port"], made["source"]).ok


def test_small_outputs_are_kept_whole_and_their_distance_is_exact(made: dict[str, Path]) -> None:
    def distances(reference: Path) -> dict[str, Any]:
        checks = porting.validate(made["port"], reference).checks  # of random weights, which int8 serves badly
        return {c.name: c.value for c in checks if c.name.startswith("quality") and "last_hidden_state" not in c.name}

    exact = distances(made["source"])
    assert exact and distances(made["kept"]) == exact


@pytest.mark.parametrize(
    ("interval", "outcome", "value"),
    [
        ((1.0, 2.0), "pass", 2.0),
        ((1.0, 2.1), "error", None),
        ((2.0, 2.1), "error", None),
        ((2.1, 3.0), "fail", 2.1),
        ((math.nan, math.nan), "fail", math.nan),
        ((0.0, math.inf), "error", None),
    ],
)
def test_a_bound_of_2(interval: tuple[float, float], outcome: str, value: float | None) -> None:
    check = interval_check("x", Interval(*interval), 2.0, "somewhere", "")
    assert check.verdict == outcome
    assert check.value == pytest.approx(value, nan_ok=True) if value is not None else check.value is None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1e-3, 0.03, 0.3]), st.integers(1, 4))
def test_the_mean_of_intervals_holds_the_mean_distance(seed: int, size: float, count: int) -> None:
    """Of vectors of one length, where the distance of the whole is that of its parts to within their share of the error."""
    rng = np.random.default_rng(seed)
    estimates, distances = [], []
    for _ in range(count):
        x = rng.standard_normal((40, 64))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        y = x + size * rng.standard_normal(x.shape) / 8
        estimates.append(estimate_difference(sketch(x.astype(np.float32)), y.astype(np.float32)))
        distances.append(cosine_distance(x, y).mean())
    found = mean_distance(estimates)
    assert found.low <= np.mean(distances) <= found.high


def test_noise_is_measured_once_for_all_outputs(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    shaken = []
    kept = fidelity._Shaken

    def counted(*arguments: Any) -> Any:
        shaken.append(1)
        return kept(*arguments)

    monkeypatch.setattr(fidelity, "_Shaken", counted)
    verdict = porting.validate(made["port"], made["golden"])
    assert len([c for c in verdict.checks if c.name.startswith("fidelity:")]) > 1
    assert len(shaken) == 1
