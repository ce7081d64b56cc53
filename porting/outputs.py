"""Files that a command is to write: refused before the work starts where that can be known."""

from __future__ import annotations

import os
from pathlib import Path

from porting.errors import InputError, UsageError

MARKS = {"--junit": b"<testsuites", "--sarif": b"sarif"}  # in the first bytes of every such file
HEAD_BYTES = 4096


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


def require_report(path: Path, option: str) -> None:
    """As `require_writable`; a file that is there has to be a report too. raises: UsageError, InputError"""
    require_writable(path, option)
    if path.is_file() and path.stat().st_size:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
        if MARKS[option] not in head:
            raise UsageError(f"this is no old report, and would be lost: {path}", where=option, next="name another file")
