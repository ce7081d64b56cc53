"""A graph as a message that can be changed, with its weights in files beside it, however large they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from porting.backends.onnx_program import read_model
from porting.errors import OutOfResources
from porting.port_folder import WEIGHTS
from porting.port_layout import WEIGHTS_FILE, Layout, lay_out, serialised
from porting.scratch import ScratchFolder
from porting.types import Graph, Program


@dataclass(frozen=True, eq=False)
class AtHand:
    """
    model:  without the weights that lie in files
    folder: what the places of external data are relative to
    """

    model: onnx.ModelProto
    folder: Path

    def array(self, tensor: onnx.TensorProto) -> np.ndarray:
        """The numbers of an initializer; of one in a file as a view of that file."""
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        place = {entry.key: entry.value for entry in tensor.external_data}
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        shape = tuple(tensor.dims)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(self.folder / place["location"], dtype, "r", int(place.get("offset", 0)), shape)


@contextmanager
def at_hand(source: Graph | Program) -> Iterator[AtHand]:
    """The model of a program as it lies on disk, or that of a graph, whose weights are put into a scratch folder, linked where possible.

    raises: InputError (no ONNX), CheckpointError (weights that cannot be read), OutOfResources (no room for them)
    """
    if isinstance(source, Program):
        folder = Path.cwd() if isinstance(source.model, bytes) else source.model.parent
        yield AtHand(read_model(source), folder)
        return
    with ScratchFolder() as name:
        folder = Path(name)
        try:
            (folder / WEIGHTS).mkdir()
            layout = lay_out(source, folder, "link")
            _write(layout, folder / WEIGHTS_FILE)
        except OSError as error:
            raise OutOfResources(
                f"the weights do not go into a scratch folder: {error.strerror or error}", where=name
            ) from error
        yield AtHand(onnx.load_model_from_string(serialised(source, layout)), folder)


def _write(layout: Layout, path: Path) -> None:
    if not layout.written:
        return
    with path.open("wb") as file:
        file.truncate(layout.size)
        for stream, offsets in layout.written:
            for first, _, arrays in stream.stripes():
                for array, offset, row_bytes in zip(arrays, offsets, stream.row_bytes(), strict=True):
                    file.seek(offset + first * row_bytes)
                    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
