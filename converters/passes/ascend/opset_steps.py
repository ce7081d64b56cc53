"""What changed in the standard operators from opset 19 to 24, and how a node goes back.

REVIEWED holds the steps that only added types, or wrote the documentation more clearly: read one by one in the ONNX changelog, and held against
the schemas by a test. STEPS holds the others: each takes out what says nothing, or says why there is no way back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

Attributes = dict[str, ir.Attr]
Step = Callable[[ir.Node, Attributes], None]  # changes the attributes, or raises Refused


class Refused(Exception):
    """Why a node has no form of the same meaning in the version before."""


def _types_at(operators: str, *steps: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(operators.split(), steps)


REVIEWED: dict[str, tuple[int, ...]] = {
    **_types_at("Acos Acosh Asin Asinh Atan Atanh Bernoulli Conv ConvTranspose Cos Cosh Det Dropout Elu EyeLike GRU", 22),
    **_types_at("GlobalAveragePool GlobalLpPool GlobalMaxPool HardSigmoid HardSwish InstanceNormalization LSTM", 22),
    **_types_at("LpNormalization LpPool MaxRoiPool MaxUnpool Mish Multinomial NegativeLogLikelihoodLoss RNN", 22),
    **_types_at("RandomNormal RandomNormalLike RandomUniform RandomUniformLike RoiAlign Round Selu Sin Sinh", 22),
    **_types_at("Softplus Softsign Tan ThresholdedRelu", 22),
    **_types_at("Constant Identity If Loop Reshape Scan Shape Size", 19, 21, 23, 24),
    **_types_at("Flatten Squeeze Transpose Unsqueeze", 21, 23, 24),
    **_types_at("ConstantOfShape", 20, 21, 23, 24),
    **_types_at("Equal", 19),
    **_types_at("IsInf IsNaN ReduceMax ReduceMin", 20),  # ReduceMax of booleans: a type that 18 does not have
    **_types_at("QLinearMatMul", 21),
    **_types_at("SplitToSequence TopK", 24),
    # "windows that would start in the right padded region are ignored": of ceil_mode, and what every runtime did before it was written down
    **_types_at("MaxPool", 22),
    "AveragePool": (22,),
    "Cast": (21, 23),
    "CastLike": (21, 23),
    "GridSample": (22,),
    "Pad": (21, 23, 24),
    "DequantizeLinear": (19, 24),
    "QuantizeLinear": (24,),
}


def _without(*names: str) -> Step:
    """Attributes that mean something for types alone that opset 18 does not have (8-bit floats): the types say whether they count."""

    def step(node: ir.Node, attributes: Attributes) -> None:
        for name in names:
            attributes.pop(name, None)

    return step


def _neutral(**values: int) -> Step:
    """Attributes that opset 18 computes without, when they have these values."""

    def step(node: ir.Node, attributes: Attributes) -> None:
        for name, value in values.items():
            attribute = attributes.pop(name, None)
            if attribute is not None and attribute.as_int() != value:
                raise Refused(f"{name}={attribute.as_int()}")

    return step


def _not_value(name: str, *values: str) -> Step:
    """Values of an attribute that opset 18 does not know."""

    def step(node: ir.Node, attributes: Attributes) -> None:
        if name in attributes and attributes[name].as_string() in values:
            raise Refused(f"{name}={attributes[name].as_string()}")

    return step


def _average_pool(node: ir.Node, attributes: Attributes) -> None:
    """Windows had no holes. The two forms are the same in onnxruntime, with ceil_mode too; but 18 refuses what jumps over numbers and pads."""
    dilations: Sequence[int] = attributes.pop("dilations").as_ints() if "dilations" in attributes else ()
    if set(dilations) - {1}:
        raise Refused(f"dilations={list(dilations)}")
    padded = "auto_pad" in attributes and attributes["auto_pad"].as_string().startswith("SAME")
    sizes, strides = attributes["kernel_shape"].as_ints(), attributes["strides"].as_ints() if "strides" in attributes else ()
    if padded and any(stride > size for stride, size in zip(strides, sizes, strict=False)):
        raise Refused("auto_pad with steps that are longer than the window")


def _dft(node: ir.Node, attributes: Attributes) -> None:
    """The axis was an attribute, 1 by default; it is an input now, -2 by default."""
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is not None:
        raise Refused("an axis that is an input")
    attributes["axis"] = ir.AttrInt64("axis", -2)


def _grid_sample(node: ir.Node, attributes: Attributes) -> None:
    """Modes were called after two dimensions, and there were no others."""
    source = node.inputs[0]
    if source is None or source.shape is None or len(source.shape) != 4:
        raise Refused("is not shown to sample a plane")
    mode = attributes["mode"].as_string() if "mode" in attributes else "linear"
    attributes["mode"] = ir.AttrString("mode", {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode))


def _group_normalization(node: ir.Node, attributes: Attributes) -> None:
    raise Refused("scale and bias were per group")


def _quantize_linear(node: ir.Node, attributes: Attributes) -> None:
    """The type of the result was that of the zero point, uint8 without one."""
    kind = attributes.pop("output_dtype", None)
    has_zero = len(node.inputs) > 2 and node.inputs[2] is not None
    if kind is not None and kind.as_int() not in (0, ir.DataType.UINT8) and not has_zero:
        raise Refused(f"output_dtype={ir.DataType(kind.as_int())}")
    _neutral(block_size=0)(node, attributes)


STEPS: dict[tuple[str, int], Step] = {
    ("AveragePool", 19): _average_pool,
    ("Cast", 19): _without("saturate"),
    ("Cast", 24): _without("round_mode"),
    ("CastLike", 19): _without("saturate"),
    ("CastLike", 24): _without("round_mode"),
    ("DFT", 20): _dft,
    ("DequantizeLinear", 21): _neutral(block_size=0),
    ("DequantizeLinear", 23): _neutral(output_dtype=0),
    ("GridSample", 20): _grid_sample,
    ("GroupNormalization", 21): _group_normalization,
    ("Pad", 19): _not_value("mode", "wrap"),
    ("QuantizeLinear", 19): _without("saturate"),
    ("QuantizeLinear", 21): _quantize_linear,
    ("QuantizeLinear", 23): _neutral(precision=0),
    ("Resize", 19): _not_value("coordinate_transformation_mode", "half_pixel_symmetric"),
}
