"""porting validate PORT"""

from __future__ import annotations

from pathlib import Path

import click

from . import options


@click.command()
@click.argument("port", type=click.Path(path_type=Path))
@options.named_options(
    click.option(
        "--against",
        "source",
        metavar="SOURCE|GOLDEN|PORT",
        help="The source that the port was made from, a golden, or another port (never a pass).  [default: the port's own golden]",
    )
)
@options.cuts
@options.weights_file
@options.device
@options.inputs
@options.require_level
@options.junit
@options.as_json
@options.quiet
def command(
    port: Path,
    source: options.Named,
    weights: str | None,
    device: str,
    inputs: tuple[Path, ...],
    require_level: str,
    junit: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Compare PORT with a reference on a device: fidelity (does it compute what its precision should?) and quality (what does that
    precision cost against fp32?). The first says whether the port is right, the second whether it is good; neither stands for the other.

    Nothing is written but --junit: the evidence inside a port is what `porting port` left there. The fp32 weights of a quantised port need room
    for a while in the temporary folder (TMPDIR).
    """
    options.require_junit(junit)
    from porting.validation import validate

    verdict = validate(
        port,
        source.source,
        device,
        inputs=inputs,
        require_level=require_level,
        progress=options.progress(quiet),
        **source.options(weights),
    )
    return options.emit_verdict(verdict, as_json, junit)
