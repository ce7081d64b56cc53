"""What a client is told of a compiled model: names, dtypes and dims of inputs and outputs, its gears, and the memory it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from porting.backends.cann_simulator.aipp_input import image_specs
from porting.backends.cann_simulator.machine import Gear, IoSpec, Refused
from porting.backends.cann_simulator.om_file import Aipp
from porting.backends.cann_simulator.om_graph import CANNOT_LOAD, output_dims, set_shapes
from porting.backends.cann_simulator.om_types import ACL_TYPES, OUTPUT_TYPES, itemsize_of
from porting.backends.cann_simulator.options import Shapes
from porting.types import Graph


def declared_dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """-1 where a size is free; () for a scalar, and for what has no shape."""
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)


@dataclass
class InOut:
    """
    inputs:  name, element type and dims that are fed
    outputs: name and element type
    """

    inputs: Sequence[tuple[str, int, tuple[int, ...]]]
    outputs: Sequence[tuple[str, int]]
    options: Mapping[str, str]

    def described(
        self, dims: Sequence[tuple[int, ...]], gears: tuple[Gear, ...], aipp: Aipp | None
    ) -> tuple[tuple[IoSpec, ...], tuple[IoSpec, ...], tuple[Gear, ...]]:
        """What a client is told; of gears also what AIPP makes of their inputs. dims: of the outputs"""
        halves = {part.partition(":")[0] for part in self.options.get("input_fp16_nodes", "").split(";")}
        kinds = [TensorProto.FLOAT16 if name in halves else elem for name, elem, _ in self.inputs]
        inputs = [_io(name, ACL_TYPES.get(elem), dims) for (name, _, dims), elem in zip(self.inputs, kinds, strict=True)]
        outputs = self._outputs(dims)
        if gears:
            inputs = [_ofgears_of(spec, [gear.inputs[i] for gear in gears]) for i, spec in enumerate(inputs)]
            outputs = [_ofgears_of(spec, [gear.outputs[i] for gear in gears]) for i, spec in enumerate(outputs)]
        if aipp is not None:
            inputs, gears = image_specs(aipp, inputs, gears)
        return tuple(inputs), tuple(outputs), gears

    def _outputs(self, dims: Sequence[tuple[int, ...]]) -> list[IoSpec]:
        said = _output_types(self.options.get("output_type", ""), [name for name, _ in self.outputs])
        return [
            _io(name, said.get(name, ACL_TYPES.get(elem)), found)
            for (name, elem), found in zip(self.outputs, dims, strict=True)
        ]


def _output_types(text: str, names: Sequence[str]) -> dict[str, int]:
    """--output_type: one for all, or name:0:FP16;..., in the order of the outputs. raises: Refused, E10001"""
    if not text:
        return {}
    parts = text.split(";")
    kinds = [OUTPUT_TYPES.get(part.rpartition(":")[2]) for part in parts]
    if None in kinds or (":" in text and len(parts) != len(names)):
        raise Refused(CANNOT_LOAD, f"E10001: --output_type: {text[:200]!r} is not one type, or one for each output", True)
    return dict(zip(names, kinds if ":" in text else kinds * len(names), strict=True))  # type: ignore[arg-type]


def _io(name: str, kind: int | None, dims: tuple[int, ...]) -> IoSpec:
    if kind is None:
        raise Refused(CANNOT_LOAD, f"EZ3002: {name[:200]!r} is of a dtype that AscendCL has no number for")
    return IoSpec(name, kind, dims, 0 if -1 in dims else math.prod(dims) * itemsize_of(kind))


def _ofgears_of(spec: IoSpec, shapes: Sequence[tuple[int, ...]]) -> IoSpec:
    dims = tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True))
    return IoSpec(spec.name, spec.acl_dtype, dims, max(math.prod(shape) for shape in shapes) * itemsize_of(spec.acl_dtype))


def gears_of(proto: onnx.ModelProto, shapes: Shapes, specs: InOut) -> tuple[tuple[Gear, ...], str]:
    """Each gear with the dims of its outputs. raises: Refused for a gear that the model does not take, or whose outputs have no fixed size"""
    made = []
    for gear in shapes.gears:
        full = {name: gear.get(name, dims) for name, _, dims in specs.inputs}
        try:
            outputs = output_dims(proto, full, strict=True)
        except Exception as error:  # onnx's own classes
            raise Refused(CANNOT_LOAD, f"E14001: a gear does not fit the model: {str(error)[-300:]}") from error
        if any(-1 in dims for dims in outputs):
            outputs = _worked_out(proto, full)
        if any(-1 in dims for dims in outputs):
            raise Refused(CANNOT_LOAD, "E19999: sizes of outputs are not known from those of inputs, and gears need them")
        inputs = tuple(full[name] for name, _, _ in specs.inputs)
        made.append(Gear(_values(shapes, inputs, specs), inputs, outputs))
    return tuple(made), shapes.kind


def dims_of_outputs(proto: onnx.ModelProto, specs: InOut) -> tuple[tuple[int, ...], ...]:
    """-1 where a size is free, or hangs on numbers that are fed."""
    shapes = {name: dims for name, _, dims in specs.inputs}
    found = output_dims(proto, shapes)
    unknown = any(-1 in dims for dims in found) and not any(-1 in dims for dims in shapes.values())
    return _worked_out(proto, shapes) if unknown else found


def _worked_out(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Dims of the outputs where sizes go through numbers: a slice of a shape says how long something is."""
    import onnx_ir as ir

    from porting.converters.passes.fold_constants import fold_sizes
    from porting.converters.passes.infer_shapes import infer_shapes

    sized = onnx.ModelProto()
    sized.CopyFrom(proto)
    set_shapes(sized, shapes)
    model = ir.serde.deserialize_model(sized)
    infer_shapes.change(model)
    while fold_sizes.change(model) and infer_shapes.change(model):
        pass
    found = [value.shape for value in model.graph.outputs]
    return tuple((-1,) if shape is None else tuple(d if isinstance(d, int) else -1 for d in shape) for shape in found)


