"""What route `npu` needs on the machine, and torch_npu with every switch set that changes numbers."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from porting.ascend.precision import cube_takes_fp32
from porting.ascend.soc import find_soc
from porting.backends.ascend.acl import load_acl
from porting.backends.ascend.acl_codes import AclError, error_of
from porting.backends.ascend.npu_errors import npu_errors
from porting.devices import require_index
from porting.distributions import installed_versions
from porting.errors import DeviceUnavailable, PortingError, RuntimeFailed
from porting.types import Availability

INSTALL = 'pip install -c constraints.txt "porting[npu]", in an environment of its own'
SOURCE = "source <toolkit>/set_env.sh in this shell"
# of this process, before torch is imported
ENVIRONMENT = {
    "TORCH_NPU_FALLBACK_CPU_DISABLE": "1",  # an operator without a kernel is an error, and no run on the CPU
    "TASK_QUEUE_ENABLE": "0",  # what fails says so where it was called
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",  # torch_npu is imported here, where its failure can be explained
    "HF_HUB_OFFLINE": "1",
}
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class NpuDevice:
    """An NPU that torch_npu drives.

    name:  as messages call it ("ascend:0")
    place: as torch calls it ("npu:0")
    dtype: torch's, of parameters and of what is computed
    """

    torch: Any
    name: str
    place: str
    soc: str
    dtype: Any


def installation() -> Availability:
    """Whether the route can start here. Never raises."""
    found = installed_versions(["torch", "torch-npu", "transformers"])
    detail = {name: version for name, version in found.items() if version}
    for name in ("torch-npu", "torch", "transformers"):
        if not found[name]:
            return Availability(False, f"{name} is not installed", INSTALL, detail)
    ours, theirs = _minor(str(found["torch"])), _minor(str(found["torch-npu"]))
    if ours != theirs:
        reason = f"torch {found['torch']} and torch-npu {found['torch-npu']} are of different versions: torch-npu is built for its own"
        return Availability(False, reason, f'pip install "torch=={theirs}.*", or {INSTALL}', detail)
    try:
        load_acl()
    except PortingError as error:
        return Availability(False, error.what, error.next, detail)
    return Availability(True, detail=detail)


def _minor(version: str) -> str:
    match = re.match(r"\d+\.\d+", version)
    return match[0] if match else version


def open_device(options: Mapping[str, str], precision: str) -> NpuDevice:
    """Import torch_npu and set its switches, for the whole process.

    raises: DeviceUnavailable (it does not load, no such device), RuntimeFailed (a precision that the SoC does not compute in)
    """
    acl = load_acl()
    try:
        count = acl.device_count()
    except AclError as error:
        raise error_of(error, "ascend, route=npu") from error
    index = require_index("ascend", options, count)
    name, place = f"ascend:{index}", f"npu:{index}"
    soc = acl.soc_name()
    _require_precision(soc, precision)
    torch = _import()
    with npu_errors(torch, name, "start the device"):
        torch.npu.set_device(place)
        torch.npu.set_compile_mode(jit_compile=False)  # prebuilt kernels, those that are documented
        torch.npu.config.allow_internal_format = False  # formats of the chip's own may round and pad
        torch.npu.conv.allow_hf32 = False
        torch.npu.matmul.allow_hf32 = False
        torch.npu.set_option({"ACL_PRECISION_MODE": "must_keep_origin_dtype"})
    hf32 = [kind for kind in ("conv", "matmul") if getattr(torch.npu, kind).allow_hf32 is not False]
    if hf32:
        raise RuntimeFailed(f"torch_npu keeps HF32 on for {' and '.join(hf32)}", where=f"start of {name}")
    return NpuDevice(torch, name, place, soc, getattr(torch, DTYPES[precision]))


def _require_precision(soc: str, precision: str) -> None:
    """raises: RuntimeFailed"""
    facts = find_soc(soc)
    why = ""
    if precision == "fp32" and cube_takes_fp32(facts) is False:
        why = "its matrix unit takes fp16 only, and torch_npu would narrow float32 without a word"
    if precision == "bf16" and facts.bf16 is False:
        why = "it does not compute in bfloat16"
    if why:
        raise RuntimeFailed(f"precision={precision} on {soc}: {why}", where="ascend, route=npu", next="use precision=fp16")


def _import() -> Any:
    """torch with torch_npu in it. raises: DeviceUnavailable"""
    os.environ.update(ENVIRONMENT)
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("torch_npu")
    except Exception as error:  # a library that is missing, symbols of another release: whatever their imports raise
        raise DeviceUnavailable(
            f"torch_npu does not load: {type(error).__name__}: {str(error)[:300]}",
            where="ascend, route=npu",
            next=f"its release must be for the CANN that is installed; {SOURCE}",
        ) from error
    return torch
