"""Facts files: written and read, hashed and signed; nothing else is taken. And what `check` makes of them."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

import porting
from porting.ascend import facts_keys
from porting.ascend.facts_file import Fact, Facts, canonical, file_of, signed, verdict_of
from porting.ascend.facts_reading import parse_facts, read_facts
from porting.ascend.rules import rules
from porting.commands import check as check_command
from porting.errors import DeviceUnavailable, InputError, UsageError
from porting.verdict import Verdict

PRIVATE = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
PUBLIC = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def fact(id: str, verdict: str, seen: str = "", **more: Any) -> Fact:
    rule = next(rule for rule in rules() if rule.id == id)
    return Fact(id, "rule", verdict, rule.effect, seen, rule.code or "", text="seen so", **more)


def facts(*results: Fact, **fields: Any) -> Facts:
    made: dict[str, Any] = {
        "level": "hardware",
        "device": "ascend:0",
        "soc": "Ascend310P3",
        "cann": "8.0.0",
        "found": "8.0.0",
        "driver": "24.1.rc3",
        "made": "2026-11-23T10:00:00Z",
        "tool": "porting 0",
        "complete": True,
        "stopped": "",
        "results": results,
    }
    return Facts(**{**made, **fields})


OVERFLOWS = Fact("overflow-fp16", "trap", "refuted", "largest number", "infinity", numbers=(float("inf"), float("-inf"), 2.0))
SOME = facts(fact("saturation", "refuted", "none"), fact("no-parser", "confirmed", "refuses", code_seen="E13010"), OVERFLOWS)


def written(path: Path, made: Facts) -> Path:
    path.write_bytes(file_of(made))
    return path


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and its public key, as openssl writes them."""
    key = Ed25519PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(*PRIVATE))
    (tmp_path / "key.pub").write_bytes(key.public_key().public_bytes(*PUBLIC))
    return tmp_path / "key.pem", tmp_path / "key.pub"


# --- the file -----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    read = read_facts(written(tmp_path / "f.json", SOME))
    assert read == replace(SOME, path=str(tmp_path / "f.json"))
    assert read.by_trap["overflow-fp16"].numbers == (float("inf"), float("-inf"), 2.0)
    assert read.named() == "hardware facts of 2026-11-23 (f.json: Ascend310P3, CANN 8.0.0; not signed: integrity only)"
    assert json.loads(file_of(SOME))["evidence_level"] == "hardware"


def rehashed(document: dict[str, Any]) -> bytes:
    """With a hash that fits what now stands there."""
    import hashlib

    body = {name: value for name, value in document.items() if name not in ("sha256", "signature")}
    return json.dumps({**document, "sha256": hashlib.sha256(canonical(body)).hexdigest()}).encode()


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (("schema",), "porting.facts/2", "unknown schema"),
        (("evidence_level",), "proven", "is none of simulated, hardware"),
        (("device",), "ascend-sim:0", "facts of the simulator that call themselves hardware"),
        (("soc",), "Ascend9", "no Ascend SoC is called"),
        (("soc",), "ascend310p3", "no Ascend SoC is called"),
        (("soc",), "cpu", "no Ascend SoC is called"),
        (("cann", "release"), "1.0", "no release of CANN"),
        (("made",), "yesterday", "is no time"),
        (("made",), "2026-13-01T00:00:00Z", "is no time"),
        (("complete",), 1, "expected true or false"),
        (("complete",), False, "say why they stopped"),
        (("stopped",), "lost", "say why they stopped"),
        (("more",), 1, "unknown key 'more'"),
        (("cann", "more"), 1, "unknown key 'more'"),
        (("results",), {}, "expected a list"),
        (("results", 0, "id"), "no-such-rule", "no rule is called"),
        (("results", 0, "expected"), "refuses", "says something else in this release"),
        (("results", 0, "code"), "E10001", "says something else in this release"),
        (("results", 0, "verdict"), "confirmed", "is not confirmed by what was seen"),
        (("results", 0, "verdict"), "proven", "is none of confirmed"),
        (("results", 0, "seen"), "explodes", "is none of"),
        (("results", 0, "more"), 1, "unknown key"),
        (("results", 0, "text"), "x" * 2001, "at most 2000 characters"),
        (("results", 0, "kind"), "trap", "no trap is called 'saturation'"),
        (("results", 2, "seen"), "largest number", "trap overflow-fp16 is not refuted"),
        (("results", 2, "id"), "../x", "no trap is called"),
        (("results", 2, "numbers"), [1], "at most 32 numbers"),
        (("results", 2, "numbers"), ["many"], "at most 32 numbers"),
        (("results", 2, "numbers"), [1.0] * 33, "at most 32 numbers"),
        (("results", 1), None, "expected an object"),
        (("signature",), {}, "missing key"),
        (("signature",), {"algorithm": "rsa", "public_key": "", "value": ""}, "is none of ed25519"),
        (("signature",), {"algorithm": "ed25519", "public_key": "AA==", "value": ""}, "has not 32 bytes"),
        (("signature",), {"algorithm": "ed25519", "public_key": "!", "value": ""}, "is no base64"),
    ],
)  # fmt: skip
def test_what_no_probe_writes_is_refused(place: tuple[Any, ...], value: Any, text: str) -> None:
    document = json.loads(file_of(SOME))
    at = document
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    with pytest.raises(InputError, match=text):
        parse_facts(rehashed(document), "f.json")


