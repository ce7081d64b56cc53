"""A Hugging Face folder: config.json, one or many safetensors or pytorch_model.bin files, an index, side files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from porting.errors import CheckpointError
from porting.types import StoredTensor
from porting.weights import NUMPY_DTYPES

from .files import OpenFiles, read_whole, unreadable
from .safetensors import read_header
from .side_files import side_files
from .strict_json import parse_object
from .torch_pickle import StridedTensor, read_torch_file, strided_rows

CONFIG = "config.json"
MAX_JSON_BYTES = 100_000_000  # as for the header of a safetensors file; the index of a model of 685B parameters has 9 MB
# (format, the only file, the index, what a shard is called, the reader), in upstream's order of preference
LAYOUTS: tuple[tuple[str, str, str, re.Pattern[str], Callable[[Path], dict[str, StoredTensor]]], ...] = (
    (
        "safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        re.compile(r"model-\d+-of-\d+\.safetensors"),
        read_header,
    ),
    (
        "pytorch",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        re.compile(r"pytorch_model-\d+-of-\d+\.bin"),
        read_torch_file,
    ),
)


class FolderCheckpoint:
    """A `porting.types.Checkpoint` from a folder with config.json.

    Where both kinds of weights are there, safetensors is taken, and one whole file before an index, as upstream does. With an
    index, a file that is named like a shard and not listed is refused; other weight files (consolidated.safetensors, adapters)
    are ignored. `rows` may be called from several threads; `close` (also `with`, also the end of the object) ends it.

    raises: CheckpointError for anything missing, damaged or contradictory; UnsupportedModel for formats that are code
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        config = self.path / CONFIG
        self.config: dict[str, Any] = parse_object(read_whole(config, MAX_JSON_BYTES), config)
        self.format, weights, self.tensors = _weights(self.path)
        self.files: Sequence[Path] = (config, *weights)
        self._open_files = OpenFiles()

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) along axis 0 in fresh memory, as stored; a 0-D tensor is one row, given with shape ().

        raises: KeyError for an unknown tensor, IndexError for rows that it does not have (both the caller's mistake);
                CheckpointError when the file ends early or cannot be read; UsageError after close()
        """
        tensor = self.tensors[name]
        count = tensor.shape[0] if tensor.shape else 1
        if not 0 <= start <= stop <= count:
            raise IndexError(f"rows [{start}, {stop}) of {name!r}, which has {count}")
        if isinstance(tensor, StridedTensor):
            array = strided_rows(tensor, start, stop, lambda offset, nbytes: self._open_files.read(tensor.file, offset, nbytes))
        else:
            row_bytes = tensor.nbytes // max(count, 1)
            raw = self._open_files.read(tensor.file, tensor.offset + start * row_bytes, (stop - start) * row_bytes)
            shape = (stop - start, *tensor.shape[1:]) if tensor.shape or stop == start else ()
            array = raw.view(NUMPY_DTYPES[tensor.dtype]).reshape(shape)
        if tensor.dtype == "BOOL":
            _require_bool(tensor, array)
        return array

    def side_files(self) -> Mapping[str, bytes]:
        """Tokenizer, generation defaults and chat template, see side_files.py.

        raises: CheckpointError for one that is damaged
        """
        return side_files(self.path)

    def close(self) -> None:
        """Close the weight files. Safe to call twice; not beside a running `rows`."""
        self._open_files.close()

    def __enter__(self) -> FolderCheckpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _require_bool(tensor: StoredTensor, array: np.ndarray) -> None:
    """Refuse bytes other than 0 and 1: what numpy makes of them is undefined."""
    largest = int(array.view(np.uint8).max(initial=0))
    if largest > 1:
        raise CheckpointError(
            f"a boolean tensor holds the byte {largest}; expected 0 or 1",
            where=f"{tensor.file}, tensor {tensor.name!r}",
            next="the file is damaged; fetch it again",
        )


def _weights(folder: Path) -> tuple[str, list[Path], dict[str, StoredTensor]]:
    """(format, index and weight files, tensors) of the first layout that the folder has."""
    try:
        present = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error
    for kind, single, index, shard_pattern, read in LAYOUTS:
        if single in present:
            return kind, [folder / single], read(folder / single)
        if index in present:
            return kind, *_sharded(folder, index, present, shard_pattern, read)
    looked_for = ", ".join(name for _, single, index, _, _ in LAYOUTS for name in (single, index))
    shards = [name for name in present if any(layout[3].fullmatch(name) for layout in LAYOUTS)]
    others = [name for name in present if name.endswith((".gguf", ".safetensors", ".bin", ".pt", ".pth"))]
    found = f"; found {_some(shards or others)}" if shards or others else ""
    todo = "fetch the index as well" if shards else "fetch the weights as well; a .gguf file is given by its own name"
    raise CheckpointError(
        f"no weights in {folder.name or folder}: looked for {looked_for}{found}", where=str(folder), next=todo
    )


def _sharded(
    folder: Path,
    index_name: str,
    present: list[str],
    shard_pattern: re.Pattern[str],
    read: Callable[[Path], dict[str, StoredTensor]],
) -> tuple[list[Path], dict[str, StoredTensor]]:
    """(index and shards, tensors): the index and the shards must agree on every name."""
    index = folder / index_name
    weight_map = parse_object(read_whole(index, MAX_JSON_BYTES), index).get("weight_map")

    def refuse(
        what: str, todo: str = "the index and the shards are not of one upload; fetch the folder again"
    ) -> CheckpointError:
        return CheckpointError(f"{index_name} {what}", where=str(index), next=todo)

    if not isinstance(weight_map, dict) or not weight_map:
        raise refuse("has no weight_map: expected a non-empty object of tensor name to file name")
    for tensor, file in weight_map.items():
        # a link directly inside the folder is fine (a Hugging Face cache is made of them), a path out of it is not
        if not isinstance(file, str) or not file or file in (".", "..") or re.search(r"[/\\\0]", file):
            raise refuse(f"names {str(file)[:200]!r} for {tensor!r}: expected the name of a file in its folder")
    shards = sorted(set(weight_map.values()))
    missing = sorted(set(shards) - set(present))
    if missing:
        raise refuse(f"lists {len(missing)} of {len(shards)} shards that are missing: {_some(missing)}", "fetch them as well")
    unlisted = [name for name in present if shard_pattern.fullmatch(name) and name not in shards]
    if unlisted:
        raise refuse(
            f"does not list {_some(unlisted)}, which lie beside it", "remove them if they are left from another upload"
        )
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        found = read(folder / shard)
        twice = [f"{name!r} (also in {tensors[name].file.name})" for name in found if name in tensors]
        if twice:
            raise refuse(f"has shards that hold the same tensors; {shard}: {_some(twice)}")
        absent = [name for name, file in weight_map.items() if file == shard and name not in found]
        if absent:
            raise refuse(f"lists tensors that {shard} does not have: {_some(absent)}")
        extra = [name for name in found if weight_map.get(name) != shard]
        if extra:
            raise refuse(f"does not list tensors that {shard} has: {_some(extra)}")
        tensors |= found
    return [index, *(folder / name for name in shards)], tensors


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
