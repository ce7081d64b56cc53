"""An encoder's upstream class on an NPU: what `porting validate` compares with on the CPU, on the device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from porting.backends.ascend.npu_errors import npu_errors
from porting.backends.ascend.npu_module import give_back, moved, placement_of
from porting.backends.ascend.npu_setup import NpuDevice
from porting.backends.ascend.npu_source import PortSource
from porting.encoder_reference import EncoderReference
from porting.errors import RuntimeFailed, UsageError
from porting.types import Program, State


class NpuEncoder:
    """A BackendSession over an EncoderReference whose module lies on the device."""

    def __init__(self, program: Program, reference: EncoderReference, device: NpuDevice) -> None:
        self._program, self._device = program, device
        self._reference: EncoderReference | None = reference
        self.placement: Mapping[str, str] = placement_of(moved(reference.module, device), device)

    def new_state(self, capacity: int, batch: int = 1, grown_from: State | None = None) -> State:
        raise UsageError("this program keeps no state")

    def read_state(self, state: State) -> dict[str, np.ndarray]:
        raise UsageError("this program keeps no state")

    def run(self, feeds: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        if self._reference is None:
            raise UsageError("the session is closed")
        torch = self._device.torch
        with npu_errors(torch, self._device.name, "run the model"):
            tensors = {name: torch.from_numpy(np.array(array)).to(self._device.place) for name, array in feeds.items()}
            tensors.setdefault("attention_mask", torch.ones_like(tensors["input_ids"]))
            found = self._reference.outputs(tensors)
            torch.npu.synchronize()  # says what went wrong; a copy to the host would say its code alone
            missing = [spec.name for spec in self._program.outputs if spec.name not in found]
            if missing:
                raise RuntimeFailed(f"upstream's class has no output {missing[0]!r}", where=f"run on {self._device.name}")
            return {spec.name: found[spec.name].float().cpu().numpy() for spec in self._program.outputs}

    def close(self) -> None:
        """Safe to call twice."""
        if self._reference is not None:
            self._reference.close()
            self._reference = None
            give_back(self._device)


def open_encoder(program: Program, source: PortSource, device: NpuDevice) -> NpuEncoder:
    """raises: EvidenceUnavailable (transformers disagrees about the checkpoint), RuntimeFailed, OutOfResources"""
    return NpuEncoder(program, EncoderReference(source.checkpoint), device)
