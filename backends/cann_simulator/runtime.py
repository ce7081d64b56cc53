"""What the C++ shim calls: the table of functions that it gets at aclInit, and how arrays and errors pass between the two.

The shim owns devices, memory, streams and handles; what a model is and computes is decided in Python. Every function here runs while the
shim holds no lock, in any thread, and returns an aclError: nothing is raised into C++.
"""

from __future__ import annotations

import atexit
import ctypes as C
import json
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from . import compiler, execution, single_operators
from .environment import MACHINE
from .machine import FAULTS, IoSpec, Machine, Refused

INTERNAL = 500000
HOST_MEMORY = 200000

# aclDataType -> numpy
DTYPES: dict[int, np.dtype] = {
    code: np.dtype(kind)
    for code, kind in {
        0: np.float32,
        1: np.float16,
        2: np.int8,
        3: np.int32,
        4: np.uint8,
        6: np.int16,
        7: np.uint16,
        8: np.uint32,
        9: np.int64,
        10: np.uint64,
        11: np.float64,
        12: np.bool_,
        16: np.complex64,
        17: np.complex128,
        27: ml_dtypes.bfloat16,
        35: ml_dtypes.float8_e5m2,
        36: ml_dtypes.float8_e4m3fn,
    }.items()
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


class Tensor(C.Structure):
    """sim::Tensor of simulator.h."""

    _fields_ = (
        ("data", C.c_void_p),
        ("nbytes", C.c_uint64),
        ("dims", C.POINTER(C.c_int64)),
        ("rank", C.c_int32),
        ("dtype", C.c_int32),
    )


class Logic(C.Structure):
    """sim::Logic of simulator.h."""

    _fields_ = (
        ("compile", C.CFUNCTYPE(C.c_int, C.c_void_p, C.c_uint64, C.c_char_p, C.c_void_p)),
        ("load", C.CFUNCTYPE(C.c_int, C.c_void_p, C.c_uint64, C.c_uint32, C.c_void_p)),
        ("describe", C.CFUNCTYPE(C.c_int, C.c_void_p, C.c_uint64, C.c_void_p)),
        ("run", C.CFUNCTYPE(C.c_int, C.c_uint32, C.c_int32, C.c_int32, C.POINTER(Tensor), C.c_void_p)),
        ("unload", C.CFUNCTYPE(C.c_int, C.c_uint32)),
        ("single", C.CFUNCTYPE(C.c_int, C.c_char_p, C.c_char_p, C.c_int32, C.POINTER(Tensor), C.c_void_p)),
        ("operate", C.CFUNCTYPE(C.c_int, C.c_char_p, C.c_int32, C.c_void_p, C.c_void_p)),
    )


class _Runtime:
    """The simulator of this process: its machine, its models, and the library that it answers."""

    def __init__(self, library: C.CDLL, machine: Machine) -> None:
        self.library = library
        self.machine = machine
        self.models: dict[int, Any] = {}  # id -> execution.Loaded

    def compile(self, onnx: int, nbytes: int, options: bytes, reply: int) -> None:
        om = compiler.compile_onnx(C.string_at(onnx, nbytes), json.loads(options), self.machine, None)
        self.library.cannsim_reply_bytes(reply, om, len(om))

    def load(self, om: int, nbytes: int, number: int, reply: int) -> None:
        loaded = execution.load(C.string_at(om, nbytes), self.machine)
        self._describe(loaded, reply)
        self.models[number] = loaded

    def describe(self, om: int, nbytes: int, reply: int) -> None:
        self._describe(execution.load(C.string_at(om, nbytes), self.machine), reply)

    def _describe(self, loaded: Any, reply: int) -> None:
        for is_output, specs in enumerate((loaded.inputs, loaded.outputs)):
            for spec in specs:
                self._add_io(reply, is_output, spec)
        gear_input = -1 if loaded.gear_input is None else loaded.gear_input
        kind = (loaded.gear_kind or "").encode()
        self.library.cannsim_reply_model(reply, kind, gear_input, loaded.weight_bytes, loaded.work_bytes)
        for gear in loaded.gears:
            self.library.cannsim_reply_gear(reply, *_dims(gear.values))
            for is_output, shapes in enumerate((gear.inputs, gear.outputs)):
                for shape in shapes:
                    self.library.cannsim_reply_gear_dims(reply, is_output, *_dims(shape))

    def _add_io(self, reply: int, is_output: int, spec: IoSpec) -> None:
        self.library.cannsim_reply_io(reply, is_output, spec.name.encode(), spec.acl_dtype, *_dims(spec.dims), spec.nbytes)

    def run(self, number: int, gear: int, count: int, tensors: Any, reply: int) -> None:
        inputs = [_view(tensors[i]) for i in range(count)]
        self._give(reply, self.models[number].run(inputs, None if gear < 0 else gear))

    def unload(self, number: int) -> None:
        self.models.pop(number, None)

    def single(self, kind: bytes, attributes: bytes, count: int, tensors: Any, reply: int) -> None:
        inputs = [_view(tensors[i]) for i in range(count)]
        self._give(reply, single_operators.run(kind.decode(), json.loads(attributes), inputs))

    def operate(self, name: bytes, count: int, arguments: int, reply: int) -> None:
        from . import opapi  # with torch, which is there: only torch_npu calls these

        for place, shape in opapi.run(name.decode(), count, arguments, self.machine):
            self.library.cannsim_reply_dims(reply, place, *_dims(shape))

    def _give(self, reply: int, outputs: Sequence[np.ndarray]) -> None:
        for index, output in enumerate(outputs):
            array = np.asarray(output, order="C")  # ascontiguousarray would make a scalar a vector
            rank, dims = _dims(array.shape)
            tensor = Tensor(array.ctypes.data, array.nbytes, dims, rank, CODES[array.dtype])
            if self.library.cannsim_reply_output(reply, index, C.byref(tensor)):
                return  # the shim says why


def _dims(shape: Sequence[int]) -> tuple[int, Any]:
    return len(shape), (C.c_int64 * max(len(shape), 1))(*shape)


def _view(tensor: Tensor) -> np.ndarray:
    """Device memory as an array; nothing is copied. An optional operand that is not there becomes an empty array."""
    dtype = DTYPES.get(tensor.dtype)
    if tensor.dtype < 0 or dtype is None:
        if tensor.data:
            raise Refused(100026, f"E19999: aclDataType {tensor.dtype} is not simulated")
        return np.empty(0, np.float32)
    shape = tuple(tensor.dims[: tensor.rank])
    if not tensor.nbytes:
        return np.empty(shape if tensor.data else 0, dtype)
    array = np.frombuffer((C.c_char * tensor.nbytes).from_address(tensor.data), dtype).reshape(shape)
    array.flags.writeable = False
    return array


def _guarded(library: C.CDLL, work: Callable[..., None], replies: bool = True) -> Callable[..., int]:
    """`work` as C++ may call it: what it raises becomes a code and a text in the reply, its last argument."""

    def call(*arguments: Any) -> int:
        try:
            work(*arguments)
            return 0
        except Refused as error:
            said = error.text if error.documented else f"{error.text} (no document gives the code: {error.code} is a guess)"
            code = error.code
        except MemoryError as error:
            said, code = f"the host has no memory: {error}", HOST_MEMORY
        except Exception as error:
            said, code = f"the simulator broke: {type(error).__name__}: {error}", INTERNAL
            traceback.print_exc()
        if replies:
            library.cannsim_reply_error(arguments[-1], said.encode())
        return code

    return call


_installed: list[Any] = []  # what C++ holds pointers to


def install(path: str) -> None:
    """Hand the shim at `path` its machine and its functions; the shim calls this once, when a client calls aclInit."""
    machine = Machine.from_json(os.environ[MACHINE]) if MACHINE in os.environ else Machine()
    library = _declared(C.CDLL(path))
    runtime = _Runtime(library, machine)
    logic = Logic()
    for name, kind in Logic._fields_:
        setattr(logic, name, kind(_guarded(library, getattr(runtime, name), replies=name != "unload")))
    _installed.extend((runtime, logic))
    texts = [text.encode() for text in (machine.soc, machine.cann, machine.report, machine.trace)]
    numbers = (machine.devices, machine.memory_bytes, machine.seed, machine.delay_us)
    library.cannsim_set_machine(*texts, *numbers, machine.chip().saturates is True)
    for fault in machine.faults:
        library.cannsim_add_fault(list(FAULTS).index(fault.kind), fault.at)
    atexit.register(library.cannsim_shutdown)
    library.cannsim_install(C.byref(logic))


def _declared(library: C.CDLL) -> C.CDLL:
    dims = (C.c_int, C.POINTER(C.c_int64))
    signatures: dict[str, tuple[Any, ...]] = {
        "cannsim_install": (C.POINTER(Logic),),
        "cannsim_set_machine": (*(C.c_char_p,) * 4, C.c_uint32, C.c_uint64, C.c_uint64, C.c_uint64, C.c_int),
        "cannsim_add_fault": (C.c_int, C.c_uint64),
        "cannsim_shutdown": (),
        "cannsim_reply_error": (C.c_void_p, C.c_char_p),
        "cannsim_reply_bytes": (C.c_void_p, C.c_char_p, C.c_uint64),
        "cannsim_reply_io": (C.c_void_p, C.c_int, C.c_char_p, C.c_int, *dims, C.c_uint64),
        "cannsim_reply_model": (C.c_void_p, C.c_char_p, C.c_int, C.c_uint64, C.c_uint64),
        "cannsim_reply_gear": (C.c_void_p, *dims),
        "cannsim_reply_gear_dims": (C.c_void_p, C.c_int, *dims),
        "cannsim_reply_output": (C.c_void_p, C.c_int, C.POINTER(Tensor)),
        "cannsim_reply_dims": (C.c_void_p, C.c_int, *dims),
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = C.c_int if name == "cannsim_reply_output" else None
    return library
