"""A compiled model (.om) on a device, as AscendCL describes it: inputs, outputs, the gears that it was compiled with."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from porting.backends.ascend.acl import MOST_DIMS, Batches, Dims, ImageSizes
from porting.backends.ascend.om_buffers import DataSet, Holder
from porting.dtypes import dtype_of
from porting.errors import PortError
from porting.verdict import printable

GEAR_INPUT = "ascend_mbatch_shape_data"  # ACL_DYNAMIC_TENSOR_NAME
DYNAMIC_AIPP = "ascend_dynamic_aipp_data"  # ACL_DYNAMIC_AIPP_NAME
ALL_INPUTS = ctypes.c_size_t(-1)  # what the functions that list gears take for an index
# aclDataType -> dtype; acl_base_rt.h
DTYPES = {
    0: "float32",
    1: "float16",
    2: "int8",
    3: "int32",
    4: "uint8",
    6: "int16",
    7: "uint16",
    8: "uint32",
    9: "int64",
    10: "uint64",
    11: "float64",
    12: "bool",
    27: "bfloat16",
}
BATCH, IMAGE, DIMS = "dynamic_batch_size", "dynamic_image_size", "dynamic_dims"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    dims:   -1 where gears differ
    nbytes: of the largest gear
    """

    name: str
    dtype: np.dtype
    dims: Shape
    nbytes: int

    def __str__(self) -> str:
        return f"{printable(self.name, 80)}: {self.dtype.name}[{', '.join(map(str, self.dims))}]"


