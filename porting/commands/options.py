"""Options and output that every command shares."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from porting.errors import InputError, OutOfResources, PortingError

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
    help="fp32, int8, int4 (weights), or source for the checkpoint's own.  [default: fp32]",
)
device = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="D",
    help="name[:index][,option=value]..., as in cuda:0 or cpu,threads=2. Never falls back; cuda-or-cpu asks for either.",
)
weights = click.option(
    "--weights",
    type=click.Choice(["link", "copy"]),
    default="link",
    show_default=True,
    help="Hard-link the source's files where their bytes can be used as they are, or copy always.",
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
    help="An .npz of token ids, one (batch, sequence) array per case, in place of the built-in texts.",
)


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


def emit_verdict(verdict: Verdict, as_json_: bool, junit_path: Path | None) -> int:
    """A verdict on stdout and in JUnit; returns the exit code, which cannot be dropped.

    A JUnit file that cannot be written is said after the verdict, and a pass then exits 2: the CI that asked for it has nothing.
    """
    unwritten: PortingError | None = None
    if junit_path is not None:
        try:
            write_junit(verdict, junit_path)
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


def write_junit(verdict: Verdict, path: Path) -> None:
    """raises: InputError, OutOfResources"""
    from porting.junit import to_junit
    from porting.port_staging import os_errors

    with os_errors(path):
        path.write_bytes(to_junit(verdict))


def require_junit(path: Path | None) -> None:
    """Refuse a --junit that cannot be written, before the work. raises: UsageError, InputError"""
    if path is not None:
        from porting.outputs import require_writable

        require_writable(path, "--junit")


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
