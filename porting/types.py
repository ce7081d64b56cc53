"""The types that converters, backends and commands share. Imports nothing heavy.

The way of the data, in these names:

    Checkpoint -> Graph (an onnx-ir model whose weights are streamed, see weights.py) -> Port on disk -> Program -> Session
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from typing_extensions import TypeIs

    from porting.cuts import Cut

Array = Any  # numpy.ndarray, or whatever speaks DLPack (a torch tensor): the caller's kind goes in, the same kind comes out


# --- tensors -----------------------------------------------------------------------------------------------------


ANY_SHAPE = ("...",)  # the shape of a tensor whose rank is unknown


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one input, output or piece of state.

    dtype: numpy's name ("float32", "int64", "bool", "float16"), or ml_dtypes' ("bfloat16"); "string" is an object array of str;
           "sequence(float32)" is a list of arrays of that dtype
    shape: ints are fixed, strings are named symbols ("batch"), None is unknown; ANY_SHAPE when not even the rank is known;
           of a sequence the shape of its elements, () when unknown
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(str(d) for d in self.shape)}]"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor where it lies in a checkpoint file.

    dtype:  the safetensors spelling ("F32", "F16", "BF16", "I64", ...) or GGUF's block type ("Q4_1")
    shape:  logical shape, outermost first (a GGUF file stores it reversed)
    offset: bytes from the start of the file
    nbytes: bytes in the file
    plain:  True when the bytes are exactly this dtype and shape in C order, so that another file may point at them
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    plain: bool = True


@runtime_checkable
class Checkpoint(Protocol):
    """A source model on disk, read without torch: config, tensor table, rows on demand.

    Names are upstream's (Hugging Face's), whatever the format calls them.
    """

    path: Path
    format: str  # "safetensors" | "pytorch" | "gguf"
    config: dict[str, Any]  # the keys of config.json

    @property
    def tensors(self) -> Mapping[str, StoredTensor]: ...

    @property
    def files(self) -> Sequence[Path]:
        """Every file that holds config or tensors, for hashing."""

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) along axis 0, decoded. Plain dtypes come as stored (BF16 as ml_dtypes.bfloat16), blocks as float32.
        A 0-D tensor is one row of shape ()."""

    def side_files(self) -> Mapping[str, bytes]:
        """tokenizer.json, tokenizer_config.json, generation_config.json, chat_template.jinja: what exists or can be made."""


class Original(Protocol):
    """The untouched model, run as its own format is meant to be run: what a port of a graph is compared with."""

    description: str  # for the report: "onnxruntime 1.31.1 on the untouched file, no optimisations"

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Output name -> array, named as the source's `outputs`. raises: InputError when the model does not take the feeds"""

    def close(self) -> None:
        """Give everything back. Safe to call twice."""


