"""A stand-in for Huawei's `atc`: its options, what it prints, its exit codes; what it writes is a .om of the simulator.

    python -m porting.backends.cann_simulator.atc --framework=5 --model=m.onnx --output=m --soc_version=Ascend910B3 --input_shape="x:1,3"

An option that atc does not have is refused (E10001; which code atc gives there is a guess). --mode=3 judges and writes --check_report. Options that
change speed, files of kernels or logs are checked and change nothing. Not simulated: --compression_optimize_conf, compressed weights, HiF8.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from porting.ascend.atc_command import EXCLUSIVE, NEEDS
from porting.ascend.atc_options import NOT_HERE, OPTIONS, require_option
from porting.ascend.soc import find_soc
from porting.backends.cann_simulator.compiler import compile_onnx, findings_of, require_accepted
from porting.backends.cann_simulator.machine import Machine, Refused
from porting.backends.cann_simulator.om_graph import CANNOT_LOAD
from porting.backends.cann_simulator.options import refused
from porting.errors import PortingError, UsageError
from porting.verdict import printable

MACHINE = "PORTING_CANN_SIMULATOR"
REQUIRED = ("framework", "model", "output", "soc_version")
STARTED = "ATC start working now, please wait for a moment."
SUCCEEDED = "ATC run success, welcome to the next use."
FAILED = "ATC run failed, Please check the detail log, Try 'atc --help' for more information"
FAILURE = 255
CHECK_REPORT = "check_result.json"
NOT_SIMULATED = ("compression_optimize_conf", "compress_weight_conf", "enable_compress_weight")
_PATH = re.compile(r"[A-Za-z0-9_./\-\u4e00-\u9fff]{1,4096}")  # the characters that the pages print


def main(argv: Sequence[str] | None = None) -> int:
    """Compile as the options say. returns: the exit code"""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments:
        print("ATC of the simulator. Options:\n" + "\n".join(f"  --{name}" for name in OPTIONS))
        return 0
    print(STARTED, flush=True)
    try:
        options = options_from(arguments)
        made = _run(options)
    except Refused as error:
        print(FAILED)
        print(printable(error.text, 4000))
        if not error.documented:
            print("[simulated: that atc gives this code here is a guess]")
        return FAILURE
    print(f"{SUCCEEDED}\n[simulated: {made}]")
    return 0


def options_from(arguments: Sequence[str]) -> dict[str, str]:
    """`--name=value` or `--name value`, checked. raises: Refused"""
    found: dict[str, str] = {}
    left = list(arguments)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            raise Refused(CANNOT_LOAD, f"E10001: {word[:80]!r} is no option")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not left:
                raise Refused(CANNOT_LOAD, f"E10004: --{name[:60]} has no value", True)
            value = left.pop(0)
        if name in found:
            raise Refused(CANNOT_LOAD, f"E10001: --{name[:60]} is given twice")
        found[name] = value
    _require(found)
    return found


def _require(options: Mapping[str, str]) -> None:
    """raises: Refused with the code of ATC's own check where it is known"""
    for name in options:
        if name in NOT_HERE or name in NOT_SIMULATED:
            raise Refused(CANNOT_LOAD, f"E10055: --{name} is not simulated")
        if name not in OPTIONS:
            raise Refused(CANNOT_LOAD, f"E10001: there is no option --{name[:60]}")
    missing = [name for name in REQUIRED if not options.get(name)]
    if missing and not (options.get("mode") == "3" and missing == ["output"]):
        raise Refused(CANNOT_LOAD, f"E10007: --{missing[0]} is required", True)
    try:
        soc = find_soc(options["soc_version"])
        if soc.name != options["soc_version"]:
            raise UsageError(f"--soc_version: {options['soc_version'][:60]!r} is spelled {soc.name} (ATC: E10001)")
        for name, value in options.items():
            kind = OPTIONS[name].kind
            if kind in ("file", "place"):
                _require_path(name, value)
            else:
                require_option(name, value, soc)
    except UsageError as error:
        raise refused(error) from error
    for one, other, code, why in EXCLUSIVE:
        if one in options and other in options:
            raise Refused(CANNOT_LOAD, f"{code or 'E10055'}: --{one} and --{other} exclude each other: {why}", bool(code))
    for one, needed in NEEDS:
        if one in options and needed not in options:
            raise Refused(CANNOT_LOAD, f"E10057: --{one} needs --{needed}")


def _require_path(name: str, value: str) -> None:
    if not _PATH.fullmatch(value):
        raise Refused(CANNOT_LOAD, f"E13026: --{name}: {value[:200]!r}: a path is letters, digits, _ - . / and Chinese", True)
    if OPTIONS[name].kind == "file" and not Path(value).is_file():
        raise Refused(CANNOT_LOAD, f"E13000: --{name}: {value[:200]!r} does not exist", True)


def _run(options: Mapping[str, str]) -> str:
    """What was written. raises: Refused"""
    machine = _machine(options["soc_version"])
    path = Path(options["model"])
    absolute = {name: str(Path(value).resolve()) if OPTIONS[name].kind == "file" else value for name, value in options.items()}
    try:
        model = path.read_bytes()
    except OSError as error:
        raise Refused(CANNOT_LOAD, f"E13001: --model cannot be read: {error.strerror or error}", True) from error
    if options.get("mode") == "3":
        return _checked(model, absolute, machine, path.parent)
    om = compile_onnx(model, absolute, machine, path.parent.resolve())
    target = output_path(options)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = target.with_name(f"{target.name}.{os.getpid()}.part")
        staged.write_bytes(om)
        staged.replace(target)
    except OSError as error:
        raise Refused(CANNOT_LOAD, f"E13004: {target.name!r} cannot be written: {error.strerror or error}", True) from error
    return f"{target.name}, {len(om)} bytes, for {machine.soc} with CANN {machine.cann}"


def output_path(options: Mapping[str, str]) -> Path:
    """Where the model goes: compiled for a host that is named, its name says so."""
    host = f"_{options['host_env_os']}_{options['host_env_cpu']}" if "host_env_cpu" in options else ""
    return Path(f"{options['output']}{host}.om")


def _machine(soc: str) -> Machine:
    """The simulated machine of the environment, with the chip that is compiled for: it need not be the one that is here. raises: Refused"""
    try:
        said = os.environ.get(MACHINE)
        here = Machine.from_json(said) if said else Machine(soc)
        return (
            here if here.soc == soc else replace(here, soc=soc, memory_bytes=0, facts="")
        )  # facts are of the chip that is here
    except PortingError as error:
        raise Refused(CANNOT_LOAD, f"E13024: {MACHINE} has an invalid value: {error.what}") from error


def _checked(model: bytes, options: Mapping[str, str], machine: Machine, folder: Path) -> str:
    """Write what stands in the way. raises: Refused where something does"""
    found = findings_of(model, {k: v for k, v in options.items() if k != "mode"}, machine, folder.resolve())
    rows = [
        {
            "op_name": f.node,
            "op_type": f.op,
            "rule": f.rule.id,
            "effect": f.rule.effect,
            "code": f.rule.code,
            "reason": f.rule.says,
        }
        for f in found
    ]
    report = Path(options.get("check_report", CHECK_REPORT))
    report.write_text(json.dumps({"result": rows}, indent=2) + "\n", encoding="utf-8")
    require_accepted(found)
    return f"{report.name}, {len(rows)} findings, none that refuses"


if __name__ == "__main__":
    sys.exit(main())
