"""A device that runs on onnxruntime's CPU provider under a name of its own, and counts what it runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from porting.backends.cpu import CpuBackend
from porting.devices import require_index, require_known_options
from porting.types import Availability, BackendSession, Program, State, Unsupported


class ShadowBackend:
    name = "shadow"

    def probe(self) -> Availability:
        return CpuBackend().probe()

    def unsupported(self, program: Program) -> list[Unsupported]:
        return CpuBackend().unsupported(program)

    def prepare(self, program: Program, options: Mapping[str, str]) -> ShadowSession:
        require_known_options(self.name, options, ("threads",))
        require_index(self.name, options, 2)
        return ShadowSession(CpuBackend().prepare(program, {k: v for k, v in options.items() if k == "threads"}))


class ShadowSession:
    def __init__(self, inner: BackendSession) -> None:
        self._inner = inner
        self.placement = dict.fromkeys(inner.placement, "shadow")
        self.runs = 0

    def new_state(self, capacity: int, batch: int = 1, grown_from: State | None = None) -> State:
        return self._inner.new_state(capacity, batch, grown_from)

    def run(self, feeds: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        self.runs += 1
        return self._inner.run(feeds, state)

    def close(self) -> None:
        self._inner.close()
