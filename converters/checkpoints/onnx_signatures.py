"""Whether a node is a call of its operator: attributes, and how many inputs and outputs. What onnxruntime and ATC refuse is no model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

import onnx

from porting.errors import CheckpointError

INTERNAL = "__"  # attributes whose names begin so are a tool's own, which onnx and onnxruntime pass over
NEXT = "the file is wrong, or made for another opset: export it again"
_ANY = 2**31 - 1
_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
_DIRECTIONS = ("forward", "reverse", "bidirectional")
_REDUCTIONS = ("none", "add", "mul", "max", "min")
# attribute -> operator, or "" for any -> the words that it takes in some opset. Source: ONNX's Operators.md
WORDS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "auto_pad": {"": _PADS},
    "direction": {**dict.fromkeys(("LSTM", "GRU", "RNN"), _DIRECTIONS), "BitShift": ("LEFT", "RIGHT")},
    "mode": {
        "DepthToSpace": ("DCR", "CRD"),
        "Pad": ("constant", "reflect", "edge", "wrap"),
        "Resize": ("nearest", "linear", "cubic"),
        "Upsample": ("nearest", "linear"),
        "GridSample": ("bilinear", "nearest", "bicubic", "linear", "cubic"),
        "RoiAlign": ("avg", "max"),
    },
    "padding_mode": {"GridSample": ("zeros", "border", "reflection")},
    "coordinate_transformation_mode": {
        "Resize": (
            *("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize"),
            "tf_half_pixel_for_nn",
        ),
        "RoiAlign": ("half_pixel", "output_half_pixel"),
    },
    "nearest_mode": {"Resize": ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")},
    "keep_aspect_ratio_policy": {"Resize": ("stretch", "not_larger", "not_smaller")},
    "reduction": dict.fromkeys(("ScatterND", "ScatterElements"), _REDUCTIONS),
    "approximate": {"Gelu": ("none", "tanh")},
}


def require_signature(node: onnx.NodeProto, schema: onnx.defs.OpSchema, label: str, where: str) -> None:
    """
    label:  domain and opset, for the message
    raises: CheckpointError
    source: onnx, OpSchema::Verify
    """
    for kind, count, least, most in (
        ("inputs", len(node.input), schema.min_input, schema.max_input),
        ("outputs", len(node.output), schema.min_output, schema.max_output),
    ):
        if not least <= count <= most:
            takes = f"{least}" if least == most else f"{least} or more" if most >= _ANY else f"{least} to {most}"
            raise CheckpointError(f"{node.op_type} in {label} has {takes} {kind}, here {count}", where=where, next=NEXT)
    given = {attribute.name for attribute in node.attribute}
    for name, known in schema.attributes.items():
        if known.required and name not in given:
            raise CheckpointError(f"{node.op_type} in {label} needs the attribute {name!r}", where=where, next=NEXT)
    for attribute in node.attribute:
        if attribute.name.startswith(INTERNAL):
            continue
        if attribute.name not in schema.attributes:
            raise CheckpointError(
                f"{node.op_type} in {label} has no attribute {attribute.name!r}",
                where=where,
                next=did_you_mean(attribute.name, schema.attributes) or NEXT,
            )
        wanted = int(schema.attributes[attribute.name].type)  # type: ignore[call-overload]  # an enum of onnx's own numbers
        if wanted != attribute.type:
            name_of = onnx.AttributeProto.AttributeType.Name
            raise CheckpointError(
                f"the attribute {attribute.name!r} of {node.op_type} in {label} is of {name_of(wanted)}, here {name_of(attribute.type)}",
                where=where,
                next=NEXT,
            )
        _require_word(node, attribute, where)


def _require_word(node: onnx.NodeProto, attribute: onnx.AttributeProto, where: str) -> None:
    operators = WORDS.get(attribute.name, {})
    words = operators.get(node.op_type) or operators.get("")
    if words is None or attribute.ref_attr_name or attribute.type != onnx.AttributeProto.STRING:
        return
    written = attribute.s.decode("utf-8", "replace")
    if written not in words:
        raise CheckpointError(
            f"{attribute.name}={written!r} is none of the words that {node.op_type} takes",
            where=where,
            next=f"known: {', '.join(words)}",
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""
