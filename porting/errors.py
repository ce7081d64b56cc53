"""Every error a user can see, and the exit code it ends in.

    PortingError                   what / where / next; no traceback
    ├── UsageError            2    a name, option or argument that cannot be meant
    ├── InputError            2    a file, checkpoint, port, golden or array that cannot be used
    │   ├── CheckpointError        ... the source model
    │   ├── UnsupportedModel       ... readable, but this architecture, key or format is not covered
    │   └── PortError              ... a port on disk
    ├── VerdictFailed         1    something ran and does not hold
    ├── DeviceUnavailable     3    the device, its runtime or an extra is missing
    │   └── EvidenceUnavailable    ... nothing to compare with at the level asked for
    ├── RuntimeFailed         3    the runtime was there and refused or broke while working
    └── OutOfResources        4    memory, disk or device memory

Anything else that reaches the top is our bug: traceback, exit code 70.
"""

from __future__ import annotations

EXIT_HOLDS = 0
EXIT_DOES_NOT_HOLD = 1
EXIT_BAD_INPUT = 2
EXIT_UNAVAILABLE = 3
EXIT_OUT_OF_RESOURCES = 4
EXIT_BUG = 70
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the shell's own convention

EXIT_CODES_HELP = (
    "Exit codes: 0 holds; 1 ran and does not hold; 2 bad usage or bad input; 3 device, runtime or evidence level "
    "not available; 4 out of resources (RAM, disk, device memory); 70 a bug in porting; 130 interrupted."
)


class PortingError(Exception):
    """An error for the user: what happened, where, and what to do next.

    what:  one sentence, expected and got included
    where: the file, tensor, node or step
    next:  what to type or change; the class's `default_next` where none is given, so that no error goes without
    """

    exit_code = EXIT_BAD_INPUT
    default_next = "mend what is named, and run again"

    def __init__(self, what: str, *, where: str = "", next: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.next = next or self.default_next

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        lines.append(f"  next:  {self.next}")
        return "\n".join(lines)

    def __reduce__(self):  # keeps where and next when the error crosses a process boundary
        return _rebuild, (type(self), self.what, self.where, self.next)


def _rebuild(kind: type[PortingError], what: str, where: str, next: str) -> PortingError:
    return kind(what, where=where, next=next)


class UsageError(PortingError):
    """A name, option or argument that cannot be meant."""

    default_next = "the command's own --help says what it takes"


class InputError(PortingError):
    """A file or array that cannot be used as it is."""

    default_next = "mend what is named, or give another"


class CheckpointError(InputError):
    """The source model is damaged, incomplete or contradicts itself."""

    default_next = "mend the file named, or take the checkpoint again from where it came"


class UnsupportedModel(InputError):
    """The source model is readable, but this architecture, config key or format is not covered."""

    default_next = "take a checkpoint that does without it; `porting inspect` says whether one is covered"


class PortError(InputError):
    """A port on disk is damaged, incomplete, foreign or too new."""

    default_next = "convert again"


class VerdictFailed(PortingError):
    """Something ran and does not hold."""

    exit_code = EXIT_DOES_NOT_HOLD
    default_next = "see which check failed, and where; convert again when the port is at fault"


class DeviceUnavailable(PortingError):
    """The device asked for, its runtime or the extra that brings it is missing."""

    exit_code = EXIT_UNAVAILABLE
    default_next = "`porting doctor` lists every device, and what to type for what is missing"


class EvidenceUnavailable(DeviceUnavailable):
    """There is nothing to compare with at the level of evidence asked for."""

    default_next = "give another reference with --against: the source checkpoint, or a golden"


class RuntimeFailed(PortingError):
    """The runtime was there and refused the graph, or broke while running it."""

    exit_code = EXIT_UNAVAILABLE
    default_next = "try another --device; `porting doctor` lists what can run here"


class OutOfResources(PortingError):
    """RAM, disk or device memory ran out."""

    exit_code = EXIT_OUT_OF_RESOURCES
    default_next = "free memory or disk space and run again; `porting plan` forecasts what is needed"


def nearest(name: str, choices: list[str] | tuple[str, ...]) -> str:
    """A clause naming the nearest choice and all of them, for the `next` line of an unknown-name error."""
    import difflib

    close = difflib.get_close_matches(name, choices, n=1)
    listed = ", ".join(sorted(choices)) or "none"
    return f"did you mean {close[0]!r}? known: {listed}" if close else f"known: {listed}"
