"""Cases of uint8 pixels for a model whose images are described: the user's, or generated ones, and the numbers that the reference makes of them.

A case is an array for each input: pixels for those that are described, and what the model takes for any other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from porting.ascend.image_inputs import ImageInputs, in_words
from porting.ascend.pixels import planes_of
from porting.ascend.preprocessing import ImageInput
from porting.ascend.preprocessing_reference import model_input
from porting.dtypes import dtype_of
from porting.errors import InputError, PortingError, nearest
from porting.gear_runs import Gear
from porting.npz import read_npz, write_npz
from porting.port_staging import os_errors
from porting.scratch import ScratchFolder
from porting.types import TensorSpec
from porting.verdict import printable

Case = Mapping[str, np.ndarray]
CASES = 4  # generated, at least two a gear
BLOCKS = 8  # in a generated image, whose borders are its edges
GRAIN = 12.0  # standard deviation of its noise, in levels of 256
UNNAMED = "arr_0"  # as numpy.savez(f, x) calls it


def cases_from_files(images: Sequence[ImageInput], paths: Sequence[Path]) -> dict[str, Case]:
    """The user's cases, one file each, by the name of the file. raises: InputError for numbers where pixels are expected, and for none"""
    cases: dict[str, Case] = {}
    for path in paths:
        arrays = read_npz(path, text=True)
        if set(arrays) == {UNNAMED} and len(images) == 1:
            arrays = {images[0].input: arrays[UNNAMED]}
        for image in images:
            if image.input not in arrays:
                raise InputError(
                    f"no pixels for input {printable(image.input, 60)!r}",
                    where=str(path),
                    next=f"give {in_words(image)} under that name; {nearest(image.input, [printable(n, 60) for n in arrays])}",
                )
            arrays[image.input] = pixels_of(image, arrays[image.input], str(path))
        name = path.stem if path.stem not in cases else f"{path.stem}-{len(cases)}"
        cases[name] = arrays
    return cases


def pixels_of(image: ImageInput, array: np.ndarray, where: str) -> np.ndarray:
    """An image as `planes_of` takes it; one alone may come without the axis of the batch. raises: InputError"""
    half = image.source.startswith("NV")
    if array.dtype != np.uint8:
        raise InputError(
            f"input {printable(image.input, 60)!r} is made of pixels by the preprocessing: expected {in_words(image)}, "
            f"got {array.dtype}{list(array.shape)}",
            where=where,
            next="give the uint8 image before resize, crop and normalisation: validation starts from it; or leave --preprocessing out",
        )
    found = array[None] if array.ndim == (2 if half else 3) else array
    if image.source == "GRAY" and array.ndim == 2:
        found = array[None, :, :, None]
    try:
        planes_of(found, image.source, image.size)
    except InputError as error:
        raise InputError(f"input {printable(image.input, 60)!r}: {error.what}", where=where, next=error.next) from error
    return np.ascontiguousarray(found)


def numbers_of(images: Sequence[ImageInput], case: Case, specs: Sequence[TensorSpec] = ()) -> dict[str, np.ndarray]:
    """What the reference makes of a case: numbers in place of pixels, in the dtype of the input, float32 where no spec says. raises: InputError"""
    dtypes = {spec.name: dtype_of(spec.dtype) for spec in specs if spec.dtype in ("float16", "float32")}
    made = {i.input: model_input(i, case[i.input]).astype(dtypes.get(i.input, np.float32)) for i in images}
    return {**case, **made}


@contextmanager
def number_files(
    images: Sequence[ImageInput], cases: Mapping[str, Case], specs: Sequence[TensorSpec] = ()
) -> Iterator[tuple[Path, ...]]:
    """Cases as files of what the model takes, while the block runs. raises: InputError, OutOfResources (disk full)"""
    with ScratchFolder() as folder:
        paths = tuple(Path(folder, f"{name}.npz") for name in cases)
        with os_errors(Path(folder)):
            for path, case in zip(paths, cases.values(), strict=True):
                write_npz(path, numbers_of(images, case, specs))
        try:
            yield paths
        except PortingError as error:  # it names the files that the user does not have
            error.where = error.where.replace(f"{folder}/", "")
            raise


