"""The graph of a hand-off: model.onnx and its weights, as ATC takes them, beside each other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx

from porting.ascend.flat_inputs import with_flat_inputs
from porting.ascend.gear_options import Shape
from porting.errors import PortError
from porting.external_data import require_external_data, tensors_in
from porting.port_folder import MODEL, require_inside

UNREAD_KEYS = ("checksum",)  # of external data, that CANN's parser refuses


def place_graph(model: Path, folder: Path, flat: Mapping[str, Shape] | None = None) -> list[str]:
    """Put a model and the files of its weights into `folder`; returns their paths there.

    flat: inputs that the compiled model takes as one row of numbers, and their shape


    Weights are hard links where the file system has them. A file that the body of an If or Loop reads is copied: onnxruntime refuses
    such a file once it has a second link, and the port has to go on running.
    raises: PortError (no ONNX, weights that lie outside or are not whole)
    """
    try:
        proto = onnx.load_model(str(model), load_external_data=False)
    except OSError as error:
        raise PortError(f"{model.name} cannot be read: {error.strerror or error}", where=str(model)) from error
    except Exception as error:  # protobuf's DecodeError; its class differs between protobuf's implementations
        raise PortError(f"{model.name} is no ONNX model", where=str(model), next="convert again") from error
    files = _weight_files(proto, model)
    require_external_data(model, {name: (model.parent / name).stat().st_size for name in files})
    content = _without_unread_keys(proto, model)
    if flat:
        content = with_flat_inputs(onnx.ModelProto.FromString(content), flat).SerializeToString(deterministic=True)
    (folder / MODEL).write_bytes(content)
    for name, may_link in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not (may_link and _linked(model.parent / name, folder / name)):
            shutil.copyfile(model.parent / name, folder / name)
    return [MODEL, *files]


def _weight_files(proto: onnx.ModelProto, model: Path) -> dict[str, bool]:
    """Path of each file of weights -> whether it may get a second link."""
    outside = {name for tensor in proto.graph.initializer for name in _locations(tensor)}
    inside = {name for node in proto.graph.node for tensor in tensors_in(node) for name in _locations(tensor)}
    inside |= {name for function in proto.functions for tensor in tensors_in(function) for name in _locations(tensor)}
    inside |= {n for s in proto.graph.sparse_initializer for tensor in tensors_in(s) for n in _locations(tensor)}
    for name in sorted(outside | inside):
        require_inside(name, str(model))
        if not (model.parent / name).is_file() or (model.parent / name).is_symlink():
            raise PortError(f"weights of {model.name} are missing: {name}", where=str(model.parent))
        if name == MODEL:
            raise PortError(f"{model.name} names itself as its weights", where=str(model))
    return {name: name not in inside for name in sorted(outside | inside)}


def _locations(tensor: onnx.TensorProto) -> list[str]:
    return [entry.value for entry in tensor.external_data if entry.key == "location"]


def _without_unread_keys(proto: onnx.ModelProto, model: Path) -> bytes:
    """The file as it is, or written anew where external data has keys that CANN refuses."""
    changed = False
    for tensor in tensors_in(proto):
        kept = [entry for entry in tensor.external_data if entry.key not in UNREAD_KEYS]
        if len(kept) != len(tensor.external_data):
            copies = [onnx.StringStringEntryProto(key=entry.key, value=entry.value) for entry in kept]
            del tensor.external_data[:]
            tensor.external_data.extend(copies)
            changed = True
    return proto.SerializeToString(deterministic=True) if changed else model.read_bytes()


def _linked(file: Path, target: Path) -> bool:
    try:
        os.link(file, target)
    except OSError:  # another file system, another owner, too many links: a copy does as well
        return False
    return True
