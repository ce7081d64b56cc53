"""A float32 graph in which every node stores what it computes in a narrower format, as documented for Ascend's fp16 and bf16 modes.

    x ─ node ─ y        becomes        x ─ round ─ node ─ round ─ y

A node that is kept computes on float32 and stores float32; where another node reads that, it is rounded there. Constants are rounded where
they are read, and clipped to the largest number first (ATC's is_weight_clip). What only decides shapes is left alone, and so are sums inside
a node: kernels, their inner precision, and what the compiler fuses are not modelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from porting.ascend.half_formats import Format
from porting.backends.onnx_program import ELEMENT_TYPES, node_label, subgraphs
from porting.onnx_facts import valued_names

PREFIX = "porting/rounded/"
FIRST_OPSET = 13  # of Cast to bfloat16; every graph that was lowered for Ascend has a later one
FLOAT32_BITS = 24
LEFT_ALONE = 1e34  # magnitudes from here on are not split into halves, which would overflow float32

# control flow stores nothing itself; the others give shapes, or numbers that were there before
TRANSPARENT = frozenset(("If", "Loop", "Scan", "Constant", "Shape", "Size", "ConstantOfShape", "Range", "EyeLike", "Identity"))
# inputs that a kernel reads as they are, because they are attributes to it: operator -> places
PARAMETERS: Mapping[str, tuple[int, ...]] = {
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "Dropout": (1,),
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
    "NonMaxSuppression": (2, 3, 4),
}

Types = Mapping[str, tuple[int, "tuple[int, ...] | None"]]


@dataclass(frozen=True)
class Rounding:
    """How nodes store.

    form:      the narrower format
    keep:      names of nodes that compute and store in float32
    saturates: whether what is too large becomes the largest number and NaN becomes 0; else it becomes Inf
    clips:     whether constants become the largest number too; else only where `saturates`
    ranged:    False: only the significand is shortened, as if the format had float32's range
    """

    form: Format
    keep: frozenset[str] = frozenset()
    saturates: bool = False
    clips: bool = True
    ranged: bool = True


@dataclass
class Rounded:
    """
    peaks: output that was added -> value whose largest magnitude, before it is rounded, it gives
    """

    model: onnx.ModelProto
    peaks: dict[str, str] = field(default_factory=dict)


def computes(node: onnx.NodeProto, valued: set[str]) -> bool:
    """Whether a node computes on numbers that depend on what is fed: what it stores is rounded."""
    return node.op_type not in TRANSPARENT and any(name in valued for name in node.output)


def float_inputs(node: onnx.NodeProto, types: Types) -> Iterator[tuple[int, str]]:
    """Place and name of the float32 inputs that a kernel takes in its own format."""
    parameters = PARAMETERS.get(node.op_type, ())
    for place, name in enumerate(node.input):
        if name and place not in parameters and types.get(name, (0,))[0] == TensorProto.FLOAT:
            yield place, name


def rounded(model: onnx.ModelProto, types: Types, rounding: Rounding, peaks: Iterable[str] = ()) -> Rounded:
    """A copy of a model that rounds.

    types: element type of every value, by name
    peaks: values of the main graph, none of them empty, whose largest magnitude before rounding shall be an output too
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    rewriting = _Rewriting(types, rounding, valued_names(new.graph), frozenset(peaks))
    rewriting.look(new.graph, {})
    rewriting.change(new.graph, {}, main=True)
    new.graph.initializer.extend(_numbers(rounding.form))
    return Rounded(new, rewriting.peaks)


