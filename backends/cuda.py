"""The CUDA backend, first cut: onnxruntime's CUDA provider on the device asked for, or an error.

NEVER RUN ON HARDWARE. It was written from onnxruntime's documentation and issue threads, and tested with stand-ins for the
runtime and the driver; the tests marked `device` wait for a machine with a GPU.

Two silent ways onto the CPU are closed: a provider that fails to load is only a warning to onnxruntime, so the session's
providers are compared; and nodes without a CUDA kernel would run on the CPU, so `session.disable_cpu_ep_fallback` is set.
The price: onnxruntime places shape arithmetic (Shape, Gather on its result) on the CPU by choice, and such a graph is refused.

Options after the device's name (`cuda:1,tf32=1`):

    tf32=0|1              whether matrix products may round float32 to TF32's 10 bits of mantissa; 0
    memory_limit=BYTES    of device memory that onnxruntime's arena may take; default: no limit
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Mapping

from porting.backends.onnxruntime import (
    OrtSession,
    availability,
    base_options,
    import_runtime,
    open_ort,
    placement_of,
    require_version,
)
from porting.backends.onnxruntime_kernels import missing_kernels
from porting.devices import choice_option, count_option, require_index, require_known_options
from porting.errors import DeviceUnavailable, PortingError, RuntimeFailed
from porting.types import Availability, Program, Unsupported

PROVIDER = "CUDAExecutionProvider"
OPTIONS = ("tf32", "memory_limit")
DRIVER = "libcuda.so.1"


class CudaBackend:
    """An Nvidia GPU. Never run on hardware."""

    name = "cuda"

    def probe(self) -> Availability:
        """Usable when onnxruntime has the CUDA provider, the driver loads and counts at least one device."""
        runtime = availability("cuda", PROVIDER)
        if not runtime.usable:
            return runtime
        try:
            count = device_count()
        except DeviceUnavailable as error:
            return Availability(False, error.what, error.next, runtime.detail)
        return Availability(True, detail={**runtime.detail, "devices": str(count)})

    def unsupported(self, program: Program) -> list[Unsupported]:
        """Nodes that no kernel of this build takes. Nodes that only the CPU could run are refused by `prepare`."""
        return missing_kernels(import_runtime("cuda"), program, PROVIDER)

    def prepare(self, program: Program, options: Mapping[str, str]) -> OrtSession:
        """raises: UsageError, DeviceUnavailable, InputError, OutOfResources, RuntimeFailed"""
        require_known_options(self.name, options, OPTIONS)
        tf32 = choice_option(self.name, options, "tf32", ("0", "1"))
        provider_options = {"use_tf32": tf32}
        if "memory_limit" in options:
            provider_options["gpu_mem_limit"] = str(count_option(self.name, options, "memory_limit", 8 << 30))
        index = require_index(self.name, options, device_count())
        provider_options["device_id"] = str(index)
        device = f"cuda:{index}"

        runtime = import_runtime("cuda")
        require_version(runtime, program, "cuda")
        with contextlib.redirect_stdout(sys.stderr):  # it reports what it cannot find by print()
            runtime.preload_dlls(directory="")  # CUDA's libraries from pip packages, which the loader does not search
        settings = base_options(runtime)
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            session = open_ort(runtime, program, settings, [(PROVIDER, provider_options)], device)
        except RuntimeFailed as error:
            raise _explained(error, device) from error
        # CPUExecutionProvider is always in this list; with fallback disabled it holds no node
        if PROVIDER not in session.get_providers():
            raise DeviceUnavailable(
                f"onnxruntime could not start {PROVIDER} and would have run on {', '.join(session.get_providers())}",
                where=f"prepare on {device}",
                next='its CUDA or cuDNN libraries are missing: pip install "onnxruntime-gpu[cuda,cudnn]"',
            )
        placement = placement_of(session, device, PROVIDER)
        elsewhere = {node: where for node, where in placement.items() if where != device}
        if elsewhere:
            node, where = next(iter(elsewhere.items()))
            raise RuntimeFailed(
                f"{len(elsewhere)} nodes would run elsewhere, {node!r} on {where} first", where=f"prepare on {device}"
            )
        return OrtSession(runtime, session, program, placement, device, "cuda", index)


def device_count() -> int:
    """Devices that the driver counts, at least 1.

    raises: DeviceUnavailable: no driver, a driver that does not start, no device
    """
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise DeviceUnavailable(
            f"the Nvidia driver is not installed: {error}",
            where="probe of cuda",
            next="install the driver, or in a container pass the GPU through; `nvidia-smi` must work",
        ) from error
    count = ctypes.c_int(0)
    _check(driver.cuInit(0), "cuInit")
    _check(driver.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
    if count.value < 1:
        raise DeviceUnavailable(
            "the Nvidia driver finds no device",
            where="probe of cuda",
            next="check CUDA_VISIBLE_DEVICES and nvidia-smi",
        )
    return count.value


def _check(status: int, call: str) -> None:
    """raises: DeviceUnavailable for any status but CUDA_SUCCESS (cuda.h, CUresult)"""
    known = {100: "CUDA_ERROR_NO_DEVICE", 803: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", 999: "CUDA_ERROR_UNKNOWN"}
    if status != 0:
        raise DeviceUnavailable(
            f"the Nvidia driver refuses: {call} gives {status} {known.get(status, '')}".rstrip(),
            where="probe of cuda",
            next="check CUDA_VISIBLE_DEVICES and nvidia-smi; after a driver update, reboot",
        )


def _explained(error: RuntimeFailed, device: str) -> PortingError:
    """onnxruntime's refusals that have a remedy, with the remedy."""
    if "fallback to CPU EP has been explicitly disabled" in error.what:
        return RuntimeFailed(
            f"{device} cannot take every node, and nothing falls back to the CPU in silence: {error.what}",
            where=error.where,
            next="shape arithmetic is what onnxruntime keeps on the CPU: fix the shapes, or run with --device cpu",
        )
    return error
