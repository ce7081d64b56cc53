"""What a user writes after --device: `cpu`, `cuda:1`, `cpu,threads=4`, `cuda-or-cpu`, `ascend:0,route=om`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from porting.errors import DeviceUnavailable, UsageError, nearest

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


def require_known_options(device: str, options: Mapping[str, str], known: tuple[str, ...]) -> None:
    """Refuse an option that a backend does not have.

    options: as `Backend.prepare` gets them; "index" is always among them and always known
    raises:  UsageError naming the nearest option
    """
    for name in options:
        if name != "index" and name not in known:
            raise UsageError(
                f"device {device!r} has no option {name!r}",
                where=f"--device {device},{name}={options[name]}",
                next=nearest(name, ("process", *known)),
            )


def choice_option(device: str, options: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    """The value of an option that takes one of `choices`; the first is the default.

    raises: UsageError
    """
    value = options.get(name, choices[0])
    if value not in choices:
        raise UsageError(
            f"option {name}={value} of device {device!r} is none of {', '.join(choices)}",
            where=f"--device {device},{name}={value}",
            next=nearest(value, choices),
        )
    return value


def count_option(device: str, options: Mapping[str, str], name: str, default: int) -> int:
    """The value of an option that takes a whole number from 1 up.

    raises: UsageError
    """
    value = options.get(name, str(default))
    if not (value.isascii() and value.isdigit() and int(value) >= 1):
        raise UsageError(
            f"option {name}={value} of device {device!r} is not a whole number from 1 up",
            where=f"--device {device},{name}={value}",
            next=f"write {name}={default}, say",
        )
    return int(value)


def require_index(device: str, options: Mapping[str, str], count: int) -> int:
    """The device index, below `count`.

    raises: DeviceUnavailable
    """
    index = int(options.get("index", "0"))
    if index >= count:
        raise DeviceUnavailable(
            f"device {device}:{index} does not exist: {count} found",
            where=f"--device {device}:{index}",
            next=f"use {device}:0" if count else "`porting doctor` lists every device",
        )
    return index
