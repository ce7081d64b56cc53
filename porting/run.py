"""Arrays from a file, through a port, into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from porting.npz import read_npz, write_npz
from porting.outputs import require_new_file
from porting.port_staging import os_errors
from porting.session import load

SCHEMA = "porting.run/1"


def run_file(port: str | Path, inputs: Path, output: Path, device: str = "cpu", *, force: bool = False) -> dict[str, Any]:
    """Run once on the arrays of an .npz.

    returns: a JSON-able object: device (the one that ran), output (the file), outputs (name -> shape, as written)
    raises:  InputError (file, names, dtypes, shapes), UsageError (output exists), DeviceUnavailable, OutOfResources (disk full)
    """
    require_new_file(output, force)
    feeds = read_npz(inputs)
    with load(port, device) as session:
        outputs = session.run(feeds)
        ran_on = str(session.device)
    with os_errors(output):
        write_npz(output, outputs)
    return {
        "schema": SCHEMA,
        "device": ran_on,
        "output": str(output),
        "outputs": {name: list(value.shape) for name, value in outputs.items()},
    }
