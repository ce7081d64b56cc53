"""porting run PORT --input x.npz -o y.npz"""

from __future__ import annotations

from pathlib import Path

import click

from . import options


@click.command()
@click.argument("port", type=click.Path(path_type=Path))
@click.option("--input", "input_path", required=True, type=click.Path(path_type=Path), help="An .npz with one array per input.")
@options.output("npz")
@options.device
@options.force
@options.as_json
@options.quiet
def command(port: Path, input_path: Path, output: Path, device: str, force: bool, as_json: bool, quiet: bool) -> int:
    """Run PORT once on the arrays of an .npz file and write its outputs to another.

    A model with state starts from an empty one.
    """
    from porting.run import run_file

    result = run_file(port, input_path, output, device, force=force)
    listed = ", ".join(f"{name} {shape}" for name, shape in result["outputs"].items())
    options.emit(result, as_json, f"wrote {output}: {listed}")
    return 0
