"""Small graphs through the simulated compiler and device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from porting.backends.cann_simulator.compiler import compile_onnx
from porting.backends.cann_simulator.execution import Loaded, load
from porting.backends.cann_simulator.machine import Machine

ORIGIN = {"precision_mode_v2": "origin"}


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    feeds: Mapping[str, np.ndarray],
    outputs: Mapping[str, int],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    """feeds: whose dtypes and shapes the inputs have; outputs: name -> element type"""
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for name, a in feeds.items()
    ]
    made = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()]
    weights = [onnx.numpy_helper.from_array(a, name) for name, a in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "g", inputs, made, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def compiled(model: onnx.ModelProto, soc: str = "Ascend910B3", cann: str = "", **options: str) -> Loaded:
    """options: atc's; origin where no mode is given"""
    machine = Machine(soc, cann)
    mode = {} if any(name.startswith("precision_mode") for name in options) else ORIGIN
    return load(compile_onnx(model.SerializeToString(), {**mode, **options}, machine), machine)


def run(model: onnx.ModelProto, feeds: Mapping[str, Any], soc: str = "Ascend910B3", cann: str = "", **options: str) -> Any:
    """The first output, and the rules that the compiler ignored something by."""
    loaded = compiled(model, soc, cann, **options)
    found = loaded.run([feeds[spec.name] for spec in loaded.inputs if spec.name in feeds])
    return found[0], {rule for _, rule in loaded.arithmetic.ignored}
