"""Temporary folders that do not outlive their process, even one that is killed: the next folder of ours that is made clears it away.

Each is locked (flock on the folder itself) as long as its owner lives; the system drops the lock however the owner ends. What has the name
of ours, belongs to this user and is not locked has no owner any more.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
import weakref
from pathlib import Path

PREFIX = "porting-scratch-"
_OURS = re.compile(PREFIX + r"[a-z0-9_]{8}")  # what mkdtemp makes of the prefix
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class ScratchFolder(tempfile.TemporaryDirectory[str]):
    """A TemporaryDirectory in the system's folder for those, which a later process removes where this one could not.

    raises: OSError, as TemporaryDirectory
    """

    def __init__(self) -> None:
        remove_abandoned()
        while True:
            super().__init__(prefix=PREFIX)
            try:
                if self._locked():
                    return
            except OSError:  # a file system without locks: under another name, for nobody could tell that this process lives
                self.cleanup()
                super().__init__(prefix="porting-")
                return
            self.cleanup()  # another process took it for abandoned before it was locked

    def _locked(self) -> bool:
        """Lock the folder until this process ends. False where another process is about to remove it, or has. raises: OSError"""
        try:
            fd = os.open(self.name, _OPEN)
        except FileNotFoundError:
            return False
        weakref.finalize(self, os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return _is_at(fd, Path(self.name))


def remove_abandoned() -> None:
    """Remove the folders of processes that have ended, as far as they can be removed. Nothing of another user, and through no link."""
    try:
        names = [name for name in os.listdir(tempfile.gettempdir()) if _OURS.fullmatch(name)]
    except OSError:
        return
    for name in names:
        path = Path(tempfile.gettempdir(), name)
        try:
            fd = os.open(path, _OPEN)
        except OSError:  # a link, a file, another user's, or gone
            continue
        try:
            found = os.fstat(fd)
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
                continue
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(fd, path):
                shutil.rmtree(path, ignore_errors=True)  # while it is locked, so that nobody takes it up
        except OSError:  # locked: its owner lives
            continue
        finally:
            os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    """Whether the open folder is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False
