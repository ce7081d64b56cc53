"""Where in the user's own Python something happened."""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType

import porting

CALLS = str(Path(__file__).with_name("torch_calls.py"))  # calls the module: what called us is no code of it
SHOWN = 600  # characters of a message of torch's, which can be pages


@cache
def _foreign(filename: str) -> bool:
    """Whether a file is torch's, the interpreter's or ours."""
    import torch

    if filename.startswith("<"):
        return True
    path = Path(filename).resolve()
    ours = (Path(__file__).resolve().parent, Path(porting.__file__).resolve().parent)
    standard = Path(traceback.__file__).resolve().parent
    if any(path.is_relative_to(folder) for folder in (Path(torch.__file__).resolve().parent, *ours)):
        return True
    return path.is_relative_to(standard) and "site-packages" not in path.parts


def line_of(filename: str, lineno: int) -> str:
    """`file:line: text of the line`."""
    text = linecache.getline(filename, lineno).strip()
    return f"{filename}:{lineno}" + (f": {text}" if text else "")


def is_users(filename: str) -> bool:
    """Whether a file is the user's own code, or a package's that is not torch."""
    return not _foreign(filename)


def where_raised(error: BaseException, fallback: str = "") -> str:
    """The innermost line of user code that an error passed, or `fallback`. Causes and contexts are looked through too."""
    seen: set[int] = set()
    current: BaseException | None = error
    found = ""
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        lines = [line_of(f, n) for f, n in _frames(current.__traceback__) if is_users(f)]
        found = lines[-1] if lines else found
        current = current.__cause__ or current.__context__
    return found or fallback


def where_now() -> str:
    """The innermost line of user code on the stack of this thread, within the module that runs; or ""."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != CALLS:
        if is_users(frame.f_code.co_filename):
            return line_of(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _frames(trace: TracebackType | None) -> Iterable[tuple[str, int]]:
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next


def short(error: BaseException) -> str:
    """`Type: first lines of the message`."""
    text = " ".join(line.strip() for line in str(error).split("\n\n")[0].splitlines() if line.strip())
    return f"{type(error).__name__}: {text[:SHOWN]}" if text else type(error).__name__


def innermost(error: BaseException) -> BaseException:
    """The first error of a chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def printing_to_stderr() -> Iterator[None]:
    """What a user's code prints goes to stderr: stdout is the result of a command."""
    import contextlib

    with contextlib.redirect_stdout(sys.stderr):
        yield
