"""Arrays from a file, through a port, into a file.

An .npz has arrays alone. Text is an array of unicode strings; a sequence `x` is `x/length` (one integer, may be left out in inputs unless
it is 0) and `x/0`, `x/1`, ...
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from porting.dtypes import STRING, sequence_element
from porting.errors import InputError
from porting.npz import read_npz, write_npz
from porting.outputs import require_new_file
from porting.port_staging import os_errors
from porting.session import load
from porting.types import TensorSpec
from porting.verdict import printable

SCHEMA = "porting.run/1"


def run_file(port: str | Path, inputs: Path, output: Path, device: str = "cpu", *, force: bool = False) -> dict[str, Any]:
    """Run once on the arrays of an .npz.

    returns: a JSON-able object: device (the one that ran), output (the file), outputs (name -> shape, of a sequence a list of shapes)
    raises:  InputError (file, names, dtypes, shapes), UsageError (output exists), DeviceUnavailable, OutOfResources (disk full)
    """
    require_new_file(output, force)
    arrays = read_npz(inputs, text=True)
    with load(port, device) as session:
        outputs = session.run(feeds_from_arrays(session.inputs, arrays, str(inputs)))
        ran_on = str(session.device)
    with os_errors(output):
        write_npz(output, arrays_from_outputs(outputs))
    return {
        "schema": SCHEMA,
        "device": ran_on,
        "output": str(output),
        "outputs": {
            name: [list(v.shape) for v in value] if isinstance(value, list) else list(value.shape)
            for name, value in outputs.items()
        },
    }


def feeds_from_arrays(specs: Sequence[TensorSpec], arrays: Mapping[str, np.ndarray], where: str) -> dict[str, Any]:
    """The arrays of a file as feeds: those of a sequence gathered into a list.

    where:  the file, for messages
    raises: InputError for text where no input takes it, and for a sequence with a gap, or of another length than it says
    """
    takes_text = {spec.name for spec in specs if STRING in spec.dtype}
    for name, array in arrays.items():
        if array.dtype.kind == "O" and not takes_text & {name, name.rpartition("/")[0]}:
            raise InputError(
                f"array {printable(name)!r} is text, which is no number",
                where=where,
                next="give numbers; only string inputs take text",
            )
    feeds: dict[str, Any] = dict(arrays)
    for spec in specs:
        if sequence_element(spec.dtype) is None:
            continue
        parts = {name: feeds.pop(name) for name in arrays if re.fullmatch(re.escape(spec.name) + r"/(\d+|length)", name)}
        said = parts.pop(f"{spec.name}/length", None)
        count = len(parts) if said is None else int(said) if said.shape == () and said.dtype.kind in "iu" else -1
        wanted = [f"{spec.name}/{i}" for i in range(len(parts))]
        if count != len(parts) or set(wanted) != set(parts):
            raise InputError(
                f"the arrays of sequence {spec.name!r} are not complete: {', '.join(sorted(parts)) or 'none'}",
                where=where,
                next=f"number them from 0: {spec.name}/0, {spec.name}/1 ...; {spec.name}/length, where it is there, is their number",
            )
        if parts or said is not None:
            feeds[spec.name] = [parts[name] for name in wanted]
    return feeds


def arrays_from_outputs(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Outputs as the arrays of a file, as `feeds_from_arrays` reads them."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in outputs.items():
        if isinstance(value, list):
            arrays[f"{name}/length"] = np.array(len(value))
            arrays.update({f"{name}/{i}": part for i, part in enumerate(value)})
        else:
            arrays[name] = value
    return arrays
