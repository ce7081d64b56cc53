"""Options and output that every command shares."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from porting.errors import InputError, OutOfResources, PortingError, UsageError

if TYPE_CHECKING:
    from porting.verdict import Verdict

as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
quiet = click.option("--quiet", is_flag=True, help="No progress on stderr.")
target = click.option(
    "--target", default="cpu", show_default=True, metavar="T", help="cpu, cuda, or an Ascend soc_version such as Ascend910B3."
)
precision = click.option(
    "-p",
    "--precision",
    default=None,
    metavar="P",
    help="fp32, int8, int4 (weights), or source for the checkpoint's own.  [default: fp32]  For Ascend what it will be compiled in: fp32, fp16, bf16, w8a8.",
)
cann = click.option(
    "--cann",
    default=None,
    metavar="VERSION",
    help="For an Ascend target: the CANN release that it will be compiled with.  [default: all that are known]",
)
host_cpu = click.option(
    "--host-cpu",
    default=None,
    metavar="CPU",
    help="For an Ascend target: the processor beside the NPU, aarch64 (Kunpeng) or x86_64.  [default: that of the machine with the compiler]",
)
_SHAPES = (
    click.option(
        "--gears",
        default=None,
        metavar='"NAME=N,...; ..."',
        help="For an Ascend target: the shapes that it is compiled for, a size for each free dimension by its name, gears parted by semicolons. "
        "The port then takes these shapes and no other. Of a language model only what differs from batch=1, sequence=1, 64 and 256, capacity=1024.",
    ),
    click.option("--batch", default=None, metavar="N,...", help="The same for axis 0 of the inputs alone: 1,2,4,8."),
    click.option(
        "--image-size",
        default=None,
        metavar='"H,W; ..."',
        help="The same for height and width of images (NCHW): 224,224;448,448.",
    ),
    click.option(
        "--dims",
        default=None,
        metavar='"N,...; ..."',
        help="The same with a number for each free dimension, in the inputs' order.",
    ),
)
preprocessing = click.option(
    "--preprocessing",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="For an Ascend target: a JSON file that says how inputs are made from uint8 images. The hand-off then holds AIPP's configuration for "
    "the device, and --inputs holds the images.",
)
_W8A8 = (
    click.option(
        "--calibration",
        type=click.Path(dir_okay=False, path_type=Path),
        multiple=True,
        help="With -p w8a8, which has no default for it: an .npz with inputs as the model is fed in use, one case; again for more.",
    ),
    click.option(
        "--keep-float",
        multiple=True,
        metavar="NODE",
        help="With -p w8a8: a Conv, Gemm or MatMul that stays in float, by its name in the report; again for more.",
    ),
)
device = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="D",
    help="name[:index][,option=value]..., as in cuda:0 or cpu,threads=2. Never falls back; cuda-or-cpu asks for either.",
)
require_level = click.option(
    "--require-level",
    type=click.Choice(["static", "emulated", "simulated", "hardware"]),
    default="static",
    show_default=True,
    help="The weakest level of evidence that counts; less than this exits 3.",
)
weights = click.option(
    "--weights",
    default=None,
    metavar="link|copy|FILE",
    help="Hard-link the source's files where their bytes can be used as they are, or copy always.  [default: link]  "
    "With --model: the file that the module is loaded with (a state_dict, or a training checkpoint that holds one).",
)
weights_file = click.option(
    "--weights",
    default=None,
    metavar="FILE",
    help="With --model: the file that the module is loaded with (a state_dict, or a training checkpoint that holds one).",
)
force = click.option("--force", is_flag=True, help="Replace an existing output.")
junit = click.option(
    "--junit",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the verdict as JUnit XML, for a CI; replaces an old one.",
)
inputs = click.option(
    "--inputs",
    type=click.Path(dir_okay=False, path_type=Path),
    multiple=True,
    help="An .npz to validate on, in place of the built-in inputs. Of a language model: token ids, one (batch, sequence) array per case. "
    "Of any other: one array per input, and the file is one case; give the option again for more.",
)
model = click.option(
    "--model",
    metavar="PACKAGE.MODULE:FACTORY",
    help="In place of SOURCE: a function without arguments that returns a torch module, ready to run (in eval mode).",
)
entry = click.option(
    "--entry",
    metavar="NAME",
    help="With --weights FILE: which mapping of a training checkpoint is meant, where several fit, as in ema.",
)
no_strict = click.option(
    "--no-strict",
    is_flag=True,
    help="With --model: names that only the module or only the weights file has are reported, not refused.",
)
allow_pickle = click.option(
    "--allow-pickle",
    is_flag=True,
    help="Run the code that a .pt2, a TorchScript file or a pickle carries. Only for files that you trust.",
)
input_spec = click.option(
    "--input",
    "input_specs",
    multiple=True,
    metavar='"NAME: DTYPE[DIMS]"',
    help='An input of a torch model, as in "x: float32[batch, 3, 224, 224]"; a named dimension is free. Once per input, in order.',
)
state = click.option(
    "--state",
    "state_pairs",
    multiple=True,
    metavar="INPUT=OUTPUT",
    help="What the model carries from run to run, as in h=hn: kept by the session, which starts from zeros. Once per pair.",
)

_CUTS = (
    click.option(
        "--outputs",
        "cut_outputs",
        multiple=True,
        metavar="NAME",
        help="Of an .onnx file: it ends at this value of its graph (or node with one output), and what only others need is left out; again for "
        "more, in the order of the port's outputs.",
    ),
    click.option(
        "--fix",
        "fixes",
        multiple=True,
        metavar="INPUT=NUMBER",
        help="Of an .onnx file: an input that is always this number, or true or false, as in sr=16000; again for more.",
    ),
)


@dataclass(frozen=True)
class Named:
    """What the user named: SOURCE, or --model with what belongs to it."""

    source: str | None
    model: str | None
    entry: str | None
    strict: bool
    allow_pickle: bool
    input_specs: Sequence[str]
    state_pairs: Sequence[str]
    cut_outputs: Sequence[str] = ()
    fixes: Sequence[str] = ()

    @property
    def is_port(self) -> bool:
        """Whether SOURCE is a port: a folder with port.json."""
        return self.model is None and self.source is not None and (Path(self.source) / "port.json").is_file()

    def reference(self, weights: str | None) -> str:
        """The options by which `porting validate` takes this source as its reference."""
        given = ["--against", str(self.source)] if self.model is None else ["--model", self.model]
        given += ["--weights", weights] if self.model is not None and weights else []
        given += ["--entry", self.entry] if self.entry else []
        given += [part for text in self.input_specs for part in ("--input", text)]
        given += [part for pair in self.state_pairs for part in ("--state", pair)]
        given += ["--allow-pickle"] if self.allow_pickle else []
        return shlex.join(given if self.strict else [*given, "--no-strict"])

    @contextmanager
    def opened(self, weights_file: str | None = None, inputs: Sequence[Path] = ()) -> Iterator[Any]:
        """The source; closed at the end. raises: as `open_source`"""
        from porting.sources import opened

        with opened(self.source, inputs=inputs, **self.options(weights_file)) as source:
            yield source

    def options(self, weights_file: str | None) -> dict[str, Any]:
        """Of `open_source`. raises: UsageError"""
        from porting.cuts import parse_fix
        from porting.sources import parse_input, parse_state

        return {
            "model": self.model,
            "weights_file": weights_file,
            "entry": self.entry,
            "strict": self.strict,
            "allow_pickle": self.allow_pickle,
            "input_specs": [parse_input(text) for text in self.input_specs],
            "state": parse_state(self.state_pairs),
            "outputs": self.cut_outputs,
            "fix": parse_fix(self.fixes),
        }


def source_options(command: Callable[..., int]) -> Callable[..., int]:
    """SOURCE, or --model with what belongs to it, handed to the command as one `Named`."""
    return named_options(click.argument("source", required=False))(command)


def named_options(argument: Callable[[Any], Any]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """As `source_options`, with another way to give `source`."""
    return lambda command: _with_named(command, argument)


def _with_named(command: Callable[..., int], argument: Callable[[Any], Any]) -> Callable[..., int]:

    @wraps(command)
    def with_source(
        source: str | None,
        model: str | None,
        entry: str | None,
        no_strict: bool,
        allow_pickle: bool,
        input_specs: tuple[str, ...],
        state_pairs: tuple[str, ...],
        cut_outputs: tuple[str, ...] = (),
        fixes: tuple[str, ...] = (),
        **rest: Any,
    ) -> int:
        named = Named(source, model, entry, not no_strict, allow_pickle, input_specs, state_pairs, cut_outputs, fixes)
        return command(source=named, **rest)

    decorated: Callable[..., int] = with_source
    for option in (state, input_spec, allow_pickle, no_strict, entry, model, argument):
        decorated = option(decorated)
    return decorated


def cuts(command: Callable[..., int]) -> Callable[..., int]:
    """--outputs and --fix, of a command with `source_options`, which hands them over as part of its `Named`."""
    for option in reversed(_CUTS):
        command = option(command)
    return command


def shapes(command: Callable[..., int]) -> Callable[..., int]:
    """--gears, --batch, --image-size and --dims, handed to the command as `gears`, a Request or None."""

    @wraps(command)
    def with_shapes(gears: str | None, batch: str | None, image_size: str | None, dims: str | None, **rest: Any) -> int:
        from porting.ascend.gear_requests import Request

        given = {"--batch": batch, "--image-size": image_size, "--dims": dims, "--gears": gears}
        for option, text in given.items():
            if text is not None and not text.strip():
                raise UsageError("says nothing", where=option, next="leave it out, or name sizes")
        texts = [text or "" for text in given.values()]
        return command(gears=Request(*texts) if any(texts) else None, **rest)

    decorated: Callable[..., int] = with_shapes
    for option in reversed(_SHAPES):
        decorated = option(decorated)
    return decorated


def w8a8(command: Callable[..., int]) -> Callable[..., int]:
    """--calibration and --keep-float, handed to the command under these names."""
    for option in reversed(_W8A8):
        command = option(command)
    return command


@contextmanager
def numbers(preprocessing_file: Path | None, files: tuple[Path, ...]) -> Iterator[tuple[Path, ...]]:
    """The user's inputs, with the model's numbers in place of images that --preprocessing describes. raises: InputError"""
    if preprocessing_file is None:
        yield files
        return
    from porting.ascend.preprocessing import read_preprocessing
    from porting.pixel_inputs import as_numbers

    with as_numbers(read_preprocessing(preprocessing_file), files) as made:
        yield made


def split_weights(given: str | None) -> tuple[str, str | None]:
    """--weights means two things: how weights are kept ("link" unless told), and with --model the file of weights."""
    return (given, None) if given in ("link", "copy") else ("link", given)  # a file of that name is ./link


def output(what: str) -> Callable[[Any], Any]:
    """-o PATH."""
    return click.option(
        "-o", "--output", required=True, type=click.Path(path_type=Path), metavar=what.upper(), help=f"The {what} to write."
    )


class Size(click.ParamType):
    """Bytes, as in 4GiB, 512MiB or 2000000."""

    name = "size"
    UNITS: ClassVar[dict[str, int]] = {
        "": 1,
        "b": 1,
        "kb": 10**3,
        "mb": 10**6,
        "gb": 10**9,
        "kib": 2**10,
        "mib": 2**20,
        "gib": 2**30,
        "tib": 2**40,
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", value.strip())
        if not match or match[2].lower() not in self.UNITS:
            self.fail(f"{value!r} is not a size; write 4GiB, 512MiB or a number of bytes", param, ctx)
        return int(float(match[1]) * self.UNITS[match[2].lower()])


def progress(is_quiet: bool) -> Any:
    """The progress bars, or silence."""
    from porting.progress import bar, silent

    return silent if is_quiet else bar


def emit(result: dict[str, Any], as_json_: bool, text: str) -> None:
    """The result on stdout, as one JSON object or as text. Names in it are data: whatever could drive a terminal is escaped."""
    write_out(json.dumps(result, indent=1, sort_keys=True) if as_json_ else harmless(text))


def emit_verdict(
    verdict: Verdict, as_json_: bool, junit_path: Path | None, more: Sequence[tuple[Path, Callable[[Verdict], bytes]]] = ()
) -> int:
    """A verdict on stdout, in JUnit and in whatever else it is to be written as; returns the exit code, which cannot be dropped.

    A file that cannot be written is said after the verdict, and a pass then exits 2: the CI that asked for it has nothing.
    """
    from porting.junit import to_junit
    from porting.port_staging import os_errors

    unwritten: PortingError | None = None
    for path, form in (*([(junit_path, to_junit)] if junit_path is not None else []), *more):
        try:
            with os_errors(path):
                path.write_bytes(form(verdict))
        except PortingError as error:
            unwritten = error
    if as_json_:
        write_out(verdict.to_json())
    else:
        from porting.render import verdict_text

        write_out(harmless(verdict_text(verdict)))
    if unwritten is not None:
        click.echo(f"error: {harmless(str(unwritten))}", err=True)
        return verdict.exit_code or unwritten.exit_code
    return verdict.exit_code


def require_junit(path: Path | None, option: str = "--junit") -> None:
    """Refuse a report that cannot be written, or would take the place of anything but an old one, before the work. raises: UsageError, InputError"""
    if path is not None:
        from porting.outputs import require_report

        require_report(path, option)


def write_out(text: str) -> None:
    """A line on stdout, see `write_stdout`. A reader that has gone changes neither what was found nor the exit code."""
    write_stdout(f"{text}\n")


def write_stdout(text: str) -> bool:
    """Whether anybody still reads. raises: OutOfResources (stdout is a file on a full disk), InputError"""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer would fail once more at exit
        if isinstance(error, BrokenPipeError):
            return False
        kind = OutOfResources if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else InputError
        raise kind(f"the output cannot be written: {error.strerror}", where="stdout") from error
    return True


def harmless(text: str) -> str:
    """Text whose control characters cannot drive a terminal: all but newlines as escapes."""
    from porting.verdict import printable

    return "\n".join(printable(line, limit=len(line)) for line in text.split("\n"))


def size(count: float) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
