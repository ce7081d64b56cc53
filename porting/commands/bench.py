"""porting bench PORT"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from porting.errors import UsageError

from . import options


@click.command()
@click.argument("port", type=click.Path(path_type=Path))
@options.device
@click.option(
    "--compare",
    metavar="PORT|FILE.onnx",
    type=click.Path(path_type=Path),
    help="A second port, or the untouched .onnx file in plain onnxruntime, measured in turn with the first.",
)
@click.option("--prompt-tokens", default=128, show_default=True, help="Of a language model.")
@click.option("--new-tokens", default=32, show_default=True, help="Of a language model.")
@click.option("--rounds", type=int, help="Unless given 5 for a language model, 15 to 200 for any other.")
@click.option(
    "--size", "sizes", metavar="NAME=N", multiple=True, help="Size of a free dimension of the inputs, such as batch=1."
)
@options.as_json
@options.quiet
def command(
    port: Path,
    device: str,
    compare: Path | None,
    prompt_tokens: int,
    new_tokens: int,
    rounds: int | None,
    sizes: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> int:
    """Measure PORT: load time and memory; prefill and decode speed of a language model, one run of any other on generated inputs.

    Medians over rounds; with --compare a ratio with its spread, above 1 where PORT is the quicker one.
    """
    from porting.bench import bench

    report = bench(
        port,
        device,
        compare=compare,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        sizes=_sizes(sizes),
        progress=options.progress(quiet),
    )
    options.emit(report, as_json, _language_model(report) if "decode_ms" in report["port"] else _graph(report))
    return 0


def _sizes(given: tuple[str, ...]) -> dict[str, int]:
    """raises: UsageError"""
    sizes: dict[str, int] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        if not name or not (number.isascii() and number.isdecimal()) or name in sizes:
            raise UsageError(f"not a size: {text!r}", where="--size", next="write --size batch=1, once for each dimension")
        sizes[name] = int(number)
    return sizes


def _language_model(report: dict[str, Any]) -> str:
    from porting.render import table

    rows = [
        (
            m["name"],
            m["precision"],
            f"{m['load_seconds']:.2f} s",
            f"{m['prefill_tokens_per_second']:.0f}/s",
            f"{m['decode_tokens_per_second']:.1f}/s",
            f"{m['decode_ms']['p50']:.1f} / {m['decode_ms']['p90']:.1f} ms",
        )
        for m in _sides(report)
    ]
    lines = [table(("port", "precision", "load", "prefill", "decode", "p50 / p90"), rows)]
    if "compare" in report:
        r = report["decode_speed_ratio"]
        lines.append(f"decode speed, first to second: {r['median']}x ({r['low']} to {r['high']})")
    return "\n".join([*lines, _foot(report)])


def _graph(report: dict[str, Any]) -> str:
    from porting.render import table

    rows = [
        (
            m["name"],
            m["precision"],
            f"{m['load_seconds']:.2f} s",
            f"{m['run_ms']['p50']:.3f} / {m['run_ms']['p90']:.3f} ms",
            f"{m['runs_per_second']:.1f}/s",
        )
        for m in _sides(report)
    ]
    inputs = ", ".join(f"{name} {shape}" for name, shape in report["inputs"].items())
    lines = [table(("port", "precision", "load", "p50 / p90", "runs"), rows), options.harmless(f"inputs: {inputs}")]
    if "compare" in report:
        r = report["run_speed_ratio"]
        lines.append(f"speed, first to second: {r['median']}x ({r['low']} to {r['high']})")
    return "\n".join([*lines, _foot(report)])


def _sides(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [m for m in (report["port"], report.get("compare")) if m]


def _foot(report: dict[str, Any]) -> str:
    level = report["evidence_level"]
    shown = f"{level}: these times say nothing of an NPU's" if level != "hardware" else level
    return f"{report['policy']}; peak memory {options.size(report['peak_rss_bytes'])}\nevidence: {shown}"
