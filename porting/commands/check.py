"""porting check SOURCE --target SOC"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options

if TYPE_CHECKING:
    from porting.verdict import Verdict

LEVELS = {"blocks": "error", "mended": "note", "noted": "warning"}


@click.command()
@options.source_options
@options.weights_file
@click.option(
    "--target",
    default="ascend",
    show_default=True,
    metavar="SOC",
    help="An Ascend soc_version such as Ascend310P3; ascend stands for Ascend910B3.",
)
@click.option(
    "-p",
    "--precision",
    default=None,
    metavar="P",
    help="What it will be compiled in: fp32, fp16, bf16 or w8a8.  [default: fp32, or fp16 where the SoC multiplies nothing else]",
)
@options.cann
@click.option(
    "--sarif",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the findings as SARIF 2.1.0, for a code host or an editor; replaces an old file.",
)
@options.inputs
@options.preprocessing
@options.junit
@options.as_json
@options.quiet
def command(
    source: options.Named,
    weights: str | None,
    target: str,
    precision: str | None,
    cann: str | None,
    sarif: Path | None,
    inputs: tuple[Path, ...],
    preprocessing: Path | None,
    junit: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Will SOURCE port to an Ascend SoC? Judged against the vendor's documents and sources: no device, no CANN, and no weight is read.

    Names each node that they refuse or compute wrongly, the rule with its source, and the rewrite that mends it or why there is none.
    Exit 0 when it is portable, after rewrites too; 1 when it is blocked. Nothing here ever ran on Ascend.
    """
    options.require_junit(junit)
    options.require_junit(sarif, "--sarif")
    from porting.ascend.checking import check

    with options.numbers(preprocessing, inputs) as read, source.opened(weights, read) as found:
        verdict = check(found, target, precision, cann=cann, preprocessing=preprocessing, progress=options.progress(quiet))
    return options.emit_verdict(verdict, as_json, junit, [(sarif, sarif_of)] if sarif is not None else [])


def sarif_of(verdict: Verdict) -> bytes:
    from porting.sarif import SarifResult, SarifRule, to_sarif

    findings = verdict.details["findings"]
    rules = [
        SarifRule(
            f["rule"], f["says"], {k: f[k] for k in ("effect", "code", "confidence", "source", "since", "until", "rewrite")}
        )
        for f in findings
    ]
    results = [SarifResult(f["rule"], LEVELS[f["status"]], _message(f), f["node"]) for f in findings]
    return to_sarif(rules, results, verdict.source)


def _message(finding: dict[str, str]) -> str:
    helps = f"mended by {finding['rewrite']}" if finding["status"] == "mended" else finding["why"] or ""
    return "; ".join(part for part in (finding["says"], finding["detail"], helps) if part)
