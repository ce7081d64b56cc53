"""The images of a model that is compiled with AIPP: a description held against its inputs and gears, and what the hand-off and the port keep.

    preprocessing.json ─┬─ insert_op.cfg, which atc takes as --insert_op_conf: the device makes the model's numbers from uint8 pixels
                        └─ the reference on the CPU (preprocessing_reference.py), from the same pixels

The port itself takes the model's numbers, as its source does; port.json keeps the description, so that `validate` starts from pixels again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from porting.ascend import gears as gear_files
from porting.ascend.aipp import AippOp, aipp_ops, half_error, host_notes
from porting.ascend.aipp_text import aipp_text, parse_aipp
from porting.ascend.gears import Gears, gears_for
from porting.ascend.preprocessing import ImageInput, from_json, to_json
from porting.ascend.preprocessing_reference import colour_doubt
from porting.ascend.soc import Soc, find_soc
from porting.checked_json import text
from porting.errors import PortError, PortingError
from porting.port_folder import Port
from porting.types import TensorSpec
from porting.verdict import Check, printable

CONFIG = "insert_op.cfg"  # in a hand-off
KEY = "preprocessing"  # in port.json, under "ascend"
ANY_SIDE = 64  # pixels, of an image that may have any size
NEVER_RUN = "AIPP was judged by documents and sources, and emulated on the CPU; it never ran on a device"


@dataclass(frozen=True)
class ImageInputs:
    """
    images: as described, one for an input
    inputs: all of the model that is compiled, in order
    config: what atc reads of them
    """

    images: tuple[ImageInput, ...]
    inputs: tuple[TensorSpec, ...]
    gears: Gears
    config: bytes

    @property
    def names(self) -> list[str]:
        return [image.input for image in self.images]

    def spec(self, name: str) -> TensorSpec:
        return next(spec for spec in self.inputs if spec.name == name)

    def others(self, state: Collection[str] = ()) -> list[TensorSpec]:
        """Inputs that no description makes, and no run carries. state: those that are carried"""
        return [spec for spec in self.inputs if spec.name not in {*self.names, *state}]

    def ops(self) -> dict[str, AippOp]:
        """Input -> what the file says of it, read from its bytes and not from the description. raises: InputError"""
        channels = {image.input: image.channels for image in self.images}
        read = parse_aipp(self.config.decode("utf-8"), [channels.get(spec.name, 0) for spec in self.inputs], CONFIG)
        return {self.inputs[op.rank].name: op for op in read}

    def notes(self) -> list[str]:
        """What whoever runs the compiled model should be told."""
        found = [
            f"{printable(image.input, 60)}: {note}" for image in self.images for note in (*host_notes(image), *_errors(image))
        ]
        takes = ", ".join(f"{printable(image.input, 60)}: {in_words(image, resized=True)}" for image in self.images)
        return [f"the compiled model takes pixels in place of numbers ({takes})", *found, NEVER_RUN]

    def to_json(self) -> dict[str, Any]:
        """For port.json."""
        return to_json(self.images)


def _errors(image: ImageInput) -> list[str]:
    """How far AIPP's numbers may lie off, in the model's own."""
    doubt = max(colour_doubt(image))
    open_level = [f"such a level is up to {doubt:.1e} in the model's numbers"] if doubt else []
    return [*open_level, f"its documented fp16 leads the numbers up to {max(half_error(image)):.1e} away from exact ones"]


def in_words(image: ImageInput, resized: bool = False) -> str:
    """The array of an image, as the user gives it; or behind the host's resize, as a compiled model takes it."""
    width, height = (image.resize[:2] if resized and image.resize is not None else image.size) or ("W", "H")
    if image.source.startswith("NV"):
        rows = f"{height * 3 // 2}" if isinstance(height, int) else "H * 3 / 2"
        return f"uint8 [N, {rows}, {width}] {image.source}"
    return f"uint8 [N, {height}, {width}, {1 if image.source == 'GRAY' else 3}] {image.source}"


def image_inputs(images: Sequence[ImageInput], inputs: Sequence[TensorSpec], gears: Gears, soc: Soc) -> ImageInputs:
    """A description held against a model.

    inputs: of the graph that is compiled, in order
    raises: UsageError for what AIPP cannot do; InputError for an input that is no image or is not there, and for sizes that do not meet
    """
    ops = aipp_ops(images, inputs, gears, soc)
    return ImageInputs(tuple(images), tuple(inputs), gears, aipp_text(ops).encode("utf-8"))


def images_check(images: Sequence[ImageInput], inputs: Sequence[TensorSpec], soc: Soc) -> list[Check]:
    """What AIPP would be told, with the sizes that the description gives to dimensions that are free. raises: as `image_inputs`"""
    made = {image.input: image for image in images}
    fixed = [replace(spec, shape=_sized(spec, made.get(spec.name))) for spec in inputs]
    found = image_inputs(images, fixed, gears_for(fixed, soc), soc)
    where = ", ".join(f"{printable(image.input, 60)}: {in_words(image, resized=True)}" for image in images)
    return [Check.equal("images that AIPP cannot make by these sources", 0, 0, where, "; ".join(found.notes()))]


def _sized(spec: TensorSpec, image: ImageInput | None) -> tuple[int, ...]:
    """A shape whose free dimensions are as large as the description makes them, and 1 where it does not say."""
    sizes = {}
    if image is not None and len(spec.shape) == 4:
        height, width = (dim if isinstance(dim, int) else ANY_SIDE for dim in spec.shape[2:])
        made = image.output_size(*(image.size or (width, height)))
        sizes = {1: image.channels, 2: made[1], 3: made[0]}
    return tuple(dim if isinstance(dim, int) else sizes.get(axis, 1) for axis, dim in enumerate(spec.shape))


def images_of_port(port: Port) -> ImageInputs | None:
    """What a port was made with; None for one whose inputs no description makes. raises: PortError for one that is malformed"""
    about = port.manifest.get("ascend")
    if not isinstance(about, dict) or KEY not in about:
        return None
    try:
        images = from_json(about[KEY], f"ascend: {KEY}")
        gears = gear_files.from_json(port.manifest.get("gears"))
        return image_inputs(images, port.program().inputs, gears, find_soc(text(about.get("soc"), "ascend: soc")))
    except PortError:
        raise
    except PortingError as error:
        raise PortError(f"port.json is malformed: {error.what}", where=error.where, next="convert again") from error
