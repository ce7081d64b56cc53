"""The command line: one lazy group, one place where errors become messages and exit codes.

`porting --help` imports click and nothing else: every command's module is loaded when it is named.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

import click

import porting
from porting.errors import EXIT_BUG, EXIT_CODES_HELP, EXIT_INTERRUPTED, EXIT_OUT_OF_RESOURCES, PortingError

COMMANDS = {  # in the order of the work; the line is what `porting --help` shows
    "inspect": "What is in a checkpoint: architecture, parameters, dtypes, bytes, what fits where.",
    "plan": "Forecast memory, disk, time and cards from headers alone.",
    "convert": "Convert a checkpoint into a port.",
    "port": "The main job: inspect, convert and validate; one verdict.",
    "validate": "Compare a port with its source, another port or a golden.",
    "record": "Record a golden: what the outputs should be, in kilobytes.",
    "run": "Run a port on arrays from an .npz file.",
    "generate": "Continue a prompt with a language-model port.",
    "bench": "Measure latency and tokens per second, A/B in one run.",
    "doctor": "What can run here, and what to type for what is missing.",
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
    cls=LazyGroup, epilog=EXIT_CODES_HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(porting.__version__, prog_name="porting")
def porting_command() -> None:
    """Port models from Nvidia GPUs to Huawei Ascend or CPUs, and carry the evidence along."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    arguments = sys.argv[1:] if args is None else args
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    try:
        code = porting_command.main(arguments, prog_name="porting", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except PortingError as error:
        return _report(error.exit_code, error.what, error.where, error.next, as_json)
    except click.UsageError as error:
        usage = error.ctx.command_path if error.ctx else "porting"
        return _report(2, error.format_message(), usage, f"{usage} --help", as_json)
    except click.ClickException as error:
        return _report(2, error.format_message(), "", "", as_json)
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _report(EXIT_INTERRUPTED, "interrupted", "", "", as_json)
    except MemoryError:
        return _report(EXIT_OUT_OF_RESOURCES, "out of memory", "", "`porting plan` forecasts what is needed", as_json)
    except BrokenPipeError:  # the reader of our output has gone; nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        return _report(
            EXIT_BUG, "this is a bug in porting, not in your input", "", "report it with the traceback above", as_json
        )


def _report(code: int, what: str, where: str, next_step: str, as_json: bool) -> int:
    from porting.verdict import printable

    if as_json:
        error = {"exit_code": code, "what": what, "where": where, "next": next_step}
        print(json.dumps({"schema": "porting.error/1", "verdict": "error", "error": error}))
    lines = [f"error: {printable(what)}"]
    lines += [f"  where: {printable(where)}"] if where else []
    lines += [f"  next:  {printable(next_step)}"] if next_step else []
    print("\n".join(lines), file=sys.stderr)
    return code
