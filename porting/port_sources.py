"""The files that a port is made from: hashed beside the conversion, and refused when they change under it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from porting.errors import CheckpointError
from porting.port_folder import sha256_of


@dataclass(frozen=True)
class Source:
    """What a port is made from, as far as the writer needs it.

    files: the checkpoint's files; hashed, and hard-linked where their bytes can be used as they are
    side:  name -> bytes, carried over
    """

    format: str
    files: Sequence[Path]
    side: Mapping[str, bytes] = field(default_factory=dict)


def names_of(files: Sequence[Path]) -> dict[Path, str]:
    """What files are called in a port and in a golden: the path inside the folder that they share."""
    if len({path.parent for path in files}) < 2:
        return {path: path.name for path in files}
    shared = os.path.commonpath([os.path.abspath(path.parent) for path in files])
    return {path: Path(os.path.relpath(os.path.abspath(path), shared)).as_posix() for path in files}


class WatchedFiles:
    """Files as they were when the conversion began. Within `with`, one thread hashes them; leaving it ends that at once.

    raises: OSError for a file that is missing or may not be read
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._before = {path: _state(path) for path in files}
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")

    def __enter__(self) -> WatchedFiles:
        self._hashes = {path: self._pool.submit(sha256_of, path, self._stop.is_set) for path in self._before}
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()  # Ctrl-C does not wait for the hash of 100 GB
        self._pool.shutdown(cancel_futures=True)

    def state(self) -> str:
        """What tells these files from others: device, inode, size and time of each.

        Two models of one architecture agree in names and sizes, and archives give all their files one time: hence the inode.
        """
        return repr([(path.name, state) for path, state in self._before.items()])

    def newest_ns(self) -> int:
        """The latest modification time, in ns since 1970."""
        return max((state[3] for state in self._before.values()), default=0)

    def bytes(self) -> int:
        """Of all files."""
        return sum(state[2] for state in self._before.values())

    def hashes(self, advance: Callable[[int], Any]) -> dict[Path, str]:
        """sha256 of every file, once they are all known.

        raises: CheckpointError when a file is not what it was at the start, OSError
        """
        found = {}
        for path, future in self._hashes.items():
            found[path] = future.result()
            advance(self._before[path][2])
        for path, before in self._before.items():
            if _state(path) != before:
                raise CheckpointError(
                    f"{path.name} changed while it was converted",
                    where=str(path),
                    next="wait until nothing writes to it, then run again",
                )
        return found


def _state(path: Path) -> tuple[int, int, int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
