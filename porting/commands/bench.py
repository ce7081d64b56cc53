"""porting bench PORT"""

from __future__ import annotations

from pathlib import Path

import click

from . import options


@click.command()
@click.argument("port", type=click.Path(path_type=Path))
@options.device
@click.option(
    "--compare", metavar="PORT", type=click.Path(path_type=Path), help="A second port, measured in turn with the first."
)
@click.option("--prompt-tokens", default=128, show_default=True)
@click.option("--new-tokens", default=32, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@options.as_json
@options.quiet
def command(
    port: Path, device: str, compare: Path | None, prompt_tokens: int, new_tokens: int, rounds: int, as_json: bool, quiet: bool
) -> int:
    """Measure PORT: load time, prefill and decode speed, memory. Medians over rounds; with --compare a ratio with its spread."""
    from porting.bench import bench
    from porting.render import table

    report = bench(
        port,
        device,
        compare=compare,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        progress=options.progress(quiet),
    )
    rows = [
        (
            m["name"],
            m["precision"],
            f"{m['load_seconds']:.2f} s",
            f"{m['prefill_tokens_per_second']:.0f}/s",
            f"{m['decode_tokens_per_second']:.1f}/s",
            f"{m['decode_ms']['p50']:.1f} / {m['decode_ms']['p90']:.1f} ms",
        )
        for m in (report["port"], report.get("compare"))
        if m
    ]
    lines = [table(("port", "precision", "load", "prefill", "decode", "p50 / p90"), rows)]
    if compare is not None:
        r = report["decode_speed_ratio"]
        lines.append(f"decode speed, first to second: {r['median']}x ({r['low']} to {r['high']})")
    lines.append(f"{report['policy']}; peak memory {options.size(report['peak_rss_bytes'])}")
    options.emit(report, as_json, "\n".join(lines))
    return 0
