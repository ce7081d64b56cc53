"""porting check SOURCE --target SOC"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options

if TYPE_CHECKING:
    from porting.ascend.gear_requests import Request
    from porting.verdict import Verdict

NOT_ENOUGH = "NOT_ENOUGH.txt"  # beside the files of a forecast that does not pass with them: their formats have no comments
LEVELS = {"blocks": "error", "mended": "note", "noted": "warning"}


@click.command()
@options.source_options
@options.cuts
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
    help="What it will be compiled in: fp32, fp16, bf16 or w8a8, or source for what the model is in itself.  "
    "[default: fp32, or fp16 where the SoC multiplies nothing else]",
)
@options.cann
@options.shapes
@click.option(
    "--device-memory",
    type=options.Size(),
    metavar="SIZE",
    help="Memory of the card, as in 44GiB: a SoC name does not fix it. More than that, as a lower bound, is a check that fails.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    help="Of a language model or an encoder: what overflows in fp16 on this text, as --inputs does for arrays; again for more.",
)
@click.option(
    "--write-exceptions",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="With --inputs or --text: write the files that keep nodes in fp32 (keep_dtype.cfg and the like) into a new folder.",
)
@click.option(
    "--sarif",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the findings as SARIF 2.1.0, for a code host or an editor; replaces an old file.",
)
@click.option(
    "--facts",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What `porting probe` saw of this chip: rules that it refutes do not block, what it found worse does. Of the simulator: only told.",
)
@click.option(
    "--facts-key",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PUBLIC_KEY",
    help="A PEM file with the Ed25519 key of whoever made the facts; exit 2 when they are not signed with it.  [default: integrity only]",
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
    gears: Request | None,
    device_memory: int | None,
    texts: tuple[str, ...],
    write_exceptions: Path | None,
    sarif: Path | None,
    facts: Path | None,
    facts_key: Path | None,
    inputs: tuple[Path, ...],
    preprocessing: Path | None,
    junit: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Will SOURCE port to an Ascend SoC? Judged against the vendor's documents and sources: no device and no CANN.

    Names each node that they refuse or compute wrongly, the rule with its source, and the rewrite that mends it or why there is none; and how
    much memory it takes at least. No weight is read for that. With --inputs or --text the model runs on the CPU, to forecast what overflows or
    is lost in fp16 or bf16, and which nodes have to stay in fp32.

    Exit 0 when it is portable, after rewrites too; 1 when it is blocked. Nothing here ever ran on Ascend; --facts says what did.
    """
    options.require_junit(junit)
    options.require_junit(sarif, "--sarif")
    require_new(write_exceptions, bool(inputs or texts))
    from porting.ascend.portability import check

    with options.numbers(preprocessing, inputs) as read, source.opened(weights, read) as found:
        verdict = check(
            found,
            target,
            precision,
            cann=cann,
            gears=gears,
            device_memory=device_memory,
            inputs=read,
            text=texts,
            preprocessing=preprocessing,
            facts=facts,
            facts_key=facts_key,
            progress=options.progress(quiet),
        )
    if write_exceptions is not None:
        click.echo(write_files(verdict, write_exceptions), err=True)
    return options.emit_verdict(verdict, as_json, junit, [(sarif, sarif_of)] if sarif is not None else [])


def require_new(folder: Path | None, asked: bool) -> None:
    """raises: UsageError for a folder that is there, or without anything to make exceptions from"""
    from porting.errors import UsageError

    if folder is not None and not asked:
        raise UsageError("nothing to forecast from", where="--write-exceptions", next="give --inputs x.npz or --text")
    if folder is not None and (folder.exists() or not folder.parent.is_dir()):
        why = "already exists" if folder.exists() else "its parent is no folder"
        raise UsageError(f"{folder}: {why}", where="--write-exceptions", next="name a new folder")


def write_files(verdict: Verdict, folder: Path) -> str:
    """The files of the forecast, none where nothing has to be kept; says what was written, and whether that is enough."""
    from porting.port_staging import os_errors
    from porting.verdict import printable

    forecast = verdict.details["forecast"]
    files = dict(forecast["files"]) if isinstance(forecast, dict) else {}
    said = f"{folder}: {', '.join(files) or 'no file'}"
    if not isinstance(forecast, dict):
        said += f"; forecast: {forecast}"
    elif forecast["broken"]:
        broken = "; ".join(
            f"{rule}: {', '.join(printable(n, 60) for n in names)}" for rule, names in forecast["broken"].items()
        )
        files[NOT_ENOUGH] = f"With these files alone the forecast of {forecast['first']['precision']} does not pass. {broken}\n"
        said += f"; not enough by itself: {printable(broken, 400)}"
    with os_errors(folder):
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    return said


def sarif_of(verdict: Verdict) -> bytes:
    from porting.ascend.exceptions import INTEGERS, OVERFLOW, SAYS
    from porting.ascend.half_formats import FORMATS
    from porting.sarif import SarifResult, SarifRule, to_sarif

    findings = verdict.details["findings"]
    rules = [
        SarifRule(
            f["rule"], f["says"], {k: f[k] for k in ("effect", "code", "confidence", "source", "since", "until", "rewrite")}
        )
        for f in findings
    ]
    results = [SarifResult(f["rule"], LEVELS[f["status"]], _message(f), f["node"]) for f in findings]
    forecast = verdict.details["forecast"]
    if isinstance(forecast, dict):
        last = forecast["with_exceptions"] or forecast["first"]
        precision = last["precision"]
        exact = 2 ** FORMATS[precision].bits
        rules += [
            SarifRule(rule, says.format(precision=precision, exact=exact), {"confidence": "emulated on a CPU"})
            for rule, says in SAYS.items()
        ]
        broken = {name: rule for rule in (INTEGERS, OVERFLOW) for name in forecast["broken"].get(rule, ())}
        results += [
            SarifResult(broken.get(name, OVERFLOW), "error" if name in broken else "warning", f"not kept in fp32: {why}", name)
            for name, why in forecast["not_kept"].items()
        ]
        results += [
            SarifResult(rule, "error", f"output {name}: {SAYS[rule].format(precision=precision, exact=exact)}", name)
            for rule, names in forecast["broken"].items()
            if rule not in (INTEGERS, OVERFLOW)
            for name in names
        ]
        kept = "kept in fp32: it would overflow, lose all, or round what comes out away"
        results += [SarifResult(INTEGERS if n in last["carry_integers"] else OVERFLOW, "note", kept, n) for n in last["kept"]]
    return to_sarif(rules, results, verdict.source, verdict.evidence_level)


def _message(finding: dict[str, str]) -> str:
    helps = f"mended by {finding['rewrite']}" if finding["status"] == "mended" else finding["why"] or ""
    return "; ".join(part for part in (finding["says"], finding["detail"], helps) if part)
