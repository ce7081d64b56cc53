"""Files that a command is to write: refused before the work starts where that can be known."""

from __future__ import annotations

import os
from pathlib import Path

from porting.errors import InputError, UsageError


def require_new_file(path: Path, force: bool) -> None:
    """A result that must not be there yet, or may be replaced with `force`. raises: UsageError, InputError (no permission)"""
    if os.path.lexists(path) and not force:
        raise UsageError(f"already exists: {path}", where="-o", next="choose another name, or --force to replace it")
    require_writable(path, "-o")


def require_writable(path: Path, option: str) -> None:
    """A file that may be written, also over an old one. raises: UsageError, InputError (no permission)"""
    if path.is_dir():
        raise UsageError(f"this is a folder, a file is to be written: {path}", where=option, next="name a file")
    if not path.parent.is_dir():
        raise UsageError(f"no such folder: {path.parent}", where=f"{option} {path}", next="make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"no permission to write {path}", where=option, next="choose another place, or mend the rights")
