"""Constant -> initializer, in the graph and in the bodies of its control flow.

    Constant(value=W) ─ Conv(x, ·)   ->   Conv(x, W)

Exporters write hundreds of them (a Paddle export keeps every weight in one). All forms of the attribute are taken: value, value_int(s),
value_float(s), value_string(s). What takes more than INLINE_BYTES becomes a weight of its own outside the graph.

Refuses (leaves the node alone) when the constant is an output of its graph, which has to be made by a node, or is sparse.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from porting.weights import NUMPY_DTYPES, array_stream, stream_of, tensors_of

from .rewriting import ModelPass, bodies_of, shape_of

INLINE_BYTES = 1024  # what a shape, a list of axes or a scalar never reaches, and a weight that is worth a seek does
STREAMED = frozenset(dtype.name for dtype in NUMPY_DTYPES.values())


@ModelPass
def constants_to_initializers(model: ir.Model) -> int:
    """Rewrite every Constant that matches. Source: ONNX Constant-24."""
    changes = 0
    for body in bodies_of(model):
        for node in [n for n in body if n.op_type == "Constant" and n.domain == ""]:
            output = node.outputs[0]
            tensor = _tensor_of(node)
            if tensor is None or output.is_graph_output():
                continue
            name = str(output.name)
            value = ir.Value(
                name=name,
                type=ir.TensorType(tensor.dtype),
                shape=shape_of(tensor),
                const_value=kept_outside(tensor, name),
                metadata_props=dict(output.metadata_props),
            )
            output.name = f"{name}.replaced"
            body.register_initializer(value)
            output.replace_all_uses_with(value)
            body.remove(node, safe=True)
            changes += 1
    return changes


def kept_outside(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """A tensor of that name; when it is large and of a plain dtype a stream, which the writer puts outside the graph."""
    found = stream_of(tensor)
    if found is not None:
        return tensors_of(found[0])[found[1]]
    if tensor.dtype == ir.DataType.STRING:
        return ir.StringTensor(tensor.numpy(), shape=shape_of(tensor), name=name)
    array = tensor.numpy()
    # the writer refuses NaN in a weight; in a constant it may be meant
    meant = array.dtype.kind not in "biu" and array.dtype.name in STREAMED and np.isnan(array).any()
    if tensor.nbytes <= INLINE_BYTES or array.dtype.name not in STREAMED or meant:
        return ir.Tensor(array, dtype=tensor.dtype, shape=shape_of(tensor), name=name)
    return tensors_of(array_stream(name, array))[0]


def _tensor_of(node: ir.Node) -> ir.TensorProtocol | None:
    """What a Constant holds; None when it is sparse or refers to an attribute of a function."""
    if len(node.attributes) != 1:
        return None
    [(form, attribute)] = node.attributes.items()
    if attribute.is_ref():
        return None
    if form == "value":
        return attribute.as_tensor()
    if form in ("value_int", "value_ints"):
        return ir.Tensor(np.asarray(attribute.value, np.int64))
    if form in ("value_float", "value_floats"):
        return ir.Tensor(np.asarray(attribute.value, np.float32))
    if form in ("value_string", "value_strings"):
        texts = [attribute.value] if form == "value_string" else list(attribute.value)
        strings = np.asarray([t.encode() if isinstance(t, str) else t for t in texts], object)
        return ir.StringTensor(strings.reshape(() if form == "value_string" else (len(texts),)))
    return None
