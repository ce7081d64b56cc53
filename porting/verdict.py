"""The answer of a command: one object, made from checks, that cannot pass by accident.

    Check    one number (or fact) against its bound, and the place where it was found
    Verdict  what was compared with what, on which device, at which level of evidence, and every check

Imports nothing heavy. The JSON form is "porting.verdict/1" (docs/verdict_schema.json); fields are only ever added.
"""

from __future__ import annotations

import json
import math
import numbers
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from porting.errors import (
    EXIT_DOES_NOT_HOLD,
    EXIT_HOLDS,
    EXIT_UNAVAILABLE,
    EvidenceUnavailable,
    InputError,
    VerdictFailed,
)

SCHEMA = "porting.verdict/1"
VERDICTS = ("pass", "fail", "error")
EVIDENCE_LEVELS = ("static", "emulated", "simulated", "hardware")
REFERENCES = ("upstream", "golden", "self")
EXIT_CODES = {"pass": EXIT_HOLDS, "fail": EXIT_DOES_NOT_HOLD, "error": EXIT_UNAVAILABLE}

MAX_JSON_BYTES = 64 << 20  # a verdict lists checks, not tensors; anything larger is not one
SHOWN_CHARACTERS = 200  # of one name in the verdict line; the JSON keeps it whole
NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

Value = float | int | str | None


