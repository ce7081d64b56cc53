"""What the backends that use onnxruntime share: finding it, its errors in our words, and a session with state on the device.

Source for names and texts: onnxruntime 1.28 to 1.31, Python API.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import onnx

from porting.backends.onnx_program import ELEMENT_TYPES, read_model, subgraphs
from porting.distributions import runtime_owners
from porting.dtypes import dtype_of, is_array
from porting.errors import DeviceUnavailable, InputError, OutOfResources, PortingError, RuntimeFailed
from porting.state import filled, state_buffers
from porting.types import Availability, Program, State, StatePair

# (domain, operator) -> {input: output} that may be one buffer: the kernel then writes only what is new.
# Source: onnxruntime's kernels of TensorScatter and GroupQueryAttention compare the two pointers and skip the copy.
IN_PLACE = {("", "TensorScatter"): {0: 0}, ("com.microsoft", "GroupQueryAttention"): {3: 1, 4: 2}}

# dtypes that onnxruntime reads from a numpy array as they are; the others pass as integers of the same width
NATIVE = frozenset(ELEMENT_TYPES) - {"bfloat16", "float8_e4m3fn", "float8_e5m2"}

_NODE = re.compile(r"Name:'([^']+)'|node with name '([^']+)'|Node \(([^)]+)\) Op")
_OUT_OF_MEMORY = re.compile(r"failed to allocate memory|bad_alloc|out of memory|bad allocation", re.IGNORECASE)
_BAD_FILE = re.compile(r"external (data|initializer)|protobuf parsing failed", re.IGNORECASE)
_NOISE = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |/onnxruntime_src/\S+ |\s+")


# --- the package ----------------------------------------------------------------------------------------------------


def import_runtime(extra: str) -> Any:
    """The module onnxruntime.

    extra:  the extra of this package that brings it
    raises: DeviceUnavailable when it is missing or broken
    """
    install = f'pip install "porting[{extra}]"'
    if importlib.util.find_spec("onnxruntime") is None:
        raise DeviceUnavailable("onnxruntime is not installed", where=f"device {extra}", next=install)
    try:
        runtime = importlib.import_module("onnxruntime")
        if not callable(getattr(runtime, "InferenceSession", None)):  # what an uninstall of one of two wheels leaves behind
            raise ImportError("it has no InferenceSession")
    except Exception as error:  # a broken native library raises whatever its loader likes
        several = runtime_owners()
        clash = f"; {' and '.join(several)} overwrite each other" if len(several) > 1 else ""
        raise DeviceUnavailable(
            f"onnxruntime cannot be imported: {error}{clash}",
            where=f"device {extra}",
            next=f"pip uninstall -y {' '.join(o.split()[0] for o in several) or 'onnxruntime'}, then {install}",
        ) from error
    return runtime


def availability(extra: str, provider: str) -> Availability:
    """Whether onnxruntime can be imported and was built with `provider`. Never raises."""
    try:
        runtime = import_runtime(extra)
    except DeviceUnavailable as error:
        return Availability(False, error.what, error.next)
    providers = runtime.get_available_providers()
    detail = {"onnxruntime": runtime.__version__, "providers": ", ".join(providers)}
    if provider not in providers:
        several = runtime_owners()
        return Availability(
            False,
            f"onnxruntime {runtime.__version__} was built without {provider} (it has {', '.join(providers)})",
            f'pip uninstall -y {" ".join(o.split()[0] for o in several)}, then pip install "porting[{extra}]"',
            detail,
        )
    return Availability(True, detail=detail)


def require_version(runtime: Any, program: Program, extra: str) -> None:
    """Refuse a runtime that is older than the program needs: older ones compute some operators wrongly without a word.

    raises: DeviceUnavailable
    """
    needed = program.min_runtime.get("onnxruntime")
    if needed is not None and release(runtime.__version__) < release(needed):
        raise DeviceUnavailable(
            f"this program needs onnxruntime {needed} or later, {runtime.__version__} is installed",
            where="min_runtime",
            next=f'pip install "porting[{extra}]" "onnxruntime{"-gpu" if extra == "cuda" else ""}>={needed}"',
        )


def release(version: str) -> tuple[int, ...]:
    """The numbers at the start of a version, without trailing zeros: "1.28.0.dev1" -> (1, 28)."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


# --- errors ---------------------------------------------------------------------------------------------------------


def translated(error: Exception, device: str, doing: str) -> Exception:
    """An error of onnxruntime in our words; any other error as it is, for then it is our bug.

    returns: OutOfResources, InputError (a file it cannot read) or RuntimeFailed, naming the node where onnxruntime does
    """
    if isinstance(error, PortingError):
        return error
    theirs = type(error).__module__.startswith("onnxruntime") or isinstance(error, (RuntimeError, MemoryError))
    if not theirs:
        return error
    text = _NOISE.sub(" ", str(error)).strip()[:600] or type(error).__name__
    found = _NODE.search(text)
    node = next((name for name in found.groups() if name), "") if found else ""
    where = f"{doing} on {device}" + (f", node {node!r}" if node else "")
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        return OutOfResources(f"memory ran out: {text}", where=where, next="use a smaller batch, capacity or precision")
    if type(error).__name__ in ("NoSuchFile", "InvalidProtobuf") or (doing == "prepare" and _BAD_FILE.search(text)):
        return InputError(f"onnxruntime cannot read the model: {text}", where=where)
    return RuntimeFailed(f"onnxruntime: {text}", where=where)


