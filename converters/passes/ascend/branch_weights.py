"""Large weights in a body of control flow -> weights of the graph, which the body reads.

    If {w = 1 MiB; y = Conv(x, w)}   ->   w = 1 MiB;  If {y = Conv(x, w)}

Why: weights lie in files beside the model, and CANN's parser joins such a file's name to the model's folder for the main graph only.

Left alone: small constants, which lie in the model itself; a weight that a body returns as it is, or that a caller may feed.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from ..rewriting import ModelPass, Names, bodies_of

OUTSIDE_BYTES = 1024  # initializers above it are written beside the model


@ModelPass
def branch_weights(model: ir.Model) -> int:
    """Count: initializers moved. Names that several bodies use for different weights get a number. Source: ONNX IR, names of outer graphs."""
    moved: list[ir.Value] = []
    for body in list(bodies_of(model)):
        if body is model.graph:
            continue
        stay = {*body.inputs, *body.outputs}
        for name, value in list(body.initializers.items()):
            if value.const_value is not None and value.const_value.nbytes > OUTSIDE_BYTES and value not in stay:
                del body.initializers[name]
                moved.append(value)
    names = Names(model)
    for value in moved:
        value.name = names.free(str(value.name))
        model.graph.register_initializer(value)
    return len(moved)
