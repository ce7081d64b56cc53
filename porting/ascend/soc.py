"""What is known of an Ascend SoC and of the releases of CANN. The SoCs are those of targets.json; nothing here was measured on hardware."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from porting.errors import UsageError, nearest
from porting.targets import find_target

FAMILIES = ("310", "310P", "310B", "910A", "A2", "A3", "950", "other")

# generation in targets.json -> (family, computes bf16, turns Inf and NaN into finite numbers); None: the sources do not say.
# Source: the runtime's SoC files, ATC's documents on precision modes and on overflow
GENERATIONS: Mapping[str, tuple[str, bool | None, bool | None]] = {
    "Ascend310": ("310", False, True),
    "Ascend310P": ("310P", False, True),
    "Ascend310B": ("310B", None, True),
    "Ascend910": ("910A", False, True),
    "Ascend910B": ("A2", True, False),
    "Ascend910_93": ("A3", True, False),
    "Ascend950": ("950", True, False),
    "Ascend350": ("950", True, False),
}
NOTES: Mapping[str, tuple[str, ...]] = {
    "Ascend310": ("the SoC files of recent CANN have no Ascend310: it seems to be dropped there",),
    "Ascend310B": (
        "310B: ATC's documents and the list of its matrix unit name bf16, its SoC file has no flag for it: unknown",
    ),
    "Ascend350": ("Ascend350 has the architecture of 950 (3510); which product it is, is uncertain",),
}
UNKNOWN_CHIP = ("this chip has a SoC file and no documents that were read: what its unit computes in is unknown",)

GIB = 2**30
# what boards with the SoC report, where that is not what its SoC file says: 300I Pro and 300I Duo carry the same chip
BOARDS: Mapping[str, tuple[int, ...]] = {"Ascend310P3": (21 * GIB, 44 * GIB)}


@dataclass(frozen=True)
class Soc:
    """An Ascend SoC.

    name:      as `atc --soc_version` spells it
    family:    one of FAMILIES: what rules are said of
    bf16:      whether it computes in bf16; None where the sources do not agree or do not say
    saturates: whether an overflow becomes the largest number and NaN becomes 0, and nothing can be done about it; None: unknown
    boards:    bytes of memory that boards with it report, ascending; () where nothing is known: the name of a SoC does not fix it
    notes:     what the user should be told about the choice
    """

    name: str
    family: str
    bf16: bool | None
    saturates: bool | None
    boards: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def find_soc(name: str) -> Soc:
    """Look a SoC up by the name of a target, case-insensitively. raises: UsageError when there is none, or the target is no Ascend SoC"""
    target = find_target(name)
    if target.kind != "ascend":
        raise UsageError(
            f"target {target.name} is no Ascend SoC",
            where="--target",
            next="name the chip as `npu-smi info` does, such as Ascend310P3 or Ascend910B3",
        )
    generation = _generation(target.name)
    family, bf16, saturates = GENERATIONS.get(generation, ("other", None, None))
    notes = (*target.notes, *NOTES.get(generation, () if family != "other" else UNKNOWN_CHIP))
    memory = () if target.memory is None else (target.memory,)
    return Soc(target.name, family, bf16, saturates, BOARDS.get(target.name, memory), notes)


def _generation(name: str) -> str:
    """The chips that are built alike, longest name first: Ascend910B3 is an Ascend910B, and Ascend910B without a digit an Ascend910."""
    if name in ("Ascend910B", "Ascend910A") or name.startswith(("Ascend910Pro", "Ascend910Premium")):
        return "Ascend910"
    found = [g for g in GENERATIONS if name.startswith(g)]
    return max(found, key=len, default="")


# --- CANN ---------------------------------------------------------------------------------------------------------


@cache
def _cann() -> Mapping[str, Any]:
    return json.loads((Path(__file__).parent / "data" / "cann.json").read_text(encoding="utf-8"))


def known_cann() -> tuple[str, ...]:
    """The releases that rules can speak of, oldest first."""
    return tuple(_cann()["releases"])


def judged_cann() -> str:
    """The release whose sources the rules were read from, where they were not read from documents."""
    return str(_cann()["judged"])


def find_cann(text: str | None) -> str | None:
    """A release by its name: "8.5.0", "8.5", "9.1.0-beta.3"; None for None. raises: UsageError naming the nearest"""
    if text is None:
        return None
    spelled = {release.upper(): release for release in known_cann()}
    plain = re.sub(r"[-.]?(alpha|beta)[.\d]*$", "", text.strip(), flags=re.IGNORECASE).upper()
    if plain in spelled:
        return spelled[plain]
    train = [release for release in known_cann() if release.startswith(f"{plain}.")]
    if re.fullmatch(r"\d+\.\d+", plain) and train:
        return f"{plain}.0" if f"{plain}.0" in train else _only(train, text)
    raise UsageError(f"unknown CANN release {text!r}", where="--cann", next=nearest(text, known_cann()))


def _only(train: list[str], text: str) -> str:
    if len(train) > 1:
        raise UsageError(f"{text!r} is several CANN releases", where="--cann", next=f"name one: {', '.join(train)}")
    return train[0]


def soc_in(soc: Soc, release: str | None) -> Soc:
    """The SoC with what is to be said of it in a release; None is any.

    raises: UsageError for a release that is older than the chip, where a document says when it came
    """
    older_than = [
        (name, chip)
        for name, chip in _cann()["chips"].items()
        if release is not None
        and soc.name.startswith(name)
        and soc.family != "910A"  # Ascend910B without a digit is one
        and release_order(release) < release_order(chip["first"])
    ]
    if not older_than:
        return soc
    name, chip = max(older_than, key=lambda pair: len(pair[0]))
    if chip["confidence"] == "documented":
        raise UsageError(
            f"CANN {release} is older than {soc.name}: {name} came with {chip['first']}",
            where="--cann",
            next=f"--cann {chip['first']} or a later one ({chip['source']})",
        )
    note = f"whether CANN {release} takes {soc.name} is unknown: the oldest page that was read and names such chips is of {chip['first']} ({chip['source']})"
    return replace(soc, notes=(*soc.notes, note))


def release_order(release: str) -> int:
    """Where a release stands among the known ones. raises: ValueError for one that is not known"""
    return known_cann().index(release)
