"""The parts of a graph's golden: inputs as arrays or as the recipe that makes them, outputs as sketches or hashes, steps, Ifs.

Every value that is read is checked before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from porting.checked_json import integer, object_with, shape_of, table, text
from porting.errors import InputError
from porting.feed_values import GENERATOR, symbols
from porting.feeds import Recipe, feeds_hash
from porting.golden_file import INPUT_DTYPES, MAX_ELEMENTS, array_content, array_from, sketch_content, sketch_from, texts_from
from porting.graph_outputs import Difference, Expected, ExpectedArray, compressed, is_exact, misfit
from porting.graph_reference import ILL_CONDITIONED, SLACK, Small
from porting.graph_runs import Part
from porting.numerics.sketch import Sketch, estimate_difference, sketch
from porting.onnx_facts import Conditional
from porting.types import TensorSpec
from porting.verdict import printable

SMALL_BYTES = 64 << 10  # of all inputs of a case; above, generated ones are kept as their recipe
KEPT_ELEMENTS = 2048  # of a float output that is kept whole: about as many bytes as five sketches
MOST = 1 << 20  # of runs, steps, Ifs: far above any model, and little enough to refuse a file that means harm


@dataclass(frozen=True, eq=False)
class ExpectedSketch:
    """A float output of which a sketch is kept, and one of asinh(x / scale) where its small elements are looked at."""

    kept: Sketch
    small: Sketch | None = None
    exact: bool = False

    def compare(self, name: str, array: np.ndarray) -> Difference:
        problem = misfit(self.kept.shape, self.kept.dtype, array)
        if problem:
            return Difference(math.inf, name, problem)
        return _estimated(name, self.kept, array)

    def compare_small(self, name: str, array: np.ndarray, scale: float) -> Difference:
        assert self.small is not None
        return _estimated(name, self.small, compressed(array, scale))


def _estimated(name: str, kept: Sketch, array: np.ndarray) -> Difference:
    found = estimate_difference(kept, array)
    return Difference(found.rel_l2_high, name, least=found.rel_l2_low)


@dataclass(frozen=True)
class ExpectedHash:
    """An output that has to be equal bit for bit: integers, texts, and what is empty or nowhere finite.

    unstable: elements that roundings change; where there are some, a difference decides nothing
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    unstable: int = 0
    exact: bool = True

    def compare(self, name: str, array: np.ndarray) -> Difference:
        problem = misfit(self.shape, self.dtype, array)
        if problem:
            return Difference(math.inf, name, problem)
        if feeds_hash(array) == self.sha256:
            return Difference(0, name)
        if self.unstable:
            why = f"roundings alone change {self.unstable} elements of this output, and a golden does not say which; validate against the source"
            return Difference(1, name, undecided=why)
        return Difference(1, name)

    def compare_small(self, name: str, array: np.ndarray, scale: float) -> Difference:
        raise TypeError(f"{name} is exact, and has no small elements")


def kept_of(expected: Expected, small: Small | None) -> Expected:
    if not isinstance(expected, ExpectedArray):
        return expected
    array = expected.array
    if not expected.exact and array.size and np.isfinite(array.astype(np.float64)).any():
        if array.size <= KEPT_ELEMENTS and str(array.dtype) in INPUT_DTYPES:
            return expected
        return ExpectedSketch(sketch(array), None if small is None else sketch(compressed(array, small.scale)))
    unstable = 0 if expected.unstable is None else int(expected.unstable.sum())
    return ExpectedHash(str(array.dtype), array.shape, feeds_hash(array), unstable)


# --- writing ----------------------------------------------------------------------------------------------------------


def case_content(feeds: Mapping[str, Any], recipe: Recipe | None) -> dict[str, Any]:
    plain = all(isinstance(v, np.ndarray) and str(v.dtype) in INPUT_DTYPES for v in feeds.values())
    if recipe is None or (plain and sum(v.nbytes for v in feeds.values()) <= SMALL_BYTES):
        return {"arrays": {name: array_content(value, name) for name, value in feeds.items()}, "recipe": None}
    return {
        "arrays": None,
        "recipe": {
            "generator": GENERATOR,
            "specs": [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in recipe.specs],
            "sizes": dict(recipe.sizes),
            "seed": recipe.seed,
            "ranges": {name: list(bounds) for name, bounds in recipe.ranges.items()},
            "choices": dict(recipe.choices),
            "amplitude": repr(float(recipe.amplitude)),
            "sha256": {name: feeds_hash(value) for name, value in feeds.items()},
        },
    }


