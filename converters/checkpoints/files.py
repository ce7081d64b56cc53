"""Reading checkpoint files at given offsets; whatever the operating system refuses becomes a CheckpointError."""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np

from porting.errors import CheckpointError, UsageError

REASONS = {
    errno.ENOENT: ("the file does not exist", "check the path, or fetch the file again"),
    errno.ENOTDIR: ("the path goes through something that is not a folder", "check the path"),
    errno.EACCES: ("no permission to read it", "give this user the right to read the file and to enter its folder"),
    errno.ELOOP: ("its symbolic links lead in a circle", "replace the link with the file"),
    errno.EISDIR: ("it is a folder, not a file", "give the file"),
    errno.EMFILE: ("too many files are open", "raise the limit with `ulimit -n`"),
}


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The CheckpointError that says why `path` cannot be read."""
    what, todo = REASONS.get(error.errno or 0, (error.strerror or str(error), "check the disk and the path"))
    return CheckpointError(f"{path.name} cannot be read: {what}", where=str(path), next=todo)


def open_to_read(path: Path) -> tuple[int, int]:
    """(file descriptor, size in bytes) of a regular file.

    raises: CheckpointError when it is missing, not readable, or not a regular file
    """
    try:
        # O_NONBLOCK: a named pipe would otherwise hold us until somebody writes to it; files ignore it
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(path, error) from error
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return fd, status.st_size
    os.close(fd)
    kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
    raise CheckpointError(
        f"{path.name} cannot be read: expected a file, got {kind}", where=str(path), next="put the real file in its place"
    )


def read_exactly(fd: int, offset: int, nbytes: int, path: Path) -> np.ndarray:
    """`nbytes` bytes from `offset` on, in fresh memory; (nbytes,) uint8.

    raises: CheckpointError when the file ends before that or the disk fails
    """
    buffer = np.empty(nbytes, np.uint8)
    view, done = memoryview(buffer.data), 0
    while done < nbytes:  # one call moves at most 2 GiB
        try:
            got = os.preadv(fd, [view[done:]], offset + done)
        except OSError as error:
            raise unreadable(path, error) from error
        if got == 0:
            raise CheckpointError(
                f"{path.name} ends too early: expected {nbytes} bytes from offset {offset}, got {done}",
                where=str(path),
                next="it is cut off, or changed while it was read; fetch it again",
            )
        done += got
    return buffer


def read_whole(path: Path, limit_bytes: int) -> bytes:
    """All bytes of a small file.

    raises: CheckpointError when it cannot be read or is larger than `limit_bytes`
    """
    fd, size = open_to_read(path)
    try:
        if size > limit_bytes:
            raise CheckpointError(
                f"{path.name} is too large: {size} bytes, at most {limit_bytes} are taken",
                where=str(path),
                next="check that this is the file it is named after",
            )
        return read_exactly(fd, 0, size, path).tobytes()
    finally:
        os.close(fd)


class OpenFiles:
    """One descriptor per file, opened at the first read and closed by close() or with the object.

    Reads may come from several threads; close() must not run beside them.
    """

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._finalizer = weakref.finalize(self, _close_all, self._descriptors)

    def read(self, path: Path, offset: int, nbytes: int) -> np.ndarray:
        """Bytes [offset, offset + nbytes) of `path` as (nbytes,) uint8.

        raises: CheckpointError (unreadable, too short), UsageError after close()
        """
        with self._lock:
            if self._closed:
                raise UsageError("the checkpoint is closed", where=str(path), next="open it again with open_checkpoint()")
            if path not in self._descriptors:
                self._descriptors[path] = open_to_read(path)[0]
            fd = self._descriptors[path]
        return read_exactly(fd, offset, nbytes, path)

    def close(self) -> None:
        """Close every file. Safe to call twice."""
        with self._lock:
            self._closed = True
            self._finalizer()


def _close_all(descriptors: dict[Path, int]) -> None:
    while descriptors:
        with suppress(OSError):
            os.close(descriptors.popitem()[1])
