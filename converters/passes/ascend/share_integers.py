"""Integers and booleans that are computed twice from the same values are computed once.

    every layer: Range, Mul, Add of positions   ->   those of the first layer that needs them

Why: the passes here write positions, rows and masks anew for every layer, and a decoder of 30 layers would compute them 60 times a step, in
integers, for which CANN has fewer kernels than for floats. SmolLM2 with a prefill of 64: 3,056 nodes without this pass, 2,525 with it.

Floats are left alone: their nodes keep the names of the modules that they compute, which precision files and reports go by.

Refuses (leaves a node) when it has a tensor or a body as attribute, an output of its graph, or is random.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from ..rewriting import ModelPass, bodies_of, frozen, remove_node

SMALL_BYTES = 64 << 10  # of constants that are compared by their numbers: 8,192 positions
PLAIN = (
    ir.AttributeType.INT,
    ir.AttributeType.FLOAT,
    ir.AttributeType.STRING,
    ir.AttributeType.INTS,
    ir.AttributeType.FLOATS,
    ir.AttributeType.STRINGS,
)
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


@ModelPass
def share_integers(model: ir.Model) -> int:
    """Count: nodes that are gone. Each body by itself. Types must have been inferred."""
    changes = 0
    for body in bodies_of(model):
        known: dict[Hashable, ir.Node] = {}
        for node in list(body):
            key = _key(node)
            first = node if key is None else known.setdefault(key, node)
            if first is not node:
                for old, new in zip(node.outputs, first.outputs, strict=True):
                    old.replace_all_uses_with(new)
                remove_node(node)
                changes += 1
    return changes


def _key(node: ir.Node) -> Hashable | None:
    """Equal for nodes that compute the same; None for one that is left alone."""
    if node.op_type in RANDOM or not node.inputs or not all(map(_is_whole, node.outputs)):
        return None
    if any(a.type not in PLAIN or a.is_ref() for a in node.attributes.values()):
        return None
    attributes = tuple(sorted((name, _hashable(a.value)) for name, a in node.attributes.items()))
    return node.domain, node.op_type, len(node.outputs), attributes, tuple(map(_identity, node.inputs))


def _hashable(value: object) -> Hashable:
    return repr(list(value)) if isinstance(value, (list, tuple)) else repr(value)


def _is_whole(value: ir.Value) -> bool:
    return (
        value.dtype is not None
        and (value.dtype.is_integer() or value.dtype == ir.DataType.BOOL)
        and not value.is_graph_output()
    )


def _identity(value: ir.Value | None) -> Hashable:
    """A small constant by what it holds, everything else by itself."""
    tensor = frozen(value)
    if tensor is None or tensor.nbytes > SMALL_BYTES or tensor.dtype == ir.DataType.STRING:
        return id(value)
    return tensor.dtype, tuple(tensor.shape), tensor.tobytes()
