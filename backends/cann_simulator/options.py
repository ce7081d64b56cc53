"""The options of a compilation, by atc's names, whoever gives them: atc's command line, or the graph engine's ge.* of the CANN provider.

The provider writes a scalar input as its name alone, "c", where atc wants "c:".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from porting.ascend.gear_options import BATCH, DIMS, FIXED, IMAGE, LARGEST, shapes_of
from porting.backends.cann_simulator.machine import Machine, Refused
from porting.backends.cann_simulator.om_graph import CANNOT_LOAD
from porting.errors import UsageError

# the graph engine's options -> atc's; ir_option's spellings are atc's own
GE_OPTIONS: Mapping[str, str] = {
    "ge.inputShape": "input_shape",
    "ge.inputFormat": "input_format",
    "ge.dynamicBatchSize": BATCH,
    "ge.dynamicImageSize": IMAGE,
    "ge.dynamicDims": DIMS,
    "ge.socVersion": "soc_version",
    "ge.outputNodeName": "out_nodes",
    "ge.outputDatatype": "output_type",
    "ge.insertOpFile": "insert_op_conf",
    "ge.exec.precision_mode": "precision_mode",
    "ge.precision_mode": "precision_mode",
    "ge.exec.precision_mode_v2": "precision_mode_v2",
    "ge.precision_mode_v2": "precision_mode_v2",
    "ge.keepDtypeNodes": "keep_dtype",
    "ge.keepDtype": "keep_dtype",
    "ge.customizeDtypes": "customize_dtypes",
    "ge.exec.modify_mixlist": "modify_mixlist",
    "ge.modifyMixlist": "modify_mixlist",
    "ge.exec.op_precision_mode": "op_precision_mode",
    "ge.opSelectImplmode": "op_select_implmode",
    "ge.optypelistForImplmode": "optypelist_for_implmode",
    "ge.isWeightClip": "is_weight_clip",
}
NAMED_OTHERWISE = {"op_select_impl_mode": "op_select_implmode"}
FILES = ("keep_dtype", "customize_dtypes", "modify_mixlist", "op_precision_mode", "insert_op_conf")
MOST_FILE = 16 << 20
KINDS: Mapping[str, str] = {FIXED: "", BATCH: "batch", IMAGE: "image", DIMS: "dims"}
GEAR_OPTIONS = ("input_shape", "input_format", BATCH, IMAGE, DIMS)
CODE = re.compile(r"\(ATC: (E\w+)\)")


@dataclass(frozen=True)
class Shapes:
    """
    named: input -> its dims as the options say them, -1 free
    kind:  of machine.GEAR_KINDS, "" without gears
    gears: the shapes of all inputs in each
    """

    named: Mapping[str, tuple[int, ...]]
    kind: str
    gears: tuple[Mapping[str, tuple[int, ...]], ...]


def atc_options(given: Mapping[str, str], machine: Machine) -> dict[str, str]:
    """By atc's names; options of the graph engine that change nothing here are left out. raises: Refused for another SoC or a spelling twice"""
    found: dict[str, str] = {}
    for name, value in given.items():
        name = GE_OPTIONS.get(name, NAMED_OTHERWISE.get(name, name))
        if name.startswith("ge.") or value == "":
            continue
        if found.setdefault(name, value) != value:
            raise Refused(CANNOT_LOAD, f"E10001: {name[:60]} is given twice, as {found[name][:60]!r} and {value[:60]!r}")
    found.setdefault("soc_version", machine.soc)
    return found


def files_of(options: Mapping[str, str], folder: Path | None) -> dict[str, str]:
    """Option -> what its file says. raises: Refused, E13000 for a file that is not there, E13003 for one that is no text"""
    found = {}
    for name in FILES:
        if name not in options:
            continue
        path = (folder or Path.cwd()) / options[name]
        try:
            if path.stat().st_size > MOST_FILE:
                raise Refused(CANNOT_LOAD, f"E13003: --{name}: {options[name][:200]!r} is too large for such a file")
            found[name] = path.read_text(encoding="utf-8")
        except OSError as error:
            raise Refused(CANNOT_LOAD, f"E13000: --{name}: {options[name][:200]!r} does not exist", True) from error
        except UnicodeDecodeError as error:
            raise Refused(CANNOT_LOAD, f"E13003: --{name}: {options[name][:200]!r} is no text", True) from error
    return found


def shapes_from(options: Mapping[str, str]) -> Shapes:
    """raises: Refused with the code of ATC's own check"""
    named = _input_shape(options.get("input_shape", ""))
    gears = {name: options[name] for name in GEAR_OPTIONS if name in options}
    if not any(name in gears for name in (BATCH, IMAGE, DIMS)):
        return Shapes(named, "", ())
    try:
        kind, shapes = shapes_of(gears)
    except UsageError as error:
        raise refused(error) from error
    return Shapes(named, KINDS[kind], shapes)


def refused(error: UsageError, code: str = "E10001") -> Refused:
    """What a check of a hand-off's command says, as the compiler says it. code: where the check names none"""
    found = CODE.search(error.what)
    said = f"{found.group(1) if found else code}: {CODE.sub('', error.what).strip()}"
    return Refused(CANNOT_LOAD, said, found is not None)


def _input_shape(text: str) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for part in filter(None, text.split(";")):
        name, dims = _name_and_dims(part)
        if not name or name in found:
            raise Refused(CANNOT_LOAD, f"E10002: --input_shape: {part[:80]!r} is no name:dims, or comes twice", True)
        found[name] = tuple(_size(size, part) for size in dims.split(",")) if dims else ()
    return found


def _name_and_dims(part: str) -> tuple[str, str]:
    """A part without a colon, or whose end is no list of numbers, names a scalar: so the provider writes one."""
    name, colon, dims = part.rpartition(":")
    return (name, dims) if colon and re.fullmatch(r"[-0-9,~ ]*", dims) else (part, "")


def _size(text: str, part: str) -> int:
    low, _, high = text.strip().partition("~")
    if "~" in text and re.fullmatch(r"[0-9]{1,10}", low) and (high == "-1" or re.fullmatch(r"[0-9]{1,10}", high)):
        return -1  # a range is a dynamic shape
    if low == "-1" and not high:
        return -1
    if not re.fullmatch(r"[0-9]{1,10}", text.strip()) or not 1 <= int(text) <= LARGEST:
        raise Refused(CANNOT_LOAD, f"E10002: --input_shape: {part[:80]!r} has a size that is none", True)
    return int(text)