def test_damage_is_found() -> None:
    data = file_of(SOME)
    for changed, text in (
        (data.replace(b'"Ascend310P3"', b'"Ascend310P1"'), "do not fit the hash"),
        (data.replace(b"seen so", b"seen no"), "do not fit the hash"),
        (data[:-20], "not facts"),
        (b"", "not facts"),
        (b"[" * 100_000, "not facts"),
        (data.replace(b'"schema"', b'"tool": "", "schema"', 1), "a key stands there twice"),
        (data.replace(b"2.0", b"NaN"), "NaN is not JSON"),
        (b" " * (4 << 20) + data, "more than 4 MiB"),
        (b"[]", "expected an object"),
    ):
        with pytest.raises(InputError, match=text):
            parse_facts(changed, "f.json")
    twice = facts(*SOME.results, SOME.results[0])
    with pytest.raises(InputError, match="stands there twice"):
        parse_facts(file_of(twice), "f.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_other_value_anywhere_is_refused_in_a_sentence(data: st.DataObject) -> None:
    document = json.loads(file_of(SOME))
    places = [(key,) for key in document] + [("cann", "found")]
    places += [("results", n, key) for n in range(3) for key in document["results"][0]]
    place = data.draw(st.sampled_from(places))
    at = document
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = data.draw(JSON)
    try:
        body = rehashed(document)
    except ValueError:  # NaN has no canonical form
        return
    with suppress(InputError):  # and nothing else
        assert parse_facts(body, "f.json").document() == json.loads(body)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        parse_facts(data, "f.json")


def test_a_verdict_follows_from_what_was_seen() -> None:
    assert verdict_of("refuses", "refuses") == "confirmed" and verdict_of("refuses", "none") == "refuted"
    assert verdict_of("refuses", "wrong") == "refuted", "another effect, which blocks too"
    assert verdict_of("unknown", "wrong") == verdict_of("unknown", "refuses") == "confirmed"
    assert verdict_of("unknown", "none") == "refuted" and verdict_of("wrong", "") == "undecided"


# --- signatures ---------------------------------------------------------------------------------------------------------


def test_a_signature_holds_or_the_file_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path = written(tmp_path / "f.json", signed(SOME, keys[0]))
    assert read_facts(path, keys[1]).checked.startswith("signature holds, key ")
    assert read_facts(path).checked.endswith("which nothing here vouches for: integrity only")
    document = json.loads(path.read_text())
    document["results"][0]["text"] = "seen otherwise"
    path.write_bytes(rehashed(document))
    assert read_facts(path).checked.endswith("integrity only"), "whoever changes a file can change its hash"
    with pytest.raises(InputError, match="the signature does not hold"):
        read_facts(path, keys[1])


def test_another_key_and_no_signature_are_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    other = tmp_path / "other.pub"
    other.write_bytes(Ed25519PrivateKey.generate().public_key().public_bytes(*PUBLIC))
    with pytest.raises(InputError, match="signed with another key"):
        read_facts(written(tmp_path / "f.json", signed(SOME, keys[0])), other)
    with pytest.raises(InputError, match="these facts are not signed"):
        read_facts(written(tmp_path / "f.json", SOME), keys[1])
    swapped = json.loads(file_of(signed(SOME, keys[0])))
    swapped["signature"]["public_key"] = base64.b64encode(facts_keys.public_key(other).public_bytes_raw()).decode()
    (tmp_path / "f.json").write_text(json.dumps(swapped))
    with pytest.raises(InputError, match="the signature does not hold"):
        read_facts(tmp_path / "f.json", other)


def test_files_that_hold_no_such_key(tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "odd.pem"
    rsa_key = rsa.generate_private_key(65537, 2048)
    with_password = serialization.BestAvailableEncryption(b"x")
    for data in (
        b"",
        b"-----BEGIN",
        rsa_key.private_bytes(*PRIVATE),
        Ed25519PrivateKey.generate().private_bytes(*PRIVATE[:2], with_password),
    ):
        odd.write_bytes(data)
        with pytest.raises(InputError, match="no Ed25519 private key"):
            signed(SOME, odd)
    for data in (b"", keys[0].read_bytes(), rsa_key.public_key().public_bytes(*PUBLIC)):
        odd.write_bytes(data)
        with pytest.raises(InputError, match="no Ed25519 public key"):
            facts_keys.public_key(odd)
    with pytest.raises(InputError, match="cannot be read"):
        signed(SOME, tmp_path / "nothing")
    monkeypatch.setattr(facts_keys, "find_spec", lambda name: None)
    with pytest.raises(DeviceUnavailable, match=r"need the package cryptography") as caught:
        signed(SOME, keys[0])
    assert "porting[sign]" in caught.value.next


# --- check --facts --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Asks for NaN, which the documents say a 310P never finds; and takes the largest two, of which they leave something open."""
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    text = "(float[2,3] x) => (bool[2,3] y, float[2,2] z, int64[2,2] i) <int64[1] k = {2}> { [n] y = IsNaN(x) [t] z, i = TopK(x, k) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> g {text}'), str(path))
    return path


def checked(model: Path, path: Path, made: Facts, **options: Any) -> Verdict:
    return porting.check(model, "Ascend310P3", facts=written(path, made), **options)


def finding(verdict: Verdict, rule: str) -> dict[str, Any]:
    return next(f for f in verdict.details["findings"] if f["rule"] == rule)


def test_a_rule_that_hardware_confirms_is_told_so(model: Path, tmp_path: Path) -> None:
    verdict = checked(model, tmp_path / "f.json", facts(fact("saturation", "confirmed", "wrong")))
    found = finding(verdict, "saturation")
    assert (verdict.verdict, found["status"], found["confidence"]) == ("fail", "blocks", "probed on hardware")
    assert "hardware facts of 2026-11-23 (f.json: Ascend310P3, CANN 8.0.0; not signed: integrity only)" in found["source"]
    assert finding(verdict, "top-k-order")["confidence"] == "documented", "what was not probed stays as it was"


def test_a_rule_that_hardware_refutes_does_not_block(model: Path, tmp_path: Path) -> None:
    assert porting.check(model, "Ascend310P3").verdict == "fail"
    verdict = checked(model, tmp_path / "f.json", SOME)
    found = finding(verdict, "saturation")
    assert (verdict.verdict, found["status"], found["effect"]) == ("pass", "noted", "none")
    assert "refuted by hardware facts of 2026-11-23 (f.json" in found["says"]
    assert verdict.details["facts"]["level"] == "hardware" and verdict.evidence_level == "static"


@pytest.mark.parametrize("effect", ["refuses", "wrong"])
def test_what_hardware_does_worse_blocks(model: Path, tmp_path: Path, effect: str) -> None:
    made = facts(fact("saturation", "refuted", "none"), fact("top-k-order", "confirmed", effect, code_seen="EZ9999"))
    verdict = checked(model, tmp_path / "f.json", made)
    found = finding(verdict, "top-k-order")
    assert (verdict.verdict, found["status"], found["effect"], found["confidence"]) == (
        "fail",
        "blocks",
        effect,
        "probed on hardware",
    )
    assert found["code"] == ("EZ9999" if effect == "refuses" else None)
    assert "top-k-order" in verdict.reason


def test_a_precision_that_a_refuted_rule_blocked_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    text = "(float[2,3] x, float[3,2] w) => (float[2,2] y) { [n] y = MatMul(x, w) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> g {text}'), str(path))
    assert porting.check(path, "Ascend310P3", "fp32").verdict == "fail"
    verdict = porting.check(
        path, "Ascend310P3", "fp32", facts=written(tmp_path / "f.json", facts(fact("fp32-cube", "refuted", "none")))
    )
    assert verdict.verdict == "pass" and any("refuted by hardware facts" in note for note in verdict.details["precision_notes"])


def test_simulated_facts_change_nothing_and_say_so(model: Path, tmp_path: Path) -> None:
    verdict = checked(model, tmp_path / "f.json", replace(SOME, level="simulated", device="ascend-sim:0"))
    found = finding(verdict, "saturation")
    assert (verdict.verdict, found["status"], found["confidence"]) == ("fail", "blocks", "documented")
    assert "simulated: simulated facts of" in found["detail"] and "nothing of the chip" in found["detail"]
    assert "change nothing" in verdict.details["facts"]["said"]


def test_undecided_facts_change_nothing(model: Path, tmp_path: Path) -> None:
    made = facts(
        fact("saturation", "undecided", why="the control beside it fails too"), fact("top-k-order", "not probed", why="no time")
    )
    assert checked(model, tmp_path / "f.json", made).verdict == "fail"
    plain, with_facts = porting.check(model, "Ascend310P3"), checked(model, tmp_path / "f.json", made)
    assert plain.details["findings"] == with_facts.details["findings"]


def test_facts_of_another_chip_or_release_are_refused(model: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "f.json", SOME)
    with pytest.raises(UsageError, match="facts of an Ascend310P3, and the target is Ascend910B3"):
        porting.check(model, "Ascend910B3", facts=path)
    with pytest.raises(UsageError, match=r"facts of CANN 8\.0\.0, and --cann is 8\.5\.0"):
        porting.check(model, "Ascend310P3", cann="8.5", facts=path)
    assert porting.check(model, "Ascend310P3", cann="8.0", facts=path).verdict == "pass"
    said = porting.check(model, "Ascend310P3", facts=path).details["facts"]["said"]
    assert "seen with CANN 8.0.0 only: another release may differ" in said
    with pytest.raises(UsageError, match="a key, and no facts"):
        porting.check(model, "Ascend310P3", facts_key=path)


def test_an_overflow_that_was_seen_decides_the_forecast(tmp_path: Path) -> None:
    """Where the documents have a 310P saturate and this one gave Inf, the forecast gives Inf too."""
    path = tmp_path / "m.onnx"
    text = "(float[2] x) => (float[2] y) { [big] a = Mul(x, x) [small] y = Sqrt(a) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> g {text}'), str(path))
    import numpy as np

    np.savez(tmp_path / "x.npz", x=np.array([1000, 2], np.float32))
    found = [
        porting.check(path, "Ascend310P3", inputs=tmp_path / "x.npz", facts=given).details
        for given in (
            None,
            written(tmp_path / "f.json", facts(OVERFLOWS)),
            written(tmp_path / "s.json", facts(OVERFLOWS, level="simulated", device="ascend-sim:0")),
        )
    ]
    assert found[0]["forecast"] != found[1]["forecast"] and found[0]["forecast"] == found[2]["forecast"]


def test_the_command_shows_the_state_of_the_signature(model: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path = written(tmp_path / "f.json", signed(SOME, keys[0]))
    arguments = [str(model), "--target", "Ascend310P3", "--quiet", "--facts", str(path)]
    done = CliRunner().invoke(check_command.command, [*arguments, "--facts-key", str(keys[1])], standalone_mode=False)
    assert done.return_value == 0 and "signature holds, key" in " ".join(done.output.split())
    done = CliRunner().invoke(check_command.command, arguments, standalone_mode=False)
    assert "integrity only" in " ".join(done.output.split())
