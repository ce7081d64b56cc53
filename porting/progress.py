"""Progress on stderr, for work that lasts: one bar per phase with an honest total in bytes or steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    def __call__(self, amount: int) -> None: ...


class Progress(Protocol):
    """Opens a bar: `with progress("writing weights", total_bytes, unit="bytes") as advance: advance(n)`."""

    def __call__(self, label: str, total: int, unit: str = "bytes") -> object: ...


@contextmanager
def silent(label: str, total: int, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
    """No bar: what Python callers get unless they ask."""
    yield lambda amount: None


@contextmanager
def bar(label: str, total: int, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
    """A rich bar on stderr that appears when the work lasts, and only on a terminal; a pipe gets one line per phase."""
    if not sys.stderr.isatty():
        print(f"{label} ...", file=sys.stderr, flush=True)
        yield lambda amount: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    amount_column = DownloadColumn(binary_units=True) if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), amount_column, TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(label, total=total)
        yield lambda amount: display.advance(task, amount)
