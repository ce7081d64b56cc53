"""The command line: one lazy group, one place where errors become messages and exit codes.

`porting --help` imports click and nothing else: every command's module is loaded when it is named.
"""

from __future__ import annotations

import errno
import importlib
import io
import json
import sys
import traceback
from contextlib import suppress

import click

import porting
from porting.errors import (
    EXIT_BAD_INPUT,
    EXIT_BUG,
    EXIT_CODES_HELP,
    EXIT_INTERRUPTED,
    EXIT_OUT_OF_RESOURCES,
    OutOfResources,
    PortingError,
    UsageError,
)

COMMANDS = {  # in the order of the work; the line is what `porting --help` shows
    "inspect": "What is in a checkpoint: architecture, parameters, dtypes, bytes, what fits where.",
    "plan": "Forecast memory, disk, time and cards from headers alone.",
    "convert": "Convert a checkpoint into a port.",
    "check": "Will it port to an Ascend SoC? Judged against documents and sources, on no device.",
    "probe": "What an Ascend NPU itself does with a small graph per rule; a facts file that `check` follows.",
    "compile": "Compile a port's hand-off for Ascend, where Huawei's atc is.",
    "explain": "What a code or log of Ascend's tools means, and what to do; offline, in English or Chinese.",
    "port": "The main job: inspect, convert and validate; one verdict.",
    "validate": "Compare a port with its source, another port or a golden.",
    "record": "Record a golden: what the outputs should be, in kilobytes.",
    "run": "Run a port on arrays from an .npz file.",
    "generate": "Continue a prompt with a language-model port.",
    "embed": "One vector per text with the port of an encoder.",
    "bench": "Measure latency and tokens per second, A/B in one run.",
    "doctor": "What can run here, and what to type for what is missing.",
}

SHOWN = 4000  # characters of a part of an error: twenty long tensor names; the JSON keeps it whole
SYSTEM_SAID_NO = {  # what no command has caught, and is still not our bug
    errno.ENOSPC: (EXIT_OUT_OF_RESOURCES, "the disk is full"),
    errno.EDQUOT: (EXIT_OUT_OF_RESOURCES, "the disk is full"),
    errno.ENOMEM: (EXIT_OUT_OF_RESOURCES, "out of memory"),
    errno.EMFILE: (EXIT_OUT_OF_RESOURCES, "out of file handles"),
    errno.EACCES: (EXIT_BAD_INPUT, "no permission"),
    errno.EPERM: (EXIT_BAD_INPUT, "no permission"),
    errno.EROFS: (EXIT_BAD_INPUT, "no permission"),
}


class LazyGroup(click.Group):
    """Loads a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"porting.commands.{cmd_name}").command
        command.epilog = command.epilog or EXIT_CODES_HELP
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from porting.errors import nearest

            raise click.UsageError(f"no command {args[0]!r}; {nearest(args[0], list(COMMANDS))}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    no_args_is_help=False,
    epilog=EXIT_CODES_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(porting.__version__, prog_name="porting")
def porting_command() -> None:
    """Port models from Nvidia GPUs to Huawei Ascend or CPUs, and carry the evidence along."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    arguments = sys.argv[1:] if args is None else args
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks is no reason to fail
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: list[str]) -> int:
    as_json = "--json" in arguments[: arguments.index("--") if "--" in arguments else None]
    try:
        code = porting_command.main(arguments, prog_name="porting", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except PortingError as error:
        return _report(error.exit_code, error.what, error.where, error.next, as_json)
    except click.UsageError as error:
        usage = error.ctx.command_path if error.ctx else "porting"
        return _report(2, error.format_message(), usage, f"{usage} --help", as_json)
    except click.ClickException as error:
        return _report(2, error.format_message(), "", UsageError.default_next, as_json)
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _report(EXIT_INTERRUPTED, "interrupted", "", "", as_json)
    except MemoryError:
        return _report(EXIT_OUT_OF_RESOURCES, "out of memory", "", "`porting plan` forecasts what is needed", as_json)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in SYSTEM_SAID_NO:
            code, what = SYSTEM_SAID_NO[error.errno]
            next_step = (
                OutOfResources.default_next if code == EXIT_OUT_OF_RESOURCES else "choose another place, or mend the rights"
            )
            return _report(code, f"{what}: {error.strerror}", str(error.filename or ""), next_step, as_json)
        traceback.print_exc()
        return _report(
            EXIT_BUG, "this is a bug in porting, not in your input", "", "report it with the traceback above", as_json
        )


def _report(code: int, what: str, where: str, next_step: str, as_json: bool) -> int:
    from porting.verdict import printable

    if as_json:
        error = {"exit_code": code, "what": what, "where": where, "next": next_step}
        with suppress(OSError):  # it is on stderr too
            print(json.dumps({"schema": "porting.error/1", "verdict": "error", "error": error}), flush=True)
    lines = [f"error: {printable(what, SHOWN)}"]
    lines += [f"  where: {printable(where, SHOWN)}"] if where else []
    lines += [f"  next:  {printable(next_step, SHOWN)}"] if next_step else []
    with suppress(OSError):
        print("\n".join(lines), file=sys.stderr, flush=True)
    return code
