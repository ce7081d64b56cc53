"""porting inspect SOURCE"""

from __future__ import annotations

from typing import Any

import click

from . import options


@click.command()
@options.source_options
@options.weights_file
@options.as_json
@options.quiet
def command(source: options.Named, weights: str | None, as_json: bool, quiet: bool) -> int:
    """What is in SOURCE (a Hugging Face folder, a GGUF or .onnx file, or a torch program): architecture, parameters, dtypes, bytes, and what fits where.

    Reads headers only, but of a torch program, which has to be exported. Exits 2 when the checkpoint is damaged; a model that is readable and not covered is said, not refused.
    """
    from porting.inspection import inspect

    with source.opened(weights) as opened:
        found = inspect(opened)
    options.emit(found, as_json, _text(found))
    return 0


def _text(found: dict[str, Any]) -> str:
    from porting.render import table
    from porting.verdict import printable

    covered = "covered" if found["covered"] else f"NOT covered: {printable(found['reason'])}"
    lines = [
        f"{printable(found['source'])}: {printable(found['architecture'])} ({found['format']}), {covered}",
        f"{found['parameters']:,} parameters in {found['tensors']} tensors, {options.size(found['bytes'])}",
        "",
        table(
            ("stored as", "tensors", "parameters", "bytes"),
            [(d, str(v["tensors"]), f"{v['parameters']:,}", options.size(v["bytes"])) for d, v in found["dtypes"].items()],
        ),
        "",
        table(
            ("weights in", "bytes", "targets whose one device holds them"),
            [(p, options.size(b), _fits(found["fits"][p])) for p, b in found["weights_bytes"].items()],
        ),
        "",
        table(("config", "value"), [(k, str(v)) for k, v in found["config"].items()]),
        "",
        *_interface(found),
    ]
    return "\n".join(lines)


def _interface(found: dict[str, Any]) -> list[str]:
    from porting.verdict import printable

    if "inputs" not in found:
        return [f"carried over: {', '.join(found['side_files']) or 'nothing (no tokenizer)'}"]
    operators = ", ".join(f"{name} {count}" for name, count in found["operators"].items())
    lines = [*(f"input   {spec}" for spec in found["inputs"]), *(f"output  {spec}" for spec in found["outputs"])]
    fixed = found["facts"].get("constant_inputs")
    if fixed:
        lines.append(f"constants of a port, though the file lets a caller feed them: {', '.join(fixed)}")
    numbers = {name: value for name, value in found["facts"].get("constants", {}).items() if value is not None}
    if numbers:
        lines.append(f"constants of a port, numbers in the example: {', '.join(f'{k} = {v}' for k, v in numbers.items())}")
    if found["state_candidates"]:
        pairs = " ".join(f"--state {pair}" for pair in found["state_candidates"])
        lines.append(f"looks like state that a session could keep: {pairs}")
    return [printable(line, 200) for line in (*lines, f"operators: {operators}")]


def _fits(targets: list[str]) -> str:
    return f"{len(targets)}, such as {', '.join(targets[:3])}" if targets else "none"
