"""Compute what depends on constants and fixed dimensions alone.

    Shape(x: [N, 3, H, W]) ─ Gather(1) ─ Unsqueeze ─ Concat(·, [-1])   ->   [3, -1]

A result becomes an initializer when it takes at most SMALL_BYTES, or at most LARGE_BYTES and no more than the constants that it is made
from. So a port grows by SMALL_BYTES at most with every node that goes, a weight made of a few numbers (ConstantOfShape) stays a
node, half weights behind Cast stay half, and no weight of more than LARGE_BYTES is read. Runtimes compute the rest when they load
the graph, as they do now.

Dimensions are followed one by one: of [N, 3, H, W] the 3 is known.

Refuses: operators whose last bit depends on the runtime (evaluation.py), random ones, control flow, contrib domains, outputs of a graph,
initializers that a caller may feed.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from porting.weights import stream_of

from .constants_to_initializers import kept_outside
from .evaluation import GROWING, MOVES, evaluate, is_exact
from .rewriting import ModelPass, bodies_of, frozen, new_initializer

SMALL_BYTES = 1024
LARGE_BYTES = 64 << 10
TRACKED = 64  # elements of a shape that is followed; no rank is higher


@ModelPass
def fold_constants(model: ir.Model) -> int:
    """Count: nodes whose value became an initializer. Shapes must have been inferred. Leaves behind what only they read."""
    return _fold(model, weights=True)


@ModelPass
def fold_sizes(model: ir.Model) -> int:
    """The same, but a weight that lies in a file stays as it is, under the name that it has there."""
    return _fold(model, weights=False)


def _fold(model: ir.Model, weights: bool) -> int:
    folding = _Folding(model.graph.opset_imports.get("", 1), {})
    changes = 0
    for body in bodies_of(model):
        for node in list(body):
            if not weights and any(_in_a_file(value) for value in node.inputs):
                continue
            results = None if node.domain else folding.value_of(node)
            if results is None or any(v.is_graph_output() for v in node.outputs):
                continue
            for value, array in zip(node.outputs, results, strict=True):
                name = str(value.name)
                value.name = f"{name}.replaced"
                tensor = kept_outside(ir.Tensor(array, name=name), name)
                value.replace_all_uses_with(new_initializer(body, name, tensor))
            body.remove(node, safe=True)
            changes += 1
    return changes


def _in_a_file(value: ir.Value | None) -> bool:
    tensor = frozen(value)
    return isinstance(tensor, ir.ExternalTensor) or (tensor is not None and stream_of(tensor) is not None)


@dataclass
class _Folding:
    """What is known while nodes are gone through in order.

    partial: integer values of which some elements are known: (object array with None for the others, dtype)
    """

    opset: int
    partial: dict[ir.Value, tuple[np.ndarray, np.dtype]]

    def value_of(self, node: ir.Node) -> list[np.ndarray] | None:
        """The outputs of a node that may be folded, within the limits."""
        if node.op_type in ("Shape", "Size"):
            return self._dimensions(node)
        tensors = [frozen(v) for v in node.inputs]
        if not node.inputs or any(v is not None and t is None for v, t in zip(node.inputs, tensors, strict=True)):
            return self._part_of(node)
        sizes = [t.nbytes for t in tensors if t is not None]
        if max(sizes, default=0) > LARGE_BYTES or any(t is not None and _unreadable(t) for t in tensors):
            return None
        expected = _bytes_of(node)
        if expected is None and (sum(sizes) > SMALL_BYTES or node.op_type in GROWING):
            return None
        if expected is not None and not _fits(expected, sum(sizes)):
            return None
        arrays = [None if t is None else t.numpy() for t in tensors]
        if not is_exact(node, arrays):
            return None
        results = evaluate(node, arrays, self.opset)
        if results is None or not _fits(sum(r.nbytes for r in results), sum(sizes)):
            return None
        return results if all(_as_inferred(v, r) for v, r in zip(node.outputs, results, strict=True)) else None

    def _dimensions(self, node: ir.Node) -> list[np.ndarray] | None:
        """Shape and Size, from what is known about the dimensions."""
        value = node.inputs[0]
        if value is None or value.shape is None:
            return None
        sizes = [d if isinstance(d, int) else None for d in value.shape]
        if node.op_type == "Size":
            known = [d for d in sizes if d is not None]
            return [np.asarray(math.prod(known), np.int64)] if len(known) == len(sizes) else None
        start, end = (node.attributes[k].as_int() if k in node.attributes else None for k in ("start", "end"))
        return self._settled(node, np.asarray(sizes[start:end], object), np.dtype(np.int64))

    def _part_of(self, node: ir.Node) -> list[np.ndarray] | None:
        """A node that moves elements of which some are known. Its value, when all that it takes are."""
        if len(node.outputs) != 1 or not (node.op_type in MOVES or node.op_type == "Cast"):
            return None
        arrays: list[np.ndarray | None] = []
        dtypes = []
        for place, value in enumerate(node.inputs):
            found = self.partial.get(value) if value is not None else None
            tensor = frozen(value)
            if found is not None:
                arrays.append(found[0])
                dtypes.append(found[1])
            elif value is None:
                arrays.append(None)
            elif tensor is not None and tensor.size <= TRACKED and not _unreadable(tensor):
                arrays.append(tensor.numpy())
            else:
                return None
            if found is not None and place and node.op_type not in ("Concat", "Where"):
                return None  # an index or a shape has to be known whole
        dtype = dtypes[0]
        if node.op_type == "Cast":
            to = ir.DataType(node.attributes["to"].as_int())
            if to not in (ir.DataType.INT32, ir.DataType.INT64):
                return None
            return self._settled(node, self.partial[node.inputs[0]][0], np.dtype(to.numpy()))  # type: ignore[index]
        movable = [
            a if a is None or a.dtype.kind == "b" else a.astype(object) if self._is_data(node, i) else a
            for i, a in enumerate(arrays)
        ]
        results = evaluate(node, movable, self.opset)
        return None if results is None or results[0].size > TRACKED else self._settled(node, results[0], dtype)

    @staticmethod
    def _is_data(node: ir.Node, place: int) -> bool:
        return place == 0 or node.op_type in ("Concat", "Where")

    def _settled(self, node: ir.Node, elements: np.ndarray, dtype: np.dtype) -> list[np.ndarray] | None:
        """The value when all elements are known; else what is known is kept for the nodes behind."""
        if all(e is not None for e in elements.reshape(-1)):
            whole = elements.astype(np.int64)
            limits = np.iinfo(dtype)
            inside = not whole.size or (whole.min() >= limits.min and whole.max() <= limits.max)
            return [whole.astype(dtype)] if inside and _as_inferred(node.outputs[0], whole.astype(dtype)) else None
        self.partial[node.outputs[0]] = (elements, dtype)
        return None


def _fits(result_bytes: int, source_bytes: int) -> bool:
    return result_bytes <= SMALL_BYTES or result_bytes <= min(LARGE_BYTES, source_bytes)


def _unreadable(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < 8


def _bytes_of(node: ir.Node) -> int | None:
    """Bytes of all outputs; None when a dimension or a type is not known."""
    total = 0
    for value in node.outputs:
        if value.shape is None or value.dtype in (None, ir.DataType.STRING) or not all(isinstance(d, int) for d in value.shape):
            return None
        total += math.prod(d for d in value.shape if isinstance(d, int)) * max(1, value.dtype.bitwidth // 8)
    return total


def _as_inferred(value: ir.Value, array: np.ndarray) -> bool:
    """Whether a computed value is of the type and shape that was worked out for it; a doubt is a reason not to fold."""
    if value.dtype is not None and value.dtype != ir.DataType.from_numpy(array.dtype):
        return False
    if value.shape is None:
        return True
    return len(value.shape) == array.ndim and all(
        not isinstance(d, int) or d == size for d, size in zip(value.shape, array.shape, strict=True)
    )
