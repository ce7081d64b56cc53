"""porting convert SOURCE -o PORT"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
@click.option("--to", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="Form of the result.")
@click.option(
    "--max-ram", type=options.Size(), metavar="SIZE", help="Refuse to start when the forecast is above this, as in 4GiB."
)
@options.weights
@options.inputs
@click.option("--resume", is_flag=True, help="Go on where a run that was cut short stopped; the result has identical bytes.")
@click.option("--stop-after", metavar="PASS", help="End with this pass, to find by bisection which one changes an answer.")
@options.force
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
    to: str,
    max_ram: int | None,
    weights: str | None,
    inputs: tuple[Path, ...],
    resume: bool,
    stop_after: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Convert SOURCE (a Hugging Face folder, a GGUF or .onnx file, or a torch program) into a port, in fixed memory.

    Every tensor of the checkpoint is used, or named as dropped with a reason; anything else is refused. Nothing is compared here: `validate`
    does that, and `port` does both.
    """
    from porting.conversion import convert
    from porting.pipeline import constant_inputs, missing_weights

    kept, weights_file = options.split_weights(weights)
    with options.numbers(preprocessing, inputs) as read, source.opened(weights_file, read) as opened:
        port = convert(
            opened,
            output,
            target,
            precision,
            weights=kept,
            max_ram=max_ram,
            force=force,
            resume=resume,
            stop_after=stop_after,
            progress=options.progress(quiet),
            cann=cann,
            gears=gears,
            host_cpu=host_cpu,
            preprocessing=preprocessing,
            calibration=calibration,
            keep_float=keep_float,
        )
    m = port.manifest
    result = {
        "schema": "porting.convert/1",
        "port": str(port.path),
        **{k: m[k] for k in ("architecture", "target", "precision")},
    }
    result |= {"tensors_used": len(m["tensors"]["used"]), "tensors_dropped": m["tensors"]["dropped"], "weights": m["weights"]}
    result["passes"] = m["passes"]
    said = missing_weights(port) | constant_inputs(port)
    result |= said
    held = m["weights"]
    lines = [
        f"wrote {port.path}: {m['architecture']} for {m['target']} in {m['precision']}",
        *for_the_compiler(m.get("ascend")),
        f"  tensors  {len(m['tensors']['used'])} used, {len(m['tensors']['dropped'])} dropped",
        f"  weights  {options.size(held['written_bytes'])} written, {options.size(held['linked_bytes'])} linked",
        *[f"  NOT in the weights file, left as the factory made it: {name}" for name in said.get("weights_missing", [])],
        *[f"  a constant of the port, no input: {name}" for name in said.get("constant_inputs", [])],
        *[f"  not linked: {name}: {reason}" for name, reason in held["not_linked"].items()],
        f"  next: porting validate {port.path} {source.reference(weights_file)}",
    ]
    options.emit(result, as_json, "\n".join(lines))
    return 0


def for_the_compiler(about: dict[str, Any] | None) -> list[str]:
    """What the graph of an Ascend target will be compiled in, and what nobody has looked at yet."""
    if about is None:
        return []
    return [
        f"  compiled in {about['precision']}: {about['precision_mode']}",
        "  NOT compared with its source"
        + ("" if about["precision_mode"].endswith("=origin") else f", and what overflows in {about['precision']} not forecast")
        + ": `porting port` does that",
    ]
