"""A torch module on an NPU: the one that a port was made from, by the factory that made it. Modules that carry state are not covered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from porting.backends.ascend.npu_errors import npu_errors
from porting.backends.ascend.npu_module import give_back, moved, placement_of
from porting.backends.ascend.npu_setup import NpuDevice
from porting.backends.ascend.npu_source import module_of
from porting.errors import RuntimeFailed, UsageError
from porting.types import GraphSource, Program, State


class NpuModule:
    """A BackendSession over a torch module on the device. Floats that are fed are cast to what it computes in."""

    def __init__(self, program: Program, source: GraphSource, device: NpuDevice) -> None:
        self._program, self._device = program, device
        self._source: GraphSource | None = source
        original: Any = source.original()
        self._original = original
        self.placement: Mapping[str, str] = placement_of(moved(original.module, device), device)

    def new_state(self, capacity: int, batch: int = 1, grown_from: State | None = None) -> State:
        raise UsageError("this program keeps no state")

    def read_state(self, state: State) -> dict[str, np.ndarray]:
        raise UsageError("this program keeps no state")

    def run(self, feeds: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        if self._source is None:
            raise UsageError("the session is closed")
        torch = self._device.torch
        with npu_errors(torch, self._device.name, "run the model"):
            found = self._original.outputs({name: self._given(array) for name, array in feeds.items()})
            torch.npu.synchronize()  # says what went wrong; a copy to the host would say its code alone
            missing = [spec.name for spec in self._program.outputs if spec.name not in found]
            if missing:
                raise RuntimeFailed(f"the module gives no {missing[0]!r}", where=f"run on {self._device.name}")
            return {spec.name: self._taken(found[spec.name], spec.dtype) for spec in self._program.outputs}

    def close(self) -> None:
        """Safe to call twice."""
        if self._source is not None:
            self._source.close()
            self._source, self._original = None, None
            give_back(self._device)

    def _given(self, array: np.ndarray) -> Any:
        tensor = self._device.torch.from_numpy(np.array(array))
        if tensor.is_floating_point():
            tensor = tensor.to(self._device.dtype)
        return tensor.to(self._device.place)

    def _taken(self, tensor: Any, dtype: str) -> np.ndarray:
        tensor = tensor.detach().cpu()
        return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy()).astype(dtype, copy=False)


def open_module(program: Program, model: str, weights: str | None, device: NpuDevice) -> NpuModule:
    """raises: UsageError (a port with state), PortError (other files), what opening the source raises, RuntimeFailed, OutOfResources"""
    if program.state.pairs:
        raise UsageError(
            "route=npu does not run torch modules that carry state", where="route npu", next="use route=om or route=cann"
        )
    return NpuModule(program, module_of(program, model, weights), device)
