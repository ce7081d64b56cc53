"""What the codes and messages of ATC, GE, ACL, the runtime, HCCL and the driver mean: offline, in English and Chinese, from data/codes.json.

Of every meaning, cause and advice it is said whether a source documents it or it is a guess. Nothing here ran on hardware.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from porting.ascend.log_lines import decoded, numbered_lines
from porting.errors import InputError, UsageError, nearest
from porting.verdict import printable

LANGUAGES = ("en", "zh")
KINDS = ("error", "generic", "warning", "note")  # generic: a wrapper around a cause that stands elsewhere
STATUSES = ("documented", "in part", "guess")  # in part: a source says some of it, the rest is our advice
ROLES = ("first cause", "follows", "generic", "warning", "note", "unknown")
LINES_KEPT = 20  # line numbers of one finding
FINDINGS_KEPT = 1000  # different codes of one log: a log of random words may not fill the memory
SAMPLE = 300  # characters of the first line

# E10016, EZ3003, W11001; not as a part of a word or of a name in hex
_LETTERED = re.compile(r"(?<![0-9A-Za-z_-])([EW](?:[0-9]{5}|[A-Z][0-9]{4}))(?![0-9A-Za-z_])")
_LOOKS_LIKE_ONE = re.compile(r"\s{0,3}[:：)\]】]")  # what follows a code that is in no table, to tell it from a part number
_CONSTANT = re.compile(r"(?<![0-9A-Za-z_])(ACL_(?:ERROR|SUCCESS)[A-Z0-9_]{0,60})(?![0-9A-Za-z_])")
# six digits are a code only where they are called one: logs are full of sizes and process ids
_SIX_DIGITS = re.compile(r"(?<![0-9A-Za-z_])[1235][0-9]{5}(?![0-9A-Za-z_])")
_CALLED_CODE = re.compile(
    r"(?:err(?:or)?(?:[ _]?(?:code|no))?|ret(?:urn)?(?:[ _]?(?:code|val(?:ue)?))?|results?|code|status|failed|错误码?|返回[码值]|失败)"
    r"[^0-9A-Za-z]{0,8}(?:(?:is|was|为|是)[^0-9A-Za-z]{0,4})?\Z",
    re.IGNORECASE,
)
_CALLED_BEFORE = 40  # characters before a number in which that word may stand
_QUIET = re.compile(r"\s{0,8}\[(?:DEBUG|INFO|EVENT)\]")  # lines of a plog that report no fault: their words are not read
_FAULT = re.compile(r"\s{0,8}\[(?:ERROR|FATAL|CRITICAL)\]")  # lines that report one


@dataclass(frozen=True)
class Explanation:
    """A code or a message, explained in one language.

    code:          E10016, 107002, or the name of a message in data/codes.json
    name:          the constant of a return code, "" where there is none
    kind:          one of KINDS
    module:        which part of CANN it comes from, "" for messages
    means:         what it says; means_status: one of STATUSES, means_source: "" for a guess
    cause, do:     the likely cause, and what to do; advice_status and advice_source: of both
    """

    code: str
    name: str
    kind: str
    module: str
    means: str
    means_status: str
    means_source: str
    cause: str
    do: str
    advice_status: str
    advice_source: str


@dataclass(frozen=True)
class LogFinding:
    """A code or message of a log.

    role:   one of ROLES. The first cause is the first specific error by its place in the log: a guess
    count:  places; lines: numbers of the first LINES_KEPT lines; sample: the first line, printable
    explanation: None for a code that is in no table
    """

    code: str
    role: str
    count: int
    lines: tuple[int, ...]
    sample: str
    explanation: Explanation | None


@dataclass(frozen=True)
class LogReport:
    """What was found in a log: the first cause first, then in the order of the log.

    more:        codes beyond FINDINGS_KEPT, not kept
    unexplained: lines that are marked as errors and hold no code and no message that is known; unexplained_lines: numbers of the first
                 LINES_KEPT; unexplained_sample: the first of them, printable
    """

    source: str
    lines: int
    encodings: tuple[str, ...]
    findings: tuple[LogFinding, ...]
    more: int
    unexplained: int
    unexplained_lines: tuple[int, ...]
    unexplained_sample: str

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {"schema": "porting.explain/1", "of": "log", **asdict(self)}


@cache
def _base() -> Mapping[str, Any]:
    return json.loads((Path(__file__).parent / "data" / "codes.json").read_text(encoding="utf-8"))


@cache
def _texts() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(text["pattern"], re.IGNORECASE), text["id"]) for text in _base()["texts"])


@cache
def _constants() -> Mapping[str, str]:
    return {entry["name"]: code for code, entry in _base()["codes"].items() if entry.get("name")}


def known_codes() -> tuple[str, ...]:
    """Every code that is explained."""
    return tuple(_base()["codes"])


def looks_like_code(text: str) -> bool:
    """Whether a word is spelled like a code or the constant of one, known or not."""
    word = text.strip().upper()
    lettered = re.fullmatch(r"[EW](?:[0-9]{5}|[A-Z][0-9]{4})", word)
    return bool(lettered or re.fullmatch(r"0|[1235][0-9]{5}", word) or word.startswith(("ACL_ERROR", "ACL_SUCCESS")))


def explain_code(code: str, lang: str = "en") -> Explanation:
    """A code such as E10016, EZ3003, 107002 or ACL_ERROR_RT_CONTEXT_NULL. raises: UsageError when it is in no table"""
    _require_language(lang)
    word = code.strip().upper()
    word = _constants().get(word, word)
    entry = _base()["codes"].get(word)
    if entry is None:
        module = _series(word, lang)
        said = f"its series is that of: {module}; " if module and looks_like_code(word) else ""
        said += _perhaps_meant(word)
        raise UsageError(
            f"code {printable(code, 80)!r} is in no table that was read",
            where="porting explain",
            next=f"{said}give the log itself, which is read line by line",
        )
    return _explained(word, entry, lang)


def _perhaps_meant(word: str) -> str:
    """A constant is spelled wrongly; a number is another number: what lies near one means something else."""
    if not word.startswith("ACL_") or len(word) >= 100:
        return ""
    close = nearest(word, list(_constants())).partition(" known:")[0]
    return f"{close} " if close.startswith("did") else ""


def explain_log(log: Path | BinaryIO, lang: str = "en", source: str = "") -> LogReport:
    """All codes and known messages of a log, read in fixed memory. raises: InputError (a file that cannot be read)

    log: UTF-8, GBK or UTF-16 with a mark, mixed or damaged
    """
    _require_language(lang)
    if not isinstance(log, Path):
        return _read(log, lang, source)
    try:
        with log.open("rb", buffering=0) as file:
            return _read(file, lang, source or str(log))  # type: ignore[arg-type]  # a raw file reads into a buffer too
    except OSError as error:
        raise InputError(f"the log cannot be read: {error.strerror or error}", where=str(log)) from error


@dataclass
class _Places:
    sample: str
    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, number: int) -> None:
        self.count += 1
        if len(self.lines) < LINES_KEPT and number not in self.lines[-1:]:
            self.lines.append(number)


def _read(stream: BinaryIO, lang: str, source: str) -> LogReport:
    found: dict[str, _Places] = {}
    encodings: dict[str, None] = {}
    dropped: set[int] = set()
    unexplained: _Places | None = None
    last = 0
    for number, line in numbered_lines(stream):
        last = number
        text, encoding = decoded(line)
        if not text.isascii():
            encodings[encoding] = None
        codes = codes_of_line(text)
        if not codes and _FAULT.match(text):
            unexplained = unexplained or _Places(printable(text.strip(), SAMPLE))
            unexplained.add(number)
        for code in codes:
            if code not in found and len(found) >= FINDINGS_KEPT:
                if len(dropped) < FINDINGS_KEPT:
                    dropped.add(hash(code))
                continue
            if code not in found:
                found[code] = _Places(printable(text.strip(), SAMPLE))
            found[code].add(number)
    rest = unexplained or _Places("")
    return LogReport(
        source,
        last,
        tuple(encodings) or ("ascii",),
        tuple(_findings(found, lang)),
        len(dropped),
        rest.count,
        tuple(rest.lines),
        rest.sample,
    )


def codes_of_line(text: str) -> list[str]:
    """Codes in a line, in order, each as often as it stands there; where there is none, the message that it is known as, if any."""
    base = _base()["codes"]
    places: list[tuple[int, str]] = []
    for match in _LETTERED.finditer(text):
        if match[1] in base or _LOOKS_LIKE_ONE.match(text, match.end()):
            places.append((match.start(), match[1]))
    for match in _CONSTANT.finditer(text):
        if match[1] in _constants():
            places.append((match.start(), _constants()[match[1]]))
    for match in _SIX_DIGITS.finditer(text):
        known = match[0] in base or match[0][:3] in _return_series()
        if known and _CALLED_CODE.search(text[max(0, match.start() - _CALLED_BEFORE) : match.start()]):
            places.append((match.start(), match[0]))
    if places:
        return [code for _, code in sorted(places)]
    if _QUIET.match(text) or (text.isascii() and not _has_a_word(text.lower())):
        return []
    return next(([name] for pattern, name in _texts() if pattern.search(text)), [])


def _has_a_word(text: str) -> bool:
    """Whether one of the words stands in a line without which no English message is looked for: most lines have none."""
    return any(word in text for word in _base()["words"])


@cache
def _return_series() -> frozenset[str]:
    """The first three digits of return codes that are known: layer and kind."""
    return frozenset(code[:3] for code in known_codes() if code.isdigit() and len(code) == 6)


def _findings(found: Mapping[str, _Places], lang: str) -> Iterator[LogFinding]:
    """The first cause, then the rest in the order of the log."""
    explained = {code: _explanation_of(code, lang) for code in found}
    cause = ""
    for wanted in ("error", "generic"):
        if not cause:
            cause = next((c for c, told in explained.items() if told is not None and told.kind == wanted), "")
    for code in sorted(found, key=lambda c: c != cause):
        told = explained[code]
        role = "unknown" if told is None else "follows" if told.kind == "error" else told.kind
        places = found[code]
        role = "first cause" if code == cause else role
        yield LogFinding(code, role, places.count, tuple(places.lines), places.sample, told)


def _explanation_of(code: str, lang: str) -> Explanation | None:
    entry = _base()["codes"].get(code) or next((text for text in _base()["texts"] if text["id"] == code), None)
    return None if entry is None else _explained(code, entry, lang)


def _explained(code: str, entry: Mapping[str, Any], lang: str) -> Explanation:
    advice = _base()["advice"][entry["advice"]]
    return Explanation(
        code=code,
        name=entry.get("name", ""),
        kind=entry["kind"],
        module="" if "pattern" in entry or code == "0" else _series(code, lang),
        means=entry[lang],
        means_status=entry["status"],
        means_source=_source(entry["source"], lang),
        cause=advice[lang]["cause"],
        do=advice[lang]["do"],
        advice_status=advice["status"],
        advice_source=_source(advice["source"], lang),
    )


def _source(key: str, lang: str) -> str:
    return str(_base()["sources"][key][lang]) if key else ""


def _series(code: str, lang: str) -> str:
    return next((str(series[lang]) for series in _base()["series"] if code.startswith(series["prefix"])), "")


def _require_language(lang: str) -> None:
    if lang not in LANGUAGES:
        raise UsageError(f"unknown language {lang!r}", where="--lang", next=nearest(lang, LANGUAGES))
