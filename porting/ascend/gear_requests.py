"""What a user typed about shapes, as a size for each free dimension.

    --batch 1,2,4,8                 axis 0 of every input where it is free
    --image-size 224,224;448,448    height and width of every input of rank 4 (NCHW) where they are free
    --dims "1,128;1,256"            a number for each free dimension, in the inputs' order
    --gears "batch=1,seq=64; ..."   a number for each name

Commas part numbers, semicolons part gears. Options exclude each other, but for a single --batch beside --image-size.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from porting.ascend.gear_options import BATCH, DIMS, IMAGE, IMAGE_AXES, LARGEST
from porting.dtypes import STRING, sequence_element
from porting.errors import InputError, UsageError, nearest
from porting.state import is_name
from porting.types import ANY_SHAPE, TensorSpec
from porting.verdict import printable

IMAGE_DTYPES = ("float32", "float16", "bfloat16", "uint8")


@dataclass(frozen=True)
class Request:
    """What the user asked for, as typed; "" where nothing.

    batch:      "1,2,4,8"
    image_size: "224,224;448,448", height before width
    dims:       "1,128;1,256", a number for each free dimension in the inputs' order
    named:      "batch=1,seq=64; batch=1,seq=128", a number for each name
    """

    batch: str = ""
    image_size: str = ""
    dims: str = ""
    named: str = ""


class Place(NamedTuple):
    """A free dimension. symbol: its name, None where it has none that means something"""

    input: str
    axis: int
    symbol: str | None


def free_places(inputs: Sequence[TensorSpec]) -> list[Place]:
    """The free dimensions, in the order in which ATC counts its -1."""
    return [
        Place(spec.name, axis, dim if is_name(dim) else None)  # type: ignore[arg-type]
        for spec in inputs
        for axis, dim in enumerate(spec.shape)
        if not isinstance(dim, int)
    ]


def checked_places(inputs: Sequence[TensorSpec]) -> list[Place]:
    if not inputs:
        raise InputError("a graph without inputs has no gears (ATC: E16001)", where="inputs")
    for spec in inputs:
        if spec.shape == ANY_SHAPE or spec.dtype == STRING or sequence_element(spec.dtype) is not None:
            raise InputError(f"input {spec} is no array of numbers with a known rank", where="inputs")
        if not spec.name or not spec.name.isprintable() or any(c in ";\"'" or c.isspace() for c in spec.name):
            raise InputError(
                f"--input_shape cannot name the input {printable(spec.name, 60)!r}",
                where="inputs",
                next="rename it in the graph",
            )
        if any(isinstance(dim, int) and not 1 <= dim <= LARGEST for dim in spec.shape):
            raise InputError(f"input {spec} has no elements: ATC takes no size of 0", where="inputs")
    return free_places(inputs)


def assigned(
    inputs: Sequence[TensorSpec], places: Sequence[Place], request: Request
) -> tuple[str | None, list[dict[Place, int]]]:
    """The kind that was asked for (None: whatever fits), and a size for each place, a gear each."""
    given = [name for name in ("batch", "image_size", "dims", "named") if getattr(request, name).strip()]
    spelled = {"batch": "--batch", "image_size": "--image-size", "dims": "--dims", "named": "--gears"}
    if len(given) > 1 and given != ["batch", "image_size"]:
        raise _excluding(spelled[given[0]], spelled[given[1]])
    if given == ["dims"]:
        return DIMS, [_by_order(places, gear) for gear in _rows(request.dims, "--dims")]
    if given == ["named"]:
        return None, [by_name(places, gear) for gear in named_sizes(request.named)]
    batches = [_at_axes(inputs, places, (n,), (0,), "--batch") for (n,) in _batches(request.batch)]
    images = [_at_axes(inputs, places, gear, IMAGE_AXES, "--image-size") for gear in _images(request.image_size)]
    if len(batches) > 1 and len(images) > 1:
        raise _excluding("several of --batch", "several of --image-size")
    kind = IMAGE if len(images) > 1 else BATCH if len(batches) > 1 else None
    return kind, [{**batch, **image} for batch, image in itertools.product(batches or [{}], images or [{}])]


def _excluding(one: str, other: str) -> UsageError:
    return UsageError(
        f"{one} and {other} exclude each other (ATC: E10009)",
        where="gears",
        next="name whole shapes: --gears 'batch=1,seq=64; batch=4,seq=64'",
    )


def _by_order(places: Sequence[Place], gear: Sequence[int]) -> dict[Place, int]:
    if len(gear) != len(places):
        listed = ", ".join(f"{p.input}[{p.axis}]" for p in places) or "none"
        raise UsageError(
            f"a gear has {len(gear)} numbers, the inputs have {len(places)} free dimensions",
            where="--dims",
            next=f"one number for each, in this order: {printable(listed)}",
        )
    return dict(zip(places, gear, strict=True))


def by_name(places: Sequence[Place], gear: Mapping[str, int]) -> dict[Place, int]:
    symbols = {p.symbol for p in places if p.symbol is not None}
    for name in gear:
        if name not in symbols:
            listed = ", ".join(f"{place.input}[{place.axis}]" for place in places)
            raise UsageError(
                f"no input has a free dimension {printable(name, 60)!r}",
                where="--gears",
                next=nearest(name, sorted(symbols))
                if symbols
                else f"none of them has a name; --dims takes them in order: {printable(listed)}",
            )
    return {place: gear[place.symbol] for place in places if place.symbol in gear}  # type: ignore[index]


def _at_axes(
    inputs: Sequence[TensorSpec], places: Sequence[Place], gear: Sequence[int], axes: Sequence[int], option: str
) -> dict[Place, int]:
    """Sizes for the free dimensions at these axes; a fixed one there has to have that size already."""
    images = [spec for spec in inputs if axes == (0,) or (len(spec.shape) == 4 and spec.dtype in IMAGE_DTYPES)]
    free = {(p.input, p.axis): p for p in places}
    found = {free[spec.name, a]: size for spec in images for a, size in zip(axes, gear, strict=True) if (spec.name, a) in free}
    if not found:
        raise UsageError(
            f"{option} is given, and no input leaves that open", where=option, next=f"the inputs are {_listed(inputs)}"
        )
    for place in list(found):
        spec = next(spec for spec in images if spec.name == place.input)
        fixed = [
            (a, size) for a, size in zip(axes, gear, strict=True) if isinstance(spec.shape[a], int) and spec.shape[a] != size
        ]
        if fixed:
            raise UsageError(
                f"{option} wants axis {fixed[0][0]} of {printable(str(spec))} to be {fixed[0][1]}",
                where=option,
                next="that axis is fixed",
            )
    same = {p.symbol: size for p, size in found.items() if p.symbol is not None}
    return found | {p: same[p.symbol] for p in places if p not in found and p.symbol in same}


def _listed(inputs: Sequence[TensorSpec]) -> str:
    return printable("; ".join(map(str, inputs)))


# --- texts --------------------------------------------------------------------------------------------------------


def _rows(text: str, option: str) -> list[list[int]]:
    """ "1,128;1,256" -> [[1, 128], [1, 256]]"""
    return [[_size(number, option) for number in row.split(",")] for row in text.split(";")]


def _batches(text: str) -> list[list[int]]:
    return [[_size(number, "--batch")] for number in text.split(",")] if text.strip() else []


def _images(text: str) -> list[list[int]]:
    rows = _rows(text, "--image-size") if text.strip() else []
    if any(len(row) != 2 for row in rows):
        raise UsageError("an image size is height,width (ATC: E10020)", where="--image-size", next="write 224,224;448,448")
    return rows


def named_sizes(text: str) -> list[dict[str, int]]:
    """ "batch=1,seq=64; batch=1,seq=128" as a mapping each. raises: UsageError"""
    gears = []
    for part in text.split(";"):
        gear: dict[str, int] = {}
        for item in part.split(","):
            name, sign, number = item.partition("=")
            name = name.strip()
            if not sign or not name or name in gear:
                raise UsageError(
                    f"{printable(item, 60)!r} is no name=size, or its name comes twice in a gear",
                    where="--gears",
                    next="write batch=1,seq=64; batch=1,seq=128",
                )
            gear[name] = _size(number, "--gears")
        gears.append(gear)
    return gears


def _size(text: str, option: str) -> int:
    number = text.strip()
    if not (number.isascii() and number.isdigit() and len(number) <= 10) or not 1 <= int(number) <= LARGEST:
        raise UsageError(f"{printable(text, 40)!r} is no size", where=option, next="sizes are whole numbers from 1")
    return int(number)
