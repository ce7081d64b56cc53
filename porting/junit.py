"""A verdict as JUnit XML, the form that CI services render."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from porting.verdict import Check, Verdict

# XML 1.0, section 2.2: what may stand in a document. Everything else cannot even be written as a reference.
FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(verdict: Verdict) -> bytes:
    """One testsuite, one testcase per check; failures carry value, bound and place. Then one for each finding of a rule, which fails where it blocks.

    A verdict that no single check explains (nothing was checked, compared with itself) gets a testcase of its own, so
    that a CI can never show it as green. Names are data: markup is escaped, characters that XML forbids become `\\xNN`.

    returns: UTF-8 with an XML declaration
    """
    cases = [_case(verdict, c.name, c.verdict, c.sentence(), _text(verdict, c)) for c in verdict.checks]
    cases += [_finding(verdict, finding) for finding in verdict.details.get("findings", ())]
    if not verdict.ok and all(c.verdict == "pass" for c in verdict.checks):
        cases.append(_case(verdict, "verdict", verdict.verdict, verdict.reason, verdict.line()))
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(c.find("failure") is not None for c in cases)),
        "errors": str(sum(c.find("error") is not None for c in cases)),
        "time": f"{verdict.seconds:.3f}",
    }
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": _legal(f"porting {verdict.command} ({verdict.evidence_level})"), **counts}
    )
    properties = ElementTree.SubElement(suite, "properties")
    for key in ("verdict", "evidence_level", "reference", "source", "target", "device", "reason"):
        ElementTree.SubElement(properties, "property", {"name": key, "value": _legal(str(getattr(verdict, key)))})
    suite.extend(cases)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _case(verdict: Verdict, name: str, outcome: str, message: str, text: str) -> ElementTree.Element:
    classname = _legal(f"porting.{verdict.command}.{verdict.evidence_level}.{verdict.device or verdict.target}")
    case = ElementTree.Element("testcase", {"classname": classname, "name": _legal(name)})
    if outcome != "pass":
        kind = "failure" if outcome == "fail" else "error"
        ElementTree.SubElement(case, kind, {"message": _legal(message), "type": outcome}).text = _legal(text)
    return case


def _finding(verdict: Verdict, finding: Mapping[str, Any]) -> ElementTree.Element:
    """What one rule says of one node: a failure where that blocks, else passed, with the same in its output."""
    blocks = finding["status"] == "blocks"
    node, op = finding["node"] or "the graph", f" ({finding['op']})" if finding["op"] else ""
    said = f"{finding['effect']}: {finding['says']}"
    keys = ("status", "rule", "effect", "code", "detail", "rewrite", "why", "since", "until", "confidence", "source")
    text = "\n".join([f"node: {node}{op}", *(f"{key}: {finding[key]}" for key in keys if finding[key])])
    case = _case(verdict, f"{finding['rule']}: {node}", "fail" if blocks else "pass", said, text)
    if not blocks:
        ElementTree.SubElement(case, "system-out").text = _legal(f"{said}\n{text}")
    return case


def _text(verdict: Verdict, check: Check) -> str:
    lines = [f"value: {check.value}", f"bound: {check.bound}", f"where: {check.where}"]
    if check.detail:
        lines.append(f"detail: {check.detail}")
    return "\n".join([*lines, f"compared with: {verdict.reference}, evidence: {verdict.evidence_level}"])


def _legal(text: str) -> str:
    return FORBIDDEN.sub(lambda m: m.group().encode("unicode_escape").decode("ascii"), text)
