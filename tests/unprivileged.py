"""Running a function as a user without rights: the tests may run as root, for whom every permission check passes."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

NOBODY = 65534

T = TypeVar("T")


def as_unprivileged(function: Callable[[], T]) -> T:
    """Call `function()` in a forked child that has become uid and gid 65534 (or stayed the ordinary user that we are).

    Returns its result or raises its exception, both pickled. Modules it needs must be imported before: the child may not be
    able to read them. pytest's tmp_path is closed to it: use `open_folder()`.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(_outcome(function))
        os._exit(0)  # no cleanup handlers of the parent, pytest's included
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    if not data:
        raise RuntimeError("the unprivileged child died without a word")
    succeeded, value = pickle.loads(data)
    if succeeded:
        return value
    raise value


def _outcome(function: Callable[[], Any]) -> bytes:
    try:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return pickle.dumps((True, function()))
    except BaseException as error:
        try:
            return pickle.dumps((False, error))
        except Exception:
            return pickle.dumps((False, RuntimeError(traceback.format_exc())))


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user can enter, list and read (not write)."""
    folder = Path(tempfile.mkdtemp(prefix="porting-unprivileged-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
