"""A client of the C API by ctypes, and the child process that it runs in, for tests of the shim.

The logic behind the shim is a stand-in here, a few lines that can be slow, wrong or refuse on demand; tests of the real logic, and of the
two together, have files of their own. A model of the stand-in is JSON: {"inputs": [[name, acl dtype, dims, bytes]], "outputs": [...], ...};
it gives `scale * sum of the inputs + shift`, as each output's dtype and as many elements as fit.
"""

from __future__ import annotations

import ctypes as C
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
H2D, D2H, D2D = 1, 2, 3
INT32, FLOAT = 3, 0
NUMPY = {0: np.float32, 3: np.int32, 4: np.uint8, 9: np.int64}


def run_client(code: str, environment: dict[str, str], timeout: float = 60, real_logic: bool = False) -> Any:
    """What `code` prints as the last line, as JSON; it runs in a child of its own, `acl` being an `Acl`. A crash fails the test."""
    return json.loads(printed(code, environment, timeout, real_logic).splitlines()[-1])


def printed(code: str, environment: dict[str, str], timeout: float = 60, real_logic: bool = False) -> str:
    """All that it prints."""
    start = "" if real_logic else "stand_in()\n"
    program = f"from tests.cann_simulator.acl_client import *\n{start}acl = Acl()\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stderr[-4000:]}"
    return done.stdout


def machine(**options: Any) -> dict[str, str]:
    """The environment of a simulated machine. raises: what `simulated_environment` raises"""
    from porting.backends.cann_simulator.environment import simulated_environment
    from porting.backends.cann_simulator.machine import Machine

    return simulated_environment(Machine(**options))


class Dims(C.Structure):
    _fields_ = (("name", C.c_char * 128), ("count", C.c_size_t), ("dims", C.c_int64 * 128))

    def tuple(self) -> list[int]:
        return list(self.dims[: self.count])


class Acl:
    """The functions of libascendcl.so by name; integers are passed as 64 bits, pointers as they are."""

    def __init__(self) -> None:
        self.library = C.CDLL("libascendcl.so")

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.library, name)

        def call(*arguments: Any) -> Any:
            return function(*(C.c_int64(a) if isinstance(a, int) else a for a in arguments))

        return call

    def handle(self, name: str, *arguments: Any) -> int:
        """What a function that returns a pointer or size_t gives."""
        function = getattr(self.library, name)
        function.restype = C.c_uint64
        return int(function(*(C.c_int64(a) if isinstance(a, int) else a for a in arguments)))

    def text(self, name: str, *arguments: Any) -> str | None:
        function = getattr(self.library, name)
        function.restype = C.c_char_p
        value = function(*(C.c_int64(a) if isinstance(a, int) else a for a in arguments))
        return None if value is None else value.decode()

    def error(self) -> str:
        return self.text("aclGetRecentErrMsg") or ""

    def out(self, name: str, *arguments: Any, kind: Any = C.c_uint64) -> Any:
        """The value that a function writes through its first argument; AssertionError with the code where it fails."""
        value = kind()
        code = getattr(self, name)(C.byref(value), *arguments)
        assert code == 0, f"{name}: {code} {self.error()}"
        return value.value

    def ok(self, name: str, *arguments: Any) -> None:
        code = getattr(self, name)(*arguments)
        assert code == 0, f"{name}: {code} {self.error()}"

    def start(self, device: int = 0) -> None:
        self.ok("aclInit", None)
        self.ok("aclrtSetDevice", device)

    def malloc(self, nbytes: int) -> int:
        return self.out("aclrtMalloc", nbytes, 0)

    def put(self, address: int, array: np.ndarray) -> None:
        self.ok("aclrtMemcpy", address, array.nbytes, array.ctypes.data, array.nbytes, H2D)

    def get(self, address: int, shape: Any, dtype: Any) -> np.ndarray:
        array = np.empty(shape, dtype)
        self.ok("aclrtMemcpy", array.ctypes.data, array.nbytes, address, array.nbytes, D2H)
        return array

    def load(self, model: dict[str, Any]) -> int:
        code, number = self.try_load(model)
        assert code == 0, f"{code} {self.error()}"
        return number

    def try_load(self, model: dict[str, Any]) -> tuple[int, int]:
        data = json.dumps(model).encode()
        number = C.c_uint32()
        code = self.aclmdlLoadFromMem(data, len(data), C.byref(number))
        return code, number.value

    def dataset(self, *buffers: tuple[int, int]) -> tuple[int, list[int]]:
        """A dataset of (address, bytes), and its buffers' handles."""
        made = self.handle("aclmdlCreateDataset")
        handles = [self.handle("aclCreateDataBuffer", address, nbytes) for address, nbytes in buffers]
        for handle in handles:
            self.ok("aclmdlAddDatasetBuffer", made, handle)
        return made, handles

    def drop(self, dataset: int, handles: list[int]) -> None:
        self.ok("aclmdlDestroyDataset", dataset)
        for handle in handles:
            self.ok("aclDestroyDataBuffer", handle)

    def report(self) -> dict[str, Any]:
        text = C.create_string_buffer(1 << 16)
        self.library.cannsim_report(text, len(text))
        return json.loads(text.value)

    def leaks(self) -> dict[str, list[int]]:
        return {leak["kind"]: [leak["count"], leak["bytes"]] for leak in self.report()["leaks"]}


