"""Small ONNX graphs that a probe compiles and runs: how they are written down, what they are fed, what ONNX says they compute."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from porting.ascend.graph_facts import GraphFacts, facts_of
from porting.types import Graph

OPSET, IR_VERSION = 18, 8
WEIGHTS = "weights.bin"  # of a graph whose weights lie outside
_FULL = {"float": TensorProto.FLOAT, "double": TensorProto.DOUBLE}


@dataclass(frozen=True, eq=False)
class ProbeGraph:
    """A graph of a few nodes.

    text:      in ONNX's own text form, without header; nodes get names, outputs their shapes
    opset:     of ai.onnx; 0: it is not imported
    imports:   further domains
    constants: initialisers by name: numbers, or a shape that is filled with normal numbers; they stand as inputs in the text
    feeds:     numbers by name; what is not named gets numbers of its dtype
    defaults:  names in `constants` that stay inputs: they can be fed
    outside:   weights lie in a file beside the model; the value is further keys of external data
    unranked:  inputs that have no shape in the file
    renamed:   name in the text -> a name that ONNX's text form does not take
    twins:     nodes that all get the name of the first
    functions: local functions in ONNX's text form
    random:    what comes out differs from run to run
    instead:   the graph that the rule says is computed in its place, where the numbers would not tell it from others
    written_at: opset in which ONNX defines what is written, where that is another
    """

    text: str
    opset: int = OPSET
    ir_version: int = IR_VERSION
    imports: Mapping[str, int] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    feeds: Mapping[str, Any] = field(default_factory=dict)
    defaults: tuple[str, ...] = ()
    outside: Mapping[str, str] | None = None
    unranked: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    twins: bool = False
    functions: str = ""
    random: bool = False
    instead: str = ""
    written_at: int = 0

    @cached_property
    def model(self) -> onnx.ModelProto:
        """As it is compiled; weights that lie outside are in it, see `files`."""
        return self._model(self.text, self.opset)

    @cached_property
    def facts(self) -> GraphFacts:
        """What rules see."""
        import onnx_ir as ir

        made = facts_of(Graph(ir.from_proto(self.model)))
        if not self.outside:
            return made
        keys = frozenset(("location", "offset", "length", *self.outside))
        return GraphFacts(made.opsets, made.nodes, made.inputs, made.outputs, keys, made.functions, made.ir_version)

    def files(self) -> dict[str, bytes]:
        """Name -> bytes, model.onnx and what lies beside it."""
        model = onnx.ModelProto.FromString(self.model.SerializeToString())
        if self.outside is None:
            return {"model.onnx": model.SerializeToString()}
        data = b""
        for tensor in _tensors(model.graph):
            raw = numpy_helper.to_array(tensor).tobytes()
            tensor.ClearField("float_data")
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            said = {"location": WEIGHTS, "offset": str(len(data)), "length": str(len(raw)), **self.outside}
            tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in said.items())
            data += raw
        return {"model.onnx": model.SerializeToString(), WEIGHTS: data}

    def fed(self) -> dict[str, np.ndarray]:
        """Numbers for every input of arrays, those with a default too."""
        found = {}
        for value in self.model.graph.input:
            kind = value.type.tensor_type
            if not value.type.HasField("tensor_type") or kind.elem_type == TensorProto.STRING:
                continue
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
            if value.name in self.feeds:
                found[value.name] = np.asarray(self.feeds[value.name]).astype(dtype)
            else:
                found[value.name] = numbers(tuple(d.dim_value for d in kind.shape.dim), dtype)
        return found

    def computed(self) -> list[np.ndarray]:
        """What ONNX says comes out. raises: whatever the runtime says where it cannot tell"""
        return _run(self._model(self.text, self.written_at or self.opset), self.fed())

    def misread(self) -> list[np.ndarray] | None:
        """What the rule says comes out; None where only its difference from ONNX is known."""
        return _run(self._model(self.instead, self.opset), self.fed()) if self.instead else None

    def _model(self, text: str, opset: int) -> onnx.ModelProto:
        imports = {**({"": opset} if opset else {}), **self.imports}
        spelled = ", ".join(f'"{domain}": {version}' for domain, version in imports.items())
        model = onnx.parser.parse_model(
            f"<ir_version: {self.ir_version}, opset_import: [{spelled}]> probe {text} {self.functions}"
        )
        for name, value in self.constants.items():
            array = value if isinstance(value, np.ndarray) else numbers(tuple(value), np.dtype(np.float32))
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        kept = [v for v in model.graph.input if v.name not in self.constants or v.name in self.defaults]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        if not self.functions:
            model = onnx.shape_inference.infer_shapes(model)
        for value in model.graph.input:
            if value.name in self.unranked:
                value.type.tensor_type.ClearField("shape")
        _name_nodes(model.graph, self.twins)
        for old, new in self.renamed.items():
            _rename(model.graph, old, new)
        return model


def numbers(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Numbers of any dtype that are the same in every run: normal ones, 0 and 1 of integers, which are indices almost everywhere."""
    made = np.random.default_rng([7, *shape])
    if dtype.kind == "c":
        return made.standard_normal(shape).astype(dtype)
    if dtype.kind in "iu":
        return made.integers(0, 2, shape).astype(dtype)
    if dtype.kind == "b":
        return made.integers(0, 2, shape).astype(bool)
    return made.standard_normal(shape).astype(np.float32).astype(dtype)


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += _tensors(attribute.g)
    return found


def _name_nodes(graph: onnx.GraphProto, twins: bool, prefix: str = "n") -> None:
    for place, node in enumerate(graph.node):
        node.name = prefix if twins else f"{prefix}{place}"
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _name_nodes(attribute.g, False, f"{node.name}_{attribute.name}_")


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for value in (*graph.input, *graph.output):
        value.name = new if value.name == old else value.name
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def _run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """By onnxruntime with nothing optimised, where it is installed and takes the graph; else by ONNX's own evaluator."""
    with suppress(
        Exception
    ):  # it has its own classes for dtypes that it lacks; what it says of graphs that are none, the other says too
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        known = {value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())}
        return [np.asarray(a) for a in session.run(None, {name: array for name, array in feeds.items() if name in known})]
    from onnx.reference import ReferenceEvaluator

    return [np.asarray(array) for array in ReferenceEvaluator(model).run(None, dict(feeds))]


def fits_dtype(text: str, dtype: str) -> str:
    """`text` with another dtype in the place of T. dtype: as ONNX's text form spells it"""
    return re.sub(r"\bT\b", dtype, text)
