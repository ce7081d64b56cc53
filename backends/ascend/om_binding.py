"""The inputs and outputs of a program, found in a compiled model by name, their dtypes and sizes held against each other."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from porting.backends.ascend.om_model import OmModel, Tensor
from porting.dtypes import dtype_of, is_array
from porting.errors import InputError, PortError
from porting.types import Program, TensorSpec
from porting.verdict import printable

HALF, SINGLE = np.dtype(np.float16), np.dtype(np.float32)
LONGEST_NAME = 127  # characters; longer names are replaced when a model is compiled


@dataclass(frozen=True)
class Bound:
    """An input or output of the program, and what it is in the model.

    place: in the model's order
    spec:  of the program
    room:  bytes of its buffer: of the largest gear
    """

    place: int
    spec: TensorSpec
    tensor: Tensor
    room: int

    @property
    def is_open(self) -> bool:
        """Whether the model does not know its shape before a run (sizes that hang on numbers)."""
        return not self.tensor.nbytes and -1 in self.tensor.dims

    @property
    def is_flat(self) -> bool:
        """Whether the model takes it as one row of numbers (porting/ascend/flat_inputs.py): same bytes, another shape."""
        shape = self.spec.shape
        sizes = [size for size in shape if isinstance(size, int)]
        return len(shape) > 1 and len(sizes) == len(shape) and self.tensor.dims == (math.prod(sizes),)

    def shape_in_model(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of an input with this shape."""
        return self.tensor.dims if self.is_flat and shape == self.spec.shape else shape

    @property
    def dtype(self) -> np.dtype:
        """That of the program."""
        return np.dtype(dtype_of(self.spec.dtype))

    def for_model(self, array: np.ndarray) -> np.ndarray:
        """What is fed, in the model's dtype. raises: InputError for a number that fp16 does not hold"""
        if array.dtype == self.tensor.dtype:
            return array
        with np.errstate(over="ignore"):
            made = array.astype(self.tensor.dtype)
        if np.isinf(made).sum() != np.isinf(array).sum():
            largest = np.abs(array[np.isfinite(array)]).max()
            raise InputError(
                f"input {self.spec.name!r} goes up to {largest:.6g}, and the model was compiled to take it in fp16: at most 65504",
                where="session.run",
                next="scale it, or compile without --input_fp16_nodes",
            )
        return made


def bind(
    program: Program, model: OmModel, pixels: Collection[str], becomes: Mapping[str, str]
) -> tuple[list[Bound], list[Bound]]:
    """Inputs and outputs, in the model's order.

    pixels:  inputs that AIPP makes, whose shapes are not the model's
    becomes: output -> the input that it is fed as in the next run, which has the same size
    raises: PortError for a model that is not this program's
    """
    inputs = _bound("input", program.inputs, model.inputs, str(model.path))
    outputs = _bound("output", program.outputs, model.outputs, str(model.path))
    for one in inputs:
        if one.spec.name not in pixels and not one.is_flat:
            _require_shape("input", one, str(model.path))
    for one in outputs:
        if not one.is_open:
            _require_shape("output", one, str(model.path))
    return inputs, [_with_room(one, becomes, inputs, str(model.path)) if one.is_open else one for one in outputs]


def _with_room(one: Bound, becomes: Mapping[str, str], inputs: Sequence[Bound], where: str) -> Bound:
    """An output whose size the model does not know: the program does, or it has that of the input that it becomes. raises: PortError"""
    room = next((other.room for other in inputs if other.spec.name == becomes.get(one.spec.name)), 0)
    if all(isinstance(dim, int) for dim in one.spec.shape):
        room = math.prod(one.spec.shape) * one.tensor.dtype.itemsize  # type: ignore[arg-type]
    if not room:
        raise PortError(
            f"output {one.spec} has a size that is not known before the model runs",
            where=where,
            next="cut the model before it: --outputs; `porting check` names what its size hangs on",
        )
    return replace(one, room=room)


def _bound(kind: str, specs: Sequence[TensorSpec], tensors: Sequence[Tensor], where: str) -> list[Bound]:
    for spec in specs:
        if not is_array(spec.dtype):
            raise PortError(f"{kind} {spec} is no array of numbers, and a compiled model takes nothing else", where=where)
    found = {spec.name: _place(spec.name, [tensor.name for tensor in tensors]) for spec in specs}
    if kind == "output" and len(specs) == len(tensors) and not any(place is not None for place in found.values()):
        found = {
            spec.name: place for place, spec in enumerate(specs)
        }  # atc may name outputs after nodes; their order it keeps (inferred)
    missing = [str(spec) for spec in specs if found[spec.name] is None]
    unknown = [str(tensor) for place, tensor in enumerate(tensors) if place not in found.values()]
    if missing or unknown or len(set(found.values())) != len(specs):
        theirs = ", ".join(map(str, tensors)) or "none"
        raise PortError(
            f"the compiled model is not this program's: {kind}s {', '.join(missing) or 'none'} are missing in it, "
            f"{', '.join(unknown) or 'none'} of it are unknown",
            where=f"{where} has {theirs}",
            next="compile the hand-off of this port again, or give the .om that was made from it",
        )
    bound = [
        Bound(place, spec, tensors[place], tensors[place].nbytes) for spec in specs if (place := found[spec.name]) is not None
    ]
    for one in bound:
        if one.dtype != one.tensor.dtype and {one.dtype, one.tensor.dtype} != {HALF, SINGLE}:
            raise _misfit(kind, one, where)
    return sorted(bound, key=lambda one: one.place)


def _place(name: str, names: Sequence[str]) -> int | None:
    """Where a name stands in a model. atc writes an output as node:index:name."""
    for place, theirs in enumerate(names):
        if theirs == name or theirs == name[:LONGEST_NAME] or theirs.endswith(f":{name}"):
            return place
    return None


def _require_shape(kind: str, one: Bound, where: str) -> None:
    dims = one.tensor.dims
    if len(dims) != len(one.spec.shape) or any(
        isinstance(size, int) and dim not in (-1, size) for size, dim in zip(one.spec.shape, dims, strict=True)
    ):
        raise _misfit(kind, one, where)


def _misfit(kind: str, one: Bound, where: str) -> PortError:
    takes_pixels = kind == "input" and one.tensor.dtype == np.uint8 and one.dtype.kind == "f"
    hint = "it takes pixels: porting.load(port, device) gives a session that does"
    return PortError(
        f"{kind} {printable(one.spec.name, 80)!r} of the program is {one.spec.dtype}{list(one.spec.shape)}, and of the compiled model "
        f"{one.tensor.dtype.name}{list(one.tensor.dims)}",
        where=where,
        next=hint if takes_pixels else "compile the hand-off of this port again",
    )
