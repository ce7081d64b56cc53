"""Validation that starts from uint8 images, where a description says how a model's inputs are made of them (porting/ascend/image_inputs.py).

The model and its port take numbers: what the reference makes of pixels. A compiled model takes the pixels, and AIPP makes the numbers. So each
case is judged twice, from the reference's numbers against the source, and from AIPP's against the reference's.
Nothing of Ascend is imported where no image is described.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porting.devices import parse_device
from porting.errors import EvidenceUnavailable
from porting.evidence import evidence_level
from porting.port_folder import Port
from porting.progress import silent
from porting.types import Program, TensorSpec
from porting.verdict import Check, Verdict

if TYPE_CHECKING:
    from porting.ascend.image_cases import Case
    from porting.ascend.image_inputs import ImageInputs
    from porting.ascend.preprocessing import ImageInput
    from porting.judgement import Judgement


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


def takes_pixels(images: ImageInputs | None, device: str) -> bool:
    """Whether what runs on this device is fed pixels: a compiled model with AIPP in it."""
    chosen = parse_device(device)
    return images is not None and chosen.name.startswith("ascend") and chosen.options.get("route", "om") == "om"


def program_on(port: Port, device: str) -> Program:
    """A port's program, as the device takes its inputs. raises: PortError"""
    images = images_of(port)
    if images is None or not takes_pixels(images, device):
        return port.program()
    from porting.backends.ascend.om_images import program_of_pixels

    return program_of_pixels(port.program(), images)


def judged_with_pixels(
    judgement: Judgement,
    port: Port,
    images: ImageInputs | None,
    device: str,
    more: Sequence[Check],
    *,
    command: str = "validate",
    progress: Any = silent,
) -> Verdict:
    """The verdict on a device. Where its compiled model takes pixels, numbers can be fed to the port on the CPU alone: that is held against the
    reference, and the device's outputs, which are in `more`, against it.

    raises: EvidenceUnavailable where nothing ran on the device
    """
    if not takes_pixels(images, device):
        return judgement.judge(port, device, command=command, progress=progress, more=more)
    if not more:
        raise EvidenceUnavailable(
            "the compiled model takes pixels, and other inputs that nobody can make up",
            where=device,
            next="give images: --inputs x.npz",
        )
    found = judgement.judge(port, "cpu", command=command, progress=progress)
    checks = [replace(check, name=f"{check.name}, from numbers on the CPU") for check in found.checks]
    return Verdict.from_checks(
        command,
        [*checks, *more],
        evidence_level=evidence_level(device, port.manifest["target"]),
        reference=found.reference,
        source=found.source,
        target=found.target,
        device=str(parse_device(device)),
        seconds=found.seconds,
        details={**found.details, "device_asked_for": device},
    )


def checks_from_pixels(port: Port, images: ImageInputs | None, files: Sequence[Path], device: str) -> list[Check]:
    """The same for a port at hand; none where nobody gives images and other inputs keep them from being generated."""
    state = {pair.input for pair in port.program().state.pairs}
    if images is None or (not files and images.others(state)):
        return []
    return pixel_checks(port, images, pixel_cases(images, files, state), device)
