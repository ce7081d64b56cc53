"""What an .onnx file says of itself as it lies on the disk, before anything is made of it: whoever gives that file to atc meets these facts.

Reading a file inlines its functions, names its nodes and orders its constants, and the canonical passes write it anew: rules that speak of
the graph after that are silent of what was mended on the way. No weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porting.ascend.graph_facts import BodyFacts, GraphFacts, NodeFacts, facts_of
from porting.types import Graph

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from porting.converters.checkpoints.onnx_tensors import TensorFiles
    from porting.cuts import Cut

FIRST_IR_WITH_DEFAULTS = 4  # before it every initializer had to be listed as an input
READ, CANONICAL = "reading the file", "canonical"
THE_PORT = "the files of the port"  # mend what is wrong with those of the source
# rule -> what of reading, or which canonical pass, takes away what it speaks of
MENDED_BY: Mapping[str, str] = {
    "local-functions": READ,
    "duplicate-names": READ,
    "input-default": READ,
    "external-key": THE_PORT,
    "several-imports": "remove_unused",
    "constant-form": "constants_to_initializers",
    "softmax-axis": "convert_version",
}


@dataclass(frozen=True, eq=False)
class FileFacts:
    """A file, and what the canonical passes did with it.

    facts:  of the file; nodes without a name are called as reading calls them, by operator and output
    passes: names of the canonical passes that changed something
    """

    facts: GraphFacts
    passes: frozenset[str] = frozenset()

    def mended_by(self, rule: str) -> str:
        """What mended it where no pass for Ascend did: reading, a canonical pass, or the canonical form as a whole."""
        by = MENDED_BY.get(rule, CANONICAL)
        return by if by in (READ, THE_PORT) or by in self.passes else CANONICAL


def file_facts(path: Path, cut: Cut, applied: Sequence[Mapping[str, Any]] = ()) -> FileFacts:
    """The facts of a file that was read before; cut where the user cut it. Cut inside a function, which no file holds: those of no node.

    applied: the canonical passes, as port.json lists them
    """
    from onnx.external_data_helper import _get_all_tensors

    from porting.converters.checkpoints.onnx_cut import cut_off, knows
    from porting.converters.checkpoints.onnx_order import put_in_order
    from porting.converters.checkpoints.onnx_tensors import TensorFiles
    from porting.converters.checkpoints.onnx_wire import parse_model

    proto = parse_model(path)
    written_ir, within = proto.ir_version, True
    if cut:
        put_in_order(proto)
        within = knows(proto.graph, cut.outputs)
        if within:
            cut_off(proto, cut, path)
    places = {t.name: {e.key: e.value for e in t.external_data} for t in _get_all_tensors(proto) if t.external_data}
    outside = {name for name, place in places.items() if place.get("location") != path.name}
    model = _read(proto)
    files = TensorFiles(path)
    try:
        _take_tensors(model, files)
        found = facts_of(Graph(model))
    finally:
        files.close()
    inputs = tuple(v for v in found.inputs if written_ir >= FIRST_IR_WITH_DEFAULTS or not v.is_constant)
    nodes = tuple(_as_written(node, outside) for node in found.nodes) if within else ()
    keys = frozenset(key for place in places.values() for key in place)
    changed = frozenset(str(one["name"]) for one in applied if one["changes"])
    return FileFacts(replace(found, inputs=inputs, nodes=nodes, external_keys=keys, ir_version=written_ir), changed)


def _read(proto: onnx.ModelProto) -> ir.Model:
    """The message with the types and shapes that follow in it; a node without a name is called by operator and output, as reading does."""
    import onnx
    import onnx_ir as ir

    with suppress(Exception):  # a binding that raises what it likes; rules speak of what is known
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    model = ir.from_proto(proto)
    taken = {node.name for node in model.graph.all_nodes()}
    for node in model.graph.all_nodes():
        if not node.name:
            base = node.name = f"{node.op_type}/{next((v.name for v in node.outputs if v.name), '')}"
            number = 1
            while node.name in taken:
                number += 1
                node.name = f"{base}_{number}"
            taken.add(node.name)
    return model


def _take_tensors(model: ir.Model, files: TensorFiles) -> None:
    """Tensors that lie outside the message can be read: small numbers are looked at. onnx-ir's own reads none of a file with several links."""
    import onnx_ir as ir

    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = files.in_graph(value.const_value, str(value.name))
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if not attribute.is_ref() and isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(name, files.in_graph(attribute.value, name))


def _as_written(node: NodeFacts, outside: set[str]) -> NodeFacts:
    """Of the weights of a body, only those that the file itself holds elsewhere lie outside."""
    bodies = {name: body for name, body in node.attributes.items() if isinstance(body, BodyFacts)}
    if not bodies:
        return node
    kept = {name: replace(b, outside=tuple(n for n in b.outside if n in outside)) for name, b in bodies.items()}
    return replace(node, attributes={**node.attributes, **kept})
