"""Facts files read: nothing is taken that `porting probe` would not write. See facts_file.py."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from porting.ascend.facts_file import (
    ALGORITHM,
    CONFIRMED,
    KEYS,
    LEVELS,
    NONE,
    REFUTED,
    RULE,
    SCHEMA,
    TRAP,
    TRAPS,
    VERDICTS,
    Fact,
    Facts,
    canonical,
    checked_signature,
    integrity_only,
    verdict_of,
)
from porting.ascend.rules import EFFECTS, rules
from porting.ascend.soc import find_soc, known_cann
from porting.checked_json import object_with, text
from porting.errors import InputError, UsageError
from porting.verdict import printable

MOST_BYTES = 4 << 20
MOST_RESULTS, MOST_NUMBERS, MOST_TEXT = 2000, 32, 2000
ODD_NUMBERS = ("nan", "inf", "-inf")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def read_facts(path: str | Path, key: Path | None = None) -> Facts:
    """
    key:    a PEM file with the public key of whoever made them; None: integrity only
    raises: InputError for what is no such file, is damaged, or is not signed with that key; DeviceUnavailable without `cryptography` for a key
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"the facts cannot be read: {error.strerror or error}", where=str(path)) from error
    facts = parse_facts(data, str(path))
    if key is None:
        return facts
    body = {name: value for name, value in facts.document().items() if name != "signature"}
    return replace(facts, checked=checked_signature(facts.signature, body, key, str(path)))


