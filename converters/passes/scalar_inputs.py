"""Range(x: [1], ...) -> Range(Squeeze(x), ...)

Range takes scalars. Runtimes take a vector of one element too, as long as they do not know its shape while they load the graph; the other
passes make shapes known, so it is put right.

Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from .rewriting import ModelPass, Names, bodies_of


@ModelPass
def scalar_inputs(model: ir.Model) -> int:
    """Count: inputs that became scalars. Refuses unless the input is known to be a vector."""
    names = Names(model)
    changes = 0
    for body in bodies_of(model):
        for node in [n for n in body if n.op_type == "Range" and not n.domain]:
            for place, value in enumerate(node.inputs):
                if value is None or value.shape is None or len(value.shape) != 1:
                    continue
                name = names.free(f"{node.name}/{value.name}")
                squeeze = ir.Node("", "Squeeze", [value], name=name, metadata_props=dict(node.metadata_props))
                squeeze.outputs[0].name, squeeze.outputs[0].type, squeeze.outputs[0].shape = name, value.type, ir.Shape([])
                body.insert_before(node, squeeze)
                node.replace_input_with(place, squeeze.outputs[0])
                changes += 1
    return changes
