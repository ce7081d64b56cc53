"""What changed in the standard operators between opsets 9 and 24, and what to do about it.

An operator goes up step by step, from one version of its schema to the next. A step that only adds optional inputs, attributes with a neutral
default and types needs nothing: `needs_nothing` derives that from the schemas. Two kinds of step need more:

    ADAPTERS  what the node must become to mean the same; it refuses with a reason where that is not known
    STOPS     schemas that look alike and do not mean the same, or that a runtime computes slower or not at all

Checked step by step against the ONNX changelog, and by running both forms in onnxruntime 1.31 (tests/converters/test_backend_data.py): equal
to the last bit. Speed, one thread, all optimisations on, file against canonical form, for 41 published models and 54 small graphs of
opsets 9 to 18: 0.89 to 1.04 times the time, where two sessions of one file differ by 0.03, but for AveragePool (see STOPS); the same or
fewer nodes after onnxruntime's fusions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from .rewriting import Names, frozen, ints_of, new_initializer

FLOAT_MAX = float(np.finfo(np.float32).max)


class Refused(Exception):
    """Why a node cannot be written in the next version."""


@cache
def versions(op_type: str) -> tuple[int, ...]:
    """Of a standard operator's schema, oldest first; () when there is no such operator."""
    return tuple(
        sorted(s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op_type and s.domain == "")
    )


def require_known(node: ir.Node, opset: int) -> None:
    """raises: Refused when a node is not of the standard at that opset"""
    known = versions(node.op_type)
    schema = onnx.defs.get_schema(node.op_type, opset, "") if known and known[0] <= opset else None
    if schema is None or schema.deprecated:
        raise Refused(f"not a standard operator of opset {opset}")
    if not set(node.attributes) <= set(schema.attributes):
        raise Refused(f"attribute {', '.join(sorted(set(node.attributes) - set(schema.attributes)))} is not of opset {opset}")


@cache
def needs_nothing(op_type: str, version: int) -> bool:
    """Whether every node of the version before means the same in this one, going by the schemas."""
    before, after = (onnx.defs.get_schema(op_type, v, "") for v in (version - 1, version))
    if after.deprecated:
        return False
    for name, attribute in before.attributes.items():
        now = after.attributes.get(name)
        if now is None or now.type != attribute.type or (now.required and not attribute.required):
            return False
        if not attribute.required and now.default_value != attribute.default_value:
            return False
    if any(a.required for name, a in after.attributes.items() if name not in before.attributes):
        return False
    kept = [(old.option, new.option) for old, new in zip(before.inputs, after.inputs, strict=False)]
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    added = after.inputs[len(before.inputs) :]
    return (
        len(after.inputs) >= len(before.inputs)
        and all(old == new or new == optional for old, new in kept)
        and all(f.option == optional for f in added)
        and [f.option for f in before.outputs] == [f.option for f in after.outputs]
    )


# --- adapters: (node, names) changes the node in place, or raises Refused -------------------------------------------

Adapter = Callable[[ir.Node, Names], None]


def _constant(node: ir.Node, names: Names, label: str, values: Any, dtype: Any = np.int64) -> ir.Value:
    assert node.graph is not None
    name = names.free(f"{node.name or node.outputs[0].name}/{label}")
    return new_initializer(node.graph, name, ir.Tensor(np.asarray(values, dtype), name=name))


def _set_inputs(node: ir.Node, inputs: Sequence[ir.Value | None]) -> None:
    node.resize_inputs(len(inputs))
    for place, value in enumerate(inputs):
        node.replace_input_with(place, value)


def _set(node: ir.Node, **attributes: Any) -> None:
    for attribute in ir.convenience.convert_attributes(attributes):
        node.attributes[attribute.name] = attribute


def _lists_to_inputs(*lists: str) -> Adapter:
    """Attributes that are lists of integers become inputs behind the first, in this order; one that is absent stays out."""

    def adapt(node: ir.Node, names: Names) -> None:
        inputs: list[ir.Value | None] = [node.inputs[0]]
        for name in lists:
            attribute = node.attributes.pop(name, None)
            inputs.append(None if attribute is None else _constant(node, names, name, list(attribute.as_ints())))
        while inputs[-1] is None:
            inputs.pop()
        _set_inputs(node, inputs)

    return adapt


def _reduce(node: ir.Node, names: Names) -> None:
    if "axes" in node.attributes and not ints_of(node, "axes"):
        raise Refused("axes=[] is not defined")
    _lists_to_inputs("axes")(node, names)


