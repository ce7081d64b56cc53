"""For every rule of data/rules.json a graph that it speaks of, and one next to it that it does not. Graphs of one node, for test_rules.py."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx.helper as oh
import onnx_ir as ir

from porting.ascend.graph_facts import GraphFacts, facts_of
from porting.dtypes import dtype_of
from porting.types import Graph

Spec = str | np.ndarray | None  # "float32[2,3]" is fed, an array is a constant, None is left out
F, D2, D3, D4, D5 = "float32[2]", "float32[2,3]", "float32[2,3,4]", "float32[1,3,8,8]", "float32[1,3,4,8,8]"


@dataclass(frozen=True)
class One:
    """A graph of one node, and what it is judged for."""

    op: str
    inputs: Sequence[Spec] = (D2,)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] = (D2,)
    domain: str = ""
    opset: int = 18
    imports: Mapping[str, int] = field(default_factory=dict)
    ir_version: int = 8
    soc: str = "Ascend910B3"
    cann: str | None = None
    precision: str = "fp32"
    names: str = "x"  # of the inputs
    change: Mapping[str, Any] = field(default_factory=dict)  # fields of the facts that no file of one node has

    def graph(self) -> Graph:
        fed: list[ir.Value] = []
        constants: list[ir.Value] = []
        values: list[ir.Value | None] = []
        for place, spec in enumerate(self.inputs):
            if spec is None:
                values.append(None)
            elif isinstance(spec, str):
                fed.append(_value(f"{self.names}{place}", spec))
                values.append(fed[-1])
            else:
                constants.append(ir.val(f"c{place}", const_value=ir.Tensor(spec, name=f"c{place}")))
                values.append(constants[-1])
        outputs = [_value(f"y{i}", spec) for i, spec in enumerate(self.outputs)]
        attributes = ir.convenience.convert_attributes(dict(self.attributes))
        node = ir.Node(self.domain, self.op, values, attributes, outputs=outputs, name="n")
        opsets = {"": self.opset, **({self.domain: 1} if self.domain else {}), **self.imports}
        graph = ir.Graph(fed, outputs, nodes=[node], initializers=constants, opset_imports=opsets, name="g")
        return Graph(ir.Model(graph, ir_version=self.ir_version))

    def facts(self) -> GraphFacts:
        return replace(facts_of(self.graph()), **self.change)


def _value(name: str, spec: str) -> ir.Value:
    matched = re.fullmatch(r"(\w+)(?:\[(.*)\])?", spec)
    assert matched is not None
    kind, shape = matched.groups()
    dims = None if shape is None else [int(d) if d.isdigit() else d for d in shape.split(",") if d]
    dtype = ir.DataType.STRING if kind == "string" else ir.DataType.from_numpy(dtype_of(kind))
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=None if dims is None else ir.Shape(dims))


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def made_if(*, returned: bool = False, deeper: bool = False, weight: int = 0) -> GraphFacts:
    """An If whose first branch gives back an outer value, has an If that alone reads one, or holds a weight of so many floats."""
    shape, x, c = (oh.make_tensor_value_info(n, e, d) for n, e, d in (("y", 1, [2]), ("x", 1, [2]), ("c", 9, [])))

    def body(name: str, nodes: list[Any], output: str, held: int = 0) -> Any:
        weights = [oh.make_tensor("w", 1, [held], np.ones(held))] if held else []
        return oh.make_graph(nodes, name, [], [oh.make_tensor_value_info(output, 1, [2])], weights)

    plain = body("plain", [oh.make_node("Neg", ["x"], ["p"], "neg")], "p")
    first = body("first", [oh.make_node("Relu", ["x"], ["f"], "relu")], "f", weight)
    if returned:
        first = body("first", [], "x")
    if deeper:
        inner = [body(n, [oh.make_node(n, ["x"], [n], n)], n) for n in ("Abs", "Exp")]
        node = oh.make_node("If", ["c"], ["f"], "inner", then_branch=inner[0], else_branch=inner[1])
        first = body("first", [node], "f")
    node = oh.make_node("If", ["c"], ["y"], "n", then_branch=first, else_branch=plain)
    model = oh.make_model(oh.make_graph([node], "g", [c, x], [shape]), opset_imports=[oh.make_opsetid("", 18)], ir_version=8)
    return facts_of(Graph(ir.from_proto(model)))