# --- the session ----------------------------------------------------------------------------------------------------


def base_options(runtime: Any) -> Any:
    """SessionOptions with which errors come as exceptions alone, and onnxruntime says where each node was placed."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # it prints an error and raises it as well
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def open_ort(runtime: Any, program: Program, options: Any, providers: list[Any], device: str) -> Any:
    """An InferenceSession on exactly these providers; the fallback that onnxruntime's Python class has is off.

    raises: InputError, OutOfResources, RuntimeFailed
    """
    model = program.model if isinstance(program.model, bytes) else str(program.model)
    try:
        return runtime.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except Exception as error:
        raise translated(error, device, "prepare") from error


def placement_of(session: Any, device: str, provider: str) -> dict[str, str]:
    """Node name -> `device` where onnxruntime assigned it to `provider`, else the name of the provider that has it."""
    return {
        node.name or node.op_type: device if assigned.ep_name == provider else assigned.ep_name
        for assigned in session.get_provider_graph_assignment_info()
        for node in assigned.get_nodes()
    }


def pairs_in_place(model: onnx.ModelProto, pairs: tuple[StatePair, ...]) -> frozenset[str]:
    """Inputs of the pairs whose buffer may be input and output at once.

    onnxruntime does not know that two bound values are one, so nobody but the operator that writes may read the input;
    its shape does not change and may be asked for.
    """
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    writers: dict[str, tuple[onnx.NodeProto, int]] = {}
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        for node in graph.node:
            pending += subgraphs(node)
            for index, name in enumerate(node.input if node.op_type not in ("Shape", "Size") else ()):
                readers.setdefault(name, []).append((node, index))
            for index, name in enumerate(node.output):
                writers[name] = (node, index)
    safe = set()
    for pair in pairs:
        read = readers.get(pair.input, [])
        node, written = writers.get(pair.output, (None, -1))
        if node is not None and len(read) == 1 and read[0][0] is node:
            domain = "" if node.domain == "ai.onnx" else node.domain
            if IN_PLACE.get((domain, node.op_type), {}).get(read[0][1]) == written:
                safe.add(pair.input)
    return frozenset(safe)


class Buffers(dict):
    """OrtValues by input name, with the binding that holds them: rebinding 60 buffers would cost more than a small run."""

    def __init__(self, binding: Any) -> None:
        super().__init__()
        self.binding = binding


class OrtSession:
    """A program in onnxruntime, with state in buffers on its device.

    Two ways to run. Plain: numpy in, numpy out, state among them; the quicker one for small models. Bound (IO binding): for state on
    a device, for state that its operator updates in place (one buffer, bound as input and output), and for dtypes that numpy lacks.
    A pair that is not updated in place gets a new buffer from each run, which is the input of the next.
    """

    def __init__(
        self,
        runtime: Any,
        session: Any,
        program: Program,
        placement: Mapping[str, str],
        device: str,
        memory: str = "cpu",
        index: int = 0,
    ) -> None:
        """
        placement:     node name -> device
        device:        what messages call it ("cuda:0")
        memory, index: what onnxruntime calls the place where state lies
        raises:        RuntimeFailed for strings and sequences beside what has to be bound, which takes neither
        """
        self._runtime, self._session, self._program = runtime, session, program
        self._device, self._memory, self._index = device, memory, index
        self.placement = placement
        pairs = program.state.pairs
        hidden = {pair.output for pair in pairs}
        specs = [spec for spec in program.outputs if spec.name not in hidden]
        self._outputs = [spec.name for spec in specs]
        self._dtypes = [spec.dtype for spec in specs]
        every = (*program.inputs, *program.outputs)
        self._foreign = {i.name: ELEMENT_TYPES[i.dtype] for i in program.inputs if is_array(i.dtype) and i.dtype not in NATIVE}
        safe = pairs_in_place(read_model(program), pairs) if pairs else frozenset()
        self._in_place = [pair for pair in pairs if pair.input in safe]
        self._swapped = [pair for pair in pairs if pair.input not in safe]
        on_host = memory == "cpu" and not self._in_place
        self._plain = (on_host or not pairs) and not any(is_array(s.dtype) and s.dtype not in NATIVE for s in every)
        self._all_outputs = [*self._outputs, *(pair.output for pair in pairs)]
        odd = [spec for spec in every if not is_array(spec.dtype)]
        if odd and not self._plain:
            raise RuntimeFailed(
                f"{odd[0]} cannot be fed or returned beside state that is updated in place, state on a device, or a dtype that numpy lacks",
                where=f"prepare on {device}",
                next="strings and sequences are tied to plain runs of onnxruntime: split the graph",
            )
        # onnxruntime's class checks the names of feeds again and looks up those of outputs: a microsecond, where a model may take eight
        self._inner = getattr(session, "_sess", session)

    def new_state(self, capacity: int, batch: int = 1, grown_from: State | None = None) -> State:
        try:
            buffers = {} if self._plain else Buffers(self._session.io_binding())
            for name, buffer in state_buffers(self._program, capacity, batch, grown_from).items():
                array = np.zeros(buffer.shape, buffer.dtype)
                if grown_from is not None:
                    part = filled(grown_from, buffer)
                    array[part] = self._host(grown_from.buffers[name], buffer.dtype.name)[part]
                buffers[name] = array if self._plain else self._device_value(name, array)
            if isinstance(buffers, Buffers):
                self._bind_state(buffers)
        except Exception as error:
            raise translated(error, self._device, "new_state") from error
        length = np.zeros(batch, np.int64) if grown_from is None else grown_from.length
        return State(buffers, length, capacity)

    def read_state(self, state: State) -> dict[str, np.ndarray]:
        dtypes = {spec.name: spec.dtype for spec in self._program.inputs}
        try:
            return {name: np.array(self._host(value, dtypes[name])) for name, value in state.buffers.items()}
        except Exception as error:
            raise translated(error, self._device, "read_state") from error

    def run(self, feeds: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        try:
            if not self._plain:
                return self._run_bound(feeds, state)
            if state is None:
                return dict(zip(self._outputs, self._inner.run(self._outputs, feeds, None), strict=True))
            return self._run_with_arrays(feeds, state)
        except Exception as error:
            raise translated(error, self._device, "run") from error

    def close(self) -> None:
        self._session = self._inner = None

    def _run_with_arrays(self, feeds: Mapping[str, np.ndarray], state: State) -> dict[str, np.ndarray]:
        results = self._inner.run(self._all_outputs, {**feeds, **state.buffers}, None)
        count = len(self._outputs)
        for pair, array in zip(self._program.state.pairs, results[count:], strict=True):
            state.buffers[pair.input] = array
        return dict(zip(self._outputs, results[:count], strict=True))

    def _run_bound(self, feeds: Mapping[str, np.ndarray], state: State | None) -> dict[str, np.ndarray]:
        binding = cast(Buffers, state.buffers).binding if state else self._session.io_binding()
        for name, array in feeds.items():
            element_type = self._foreign.get(name)
            if element_type is None:
                binding.bind_cpu_input(name, array)
            else:
                binding.bind_ortvalue_input(name, self._foreign_value(array, element_type))
        # bound anew in every run: onnxruntime would write into what the caller still holds from the run before
        for name in self._outputs:
            binding.bind_output(name)
        for pair in self._swapped:
            binding.bind_output(pair.output, self._memory, self._index)
        self._session.run_with_iobinding(binding)
        results = binding.get_outputs_as_ortvaluevector()  # in the order of the first binding, see _bind_state
        outputs = {name: self._read(results[i], self._dtypes[i]) for i, name in enumerate(self._outputs)}
        if state:
            for i, pair in enumerate(self._swapped, start=len(self._outputs)):
                value = self._runtime.OrtValue(results[i])
                binding.bind_ortvalue_input(pair.input, value)
                state.buffers[pair.input] = value
        return outputs

    def _bind_state(self, buffers: Buffers) -> None:
        for name in self._outputs:
            buffers.binding.bind_output(name)
        for pair in self._swapped:
            buffers.binding.bind_output(pair.output, self._memory, self._index)
            buffers.binding.bind_ortvalue_input(pair.input, buffers[pair.input])
        for pair in self._in_place:
            buffers.binding.bind_ortvalue_input(pair.input, buffers[pair.input])
            buffers.binding.bind_ortvalue_output(pair.output, buffers[pair.input])

    def _device_value(self, name: str, array: np.ndarray) -> Any:
        if name not in self._foreign:
            return self._runtime.OrtValue.ortvalue_from_numpy(array, self._memory, self._index)
        if self._memory != "cpu":
            raise RuntimeFailed(f"state {name!r} of dtype {array.dtype} is not covered on {self._device}", where="new_state")
        return self._foreign_value(array, self._foreign[name])

    def _foreign_value(self, array: np.ndarray, element_type: int) -> Any:
        same_width = array.view(np.dtype(f"uint{8 * array.itemsize}"))
        return self._runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(same_width, element_type)

    def _host(self, value: Any, dtype: str) -> np.ndarray:
        return value if isinstance(value, np.ndarray) else self._read(value, dtype)

    def _read(self, value: Any, dtype: str) -> np.ndarray:
        """A value as numpy; onnxruntime has no array for dtypes that numpy does not know, so those are copied byte for byte."""
        if dtype in NATIVE:
            return value.numpy()
        array = np.empty(value.shape(), dtype_of(dtype))
        if array.nbytes:
            ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
        return array