def _softmax(node: ir.Node, names: Names) -> None:
    """Over the last axis it is the same. Over another one the old operator took all axes from there on as one."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    source = node.inputs[0]
    assert source is not None and node.graph is not None
    rank = len(source.shape) if source.shape is not None else None
    if axis == -1 or (rank is not None and axis % max(rank, 1) == rank - 1):
        _set(node, axis=-1)
        return
    shape, flat = _before(node, "Shape", [source], names), _before(node, "Flatten", [source], names, axis=axis)
    output = node.outputs[0]
    node.replace_input_with(0, flat)
    _set(node, axis=-1)
    back = ir.Node(
        "",
        "Reshape",
        [None, shape],
        ir.convenience.convert_attributes({"allowzero": 1}),
        name=names.free(f"{node.name}/Reshape"),
        metadata_props=dict(node.metadata_props),
    )
    node.graph.insert_after(node, back)
    name = str(output.name)
    back.outputs[0].type, back.outputs[0].shape = output.type, output.shape
    output.replace_all_uses_with(back.outputs[0], replace_graph_outputs=True)
    back.replace_input_with(0, output)
    output.name, back.outputs[0].name = names.free(f"{name}/flat"), name
    output.shape = None


def _before(node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], names: Names, **attributes: Any) -> ir.Value:
    assert node.graph is not None
    name = names.free(f"{node.name}/{op_type}")
    made = ir.Node(
        "",
        op_type,
        list(inputs),
        ir.convenience.convert_attributes(attributes),
        name=name,
        metadata_props=dict(node.metadata_props),
    )
    made.outputs[0].name = name
    node.graph.insert_before(node, made)
    return made.outputs[0]


def _clip(node: ir.Node, names: Names) -> None:
    """The old bounds were float32 numbers, the largest ones when not given, whatever the type; the new ones are of the input's type."""
    kind = node.inputs[0].dtype if node.inputs[0] is not None else None
    if kind not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        raise Refused(f"bounds for a {kind} input")
    bounds: list[ir.Value | None] = []
    for name, default in (("min", -FLOAT_MAX), ("max", FLOAT_MAX)):
        attribute = node.attributes.pop(name, None)
        number = default if attribute is None else float(attribute.as_float())
        with np.errstate(over="ignore"):
            value = np.asarray(number, kind.numpy())
        if float(value) != float(np.float32(number)):
            raise Refused(f"{name}={number} is no {kind} number")
        bounds.append(_constant(node, names, name, value, kind.numpy()))
    _set_inputs(node, [node.inputs[0], *bounds])


def _dropout(node: ir.Node, names: Names) -> None:
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        raise Refused("its mask is used")
    node.attributes.pop("ratio", None)  # means nothing outside training


def _batch_normalization(node: ir.Node, names: Names) -> None:
    if any(v.name for v in node.outputs[1:]):
        raise Refused("more than one output meant training")
    node.resize_outputs(1)


def _pad(node: ir.Node, names: Names) -> None:
    kind = node.inputs[0].dtype if node.inputs[0] is not None else None
    if kind not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        raise Refused(f"a value for a {kind} input")
    pads = ints_of(node, "pads")
    value = node.attributes["value"].as_float() if "value" in node.attributes else 0.0
    for name in ("pads", "value"):
        node.attributes.pop(name, None)
    inputs = [node.inputs[0], _constant(node, names, "pads", pads)]
    if value:
        inputs.append(_constant(node, names, "value", value, kind.numpy()))
    _set_inputs(node, inputs)


def _top_k(node: ir.Node, names: Names) -> None:
    k = node.attributes.pop("k").as_int()
    _set_inputs(node, [node.inputs[0], _constant(node, names, "k", [k])])


