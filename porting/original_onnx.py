"""The untouched .onnx file in plain onnxruntime, as anyone would run it: what a port of it is compared with."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from porting.backends.onnx_program import ELEMENT_TYPES
from porting.backends.onnxruntime import NATIVE, import_runtime, translated
from porting.cuts import Cut
from porting.dtypes import dtype_of
from porting.errors import InputError, PortingError, RuntimeFailed, UnsupportedModel, nearest
from porting.onnx_facts import force
from porting.types import TensorSpec
from porting.verdict import printable

PROVIDER = "CPUExecutionProvider"
WHERE = "the original"
_ELEMENTS = {"float": "float32", "double": "float64"}  # onnxruntime's spelling, where it is not numpy's


class OnnxOriginal:
    """An .onnx file in an InferenceSession of its own, on the CPU, deterministic, without graph optimisations.

    description: for the report
    inputs:      what has to be fed; initializers that may be overridden keep their values
    outputs:     what comes out
    """

    def __init__(
        self, path: str | Path, forced: Mapping[str, bool] | None = None, optimised: bool = False, cut: Cut | None = None
    ) -> None:
        """
        forced:    name of an If node -> the branch that is taken, whatever its condition says; names as `read_proto` gives them
        optimised: with all of onnxruntime's optimisations, to measure against; never as a reference
        cut:       how far it is run, and which inputs are constants
        raises:    UsageError (a cut that does not fit), InputError (no such file, no such If node, or onnxruntime does not take it), RuntimeFailed (nor with `forced`),
                   OutOfResources
        """
        from porting.converters.checkpoints.onnx_file import weights_folder

        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"no such file: {path}", where=WHERE)
        try:
            model = self._edited(forced or {}, cut) if forced or cut else str(self.path)
            self._session, how = open_untouched(model, weights_folder(self.path), optimised)
        except PortingError as error:
            if forced:
                raise
            if "two nodes with same node name" not in error.what:
                raise self._not_taken(error) from error
            # names are no mathematics, and onnxruntime's own writer gives one twice; `read_proto` makes them unique
            try:
                self._session, how = open_untouched(self._edited({}, cut), weights_folder(self.path), optimised)
            except PortingError as again:
                raise self._not_taken(again) from again
            how += ", nodes renamed where two have one name"
        runtime = import_runtime("cpu")
        part = f" {cut}" if cut else ""
        self.description = f"onnxruntime {runtime.__version__} on the untouched file{part}, {how}"
        if forced:
            self.description += f", {len(forced)} If nodes forced"
        self.inputs = tuple(spec_of(value) for value in self._session.get_inputs())
        self.outputs = tuple(spec_of(value) for value in self._session.get_outputs())
        self._plain = is_plain((*self.inputs, *self.outputs))

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Output name -> array, or list of arrays for a sequence. raises: InputError, RuntimeFailed, OutOfResources"""
        if self._session is None:
            raise RuntimeFailed("the original is closed", where=WHERE)
        known = [spec.name for spec in self.inputs]
        for name in feeds:
            if name not in known:
                raise InputError(f"the original has no input {printable(name)!r}", where=WHERE, next=nearest(name, known))
        names = [spec.name for spec in self.outputs]
        try:
            if self._plain:
                values = self._session.run(names, dict(feeds))
            else:
                values = run_as_values(self._session, self.inputs, self.outputs, feeds, {})
        except Exception as error:
            raise _in_our_words(error) from error
        return dict(zip(names, values, strict=True))

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
        self._session = None

    def _edited(self, forced: Mapping[str, bool], cut: Cut | None) -> bytes:
        """The model cut, and with conditions fixed; its weights stay in the file. raises: InputError for an If that it has not"""
        from porting.converters.checkpoints.onnx_file import read_proto

        proto = read_proto(self.path, cut)
        missing = sorted(set(forced) - force(proto.graph, forced))
        if missing:
            raise InputError(f"the original has no If node {missing[0]!r}", where=str(self.path))
        return proto.SerializeToString()

    def _not_taken(self, error: PortingError) -> PortingError:
        """What onnxruntime says of the user's own file is about that file, not about this machine."""
        if not isinstance(error, RuntimeFailed):
            return error
        return UnsupportedModel(
            f"{self.path.name} as it is cannot be run, so nothing can be compared with it: {error.what}",
            where=error.where.replace("prepare on the original", str(self.path)),
            next="plain onnxruntime has to take the file: export it again without what is named, or as an operator that it has",
        )


