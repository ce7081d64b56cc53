"""What roundings do to the outputs of a graph, measured: the graph itself with a random error of their size after every operator.

Monte Carlo arithmetic (Parker 1997, "Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic", UCLA CSD-970002;
Vignes 1993, CESTAC) at the level of operators: a result y becomes y (1 + e), e uniform in +-MULTIPLE u, u the unit roundoff of y's dtype. Of
an operator that sums n terms, the terms are off too, through its first input: by +-MULTIPLE u sqrt(n), so that the sum errs by what
Higham & Mary (2019, see bounds.py) give for n roundings of random sign, relative to the terms and not to what is left when they cancel.
Exact operators (Relu, Reshape, Gather, Max) get none, and nothing that only decides shapes. However ill- or well-conditioned the network
is, it says so itself: how far its outputs move is how far two correct computations of it may differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from porting.backends.onnx_program import subgraphs
from porting.numerics.bounds import UNIT_ROUNDOFF
from porting.onnx_facts import valued_names

# The operators that errors are made of take scalars beside tensors from opset 8 on. Older graphs are read as of that: onnxruntime 1.31 has no
# kernel for any operator that opsets 7 and 8 changed, but for Max, Mean, Min, Sum and MaxPool, of which opset 8 only allows more
FIRST_WITH_SCALARS = 8
# onnxruntime 1.31 has no kernel for the random operators of opset 22: from there on errors are stretches of one table of numbers
LAST_WITH_RANDOM = 21
NUMBERS = 65_537  # a prime: no axis of a tensor has this period
DRAW = "porting/draw"  # int64 scalar: which draw, 0 when it is not fed
_TABLE, _COUNT, _STRIDE, _ONE = "porting/numbers", "porting/count", "porting/stride", "porting/one"
MULTIPLE = 4  # errors of this many times the size of one rounding each
ELEMENTARY = 4  # ulps that a kernel's exp, tanh or erf may be off, in place of one rounding
ROUNDING: Mapping[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
_INTEGRAL = frozenset(
    (TensorProto.INT64, TensorProto.INT32, TensorProto.INT16, TensorProto.INT8, TensorProto.BOOL)
) | frozenset((TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64))
# operators that only move, choose or compare what is there: nothing is rounded
EXACT = frozenset(
    [
        "Abs",
        "ArgMax",
        "ArgMin",
        "Cast",
        "CastLike",
        "Ceil",
        "Clip",
        "Compress",
        "Concat",
        "ConcatFromSequence",
        "Constant",
        "ConstantOfShape",
        "DepthToSpace",
        "Dropout",
        "Equal",
        "Expand",
        "EyeLike",
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "GatherND",
        "Greater",
        "GreaterOrEqual",
        "GlobalMaxPool",
        "Hardmax",
        "Identity",
        "If",
        "IsInf",
        "IsNaN",
        "Less",
        "LessOrEqual",
        "Loop",
        "Max",
        "MaxPool",
        "MaxUnpool",
        "Min",
        "Neg",
        "NonMaxSuppression",
        "NonZero",
        "Not",
        "OneHot",
        "Optional",
        "OptionalGetElement",
        "Pad",
        "QuantizeLinear",
        "Range",
        "ReduceMax",
        "ReduceMin",
        "Relu",
        "Reshape",
        "ReverseSequence",
        "Round",
        "Scan",
        "Scatter",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "Shape",
        "Sign",
        "Size",
        "Slice",
        "SpaceToDepth",
        "Split",
        "SplitToSequence",
        "Squeeze",
        "StringNormalizer",
        "TensorScatter",
        "ThresholdedRelu",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Unique",
        "Unsqueeze",
        "Where",
    ]
)
_ELEMENTARY = frozenset(
    [
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "BiasGelu",
        "Celu",
        "Cos",
        "Cosh",
        "Elu",
        "Erf",
        "Exp",
        "FastGelu",
        "Gelu",
        "HardSwish",
        "Log",
        "LogSoftmax",
        "Mish",
        "Pow",
        "QuickGelu",
        "Selu",
        "Sigmoid",
        "Sin",
        "Sinh",
        "Softmax",
        "Softplus",
        "Swish",
        "Tan",
        "Tanh",
    ]
)
_BOUNDED = frozenset(
    ("Sigmoid", "Tanh", "Erf", "Softmax", "Sin", "Cos")
)  # approximated to a few u of 1, whatever the size of the result
# operators that subtract something of the size of their input first, and so round relative to that
_CENTRING = frozenset(
    [
        "BatchNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "LogSoftmax",
        "MeanVarianceNormalization",
        "Softmax",
    ]
)

_SCATTERS = frozenset(("ScatterElements", "ScatterND"))  # exact unless they add or multiply
_INTERPOLATES = frozenset(("Resize", "Upsample"))  # exact where they take the nearest
_AT_COORDINATES = frozenset(("GridSample", "RoiAlign"))  # interpolate at places that are an input
_ERRS_IN = {
    **dict.fromkeys(_SCATTERS, 2),
    **dict.fromkeys(_AT_COORDINATES, 1),
}  # which input has the terms, where not the first
UNKNOWN_SIZE = 64.0  # of an axis that is interpolated along, when shapes are not known

Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[int, Shape | None]]  # name -> (element type, shape where it is known)


def with_noise(model: onnx.ModelProto, types: Shapes, multiple: float = MULTIPLE) -> onnx.ModelProto:
    """A copy of the model in which every operator that rounds is off at random; each run draws anew.

    types: element type and shape of the values, for the sizes that will be fed: from them come u and the lengths of sums
    """
    noisy = onnx.ModelProto()
    noisy.CopyFrom(model)
    structural = _structural(noisy.graph, valued_names(noisy.graph))
    lengths = {name: shape for name, (_, shape) in types.items() if shape is not None}
    for tensor in noisy.graph.initializer:
        lengths.setdefault(tensor.name, tuple(tensor.dims))
    for entry in noisy.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, FIRST_WITH_SCALARS)
    opset = max((o.version for o in noisy.opset_import if o.domain in ("", "ai.onnx")), default=1)
    _Injector(types, lengths, structural, multiple, opset > LAST_WITH_RANDOM).into(noisy.graph)
    if opset > LAST_WITH_RANDOM:
        _add_numbers(noisy.graph)
    return noisy


def _add_numbers(graph: onnx.GraphProto) -> None:
    """The numbers that errors are taken from, and which draw it is: an input with a default."""
    numbers = np.random.Generator(np.random.PCG64(NUMBERS)).uniform(-1, 1, NUMBERS).astype(np.float32)
    constants = {
        _TABLE: numbers,
        _COUNT: np.asarray(NUMBERS),
        DRAW: np.asarray(0),
        _STRIDE: np.asarray(7919),
        _ONE: np.asarray([1]),
    }
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    graph.input.append(helper.make_tensor_value_info(DRAW, TensorProto.INT64, []))


class _Injector:
    """Adds the errors, graph by graph."""

    def __init__(self, types: Shapes, shapes: dict[str, Shape], structural: set[str], multiple: float, table: bool) -> None:
        self.types, self.shapes, self.structural, self.multiple = types, shapes, structural, multiple
        self.table = table
        self.count = 0

    def into(self, graph: onnx.GraphProto) -> None:
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            for body in subgraphs(node):
                for tensor in body.initializer:
                    self.shapes.setdefault(tensor.name, tuple(tensor.dims))
                self.into(body)
            inner, size = self._inner(node), self._outer(node)
            place = _ERRS_IN.get(node.op_type, 0)
            source, kind = (node.input[place], self.types.get(node.input[place], (0, None))[0]) if inner else ("", 0)
            if kind in ROUNDING and source not in self.structural:
                node.input[place] = f"{source}/into/{self.count}"
                nodes += self._off(source, node.input[place], kind, inner, node.op_type == "GridSample")
            nodes.append(node)
            for position, name in enumerate(node.output if size else ()):
                kind = self.types.get(name, (0, None))[0]
                if name and kind in ROUNDING and name not in self.structural:
                    node.output[position] = f"{name}/exact"
                    nodes += self._off(f"{name}/exact", name, kind, size, node.op_type in _BOUNDED)
        del graph.node[:]
        graph.node.extend(nodes)

    def _inner(self, node: onnx.NodeProto) -> float:
        """Errors of the terms of a sum, in units of u; 0 for what sums nothing."""
        if node.op_type in _CENTRING:
            return 1.0
        if node.op_type in _AT_COORDINATES:
            return 2.0  # (x + 1) w - 1, halved: some roundings of the coordinate, and of 1
        if node.op_type in _INTERPOLATES and not _exact(node):
            return self._coordinates(node)
        terms = summed(node, self.shapes)
        return math.sqrt(terms) if terms > 1 and not _exact(node) else 0.0

    def _coordinates(self, node: onnx.NodeProto) -> float:
        """Of an interpolation: its weights are differences of float32 coordinates, off by u times a coordinate, which is up to the size.

        Where each axis grows by a power of two they are exact, unless the corners are aligned.
        """
        before, after = self.shapes.get(node.input[0], ()), self.shapes.get(node.output[0], ())
        if not before or len(before) != len(after):
            return UNKNOWN_SIZE
        exact = all(a == b or (b and math.log2(a / b).is_integer()) for b, a in zip(before, after, strict=True) if a)
        if exact and _text(node, "coordinate_transformation_mode") in ("", "half_pixel", "asymmetric", "pytorch_half_pixel"):
            return 2.0
        return float(max((*before[2:], *after[2:]), default=1))

    def _outer(self, node: onnx.NodeProto) -> float:
        """Errors of the results, in units of u; 0 for what rounds nothing."""
        if node.op_type == "Cast":
            return self._narrowing(node)
        if _exact(node):
            return 0.0
        return ELEMENTARY if node.op_type in _ELEMENTARY else 1.0

    def _narrowing(self, node: onnx.NodeProto) -> float:
        before, after = (ROUNDING.get(self.types.get(name, (0, None))[0], "") for name in (node.input[0], node.output[0]))
        return float(bool(before and after) and UNIT_ROUNDOFF[after] > UNIT_ROUNDOFF[before])

    def _off(self, source: str, target: str, kind: int, size: float, bounded: bool) -> Iterator[onnx.NodeProto]:
        """target = source + source * e, and + e where the error does not shrink with the result."""
        self.count += 1
        scale = self.multiple * size * UNIT_ROUNDOFF[ROUNDING[kind]]
        wide = TensorProto.DOUBLE if kind == TensorProto.DOUBLE else TensorProto.FLOAT
        name = f"{target}/off/{self.count}"
        exact = source
        if wide != kind:
            exact = f"{name}/wide"
            yield helper.make_node("Cast", [source], [exact], name=exact, to=wide)
        yield from self._uniform(exact, f"{name}/e", wide, scale, self.count)
        # the error of an infinity, as in a mask, is finite: inf + inf * e would be NaN for one of both signs
        limits = np.finfo(np.float64 if wide == TensorProto.DOUBLE else np.float32)
        for part, value in (("lowest", limits.min), ("highest", limits.max)):
            constant = numpy_helper.from_array(np.asarray(value, limits.dtype))
            yield helper.make_node("Constant", [], [f"{name}/{part}"], name=f"{name}/{part}", value=constant)
        yield helper.make_node("Max", [exact, f"{name}/lowest"], [f"{name}/above"], name=f"{name}/above")
        yield helper.make_node("Min", [f"{name}/above", f"{name}/highest"], [f"{name}/finite"], name=f"{name}/finite")
        yield helper.make_node("Mul", [f"{name}/finite", f"{name}/e"], [f"{name}/d"], name=f"{name}/d")
        total = f"{name}/sum" if wide != kind or bounded else target
        yield helper.make_node("Add", [exact, f"{name}/d"], [total], name=f"{name}/sum")
        if bounded:
            one = self.multiple * UNIT_ROUNDOFF[ROUNDING[kind]]
            yield from self._uniform(exact, f"{name}/a", wide, one, self.count + 0.5)
            last = target if wide == kind else f"{name}/sum/a"
            yield helper.make_node("Add", [total, f"{name}/a"], [last], name=f"{name}/sum/a")
            total = last
        if wide != kind:
            yield helper.make_node("Cast", [total], [target], name=f"{name}/narrow", to=kind)

    def _uniform(self, like: str, name: str, kind: int, scale: float, seed: float) -> Iterator[onnx.NodeProto]:
        """Numbers from -scale to scale in the shape of `like`, other ones for each seed and each draw."""
        if not self.table:
            random: dict[str, Any] = {"dtype": kind, "low": -scale, "high": scale}
            yield helper.make_node("RandomUniformLike", [like], [name], name=name, seed=float(seed), **random)
            return

        def constant(part: str, array: np.ndarray) -> onnx.NodeProto:
            return helper.make_node(
                "Constant", [], [f"{name}/{part}"], name=f"{name}/{part}", value=numpy_helper.from_array(array)
            )

        def node(op_type: str, inputs: list[str], part: str, **attributes: Any) -> onnx.NodeProto:
            names = [i if i.startswith("porting/") or i == like else f"{name}/{i}" for i in inputs]
            output = f"{name}/{part}" if part else name
            return helper.make_node(op_type, names, [output], name=output, **attributes)

        yield constant("zero", np.asarray([0]))
        yield constant("seed", np.asarray(int(seed * 2) * 104729))
        yield constant("scale", np.asarray(scale, np.float32))
        yield node("Shape", [like], "shape")
        yield node("Size", [like], "size")
        yield node("Mul", [DRAW, _STRIDE], "drawn")
        yield node("Add", ["drawn", "seed"], "far")
        yield node("Mod", ["far", _COUNT], "start")
        yield node("Add", ["start", "size"], "stop")
        yield node("Div", ["stop", _COUNT], "whole")
        yield node("Unsqueeze", ["whole", "zero"], "times")
        yield node("Add", ["times", _ONE], "repeats")
        yield node("Tile", [_TABLE, "repeats"], "tiled")
        yield node("Unsqueeze", ["start", "zero"], "first")
        yield node("Unsqueeze", ["stop", "zero"], "last")
        yield node("Slice", ["tiled", "first", "last"], "flat")
        yield node("Reshape", ["flat", "shape"], "shaped")
        yield node("Mul", ["shaped", "scale"], "scaled")
        yield node("Cast", ["scaled"], "", to=kind)


def _exact(node: onnx.NodeProto) -> bool:
    if node.op_type in _SCATTERS:
        return _text(node, "reduction") not in ("add", "mul")
    if node.op_type in _INTERPOLATES:
        return _text(node, "mode") in ("", "nearest")
    return node.op_type in EXACT


def _text(node: onnx.NodeProto, name: str) -> str:
    return next((a.s.decode() for a in node.attribute if a.name == name), "")


# --- how many terms an operator sums ----------------------------------------------------------------------------------


def summed(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Number of terms in the sums of an operator; 1 where it sums nothing, or the shapes are not known."""
    rule = _SUMS.get(node.op_type) or (_reduced if node.op_type.startswith("Reduce") else None)
    try:
        return max(1, int(rule(node, [shapes.get(name, ()) for name in node.input], shapes))) if rule else 1
    except (IndexError, ValueError, ZeroDivisionError):  # a shape that is not known
        return 1


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _matrix(node: onnx.NodeProto, inputs: list[Shape], shapes: Mapping[str, Shape]) -> int:
    a, b = inputs[0], inputs[1]
    if len(b) > 1:
        return b[-1 if _attribute(node, "transB", 0) else -2]
    return a[-2 if _attribute(node, "transA", 0) else -1]