def adder(count: int = 4, **more: Any) -> dict[str, Any]:
    """A model of the stand-in: `count` int32 in, as many out, each one more."""
    io = [["x", INT32, [count], 4 * count]]
    return {"inputs": io, "outputs": [["y", INT32, [count], 4 * count]], "shift": 1, **more}


def show(value: Any) -> None:
    print(json.dumps(value))


# --- the stand-in, in the child ---------------------------------------------------------------------------------------


def stand_in() -> None:
    """Take the place of compiler, execution and single_operators in this process."""
    from porting.backends import cann_simulator
    from porting.backends.cann_simulator.machine import Refused

    def single(kind: str, attributes: Any, inputs: Any) -> Any:
        if kind == "Refuse":
            raise Refused(500002, "E10001: refused", True)
        return [inputs[0] + inputs[1] * attributes.get("alpha", 1)]

    def compile_onnx(model: bytes, options: Any, machine: Any, folder: Any) -> bytes:
        return json.dumps({**json.loads(model), "options": dict(options)}).encode()

    for name, functions in {
        "compiler": {"compile_onnx": compile_onnx},
        "execution": {"load": _Loaded},
        "single_operators": {"run": single},
    }.items():
        module = types.ModuleType(f"porting.backends.cann_simulator.{name}")
        vars(module).update(functions)
        sys.modules[module.__name__] = module
        setattr(cann_simulator, name, module)


class _Loaded:
    def __init__(self, om: bytes, machine: Any) -> None:
        from porting.backends.cann_simulator.machine import Gear, IoSpec, Refused

        try:
            self.model = json.loads(om)
        except ValueError as error:
            raise Refused(545001, "E19999: no model", True) from error
        specs = [[IoSpec(n, t, tuple(d), b) for n, t, d, b in self.model[k]] for k in ("inputs", "outputs")]
        self.inputs, self.outputs = specs
        self.gears = tuple(Gear(**{k: _tuples(v) for k, v in g.items()}) for g in self.model.get("gears", ()))
        self.gear_kind = self.model.get("gear_kind", "")
        self.gear_input = self.model.get("gear_input")
        self.weight_bytes = self.model.get("weight_bytes", 0)
        self.work_bytes = self.model.get("work_bytes", 0)

    def run(self, inputs: Any, gear: int | None) -> list[np.ndarray]:
        time.sleep(self.model.get("seconds", 0))
        if self.model.get("bug"):
            raise RuntimeError("a bug in the logic")
        total = sum((x.sum() if self.model.get("reduce") else x) for x in inputs) * self.model.get("scale", 1)
        result = total + self.model.get("shift", 0)
        return [np.asarray(result, NUMPY[spec.acl_dtype]) for spec in self.outputs]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
