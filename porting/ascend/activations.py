"""What the values of a float32 graph are on given inputs, on the CPU provider: how large, and what a narrower format loses of them.

Inner values come out in slices of at most SLICE_BYTES, each by a run of its own, so that memory is bounded whatever the graph holds. What lies
in the body of a control flow does not come out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from porting.ascend.graph_at_hand import AtHand
from porting.ascend.half_formats import Format, Magnitudes, magnitudes
from porting.ascend.rounded_graph import PREFIX, Types
from porting.backends.onnx_program import subgraphs
from porting.errors import InputError, nearest
from porting.onnx_facts import nodes_of
from porting.verdict import printable

SLICE_BYTES = 256 << 20  # of inner values that are in memory at once, beside what the run itself needs; tests lower it
WHERE = "the forecast's run on the CPU provider"

Cases = Sequence[Mapping[str, np.ndarray]]


@dataclass
class Observed:
    """
    outputs: one table per case: graph output -> array
    sizes:   float32 value of the main graph -> the most elements that it has, over the cases
    found:   value -> what it holds, over all cases; float32 inputs, initializers and results of nodes
    """

    outputs: list[dict[str, np.ndarray]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    found: dict[str, Magnitudes] = field(default_factory=dict)


def observed(source: AtHand, types: Types, cases: Cases, form: Format) -> Observed:
    """Run the graph as it is, and look at everything. raises: InputError (feeds that do not fit), RuntimeFailed, OutOfResources"""
    require_feeds(source.model, cases)
    result = Observed()
    inner = _float_results(source.model.graph, types)
    _add_outputs_and_sizes(result, source, inner, cases)
    for names in _slices(inner, result.sizes):
        for values in runs(_giving(source.model, names), source, cases):
            for name in names:
                _add(result.found, name, magnitudes(values[name], form))
            values.clear()
    for case in cases:
        for name, array in case.items():
            if getattr(array, "dtype", None) == np.float32:
                _add(result.found, name, magnitudes(array, form))
    for tensor in _initializers(source.model.graph):
        if tensor.data_type == TensorProto.FLOAT:
            result.found[tensor.name] = magnitudes(source.array(tensor), form)
    return result


def runs(model: onnx.ModelProto, source: AtHand, cases: Cases) -> Iterator[dict[str, Any]]:
    """The outputs of each case, by name, of a model whose weights are those of `source`. raises: as `observed`"""
    from porting.backends.onnxruntime import translated

    session = _session(model, source.folder)
    names = [output.name for output in session.get_outputs()]
    for case in cases:
        try:
            values = session.run(names, dict(case))
        except Exception as error:
            if isinstance(error, (KeyError, ValueError, TypeError)) or type(error).__name__ == "InvalidArgument":
                raise InputError(f"the graph does not take the feeds: {printable(str(error), 400)}", where=WHERE) from error
            raise translated(error, WHERE, "run") from error
        yield dict(zip(names, values, strict=True))


def _session(model: onnx.ModelProto, folder: Path) -> Any:
    """Nothing is optimised: every node stores what it computes."""
    from porting.backends.onnxruntime import import_runtime, translated

    runtime = import_runtime("cpu")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.use_deterministic_compute = True
    # to plan which buffers to use again takes the square of the number of nodes where sizes are free: 18 s at 10,000, onnxruntime 1.31.1
    options.enable_mem_reuse = False
    options.enable_cpu_mem_arena = False  # what is freed goes back, where an arena keeps the most that it ever had
    if any(node.op_type == "ScatterND" for _, node in nodes_of(model.graph)):
        options.intra_op_num_threads = 1  # with more, sums lack terms: see converters/passes/scatter_nd_in_order.py
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:
        raise translated(error, WHERE, "prepare") from error


def require_feeds(model: onnx.ModelProto, cases: Cases) -> None:
    """raises: InputError for a name that is no input, and for an input without an array"""
    initial = {tensor.name for tensor in model.graph.initializer}
    known = [value.name for value in model.graph.input if value.name not in initial]
    if not cases:
        raise InputError("no inputs to run on", where=WHERE, next="a forecast of overflows needs real activations: give inputs")
    for case in cases:
        for name in case:
            if name not in known:
                raise InputError(f"the graph has no input {printable(name)!r}", where=WHERE, next=nearest(name, known))
        missing = [name for name in known if name not in case]
        if missing:
            raise InputError(f"input {printable(missing[0])!r} is not fed", where=WHERE, next="give an array for every input")


def _float_results(graph: onnx.GraphProto, types: Types) -> list[str]:
    return [name for node in graph.node for name in node.output if types.get(name, (0,))[0] == TensorProto.FLOAT]


def _add_outputs_and_sizes(result: Observed, source: AtHand, inner: Sequence[str], cases: Cases) -> None:
    asked = onnx.ModelProto()
    asked.CopyFrom(source.model)
    sizes = {f"{PREFIX}size/{name}": name for name in inner}
    for output, name in sizes.items():
        asked.graph.node.append(helper.make_node("Size", [name], [output], name=output))
        asked.graph.output.append(helper.make_tensor_value_info(output, TensorProto.INT64, []))
    for values in runs(asked, source, cases):
        result.outputs.append({name: value for name, value in values.items() if name not in sizes})
        for output, name in sizes.items():
            result.sizes[name] = max(result.sizes.get(name, 0), int(values[output]))


def _slices(names: Sequence[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Groups of values that fit into SLICE_BYTES together, in order; one that does not fit alone is one alone."""
    group: list[str] = []
    held = 0
    for name in names:
        nbytes = 4 * sizes[name]
        if group and held + nbytes > SLICE_BYTES:
            yield group
            group, held = [], 0
        group.append(name)
        held += nbytes
    if group:
        yield group


def _giving(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with these values for outputs."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    del asked.graph.output[:]
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return asked


def _add(found: dict[str, Magnitudes], name: str, more: Magnitudes) -> None:
    found[name] = found.get(name, Magnitudes()) + more


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for body in subgraphs(node):
            yield from _initializers(body)