def printable(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """`text` on one line: what is not printable (controls, bidirectional overrides, lone surrogates) as escapes, long middles cut."""
    if len(text) > limit:
        half = (limit - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _plain(value: Any) -> Value:
    """NumPy scalars and booleans as Python's own numbers."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"a check's value and bound are a number, a string or None, not {type(value).__name__}")


def _is_nan(value: Value) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _number(value: Value) -> bool:
    return isinstance(value, (int, float))


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    name:    what was measured, with its unit ("max abs error", "mean KL divergence [nats]")
    verdict: "pass" | "fail" | "error" (could not be decided). A NaN value or bound turns "pass" into "fail"
    value:   what was found
    bound:   what it was held against
    where:   tensor and index, file, node or step
    detail:  how the bound came about, or what else helps
    """

    name: str
    verdict: str
    value: Value
    bound: Value
    where: str
    detail: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"a check's verdict is one of {VERDICTS}, not {self.verdict!r}")
        object.__setattr__(self, "value", _plain(self.value))
        object.__setattr__(self, "bound", _plain(self.bound))
        if self.verdict == "pass" and (_is_nan(self.value) or _is_nan(self.bound)):
            object.__setattr__(self, "verdict", "fail")

    @classmethod
    def at_most(cls, name: str, value: float, bound: float, where: str, detail: str = "") -> Check:
        """Passes when value <= bound; NaN on either side and an infinite bound fail."""
        return cls(name, "pass" if value <= bound and bound < math.inf else "fail", value, bound, where, detail)

    @classmethod
    def at_least(cls, name: str, value: float, bound: float, where: str, detail: str = "") -> Check:
        """Passes when value >= bound; NaN on either side and an infinite bound fail."""
        return cls(name, "pass" if value >= bound and bound > -math.inf else "fail", value, bound, where, detail)

    @classmethod
    def equal(cls, name: str, value: float | str, expected: float | str, where: str, detail: str = "") -> Check:
        """Passes when value == expected."""
        return cls(name, "pass" if value == expected else "fail", value, expected, where, detail)

    def sentence(self) -> str:
        """`max abs error 3.1e-02 > 1.0e-02 at logits[0, 417]`, whatever the names contain."""
        text = printable(self.name)
        if self.value is not None and self.bound is not None:
            value, bound = _shown_apart(self.value, self.bound)
            text += f" {value} {_relation(self.value, self.bound)} {bound}"
        elif self.value is not None:
            text += f" {_shown(self.value)}"
        elif self.bound is not None:
            text += f" (bound {_shown(self.bound)})"
        if self.where:
            text += f" at {printable(self.where)}"
        if self.verdict == "error" and self.detail:
            text += f": {printable(self.detail)}"
        return text


def _relation(value: Value, bound: Value) -> str:
    if isinstance(value, (int, float)) and isinstance(bound, (int, float)):
        if value > bound:
            return ">"
        if value < bound:
            return "<"
    return "=" if value == bound else "against"


def _shown(value: Value, digits: int = 2) -> str:
    if isinstance(value, float) and math.isfinite(value):
        size = abs(value)
        if size == 0 or 0.1 <= size < 10_000:
            return f"{value:.{digits + 2}g}"
        return f"{value:.{digits - 1}e}"
    return printable(value) if isinstance(value, str) else str(value)


def _shown_apart(value: Value, bound: Value) -> tuple[str, str]:
    """Both with as many digits as it takes to tell them apart."""
    for digits in range(2, 16):
        pair = _shown(value, digits), _shown(bound, digits)
        if pair[0] != pair[1] or value == bound:
            return pair
    return repr(value), repr(bound)


@dataclass(frozen=True)
class Verdict:
    """What a command found. Made by `from_checks`; a "pass" that its own checks do not carry cannot be constructed.

    command:        "validate", "port", ...
    verdict:        "pass" | "fail" | "error"
    evidence_level: "static" | "emulated" | "simulated" | "hardware"
    reference:      "upstream" | "golden" | "self"; against itself nothing ever passes
    reason:         the sentence that decided it: number, bound, place
    source:         what was judged, as a user would name it
    details:        anything else, JSON types only
    """

    command: str
    verdict: str
    evidence_level: str
    reference: str
    reason: str
    source: str
    target: str
    device: str
    checks: tuple[Check, ...]
    peak_rss_bytes: int
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "checks", tuple(self.checks))
        for name, value, known in (
            ("verdict", self.verdict, VERDICTS),
            ("evidence_level", self.evidence_level, EVIDENCE_LEVELS),
            ("reference", self.reference, REFERENCES),
        ):
            if value not in known:
                raise ValueError(f"{name} is one of {known}, not {value!r}")
        earned, why = _decide(self.checks, self.reference)
        if self.verdict == "pass" and earned != "pass":
            raise ValueError(f"the verdict says pass and its checks do not: {why}")

    @classmethod
    def from_checks(
        cls,
        command: str,
        checks: Iterable[Check],
        *,
        evidence_level: str,
        reference: str,
        source: str,
        target: str,
        device: str,
        seconds: float,
        peak_rss_bytes: int | None = None,
        details: Mapping[str, Any] | None = None,
        not_shown: str = "",
    ) -> Verdict:
        """Derive verdict and reason. A failing check outweighs an undecided one; without checks the verdict is "error".

        peak_rss_bytes: this process's own when left out
        not_shown:      what no check looked at: a passing verdict says it first
        """
        checks = tuple(checks)
        verdict, reason = _decide(checks, reference)
        if verdict == "pass" and not_shown:
            reason = f"NOT shown: {not_shown}; {reason}"
        rss = peak_rss_of_this_process() if peak_rss_bytes is None else peak_rss_bytes
        return cls(
            command,
            verdict,
            evidence_level,
            reference,
            reason,
            source,
            target,
            device,
            checks,
            rss,
            seconds,
            dict(details or {}),
        )

    @property
    def ok(self) -> bool:
        return self.verdict == "pass"

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    def line(self) -> str:
        """`FAIL tinynet on ascend: max abs error 3.1e-02 > 1.0e-02 at logits[0, 417]`"""
        name = self.source.rstrip("/").rpartition("/")[2] or self.source
        return f"{self.verdict.upper()} {printable(name)} on {printable(self.device or self.target)}: {self.reason}"

    def require(self) -> Verdict:
        """This verdict, when it passes.

        raises: VerdictFailed (exit 1) when it fails, EvidenceUnavailable (exit 3) when it could not be decided
        """
        if self.ok:
            return self
        kind = VerdictFailed if self.verdict == "fail" else EvidenceUnavailable
        raise kind(self.line(), where=f"{self.command}, compared with {self.reference}")

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; non-finite numbers as "nan", "inf", "-inf"."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "verdict": self.verdict,
            "evidence_level": self.evidence_level,
            "reference": self.reference,
            "reason": self.reason,
            "source": self.source,
            "target": self.target,
            "device": self.device,
            "checks": [_jsonable(vars(c), "check") for c in self.checks],
            "peak_rss_bytes": int(self.peak_rss_bytes),
            "seconds": _jsonable(self.seconds, "seconds"),
            "details": _jsonable(self.details, "details"),
        }

    def to_json(self) -> str:
        """One object, valid JSON, ASCII."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Verdict:
        """Read a verdict back. Fields that a later release added are left out.

        raises: InputError when it is no JSON, of another schema, incomplete, mistyped, or says pass where its checks do not
        """
        fields = _read_object(text)
        try:
            checks = tuple(Check(**_check_fields(c)) for c in _typed(fields, "checks", list))
            texts = ("command", "verdict", "evidence_level", "reference", "reason", "source", "target", "device")
            return cls(
                **{key: _typed(fields, key, str) for key in texts},
                checks=checks,
                peak_rss_bytes=_typed(fields, "peak_rss_bytes", int),
                seconds=_typed({"seconds": _finite_or_named(fields.get("seconds"))}, "seconds", (int, float)),
                details=_typed(fields, "details", dict),
            )
        except ValueError as error:
            raise InputError(f"this verdict contradicts itself: {error}", where="verdict JSON") from error


def _decide(checks: tuple[Check, ...], reference: str) -> tuple[str, str]:
    """Verdict and reason of these checks."""
    for kind in ("fail", "error"):
        of_kind = [c for c in checks if c.verdict == kind]
        if of_kind:
            more = f" (and {len(of_kind) - 1} more)" if len(of_kind) > 1 else ""
            return kind, of_kind[0].sentence() + more
    if not checks:
        return "error", "nothing was checked"
    if reference == "self":
        return "fail", "compared with itself: that shows nothing about the source"
    tightest = max(checks, key=_closeness)
    return "pass", f"{len(checks)} checks hold; nearest to its bound: {tightest.sentence()}"


def _closeness(check: Check) -> float:
    """How near a passing number is to its bound: 1 at the bound, 0 where there is no telling."""
    if not (_number(check.value) and _number(check.bound)):
        return 0.0
    value, bound = abs(float(check.value)), abs(float(check.bound))  # type: ignore[arg-type]
    largest = max(value, bound)
    return min(value, bound) / largest if 0 < largest < math.inf else 0.0


def _jsonable(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v, where) for v in value]
    raise TypeError(f"{where}: {type(value).__name__} has no place in a verdict")


def _read_object(text: str | bytes) -> dict[str, Any]:
    if len(text) > MAX_JSON_BYTES:
        raise InputError(f"a verdict of {len(text)} bytes is more than {MAX_JSON_BYTES}", where="verdict JSON")
    try:
        fields = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a verdict: {error}", where="verdict JSON") from error
    if not isinstance(fields, dict):
        raise InputError(f"not a verdict: expected an object, got {type(fields).__name__}", where="verdict JSON")
    schema = fields.get("schema")
    if schema != SCHEMA:
        raise InputError(
            f"unknown schema {printable(str(schema))!r}, expected {SCHEMA!r}",
            where="verdict JSON",
            next="read it with the release of porting that wrote it, or a newer one",
        )
    return fields


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _typed(fields: dict[str, Any], key: str, kind: Any) -> Any:
    value = fields.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        got = "nothing" if key not in fields else type(value).__name__
        raise InputError(f"field {key!r} is {got}", where="verdict JSON", next="docs/verdict_schema.json lists every field")
    return value


def _finite_or_named(value: Any) -> Any:
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def _check_fields(check: Any) -> dict[str, Any]:
    if not isinstance(check, dict):
        raise InputError(f"a check is an object, got {type(check).__name__}", where="verdict JSON")
    fields = {k: _typed(check, k, str) for k in ("name", "verdict", "where", "detail")}
    for key in ("value", "bound"):
        value = _finite_or_named(check.get(key))
        if key not in check or isinstance(value, (list, dict, bool)):
            raise InputError(f"a check's {key!r} is missing or no plain value", where="verdict JSON")
        fields[key] = value
    return fields


def peak_rss_of_this_process() -> int:
    """Largest resident set so far, in bytes; 0 where the system does not tell.

    VmHWM is this process's own; getrusage would count what was there before exec.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