# --- without the user's ----------------------------------------------------------------------------------------------


def complete_cases(images: ImageInputs, given: Mapping[str, Case], state: Collection[str] = ()) -> dict[str, Case]:
    """The user's cases, and one more for each gear that none of them has: the first repeated or cut to it. Without any, generated ones for every gear.

    state:  inputs that are carried from run to run, which start from zeros
    raises: InputError where nobody says what other inputs hold
    """
    if given:
        met = [{name: array.shape for name, array in numbers_of(images.images, case).items()} for case in given.values()]
        first = next(iter(given.values()))
        gears = [gear for gear in images.gears.shapes if not any(_is_gear(gear, shapes) for shapes in met)]
        return {**given, **{f"images in gear {images.gears.shapes.index(g)}": _brought(images, first, g) for g in gears}}
    others = images.others(state)
    if others:
        raise InputError(
            f"the preprocessing says nothing of input {printable(str(others[0]))}, and nobody gave one",
            where="inputs for validation",
            next="give --inputs x.npz, with uint8 images and an array for every other input",
        )
    each = max(2, CASES // len(images.gears.shapes))
    cases: dict[str, Case] = {}
    for gear in images.gears.shapes:
        for _ in range(each):
            cases[f"images{len(cases)}"] = {i.input: generated_pixels(i, gear[i.input], len(cases)) for i in images.images}
    return cases


def _is_gear(gear: Gear, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(gear[name] == shape for name, shape in shapes.items() if name in gear)


def _brought(images: ImageInputs, case: Case, gear: Gear) -> Case:
    """A case repeated or cut to a gear. Where height and width differ too, an image is generated."""
    found: dict[str, np.ndarray] = {}
    described = {image.input: image for image in images.images}
    for name, array in case.items():
        image = described.get(name)
        if image is None:
            for axis, size in enumerate(gear.get(name, ())):
                array = np.take(array, np.arange(size) % array.shape[axis], axis)
            found[name] = array
        elif model_input(image, array[:1]).shape[1:] == gear[name][1:]:
            found[name] = np.take(array, np.arange(gear[name][0]) % len(array), 0)
        else:
            found[name] = generated_pixels(image, gear[name], 0)
    return found


def generated_pixels(image: ImageInput, shape: Sequence[int], seed: int) -> np.ndarray:
    """Images with what real ones have: slopes, edges and grain, other ones in each channel, so that channels that change places show.

    shape:   of the model's input, (N, C, H, W); the size of the source where the description leaves that open
    returns: uint8 as `planes_of` takes it
    """
    rng = np.random.default_rng([seed, *image.input.encode()])
    count, width, height = shape[0], *(image.size or _open_size(image, shape))
    if not image.source.startswith("NV"):
        channels = 1 if image.source == "GRAY" else 3
        return (
            np.stack([[_plane(rng, height, width) for _ in range(channels)] for _ in range(count)]).transpose(0, 2, 3, 1).copy()
        )
    whole = np.stack([_plane(rng, height, width) for _ in range(count)])
    shared = np.stack([[_plane(rng, height // 2, width // 2) for _ in range(2)] for _ in range(count)])  # (N, 2, H / 2, W / 2)
    return np.concatenate([whole, shared.transpose(0, 2, 3, 1).reshape(count, height // 2, width)], axis=1)


def _open_size(image: ImageInput, shape: Sequence[int]) -> tuple[int, int]:
    """(width, height) where any will do: of an image that is resized, larger and of another form."""
    if image.resize is None:
        return shape[3], shape[2]
    return image.resize[0] + image.resize[0] // 2 + 1, image.resize[1] + image.resize[1] // 4 + 1


def _plane(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width) uint8."""
    down, right = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    made = rng.uniform(64, 192) + down * rng.uniform(-64, 64) + right * rng.uniform(-64, 64)
    for _ in range(BLOCKS):
        top, bottom = np.sort(rng.integers(0, height + 1, 2))
        left, end = np.sort(rng.integers(0, width + 1, 2))
        made[top:bottom, left:end] += rng.uniform(-96, 96)
    return np.clip(np.rint(made + rng.normal(0, GRAIN, made.shape)), 0, 255).astype(np.uint8)
