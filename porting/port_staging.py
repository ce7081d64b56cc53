"""The hidden folder `.NAME.partial` in which a port grows, beside where it will be.

It is held by a lock, keeps a journal of how far the weights are on the disk, and takes its place in one step, port.json last:
whatever kills a run, the destination holds a whole port, the old one or the new one, or nothing.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from porting.errors import CheckpointError, InputError, OutOfResources, UsageError
from porting.port_folder import MANIFEST, WEIGHTS
from porting.port_layout import WEIGHTS_FILE, Layout

JOURNAL = "journal.json"
Point = tuple[int, int]  # (written stream, its first row that is not on the disk)
START: Point = (0, 0)


class Staging:
    """The folder of a port that is being made. `staging_for` gives one that is locked and clean."""

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.path = destination.with_name(f".{destination.name}.partial")
        self.weights_file = self.path / WEIGHTS_FILE

    def resume_point(self, fingerprint: str, layout: Layout) -> Point:
        """Where to go on: the journal's point, or the start when there is none or weights.bin is not what the journal was about.

        fingerprint: of source, graph and options
        raises:      UsageError when the partial port was made from something else
        """
        try:
            journal = json.loads((self.path / JOURNAL).read_bytes())
            made_from, stream, row = journal["fingerprint"], int(journal["stream"]), int(journal["row"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):  # none, or damaged: it says nothing then
            return START
        if made_from != fingerprint:
            raise UsageError(
                "the partial port was made from other files, with other options or by another version",
                where=str(self.path),
                next="run once without --resume to start again",
            )
        rows = [s.rows for s, _ in layout.written] + [0]  # the last: all is written
        if not (0 <= stream < len(rows) and 0 <= row <= rows[stream]):
            return START
        try:
            found = self.weights_file.lstat()
        except FileNotFoundError:
            return START
        whole = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size == layout.size
        return (stream, row) if whole else START

    def open_weights(self, start: Point, size: int) -> int:
        """A descriptor of weights.bin, `size` bytes long: as it is, or a new file when there is nothing to keep."""
        if start == START and os.path.lexists(self.weights_file):
            _remove(self.weights_file)  # it may be anything, a link included, and is not ours to empty
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if start == START else 0)
        fd = os.open(self.weights_file, flags, 0o666)
        try:
            os.ftruncate(fd, size)
        except OSError:
            os.close(fd)
            raise
        return fd

    def record(self, fingerprint: str, point: Point) -> None:
        """Journal that all before `point` is on the disk."""
        write_synced(
            self.path / JOURNAL, json.dumps({"fingerprint": fingerprint, "stream": point[0], "row": point[1]}).encode()
        )

    def publish(self) -> None:
        """Put the finished port in its place. An old port there, which the caller allowed to go, is swapped out and removed."""
        (self.path / JOURNAL).unlink(missing_ok=True)
        _sync_folder(self.path / WEIGHTS)
        _sync_folder(self.path)
        old = None
        if os.path.lexists(self.destination):
            old = self.path if _exchange(self.path, self.destination) else _replace_in_two_steps(self.path, self.destination)
        else:
            self.path.rename(self.destination)
        _sync_folder(self.destination.parent)
        if old is not None:
            _discard(old)

    def _clean(self, resume: bool) -> None:
        """Remove what a killed run left; with `resume` its journal and the weights that the journal is about stay."""
        keep = {JOURNAL, WEIGHTS} if resume and (self.path / JOURNAL).is_file() else set()
        (self.path / MANIFEST).unlink(missing_ok=True)  # first: without it nothing here loads
        for child in self.path.iterdir():
            if child.name not in keep:
                _remove(child)
        weights = self.path / WEIGHTS
        weights.mkdir(exist_ok=True)
        for child in weights.iterdir():
            if child != self.weights_file:
                _remove(child)


@contextmanager
def staging_for(destination: Path, resume: bool) -> Iterator[Staging]:
    """The staging folder of `destination`, locked; empty, or with `resume` as the killed run left it.

    When the block fails, what can be resumed stays and all else is removed.
    raises: UsageError while another run holds it
    """
    staging = Staging(destination)
    staging.path.mkdir(exist_ok=True)
    fd = os.open(staging.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)  # a link there would have us empty its target
    try:
        _lock(fd, staging.path)
        try:
            staging._clean(resume)
            yield staging
        except BaseException as error:
            # damage in the source stays, so its partial port is of no use; an unreadable disk may come back
            damaged = isinstance(error, CheckpointError) and not isinstance(error.__cause__, OSError)
            if damaged or not (staging.path / JOURNAL).exists():
                _discard(staging.path)
            raise
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(fd), path.lstat())  # else its holder published it before we had the lock
    except (BlockingIOError, FileNotFoundError):
        ours = False
    if not ours:
        raise UsageError("another conversion is writing this port", where=str(path), next="wait for it, or choose another name")


def recover(destination: Path) -> None:
    """Bring back an old port that a killed run had moved aside, see `_replace_in_two_steps`."""
    aside = _aside(destination)
    if (aside / MANIFEST).exists() and not os.path.lexists(destination):  # without port.json it was about to be removed
        aside.rename(destination)


def _aside(destination: Path) -> Path:
    return destination.with_name(f".{destination.name}.replaced")


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step. False where the system cannot.

    source: man 2 renameat2 (Linux 3.15, glibc 2.28; ext4, xfs, btrfs, tmpfs, overlayfs)
    """
    at_fdcwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _replace_in_two_steps(staging: Path, destination: Path) -> Path:
    """For file systems without an exchange: move the old port aside, then the new one in. Returns where the old one is.

    A kill between the two leaves the old port, whole, under its other name; the next run brings it back (`recover`).
    """
    aside = _aside(destination)
    _discard(aside)
    destination.rename(aside)
    try:
        staging.rename(destination)
    except OSError:
        aside.rename(destination)
        raise
    return aside


def _discard(folder: Path) -> None:
    """Remove a folder that is no port any more. What cannot be removed stays hidden, and does not load."""
    if os.path.lexists(folder):
        try:
            (folder / MANIFEST).unlink(missing_ok=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_synced(path: Path, content: bytes) -> None:
    """Write a small file and sync it; readers see the old one or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def os_errors(destination: Path, *, resumable: bool = False) -> Iterator[None]:
    """Say what the system refused, with the right exit code.

    resumable: what is written is a port, which `convert --resume` can go on with
    """
    try:
        yield
    except OSError as error:
        place = str(error.filename or destination)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            again = "; `porting convert --resume` goes on where it stopped" if resumable else ""
            raise OutOfResources(
                f"the disk is full: {error.strerror}", where=place, next=f"free space and run again{again}"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(
                f"no permission: {error.strerror}", where=place, next="choose another place, or mend the rights"
            ) from error
        raise InputError(f"the system refused: {error.strerror or error}", where=place) from error
