"""AscendCL by ctypes: the library found, its functions typed, every status checked.

The library lies in ASCEND_HOME_PATH/lib64, where set_env.sh was sourced; else wherever LD_LIBRARY_PATH says, or in the toolkit's usual folders.
Signatures: acl_rt.h, acl_mdl.h and acl_base_rt.h of CANN 8.x. Never run on hardware.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from porting.backends.ascend.acl_codes import REPEATED_INIT, AclError
from porting.errors import DeviceUnavailable
from porting.verdict import printable

LIBRARY = "libascendcl.so"
HOME = "ASCEND_HOME_PATH"
USUAL = ("/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/latest", "/usr/local/Ascend/nnrt/latest")
SOURCE_ENV = "source the toolkit's set_env.sh: `source /usr/local/Ascend/ascend-toolkit/set_env.sh`"
SAID = 400  # characters of CANN's own text in a message

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2  # aclrtMemcpyKind
HUGE_FIRST = 0  # aclrtMemMallocPolicy
ON_DEVICE = 0  # aclrtRunMode: this program runs on the board itself

_P, _S, _TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
_I32, _U32, _U64, _I64 = ctypes.c_int32, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64
MOST_DIMS = 128  # ACL_MAX_DIM_CNT, and ACL_MAX_TENSOR_NAME_LEN


class Dims(ctypes.Structure):
    """aclmdlIODims"""

    _fields_ = (("name", ctypes.c_char * MOST_DIMS), ("count", _S), ("dims", _I64 * MOST_DIMS))


class Batches(ctypes.Structure):
    """aclmdlBatch"""

    _fields_ = (("count", _S), ("batch", _U64 * MOST_DIMS))


class ImageSizes(ctypes.Structure):
    """aclmdlHW"""

    _fields_ = (("count", _S), ("hw", (_U64 * 2) * MOST_DIMS))


# functions that answer a status
CHECKED: dict[str, tuple[Any, ...]] = {
    "aclInit": (_TEXT,),
    "aclFinalize": (),
    "aclrtGetDeviceCount": (_P,),
    "aclrtGetRunMode": (_P,),
    "aclrtSetDevice": (_I32,),
    "aclrtResetDevice": (_I32,),
    "aclrtCreateContext": (_P, _I32),
    "aclrtDestroyContext": (_P,),
    "aclrtSetCurrentContext": (_P,),
    "aclrtCreateStream": (_P,),
    "aclrtDestroyStream": (_P,),
    "aclrtDestroyStreamForce": (_P,),
    "aclrtSynchronizeStreamWithTimeout": (_P, _I32),
    "aclrtMalloc": (_P, _S, ctypes.c_int),
    "aclrtFree": (_P,),
    "aclrtMallocHost": (_P, _S),
    "aclrtFreeHost": (_P,),
    "aclrtMemset": (_P, _S, _I32, _S),
    "aclrtMemcpyAsync": (_P, _S, _P, _S, ctypes.c_int, _P),
    "aclDestroyDataBuffer": (_P,),
    "aclUpdateDataBuffer": (_P, _P, _S),
    "aclmdlLoadFromFile": (_TEXT, _P),
    "aclmdlUnload": (_U32,),
    "aclmdlDestroyDesc": (_P,),
    "aclmdlGetDesc": (_P, _U32),
    "aclmdlGetInputDims": (_P, _S, _P),
    "aclmdlGetOutputDims": (_P, _S, _P),
    "aclmdlGetCurOutputDims": (_P, _S, _P),
    "aclmdlDestroyDataset": (_P,),
    "aclmdlAddDatasetBuffer": (_P, _P),
    "aclGetTensorDescDimV2": (_P, _S, _P),
    "aclmdlGetDynamicBatch": (_P, _P),
    "aclmdlGetDynamicHW": (_P, _S, _P),
    "aclmdlGetInputDynamicGearCount": (_P, _S, _P),
    "aclmdlGetInputDynamicDims": (_P, _S, _P, _S),
    "aclmdlSetDynamicBatchSize": (_U32, _P, _S, _U64),
    "aclmdlSetDynamicHWSize": (_U32, _P, _S, _U64, _U64),
    "aclmdlSetInputDynamicDims": (_U32, _P, _S, _P),
    "aclmdlExecuteAsync": (_U32, _P, _P, _P),
}
# functions that answer something else: (result, arguments)
PLAIN: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "aclrtGetSocName": (_TEXT, ()),
    "aclGetRecentErrMsg": (_TEXT, ()),
    "aclCreateDataBuffer": (_P, (_P, _S)),
    "aclmdlCreateDesc": (_P, ()),
    "aclmdlCreateDataset": (_P, ()),
    "aclmdlGetNumInputs": (_S, (_P,)),
    "aclmdlGetNumOutputs": (_S, (_P,)),
    "aclmdlGetInputNameByIndex": (_TEXT, (_P, _S)),
    "aclmdlGetOutputNameByIndex": (_TEXT, (_P, _S)),
    "aclmdlGetInputSizeByIndex": (_S, (_P, _S)),
    "aclmdlGetOutputSizeByIndex": (_S, (_P, _S)),
    "aclmdlGetDatasetTensorDesc": (_P, (_P, _S)),
    "aclGetTensorDescNumDims": (_S, (_P,)),
    "aclmdlGetInputDataType": (ctypes.c_int, (_P, _S)),
    "aclmdlGetOutputDataType": (ctypes.c_int, (_P, _S)),
}


class Acl:
    """AscendCL of one installation. path: of the library"""

    def __init__(self, library: ctypes.CDLL, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._initialised = False
        self._functions = {}
        for name, (result, arguments) in {**{n: (ctypes.c_int, a) for n, a in CHECKED.items()}, **PLAIN}.items():
            try:
                function = getattr(library, name)
            except AttributeError as error:
                raise DeviceUnavailable(
                    f"{LIBRARY} has no function {name}: this CANN is too old, or not whole",
                    where=path,
                    next="install CANN 7.0 or newer",
                ) from error
            function.restype, function.argtypes = result, arguments
            self._functions[name] = function

    def check(self, name: str, *arguments: Any, doing: str) -> None:
        """Call a function that answers a status.

        doing:  what for, as in "copy 64 MiB to the device"
        raises: AclError
        """
        status = self._functions[name](*arguments)
        if status:
            raise AclError(name, status, doing, self._said())

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call a function that answers a value."""
        return self._functions[name](*arguments)

    def made(self, name: str, *arguments: Any, doing: str) -> Any:
        """Call a function that makes an object. raises: AclError, as for memory of the host, where it makes none"""
        handle = self._functions[name](*arguments)
        if not handle:
            raise AclError(name, 200000, doing, self._said())
        return handle

    def initialise(self) -> None:
        """aclInit, once in a process; undone when it ends, unless someone else had done it. raises: AclError"""
        with self._lock:
            if self._initialised:
                return
            try:
                self.check("aclInit", None, doing="start CANN")
            except AclError as error:
                if error.code != REPEATED_INIT:
                    raise
            else:
                atexit.register(self._functions["aclFinalize"])
            self._initialised = True

    def device_count(self) -> int:
        """raises: AclError"""
        count = _U32()
        self.check("aclrtGetDeviceCount", ctypes.byref(count), doing="count the devices")
        return count.value

    def soc_name(self) -> str:
        """Of the current device, "" where CANN does not say."""
        return (self.ask("aclrtGetSocName") or b"").decode("utf-8", "replace")

    def _said(self) -> str:
        text = self._functions["aclGetRecentErrMsg"]()
        return printable(" ".join(text.decode("utf-8", "replace").split()), SAID) if text else ""


