"""What `porting probe` does on an NPU, in a child process: say what is there, run compiled models with raw calls of AscendCL. Never run on hardware."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from porting.ascend.probe_place import RUN_S, Place
from porting.ascend.rules import Rule
from porting.ascend.soc import Soc, find_cann
from porting.backends.ascend.acl import HOME, Acl, load_acl
from porting.backends.ascend.acl_codes import BROKEN, AclError
from porting.backends.ascend.cann_provider_setup import VERSION_FILES
from porting.backends.ascend.om_buffers import DataSet, Holder
from porting.backends.ascend.om_model import OmModel, Tensor
from porting.devices import Device, require_known_options
from porting.errors import PortingError, UsageError
from porting.verdict import printable

ROOM = 1 << 20  # bytes of an output whose size is not known before the run
DRIVER = Path("/usr/local/Ascend/driver/version.info")
SIMULATED = "cannsim_install"  # a function that only the simulated CANN has
# Version=8.0.0, version_dir=8.0.RC3, toolkit_running_version=[7.6.0.1.220:8.0.RC3]: a package's own number may stand before the release
_RELEASE = re.compile(r"version(?:_dir)?\s*=\s*\[?(?:[^\]\s:]*:)?\s*(\d[\w.-]*)", re.IGNORECASE)


def place(device: Device) -> Place:
    """raises: UsageError for options that a probe does not take"""
    require_known_options(device.name, device.options, ())
    return Place(
        f"{device.name}:{device.index}",
        __name__,
        (device.index,),
        {},
        in_child=False,
        level="hardware",
        unmodelled=_all_of_it,
        ai_cpu=lambda om: None,
    )


def _all_of_it(asked: Rule | str, soc: Soc) -> str:
    return ""


# --- in the child -------------------------------------------------------------------------------------------------


class _Held:
    """The device of this process."""

    acl: Acl
    index: int


_held = _Held()


def answer(name: str, *arguments: Any) -> tuple[str, Any]:
    """One request: ("ok", found), or ("failed", (stage, code, text, whether the device is lost))."""
    stage = ["load" if name == "run" else "run"]
    try:
        return "ok", describe(*arguments) if name == "describe" else _run(stage, *arguments)
    except AclError as error:
        return "failed", (stage[0], error.code, f"{error}; {error.said}" if error.said else str(error), error.code in BROKEN)
    except PortingError as error:
        return "failed", (stage[0], "", error.what, False)


def describe(index: int) -> dict[str, Any]:
    """SoC, release and driver as they are found here; whether this CANN is the simulated one. raises: PortingError, AclError"""
    _held.acl, _held.index = load_acl(), index
    _held.acl.initialise()
    with contextlib.closing(Holder(_held.acl, index, 1000)):
        soc = _held.acl.soc_name()
    return {
        "soc": soc,
        "devices": _held.acl.device_count(),
        "cann": _toolkit_says(),
        "driver": next(iter(_releases(DRIVER)), ""),
        "simulated": _is_simulated(_held.acl.path),
    }


def _is_simulated(path: str) -> bool:
    """Also where somebody gave this process the simulator's own environment: what it shows is never taken for hardware."""
    return hasattr(ctypes.CDLL(path), SIMULATED)


def _toolkit_says() -> str:
    """The first known release in the version files of the toolkit, else the first number there; "" where there is none."""
    home = os.environ.get(HOME)
    if not home:
        return ""
    found = [release for pattern in VERSION_FILES for path in sorted(Path(home).glob(pattern)) for release in _releases(path)]
    return next((release for release in found if _is_known(release)), found[0] if found else "")


def _is_known(release: str) -> bool:
    try:
        return find_cann(release) is not None
    except UsageError:
        return False


def _releases(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")[:100_000]
    except OSError:
        return []
    return [printable(release, 60) for release in _RELEASE.findall(text)]


def _run(stage: list[str], path: str, feeds: Mapping[str, np.ndarray], set_gear: bool) -> tuple[str, list[np.ndarray]]:
    """Load, run, unload. returns: an input that the model takes in another shape, and the outputs. raises: AclError, PortError"""
    holder = Holder(_held.acl, _held.index, RUN_S * 1000)
    try:
        model = OmModel(holder, Path(path))
        stage[0] = "run"
        misfit, given = _given(model, feeds)
        if misfit:
            return misfit, []
        return "", _outputs(holder, model, given, set_gear)
    finally:
        with contextlib.suppress(AclError):  # of a device that is lost; the run has said so
            holder.close()


def _given(model: OmModel, feeds: Mapping[str, np.ndarray]) -> tuple[str, list[np.ndarray]]:
    """An input that is taken in another shape than it is fed in, and what goes to the device."""
    given: list[np.ndarray] = []
    for tensor in model.inputs:
        array = next((a for name, a in feeds.items() if tensor.name == name or tensor.name.endswith(f":{name}")), None)
        if array is None and len(feeds) == len(model.inputs):  # names may change when a model is compiled; their order stays
            array = list(feeds.values())[len(given)]
        if array is None:
            return f"the compiled model has an input {tensor} that the graph has not", []
        dims = tuple(tensor.dims)
        if len(dims) != array.ndim or any(dim not in (-1, size) for dim, size in zip(dims, array.shape, strict=True)):
            return f"the compiled model takes {tensor}, and the graph {list(array.shape)}", []
        given.append(np.ascontiguousarray(array.astype(tensor.dtype)))
    return "", given


def _outputs(holder: Holder, model: OmModel, given: list[np.ndarray], set_gear: bool) -> list[np.ndarray]:
    read, written = DataSet(holder), DataSet(holder)
    for tensor, array in zip(model.inputs, given, strict=True):
        address, pinned = _memory(holder, max(tensor.nbytes, array.nbytes))
        pinned[: array.nbytes] = array.reshape(-1).view(np.uint8)
        holder.to_device(address, pinned.nbytes, pinned)
        read.add(address, tensor.nbytes or array.nbytes)
    if model.gear_index is not None:
        read.add(holder.held_memory(model.gear_bytes), model.gear_bytes)
    buffers = []
    for tensor in model.outputs:
        room = tensor.nbytes or ROOM
        address, pinned = _memory(holder, room)
        written.add(address, room)
        buffers.append((address, pinned))
    if set_gear:
        model.set_gear(read, model.values_of([array.shape for array in given]) or ())
    model.execute(read, written)
    for address, pinned in buffers:
        holder.to_host(pinned, address)
    holder.wait()
    return [
        _array(tensor, pinned, written.dims(place) if not tensor.nbytes else model.output_dims(place))
        for place, (tensor, (_, pinned)) in enumerate(zip(model.outputs, buffers, strict=True))
    ]


def _memory(holder: Holder, nbytes: int) -> tuple[int, np.ndarray]:
    """An address on the device and as many pinned bytes, all 0."""
    pinned = holder.pinned(nbytes)
    pinned[:] = 0
    return holder.held_memory(nbytes), pinned


def _array(tensor: Tensor, pinned: np.ndarray, dims: tuple[int, ...]) -> np.ndarray:
    return pinned[: math.prod(dims) * tensor.dtype.itemsize].view(tensor.dtype).reshape(dims).copy()
