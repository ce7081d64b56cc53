"""From what the user names to the reader that covers it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from porting.errors import CheckpointError, InputError
from porting.port_folder import MANIFEST
from porting.types import Checkpoint

from .files import open_to_read, read_exactly, unreadable
from .folder import CONFIG, FolderCheckpoint

GGUF_MAGIC = b"GGUF"
MODULES = "modules.json"  # of sentence-transformers
COVERED = (
    "covered: a Hugging Face or sentence-transformers folder (*.safetensors or pytorch_model.bin), a .gguf file, an .onnx file, "
    "a torch module by --model package.module:factory, a .pt2 or TorchScript file"
)
TORCH_SUFFIXES = (".pt", ".pth", ".pt2", ".jit", ".ts", ".ckpt")
WEIGHTS_ALONE = (".safetensors", ".bin")


def open_checkpoint(source: str | Path) -> Checkpoint:
    """The checkpoint at `source`: a folder with config.json, a .gguf file, or a folder with one .gguf and no config.json.

    A file's first bytes decide over its name where they can.
    raises: InputError (missing, not readable, no kind of model, weights without their folder or their code),
            CheckpointError (the right kind, and damaged)
    """
    if not str(source):
        raise InputError("no model was named: the path is empty", next=COVERED)
    path = Path(source)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise _unreachable(source, error) from error
    if stat.S_ISDIR(mode):
        return _open_folder(path)
    if not stat.S_ISREG(mode):
        raise InputError(f"{path.name} is neither a file nor a folder", where=str(path), next=COVERED)
    return _open_file(path)


def _unreachable(source: str | Path, error: OSError | ValueError) -> InputError:
    """Why the path leads nowhere. ValueError: it holds a NUL."""
    if isinstance(error, FileNotFoundError):
        return InputError(
            f"no such file or folder: {str(source)!r}",
            where=str(source),
            next="check the path; names on a model hub are not looked up, nothing is downloaded",
        )
    if isinstance(error, OSError):
        return unreadable(Path(source), error)
    return InputError(f"{str(source)!r} is not a path: {error}", next=COVERED)


def _open_folder(path: Path) -> Checkpoint:
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise unreadable(path, error) from error
    if MODULES in names:
        from .sentence_transformers import SentenceTransformersCheckpoint

        return SentenceTransformersCheckpoint(path)
    if CONFIG in names:
        return FolderCheckpoint(path)
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if len(ggufs) == 1:
        return _open_file(path / ggufs[0])
    if ggufs:
        raise InputError(
            f"the folder holds {len(ggufs)} .gguf files and no {CONFIG}: {', '.join(ggufs)}",
            where=str(path),
            next=f"name the one that is meant, for example {path / ggufs[0]}",
        )
    if MANIFEST in names:
        raise InputError(
            f"{path.name} is a port, which is converted already: expected a checkpoint",
            where=str(path),
            next=f"`porting validate {path}` compares it with its source, `porting generate {path} TEXT` runs it; "
            "port.json says what is in it",
        )
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    raise InputError(
        f"the folder holds no model: expected {CONFIG} or a .gguf file, got {found or 'an empty folder'}",
        where=str(path),
        next=COVERED,
    )


def _open_file(path: Path) -> Checkpoint:
    fd, size = open_to_read(path)
    try:
        start = read_exactly(fd, 0, min(4, size), path).tobytes()
    finally:
        os.close(fd)
    suffix = path.suffix.lower()
    if start == GGUF_MAGIC:
        from .gguf import GgufCheckpoint  # brings the gguf package, which is an extra

        return GgufCheckpoint(path)
    if suffix == ".gguf":
        raise CheckpointError(
            f"{path.name} is not a GGUF file: expected it to begin with {GGUF_MAGIC!r}, got {start!r}",
            where=str(path),
            next="fetch the file again",
        )
    if suffix in WEIGHTS_ALONE or path.name == CONFIG:
        raise InputError(
            f"{path.name} is one file of a model: the folder with {CONFIG} and the weights is needed",
            where=str(path),
            next=f"give the folder: {path.parent}" if os.path.exists(path.parent / CONFIG) else f"put its {CONFIG} beside it",
        )
    if suffix in TORCH_SUFFIXES:
        raise InputError(
            f"{path.name} holds no program (no TorchScript, no exported program, no pickled module): weights alone need the code of their module",
            where=str(path),
            next=f"--model package.module:factory --weights {path.name}",
        )
    raise InputError(f"{path.name} is no model that is known: it begins with {start!r}", where=str(path), next=COVERED)
