"""porting record SOURCE|PORT -o GOLDEN"""

from __future__ import annotations

from pathlib import Path

import click

from . import options


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@options.output("golden")
@options.device
@click.option("--level", type=click.Choice(["outputs"]), default="outputs", show_default=True, help="What is recorded.")
@options.inputs
@options.force
@options.as_json
@options.quiet
def command(
    source: Path, output: Path, device: str, level: str, inputs: Path | None, force: bool, as_json: bool, quiet: bool
) -> int:
    """Record a golden: sketches of the outputs on fixed inputs, kilobytes that a machine without SOURCE can validate against.

    A checkpoint is run by the upstream implementation (transformers, fp32, CPU), a port by its own device.
    """
    from porting.recording import record

    golden = record(source, output, device=device, level=level, inputs=inputs, force=force, progress=options.progress(quiet))
    size = output.stat().st_size
    result = {"schema": "porting.record/1", "golden": str(output), "bytes": size, "cases": sorted(golden.cases)}
    options.emit(result, as_json, f"wrote {output}: {len(golden.cases)} cases, {options.size(size)}")
    return 0
