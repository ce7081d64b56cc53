"""What a probe saw on one NPU, as a file: JSON of schema porting.facts/1, with its hash inside and, where a key was given, a signature.

    schema, evidence_level    "hardware", or "simulated": then it shows nothing of a chip
    device, soc, cann, driver, made, tool, complete, stopped
    results                   one per rule of the base and per trap: what was expected, what was seen, the verdict
    sha256                    of the canonical JSON of all above
    signature                 null, or an Ed25519 signature of the canonical JSON of all above

Canonical JSON: sorted keys, no spaces, ASCII. facts_reading.py reads it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from porting.errors import InputError
from porting.verdict import printable

SCHEMA = "porting.facts/1"
LEVELS = ("simulated", "hardware")
RULE, TRAP = "rule", "trap"
CONFIRMED, REFUTED, UNDECIDED, NOT_PROBED = VERDICTS = ("confirmed", "refuted", "undecided", "not probed")
NONE = "none"  # an effect: the device takes the graph, and computes what ONNX says
WORSE = ("refuses", "wrong")
ALGORITHM = "ed25519"
KEYS = ("schema", "evidence_level", "device", "soc", "cann", "driver", "made", "tool", "complete", "stopped", "results")
OVERFLOW = "overflow-fp16"
# of probe_traps.py
TRAPS = (
    OVERFLOW,
    "nan-fp16",
    "overflow-fp32",
    "max-of-nan",
    "subnormals-fp16",
    "sum-matmul-fp16",
    "sum-conv-fp16",
    "sum-reduce-fp16",
    "hf32-matmul",
    "hf32-conv",
    "weights-not-clipped",
    "cast-to-fp16",
    "cast-to-int",
    "mod-of-integers",
    "default-precision",
    "keep-dtype",
    "customize-dtypes",
    "gear-not-set",
    "om-of-another-soc",
    "om-cut-short",
    "unknown-option",
)


@dataclass(frozen=True)
class Fact:
    """One rule or trap, as it was seen.

    kind:      RULE or TRAP
    verdict:   one of VERDICTS
    expected:  the effect that the base says, or how documents say that a trap goes; "" where none says
    seen:      the effect or the way that was seen, "" where that could not be told
    code, code_seen: of the vendor, "" without one
    text:      what was seen, in a sentence
    why:       why it is not decided or not probed
    numbers:   that came out
    """

    id: str
    kind: str
    verdict: str
    expected: str
    seen: str = ""
    code: str = ""
    code_seen: str = ""
    text: str = ""
    why: str = ""
    numbers: tuple[float, ...] = ()

    def content(self) -> dict[str, Any]:
        """JSON types."""
        return {**asdict(self), "numbers": [n if math.isfinite(n) else str(n) for n in map(float, self.numbers)]}


@dataclass(frozen=True)
class Facts:
    """What one probe found.

    level:     one of LEVELS
    soc:       as atc spells it; cann: a known release, "" where the one that was found is none
    found:     the release as the toolkit spells it
    made:      when, UTC
    stopped:   why it is not complete
    signature: as in the file
    checked:   what is known of the signature, for people
    path:      that it was read from
    """

    level: str
    device: str
    soc: str
    cann: str
    found: str
    driver: str
    made: str
    tool: str
    complete: bool
    stopped: str
    results: tuple[Fact, ...]
    signature: Mapping[str, str] | None = None
    checked: str = "not signed: integrity only"
    path: str = ""

    @cached_property
    def by_rule(self) -> Mapping[str, Fact]:
        return {fact.id: fact for fact in self.results if fact.kind == RULE}

    @cached_property
    def by_trap(self) -> Mapping[str, Fact]:
        return {fact.id: fact for fact in self.results if fact.kind == TRAP}

    @property
    def is_hardware(self) -> bool:
        return self.level == "hardware"

    def named(self) -> str:
        """For people: which file, of what, when, how far to be trusted."""
        release = f"CANN {self.cann or self.found or 'of an unknown release'}"
        part = "" if self.complete else ", INCOMPLETE"
        return f"{self.level} facts of {self.made[:10]} ({printable(Path(self.path).name or 'not written', 80)}: {self.soc}, {release}{part}; {self.checked})"

    def document(self) -> dict[str, Any]:
        """The file, JSON types only; hash and signature fitting."""
        body: dict[str, Any] = {
            "schema": SCHEMA,
            "evidence_level": self.level,
            "device": self.device,
            "soc": self.soc,
            "cann": {"release": self.cann, "found": self.found},
            "driver": self.driver,
            "made": self.made,
            "tool": self.tool,
            "complete": self.complete,
            "stopped": self.stopped,
            "results": [fact.content() for fact in self.results],
        }
        return {**body, "sha256": hashlib.sha256(canonical(body)).hexdigest(), "signature": self.signature}


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def file_of(facts: Facts) -> bytes:
    return json.dumps(facts.document(), indent=1, ensure_ascii=True, allow_nan=False).encode() + b"\n"


# --- signatures ---------------------------------------------------------------------------------------------------


def signed(facts: Facts, key: Path) -> Facts:
    """With a signature. key: a PEM file with an Ed25519 private key. raises: InputError, DeviceUnavailable without `cryptography`"""
    from porting.ascend.facts_keys import private_key

    found = private_key(key)
    body = {name: value for name, value in facts.document().items() if name != "signature"}
    signature = {
        "algorithm": ALGORITHM,
        "public_key": base64.b64encode(found.public_key().public_bytes_raw()).decode(),
        "value": base64.b64encode(found.sign(canonical(body))).decode(),
    }
    return replace(facts, signature=signature, checked=integrity_only(signature))


def integrity_only(signature: Mapping[str, str]) -> str:
    return f"signed with the key {fingerprint(signature['public_key'])}, which nothing here vouches for: integrity only"


def fingerprint(public_key: str) -> str:
    """Of a public key in base64."""
    return hashlib.sha256(base64.b64decode(public_key)).hexdigest()[:16]


def checked_signature(signature: Mapping[str, str] | None, body: Mapping[str, Any], key: Path, where: str) -> str:
    """What is known of a signature that holds. raises: InputError"""
    from porting.ascend.facts_keys import holds, public_key

    expected = public_key(key)
    if signature is None:
        raise InputError(
            "these facts are not signed", where=where, next=f"leave --facts-key out, or sign them: the key is {key}"
        )
    if base64.b64decode(signature["public_key"]) != expected.public_bytes_raw():
        raise InputError(
            f"these facts are signed with another key, {fingerprint(signature['public_key'])}",
            where=where,
            next="give the public key of whoever made them",
        )
    if not holds(expected, base64.b64decode(signature["value"]), canonical(body)):
        raise InputError("the signature does not hold: the facts were changed after they were signed", where=where)
    return f"signature holds, key {fingerprint(signature['public_key'])}"


def verdict_of(effect: str, seen: str) -> str:
    """What an effect that was seen says of a rule. Of a rule that leaves it open, what goes wrong confirms it."""
    if not seen or seen in ("unknown", "slow"):
        return UNDECIDED
    if effect == "unknown":
        return CONFIRMED if seen in WORSE else REFUTED
    return CONFIRMED if seen == effect else REFUTED
