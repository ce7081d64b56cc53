"""Validation that starts from uint8 images, where a description says how a model's inputs are made of them (porting/ascend/image_inputs.py).

The model and its port take numbers: what the reference makes of pixels. A compiled model takes the pixels, and AIPP makes the numbers. So each
case is judged twice, from the reference's numbers against the source, and from AIPP's against the reference's.
Nothing of Ascend is imported where no image is described.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from porting.port_folder import Port
from porting.types import TensorSpec
from porting.verdict import Check

if TYPE_CHECKING:
    from porting.ascend.image_cases import Case
    from porting.ascend.image_inputs import ImageInputs
    from porting.ascend.preprocessing import ImageInput


@contextmanager
def as_numbers(
    images: Sequence[ImageInput], files: Sequence[Path], inputs: Sequence[TensorSpec] = ()
) -> Iterator[tuple[Path, ...]]:
    """The user's files for whatever reads a model's numbers; as they are where no image is described.

    inputs: of the model, whose dtypes the numbers get; float32 where they are not known yet
    raises: InputError for numbers where pixels are expected
    """
    if not images:
        yield tuple(files)
        return
    from porting.ascend.image_cases import cases_from_files, number_files

    with number_files(images, cases_from_files(images, files), inputs) as made:
        yield made


def pixel_cases(images: ImageInputs | None, files: Sequence[Path], state: Collection[str]) -> dict[str, Case]:
    """The user's images, and generated ones for every gear where he gives none. raises: InputError where nobody says what other inputs hold"""
    if images is None:
        return {}
    from porting.ascend.image_cases import cases_from_files, complete_cases

    return complete_cases(images, cases_from_files(images.images, files), state)


@contextmanager
def cases_as_numbers(
    images: ImageInputs | None, cases: Mapping[str, Case], files: Sequence[Path]
) -> Iterator[tuple[Path, ...]]:
    """Files of the model's numbers for these cases; the user's own where no image is described."""
    if images is None:
        yield tuple(files)
        return
    from porting.ascend.image_cases import number_files

    with number_files(images.images, cases, images.inputs) as made:
        yield made


def pixel_checks(port: Port, images: ImageInputs | None, cases: Mapping[str, Case], device: str) -> list[Check]:
    """From pixels to outputs, by what AIPP makes of them; none where no image is described."""
    if images is None:
        return []
    from porting.ascend.aipp_validation import aipp_checks

    return aipp_checks(port, images, cases, device)


def images_of(port: Port) -> ImageInputs | None:
    """What a port was made with. raises: PortError"""
    if "ascend" not in port.manifest:
        return None
    from porting.ascend.image_inputs import images_of_port

    return images_of_port(port)


def checks_from_pixels(port: Port, images: ImageInputs | None, files: Sequence[Path], device: str) -> list[Check]:
    """The same for a port at hand; none where nobody gives images and other inputs keep them from being generated."""
    state = {pair.input for pair in port.program().state.pairs}
    if images is None or (not files and images.others(state)):
        return []
    return pixel_checks(port, images, pixel_cases(images, files, state), device)
