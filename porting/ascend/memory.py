"""How much memory of a board a port needs at least: weights, KV cache, and the most activations that are alive at once.

A lower bound, from shapes alone. A node's output may take the place of an input of the same size that nobody reads any more; a view takes none.
The order is that of the graph. Workspace of kernels, what the runtime holds and copies of a weight in the device's own layout are unknown, and
not in it; what the compiler fuses may make activations fewer, which is why they are told apart from what is sure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from porting.ascend.soc import Soc
from porting.errors import UsageError
from porting.types import Graph

if TYPE_CHECKING:
    import onnx_ir as ir

# bytes of a float in each precision; of the weights of matrix operators where those have codes of their own
FLOAT_BYTES: Mapping[str, float] = {"fp32": 4, "fp16": 2, "bf16": 2, "w8a8": 2, "int8": 2, "int4": 2}
MATRIX_BYTES: Mapping[str, float] = {**FLOAT_BYTES, "w8a8": 1, "int8": 1, "int4": 0.5}
_MATRIX = {"MatMul": (0, 1), "Gemm": (0, 1), "Conv": (1,), "ConvTranspose": (1,)}
_VIEWS = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"))
# operators that may write over what they read: element by element
_IN_PLACE = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "Cast",
        "Ceil",
        "Clip",
        "Cos",
        "Div",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Log",
        "Max",
        "Min",
        "Mish",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pow",
        "PRelu",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sqrt",
        "Sub",
        "Tanh",
        "Where",
        "Softmax",
        "LogSoftmax",
        "Softplus",
        "Softsign",
    ]
)
LEAST = 1 << 10  # bytes of a device: a number without its unit is less
UNKNOWN = ("workspace of kernels", "what the runtime and the driver hold", "copies of weights in the device's own layout")


@dataclass(frozen=True)
class Alive:
    """The fullest moment of a run.

    nbytes:  of inputs, outputs and activations that are alive together, the cache apart
    node:    where that is
    unsized: values whose size is not known, counted as nothing
    """

    nbytes: int
    node: str
    unsized: int


@dataclass(frozen=True)
class MemoryBound:
    """Bytes, at least.

    weights: in the port's precision
    cache:   state that stays on the device, of the largest gear
    gears:   name of a gear -> its fullest moment
    """

    precision: str
    weights: int
    cache: int
    gears: Mapping[str, Alive]

    @property
    def fullest(self) -> Alive:
        """Of the largest gear: a compiled model with several holds memory for that."""
        return max(self.gears.values(), key=lambda alive: alive.nbytes)

    @property
    def unsized(self) -> int:
        """Values that no gear says a size of: the bound leaves them out."""
        return max(alive.unsized for alive in self.gears.values())

    @property
    def sure(self) -> int:
        """Without activations, which a compiler may fuse away."""
        return self.weights + self.cache

    @property
    def total(self) -> int:
        return self.sure + self.fullest.nbytes

    def content(self) -> dict[str, Any]:
        """For the report: JSON types only."""
        return {
            "weights": self.weights,
            "cache": self.cache,
            "activations": {
                name: {"bytes": a.nbytes, "at": a.node, "values_of_unknown_size": a.unsized} for name, a in self.gears.items()
            },
            "at_least": self.total,
            "values_left_out": self.unsized,
            "unknown": list(UNKNOWN),
        }


@dataclass(frozen=True)
class Board:
    """A memory size, and how many of it the port needs at least.

    known_from: "--device-memory", or what is known of boards with this SoC
    """

    nbytes: int
    cards_at_least: int
    known_from: str


def memory_bound(
    graph: Graph, precision: str, gears: Mapping[str, Mapping[str, int]] | None = None, capacity: int | None = None
) -> MemoryBound:
    """What a graph needs at least. No weight is read.

    gears:    name -> free dimension of an input -> its size; left out: the graph as it is. One that is inside another is not looked at
    capacity: size of the axis along which state grows, where its shape leaves that open
    raises:   UsageError for a precision or dimension that is none
    """
    if precision not in FLOAT_BYTES:
        raise UsageError(f"no memory is known of precision {precision!r}", where="--precision")
    state = {pair.input for pair in graph.state.pairs} | {pair.output for pair in graph.state.pairs}
    free = _free_dimensions(graph)
    alive, cache = {}, 0
    for name, sizes in _outer(gears or {"": {}}).items():
        unknown = sorted(set(sizes) - free)
        if unknown:
            raise UsageError(
                f"no input has a dimension {unknown[0]!r}", where=f"gear {name!r}", next=f"known: {', '.join(sorted(free))}"
            )
        model = graph.model.clone()
        _fix(graph, model, sizes, capacity)
        _work_out(model)
        measure = _Measure(FLOAT_BYTES[precision])
        pairs = {pair.input for pair in graph.state.pairs}
        cache = max(cache, sum(measure.nbytes(v) for v in model.graph.inputs if v.name in pairs))
        alive[name] = _fullest(model.graph, measure, state)
    return MemoryBound(precision, _weight_bytes(graph.model, precision), cache, alive)


def boards(bound: MemoryBound, soc: Soc, device_memory: int | None = None) -> list[Board]:
    """How many cards at least, for the memory that was given or for each board that is known; empty where none is.

    raises: UsageError for no memory at all
    """
    if device_memory is not None and device_memory < LEAST:
        raise UsageError(
            f"a device with {device_memory} bytes", where="--device-memory", next="write the unit too, as in 44GiB"
        )
    sizes = soc.boards if device_memory is None else (device_memory,)
    source = f"boards with {soc.name}" if device_memory is None else "--device-memory"
    return [Board(size, max(1, math.ceil(bound.total / size)), source) for size in sizes]


def _outer(gears: Mapping[str, Mapping[str, int]]) -> dict[str, Mapping[str, int]]:
    """The gears without those that are no larger than another in any dimension: their fullest moment is no fuller."""

    def inside(a: Mapping[str, int], b: Mapping[str, int]) -> bool:
        return a.keys() == b.keys() and a != b and all(size <= b[dim] for dim, size in a.items())

    return {name: sizes for name, sizes in gears.items() if not any(inside(sizes, other) for other in gears.values())}


def _free_dimensions(graph: Graph) -> set[str]:
    return {
        str(d.value) for v in graph.model.graph.inputs for d in v.shape or () if not isinstance(d, int) and d.value is not None
    }


def _fix(graph: Graph, model: ir.Model, sizes: Mapping[str, int], capacity: int | None) -> None:
    """Give the inputs of a model the sizes of a gear."""
    import onnx_ir as ir

    grows = {pair.input: pair.positions for pair in graph.state.pairs}
    for value in model.graph.inputs:
        if value.shape is None:
            continue
        dims = [d if isinstance(d, int) else sizes.get(str(d.value), d.value) for d in value.shape]
        axis = grows.get(str(value.name))
        if capacity is not None and axis is not None and not isinstance(dims[axis], int):
            dims[axis] = capacity
        value.shape = ir.Shape(dims)


def _work_out(model: ir.Model) -> None:
    """Shapes from those of the inputs, also where they go through numbers: a slice of a shape says how long something is."""
    from porting.converters.passes.fold_constants import fold_sizes
    from porting.converters.passes.infer_shapes import infer_shapes

    infer_shapes.change(model)
    while fold_sizes.change(model):
        if not infer_shapes.change(model):
            return


def _weight_bytes(model: ir.Model, precision: str) -> int:
    """Each tensor once, however many nodes read it."""
    from porting.converters.passes.rewriting import bodies_of

    tensors: dict[int, float] = {}
    for body in bodies_of(model):
        for value in body.initializers.values():
            tensor = value.const_value
            if tensor is None:
                continue
            per = tensor.dtype.bitwidth / 8
            if tensor.dtype.is_floating_point():
                uses = list(value.uses())
                matrix = uses and all(use.idx in _MATRIX.get(use.node.op_type, ()) for use in uses)
                per = min(per, (MATRIX_BYTES if matrix else FLOAT_BYTES)[precision])
            tensors[id(tensor)] = per * math.prod(d for d in tensor.shape if isinstance(d, int))
    return math.ceil(sum(tensors.values()))


class _Measure:
    """Sizes of values; `unsized` are those that nobody knows."""

    def __init__(self, float_bytes: float) -> None:
        self._float_bytes = float_bytes
        self.unsized: set[ir.Value] = set()

    def nbytes(self, value: ir.Value) -> int:
        kind, shape = value.dtype, value.shape
        if kind is None or shape is None or not all(isinstance(d, int) for d in shape) or kind.name in ("STRING", "UNDEFINED"):
            self.unsized.add(value)
            return 0
        per = kind.bitwidth / 8
        if kind.is_floating_point():
            per = min(per, self._float_bytes)  # half floats stay what they are
        return math.ceil(per * math.prod(d for d in shape if isinstance(d, int)))


def _fullest(graph: ir.Graph, measure: _Measure, state: set[str]) -> Alive:
    """Walk the nodes in order and keep account of what is alive. Inputs and outputs of the graph stay; bodies of control flow are not walked."""
    root = _views(graph)
    left = Counter(root.get(v, v) for node in graph for v in _read(node))  # how often a value will be read yet
    known = _known(graph)
    stays = {*graph.inputs, *(root.get(v, v) for v in graph.outputs)}
    apart = known | {root.get(v, v) for v in (*graph.inputs, *graph.outputs) if v.name in state}  # counted as weights or cache
    size = {v: 0 if v in apart or v.is_initializer() else measure.nbytes(v) for v in graph.inputs}
    now = most = sum(size.values())
    where = "inputs"
    for node in graph:
        made = [v for v in node.outputs if v not in root]
        size.update((v, 0 if v in apart else measure.nbytes(v)) for v in made)
        freed = 0
        for value, times in Counter(root.get(v, v) for v in _read(node)).items():
            left[value] -= times
            if not left[value] and value not in stays:
                freed += size.get(value, 0)
        written = sum(size[v] for v in made)
        reused = min(freed, written) if node.op_type in _IN_PLACE and not node.domain else 0
        if now + written - reused > most:
            most, where = now + written - reused, node.name or node.op_type
        now += written - freed - sum(size[v] for v in made if not left[v] and v not in stays)
    return Alive(most, where, len(measure.unsized))


def _known(graph: ir.Graph) -> set[ir.Value]:
    """Values that hang on constants alone: a compiler works them out once, and they are weights then, which are counted."""
    known = {v for v in graph.initializers.values() if not v.is_graph_input()}
    for node in graph:
        if node.op_type not in ("If", "Loop", "Scan") and all(v is None or v in known for v in node.inputs):
            known.update(node.outputs)
    return known


def _views(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """Values that are others in another shape -> the one that holds the numbers."""
    root: dict[ir.Value, ir.Value] = {}
    for node in graph:
        source = node.inputs[0] if node.inputs else None
        if node.op_type in _VIEWS and not node.domain and source is not None:
            root[node.outputs[0]] = root.get(source, source)
    return root


def _read(node: ir.Node) -> Sequence[ir.Value]:
    """What a node reads, its bodies included."""
    from porting.converters.passes.rewriting import bodies_in

    found = [v for v in node.inputs if v is not None]
    for body in bodies_in(node):
        own = {*body.inputs, *body.initializers.values()}
        for inner in body:
            own.update(inner.outputs)
            found += [v for v in _read(inner) if v not in own]
        found += [v for v in body.outputs if v not in own]
    return found