@cache
def load_acl() -> Acl:
    """The library of this machine. raises: DeviceUnavailable saying what is missing"""
    path = _found()
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise DeviceUnavailable(
            f"{LIBRARY} cannot be loaded: {error}",
            where=path,
            next=f"{SOURCE_ENV}; libascend_hal.so and libdriver come with the driver, which is installed on its own",
        ) from error
    return Acl(library, path)


def _found() -> str:
    """raises: DeviceUnavailable"""
    home = os.environ.get(HOME)
    if home:
        path = Path(home, "lib64", LIBRARY)
        if not path.exists():
            has = "has no lib64" if Path(home).is_dir() else "is no folder"
            what = (
                f"{HOME} {has}" if not path.parent.is_dir() else f"{HOME}/lib64 has no {LIBRARY}: the toolkit is half installed"
            )
            raise DeviceUnavailable(what, where=home, next=f"install the toolkit (or nnrt) again, or {SOURCE_ENV}")
        return str(path)
    searched = list(_folders())
    found = [folder / LIBRARY for folder in searched if (folder / LIBRARY).exists()]
    if not found:
        raise DeviceUnavailable(
            f"CANN is not installed: {LIBRARY} was not found",
            where=f"{HOME} is not set; searched {len(searched)} folders of LD_LIBRARY_PATH and /usr/local/Ascend",
            next=f"{SOURCE_ENV}; without an NPU, --device ascend-sim rehearses on the CPU",
        )
    return str(found[0])


def _folders() -> Iterator[Path]:
    yield from (Path(part) for part in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part)
    yield from (Path(home, "lib64") for home in USUAL)
