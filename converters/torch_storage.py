"""Reading what torch or safetensors saved, without executing anything of it, and telling code from data by the bytes of a file.

zip with code/ or constants.pkl                  TorchScript              code
zip with models/*.json, archive_format ...       torch.export, .pt2       code
zip or bare pickle, tensors and plain values     state dict, checkpoint   data, read by a machine that cannot execute
zip or bare pickle that names anything else      pickled objects          code
"""

from __future__ import annotations

import os
import pickletools
import tarfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from porting.errors import CheckpointError, InputError
from porting.types import StoredTensor
from porting.weights import NUMPY_DTYPES

from .checkpoints.files import OpenFiles, open_to_read, read_exactly
from .checkpoints.pickle_machine import Global
from .checkpoints.safetensors import read_header
from .checkpoints.torch_pickle import StridedTensor, read_torch_object, strided_rows
from .checkpoints.torch_zip import names_in_zip
from .torch_frames import short

if TYPE_CHECKING:
    import torch

ZIP, PICKLE = b"PK", b"\x80"
START = 256  # bytes that tell what a file is
# What training scripts save beside the weights; the objects are not made
HARMLESS = frozenset(
    Global(module, name)
    for module, names in {
        "argparse": ("Namespace",),
        "types": ("SimpleNamespace",),
        "pathlib": ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path"),
        "pathlib._local": ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path"),
        "collections": ("defaultdict", "Counter", "deque", "OrderedDict"),
        "datetime": ("datetime", "date", "timedelta"),
        "_codecs": ("encode",),
        "__builtin__": ("set", "frozenset", "complex", "bytearray", "list", "dict", "int", "float"),
        "builtins": ("set", "frozenset", "complex", "bytearray", "list", "dict", "int", "float"),
        "numpy": ("dtype", "ndarray"),
        "numpy.core.multiarray": ("scalar", "_reconstruct"),
        "numpy._core.multiarray": ("scalar", "_reconstruct"),
        "torch": ("Size", "device"),
    }.items()
    for name in names
)
TRUST = "where you trust the file, give --allow-pickle (allow_pickle=True in Python), which runs what is in it"


def torch_file_kind(path: str | Path) -> str | None:
    """ "torchscript", "pt2", "pickle" (objects), "state_dict" (tensors and plain values), or None for what torch did not write.

    Nothing of the file is executed.
    raises: CheckpointError when it cannot be read, InputError for a damaged archive
    """
    path = Path(path)
    start = _start(path)
    if start[:2] == ZIP:
        inside = [name.partition("/")[2] for name in names_in_zip(path)]
        if any(name == "constants.pkl" or name.startswith("code/") for name in inside):
            return "torchscript"
        whole = names_in_zip(path)  # .pt2 of torch before 2.9 has no folder around everything
        if any(name.endswith(("serialized_exported_program.json", "archive_format")) for name in whole):
            return "pt2"
        if not any(name == "data.pkl" for name in inside):
            return None
    elif start[:1] != PICKLE:
        return None
    try:
        read_object(path, allow_pickle=False)
    except InputError:
        return "pickle"
    return "state_dict"


def _start(path: Path) -> bytes:
    fd, size = open_to_read(path)
    try:
        return read_exactly(fd, 0, min(START, size), path).tobytes()
    finally:
        os.close(fd)


def read_object(path: Path, allow_pickle: bool) -> Any:
    """All that a weights file holds: dicts, lists and plain values, tensors as StoredTensor (or torch's own, where torch unpickled it).

    allow_pickle: let torch run a pickle that names more than tensors
    raises:       CheckpointError when it is damaged, holds code, or is of no known format
    """
    start = _start(path)
    if start[:2] != ZIP and start[:1] != PICKLE:
        if start[8:9] not in (b"", b"{"):  # where the header of safetensors begins
            raise _unknown(path, start)
        return dict(read_header(path))
    try:
        return read_torch_object(path, HARMLESS)
    except InputError as error:
        if allow_pickle:
            return unpickled(path)
        raise type(error)(error.what, where=error.where, next=f"{error.next}; {TRUST}") from error


def _unknown(path: Path, start: bytes) -> CheckpointError:
    """The error for a file that begins as none does which is read here."""
    if tarfile.is_tarfile(path):
        what, todo = "a tar archive", "unpack it; or, if torch itself wrote it long ago, load it with torch.load"
    elif _begins_as_pickle(start):
        what, todo = "a pickle of protocol 0 or 1", "load it with what wrote it"
    elif start.startswith(b"version https://git-lfs"):
        return CheckpointError(
            f"{path.name} is a pointer of git-lfs, not the weights", where=str(path), next="fetch the file itself: git lfs pull"
        )
    else:
        what, todo = f"neither safetensors nor what torch saves: it begins with {start[:8]!r}", "load it with what wrote it"
    return CheckpointError(
        f"{path.name} is {what}", where=str(path), next=f"{todo}, and save its tensors anew by torch.save(state_dict, FILE)"
    )


def _begins_as_pickle(start: bytes) -> bool:
    """Whether the first bytes are operations of a pickle without its mark; nothing is executed."""
    try:
        for count, _ in enumerate(pickletools.genops(start), start=1):
            if count == 3:
                return True
    except Exception:  # cut off, no operation, an argument of another form: pickletools raises whatever its readers do
        return False
    return True  # it has ended


def unpickled(path: Path) -> Any:
    """What torch.load makes of a file, its code run. Only behind --allow-pickle.

    raises: InputError with what the code raised
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise InputError(
            f"{path.name} cannot be loaded: {short(error)}",
            where=str(path),
            next="its classes must be importable: run from the folder that holds their code, with the packages it was saved with",
        ) from error


def tensor_of(value: Any) -> torch.Tensor:
    """The tensor that an entry of `read_object` describes. One that lies plainly in its file is mapped, not read: do not write to it."""
    import torch

    if not isinstance(value, StoredTensor):
        return value.detach()
    dtype = NUMPY_DTYPES[value.dtype]
    if isinstance(value, StridedTensor):
        files = OpenFiles()
        try:
            array = strided_rows(value, 0, value.shape[0], lambda offset, nbytes: files.read(value.file, offset, nbytes))
        finally:
            files.close()
    elif value.nbytes == 0:
        array = np.empty(value.shape, dtype)
    else:
        array = np.memmap(value.file, np.uint8, "r", value.offset, (value.nbytes,)).view(dtype).reshape(value.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of memory that it must not write to
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if array.dtype.kind == "V" or array.dtype.name.startswith("float8"):
            return torch.from_numpy(array.view(np.uint8)).view(getattr(torch, array.dtype.name))
        return torch.from_numpy(array)
