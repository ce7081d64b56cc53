"""Write a graph of opset 19 to 24 in opset 18, the highest that CANN's parser has anything of the standard for.

    GridSample(mode=linear) at 20   ->   GridSample(mode=bilinear) at 18

All nodes or none: a node that has no form of the same meaning at 18 keeps the whole graph where it is, and is marked with the reason (metadata
OBSTACLE). A type or an attribute value that 18 does not have is such a reason. What changed in between is in opset_steps.py.

Why: the parser looks a node up with the opset that the model imports, and does not fall back to an older one.

Bound: none needed, the operators compute the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from ..rewriting import ModelPass, bodies_of
from ..version_steps import versions
from .opset_steps import REVIEWED, STEPS, Refused

HIGHEST_OPSET = 18
IR_VERSION = 8  # of ONNX 1.12, which CANN's documents name, and of 1.13, which brought opset 18
OBSTACLE = "porting.opset"  # metadata of a node that keeps its graph above opset 18: why
SPELLING = {ir.DataType.FLOAT: "float", ir.DataType.DOUBLE: "double"}


@dataclass(frozen=True)
class Obstacle:
    """A node that keeps a graph above opset 18."""

    node: str
    op: str
    reason: str

    def __str__(self) -> str:
        return f"{self.node} ({self.op}): {self.reason}"


@ModelPass
def lower_opset(model: ir.Model) -> int:
    """Count: nodes written otherwise, one for the opset and one for the format; 0 when nodes are in the way, which are marked then."""
    opset = model.graph.opset_imports.get("", 0)
    if opset <= HIGHEST_OPSET:
        return _lower_format(model)
    changes = []
    for node in _standard(model):
        node.metadata_props.pop(OBSTACLE, None)
        try:
            changes.append((node, _change(node, opset)))
        except Refused as reason:
            node.metadata_props[OBSTACLE] = str(reason)
    if any(OBSTACLE in node.metadata_props for node in _standard(model)):
        return 0
    changed = 0
    for node, attributes in changes:
        changed += attributes != dict(node.attributes)
        _set(node, attributes)
    model.graph.opset_imports[""] = HIGHEST_OPSET
    return changed + 1 + _lower_format(model)


def _lower_format(model: ir.Model) -> int:
    """Of the file: nothing in a graph of opset 18 needs a newer one."""
    if (model.ir_version or 0) <= IR_VERSION:
        return 0
    model.ir_version = IR_VERSION
    return 1


def obstacles(model: ir.Model) -> list[Obstacle]:
    """The nodes that lower_opset marked; [] when the graph is at opset 18 or below."""
    return [
        Obstacle(str(node.name), node.op_type, node.metadata_props[OBSTACLE])
        for node in _standard(model)
        if OBSTACLE in node.metadata_props
    ]


def _standard(model: ir.Model) -> Iterator[ir.Node]:
    return (node for body in bodies_of(model) for node in body if not node.domain)


def _change(node: ir.Node, opset: int) -> dict[str, ir.Attr]:
    """The attributes that the node has at opset 18. raises: Refused"""
    known = versions(node.op_type)
    if not known:
        raise Refused("is no operator of the standard")
    if known[0] > HIGHEST_OPSET:
        raise Refused(f"is an operator of opset {known[0]}")
    schema = onnx.defs.get_schema(node.op_type, HIGHEST_OPSET, "")
    attributes = dict(node.attributes)
    for version in reversed([v for v in known if HIGHEST_OPSET < v <= opset]):
        step = STEPS.get((node.op_type, version))
        if step is not None:
            step(node, attributes)
        elif version not in REVIEWED.get(node.op_type, ()):
            raise Refused(f"changed at opset {version} in a way that is not known")
    _require_taken(node, attributes, schema)
    return attributes


def _require_taken(node: ir.Node, attributes: dict[str, ir.Attr], schema: onnx.defs.OpSchema) -> None:
    """raises: Refused when the operator of opset 18 does not take the attributes, inputs or types"""
    unknown = sorted(set(attributes) - set(schema.attributes))
    if unknown:
        raise Refused(f"attribute {unknown[0]} is not of opset {HIGHEST_OPSET}")
    if len(node.inputs) > schema.max_input or len(node.outputs) > schema.max_output:
        raise Refused(f"has inputs or outputs that opset {HIGHEST_OPSET} does not have")
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    for values, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for place, value in enumerate(values):
            kind = None if value is None else _spelled(value.type)
            declared = formal[min(place, len(formal) - 1)].type_str
            if kind is not None and kind not in allowed.get(declared, {declared}):
                raise Refused(f"opset {HIGHEST_OPSET} does not take {kind}")


def _spelled(kind: ir.TypeProtocol | None) -> str | None:
    """As schemas spell a type: seq(tensor(float)); None where it is not known."""
    if kind is None or kind.dtype == ir.DataType.UNDEFINED:
        return None
    if isinstance(kind, ir.SequenceType):
        inner = _spelled(kind.elem_type)
        return None if inner is None else f"seq({inner})"
    if isinstance(kind, ir.OptionalType):
        inner = _spelled(kind.elem_type)
        return None if inner is None else f"optional({inner})"
    return f"tensor({SPELLING.get(kind.dtype, kind.dtype.name.lower())})"


def _set(node: ir.Node, attributes: dict[str, ir.Attr]) -> None:
    if attributes == dict(node.attributes):
        return
    node.attributes.clear()
    for attribute in attributes.values():
        node.attributes[attribute.name] = attribute
