"""porting port SOURCE -o PORT"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options

if TYPE_CHECKING:
    from porting.ascend.gear_requests import Request


@click.command()
@options.source_options
@options.cuts
@options.output("port")
@options.target
@options.precision
@options.cann
@options.shapes
@options.host_cpu
@options.preprocessing
@options.w8a8
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="A golden to validate against. [default: the upstream implementation, where transformers is installed]",
)
@options.device
@options.require_level
@options.inputs
@options.weights
@options.force
@options.junit
@options.as_json
@options.quiet
def command(
    source: options.Named,
    output: Path,
    target: str,
    precision: str | None,
    cann: str | None,
    gears: Request | None,
    host_cpu: str | None,
    preprocessing: Path | None,
    calibration: tuple[Path, ...],
    keep_float: tuple[str, ...],
    against: Path | None,
    device: str,
    require_level: str,
    inputs: tuple[Path, ...],
    weights: str | None,
    force: bool,
    junit: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """The main job: inspect SOURCE, convert it into a port, compare that with a reference, and give one verdict.

    The port is kept whatever the verdict, and carries it in evidence/. Comparing a quantised port needs room for its fp32 weights for a while,
    in the temporary folder (TMPDIR).
    """
    options.require_junit(junit)
    from porting.pipeline import port

    kept, weights_file = options.split_weights(weights)
    with options.numbers(preprocessing, inputs) as read, source.opened(weights_file, read) as opened:
        verdict = port(
            opened,
            output,
            target,
            precision,
            against=against,
            device=device,
            require_level=require_level,
            inputs=inputs,
            weights=kept,
            force=force,
            progress=options.progress(quiet),
            cann=cann,
            gears=gears,
            host_cpu=host_cpu,
            preprocessing=preprocessing,
            calibration=calibration,
            keep_float=keep_float,
        )
    return options.emit_verdict(verdict, as_json, junit)