def _split(node: ir.Node, names: Names) -> None:
    """Equal parts by default, which the new operator has to be told."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        _set(node, num_outputs=len(node.outputs))


def _resize(node: ir.Node, names: Names) -> None:
    """Coordinates were x / scale. onnxruntime rounds them down where it enlarges and up where it shrinks."""
    scales = frozen(node.inputs[1])
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
    rounding = "floor"
    if mode == "nearest":
        if scales is None:
            raise Refused("scales that are not constant")
        factors = scales.numpy()
        if (factors < 1).any():
            if (factors > 1).any():
                raise Refused("scales that enlarge and shrink")
            rounding = "ceil"
    _set(node, coordinate_transformation_mode="asymmetric", nearest_mode=rounding)
    _set_inputs(node, [node.inputs[0], None, node.inputs[1]])


def _renamed(op_type: str) -> Adapter:
    def adapt(node: ir.Node, names: Names) -> None:
        node.op_type = op_type

    return adapt


def _roi_align(node: ir.Node, names: Names) -> None:
    """Its coordinates were not shifted by half a pixel, which is the default now."""
    _set(node, coordinate_transformation_mode="output_half_pixel")


def _grid_sample(node: ir.Node, names: Names) -> None:
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "bilinear"
    _set(node, mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def _dft(node: ir.Node, names: Names) -> None:
    axis = node.attributes.pop("axis").as_int() if "axis" in node.attributes else 1
    length = node.inputs[1] if len(node.inputs) > 1 else None
    _set_inputs(node, [node.inputs[0], length, _constant(node, names, "axis", axis)])


ADAPTERS: dict[tuple[str, int], Adapter] = {
    ("BatchNormalization", 14): _batch_normalization,
    ("Clip", 11): _clip,
    ("DFT", 20): _dft,
    ("Dropout", 12): _dropout,
    ("GridSample", 20): _grid_sample,
    ("Hardmax", 13): _softmax,
    ("LogSoftmax", 13): _softmax,
    ("Pad", 11): _pad,
    ("ReduceSum", 13): _reduce,
    **{
        (f"Reduce{kind}", 18): _reduce
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
    },
    ("Resize", 11): _resize,
    ("RoiAlign", 16): _roi_align,
    ("Scatter", 11): _renamed("ScatterElements"),
    ("Slice", 10): _lists_to_inputs("starts", "ends", "axes"),
    ("Softmax", 13): _softmax,
    ("Split", 13): _lists_to_inputs("split"),
    ("Split", 18): _split,
    ("Squeeze", 13): _lists_to_inputs("axes"),
    ("TopK", 10): _top_k,
    ("Unsqueeze", 13): _lists_to_inputs("axes"),
    ("Upsample", 10): _renamed("Resize"),
}
NOT_FLOAT = frozenset(ir.DataType) - {ir.DataType.FLOAT, ir.DataType.FLOAT16}


@dataclass(frozen=True)
class Stop:
    """Why an operator stays below a version.

    types: of the first input for which it holds; all when empty. A type that is not known is taken to be a float
    """

    version: int
    reason: str
    types: frozenset[ir.DataType] = frozenset()


NO_KERNEL_FOR_TYPE = "onnxruntime has no kernel for its type"
NO_KERNEL: tuple[str, ...] = (
    "Bernoulli",
    "GlobalLpPool",
    "MaxRoiPool",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
)
NO_KERNEL += ("RandomUniformLike", "RoiAlign")
# in other types than these two onnxruntime expands them as functions, up to opset 18 only
EXPANDED: tuple[str, ...] = (
    "Elu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mish",
    "PRelu",
    "Selu",
    "Softplus",
    "Softsign",
    "ThresholdedRelu",
)
# measured with onnxruntime 1.31.1 on the CPU, every operator at every opset in every type
STOPS: dict[str, Stop] = {
    "AveragePool": Stop(19, "onnxruntime computes it 2 to 7 times slower"),  # 1-D 1.9, 2-D 3.4 to 4.9, 3-D 6.7
    "GroupNormalization": Stop(21, "scale and bias per group became per channel"),
    "OneHot": Stop(11, "negative indices were off, and count from the end now"),
    "Attention": Stop(24, NO_KERNEL_FOR_TYPE, NOT_FLOAT),
    "Relu": Stop(19, NO_KERNEL_FOR_TYPE, frozenset({ir.DataType.INT64})),
    "ReduceLogSumExp": Stop(19, NO_KERNEL_FOR_TYPE, frozenset({ir.DataType.BFLOAT16, ir.DataType.UINT32, ir.DataType.UINT64})),
    **dict.fromkeys(EXPANDED, Stop(19, NO_KERNEL_FOR_TYPE, NOT_FLOAT)),
    **dict.fromkeys(NO_KERNEL, Stop(22, "onnxruntime has no kernel")),
}


def stop_of(node: ir.Node) -> Stop | None:
    """What keeps a node below a version, if something does."""
    stop = STOPS.get(node.op_type)
    if stop is None or not stop.types:
        return stop
    return stop if node.inputs[0] is not None and node.inputs[0].dtype in stop.types else None