class OmModel:
    """
    inputs:     without the one that says which gear
    outputs:    in the model's order
    gear_kind:  BATCH, IMAGE or DIMS; "" for one shape
    gears:      what may be set: (batch,), (height, width), or the dims of all inputs one after the other
    gear_index: place of the input that says which gear, behind all others; None for one shape
    """

    def __init__(self, holder: Holder, path: Path) -> None:
        """raises: AclError; PortError for a model that cannot be fed"""
        self.path = path
        self._holder = holder
        acl = self._acl = holder.acl
        number = ctypes.c_uint32()
        acl.check("aclmdlLoadFromFile", str(path).encode(), ctypes.byref(number), doing=f"load {path.name}")
        self._id = number.value
        holder.keep("the model", lambda: acl.check("aclmdlUnload", self._id, doing=f"unload {path.name}"))
        self._description = acl.made("aclmdlCreateDesc", doing="describe the model")
        holder.keep("a description", lambda: acl.check("aclmdlDestroyDesc", self._description, doing="give a description back"))
        acl.check("aclmdlGetDesc", self._description, self._id, doing="describe the model")
        inputs, self.outputs = self._tensors("Input"), self._tensors("Output")
        names = [tensor.name for tensor in inputs]
        if DYNAMIC_AIPP in names:
            raise PortError(
                "this model takes the parameters of AIPP with every run (dynamic AIPP), and porting sets none",
                where=str(path),
                next="compile with a static insert_op_conf",
            )
        self.gear_index = names.index(GEAR_INPUT) if GEAR_INPUT in names else None
        if self.gear_index not in (None, len(names) - 1):
            raise PortError(f"the input {GEAR_INPUT} is not the last", where=str(path))
        self.gear_bytes = 0 if self.gear_index is None else inputs[self.gear_index].nbytes
        self.inputs = inputs[: self.gear_index]
        self.gear_kind, self.gears = self._gears() if self.gear_index is not None else ("", ())

    def _tensors(self, kind: str) -> tuple[Tensor, ...]:
        acl, description = self._acl, self._description
        found = []
        for index in range(acl.ask(f"aclmdlGetNum{kind}s", description)):
            name = (acl.ask(f"aclmdlGet{kind}NameByIndex", description, index) or b"").decode("utf-8", "replace")
            code = acl.ask(f"aclmdlGet{kind}DataType", description, index)
            if code not in DTYPES:
                raise PortError(
                    f"{kind.lower()} {printable(name, 80)!r} has a type that no array here has: aclDataType {code}",
                    where=str(self.path),
                )
            dims = self._dims(f"aclmdlGet{kind}Dims", index)
            nbytes = acl.ask(f"aclmdlGet{kind}SizeByIndex", description, index)
            found.append(Tensor(name, np.dtype(dtype_of(DTYPES[code])), dims, nbytes))
        return tuple(found)

    def _dims(self, function: str, index: int) -> Shape:
        dims = Dims()
        self._acl.check(function, self._description, index, ctypes.byref(dims), doing="describe the model")
        return tuple(dims.dims[: dims.count])

    def _gears(self) -> tuple[str, tuple[Shape, ...]]:
        """raises: PortError where none are listed"""
        acl, description = self._acl, self._description
        batches, sizes, count = Batches(), ImageSizes(), ctypes.c_size_t()
        acl.check("aclmdlGetDynamicBatch", description, ctypes.byref(batches), doing="list the gears")
        if batches.count:
            return BATCH, tuple((int(n),) for n in batches.batch[: batches.count])
        acl.check("aclmdlGetDynamicHW", description, ALL_INPUTS, ctypes.byref(sizes), doing="list the gears")
        if sizes.count:
            return IMAGE, tuple((int(h), int(w)) for h, w in sizes.hw[: sizes.count])
        acl.check("aclmdlGetInputDynamicGearCount", description, ALL_INPUTS, ctypes.byref(count), doing="list the gears")
        if not count.value:
            raise PortError(f"the model has an input {GEAR_INPUT} and lists no gears", where=str(self.path))
        sizes_of_all = sum(len(tensor.dims) for tensor in self.inputs)
        if sizes_of_all > MOST_DIMS:
            raise PortError(
                f"the model has several gears and {sizes_of_all} sizes over all inputs, and aclmdlSetInputDynamicDims takes {MOST_DIMS}",
                where=str(self.path),
                next="compile the hand-off that `porting port` makes, which feeds inputs flat; or one gear",
            )
        listed = (Dims * count.value)()
        acl.check("aclmdlGetInputDynamicDims", description, ALL_INPUTS, listed, count.value, doing="list the gears")
        return DIMS, tuple(tuple(one.dims[: one.count]) for one in listed)

    # --- a run --------------------------------------------------------------------------------------------------------

    def values_of(self, shapes: Sequence[Shape], pixels: Collection[int] = ()) -> Shape | None:
        """What says that a run has these shapes, one for each input; None where no gear has them.

        pixels: places of inputs that AIPP makes, whose shape here is that of the numbers, and in the model that of the pixels
        """
        for values in self.gears or ((),):
            if all(
                self._fits(tensor, shape, values, at in pixels)
                for at, (tensor, shape) in enumerate(zip(self.inputs, shapes, strict=True))
            ) and (self.gear_kind != DIMS or values == tuple(size for shape in shapes for size in shape)):
                return values
        return None

    def _fits(self, tensor: Tensor, shape: Shape, values: Shape, from_pixels: bool) -> bool:
        axes = {BATCH: (0,), IMAGE: (2, 3)}.get(self.gear_kind, ())
        if from_pixels:
            return all(shape[axis] == value for axis, value in zip(axes, values, strict=True))
        if self.gear_kind == DIMS:
            return len(shape) == len(tensor.dims)
        put = dict(zip(axes, values, strict=True))
        return shape == tuple(put.get(axis, dim) if dim == -1 else dim for axis, dim in enumerate(tensor.dims))

    def set_gear(self, inputs: DataSet, values: Shape) -> None:
        """Before every run: a device that is told nothing takes the largest. raises: AclError"""
        acl, index = self._acl, self.gear_index
        doing = f"set the gear {', '.join(map(str, values))}"
        if self.gear_kind == BATCH:
            acl.check("aclmdlSetDynamicBatchSize", self._id, inputs.handle, index, *values, doing=doing)
        elif self.gear_kind == IMAGE:
            acl.check("aclmdlSetDynamicHWSize", self._id, inputs.handle, index, *values, doing=doing)
        elif self.gear_kind == DIMS:
            dims = Dims(b"", len(values), (ctypes.c_int64 * MOST_DIMS)(*values))
            acl.check("aclmdlSetInputDynamicDims", self._id, inputs.handle, index, ctypes.byref(dims), doing=doing)

    def execute(self, inputs: DataSet, outputs: DataSet) -> None:
        """Queue a run. raises: AclError"""
        arguments = (self._id, inputs.handle, outputs.handle, self._holder.stream)
        self._acl.check("aclmdlExecuteAsync", *arguments, doing=f"run {self.path.name}")

    def output_dims(self, index: int) -> Shape:
        """Of an output in the gear that is set. raises: AclError"""
        if self.gear_index is None:
            return self.outputs[index].dims
        return self._dims("aclmdlGetCurOutputDims", index)
