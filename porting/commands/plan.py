"""porting plan SOURCE --target T"""

from __future__ import annotations

import click

from . import options


@click.command()
@options.source_options
@options.target
@options.precision
@options.weights
@options.as_json
@options.quiet
def command(source: options.Named, target: str, precision: str | None, weights: str | None, as_json: bool, quiet: bool) -> int:
    """Forecast the conversion of SOURCE from its headers alone: peak memory, disk, time, and a lower bound of cards.

    Refuses what `convert` would refuse. The figures are forecasts; the time is for two cores and a warm page cache.
    """
    from porting.forecast import plan

    kept, weights_file = options.split_weights(weights)
    with source.opened(weights_file) as opened:
        forecast = plan(opened, target, precision, weights=kept)
    cards = forecast["cards_at_least"]
    memory = forecast["device_memory_bytes"]
    lines = [
        f"{forecast['source']} for {forecast['target']} in {forecast['precision']}",
        f"  weights          {options.size(forecast['weights_bytes'])}",
        f"  written to disk  {options.size(forecast['written_bytes'])} (linked: {options.size(forecast['linked_bytes'])})",
        f"  peak memory      {options.size(forecast['peak_ram_bytes'])}",
        f"  time             {forecast['seconds']} s",
        f"  cards            {'not known' if cards is None else f'at least {cards} of {options.size(memory)}, weights alone'}",
        *[f"  note: {note}" for note in forecast["notes"]],
    ]
    options.emit(forecast, as_json, "\n".join(lines))
    return 0
