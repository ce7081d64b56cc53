"""Models that take pixels: AIPP, compiled into the .om, makes the model's numbers from uint8 images, where the port's program takes the numbers.

`program_of_pixels` gives the program that such a model is run with: each described input is the uint8 image of preprocessing.json, as
porting/ascend/image_inputs.py tells it. What the description leaves to the host, a resize, is done here before the bytes go to the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from porting.ascend.image_inputs import ImageInputs, images_of_port
from porting.ascend.preprocessing import ImageInput
from porting.ascend.preprocessing_reference import host_steps
from porting.backends.ascend.om_files import port_of
from porting.errors import InputError
from porting.port_folder import open_port
from porting.types import Program, TensorSpec

UINT8 = "uint8"


def program_of_pixels(program: Program, images: ImageInputs) -> Program:
    """The program whose described inputs are uint8 images: (N, H, W, C), or (N, H * 3 / 2, W) for NV12 and NV21.

    Its gears are checked when it runs: an image that is resized may have any size.
    """
    described = {image.input: image for image in images.images}
    inputs = tuple(_of_pixels(spec, described.get(spec.name)) for spec in program.inputs)
    return replace(program, inputs=inputs, gears=())


def _of_pixels(spec: TensorSpec, image: ImageInput | None) -> TensorSpec:
    if image is None:
        return spec
    width, height = image.size or (None, None)
    if image.source.startswith("NV"):
        return TensorSpec(spec.name, UINT8, (spec.shape[0], height and height * 3 // 2, width))
    return TensorSpec(spec.name, UINT8, (spec.shape[0], height, width, 1 if image.source == "GRAY" else 3))


def images_for(program: Program) -> Mapping[str, ImageInput]:
    """The described inputs that this program takes as pixels. raises: PortError"""
    port = port_of(program)
    images = images_of_port(open_port(port)) if port else None
    pixels = {spec.name for spec in program.inputs if spec.dtype == UINT8}
    return {image.input: image for image in images.images if image.input in pixels} if images else {}


def handed_to_aipp(image: ImageInput, pixels: np.ndarray) -> np.ndarray:
    """The bytes that the compiled model takes. raises: InputError"""
    return np.ascontiguousarray(pixels if image.source.startswith("NV") else host_steps(image, pixels))


def shape_in_model(image: ImageInput, pixels: np.ndarray) -> tuple[int, ...]:
    """(N, C, H, W) of the numbers that AIPP makes of an image. raises: InputError"""
    rows, columns = pixels.shape[1:3]
    if image.source.startswith("NV") and (rows % 3 or columns % 2):
        raise InputError(f"{image.source} has H * 3 / 2 rows and an even width, got {rows} x {columns}", where="session.run")
    height = rows * 2 // 3 if image.source.startswith("NV") else rows
    width, height = image.output_size(columns, height)
    return len(pixels), image.channels, height, width
