"""A port in the place of an original: to record it, or to compare another port with it. That shows agreement, not that either is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from porting.port_folder import Port
from porting.reference import OF_A_PORT
from porting.session import open_session
from porting.types import StateSpec


class PortOriginal:
    """A port on a device, its state as inputs and outputs like any other."""

    def __init__(self, port: Port, device: str) -> None:
        """raises: DeviceUnavailable, UsageError, PortError"""
        self.description = f"{OF_A_PORT}{port.path.name} ({port.precision}) on {device}"
        self._session = open_session(replace(port.program(), state=StateSpec()), device)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """raises: InputError, RuntimeFailed, OutOfResources"""
        return self._session.run(feeds)

    def close(self) -> None:
        self._session.close()
