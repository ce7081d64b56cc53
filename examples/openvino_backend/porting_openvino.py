"""OpenVINO's CPU device as a backend of porting.

Options after the device's name (`openvino,threads=4`):

    threads=N     default: the physical cores that this process may use

Source: OpenVINO's Python API, 2026.4.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from porting.backends.onnx_program import node_label, read_model
from porting.devices import count_option, require_index, require_known_options
from porting.errors import DeviceUnavailable, InputError, OutOfResources, RuntimeFailed
from porting.host import available_cores
from porting.state import filled, state_buffers
from porting.types import Availability, Program, State, Unsupported

INSTALL = "pip install openvino"
_UNCONVERTED = re.compile(r"No conversion rule found for operations: ([^\n]+)")


class OpenVinoBackend:
    """The processors of this machine, through OpenVINO."""

    name = "openvino"

    def probe(self) -> Availability:
        try:
            runtime = _runtime()
            return Availability(True, detail={"openvino": runtime.get_version()})
        except DeviceUnavailable as error:
            return Availability(False, error.what, error.next)

    def unsupported(self, program: Program) -> list[Unsupported]:
        """Nodes that OpenVINO's ONNX reader has no rule for. Dtypes and shapes that a kernel refuses show in `prepare`."""
        model = read_model(program)
        try:
            _read(_runtime(), program)
        except RuntimeError as error:
            found = _UNCONVERTED.search(str(error))
            if found:
                operators = {name.strip().rpartition("-")[0].rpartition(".")[2] for name in found[1].split(",")}
                return [
                    Unsupported(node_label(node), node.op_type, node.domain, "OpenVINO has no conversion rule for it")
                    for node in model.graph.node
                    if node.op_type in operators
                ]
        return []

    def prepare(self, program: Program, options: Mapping[str, str]) -> OpenVinoSession:
        require_known_options(self.name, options, ("threads",))
        require_index(self.name, options, 1)
        threads = count_option(self.name, options, "threads", available_cores())
        runtime = _runtime()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # else it computes float32 graphs in bfloat16 where the processor can
        }
        model = read_model(program)
        try:
            compiled = runtime.Core().compile_model(_read(runtime, program), "CPU", settings)
        except Exception as error:
            raise _translated(error, "prepare") from error
        return OpenVinoSession(compiled, program, {node_label(node): self.name for node in model.graph.node})


class OpenVinoSession:
    """A compiled model. State goes in with the feeds and is kept from the outputs."""

    def __init__(self, compiled: Any, program: Program, placement: Mapping[str, str]) -> None:
        self.placement = placement
        self._program = program
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()  # a request serves one thread at a time
        # an input that no node reads is no input of the compiled model
        self._read_inputs = {name for port in compiled.inputs for name in port.get_names()}
        self._next = {pair.output: pair.input for pair in program.state.pairs}

    def new_state(self, capacity: int, batch: int = 1, grown_from: State | None = None) -> State:
        buffers = {}
        for name, buffer in state_buffers(self._program, capacity, batch, grown_from).items():
            buffers[name] = np.zeros(buffer.shape, buffer.dtype)
            if grown_from is not None:
                part = filled(grown_from, buffer)
                buffers[name][part] = grown_from.buffers[name][part]
        return State(buffers, np.zeros(batch, np.int64) if grown_from is None else grown_from.length, capacity)

    def read_state(self, state: State) -> dict[str, np.ndarray]:
        return {name: np.array(array) for name, array in state.buffers.items()}

    def run(self, feeds: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        given = {**feeds, **state.buffers} if state else feeds
        for name, array in feeds.items():
            _require_int32(name, array)
        try:
            with self._lock:
                results = self._request.infer({k: v for k, v in given.items() if k in self._read_inputs})
        except Exception as error:
            raise _translated(error, "run") from error
        outputs = {}
        for spec in self._program.outputs:
            if state and spec.name in self._next:
                state.buffers[self._next[spec.name]] = results[spec.name]
            else:
                outputs[spec.name] = results[spec.name]
        return outputs

    def close(self) -> None:
        self._request = None


def _require_int32(name: str, array: np.ndarray) -> None:
    """OpenVINO's CPU device computes int64 in int32 and wraps around in silence: 2**53 + 1 came back as 1.

    What grows too large inside the graph is not seen.
    raises: RuntimeFailed
    """
    if array.dtype == np.int64 and array.size and (array.min() < -(2**31) or array.max() >= 2**31):
        raise RuntimeFailed(f"OpenVINO computes int64 in int32, and input {name!r} has larger numbers", where="run on openvino")


def _runtime() -> Any:
    """raises: DeviceUnavailable"""
    if importlib.util.find_spec("openvino") is None:
        raise DeviceUnavailable("openvino is not installed", where="device openvino", next=INSTALL)
    try:
        return importlib.import_module("openvino")
    except Exception as error:
        raise DeviceUnavailable(f"openvino cannot be imported: {error}", where="device openvino", next=INSTALL) from error


def _read(runtime: Any, program: Program) -> Any:
    model = program.model
    return runtime.Core().read_model(io.BytesIO(model) if isinstance(model, bytes) else str(model))


def _translated(error: Exception, doing: str) -> Exception:
    """OpenVINO raises RuntimeError for everything; what else comes is a bug here."""
    text = " ".join(str(error).split())[:600]
    where = f"{doing} on openvino"
    if isinstance(error, MemoryError) or "bad_alloc" in text:
        return OutOfResources(f"memory ran out: {text}", where=where, next="use a smaller batch or capacity")
    if isinstance(error, RuntimeError):
        missing = "external data" in text.lower()
        return InputError(f"OpenVINO: {text}", where=where) if missing else RuntimeFailed(f"OpenVINO: {text}", where=where)
    return error
