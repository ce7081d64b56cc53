"""porting compile PORT"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options

if TYPE_CHECKING:
    from porting.ascend.compiling import Compiled


@click.command()
@click.argument("port", type=click.Path(path_type=Path))
@click.option("--handoff", metavar="NAME", help="Which of targets/, where the port has several.")
@click.option(
    "--record", is_flag=True, help="Run nothing: record the model.om that build.sh made elsewhere, in a folder copied back."
)
@click.option("--lang", type=click.Choice(["en", "zh"]), default="en", show_default=True, help="Of what explains the log.")
@options.as_json
@options.quiet
def command(port: Path, handoff: str | None, record: bool, lang: str, as_json: bool, quiet: bool) -> int:
    """Compile a port's hand-off for Ascend where Huawei's atc is: runs its build.sh, explains the codes in the log, records model.om.

    The compiler's output goes to stderr. Exit 0 with a compiled model, 1 when atc makes none, 3 when there is no atc on this machine: then
    the folder is to be copied to one that has it. A compiled model has not run: that takes the chip.
    """
    from porting.ascend.compiling import compile_port

    def shown(line: str) -> None:
        click.echo(options.harmless(line), err=True)

    compiled = compile_port(port, handoff, record=record, lang=lang, on_line=(lambda line: None) if quiet else shown)
    options.emit(compiled.to_dict(), as_json, _text(compiled, lang))
    return 0 if compiled.ok else 1


def _text(compiled: Compiled, lang: str) -> str:
    from porting.ascend.explained_text import report_text

    handoff, build = compiled.handoff, compiled.handoff.build
    if compiled.ok and build is not None:
        files = [f"  {e['path']}  {options.size(e['size'])}  sha256 {e['sha256']}" for e in build["files"]]
        return "\n".join([f"COMPILED {handoff.name}: {build['om']}; it was not run on hardware", *files])
    lines = [f"FAIL {handoff.name}: {compiled.reason}"]
    if compiled.report is not None:
        lines += ["", report_text(compiled.report, lang)]
    return "\n".join(lines)
