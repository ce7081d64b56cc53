"""If(constant) -> the branch that it takes.

    If(true){then: Relu(x) | else: Exp(x)}   ->   Relu(x)

Nodes of the branch keep their names and where they came from; a value whose name is taken elsewhere in the model gets another.

Refuses (leaves the node alone) when the condition is not a constant, or is an initializer that a caller may feed. Loop is never touched.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from .rewriting import ModelPass, Names, bodies_of, frozen, remove_node


@ModelPass
def inline_if(model: ir.Model) -> int:
    """Count: If nodes that are gone, those inside a branch that was dropped not counted."""
    changes = 0
    while (node := _decided(model)) is not None:  # inlining may bring up another
        _inline(node, Names(model))
        changes += 1
    return changes


def _decided(model: ir.Model) -> ir.Node | None:
    for body in bodies_of(model):
        for node in body:
            if node.op_type == "If" and not node.domain and frozen(node.inputs[0]) is not None:
                return node
    return None


def _inline(node: ir.Node, names: Names) -> None:
    """Move the branch in front of the If, and put its results in place of the If's."""
    condition = frozen(node.inputs[0])
    assert condition is not None and node.graph is not None
    taken = bool(condition.numpy().reshape(-1)[0])
    branch = node.attributes["then_branch" if taken else "else_branch"].as_graph()
    results = list(branch.outputs)
    branch.outputs.clear()
    for value in list(branch.initializers.values()):
        del branch.initializers[str(value.name)]
        value.name = names.free(str(value.name))
        node.graph.register_initializer(value)
    moved = list(branch)
    branch.remove(moved)
    for inner in moved:
        for value in inner.outputs:
            value.name = names.free(str(value.name)) if value.name else value.name
    node.graph.insert_before(node, moved)
    for number, (output, result) in enumerate(zip(node.outputs, results, strict=True)):
        name = str(output.name)
        output.name = f"{name}.replaced"
        step = ir.Node(
            "", "Identity", [result], name=names.free(f"{node.name}/{number}"), metadata_props=dict(node.metadata_props)
        )
        step.outputs[0].name, step.outputs[0].type, step.outputs[0].shape = name, output.type, output.shape
        node.graph.insert_before(node, step)
        output.replace_all_uses_with(step.outputs[0], replace_graph_outputs=True)
    remove_node(node)