def _reduced(node: onnx.NodeProto, inputs: list[Shape], shapes: Mapping[str, Shape]) -> int:
    return math.prod(inputs[0]) // math.prod(shapes[node.output[0]]) if node.output[0] in shapes else inputs[0][-1]


def _kernel(node: onnx.NodeProto, inputs: list[Shape], shapes: Mapping[str, Shape]) -> int:
    return math.prod(next((list(a.ints) for a in node.attribute if a.name == "kernel_shape"), []))


def _scattered(node: onnx.NodeProto, inputs: list[Shape], shapes: Mapping[str, Shape]) -> int:
    """At most: every row onto one place."""
    if node.op_type == "ScatterND":
        return math.prod(inputs[1][:-1])
    return inputs[1][_attribute(node, "axis", 0)]


# sums of integers (MatMulInteger, DynamicQuantizeLSTM) are exact
_SUMS: Mapping[str, Callable[[onnx.NodeProto, list[Shape], Mapping[str, Shape]], float]] = {
    **dict.fromkeys(("MatMul", "Gemm", "FusedMatMul", "FusedGemm"), _matrix),
    **dict.fromkeys(("Conv", "FusedConv"), lambda node, inputs, shapes: math.prod(inputs[1][1:])),
    "ConvTranspose": lambda node, inputs, shapes: inputs[1][0] * math.prod(inputs[1][2:]) // _attribute(node, "group", 1),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), lambda node, inputs, shapes: inputs[1][-1] + inputs[2][-1]),
    "MatMulNBits": lambda node, inputs, shapes: _attribute(node, "K", 1),
    "AveragePool": _kernel,
    "GlobalAveragePool": lambda node, inputs, shapes: math.prod(inputs[0][2:]),
    **dict.fromkeys(("Attention", "MultiHeadAttention"), lambda node, inputs, shapes: inputs[0][-1] + inputs[1][-2]),
    "Einsum": lambda node, inputs, shapes: max(max(shape) for shape in inputs),
    "CumSum": lambda node, inputs, shapes: max(inputs[0]),
    **dict.fromkeys(("DFT", "STFT"), lambda node, inputs, shapes: max(inputs[0])),
    **dict.fromkeys(_SCATTERS, _scattered),
    **dict.fromkeys(("Sum", "Mean"), lambda node, inputs, shapes: len(inputs)),
}


def _structural(graph: onnx.GraphProto, valued: set[str]) -> set[str]:
    """Names of floats that end up as sizes, counts or comparisons without having seen the inputs' values: exact in practice, and a
    changed one is another graph."""
    wanted: set[str] = set()
    producers: list[onnx.NodeProto] = []

    def collect(body: onnx.GraphProto) -> None:
        for node in body.node:
            producers.append(node)
            for inner in subgraphs(node):
                collect(inner)

    collect(graph)
    for node in reversed(producers):
        decides = node.op_type == "Cast" and _attribute(node, "to", 0) in _INTEGRAL
        decides = decides or node.op_type in (
            "Range",
            "Less",
            "Greater",
            "Equal",
            "LessOrEqual",
            "GreaterOrEqual",
            "ConstantOfShape",
        )
        names = list(node.input[1:]) if node.op_type in ("Resize", "Upsample", "Pad") else list(node.input) if decides else []
        if any(name in wanted for name in node.output):
            names = list(node.input)
        wanted.update(name for name in names if name and name not in valued)
    return wanted
