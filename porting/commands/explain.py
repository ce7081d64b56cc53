"""porting explain CODE|LOG"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from porting.errors import UsageError

from . import options


@click.command()
@click.argument("what", metavar="CODE|LOG")
@click.option("--lang", type=click.Choice(["en", "zh"]), default="en", show_default=True, help="English or Chinese.")
@options.as_json
@options.quiet
def command(what: str, lang: str, as_json: bool, quiet: bool) -> int:
    """What a code of Ascend's tools means, its likely cause and what to do: E10016, EZ3003, 507011, ACL_ERROR_RT_CONTEXT_NULL, EI0006.

    Of a log (of atc, a plog, a program's output; - for stdin) all codes in it, the first cause first, unknown ones listed. Offline.
    It says what is documented and what is a guess.
    """
    from porting.ascend.explained_text import LABELS, explanation_text, report_text
    from porting.ascend.explanations import explain_code, explain_log, looks_like_code

    if what == "-":
        report = explain_log(sys.stdin.buffer, lang, "stdin")
    elif Path(what).is_file() or not looks_like_code(what):
        if not Path(what).exists():
            raise UsageError(
                f"{what!r} is neither a file nor spelled like a code",
                where="porting explain",
                next="codes look like E10016, EZ3003, W11001, 507011",
            )
        report = explain_log(Path(what), lang)
    else:
        told = explain_code(what, lang)
        found = {"schema": "porting.explain/1", "of": "code", **asdict(told)}
        options.emit(found, as_json, f"{explanation_text(told, lang)}\n{LABELS[lang]['hardware']}")
        return 0
    options.emit(report.to_dict(), as_json, report_text(report, lang))
    return 0
