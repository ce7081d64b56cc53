"""Constant(value_int, value_floats, ...) -> Constant(value).

Why: CANN's parser reads `value` alone.

Left alone: sparse_value.
Bound: none needed, the bits are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..rewriting import Names
from .in_place import in_place

DTYPES = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}


def _write_value(node: ir.Node, _names: Names, _opset: int) -> bool:
    for name, dtype in DTYPES.items():
        if name in node.attributes:
            tensor: ir.TensorProtocol = ir.Tensor(np.asarray(node.attributes[name].value, dtype))
            break
    else:
        name = next((n for n in ("value_string", "value_strings") if n in node.attributes), "")
        if not name:
            return False
        value = node.attributes[name].value
        texts = [value] if name == "value_string" else list(value)
        shape = ir.Shape([] if name == "value_string" else [len(texts)])
        tensor = ir.StringTensor([text.encode() if isinstance(text, str) else text for text in texts], shape=shape)
    del node.attributes[name]
    node.attributes["value"] = ir.AttrTensor("value", tensor)
    return True


constant_forms = in_place({"Constant": _write_value}, "Write each as `value`. Count: nodes. Source: ONNX Constant-13.")
