"""What a model.onnx points at outside itself. It may come from a stranger: every reference is checked before a runtime follows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porting.errors import PortError

if TYPE_CHECKING:
    import onnx

MAX_NUMBER_DIGITS = 19  # of a signed 64-bit number
# messages of the ONNX schema that can hold a tensor, at any depth
CARRIERS = frozenset(
    {
        "ModelProto",
        "GraphProto",
        "NodeProto",
        "AttributeProto",
        "FunctionProto",
        "TrainingInfoProto",
        "SparseTensorProto",
        "TensorProto",
    }
)


def require_external_data(model: Path, sizes: Mapping[str, int]) -> None:
    """Every tensor that `model` keeps in another file lies whole in a listed one. No weight is read.

    sizes:  path as model.onnx spells it, "/" between parts -> bytes of the file
    raises: PortError (no ONNX, a place that is not fully given, a file that is not listed, bytes past its end)
    """
    import onnx

    try:
        proto = onnx.load_model(str(model), load_external_data=False)
    except OSError as error:
        raise PortError(f"{model.name} cannot be read: {error.strerror or error}", where=str(model)) from error
    except Exception as error:  # protobuf's DecodeError; its class differs between protobuf's implementations
        raise PortError(f"{model.name} is no ONNX model", where=str(model), next="convert again") from error
    for tensor in tensors_in(proto):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            problem = _problem(tensor, sizes)
            if problem:
                raise PortError(
                    f"{model.name}: tensor {tensor.name!r} {problem}",
                    where=str(model),
                    next="convert again, and do not trust where this port came from",
                )


def tensors_in(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor in a message: initializers, constants, subgraphs, functions, sparse tensors."""
    from google.protobuf.message import Message

    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.name in CARRIERS:
            for part in [value] if isinstance(value, Message) else value:
                yield from tensors_in(part)


def _problem(tensor: onnx.TensorProto, sizes: Mapping[str, int]) -> str:
    """What is wrong with where a tensor's bytes are said to be, or ""."""
    keys = [entry.key for entry in tensor.external_data]
    place = {entry.key: entry.value for entry in tensor.external_data}
    if len(keys) != len(place) or not {"location", "offset", "length"} <= place.keys():
        return f"needs one location, offset and length, has {', '.join(map(repr, keys)) or 'none'}"
    location = place["location"]
    if location not in sizes:
        return f"lies in {location!r}, which is no file of this port"
    if not all(
        text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER_DIGITS for text in (place["offset"], place["length"])
    ):
        return f"has offset {place['offset'][:40]!r} and length {place['length'][:40]!r}, which are no sizes"
    end = int(place["offset"]) + int(place["length"])
    if end > sizes[location]:
        return f"ends at byte {end} of {location!r}, which has {sizes[location]}"
    return ""
