"""Run a compiled model of the simulator: the graph that the compiler left, on onnxruntime's CPU provider.

What is rounded stands in the graph. Not modelled: kernels, fusion, the order of sums, time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from porting.ascend.half_formats import FORMATS
from porting.backends.cann_simulator.aipp_input import INPUT_MISMATCH, numbers_from, ops_of
from porting.backends.cann_simulator.machine import Gear, IoSpec, Machine, Refused
from porting.backends.cann_simulator.om_file import Arithmetic, OmHeader, read_om, require_runs_on
from porting.backends.cann_simulator.om_graph import open_session
from porting.backends.cann_simulator.om_types import ACL_BF16, ACL_FLOAT16, ACL_INT64, NUMPY_TYPES, itemsize_of
from porting.backends.cann_simulator.placement import Placement

GEAR_INPUT = "ascend_mbatch_shape_data"  # ACL_DYNAMIC_TENSOR_NAME; that its numbers are int64 is a guess
LOAD_MODEL, NOT_A_GEAR, NO_GEARS, OUT_OF_MEMORY, CORE_FAILED = 545001, 145012, 100019, 207001, 507015
NOT_MODELLED = "kernel internals, accumulators, fusion and the order of sums are not modelled"
_HALVES = {ACL_FLOAT16: FORMATS["fp16"], ACL_BF16: FORMATS["bf16"]}
_RUNTIME_TYPES: Mapping[str, np.dtype] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    **{f"tensor({t.name})": t for t in NUMPY_TYPES.values() if t.name not in ("float32", "float64")},
}


def load(om: bytes, machine: Machine) -> Loaded:
    """raises: Refused for what is no .om, is damaged, or is of another SoC or a newer release"""
    return Loaded(om, machine)


def describe(om: bytes) -> Described:
    """What a .om says of itself: nothing is made ready to run, and any SoC will do. raises: Refused for what is no .om or is damaged"""
    return Described(read_om(om).header)


class Described:
    """What a model says of itself.

    inputs, outputs: as a client sees them; with gears the last input is GEAR_INPUT
    gears, gear_kind: the shapes it was compiled for, and how a client says one; () and "" without
    gear_input:  index of GEAR_INPUT, None without gears
    weight_bytes, work_bytes: of device memory, at least
    arithmetic:  how it computes, for reports
    """

    def __init__(self, header: OmHeader) -> None:
        self.soc, self.cann, self.options = header.soc, header.cann, header.options
        self.gears: tuple[Gear, ...] = header.gears
        self.gear_kind: str = header.gear_kind
        self.inputs: tuple[IoSpec, ...] = (*header.inputs, *_gear_spec(header.gears, header.gear_kind))
        self.outputs: tuple[IoSpec, ...] = header.outputs
        self.gear_input: int | None = len(header.inputs) if header.gears else None
        self.weight_bytes, self.work_bytes = header.weight_bytes, header.work_bytes
        self.arithmetic: Arithmetic = header.arithmetic
        self.placement = Placement(header.nodes, header.ai_cpu)


class Loaded(Described):
    """A model on the device. One run at a time is the caller's business; `run` itself takes several threads."""

    def __init__(self, om: bytes, machine: Machine) -> None:
        read = read_om(om)
        require_runs_on(read.header, machine)
        super().__init__(read.header)
        self._fed = read.header.inputs
        try:
            self._aipp = ops_of(read.header.aipp)
            self._session, self._held = open_session(read)
        except MemoryError as error:
            raise Refused(OUT_OF_MEMORY, "EL0004: no memory for the model on this machine") from error
        except Exception as error:  # onnxruntime's own classes, and what its reading of the graph raises
            raise Refused(LOAD_MODEL, f"E19999: the model does not load: {str(error)[:300]}") from error
        self._om = om  # the session reads its weights there
        self._names = [value.name for value in self._session.get_outputs()]
        self._dtypes = {value.name: _RUNTIME_TYPES.get(value.type) for value in self._session.get_inputs()}

    def run(self, inputs: Sequence[np.ndarray], gear: int | None = None) -> list[np.ndarray]:
        """
        inputs:  in order, the gear input in its place or left out; an array may hold more bytes than its gear needs, as a buffer does
        gear:    number of the gear; None: the largest, as the device takes it where nobody says one
        returns: an array for each output, of the gear's dims
        raises:  Refused
        """
        if len(inputs) not in (len(self._fed), len(self.inputs)):
            raise Refused(INPUT_MISMATCH, f"E13025: {len(inputs)} inputs, and the model has {len(self.inputs)}", True)
        chosen = self._chosen(gear)
        shapes = None if chosen is None else chosen.inputs
        feeds = {}
        for place, spec in enumerate(self._fed):
            array = _as_input(inputs[place], spec, None if shapes is None else shapes[place])
            if place in self._aipp:
                array = numbers_from(self._aipp[place], array, self.arithmetic.saturates)
            wanted = self._dtypes.get(spec.name)
            if wanted is not None:  # None: an input that nothing reads was left out of the graph
                feeds[spec.name] = array.astype(wanted, copy=False)
        found = self._computed(feeds)
        for place, (array, spec) in enumerate(zip(found, self.outputs, strict=True)):
            require_sized(array, spec.dims if chosen is None else chosen.outputs[place], spec.name)
        return [self._stored(array, spec) for array, spec in zip(found, self.outputs, strict=True)]

    def _chosen(self, gear: int | None) -> Gear | None:
        if not self.gears:
            if gear is not None:
                raise Refused(NO_GEARS, "E10040: the model was compiled without gears", True)
            return None
        if gear is None:
            return max(self.gears, key=lambda one: sum(math.prod(dims) for dims in one.inputs))
        if not 0 <= gear < len(self.gears):
            raise Refused(NOT_A_GEAR, f"E13025: the model has {len(self.gears)} gears, and no number {gear}", True)
        return self.gears[gear]

    def _computed(self, feeds: Mapping[str, Any]) -> list[np.ndarray]:
        try:
            found: list[np.ndarray] = self._session.run(self._names, feeds)
        except MemoryError as error:
            raise Refused(OUT_OF_MEMORY, "EL0004: no memory for the run on this machine") from error
        except Exception as error:  # onnxruntime's own classes: an index out of range, shapes that do not fit
            raise Refused(CORE_FAILED, f"EZ9999: a kernel failed: {str(error)[:300]}") from error
        return found

    def _stored(self, array: np.ndarray, spec: IoSpec) -> np.ndarray:
        """In the output's dtype."""
        dtype = NUMPY_TYPES[spec.acl_dtype]
        if array.dtype == dtype:
            return array
        form = _HALVES.get(spec.acl_dtype)
        if form is not None and self.arithmetic.saturates:
            array = np.clip(
                np.nan_to_num(array, nan=0.0, posinf=form.largest, neginf=-form.largest), -form.largest, form.largest
            )
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(dtype)


