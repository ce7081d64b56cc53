"""Which nodes carry integers in floats: what they compute comes from integers and becomes integers again, with no matrix product between.

    Cast -> Div -> Floor -> Cast        an integer division, as converters/passes/ascend/int_div.py writes it
    Cast -> CumSum -> Cast              positions
    Cast -> Less                        a comparison

fp16 holds integers up to 2048, and a quotient just below a whole number is rounded up to it: one step off is another element, not a small error.
Inputs on which it happens to come out right say nothing of others, so these nodes stay in float32 whatever a forecast measures.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from porting.ascend.graph_facts import GraphFacts
from porting.ascend.precision import CUBE_OPERATORS
from porting.ascend.rounded_graph import PARAMETERS, Types, computes
from porting.backends.onnx_program import ELEMENT_TYPES, node_label
from porting.onnx_facts import nodes_of, valued_names

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)  # what an fp16 mode makes fp16 of
_NO_INTEGERS = (*FLOATS, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.STRING)


def integer_carriers(graph: onnx.GraphProto, types: Types) -> tuple[str, ...]:
    """Names of the nodes, in order, those in bodies included.

    types: element type of every value, by name. What depends on shapes alone is left out, as it is everywhere in a forecast
    """
    valued = valued_names(graph)
    nodes = [node for _, node in nodes_of(graph)]
    constant = _constants(graph)
    whole: set[str] = set()  # floats that come from integers
    read = {id(node): _floats_read(node, types) for node in nodes}
    for node in nodes:
        made = read[id(node)]
        from_integers = node.op_type == "Cast" and not made and types.get(node.input[0], (0,))[0] not in (0, *_NO_INTEGERS)
        if from_integers or _carries(node, made, whole, constant):
            whole.update(name for name in node.output if types.get(name, (0,))[0] in FLOATS)
        elif made and all(name in constant for name in made) and not any(name in valued for name in node.output):
            constant.update(node.output)
    wanted: set[str] = set()  # floats that become integers
    found: set[int] = set()
    for node in reversed(nodes):
        made = read[id(node)]
        ends = bool(node.output) and not any(types.get(name, (0,))[0] in (0, *_NO_INTEGERS) for name in node.output)
        if any(name in wanted for name in node.output) or (ends and _carries(node, made, whole, constant)):
            wanted.update(name for name in made if name in whole)
            found.add(id(node))
    return tuple(node_label(node) for node in nodes if id(node) in found and computes(node, valued))


def integer_carriers_of(facts: GraphFacts) -> tuple[str, ...]:
    """The same of a graph that nothing was run of: those in branches that no input takes included."""
    graph = onnx.GraphProto()
    types: dict[str, tuple[int, tuple[int, ...] | None]] = {}
    graph.input.extend(onnx.ValueInfoProto(name=value.name) for value in facts.inputs)
    for node in facts.nodes:
        read = [value for value in node.inputs if value is not None]
        names = ["" if value is None else value.name for value in node.inputs]
        graph.node.append(helper.make_node(node.op, names, [value.name for value in node.outputs], name=node.name))
        graph.initializer.extend(TensorProto(name=value.name) for value in read if value.is_constant)
        types.update((v.name, (ELEMENT_TYPES.get(v.dtype or "", 0), None)) for v in (*read, *node.outputs) if v.name)
    return integer_carriers(graph, types)


def _floats_read(node: onnx.NodeProto, types: Types) -> list[str]:
    parameters = PARAMETERS.get(node.op_type, ())
    return [
        name for place, name in enumerate(node.input) if name and place not in parameters and types.get(name, (0,))[0] in FLOATS
    ]


def _carries(node: onnx.NodeProto, made: list[str], whole: set[str], constant: set[str]) -> bool:
    """Whether all floats that it reads come from integers, constants beside them."""
    return (
        node.op_type not in CUBE_OPERATORS
        and any(name in whole for name in made)
        and all(name in whole or name in constant for name in made)
    )


def _constants(graph: onnx.GraphProto) -> set[str]:
    bodies = {id(body): body for body in (graph, *(body for body, _ in nodes_of(graph)))}.values()
    found = {tensor.name for body in bodies for tensor in body.initializer}
    return found | {name for _, node in nodes_of(graph) if node.op_type == "Constant" for name in node.output}
