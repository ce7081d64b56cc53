"""Arrays from a file, through a port, into a file."""

from __future__ import annotations

from pathlib import Path

from porting.npz import read_npz, write_npz
from porting.outputs import require_new_file
from porting.port_staging import os_errors
from porting.session import load


def run_file(port: str | Path, inputs: Path, output: Path, device: str = "cpu", *, force: bool = False) -> dict[str, list[int]]:
    """Run once on the arrays of an .npz.

    returns: output name -> shape, as written
    raises:  InputError (file, names, dtypes, shapes), UsageError (output exists), DeviceUnavailable, OutOfResources (disk full)
    """
    require_new_file(output, force)
    feeds = read_npz(inputs)
    with load(port, device) as session:
        outputs = session.run(feeds)
    with os_errors(output):
        write_npz(output, outputs)
    return {name: list(value.shape) for name, value in outputs.items()}
