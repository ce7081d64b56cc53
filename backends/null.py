"""The null backend: keeps the whole contract and computes nothing. Start here to write a backend (docs/backends.md)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from porting.devices import require_index, require_known_options
from porting.dtypes import dtype_of, is_array
from porting.errors import RuntimeFailed
from porting.state import state_buffers
from porting.types import ANY_SHAPE, Availability, Program, State, Unsupported


class NullBackend:
    """A device that is always there and answers with zeros."""

    name = "null"

    def probe(self) -> Availability:
        return Availability(True, detail={"computes": "nothing"})

    def unsupported(self, program: Program) -> list[Unsupported]:
        return []  # it would compute no node wrongly, for it computes none

    def prepare(self, program: Program, options: Mapping[str, str]) -> NullSession:
        require_known_options(self.name, options, ())
        require_index(self.name, options, 1)
        odd = [spec for spec in (*program.inputs, *program.outputs) if not is_array(spec.dtype)]
        if odd:
            raise RuntimeFailed(f"null has no zeros for {odd[0]}", where="prepare on null", next="use --device cpu")
        return NullSession(program)


class NullSession:
    """Zeros of the right shape. A dimension is known when it is fixed or when an input names its symbol."""

    def __init__(self, program: Program) -> None:
        self.placement: Mapping[str, str] = {}
        self._program = program
        self._state_outputs = {pair.output for pair in program.state.pairs}

    def new_state(self, capacity: int, batch: int = 1, grown_from: State | None = None) -> State:
        buffers = state_buffers(self._program, capacity, batch, grown_from)
        # nothing is ever written, so there is nothing to copy from `grown_from`
        return State(
            {name: np.zeros(b.shape, b.dtype) for name, b in buffers.items()},
            np.zeros(batch, np.int64) if grown_from is None else grown_from.length,
            capacity,
        )

    def read_state(self, state: State) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in state.buffers.items()}

    def run(self, feeds: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        sizes: dict[str, int] = {}
        for spec in self._program.inputs:
            array = state.buffers.get(spec.name) if state else None
            array = feeds[spec.name] if array is None else array
            if spec.shape != ANY_SHAPE:
                sizes.update({dim: size for dim, size in zip(spec.shape, array.shape, strict=True) if isinstance(dim, str)})
        outputs = {}
        for spec in self._program.outputs:
            if spec.name not in self._state_outputs:
                shape = []
                for dim in spec.shape:
                    size = dim if isinstance(dim, int) else sizes.get(dim or "")
                    if size is None:
                        raise RuntimeFailed(f"null cannot know the size {dim!r} of {spec}", where="session.run")
                    shape.append(size)
                outputs[spec.name] = np.zeros(shape, dtype_of(spec.dtype))
        return outputs

    def close(self) -> None:
        """Nothing is held."""
