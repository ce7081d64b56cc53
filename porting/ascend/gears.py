"""The shapes that a port is compiled for.

    fixed               one shape
    dynamic_batch_size  axis 0 of the inputs differs, and nothing else
    dynamic_image_size  height and width of inputs of rank 4 differ (NCHW), and nothing else
    dynamic_dims        anything else; not together with AIPP

A compiled model knows these shapes and no other. A device that is not told which gear to take, takes the largest one and says nothing: so a run
whose shape is no gear is refused (`Gears.gear_for`), and what is smaller has to be padded, or run in pieces, by who knows how.
Each gear is compiled on its own (time, memory of the largest), and none of it takes a graph whose sizes hang on numbers that are fed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from porting.ascend.cuts import advice
from porting.ascend.gear_options import (
    BATCH,
    DIMS,
    FIXED,
    IMAGE,
    IMAGE_AXES,
    LARGEST,
    MOST,
    MOST_ON_950,
    Shape,
    Shapes,
    options_of,
    require_count,
    shapes_of,
)
from porting.ascend.gear_requests import IMAGE_DTYPES, Place, Request, assigned, by_name, checked_places, free_places
from porting.ascend.graph_facts import GraphFacts
from porting.ascend.soc import Soc
from porting.checked_json import integer, object_with, shape_of, table, text
from porting.errors import InputError, UnsupportedModel, UsageError
from porting.gear_runs import gear_of, listed, shown
from porting.types import TensorSpec
from porting.verdict import printable

SUGGESTED_BATCH = 2048  # the largest that the documents suggest
SUGGESTED_GEARS = 4  # of dynamic_dims


@dataclass(frozen=True)
class Gears:
    """
    kind:    "fixed", "dynamic_batch_size", "dynamic_image_size" or "dynamic_dims"
    shapes:  of every input, a gear each, in the order of the options
    options: of ATC, without the dashes: input_shape, input_format, dynamic_*
    """

    kind: str
    shapes: Shapes
    options: Mapping[str, str]

    def gear_for(self, feeds: Mapping[str, Any]) -> Mapping[str, Shape]:
        """The gear of a run.

        feeds:  what has a shape (arrays), or shapes, by the name of the input
        raises: InputError naming the gears, when the run is none of them
        """
        got = {name: tuple(getattr(value, "shape", value)) for name, value in feeds.items()}
        names = self.shapes[0].keys()
        if got.keys() != names:
            differ = sorted(map(str, got.keys() ^ names))
            raise InputError(f"the gears have inputs {', '.join(names)}: {printable(differ[0], 60)!r} differs", where="gears")
        return gear_of(self.shapes, got)

    def describe(self) -> str:
        """The gears in words, the first few of many."""
        return listed(self.shapes)

    @property
    def largest(self) -> Mapping[str, Shape]:
        """The one that fills the most memory of inputs: what a device takes that is told nothing."""
        return max(self.shapes, key=lambda gear: sum(math.prod(shape) for shape in gear.values()))

    def sizes_of(self, inputs: Sequence[TensorSpec]) -> dict[str, dict[str, int]]:
        """Name of a gear -> named dimension -> size, as `memory_bound` takes them."""
        named = [place for place in free_places(inputs) if place.symbol is not None]
        found = [{str(p.symbol): gear[p.input][p.axis] for p in named} for gear in self.shapes]
        return {",".join(f"{name}={size}" for name, size in sizes.items()) or FIXED: sizes for sizes in found}

    def advice(self) -> tuple[str, ...]:
        """What the documents suggest, and these gears do not follow."""
        found = []
        if self.kind == BATCH and any(int(n) > SUGGESTED_BATCH for n in self.options[BATCH].split(",")):
            found.append(f"the documents suggest batches of at most {SUGGESTED_BATCH}")
        if self.kind == DIMS and len(self.shapes) > SUGGESTED_GEARS:
            found.append(
                f"the documents suggest 3 or 4 gears; {len(self.shapes)} take about {len(self.shapes)} times as long to compile"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """For port.json."""
        shapes = [{name: list(shape) for name, shape in gear.items()} for gear in self.shapes]
        return {"kind": self.kind, "shapes": shapes, "options": dict(self.options)}


def from_json(value: Any, where: str = "port.json: gears") -> Gears:
    """Gears out of port.json. raises: InputError for what is not exactly that, or whose options mean other shapes"""
    fields = object_with(value, ("kind", "shapes", "options"), where)
    options = {name: _text(option, where) for name, option in table(fields["options"], where).items()}
    if not isinstance(fields["shapes"], list) or not 1 <= len(fields["shapes"]) <= MOST_ON_950:
        raise InputError(f"expected 1 to {MOST_ON_950} gears", where=where)
    shapes = tuple({name: _json_shape(dims, where) for name, dims in table(gear, where).items()} for gear in fields["shapes"])
    try:
        meant = shapes_of(options)
    except UsageError as error:
        raise InputError(f"the options are none that ATC takes: {error.what}", where=where) from error
    if meant != (text(fields["kind"], where), shapes):
        raise InputError("the options mean other gears than the shapes say", where=where, next="convert again")
    return Gears(fields["kind"], shapes, options)


def _text(value: Any, where: str) -> str:
    """raises: InputError"""
    if not isinstance(value, str):
        raise InputError(f"expected a text, got {type(value).__name__}", where=where)
    return value


def _json_shape(value: Any, where: str) -> Shape:
    for size in value if isinstance(value, list) else ():
        integer(size, 1, LARGEST, where)
    return shape_of(value, 1 << 62, where)


# --- from what the user asked for ---------------------------------------------------------------------------------


def gears_for(
    inputs: Sequence[TensorSpec],
    soc: Soc,
    request: Request | None = None,
    facts: GraphFacts | None = None,
    aipp: Collection[str] = (),
    quantised: bool = False,
) -> Gears:
    """The gears that a user asked for.

    inputs:    of the graph that is compiled, state included
    facts:     of that graph, for sizes that hang on numbers; None where it is known to have none
    aipp:      inputs whose pixels AIPP makes
    quantised: whether the graph holds AMCT's operators
    raises:    UsageError for gears that ATC refuses, that contradict each other or the inputs, or that leave a dimension open;
               InputError for inputs that cannot have gears; UnsupportedModel for a graph that cannot
    """
    request = request or Request()
    places = checked_places(inputs)
    chosen, sizes = assigned(inputs, places, request)
    return _made(inputs, soc, places, sizes, chosen, facts, aipp, quantised)


def gears_of_sizes(
    inputs: Sequence[TensorSpec],
    soc: Soc,
    sizes: Sequence[Mapping[str, int]],
    facts: GraphFacts | None = None,
    aipp: Collection[str] = (),
    quantised: bool = False,
) -> Gears:
    """Gears by name -> size of every free dimension, one mapping each. raises: as gears_for"""
    places = checked_places(inputs)
    return _made(inputs, soc, places, [by_name(places, gear) for gear in sizes], None, facts, aipp, quantised)


# --- judged -------------------------------------------------------------------------------------------------------


def _made(
    inputs: Sequence[TensorSpec],
    soc: Soc,
    places: Sequence[Place],
    sizes: Sequence[Mapping[Place, int]],
    chosen: str | None,
    facts: GraphFacts | None,
    aipp: Collection[str],
    quantised: bool,
) -> Gears:
    most = MOST_ON_950 if soc.family == "950" else MOST
    if len(sizes) != 1:
        require_count(len(sizes), most)
    for gear in sizes:
        _require_whole(places, gear)
    shapes = tuple(_filled(inputs, gear) for gear in sizes)
    seen: list[Mapping[str, Shape]] = []
    for shape in shapes:
        if shape in seen:
            raise UsageError(f"a gear comes twice: {shown(shape)} (ATC: E10039)", where="gears", next="leave one out")
        seen.append(shape)
    kind = FIXED if len(shapes) == 1 else chosen or _fitting(inputs, places, shapes)
    if kind == IMAGE:
        _require_both_free(places, shapes)
    require_gears_possible(kind, facts, aipp, quantised)
    names = [spec.name for spec in inputs]
    return Gears(kind, shapes, options_of(kind, names, shapes, _input_format(kind, inputs, aipp)))


def _require_whole(places: Sequence[Place], gear: Mapping[Place, int]) -> None:
    """Every free dimension has a size, and one name has one size."""
    sizes: dict[str, tuple[Place, int]] = {}
    for place in places:
        if place not in gear:
            called = f" ({printable(place.symbol, 40)})" if place.symbol else ""
            raise UsageError(
                f"axis {place.axis}{called} of input {printable(place.input, 60)!r} is left open",
                where="gears",
                next="give every free dimension a size with --gears or --dims: there is no execution with dynamic shapes here",
            )
        size = gear[place]
        if not 1 <= size <= LARGEST:
            raise UsageError(f"a gear of size {size} at axis {place.axis} of {printable(place.input, 60)!r}", where="gears")
        if place.symbol is not None:
            first, other = sizes.setdefault(place.symbol, (place, size))
            if other != size:
                raise UsageError(
                    f"a gear contradicts itself: {printable(place.symbol, 40)} is {other} in {printable(first.input, 60)}[{first.axis}] "
                    f"and {size} in {printable(place.input, 60)}[{place.axis}]",
                    where="gears",
                    next="the model says by the name that they are equal",
                )


def _filled(inputs: Sequence[TensorSpec], gear: Mapping[Place, int]) -> dict[str, Shape]:
    sizes = {(place.input, place.axis): size for place, size in gear.items()}
    return {
        spec.name: tuple(dim if isinstance(dim, int) else sizes[spec.name, axis] for axis, dim in enumerate(spec.shape))
        for spec in inputs
    }


def _fitting(inputs: Sequence[TensorSpec], places: Sequence[Place], shapes: Shapes) -> str:
    """The narrowest kind that can say the gears: AIPP does not go with dynamic_dims."""
    free = {(place.input, place.axis) for place in places}
    differ = {(p.input, p.axis) for p in places if len({gear[p.input][p.axis] for gear in shapes}) > 1}
    if all(axis == 0 for _, axis in differ) and all(len({gear[name][0] for name, _ in differ}) == 1 for gear in shapes):
        return BATCH
    images = {spec.name for spec in inputs if len(spec.shape) == 4 and spec.dtype in IMAGE_DTYPES}
    named = {name for name, _ in differ}
    if named <= images and all(axis in IMAGE_AXES for _, axis in differ):
        open_both = all((name, axis) in free for name in named for axis in IMAGE_AXES)
        if open_both and all(len({gear[name][2:] for name in named}) == 1 for gear in shapes):
            return IMAGE
    return DIMS


def _require_both_free(places: Sequence[Place], shapes: Shapes) -> None:
    """Height and width are -1 together, where one of them differs: one that the model fixes cannot be."""
    free = {(place.input, place.axis) for place in places}
    for name, axis in free:
        other = sum(IMAGE_AXES) - axis
        differs = axis in IMAGE_AXES and len({gear[name][axis] for gear in shapes}) > 1
        if differs and (name, other) not in free:
            raise UsageError(
                f"axis {other} of input {printable(name, 60)!r} is fixed, and --{IMAGE} leaves height and width both open (ATC: E10019)",
                where="--image-size",
                next="name the one that is free with --gears or --dims",
            )


def require_gears_possible(
    kind: str, facts: GraphFacts | None, aipp: Collection[str] = (), quantised: bool = False, cut: Sequence[str] = ()
) -> None:
    """Refuse gears that a graph cannot have, see `gears_for`.

    cut:    options that cut off what is in the way, where that is known
    raises: UsageError, UnsupportedModel
    """
    if kind == FIXED:
        return
    if kind == DIMS and aipp:
        raise UsageError(
            f"--{DIMS} and --insert_op_conf (AIPP on {printable(', '.join(sorted(aipp)), 60)}) exclude each other",
            where="gears",
            next="let only the batch (--batch) or only height and width (--image-size) differ, or leave AIPP out",
        )
    if quantised:
        raise UsageError(
            "a graph that AMCT quantised takes no gears", where="gears", next="name one shape, or leave it in float"
        )
    makers = [node for node in facts.nodes if node.sized_by_values] if facts is not None else []
    if makers:
        listed = ", ".join(f"{printable(node.name or '?', 60)} ({node.op})" for node in makers[:5])
        raise UnsupportedModel(
            f"gears do not take a graph whose sizes hang on numbers that are fed: {listed}",
            where="gears",
            next=f"{advice(cut) or 'cut these nodes off (--outputs NAME), and run what comes after them on the host'}; or name one shape",
        )


def _input_format(kind: str, inputs: Sequence[TensorSpec], aipp: Collection[str]) -> str:
    """What ATC shall take all inputs for: images where there is one, else nothing in particular."""
    ranks = {len(spec.shape) for spec in inputs if spec.dtype in IMAGE_DTYPES}
    if kind == DIMS:
        return "ND"
    if kind == IMAGE or aipp or 4 in ranks:
        return "NCHW"
    return "NCDHW" if 5 in ranks else "ND"