def parse_facts(data: bytes, where: str) -> Facts:
    """raises: InputError"""
    if len(data) > MOST_BYTES:
        raise InputError(f"facts of more than {MOST_BYTES >> 20} MiB are none", where=where)
    try:
        value = json.loads(data, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not facts: {printable(str(error), 200)}", where=where, next="`porting probe` writes them") from error
    if isinstance(value, dict) and value.get("schema") != SCHEMA:
        raise InputError(
            f"unknown schema {printable(str(value.get('schema')), 60)!r}, expected {SCHEMA!r}",
            where=where,
            next="read it with the release of porting that wrote it, or a newer one",
        )
    value = object_with(value, (*KEYS, "sha256", "signature"), where)
    facts = _facts(value, where)
    body = {name: value[name] for name in KEYS}
    if value["sha256"] != hashlib.sha256(canonical(body)).hexdigest():
        raise InputError("the facts do not fit the hash in them: the file was changed", where=where, next="probe again")
    if facts.document() != value:
        raise InputError("these facts are not written as `porting probe` writes them", where=where)
    return facts


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _facts(value: Mapping[str, Any], where: str) -> Facts:
    release = object_with(value["cann"], ("release", "found"), f"{where}: cann")
    soc, cann = text(value["soc"], f"{where}: soc"), text(release["release"], f"{where}: cann")
    level, device = _one_of(value["evidence_level"], LEVELS, f"{where}: evidence_level"), text(value["device"], where)
    try:
        if find_soc(soc).name != soc:
            raise UsageError("")
    except UsageError as error:
        raise InputError(f"no Ascend SoC is called {printable(soc, 60)!r}", where=where) from error
    if cann and cann not in known_cann():
        raise InputError(f"no release of CANN is called {printable(cann, 60)!r}", where=where)
    if level == "hardware" and device.startswith("ascend-sim"):
        raise InputError("facts of the simulator that call themselves hardware", where=where)
    made = text(value["made"], f"{where}: made")
    if not _DATE.fullmatch(made) or not _is_date(made):
        raise InputError(f"{printable(made, 40)!r} is no time", where=f"{where}: made")
    if not isinstance(value["complete"], bool):
        raise InputError("expected true or false", where=f"{where}: complete")
    stopped = _long(value["stopped"], f"{where}: stopped")
    if value["complete"] is bool(stopped):
        raise InputError("facts are complete, or say why they stopped", where=where)
    signature = _signature(value["signature"], f"{where}: signature")
    made_of = {"level": level, "device": device, "soc": soc, "cann": cann, "found": text(release["found"], where), "made": made}
    return Facts(
        **made_of,
        driver=text(value["driver"], f"{where}: driver"),
        tool=text(value["tool"], f"{where}: tool"),
        complete=value["complete"],
        stopped=stopped,
        results=_results(value["results"], where),
        signature=signature,
        checked=Facts.checked if signature is None else integrity_only(signature),
        path=where,
    )


def _is_date(made: str) -> bool:
    try:
        datetime.strptime(made, "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return False
    return True


def _signature(value: Any, where: str) -> Mapping[str, str] | None:
    if value is None:
        return None
    found = object_with(value, ("algorithm", "public_key", "value"), where)
    _one_of(found["algorithm"], (ALGORITHM,), where)
    for name, nbytes in (("public_key", 32), ("value", 64)):
        try:
            fits = len(base64.b64decode(text(found[name], where), validate=True)) == nbytes
        except (binascii.Error, ValueError) as error:
            raise InputError(f"{name} is no base64", where=where) from error
        if not fits:
            raise InputError(f"{name} has not {nbytes} bytes", where=where)
    return found


def _results(value: Any, where: str) -> tuple[Fact, ...]:
    if not isinstance(value, list) or len(value) > MOST_RESULTS:
        raise InputError(f"expected a list of at most {MOST_RESULTS} results", where=f"{where}: results")
    found = tuple(_fact(one, f"{where}: results[{place}]") for place, one in enumerate(value))
    twice = {(a.kind, a.id) for place, a in enumerate(found) if (a.kind, a.id) in {(b.kind, b.id) for b in found[:place]}}
    if twice:
        raise InputError(f"{min(twice)[1]!r} stands there twice", where=f"{where}: results")
    return found


def _fact(value: Any, where: str) -> Fact:
    names = tuple(Fact.__dataclass_fields__)
    record = object_with(value, names, where)
    for name in names:
        if name != "numbers":
            _long(record[name], f"{where}: {name}")
    _one_of(record["kind"], (RULE, TRAP), where)
    _one_of(record["verdict"], VERDICTS, where)
    numbers = record["numbers"]
    if not isinstance(numbers, list) or len(numbers) > MOST_NUMBERS or not all(map(_is_number, numbers)):
        raise InputError(f"expected at most {MOST_NUMBERS} numbers", where=f"{where}: numbers")
    fact = Fact(**{**record, "numbers": tuple(float(number) for number in numbers)})
    (_require_rule if fact.kind == RULE else _require_trap)(fact, where)
    return fact


def _is_number(value: Any) -> bool:
    return value in ODD_NUMBERS if isinstance(value, str) else isinstance(value, float) and math.isfinite(value)


def _require_rule(fact: Fact, where: str) -> None:
    """raises: InputError for a rule that is none, or says something else here, or a verdict that does not follow"""
    rule = next((rule for rule in rules() if rule.id == fact.id), None)
    if rule is None:
        raise InputError(
            f"no rule is called {printable(fact.id, 60)!r}", where=where, next="read it with the release that wrote it"
        )
    if fact.expected != rule.effect or fact.code != (rule.code or ""):
        raise InputError(f"rule {fact.id} says something else in this release", where=where, next="probe again")
    _one_of(fact.seen, ("", NONE, *EFFECTS), where)
    if fact.verdict != verdict_of(rule.effect, fact.seen) and fact.verdict in (CONFIRMED, REFUTED):
        raise InputError(f"rule {fact.id} is not {fact.verdict} by what was seen: {fact.seen or 'nothing'}", where=where)


def _require_trap(fact: Fact, where: str) -> None:
    if fact.id not in TRAPS:
        raise InputError(
            f"no trap is called {printable(fact.id, 60)!r}", where=where, next="read it with the release that wrote it"
        )
    fits = {
        CONFIRMED: fact.seen == fact.expected != "",
        REFUTED: "" not in (fact.seen, fact.expected) and fact.seen != fact.expected,
    }
    if not fits.get(fact.verdict, True):
        raise InputError(f"trap {fact.id} is not {fact.verdict} by what was seen", where=where)


def _long(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > MOST_TEXT:
        raise InputError(f"expected a text of at most {MOST_TEXT} characters", where=where)
    return value


def _one_of(value: Any, known: tuple[str, ...], where: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{printable(str(value), 60)!r} is none of {', '.join(known)}", where=where)
    return value
