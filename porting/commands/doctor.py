"""porting doctor"""

from __future__ import annotations

import click

from . import options


@click.command()
@options.as_json
@options.quiet
def command(as_json: bool, quiet: bool) -> int:
    """What can run here: versions, devices, memory, and for everything missing the command to type. Exits 1 when it finds a problem."""
    from porting.doctor import doctor, doctor_text

    found = doctor()
    options.emit(found, as_json, doctor_text(found))
    return 1 if found["problems"] else 0