@dataclass
class _Rewriting:
    """
    read:  float32 values that are stored as such and read by nodes that round: they get a rounded copy
    peaks: as in Rounded
    """

    types: Types
    rounding: Rounding
    valued: set[str]
    wanted: frozenset[str]
    read: set[str] = field(default_factory=set)
    peaks: dict[str, str] = field(default_factory=dict)

    def rounds(self, node: onnx.NodeProto) -> bool:
        return computes(node, self.valued) and node_label(node) not in self.rounding.keep

    def look(self, graph: onnx.GraphProto, wide: dict[str, bool]) -> None:
        """Find `read`. wide: value of an outer graph -> whether it is stored in float32"""
        wide = {**wide, **self._given(graph)}
        for node in graph.node:
            rounds = self.rounds(node)
            if rounds:
                self.read.update(name for _, name in float_inputs(node, self.types) if wide.get(name))
            for body in subgraphs(node):
                self.look(body, wide)
            wide.update((name, not rounds) for name in node.output)

    def change(self, graph: onnx.GraphProto, wide: dict[str, bool], main: bool = False) -> None:
        """Let a graph round."""
        given = self._given(graph)
        wide = {**wide, **given}
        nodes = [made for name in given for made in self._copy(name, main)]
        for node in graph.node:
            rounds = self.rounds(node)
            if rounds:
                for place, name in list(float_inputs(node, self.types)):
                    if wide.get(name):
                        node.input[place] = _copy_of(name)
            for body in subgraphs(node):
                self.change(body, wide)
            wide.update((name, not rounds) for name in node.output)
            nodes.append(node)
            for place, name in enumerate(list(node.output)):
                if self.types.get(name, (0,))[0] != TensorProto.FLOAT:
                    continue
                if rounds:
                    node.output[place] = f"{PREFIX}wide/{name}"
                    nodes += self._round(node.output[place], name)
                    nodes += self._peak(node.output[place], name, main)
                else:
                    nodes += self._copy(name, main)
        kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del graph.node[:]
        graph.node.extend(kept)

    def _given(self, graph: onnx.GraphProto) -> dict[str, bool]:
        return {value.name: True for value in (*graph.input, *graph.initializer)}

    def _copy(self, name: str, main: bool) -> list[onnx.NodeProto]:
        """A rounded copy of a value that is stored in float32, where one is read."""
        if name not in self.read:
            return []
        return [*self._round(name, _copy_of(name)), *self._peak(name, name, main)]

    def _peak(self, wide: str, name: str, main: bool) -> list[onnx.NodeProto]:
        if not main or name not in self.wanted:
            return []
        output = f"{PREFIX}peak/{name}"
        self.peaks[output] = name
        size = f"{output}/size"
        return [
            helper.make_node("Abs", [wide], [size], name=size),
            helper.make_node("ReduceMax", [size], [output], name=output, keepdims=0),
        ]

    def _round(self, source: str, target: str) -> list[onnx.NodeProto]:
        chain = _Chain(target)
        if not self.rounding.ranged:
            return chain.shortened(source, self.rounding.form)
        constant = source.removeprefix(f"{PREFIX}wide/") not in self.valued
        if (constant and self.rounding.clips) or self.rounding.saturates:
            source = chain.add("Where", [chain.add("IsNaN", [source]), f"{PREFIX}zero", source])
            source = chain.add("Min", [chain.add("Max", [source, f"{PREFIX}lowest"]), f"{PREFIX}highest"])
        chain.there_and_back(source, self.rounding.form, target)
        return chain.nodes


def _copy_of(name: str) -> str:
    return f"{PREFIX}copy/{name}"


@dataclass
class _Chain:
    """Nodes that lead to one value, named after it."""

    target: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def add(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        made = output or f"{PREFIX}{len(self.nodes)}/{self.target}"
        name = f"{PREFIX}node{len(self.nodes)}/{self.target}"
        self.nodes.append(helper.make_node(kind, inputs, [made], name=name, **attributes))
        return made

    def there_and_back(self, source: str, form: Format, output: str = "") -> str:
        narrow = self.add("Cast", [source], to=ELEMENT_TYPES[form.name])
        return self.add("Cast", [narrow], output, to=TensorProto.FLOAT)

    def shortened(self, source: str, form: Format) -> list[onnx.NodeProto]:
        """To `form`'s significand at any magnitude: where `form` has normal numbers by casting, elsewhere by Veltkamp's splitting.

        source: Dekker (1971), "A floating-point technique for extending the available precision", Numer. Math. 18, section 5
        """
        cast = self.there_and_back(source, form)
        large = self.add("Mul", [source, f"{PREFIX}splitter"])
        split = self.add("Sub", [large, self.add("Sub", [large, source])])
        size = self.add("Abs", [source])
        splits = self.add("Where", [self.add("Less", [size, f"{PREFIX}left_alone"]), split, source])
        above = self.add("Not", [self.add("Less", [size, f"{PREFIX}smallest_normal"])])
        inside = self.add("And", [above, self.add("Less", [size, f"{PREFIX}overflows_from"])])
        self.add("Where", [inside, cast, splits], self.target)
        return self.nodes


def _numbers(form: Format) -> Iterator[onnx.TensorProto]:
    numbers = {
        "zero": 0.0,
        "lowest": -form.largest,
        "highest": form.largest,
        "splitter": 2.0 ** (FLOAT32_BITS - form.bits) + 1,
        "smallest_normal": form.smallest_normal,
        "overflows_from": form.overflows_from,
        "left_alone": LEFT_ALONE,
    }
    for name, number in numbers.items():
        yield numpy_helper.from_array(np.asarray(number, np.float32), f"{PREFIX}{name}")
