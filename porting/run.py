"""Arrays from a file, through a port, into a file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from porting.errors import InputError, UsageError
from porting.session import load


def run_file(port: str | Path, inputs: Path, output: Path, device: str = "cpu", *, force: bool = False) -> dict[str, list[int]]:
    """Run once on the arrays of an .npz.

    returns: output name -> shape, as written
    raises:  InputError (file, names, dtypes, shapes), UsageError (output exists), DeviceUnavailable
    """
    if output.exists() and not force:
        raise UsageError(f"already exists: {output}", where="-o", next="choose another name, or --force to replace it")
    try:
        with np.load(inputs, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise ValueError("a single array, not an .npz")
            feeds = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"inputs cannot be read: {error}", where=str(inputs), next="an .npz with one array per input"
        ) from error
    with load(port, device) as session:
        outputs = session.run(feeds)
    temporary = output.with_name(f".{output.name}.new")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **outputs)
    os.replace(temporary, output)
    return {name: list(value.shape) for name, value in outputs.items()}
