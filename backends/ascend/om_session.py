"""A compiled model behind a session.

Buffers on the device are allocated once, for the largest gear, and used by every run; inputs and outputs go through pinned memory on the one
stream, so that nothing is waited for but the end of a run:

    feeds -> pinned -> device ─┐                 ┌─ device -> pinned -> outputs
    state, buffer A ───────────┴─ the model ─────┴─ state, buffer B; then A and B change places

A run that fails leaves state as it was. One run at a time: a model may not run twice at once, so threads wait for each other.
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from porting.ascend.preprocessing import ImageInput
from porting.backends.ascend.acl import Acl
from porting.backends.ascend.acl_codes import BROKEN, AclError, error_of
from porting.backends.ascend.om_binding import Bound, bind
from porting.backends.ascend.om_buffers import DataSet, Holder
from porting.backends.ascend.om_files import port_of
from porting.backends.ascend.om_images import handed_to_aipp, images_for, shape_in_model
from porting.backends.ascend.om_model import OmModel, Shape
from porting.backends.onnx_program import node_label, read_model
from porting.errors import InputError, PortError, RuntimeFailed
from porting.gear_runs import shown
from porting.port_folder import open_port
from porting.state import filled, state_buffers
from porting.types import Program, State


class Carried:
    """One piece of state on the device: what a run reads, and what it writes; they change places when it is done.

    shape: in use; the memory is that of the largest gear
    """

    def __init__(self, read: int, write: int, shape: Shape, freed: list[tuple[int, int]]) -> None:
        self.read, self.write = read, write
        self.shape = shape
        weakref.finalize(self, freed.append, (read, write))  # whoever drops it may hold no context: the session frees it later


class OmSession:
    """
    placement: node -> device
    """

    def __init__(
        self,
        holder: Holder,
        model: OmModel,
        program: Program,
        images: Mapping[str, ImageInput],
        becomes: Mapping[str, str],
        device: str,
        placement: Mapping[str, str],
    ) -> None:
        """Takes the holder over. raises: AclError, PortError"""
        self.placement = placement
        self._holder, self._model, self._program, self._device = holder, model, program, device
        self._lock = threading.Lock()
        self._dropped: list[tuple[int, int]] = []  # memory of states that are gone
        self._states: set[tuple[int, int]] = set()
        self._closed = False
        self._broken = ""
        self._images = images
        self._inputs, self._outputs = bind(program, model, images, becomes)
        self._pixels = {one.place for one in self._inputs if one.spec.name in images}
        self._pairs = {pair.input: pair for pair in program.state.pairs}
        self._of_output = {pair.output: pair.input for pair in program.state.pairs}
        for gear in program.gears:
            if not images and model.values_of([one.shape_in_model(gear[one.spec.name]) for one in self._inputs]) is None:
                raise PortError(f"the compiled model has no gear {shown(gear)}", where=str(model.path))
        self._allocate()

    def _allocate(self) -> None:
        holder, model = self._holder, self._model
        self._read, self._written = DataSet(holder), DataSet(holder)
        self._memory: dict[str, tuple[int, int, np.ndarray]] = {}  # name -> address, bytes, pinned bytes
        for data, bound, carried in ((self._read, self._inputs, self._pairs), (self._written, self._outputs, self._of_output)):
            for one in bound:
                nbytes = one.room
                if one.spec.name in carried:
                    data.add(0, 0)  # every run has its own
                    continue
                address = holder.held_memory(nbytes)
                self._memory[one.spec.name] = (address, nbytes, holder.pinned(nbytes))
                data.add(address, nbytes)
        if model.gear_index is not None:
            self._read.add(holder.held_memory(model.gear_bytes), model.gear_bytes)
        self._staging: np.ndarray | None = None  # pinned, for state that goes to or from the host

    # --- runs ---------------------------------------------------------------------------------------------------------

    def run(self, feeds: Mapping[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        with self._lock, self._explained():
            carried: dict[str, Carried] = state.buffers if state else {}
            given, shapes = self._given(feeds, carried)
            values = self._gear(shapes)
            self._enter()
            try:
                outputs, shapes_now = self._queued(given, carried, values)
            except AclError as error:
                if error.code not in BROKEN:
                    self._settle()
                raise
            for name, piece in carried.items():
                piece.read, piece.write = piece.write, piece.read
                piece.shape = shapes_now[self._pairs[name].output]
            return outputs

    def _given(
        self, feeds: Mapping[str, np.ndarray], carried: Mapping[str, Carried]
    ) -> tuple[dict[str, np.ndarray], list[Shape]]:
        """What goes to the device, in the model's dtypes; and the shape of every input. raises: InputError"""
        given, shapes = {}, []
        for one in self._inputs:
            name = one.spec.name
            if name in self._pairs:
                shapes.append(one.shape_in_model(carried[name].shape))
                continue
            array = feeds[name]
            image = self._images.get(name)
            shapes.append(one.shape_in_model(array.shape) if image is None else shape_in_model(image, array))
            given[name] = one.for_model(array) if image is None else handed_to_aipp(image, array)
        return given, shapes

    def _gear(self, shapes: list[Shape]) -> Shape:
        """raises: InputError"""
        values = self._model.values_of(shapes, self._pixels)
        if values is None:
            got = {one.spec.name: shape for one, shape in zip(self._inputs, shapes, strict=True)}
            known = " | ".join(", ".join(map(str, gear)) for gear in self._model.gears) or "one shape of each input"
            raise InputError(
                f"the compiled model has no gear with the shapes {shown(got)}; it has {known}",
                where="session.run",
                next="pad to a gear, or compile with a further one: the device would take the largest gear and say nothing",
            )
        return values

    def _queued(
        self, given: Mapping[str, np.ndarray], carried: Mapping[str, Carried], values: Shape
    ) -> tuple[dict[str, np.ndarray], dict[str, Shape]]:
        """Queue a run and wait for it. returns: outputs that are not state; the shapes of all. raises: AclError, InputError"""
        holder, model = self._holder, self._model
        for name, array in given.items():
            address, nbytes, pinned = self._memory[name]
            if array.nbytes > nbytes or (not values and array.nbytes != nbytes):
                raise InputError(f"input {name!r} has {array.nbytes} bytes, and the model takes {nbytes}", where="session.run")
            pinned[: array.nbytes] = array.reshape(-1).view(np.uint8)
            holder.to_device(address, nbytes, pinned[: array.nbytes])
        for one in self._inputs:
            if one.spec.name in carried:
                self._read.put(one.place, carried[one.spec.name].read, one.room)
        for one in self._outputs:
            if one.spec.name in self._of_output:
                self._written.put(one.place, carried[self._of_output[one.spec.name]].write, one.room)
        model.set_gear(self._read, values)
        model.execute(self._read, self._written)
        shapes = {one.spec.name: model.output_dims(one.place) for one in self._outputs if not one.is_open}
        for one in self._plain_outputs():
            address, _, pinned = self._memory[one.spec.name]
            holder.to_host(pinned if one.is_open else pinned[: _nbytes(one, shapes)], address)
        holder.wait()
        shapes |= {one.spec.name: self._written.dims(one.place) for one in self._outputs if one.is_open}
        outputs = {}
        for one in self._plain_outputs():
            pinned = self._memory[one.spec.name][2][: _nbytes(one, shapes)]
            outputs[one.spec.name] = pinned.view(one.tensor.dtype).reshape(shapes[one.spec.name]).astype(one.dtype)
        return outputs, shapes

    def _plain_outputs(self) -> list[Bound]:
        return [one for one in self._outputs if one.spec.name not in self._of_output]

    def _settle(self) -> None:
        """After a failure: nothing that was queued may still write when memory is used again."""
        with contextlib.suppress(AclError):
            self._holder.wait()

    # --- state --------------------------------------------------------------------------------------------------------

    def new_state(self, capacity: int, batch: int = 1, grown_from: State | None = None) -> State:
        with self._lock, self._explained():
            arrays = self._start(capacity, batch, grown_from)
            self._enter()
            buffers: dict[str, Carried] = {}
            for one in self._inputs:
                if one.spec.name in arrays:
                    buffers[one.spec.name] = self._on_device(one, arrays[one.spec.name])
            length = np.zeros(batch, np.int64) if grown_from is None else grown_from.length
            return State(buffers, length, capacity)

    def _start(self, capacity: int, batch: int, grown_from: State | None) -> dict[str, np.ndarray]:
        """The numbers that a state starts with. raises: InputError, AclError"""
        like = None
        if grown_from is not None:
            held = {n: b if isinstance(b, np.ndarray) else self._read_back(n, b) for n, b in grown_from.buffers.items()}
            like = State(held, grown_from.length, grown_from.capacity)
        arrays = {}
        for name, buffer in state_buffers(self._program, capacity, batch, like).items():
            arrays[name] = np.zeros(buffer.shape, buffer.dtype)
            if like is not None:
                part = filled(like, buffer)
                arrays[name][part] = like.buffers[name][part]
        return arrays

    def _on_device(self, one: Bound, array: np.ndarray) -> Carried:
        """raises: AclError, InputError"""
        output = next(o for o in self._outputs if self._of_output.get(o.spec.name) == one.spec.name)
        room = max(one.room, output.room)
        made = np.ascontiguousarray(one.for_model(array)).reshape(-1).view(np.uint8)
        if made.nbytes > room or one.tensor.dtype != output.tensor.dtype:
            raise InputError(
                f"state {one.spec} does not fit the compiled model: {one.tensor}, then {output.tensor}", where="new_state"
            )
        holder = self._holder
        read = holder.allocate(room)
        try:
            write = holder.allocate(room)
        except AclError:
            holder.free(read)
            raise
        self._states.add((read, write))
        piece = Carried(read, write, array.shape, self._dropped)
        staging = self._staged(made.nbytes)
        staging[:] = made
        holder.to_device(read, room, staging)
        holder.wait()
        return piece

    def read_state(self, state: State) -> dict[str, np.ndarray]:
        with self._lock, self._explained():
            return {name: self._read_back(name, piece) for name, piece in state.buffers.items()}

    def _read_back(self, name: str, piece: Carried) -> np.ndarray:
        """raises: AclError"""
        self._enter()
        one = next(one for one in self._inputs if one.spec.name == name)
        staging = self._staged(math.prod(piece.shape) * one.tensor.dtype.itemsize)
        self._holder.to_host(staging, piece.read)
        self._holder.wait()
        return staging.view(one.tensor.dtype).reshape(piece.shape).astype(one.dtype)

    def _staged(self, nbytes: int) -> np.ndarray:
        """Pinned memory for the largest piece of state, made when it is first needed. raises: AclError"""
        if self._staging is None:
            most = [one.room for one in self._inputs if one.spec.name in self._pairs]
            self._staging = self._holder.pinned(max([nbytes, *most]))
        return self._staging[:nbytes]

    # --- what every call does -----------------------------------------------------------------------------------------

    def _enter(self) -> None:
        """raises: AclError; RuntimeFailed for a session that is closed, or whose device is gone"""
        if self._closed or self._broken:
            raise RuntimeFailed(
                self._broken or "the session is closed",
                where=self._device,
                next="open the port again; `porting doctor` says whether the device answers",
            )
        self._holder.enter()
        self._free_dropped()

    def _free_dropped(self) -> None:
        while self._dropped:
            both = self._dropped.pop()
            self._states.discard(both)
            for address in both:
                self._holder.free(address)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except AclError as error:
            found = error_of(error, self._device)
            if error.code in BROKEN and not self._broken:
                self._broken = f"the device or a run on it was lost earlier: {found.what}"
            raise found from error

    def close(self) -> None:
        """raises: RuntimeFailed where the device does not take something back, unless it was lost"""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            failed = None
            if not self._broken:
                with contextlib.suppress(AclError):
                    self._holder.enter()
                    self._holder.wait()
            else:
                self._holder.drop_stream()
            for both in self._states:
                for address in both:
                    try:
                        self._holder.free(address)
                    except AclError as error:
                        failed = failed or error
            self._states.clear()
            self._memory.clear()
            self._staging = None
            try:
                self._holder.close()
            except AclError as error:
                failed = failed or error
            if failed is not None and not self._broken:
                raise error_of(failed, self._device) from failed


def _nbytes(one: Bound, shapes: Mapping[str, Shape]) -> int:
    return math.prod(shapes[one.spec.name]) * one.tensor.dtype.itemsize


def open_om(acl: Acl, index: int, path: Path, program: Program, timeout_ms: int) -> OmSession:
    """Load a compiled model on a device.

    timeout_ms: of a run
    raises:     AclError, PortError, DeviceUnavailable
    """
    device = f"ascend:{index}"
    placement = {
        node_label(node): device for node in read_model(program).graph.node
    }  # AscendCL tells no more: an .om is one task
    port = port_of(program)
    carried = (
        open_port(port).program() if port else program
    ).state.pairs  # of the port, also where a program leaves its state to the caller
    becomes = {pair.output: pair.input for pair in carried}
    holder = Holder(acl, index, timeout_ms)
    try:
        return OmSession(holder, OmModel(holder, path), program, images_for(program), becomes, device, placement)
    except BaseException:
        with contextlib.suppress(AclError):
            holder.close()
        raise
