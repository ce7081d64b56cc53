"""A torch module brought onto an NPU: its parameters cast, its buffers as they are, and every one of them looked up afterwards."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

from porting.backends.ascend.npu_errors import npu_errors
from porting.backends.ascend.npu_setup import NpuDevice
from porting.errors import RuntimeFailed


def moved(module: Any, device: NpuDevice) -> Any:
    """The module, on the device.

    raises: RuntimeFailed for float64, and for a tensor that is not there afterwards, or in another dtype; OutOfResources
    """
    torch = device.torch
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    wide = [name for name, tensor in tensors.items() if tensor.dtype == torch.float64]
    if wide:
        raise RuntimeFailed(
            f"{wide[0]} is float64, of which torch_npu makes float32 without an error", where=f"prepare on {device.name}"
        )
    with npu_errors(torch, device.name, "move the model to the device"), torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(device.dtype)
        kept = {name: tensor.dtype for name, tensor in (*module.named_parameters(), *module.named_buffers())}
        module = module.to(device.place)
        torch.npu.synchronize()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.device != torch.device(device.place) or tensor.dtype != kept[name]:
            raise RuntimeFailed(
                f"{name} is {tensor.dtype} on {tensor.device}, and should be {kept[name]} on {device.place}",
                where=f"prepare on {device.name}",
            )
    return module


def placement_of(module: Any, device: NpuDevice) -> dict[str, str]:
    """Module -> device, of those that hold no other: with the fallback off an operator runs where its tensors lie, or not at all."""
    return {name or "model": device.name for name, part in module.named_modules() if not any(True for _ in part.children())}


def give_back(device: NpuDevice) -> None:
    """What torch keeps of memory that nothing holds any more. Of a device that is lost there is nothing to be had, and nothing to be told."""
    gc.collect()  # a module is a ring of references
    with contextlib.suppress(RuntimeError):
        device.torch.npu.empty_cache()
