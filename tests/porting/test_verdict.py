"""Verdicts: what decides them, what they say, and that nothing passes by accident."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.errors import EvidenceUnavailable, InputError, VerdictFailed
from porting.junit import to_junit
from porting.verdict import EVIDENCE_LEVELS, Check, Verdict, printable

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "verdict_schema.json").read_text(encoding="utf-8"))
HOSTILE = 'a<b>&"]]>\x00\x1b[31m\u202e\ud800\n' + "x" * 3000


def verdict_of(*checks: Check, **changes: Any) -> Verdict:
    settings = {
        "evidence_level": "hardware",
        "reference": "upstream",
        "source": "models/tinynet",
        "target": "Ascend910B3",
        "device": "ascend",
        "seconds": 1.5,
        "peak_rss_bytes": 1 << 20,
    }
    return Verdict.from_checks("validate", checks, **{**settings, **changes})


def good(name: str = "max abs error") -> Check:
    return Check.at_most(name, 1e-5, 1e-4, "logits")


def assert_fits(value: Any, schema: dict[str, Any], where: str = "$") -> None:
    """The part of JSON Schema that docs/verdict_schema.json uses, walked by hand."""
    known = {"$schema", "$id", "title", "description", "type", "required", "properties", "items", "const", "enum", "minimum"}
    assert set(schema) <= known, f"{where}: the walk does not know {set(schema) - known}"
    if "const" in schema:
        assert value == schema["const"], where
    if "enum" in schema:
        assert value in schema["enum"], where
    if "type" in schema:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        types = {"object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "null": type(None)}
        assert any(isinstance(value, types[k]) and not isinstance(value, bool) for k in kinds), f"{where}: {value!r}"
    if "minimum" in schema:
        assert value >= schema["minimum"], where
    for key in schema.get("required", ()):
        assert key in value, f"{where}: {key} is missing"
    for key, inner in schema.get("properties", {}).items():
        if key in value:
            assert_fits(value[key], inner, f"{where}.{key}")
    for i, item in enumerate(value if "items" in schema else ()):
        assert_fits(item, schema["items"], f"{where}[{i}]")


def test_line_names_number_bound_and_place():
    verdict = verdict_of(good(), Check.at_most("max abs error", 3.1e-2, 1e-2, "logits[0, 417]"))
    assert verdict.line() == "FAIL tinynet on ascend: max abs error 3.1e-02 > 1.0e-02 at logits[0, 417]"
    assert verdict.exit_code == 1
    assert not verdict.ok


def test_numbers_that_round_alike_are_told_apart():
    assert Check.at_most("e", 1.0004e-2, 1e-2, "").sentence() == "e 1.0004e-02 > 1.0000e-02"
    assert Check.at_least("top-1 agreement", 0.78, 0.87, "").sentence() == "top-1 agreement 0.78 < 0.87"


def test_pass_says_which_check_came_nearest():
    verdict = verdict_of(good("loose"), Check.at_most("tight", 9e-5, 1e-4, "logits"))
    assert verdict.ok
    assert verdict.exit_code == 0
    assert verdict.reason == "2 checks hold; nearest to its bound: tight 9.0e-05 < 1.0e-04 at logits"
    assert verdict.require() is verdict


@pytest.mark.parametrize("value", [math.nan, np.float32("nan"), np.float64("nan")])
def test_nan_never_passes(value):
    assert Check("error", "pass", value, 1.0, "y").verdict == "fail"
    assert Check("error", "pass", 1.0, value, "y").verdict == "fail"
    assert Check.at_most("error", value, 1.0, "y").verdict == "fail"
    assert Check.at_least("error", value, 1.0, "y").verdict == "fail"
    assert verdict_of(Check.equal("error", value, value, "y")).verdict == "fail"


def test_a_bound_that_bounds_nothing_never_passes():
    assert Check.at_most("error", 1.0, math.inf, "y").verdict == "fail"
    assert Check.at_least("agreement", 1.0, -math.inf, "y").verdict == "fail"
    assert Check.at_least("sqnr [dB]", math.inf, 60.0, "y").verdict == "pass"


def test_no_checks_is_an_error_not_a_pass():
    verdict = verdict_of()
    assert verdict.verdict == "error"
    assert verdict.exit_code == 3
    with pytest.raises(EvidenceUnavailable, match="nothing was checked"):
        verdict.require()


def test_reference_self_is_never_a_pass():
    verdict = verdict_of(good(), reference="self")
    assert verdict.verdict == "fail"
    with pytest.raises(VerdictFailed, match="compared with itself"):
        verdict.require()


def test_fail_outweighs_error_and_error_outweighs_pass():
    undecided = Check("generation", "error", None, None, "step 3", "the device went away")
    assert verdict_of(good(), undecided).verdict == "error"
    assert "generation at step 3: the device went away" in verdict_of(good(), undecided).reason
    both = verdict_of(undecided, Check.at_most("e", 2.0, 1.0, "y"), Check.at_most("f", 2.0, 1.0, "y"))
    assert both.verdict == "fail"
    assert both.reason == "e 2 > 1 at y (and 1 more)"


def test_a_pass_cannot_be_constructed_against_its_checks():
    failing = verdict_of(Check.at_most("e", 2.0, 1.0, "y"))
    with pytest.raises(ValueError, match="says pass and its checks do not"):
        Verdict(**{**vars(failing), "verdict": "pass"})
    forged = json.loads(failing.to_json()) | {"verdict": "pass"}
    with pytest.raises(InputError, match="contradicts itself"):
        Verdict.from_json(json.dumps(forged))


def test_json_round_trip_and_non_finite_numbers():
    verdict = verdict_of(
        good(),
        Check.at_most("worst", math.inf, 1.0, "y"),
        Check("kind", "pass", np.int64(3), None, "", "why"),
        details={"kl": np.float32(0.5), "rows": (1, 2), "worst": math.nan, "flag": True},
    )
    text = verdict.to_json()
    fields = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert_fits(fields, SCHEMA)
    assert fields["checks"][1]["value"] == "inf"
    assert fields["details"] == {"kl": 0.5, "rows": [1, 2], "worst": "nan", "flag": True}
    again = Verdict.from_json(text)
    assert again.checks == verdict.checks
    assert again.to_json() == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a verdict"),
        ("[1]", "expected an object"),
        ("[" * 100_000, "not a verdict"),
        ('{"schema": "porting.verdict/2"}', "unknown schema 'porting.verdict/2'"),
        ('{"a": NaN}', "NaN is not JSON"),
        (b"\xff\xfe\x00", "not a verdict"),
    ],
)
def test_json_of_something_else_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Verdict.from_json(text)


@pytest.mark.parametrize("key", sorted(SCHEMA["required"]))
def test_missing_or_mistyped_fields_are_refused(key):
    fields = json.loads(verdict_of(good()).to_json())
    for broken in ({k: v for k, v in fields.items() if k != key}, {**fields, key: [[]] if key == "checks" else True}):
        with pytest.raises(InputError):
            Verdict.from_json(json.dumps(broken))


def test_fields_of_a_later_release_are_left_out():
    fields = json.loads(verdict_of(good()).to_json())
    assert Verdict.from_json(json.dumps({**fields, "carbon": 3})).ok


@settings(max_examples=60, deadline=None)
@given(
    name=st.text(max_size=40),
    where=st.text(max_size=40),
    value=st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=20)),
    bound=st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=20)),
    outcome=st.sampled_from(["pass", "fail", "error"]),
)
def test_every_check_gives_valid_json_xml_and_one_line(name, where, value, bound, outcome):
    verdict = verdict_of(Check(name, outcome, value, bound, where), source=where)
    assert_fits(json.loads(verdict.to_json()), SCHEMA)
    assert Verdict.from_json(verdict.to_json()).verdict == verdict.verdict
    assert verdict.line().isprintable()
    root = ElementTree.fromstring(to_junit(verdict))
    assert int(root.get("failures")) + int(root.get("errors")) == (0 if verdict.ok else 1)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_as_input_errors(data):
    with pytest.raises(InputError):
        Verdict.from_json(data)


def test_hostile_names_stay_data():
    verdict = verdict_of(Check.at_most(HOSTILE, 2.0, 1.0, HOSTILE, HOSTILE), source=HOSTILE, device=HOSTILE)
    assert "\x1b" not in verdict.line()
    assert "\u202e" not in verdict.line()
    assert len(verdict.line()) < 2500
    assert json.loads(verdict.to_json())["checks"][0]["name"] == HOSTILE
    case = ElementTree.fromstring(to_junit(verdict)).find("testsuite/testcase")
    assert case.get("name").startswith('a<b>&"]]>\\x00\\x1b[31m\u202e\\ud800\n')
    assert case.find("failure").text.startswith("value: 2.0\nbound: 1.0\nwhere: a<b>")


def test_printable_keeps_both_ends():
    assert printable("abc" * 100, 20) == "abcabca ... cabcabc"
    assert printable("a\tb\\") == "a\\tb\\"


def test_junit_lists_every_check_with_value_bound_and_place():
    verdict = verdict_of(good(), Check.at_most("max abs error", 3.1e-2, 1e-2, "logits[0, 417]", "from the error analysis"))
    root = ElementTree.fromstring(to_junit(verdict))
    assert [root.get(k) for k in ("tests", "failures", "errors")] == ["2", "1", "0"]
    assert len(root.findall("testsuite")) == 1
    failure = root.findall("testsuite/testcase")[1].find("failure")
    assert failure.get("message") == "max abs error 3.1e-02 > 1.0e-02 at logits[0, 417]"
    for part in ("value: 0.031", "bound: 0.01", "where: logits[0, 417]", "detail: from the error analysis"):
        assert part in failure.text


@pytest.mark.parametrize("level", EVIDENCE_LEVELS)
def test_every_name_in_junit_carries_the_level(level: str) -> None:
    """What a CI shows of a test is its name: green on a simulator may not look like green on the chip."""
    suite = ElementTree.fromstring(to_junit(verdict_of(good(), evidence_level=level))).find("testsuite")
    assert suite.get("name") == f"porting validate ({level})"
    assert [case.get("classname") for case in suite.findall("testcase")] == [f"porting.validate.{level}.ascend"]


@pytest.mark.parametrize("changes", [{}, {"reference": "self"}])
def test_junit_is_never_green_without_a_pass(changes):
    checks = (good(),) if changes else ()
    root = ElementTree.fromstring(to_junit(verdict_of(*checks, **changes)))
    assert int(root.get("failures")) + int(root.get("errors")) == 1


def test_verdict_imports_nothing_heavy():
    code = "import porting.verdict, porting.junit, sys; print(sorted({'numpy', 'onnx', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
