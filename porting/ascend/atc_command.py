"""The command line of ATC that a hand-off holds: every option explicit that the compiler has a silent default for, contradictions refused.

What the options take on their own stands in atc_options.py, what gears mean in gear_options.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from porting.ascend.atc_options import FRAMEWORK_ONNX, OPTIONS, require_option
from porting.ascend.gear_options import MOST, MOST_ON_950, shapes_of
from porting.ascend.soc import Soc, find_soc
from porting.errors import UsageError
from porting.verdict import printable

MODEL = "model.onnx"
OUTPUT = "model"  # atc adds .om, or _linux_aarch64.om and the like
REQUIRED = ("framework", "model", "output", "soc_version", "input_shape", "input_format")
PRECISION = ("precision_mode", "precision_mode_v2")
GEARS = ("dynamic_batch_size", "dynamic_image_size", "dynamic_dims")
ANY_HOST = "any"

# (one, other, ATC's code or "", why not both)
EXCLUSIVE: tuple[tuple[str, str, str, str], ...] = (
    ("precision_mode", "precision_mode_v2", "E10047", "they are two spellings of one choice"),
    ("op_precision_mode", "op_select_implmode", "", "of the two only op_precision_mode would count, in silence"),
    ("op_precision_mode", "optypelist_for_implmode", "", "of the two only op_precision_mode would count, in silence"),
    ("dynamic_batch_size", "dynamic_image_size", "E10009", "a model has one kind of gears"),
    ("dynamic_batch_size", "dynamic_dims", "E10009", "a model has one kind of gears"),
    ("dynamic_image_size", "dynamic_dims", "E10009", "a model has one kind of gears"),
    ("dynamic_dims", "insert_op_conf", "", "AIPP does not go with dynamic_dims"),
    ("compress_weight_conf", "enable_compress_weight", "E10047", "one names the nodes, the other means all"),
    ("compression_optimize_conf", "dynamic_batch_size", "", "a quantised model takes no gears"),
    ("compression_optimize_conf", "dynamic_image_size", "", "a quantised model takes no gears"),
    ("compression_optimize_conf", "dynamic_dims", "", "a quantised model takes no gears"),
)
# (one, what it needs)
NEEDS: tuple[tuple[str, str], ...] = (
    ("optypelist_for_implmode", "op_select_implmode"),
    ("host_env_cpu", "host_env_os"),
    ("host_env_os", "host_env_cpu"),
)
IGNORES_KEEP_DTYPE = ("must_keep_origin_dtype", "origin")
MIXED = (
    "allow_mix_precision",
    "allow_mix_precision_fp16",
    "allow_mix_precision_bf16",
    "mixed_float16",
    "mixed_bfloat16",
    "mixed_hif8",
)
TOO_PRECISE_FOR_QUANTISED = ("force_fp32", "must_keep_origin_dtype", "origin")


@dataclass(frozen=True)
class AtcCommand:
    """
    options: (name, value) in the order they are typed, checked
    """

    options: tuple[tuple[str, str], ...]

    def value(self, option: str) -> str | None:
        """What an option is set to; None where it is not given."""
        return dict(self.options).get(option)

    @property
    def arguments(self) -> tuple[str, ...]:
        """As a program gets them, after its own name."""
        return tuple(f"--{name}={value}" for name, value in self.options)

    @property
    def files(self) -> dict[str, str]:
        """Option -> file that has to be there, as a path from the folder that atc runs in."""
        return {name: value for name, value in self.options if OPTIONS[name].kind == "file"}

    @property
    def host_cpu(self) -> str:
        """The processor of the machine that the .om will run on, "any" where that is left to where atc runs."""
        return self.value("host_env_cpu") or ANY_HOST

    def text(self) -> str:
        """For bash: an option a line, quoted where it needs to be."""
        return " \\\n    ".join(["atc", *map(shlex.quote, self.arguments)]) + "\n"


def atc_command(
    soc: Soc,
    precision: tuple[str, str],
    gears: Mapping[str, str],
    *,
    side_files: Mapping[str, str] | None = None,
    aipp: str | None = None,
    host_cpu: str | None = None,
    log: str = "error",
    deterministic: bool | None = None,
    quantised: bool = False,
    more: Mapping[str, str] | None = None,
) -> AtcCommand:
    """The command for one model.

    precision:     (option, value), as `precision.Mode` has them
    gears:         input_shape, input_format and at most one dynamic_*, as `Gears.options`
    side_files:    option -> file: keep_dtype, customize_dtypes, modify_mixlist, op_precision_mode
    aipp:          file of insert_op_conf
    host_cpu:      "aarch64" for Kunpeng, "x86_64"; None: that of the machine where atc runs
    log:           what atc prints; with its own default (null) a log holds no reasons
    deterministic: None: not said, which means off
    quantised:     whether the graph holds AMCT's operators
    more:          further options, checked as the rest
    raises:        UsageError for options that atc does not know, or that contradict each other
    """
    given = [("framework", FRAMEWORK_ONNX), ("model", MODEL), ("output", OUTPUT), ("soc_version", soc.name)]
    given += [*gears.items(), precision, *(side_files or {}).items()]
    given += [("insert_op_conf", aipp)] if aipp is not None else []
    given += [("host_env_os", "linux"), ("host_env_cpu", host_cpu)] if host_cpu is not None else []
    given += [("deterministic", str(int(deterministic)))] if deterministic is not None else []
    given += [("log", log), *(more or {}).items()]
    return checked_command(given, quantised)


def checked_command(options: Sequence[tuple[str, str]], quantised: bool = False) -> AtcCommand:
    """A command out of its options. raises: UsageError, as atc_command"""
    values: dict[str, str] = {}
    for name, value in options:
        if name in values:
            raise UsageError(f"--{printable(name, 60)} is given twice", where="atc", next="keep one")
        values[name] = value
    missing = [name for name in REQUIRED if name not in values]
    if missing:
        raise UsageError(
            f"--{missing[0]} is missing", where="atc", next=f"a hand-off gives each of {', '.join(REQUIRED)} (ATC: E10007)"
        )
    soc = find_soc(values["soc_version"])
    if soc.name != values["soc_version"]:
        raise UsageError(f"atc spells it {soc.name}, not {printable(values['soc_version'], 60)}", where="--soc_version")
    for name, value in values.items():
        require_option(name, value, soc)
    _require_consistent(values)
    _require_precision(values, quantised)
    shapes_of(
        {n: values[n] for n in ("input_shape", "input_format", *GEARS) if n in values},
        MOST_ON_950 if soc.family == "950" else MOST,
    )
    if "insert_op_conf" in values and values["input_format"] != "NCHW":
        raise UsageError(
            f"--insert_op_conf with --input_format={values['input_format']} (ATC: E10052)",
            where="--insert_op_conf",
            next="AIPP takes images: NCHW",
        )
    return AtcCommand(tuple(options))


def parse_arguments(arguments: Sequence[str], quantised: bool = False) -> AtcCommand:
    """The command that these arguments are: `--name=value` or `--name value`. raises: UsageError, as atc_command"""
    options: list[tuple[str, str]] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not name:
            raise UsageError(f"{printable(argument, 80)!r} is no option (ATC: E10003)", where="atc", next="write --name=value")
        if not equals:
            if not left:
                raise UsageError(f"--{printable(name, 60)} has no value (ATC: E10004)", where="atc", next="write --name=value")
            value = left.pop(0)
        options.append((name, value))
    return checked_command(options, quantised)


def parse_text(text: str) -> AtcCommand:
    """A command as `AtcCommand.text` writes it. raises: UsageError"""
    try:
        words = shlex.split(text.replace("\\\n", " "))  # no value holds a line's end, so these are between the options
    except ValueError as error:
        raise UsageError(f"this is no command line: {error}", where="atc.txt", next="convert again") from error
    if not words or words[0] != "atc":
        raise UsageError("this is no command of atc", where="atc.txt", next="convert again")
    return parse_arguments(words[1:])


def _require_consistent(values: Mapping[str, str]) -> None:
    for one, other, code, why in EXCLUSIVE:
        if one in values and other in values:
            said = f" (ATC: {code})" if code else ""
            raise UsageError(f"--{one} and --{other} exclude each other: {why}{said}", where="atc", next="leave one out")
    for one, needed in NEEDS:
        if one in values and needed not in values:
            raise UsageError(f"--{one} needs --{needed}", where="atc", next="give both, or neither")
    if values.get("deterministic_level", "0") != "0" and values.get("deterministic") != "1":
        raise UsageError(
            "--deterministic_level needs --deterministic=1", where="--deterministic_level", next="give both, or neither"
        )
    if ":" in values.get("output_type", "") and "out_nodes" not in values:
        raise UsageError(
            "--output_type by node needs --out_nodes", where="--output_type", next="give both, or one type for all"
        )


def _require_precision(values: Mapping[str, str], quantised: bool) -> None:
    """The precision is said, and nothing is given that its mode ignores in silence."""
    option = next((name for name in PRECISION if name in values), None)
    if option is None:
        raise UsageError(
            "no precision mode is given, and atc's own default makes fp16 of every fp32 and bf16 in silence",
            where="--precision_mode_v2",
            next="give --precision_mode_v2=origin to keep the graph's dtypes, or say fp16",
        )
    mode = values[option]
    if "keep_dtype" in values and mode in IGNORES_KEEP_DTYPE:
        raise UsageError(
            f"--keep_dtype is ignored under --{option}={mode}",
            where="--keep_dtype",
            next="leave it out, or use --customize_dtypes",
        )
    if "modify_mixlist" in values and mode not in MIXED:
        raise UsageError(
            f"--modify_mixlist is read by the mixed modes only, not by --{option}={mode}",
            where="--modify_mixlist",
            next=f"leave it out, or take one of {', '.join(MIXED)}",
        )
    if (quantised or "compression_optimize_conf" in values) and mode in TOO_PRECISE_FOR_QUANTISED:
        raise UsageError(
            f"a quantised model does not go with --{option}={mode}: neither speed nor precision would be had",
            where=f"--{option}",
            next="take fp16 for it",
        )
    dynamic = next((name for name in GEARS if name in values), None)
    if quantised and dynamic is not None:
        raise UsageError(f"a quantised model takes no --{dynamic}", where=f"--{dynamic}", next="name one shape")