class GraphSource(Protocol):
    """A model that comes as a graph: an .onnx file, or what an exporter makes of a torch program.

    path:     the file, for names in reports; of a module that is made by Python code a path with the factory's name
    format:   "onnx", "torch", "torch-export" (.pt2) or "torchscript"
    name:     what the model is called: the class of a torch module, the name of an ONNX graph
    facts:    JSON-able, into port.json: which exporter made it, opset, producer
    files:    what was read, for hashing
    examples: feeds that the user gave, by input name; empty when none were
    cut:      how far the model at `onnx_path` is taken, and which of its inputs are constants; None where nothing can be cut
    """

    path: Path
    format: str
    name: str
    facts: Mapping[str, Any]

    @property
    def cut(self) -> Cut | None: ...
    @property
    def files(self) -> Sequence[Path]: ...
    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def examples(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def onnx_path(self) -> Path:
        """The model as ONNX before any pass: the file itself, or the exporter's."""

    def graph(self) -> Graph:
        """What is in `onnx_path`, every node named, weights as streams."""

    def accounting(self) -> Mapping[str, Any]:
        """{"used": [tensor names], "dropped": [{"name", "reason"}], "parameters": count}"""

    def original(self) -> Original:
        """The untouched model, ready to run."""

    def close(self) -> None:
        """Remove what was made for the export. Safe to call twice."""


def is_graph(source: Any) -> TypeIs[GraphSource]:
    """Whether a source comes as a graph. Asks the class: looking at the object's properties would start an export."""
    return hasattr(type(source), "original") and hasattr(type(source), "graph")


def is_checkpoint(source: Any) -> TypeIs[Checkpoint]:
    """Whether a source is a checkpoint, built by the file of its architecture."""
    return hasattr(type(source), "rows") and hasattr(source, "config")


# --- graphs and programs ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StatePair:
    """A graph input and the output that replaces it in the next run.

    axis:     the axis that grows with capacity (a KV cache), None when the shape is fixed (an LSTM's state)
    appended: the axis along which the output is longer than the input, by what a run appends: such a buffer starts empty, and has no
              capacity. None for every other
    """

    input: str
    output: str
    axis: int | None
    appended: int | None = None

    @property
    def positions(self) -> int | None:
        """The axis that counts positions, however it grows."""
        return self.axis if self.axis is not None else self.appended


@dataclass(frozen=True)
class StateSpec:
    """How a graph keeps state between runs.

    pairs:    the buffers
    length:   name of the int64 (batch,) input that says how many positions are filled; None without a growing axis
    advance:  (input name, axis): the size that one run adds to the length
    """

    pairs: tuple[StatePair, ...] = ()
    length: str | None = None
    advance: tuple[str, int] | None = None


@dataclass(frozen=True)
class Limit:
    """How long an input may be.

    axis:    the one that is limited
    most:    numbers along it that count
    ignored: a number that does not count, and None where every one does
    reason:  what sets the limit: "max_position_embeddings 512"
    """

    axis: int
    most: int
    ignored: int | None
    reason: str


@dataclass(frozen=True)
class Graph:
    """A canonical or target graph: an onnx-ir model, its state table, and inputs that have a default or a range.

    defaults: input name -> scalar used when the caller does not feed it
    ranges:   integer input name -> (low, high), what its numbers may be: low <= number < high
    limits:   input name -> how long it may be
    """

    model: ir.Model
    state: StateSpec = field(default_factory=StateSpec)
    defaults: Mapping[str, int | float] = field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    limits: Mapping[str, Limit] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """What a backend prepares: a serialised target graph and what a session must know about it.

    model:  path of model.onnx (external data beside or below it), or the bytes of a self-contained ONNX file
    ranges: as in Graph; the session refuses numbers outside, which a runtime would wrap around or break on
    limits: as in Graph; the session refuses longer inputs, on which a runtime would break somewhere inside
    gears:  the shapes of all inputs that it was made for, a mapping each; the session refuses others. () where every shape is taken
    """

    model: Path | bytes
    inputs: tuple[TensorSpec, ...]  # every graph input, state included
    outputs: tuple[TensorSpec, ...]  # every graph output, state included
    state: StateSpec = field(default_factory=StateSpec)
    defaults: Mapping[str, int | float] = field(default_factory=dict)
    min_runtime: Mapping[str, str] = field(default_factory=dict)  # {"onnxruntime": "1.28"}
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    limits: Mapping[str, Limit] = field(default_factory=dict)
    gears: tuple[Mapping[str, tuple[int, ...]], ...] = ()


# --- backends -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here. `reason` says why not; `next` what to type; `detail` names versions and devices."""

    usable: bool
    reason: str = ""
    next: str = ""
    detail: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Unsupported:
    """A node that a backend cannot take, and why."""

    node: str
    op_type: str
    domain: str
    reason: str


class State:
    """Buffers that stay on the device between runs, and how far they are filled.

    length:   (batch,) int64, positions filled per row; the caller may lower it to rewind. Where runs append to buffers, which only the device
              knows the size of, it is looked up when it is asked for
    capacity: positions that fit; 0 when no axis grows
    buffers:  the backend's own objects, by input name of the pair
    written:  (batch,) int64, positions per row that hold what was fed: the session's record, which length may not exceed
    owner:    the session whose new_state made it, the only one that can run it
    appended: whether a run appended to the buffers since the length was looked up
    """

    def __init__(self, buffers: dict[str, Any], length: np.ndarray, capacity: int) -> None:
        self.buffers = buffers
        self.appended = False
        self._length = length
        self.capacity = capacity
        self.written = length.copy()  # not the same array: the caller may write into length
        self.owner: weakref.ref[Any] | None = None

    @property
    def length(self) -> np.ndarray:
        session = self.owner() if self.appended and self.owner is not None else None
        if session is not None:
            self._length = session.appended_length(self)
            self.written = self._length.copy()
            self.appended = False
        return self._length

    @length.setter
    def length(self, value: np.ndarray) -> None:
        _ = self.length  # what is written is looked up before it is lowered
        self._length = value


class BackendSession(Protocol):
    """A prepared program. Feeds are complete and checked: right names, dtypes and ranks, C-contiguous numpy arrays.

    Strings are object arrays of str, sequences are lists of arrays; a backend that takes neither refuses them in `prepare`.
    """

    placement: Mapping[str, str]  # node name -> device it runs on

    def new_state(self, capacity: int, batch: int = 1, grown_from: State | None = None) -> State:
        """Zeroed buffers for `capacity` positions and `batch` rows; the filled part of `grown_from` is copied over.

        grown_from: a state of this session, or one whose buffers are numpy arrays, which a caller restores
        """

    def read_state(self, state: State) -> dict[str, np.ndarray]:
        """The buffers as numpy arrays of their own, by input name of the pair."""

    def run(self, feeds: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        """Outputs that are not state; the buffers of `state` are updated in place, its length is the caller's to advance."""

    def close(self) -> None:
        """Give everything back. Safe to call twice."""


class Backend(Protocol):
    """A device. Seven methods in all with its session."""

    name: str

    def probe(self) -> Availability:
        """Usable here? Never raises; says why not."""

    def unsupported(self, program: Program) -> list[Unsupported]:
        """Nodes that this backend cannot take, each with its reason."""

    def prepare(self, program: Program, options: Mapping[str, str]) -> BackendSession:
        """Slow, once. Unknown options are an error; so is any device but the one asked for."""
