"""Gears as ATC's options, and back.

    --input_shape="ids:-1,-1;mask:-1,-1;alpha:"     all inputs, in the graph's order; a scalar has no numbers
    --dynamic_batch_size="1,2,4"                    every -1 is axis 0, and gets the same number
    --dynamic_image_size="224,224;448,448"          every -1 is H or W of an input of rank 4
    --dynamic_dims="1,64,1,64;1,128,1,128"          one number per -1 of --input_shape, in order; needs --input_format=ND

Sources: ATC's pages on these options, and its checks of them (hicann/ge: atc_ir_common, multi_batch_options), of the 9.2 development state. The
codes are the ones that those checks name. Ranges ("1~10") and -1 without gears mean execution with dynamic shapes, and are never written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from porting.errors import UsageError
from porting.verdict import printable

FIXED, BATCH, IMAGE, DIMS = "fixed", "dynamic_batch_size", "dynamic_image_size", "dynamic_dims"
KINDS = (FIXED, BATCH, IMAGE, DIMS)
FORMATS = ("NCHW", "NCDHW", "ND")  # that ATC takes for ONNX
FEWEST, MOST, MOST_ON_950 = 2, 100, 256  # gears
LARGEST = 2**31 - 1  # of one dimension
MAX_TEXT = 1 << 20  # characters of an option
IMAGE_AXES = (2, 3)  # H and W of NCHW

Shape = tuple[int, ...]
Shapes = tuple[Mapping[str, Shape], ...]
_NUMBER = re.compile(r"[0-9]{1,10}")


def options_of(kind: str, inputs: Sequence[str], shapes: Shapes, input_format: str) -> dict[str, str]:
    """The options that mean these gears.

    shapes: of every input, a gear each
    raises: UsageError for a kind that cannot say them
    """
    written = {name: _open_dims(kind, [gear[name] for gear in shapes]) for name in inputs}
    listed = ";".join(f"{name}:{','.join(map(str, dims))}" for name, dims in written.items())
    options = {"input_shape": listed, "input_format": input_format}
    if kind == BATCH:
        options[BATCH] = ",".join(str(gear[0]) for gear in _numbers(inputs, written, shapes))
    elif kind == IMAGE:
        options[IMAGE] = ";".join(f"{gear[0]},{gear[1]}" for gear in _numbers(inputs, written, shapes))
    elif kind == DIMS:
        options[DIMS] = ";".join(",".join(map(str, gear)) for gear in _numbers(inputs, written, shapes))
    if shapes_of(options) != (kind, shapes):
        raise UsageError(f"{kind} cannot say these gears", where=options["input_shape"], next="name the shapes with --gears")
    return options


def _open_dims(kind: str, shapes: Sequence[Shape]) -> Shape:
    """The shape with -1 where the gears differ; of an image's height and width both, where one does."""
    dims = [sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*shapes, strict=True)]
    if kind == IMAGE and len(dims) == 4 and -1 in (dims[2], dims[3]):
        dims[2] = dims[3] = -1
    return tuple(dims)


def _numbers(inputs: Sequence[str], written: Mapping[str, Shape], shapes: Shapes) -> list[list[int]]:
    """What each gear puts at the -1, in order."""
    return [[gear[name][axis] for name in inputs for axis, dim in enumerate(written[name]) if dim == -1] for gear in shapes]


# --- back ---------------------------------------------------------------------------------------------------------


def shapes_of(options: Mapping[str, str], most: int = MOST_ON_950) -> tuple[str, Shapes]:
    """What the options mean: the kind of gears, and the shapes of all inputs in each.

    options: input_shape, input_format and at most one dynamic_*; no other
    raises:  UsageError with the code of ATC's own check where it has one
    """
    unknown = sorted(set(options) - {"input_shape", "input_format", *KINDS[1:]})
    if unknown:
        raise UsageError(f"{printable(unknown[0], 60)!r} is no option of gears", where="options of gears")
    if any(not isinstance(text, str) or len(text) > MAX_TEXT for text in options.values()):
        raise UsageError("an option of gears is no text, or far too long", where="options of gears")
    given = [kind for kind in KINDS[1:] if kind in options]
    if len(given) > 1:
        raise _refused("E10009", f"--{given[0]} and --{given[1]} exclude each other", "keep one")
    kind = given[0] if given else FIXED
    inputs = _input_shapes(options.get("input_shape", ""))
    _require_format(kind, options.get("input_format", "NCHW"))
    places = [(name, axis) for name, dims in inputs.items() for axis, dim in enumerate(dims) if dim == -1]
    if kind == FIXED:
        if places:
            raise UsageError(
                f"input {printable(places[0][0], 60)!r} has -1 and no gears: a dynamic shape", where="--input_shape"
            )
        return FIXED, (dict(inputs),)
    numbers = _gear_numbers(kind, options[kind], inputs, places)
    require_count(len(numbers), most)
    if len({tuple(gear) for gear in numbers}) != len(numbers):
        raise _refused("E10039", f"--{kind} has a gear twice", "leave one out")
    return kind, tuple(_filled(inputs, dict(zip(places, gear, strict=True))) for gear in numbers)