def require_sound(proto: onnx.ModelProto, fed: Mapping[str, tuple[int, ...]]) -> None:
    """Whether shapes hang together. raises: Refused"""
    try:
        output_dims(proto, {name: dims for name, dims in fed.items() if -1 not in dims}, strict=True)
    except Exception as error:  # onnx's own classes
        raise Refused(CANNOT_LOAD, f"E14001: shapes of the model do not hang together: {str(error)[-300:]}") from error


def _values(shapes: Shapes, inputs: Sequence[tuple[int, ...]], specs: InOut) -> tuple[int, ...]:
    """What a client says to take a gear."""
    if shapes.kind == "dims":
        return tuple(size for dims in inputs for size in dims)
    free = next(
        tuple(size for size, open_ in zip(dims, shapes.named[name], strict=True) if open_ == -1)
        for (name, _, _), dims in zip(specs.inputs, inputs, strict=True)
        if -1 in shapes.named.get(name, ())
    )
    return free


def memory_of(proto: onnx.ModelProto, precision: str, largest: Sequence[tuple[int, ...]], specs: InOut) -> tuple[int, int]:
    """Bytes of weights and of work memory, at least: what lies beside the buffers that a client makes."""
    import onnx_ir as ir

    from porting.ascend.memory import memory_bound

    sized = onnx.ModelProto()
    sized.CopyFrom(proto)
    if largest:
        set_shapes(sized, {name: dims for (name, _, _), dims in zip(specs.inputs, largest, strict=True)})
    try:
        bound = memory_bound(Graph(ir.serde.deserialize_model(sized)), precision)
    except Exception as error:  # of passes over a graph that protobuf takes and no ONNX is
        raise Refused(CANNOT_LOAD, f"E19999: what memory the model takes is not known: {str(error)[:200]}") from error
    return bound.weights, bound.fullest.nbytes
