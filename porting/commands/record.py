"""porting record SOURCE|PORT -o GOLDEN"""

from __future__ import annotations

from pathlib import Path

import click

from . import options


@click.command()
@options.source_options
@options.cuts
@options.weights_file
@options.output("golden")
@options.device
@click.option("--level", type=click.Choice(["outputs"]), default="outputs", show_default=True, help="What is recorded.")
@options.inputs
@options.force
@options.as_json
@options.quiet
def command(
    source: options.Named,
    weights: str | None,
    output: Path,
    device: str,
    level: str,
    inputs: tuple[Path, ...],
    force: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Record a golden: sketches of the outputs on fixed inputs, kilobytes that a machine without SOURCE can validate against.

    A checkpoint is run by the upstream implementation (transformers, fp32, CPU), an .onnx file by plain onnxruntime, a torch program by torch,
    a port by its own device.
    """
    from porting.recording import record

    settings = {"device": device, "level": level, "inputs": inputs, "force": force, "progress": options.progress(quiet)}
    if source.is_port:
        golden = record(source.source, output, **settings)
    else:
        with source.opened(weights, inputs) as opened:
            golden = record(opened, output, **settings)
    size = output.stat().st_size
    result = {"schema": "porting.record/1", "golden": str(output), "bytes": size, "cases": sorted(golden.cases)}
    options.emit(result, as_json, f"wrote {output}: {len(golden.cases)} cases, {options.size(size)}")
    return 0