def output_content(expected: Expected, noise: float | None, small: Small | None) -> dict[str, Any]:
    kept = expected if isinstance(expected, ExpectedSketch) else None
    exact = expected if isinstance(expected, ExpectedHash) else None
    array = expected.array if isinstance(expected, ExpectedArray) else None
    of_small = kept.small if kept is not None else None
    return {
        "array": None if array is None else array_content(array, "an output"),
        "sketch": None if kept is None else sketch_content(kept.kept),
        "exact": None
        if exact is None
        else {"dtype": exact.dtype, "shape": list(exact.shape), "sha256": exact.sha256, "unstable": exact.unstable},
        "noise": None if noise is None else repr(float(noise)),
        "small": None
        if small is None
        else {
            "scale": repr(small.scale),
            "noise": repr(small.noise),
            "sketch": None if of_small is None else sketch_content(of_small),
        },
    }


def conditional_content(one: Conditional) -> dict[str, Any]:
    return {**asdict(one), "parents": [list(parent) for parent in one.parents]}


# --- reading ----------------------------------------------------------------------------------------------------------


def list_of(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > MOST:
        raise InputError(f"expected a list, got {type(value).__name__}", where=where)
    return value


def truth(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"expected true or false, got {type(value).__name__}", where=where)
    return value


def _number(value: Any, where: str) -> float:
    """A decimal number from 0 up, inf included."""
    try:
        number = float(text(value, where))
    except ValueError as error:
        raise InputError(f"unreadable number: {error}", where=where) from error
    if not number >= 0:
        raise InputError(f"{number} is no size", where=where)
    return number


def case_from(value: Any, where: str) -> tuple[dict[str, Any], Recipe | None]:
    value = object_with(value, ("arrays", "recipe"), where)
    if (value["arrays"] is None) == (value["recipe"] is None):
        raise InputError("expected either arrays or a recipe", where=where)
    if value["arrays"] is not None:
        arrays = table(value["arrays"], where)
        return {name: array_from(a, f"{where}, input {printable(name, 60)}") for name, a in arrays.items()}, None
    recipe, wanted = _recipe_from(value["recipe"], where)
    feeds = recipe.feeds()
    for name in {*wanted, *feeds}:
        if name not in wanted or name not in feeds or feeds_hash(feeds[name]) != wanted[name]:
            raise InputError(
                f"the generated input {printable(name, 60)!r} is not what it was when this was recorded",
                where=where,
                next="use the versions of porting and numpy that recorded it, or record it again",
            )
    return feeds, recipe


def _recipe_from(value: Any, where: str) -> tuple[Recipe, dict[str, str]]:
    keys = ("generator", "specs", "sizes", "seed", "ranges", "choices", "amplitude", "sha256")
    value = object_with(value, keys, where)
    if value["generator"] != GENERATOR:
        raise InputError(
            f"inputs made by {printable(str(value['generator']), 60)!r}, and this is {GENERATOR!r}",
            where=where,
            next="use the version of porting that recorded it, or record it again",
        )
    specs = [_spec_from(s, where) for s in list_of(value["specs"], where)]
    sizes = {name: integer(n, 0, MOST * 64, where) for name, n in table(value["sizes"], where).items()}
    ranges = {}
    for name, bounds in table(value["ranges"], where).items():
        low, high = (integer(n, -(1 << 63), (1 << 63) - 1, where) for n in pair_of(bounds, 2, where))
        if low >= high:
            raise InputError(f"an empty range, {low} to {high}", where=where)
        ranges[name] = (low, high)
    choices = {name: integer(n, 1, 1 << 31, where) for name, n in table(value["choices"], where).items()}
    seed = integer(value["seed"], 0, 1 << 31, where)
    recipe = Recipe(tuple(specs), sizes, seed, ranges, choices, _number(value["amplitude"], where))
    for spec in specs:
        shape = [sizes.get(s, -1) if isinstance(s, str) else s for s in symbols(spec)]
        if min(shape, default=0) < 0 or math.prod(shape) > MOST * 64:
            raise InputError(f"an input of shape {shape}", where=where)
    return recipe, texts_from(value["sha256"], where)


def _spec_from(value: Any, where: str) -> TensorSpec:
    value = object_with(value, ("name", "dtype", "shape"), where)
    inner = text(value["dtype"], where).removeprefix("sequence(").removesuffix(")")
    if inner not in (*INPUT_DTYPES, "string"):
        raise InputError(f"an input of dtype {printable(inner, 60)!r}", where=where)
    dims = [d if d is None or isinstance(d, str) else integer(d, 0, MOST * 64, where) for d in list_of(value["shape"], where)]
    return TensorSpec(text(value["name"], where), value["dtype"], tuple(dims))


def pair_of(value: Any, count: int, where: str) -> list[Any]:
    if len(list_of(value, where)) != count:
        raise InputError(f"expected {count} values, got {len(value)}", where=where)
    return value


def part_from(step: Mapping[str, Any], cases: Mapping[str, Mapping[str, Any]], where: str) -> Part:
    case = text(step["case"], where)
    if case not in cases:
        raise InputError(f"no case {printable(case, 60)!r}", where=where)
    cut = {}
    for name, place in table(step["cut"], where).items():
        shape = np.shape(cases[case].get(name, ()))
        axis = integer(pair_of(place, 3, where)[0], 0, len(shape) - 1, where)
        start = integer(place[1], 0, shape[axis], where)
        cut[name] = (axis, start, integer(place[2], start, shape[axis], where))
    return Part(case, tuple(text(n, where) for n in list_of(step["without"], where)), cut)


def output_from(value: Any, where: str) -> tuple[Expected, float | None, Small | None]:
    value = object_with(value, ("array", "sketch", "exact", "noise", "small"), where)
    noise = None if value["noise"] is None else _number(value["noise"], where)
    if sum(value[kind] is not None for kind in ("array", "sketch", "exact")) != 1:
        raise InputError("expected an array, a sketch or a hash", where=where)
    small, of_small = (None, None) if value["small"] is None else _small_from(value["small"], where)
    if (of_small is not None) != (small is not None and value["sketch"] is not None):
        raise InputError("small elements are sketched where the output is, and nowhere else", where=where)
    if value["array"] is not None:
        array = array_from(value["array"], where)
        if array.size > KEPT_ELEMENTS or is_exact(array.dtype) or not np.isfinite(array).any():
            raise InputError(f"an output of {array.size} elements of {array.dtype} is not kept whole", where=where)
        return ExpectedArray(array), noise, small
    if value["sketch"] is not None:
        kept = sketch_from(value["sketch"], where)
        if of_small is not None and of_small.shape != kept.shape:
            raise InputError(f"sketches of {list(kept.shape)} and of {list(of_small.shape)}", where=where)
        return ExpectedSketch(kept, of_small), noise, small
    if small is not None:
        raise InputError("small elements of an output that is exact", where=where)
    exact = object_with(value["exact"], ("dtype", "shape", "sha256", "unstable"), where)
    shape = shape_of(exact["shape"], MAX_ELEMENTS, where)
    unstable = integer(exact["unstable"], 0, MAX_ELEMENTS, where)
    return ExpectedHash(text(exact["dtype"], where), shape, text(exact["sha256"], where), unstable), noise, None


def _small_from(value: Any, where: str) -> tuple[Small, Sketch | None]:
    value = object_with(value, ("scale", "noise", "sketch"), where)
    small = Small(_number(value["scale"], where), _number(value["noise"], where))
    if not 0 < small.scale < math.inf or SLACK * small.noise > ILL_CONDITIONED:
        raise InputError(f"a scale of {small.scale} with noise of {small.noise}", where=where)
    return small, None if value["sketch"] is None else sketch_from(value["sketch"], where)


def conditional_from(value: Any) -> Conditional:
    where = "content.ifs"
    value = object_with(value, ("name", "parents", "looped", "valued"), where)
    parents = [pair_of(p, 2, where) for p in list_of(value["parents"], where)]
    return Conditional(
        text(value["name"], where),
        tuple((text(name, where), truth(branch, where)) for name, branch in parents),
        truth(value["looped"], where),
        truth(value["valued"], where),
    )