def is_plain(specs: Sequence[TensorSpec]) -> bool:
    """Whether numpy knows all their dtypes, so that they go in and out as they are."""
    return all(s.dtype in NATIVE or s.dtype == "string" or "(" in s.dtype for s in specs)


def run_as_values(
    session: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], feeds: Mapping[str, Any], more: Mapping[str, Any]
) -> list[Any]:
    """Of a session with dtypes that numpy does not know, which pass as integers of the same width.

    more: feeds of what has a default, in dtypes that numpy knows
    """
    make = import_runtime("cpu").OrtValue
    values = {name: make.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in more.items()}
    for spec in inputs:
        array = np.ascontiguousarray(feeds[spec.name])
        if spec.dtype in NATIVE:
            values[spec.name] = make.ortvalue_from_numpy(array)
        else:
            bits = array.view(np.dtype(f"uint{8 * array.itemsize}"))
            values[spec.name] = make.ortvalue_from_numpy_with_onnx_type(bits, ELEMENT_TYPES[spec.dtype])
    results = session.run_with_ort_values([spec.name for spec in outputs], values)
    return [_read(value, spec.dtype) for value, spec in zip(results, outputs, strict=True)]


def open_untouched(model: str | bytes, folder: Path, optimised: bool = False) -> tuple[Any, str]:
    """A session on a file, or on the bytes of one whose external data lies in `folder`, and in words how it runs.

    raises: InputError (onnxruntime cannot read it), RuntimeFailed (it has no kernel), OutOfResources
    """
    runtime = import_runtime("cpu")
    levels = runtime.GraphOptimizationLevel
    wanted = [
        ("no graph optimisations", levels.ORT_DISABLE_ALL),
        ("basic optimisations, without which it does not run", levels.ORT_ENABLE_BASIC),
    ]
    if optimised:
        wanted = [("all optimisations", levels.ORT_ENABLE_ALL)]
    for how, level in wanted:
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = level
        options.use_deterministic_compute = True
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimised and _scatters(model):
            options.intra_op_num_threads = 1  # with more, sums lack terms: see converters/passes/scatter_nd_in_order.py
        if isinstance(model, bytes):
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        try:
            return runtime.InferenceSession(model, options, providers=[PROVIDER], enable_fallback=0), how
        except Exception as error:
            if (how, level) == wanted[-1]:
                raise translated(error, WHERE, "prepare") from error
    raise AssertionError("unreachable")


def _scatters(model: str | bytes) -> bool:
    """Whether a ScatterND may be in a file or message: by its bytes, for which nothing has to be parsed or read into memory."""
    if isinstance(model, bytes):
        return b"ScatterND" in model
    with open(model, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return mapped.find(b"ScatterND") >= 0


def _in_our_words(error: Exception) -> Exception:
    if isinstance(
        error, (KeyError, ValueError, TypeError)
    ):  # how onnxruntime's Python layer refuses a missing or ill-typed feed
        return InputError(f"the original does not take the feeds: {printable(str(error), 400)}", where=WHERE)
    ours = translated(error, WHERE, "run")
    if type(error).__name__ == "InvalidArgument" and isinstance(ours, PortingError):
        return InputError(f"the original does not take the feeds: {ours.what}", where=ours.where)
    return ours


def spec_of(value: Any) -> TensorSpec:
    """onnxruntime's description of an input or output as ours. raises: InputError for maps and what else is no tensor or sequence of them"""
    kind = value.type
    sequence = kind.startswith("seq(") and kind.endswith(")")
    inner = kind[4:-1] if sequence else kind
    if not (inner.startswith("tensor(") and inner.endswith(")")):
        raise InputError(
            f"{printable(value.name)!r} is {printable(kind)}", where=WHERE, next="tensors and sequences of tensors are covered"
        )
    element = inner[len("tensor(") : -1].replace("float8e", "float8_e")
    element = _ELEMENTS.get(element, element)
    shape = () if sequence else tuple(d if isinstance(d, (int, str)) and d != "" else None for d in value.shape)
    return TensorSpec(value.name, f"sequence({element})" if sequence else element, shape)


def _read(value: Any, dtype: str) -> np.ndarray:
    if dtype in NATIVE:
        return value.numpy()
    array = np.empty(value.shape(), dtype_of(dtype))
    if array.nbytes:
        ctypes.memmove(array.ctypes.data, value.data_ptr(), array.nbytes)
    return array
