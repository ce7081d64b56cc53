"""What a user writes after --device: `cpu`, `cuda:1`, `cpu,threads=4`, `cuda-or-cpu`, `ascend:0,route=om`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from porting.errors import UsageError

_DEVICE = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9_-]*?)(?::(?P<index>\d+))?")


@dataclass(frozen=True)
class Device:
    """A backend's name, a device index and options.

    alternatives: the names of an explicit request for a fallback (`cuda-or-cpu`), in order; one name otherwise
    """

    name: str
    index: int
    options: Mapping[str, str]

    @property
    def alternatives(self) -> tuple[str, ...]:
        return tuple(self.name.split("-or-"))

    def __str__(self) -> str:
        options = "".join(f",{k}={v}" for k, v in self.options.items())
        return f"{self.name}{f':{self.index}' if self.index else ''}{options}"


def parse_device(text: str) -> Device:
    """Read `name[:index][,option=value]...`.

    raises: UsageError naming the part that does not fit
    """
    head, *rest = text.split(",")
    match = _DEVICE.fullmatch(head.strip())
    if not match:
        raise UsageError(
            f"not a device: {text!r}", where="--device", next="write name[:index][,option=value], as in cuda:0 or cpu,threads=4"
        )
    options: dict[str, str] = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise UsageError(f"not an option: {part!r}", where=f"--device {text}", next="write option=value")
        if key.strip() in options:
            raise UsageError(f"option {key.strip()!r} is given twice", where=f"--device {text}")
        options[key.strip()] = value.strip()
    return Device(match["name"], int(match["index"] or 0), options)
