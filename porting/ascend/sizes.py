"""Which sizes hang on numbers that are fed, and not on the shapes of what is fed: such a graph has no fixed shapes, whatever its inputs' are.

Shape(x) ─ Gather ─ Reshape(y, ·)      known as soon as x's shape is
NonZero(x),  Reshape(y, x)             known when the model runs

What a size hangs on is followed from node to node until a shape says all sizes again. An If whose branches are of different known sizes makes one;
else If and Loop only pass it on: where they are listed by themselves, nobody knows their shapes, which is less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

BY_CONTENT = frozenset(("NonZero", "NonMaxSuppression", "Unique", "Compress", "StringSplit", "ImageDecoder"))
RANDOM = frozenset(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"))

# operator -> the inputs whose numbers say how large its outputs are
BY_INPUT: Mapping[str, tuple[int, ...]] = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "Resize": (2, 3),
    "Upsample": (1,),
    "TopK": (1,),
    "OneHot": (1,),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "CenterCropPad": (1,),
    "DFT": (1,),
    "STFT": (1, 3),
    "Col2Im": (1, 2),
    "MaxUnpool": (2,),
    "AffineGrid": (1,),
    "HannWindow": (0,),
    "HammingWindow": (0,),
    "BlackmanWindow": (0,),
    "MelWeightMatrix": (0, 1),
    **{f"Reduce{kind}": (1,) for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")},
}


@dataclass
class Sizes:
    """Goes through nodes in order.

    numbers: values whose numbers are known once shapes are
    unsized: values whose size is not
    makers:  value -> the nodes, control flow apart, whose numbers its size hangs on
    named:   dimensions that inputs have: what is called the same is known with them
    """

    numbers: set[ir.Value] = field(default_factory=set)
    unsized: set[ir.Value] = field(default_factory=set)
    makers: dict[ir.Value, frozenset[ir.Node]] = field(default_factory=dict)
    named: frozenset[str] = frozenset()

    def enter(self, body: ir.Graph) -> None:
        """Start with a graph or the body of a control flow."""
        self.numbers.update(v for v in body.initializers.values() if not v.is_graph_input())

    def follow(self, node: ir.Node) -> bool:
        """Take a node in, those of its bodies before it; whether it makes a size that hangs on numbers."""
        fixed = all(_is_fixed(v) for v in node.outputs)
        made = not fixed and not node.domain and self._makes(node)
        if made or (not fixed and any(v in self.unsized for v in node.inputs if v is not None)):
            self.unsized.update(node.outputs)
        self._pass_on(node, made)
        if not node.domain and node.op_type not in RANDOM and not made and self._is_known(node):
            self.numbers.update(node.outputs)
        return made

    def _pass_on(self, node: ir.Node, made: bool) -> None:
        bodies = [a.as_graph() for a in node.attributes.values() if a.type.name == "GRAPH"]
        own = frozenset((node,)) if made and (not bodies or self._chooses(node)) else frozenset()
        read = [v for v in node.inputs if v is not None] + [v for body in bodies for v in body.outputs]
        makers = own.union(*(self.makers.get(v, ()) for v in read))
        for value in node.outputs if makers else ():
            if not (_is_fixed(value) or (not own and self._is_named(value))):
                self.makers[value] = makers

    def _is_named(self, value: ir.Value) -> bool:
        if value.shape is None or _is_declared(value):
            return False
        return all(isinstance(d, int) or d.value in self.named for d in value.shape)

    def _is_known(self, node: ir.Node) -> bool:
        if node.op_type in ("Shape", "Size"):
            return node.inputs[:1] != () and node.inputs[0] not in self.unsized
        if any(a.type.name == "GRAPH" for a in node.attributes.values()):
            return False
        return all(v is None or v in self.numbers for v in node.inputs)

    def _makes(self, node: ir.Node) -> bool:
        if node.op_type in BY_CONTENT:
            return True
        if node.op_type == "If":
            return not self._is_given(node, 0) and self._differs(node)
        if node.op_type == "Loop":
            return not (self._is_given(node, 0) and self._is_given(node, 1)) and len(node.outputs) > len(node.inputs) - 2
        return any(not self._is_given(node, place) for place in BY_INPUT.get(node.op_type, ()))

    def _is_given(self, node: ir.Node, place: int) -> bool:
        value = node.inputs[place] if place < len(node.inputs) else None
        return value is None or value in self.numbers

    def _chooses(self, node: ir.Node) -> bool:
        """Whether it is this If alone that says how large its outputs are: both branches know, and say different sizes."""
        bodies = [a.as_graph() for a in node.attributes.values() if a.type.name == "GRAPH"]
        known = all(_is_fixed(v) or self._is_named(v) for body in bodies for v in body.outputs)
        return node.op_type == "If" and known and self._differs(node)

    def _differs(self, node: ir.Node) -> bool:
        """Whether the branches of an If give outputs of other shapes, or of shapes that nobody knows."""
        bodies = [a.as_graph() for a in node.attributes.values() if a.type.name == "GRAPH"]
        shapes = [[v.shape for v in body.outputs] for body in bodies]
        if len(shapes) != 2:
            return True
        named = all(s is not None and all(isinstance(d, int) or d.value is not None for d in s) for s in shapes[0])
        return not named or shapes[0] != shapes[1]


def _is_fixed(value: ir.Value) -> bool:
    return value.shape is not None and not _is_declared(value) and all(isinstance(d, int) for d in value.shape)


def _is_declared(value: ir.Value) -> bool:
    """Whether a size is known by an output's declaration alone: a compiler infers. Of control flow a file is believed, whose branches nobody may know."""
    from porting.converters.passes.infer_shapes import DECLARED

    node = value.producer()
    bodies = node is not None and any(a.type.name == "GRAPH" for a in node.attributes.values())
    return bool(value.meta.get(DECLARED)) and not bodies
