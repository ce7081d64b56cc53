"""What whoever holds only the hand-off has to know to feed the compiled model, and what was shown of it: three keys of handoff.json.

    interface   inputs and outputs, state that a run hands to the next, every gear's shapes, how pixels become inputs
    source      the files that the model came from, by hash
    evidence    what was compared with what, check by check; None where nothing was. The whole verdict is in the port, evidence/verdict.json

JSON types only, and nothing that a second port of the same source would write differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from porting.ascend.gear_options import Shape
from porting.ascend.gears import Gears
from porting.ascend.image_inputs import ImageInputs
from porting.ascend.rules import Finding
from porting.errors import InputError
from porting.port_folder import Port
from porting.verdict import Verdict, printable

INTERFACE, SOURCE, EVIDENCE = "interface", "source", "evidence"
CONTENTS = (INTERFACE, SOURCE, EVIDENCE)
INTERFACE_KEYS = ("inputs", "outputs", "state", "defaults", "gears", "flat", "images")
EVIDENCE_KEYS = ("level", "verdict", "device", "reference", "compared_with", "reason", "checks")


@dataclass(frozen=True)
class Contents:
    """
    interface, source, evidence: see above; None where nobody said
    noted: rule -> what it says, of those that speak of the compiled graph
    """

    interface: Mapping[str, Any] | None = None
    source: Mapping[str, Any] | None = None
    evidence: Mapping[str, Any] | None = None
    noted: Mapping[str, str] | None = None

    @property
    def flat(self) -> dict[str, tuple[int, ...]]:
        """Inputs that the compiled model takes as one row of numbers, and their shape in the port."""
        listed = (self.interface or {}).get("flat") or {}
        return {name: tuple(shape) for name, shape in listed.items()}

    def to_json(self) -> dict[str, Any]:
        return {INTERFACE: self.interface, SOURCE: self.source, EVIDENCE: self.evidence}


def contents_of(
    port: Port,
    gears: Gears,
    flat: Mapping[str, Shape],
    images: ImageInputs | None,
    noted: Sequence[Finding],
    verdict: Verdict | None,
) -> Contents:
    """What the hand-off of a port says beside its command.

    gears:   as the compiled model has them
    flat:    inputs that it takes as one row of numbers, and their shape in the port
    verdict: of the comparison with the source; None where there was none
    """
    manifest = port.manifest
    interface = {
        **{key: manifest[key] for key in ("inputs", "outputs", "state", "defaults")},
        "gears": {
            "kind": gears.kind,
            "shapes": [{name: list(shape) for name, shape in one.items()} for one in gears.shapes],
        },
        "flat": {name: list(shape) for name, shape in flat.items()},
        "images": None if images is None else images.to_json(),
    }
    return Contents(
        interface,
        manifest["source"],
        None if verdict is None else _evidence(verdict),
        {finding.rule.id: finding.rule.says for finding in noted},
    )


def _evidence(verdict: Verdict) -> dict[str, Any]:
    """Of a verdict what a second run would say too: no times, no memory, no place on this machine."""
    compared = verdict.details.get("compared_with")
    checks = [
        {key: value for key, value in check.items() if key in ("name", "verdict", "value", "bound")}
        for check in verdict.to_dict()["checks"]
    ]
    return {
        "level": verdict.evidence_level,
        "verdict": verdict.verdict,
        "device": verdict.device,
        "reference": verdict.reference,
        "compared_with": compared if isinstance(compared, str) else "",
        "reason": verdict.reason,
        "checks": checks,
    }


def require_contents(manifest: Mapping[str, Any], where: str) -> None:
    """The three keys hold objects, or nothing; those that are ours with all of their keys and no other. raises: InputError"""
    for key in CONTENTS:
        if manifest[key] is not None and not isinstance(manifest[key], dict):
            raise InputError(f"{key} is no object", where=where)
    for key, keys in ((INTERFACE, INTERFACE_KEYS), (EVIDENCE, EVIDENCE_KEYS)):
        if manifest[key] is not None and set(manifest[key]) != set(keys):
            raise InputError(f"{key} has other keys than {', '.join(keys)}", where=where)


# --- in words -----------------------------------------------------------------------------------------------------


def in_words(contents: Contents) -> Iterator[str]:
    """Lines for README.txt."""
    if contents.interface is not None:
        yield from _interface_in_words(contents.interface)
    if contents.evidence is not None:
        yield from _evidence_in_words(contents.evidence)
    if contents.noted:
        yield from ["", "What the rules say of this graph (`porting check` names the nodes and the sources):", ""]
        yield from (f"  - {rule}: {says}" for rule, says in sorted(contents.noted.items()))


def _interface_in_words(interface: Mapping[str, Any]) -> Iterator[str]:
    carried = {pair["input"]: pair["output"] for pair in interface["state"]["pairs"]}
    yield from ["", "What it takes and gives, in this order:", ""]
    for kind in ("inputs", "outputs"):
        for one in interface[kind]:
            more = (
                f"   start with zeros, then feed {_name(carried[one['name']])} of the run before"
                if one["name"] in carried
                else ""
            )
            if one["name"] in interface["defaults"]:
                more = f"   feed {interface['defaults'][one['name']]}, which the port feeds where nothing else is given"
            more = more if kind == "inputs" else ""
            yield f"    {kind[:-1]:6} {_name(one['name'])}: {one['dtype']}[{', '.join('?' if size is None else str(size) for size in one['shape'])}]{more}"
    if interface["flat"]:
        names = ", ".join(_name(name) for name in interface["flat"])
        yield f"  Fed as one row of the same numbers in the same order, rank 1, in place of that shape: {names}."
        yield "  With all sizes of all inputs a gear would not fit into aclmdlIODims (128). Outputs keep their shape, and their bytes can be fed."
    if interface["images"] is not None:
        yield "  Inputs that are made from pixels take uint8 in place of that; see below."
    shapes = interface["gears"]["shapes"]
    if len(shapes) == 1:
        yield from ["", "It is compiled for one shape of each input, and takes no other."]
        return
    yield from [
        "",
        f"It is compiled for {len(shapes)} gears ({interface['gears']['kind']}), and takes no other shapes. Before a run the gear is to be set",
        "(aclmdlSetDynamicBatchSize, aclmdlSetDynamicHWSize or aclmdlSetInputDynamicDims): where nothing is set, the largest is",
        "taken in silence, and what lies behind a smaller input is read with it. Pad an input to the next gear, or refuse it.",
        "",
    ]
    differing = [name for name in shapes[0] if len({tuple(one[name]) for one in shapes}) > 1]
    yield from (f"    {', '.join(f'{_name(name)} {one[name]}' for name in differing)}" for one in shapes)


def _evidence_in_words(evidence: Mapping[str, Any]) -> Iterator[str]:
    checks = evidence["checks"]
    held = sum(check["verdict"] == "pass" for check in checks)
    yield from [
        "",
        f"What was shown before it was handed over, on {evidence['device']} (level: {evidence['level']}): {evidence['verdict']}, {held} of {len(checks)} checks hold,",
        f"against {printable(evidence['compared_with'] or evidence['reference'], 200)}.",
        f"{printable(evidence['reason'], 400)}",
    ]


def _name(name: str) -> str:
    return printable(name, 80)
