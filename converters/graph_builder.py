"""Building a canonical graph node by node, every node named after the upstream module it computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import numpy as np
import onnx_ir as ir

from porting.types import Graph, Limit, StateSpec
from porting.weights import Stream, dtype_of, tensors_of

OPSET = 24
IR_VERSION = 13  # onnxruntime 1.31 refuses 14
MODULE = "porting.module"  # metadata key: the upstream module a node belongs to


class GraphBuilder:
    """Collects nodes, initializers, inputs and outputs of one graph.

    Values are onnx-ir values. Small constants are stored once and shared; weights stay streams until they are written.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._initializers: dict[str, ir.Value] = {}
        self._scope: list[str] = []
        self._names: set[str] = set()

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Name everything inside after module `name`, a full upstream path such as "model.layers.0.mlp"."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def input(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> ir.Value:
        """A graph input."""
        value = _typed(name, dtype, shape)
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: str, shape: tuple[int | str, ...]) -> None:
        """Make `value` a graph output called `name`."""
        value.name = name
        value.type = ir.TensorType(ir.DataType.from_numpy(dtype_of(dtype)))
        value.shape = ir.Shape(shape)
        self._outputs.append(value)

    def constant(self, value: Any, dtype: str = "int64") -> ir.Value:
        """A small initializer, shared by everyone who asks for the same bytes."""
        array = np.asarray(value, dtype_of(dtype))
        label = "x".join(map(str, array.shape)) or "scalar"
        content = "_".join(str(v) for v in array.reshape(-1)) if array.size <= 4 else sha256(array.tobytes()).hexdigest()[:16]
        name = f"constant/{dtype}[{label}]={content}"
        return self._initializers.get(name) or self._initializer(ir.Tensor(array, name=name))

    def weight(self, stream: Stream) -> ir.Value:
        """The single output of a stream as an initializer named after its spec; asking twice gives the same value."""
        name = stream.outputs[0].name
        return self._initializers.get(name) or self._initializer(tensors_of(stream)[0])

    def op(self, op_type: str, *inputs: ir.Value | None, name: str = "", **attributes: Any) -> ir.Value:
        """Add a standard node with one output.

        name: what the node is called inside its module, the operator's name when empty
        """
        module = self._scope[-1] if self._scope else self.name
        node = ir.Node(
            "",
            op_type,
            list(inputs),
            attributes=ir.convenience.convert_attributes(attributes) if attributes else (),
            num_outputs=1,
            name=self._unique(f"{module}/{name or op_type}"),
            metadata_props={MODULE: module},
        )
        node.outputs[0].name = node.name
        self._nodes.append(node)
        return node.outputs[0]

    def graph(
        self,
        state: StateSpec,
        defaults: Mapping[str, int | float],
        ranges: Mapping[str, tuple[int, int]] | None = None,
        limits: Mapping[str, Limit] | None = None,
    ) -> Graph:
        """The finished graph; ranges and limits as in Graph."""
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": OPSET},
            name=self.name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="porting")
        return Graph(model, state, defaults, ranges or {}, limits or {})

    def _initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)  # type: ignore[arg-type]
        self._initializers[str(tensor.name)] = value
        return value

    def _unique(self, name: str) -> str:
        candidate, n = name, 1
        while candidate in self._names:
            n += 1
            candidate = f"{name}_{n}"
        self._names.add(candidate)
        return candidate


def _typed(name: str, dtype: str, shape: tuple[int | str, ...]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(dtype_of(dtype))), shape=ir.Shape(shape))