def require_sized(array: np.ndarray, dims: Sequence[int], name: str) -> None:
    """A device writes as much as a model was compiled for. dims: -1 where nobody knows. raises: Refused where something else came out"""
    known = tuple(dims) == (-1,) or (
        len(dims) == array.ndim and all(d in (-1, n) for d, n in zip(dims, array.shape, strict=True))
    )
    if not known:
        raise Refused(CORE_FAILED, f"EZ9999: {name[:200]!r} is compiled as {list(dims)}, and {list(array.shape)} came out")


def _gear_spec(gears: Sequence[Gear], kind: str) -> list[IoSpec]:
    """The input by which the device is told of a gear; that a number is written for each that differs is a guess."""
    if not gears:
        return []
    length = {"batch": 1, "image": 2}.get(kind, len(gears[0].values))
    return [IoSpec(GEAR_INPUT, ACL_INT64, (length,), length * itemsize_of(ACL_INT64))]


def _as_input(array: np.ndarray, spec: IoSpec, shape: tuple[int, ...] | None) -> np.ndarray:
    """What a buffer holds of an input. shape: of the gear; None where there are no gears"""
    dtype = NUMPY_TYPES[spec.acl_dtype]
    if shape is None:
        shape = spec.dims if -1 not in spec.dims else array.shape
    if array.dtype == dtype and array.shape == shape:
        return array
    if array.dtype != dtype and array.dtype != np.uint8:
        raise Refused(INPUT_MISMATCH, f"E13025: {spec.name[:200]!r} takes {dtype}, got {array.dtype}", True)
    if -1 in spec.dims and array.dtype == dtype and len(array.shape) == len(spec.dims) and shape == array.shape:
        return array
    needed = math.prod(shape) * dtype.itemsize
    if array.nbytes < needed:
        raise Refused(
            INPUT_MISMATCH,
            f"E13025: {spec.name[:200]!r} of {list(shape)} {dtype} takes {needed} bytes, the buffer has {array.nbytes}",
            True,
        )
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return data[:needed].view(dtype).reshape(shape)