def require_count(count: int, most: int) -> None:
    """raises: UsageError"""
    if count < FEWEST:
        raise _refused("E10035", f"{count} gear, and ATC takes {FEWEST} at least", "one shape is no gear: name it alone")
    if count > most:
        raise _refused("E10036", f"{count} gears, and ATC takes {most} at most", "keep 3 or 4: each is compiled on its own")


def _input_shapes(text: str) -> dict[str, Shape]:
    inputs: dict[str, Shape] = {}
    for part in text.split(";"):
        name, colon, dims = part.rpartition(":")  # ATC looks for the last one: a name may hold some
        if not colon or not name or name in inputs:
            what = "occurs twice" if colon and name else "is no name:dims"
            raise _refused("E10002", f"--input_shape: {printable(part, 80)!r} {what}", "write name:1,3,224,224;other:1,4")
        if "~" in dims:
            raise _refused("E10040", f"input {printable(name, 60)!r} has a range", "gears take -1, a range takes no gears")
        inputs[name] = () if not dims else tuple(-1 if d == "-1" else _number(d, "input_shape") for d in dims.split(","))
    return inputs


def _require_format(kind: str, text: str) -> None:
    if text not in FORMATS:
        raise _refused(
            "E10001", f"--input_format={printable(text, 20)}: for ONNX it is {', '.join(FORMATS)}", "take one of them"
        )
    if kind == DIMS and text != "ND":
        raise UsageError(f"--{DIMS} with --input_format={text}", where=f"--{DIMS}", next="it needs --input_format=ND")
    if kind == IMAGE and text != "NCHW":
        raise UsageError(f"--{IMAGE} with --input_format={text}", where=f"--{IMAGE}", next="it needs NCHW; ND takes --dims")


def _gear_numbers(kind: str, text: str, inputs: Mapping[str, Shape], places: Sequence[tuple[str, int]]) -> list[list[int]]:
    """A number for each place, a gear each."""
    if not places:
        code = {BATCH: "E10031", IMAGE: "E10019", DIMS: "E10040"}[kind]
        raise _refused(code, f"--{kind} is given and no dimension is -1", "write -1 where the gears differ")
    if kind == BATCH:
        wrong = [name for name, axis in places if axis != 0]
        if wrong:
            raise _refused(
                "E10018", f"input {printable(wrong[0], 60)!r}: only axis 0 may be -1 with --{BATCH}", f"use --{DIMS}"
            )
        return [[_number(n, kind)] * len(places) for n in text.split(",")]
    gears = [[_number(n, kind) for n in gear.split(",")] for gear in text.split(";")]
    if kind == IMAGE:
        for name in dict.fromkeys(name for name, _ in places):
            if tuple(axis for axis, dim in enumerate(inputs[name]) if dim == -1) != IMAGE_AXES or len(inputs[name]) != 4:
                raise _refused(
                    "E10019", f"input {printable(name, 60)!r}: H and W are -1 with --{IMAGE}, and no other", f"use --{DIMS}"
                )
        if any(len(gear) != 2 for gear in gears):
            raise _refused("E10020", f"--{IMAGE}: a gear is H,W", "write 224,224;448,448")
        return [[gear[axis - 2] for _, axis in places] for gear in gears]
    for gear in gears:
        if len(gear) != len(places):
            raise _refused(
                "E10003",
                f"--{DIMS}: a gear has {len(gear)} numbers, --input_shape has {len(places)} times -1",
                "one number per -1",
            )
    return gears


def _filled(inputs: Mapping[str, Shape], sizes: Mapping[tuple[str, int], int]) -> dict[str, Shape]:
    return {name: tuple(sizes.get((name, axis), dim) for axis, dim in enumerate(dims)) for name, dims in inputs.items()}


def _number(text: str, option: str) -> int:
    if not _NUMBER.fullmatch(text) or not 1 <= int(text) <= LARGEST:
        code = {"input_shape": "E10002", DIMS: "E10001"}.get(option, "E10003")
        raise _refused(
            code, f"--{option}: {printable(text, 40)!r} is no size", "sizes are whole numbers from 1, without blanks"
        )
    return int(text)


def _refused(code: str, what: str, next: str) -> UsageError:
    return UsageError(f"{what} (ATC: {code})", where="gears", next=next)
