"""What a session holds on a device: its context and stream, memory there and pinned on the host, data sets. Freed in reverse, all of it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable

import numpy as np

from porting.backends.ascend.acl import DEVICE_TO_HOST, HOST_TO_DEVICE, HUGE_FIRST, ON_DEVICE, Acl
from porting.backends.ascend.acl_codes import AclError
from porting.errors import DeviceUnavailable

MIB = 2**20


class Holder:
    """A device in use: every handle got through it is given back by `close`, the last first, whatever goes wrong with another."""

    def __init__(self, acl: Acl, index: int, timeout_ms: int) -> None:
        """raises: AclError"""
        self.acl = acl
        self._timeout_ms = timeout_ms
        self._held: list[tuple[str, Callable[[], None]]] = []
        self._context = ctypes.c_void_p()
        self.stream = ctypes.c_void_p()
        try:
            self._open(index)
        except BaseException:
            with contextlib.suppress(AclError):
                self.close()
            raise

    def _open(self, index: int) -> None:
        acl = self.acl
        acl.check("aclrtSetDevice", index, doing=f"take device {index}")
        self.keep("give the device back", lambda: acl.check("aclrtResetDevice", index, doing="give the device back"))
        mode = ctypes.c_int(1)
        acl.check("aclrtGetRunMode", ctypes.byref(mode), doing="ask where this program runs")
        if mode.value == ON_DEVICE:
            raise DeviceUnavailable(
                "this program runs on the board itself, where memory is shared: only hosts with a card are covered",
                where=f"ascend:{index}",
                next="run the .om with the vendor's own samples there",
            )
        acl.check("aclrtCreateContext", ctypes.byref(self._context), index, doing="make a context")
        self.keep("a context", lambda: acl.check("aclrtDestroyContext", self._context, doing="give a context back"))
        acl.check("aclrtCreateStream", ctypes.byref(self.stream), doing="make a stream")
        self.keep("a stream", self._give_stream_back)

    def _give_stream_back(self) -> None:
        if self.stream:
            self.acl.check("aclrtDestroyStream", self.stream, doing="give a stream back")
            self.stream = ctypes.c_void_p()

    def drop_stream(self) -> None:
        """Give the stream back with what is queued on it, after a run that cannot be waited for: before the memory that it might still write."""
        with contextlib.suppress(AclError):
            self.enter()
            self.acl.check("aclrtDestroyStreamForce", self.stream, doing="drop a stream")
            self.stream = ctypes.c_void_p()

    def keep(self, what: str, give_back: Callable[[], None]) -> None:
        self._held.append((what, give_back))

    def enter(self) -> None:
        """Make the context that of this thread: each thread has its own. raises: AclError"""
        self.acl.check("aclrtSetCurrentContext", self._context, doing="enter the context")

    def close(self) -> None:
        """raises: AclError, the first, when all was tried"""
        first = None
        if self._context:
            with contextlib.suppress(AclError):  # of a lost device; then what follows says so
                self.enter()
        while self._held:
            _, give_back = self._held.pop()
            try:
                give_back()
            except AclError as error:
                first = first or error
        self._context, self.stream = ctypes.c_void_p(), ctypes.c_void_p()
        if first is not None:
            raise first

    # --- memory -------------------------------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> int:
        """An address on the device, which `free` gives back. raises: AclError"""
        address = ctypes.c_void_p()
        doing = f"allocate {in_words(nbytes)} on the device"
        self.acl.check("aclrtMalloc", ctypes.byref(address), max(nbytes, 1), HUGE_FIRST, doing=doing)
        return int(address.value or 0)

    def free(self, address: int) -> None:
        """raises: AclError"""
        self.acl.check("aclrtFree", address, doing="free memory of the device")

    def held_memory(self, nbytes: int) -> int:
        """As `allocate`, until `close`. raises: AclError"""
        address = self.allocate(nbytes)
        self.keep("memory", lambda: self.free(address))
        return address

    def pinned(self, nbytes: int) -> np.ndarray:
        """Bytes of the host that copies run beside; until `close`. raises: AclError"""
        acl, address = self.acl, ctypes.c_void_p()
        doing = f"pin {in_words(nbytes)} of the host's memory"
        acl.check("aclrtMallocHost", ctypes.byref(address), max(nbytes, 1), doing=doing)
        self.keep("pinned memory", lambda: acl.check("aclrtFreeHost", address, doing="free pinned memory"))
        return np.ctypeslib.as_array((ctypes.c_uint8 * max(nbytes, 1)).from_address(int(address.value or 0)))[:nbytes]

    # --- work on the stream -------------------------------------------------------------------------------------------

    def to_device(self, address: int, room: int, source: np.ndarray) -> None:
        """Queue a copy of pinned bytes. raises: AclError"""
        self._copy(address, room, source.ctypes.data, source.nbytes, HOST_TO_DEVICE, "to")

    def to_host(self, target: np.ndarray, address: int) -> None:
        """Queue a copy into pinned bytes. raises: AclError"""
        self._copy(target.ctypes.data, target.nbytes, address, target.nbytes, DEVICE_TO_HOST, "from")

    def _copy(self, to: int, room: int, source: int, nbytes: int, kind: int, way: str) -> None:
        if nbytes:
            doing = f"copy {in_words(nbytes)} {way} the device"
            self.acl.check("aclrtMemcpyAsync", to, room, source, nbytes, kind, self.stream, doing=doing)

    def wait(self) -> None:
        """For everything that is queued. raises: AclError"""
        doing = f"finish what was queued, within {self._timeout_ms / 1000:g} s"
        self.acl.check("aclrtSynchronizeStreamWithTimeout", self.stream, self._timeout_ms, doing=doing)


class DataSet:
    """The buffers that a model reads or writes, in the order of its inputs or outputs."""

    def __init__(self, holder: Holder) -> None:
        """raises: AclError"""
        acl = self._acl = holder.acl
        self._holder = holder
        self.handle = acl.made("aclmdlCreateDataset", doing="make a data set")
        holder.keep("a data set", lambda: acl.check("aclmdlDestroyDataset", self.handle, doing="give a data set back"))
        self._buffers: list[int] = []

    def add(self, address: int, nbytes: int) -> None:
        """raises: AclError"""
        acl = self._acl
        buffer = acl.made("aclCreateDataBuffer", address, nbytes, doing="describe a buffer")
        self._holder.keep("a buffer", lambda: acl.check("aclDestroyDataBuffer", buffer, doing="give a buffer back"))
        acl.check("aclmdlAddDatasetBuffer", self.handle, buffer, doing="add to a data set")
        self._buffers.append(buffer)

    def put(self, index: int, address: int, nbytes: int) -> None:
        """Another address for a buffer. raises: AclError"""
        self._acl.check("aclUpdateDataBuffer", self._buffers[index], address, nbytes, doing="put a buffer into a data set")

    def dims(self, index: int) -> tuple[int, ...]:
        """The shape that a run gave to a buffer of its outputs. raises: AclError"""
        acl = self._acl
        described = acl.made("aclmdlGetDatasetTensorDesc", self.handle, index, doing="ask for the shape of an output")
        found = []
        for axis in range(acl.ask("aclGetTensorDescNumDims", described)):
            size = ctypes.c_int64()
            acl.check("aclGetTensorDescDimV2", described, axis, ctypes.byref(size), doing="ask for the shape of an output")
            found.append(size.value)
        return tuple(found)


def in_words(nbytes: int) -> str:
    return f"{nbytes / MIB:.4g} MiB" if nbytes >= MIB else f"{nbytes} bytes"
