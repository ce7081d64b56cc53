"""Cases to validate a model on, when nobody gave any: sizes for its free dimensions, tried on the original until enough of them run.

A model does not say what it takes: "unk__330" may be a batch, a signal may have to be 512 samples. So sizes are guessed by name and
place, and the original decides.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from porting.dtypes import dtype_of
from porting.errors import InputError, RuntimeFailed, nearest
from porting.feed_checks import LYING
from porting.feed_values import CHOICES, GENERATOR, feeds_for, kind_of, shape_with, symbols
from porting.npz import read_npz
from porting.run import feeds_from_arrays
from porting.types import TensorSpec
from porting.verdict import printable

DIVISORS = (1, 9)  # integers that may be divided by, where 0 among them is refused
ATTEMPTS = 120  # runs of the original, most of which fail at once
AMPLITUDES = (1.0, 0.1, 10.0, 0.01)  # of floats of unknown meaning, until an output is not the same in every case
# Sizes to try, by what a dimension seems to be. No two of a list are equal to another list's first, so that swapped axes show.
SIZES: Mapping[str, tuple[int, ...]] = {
    "batch": (2, 1, 3, 4),
    "length": (16, 7, 33, 64, 128, 1, 256, 512),
    "samples": (1024, 512, 576, 1536, 256, 4000, 16000, 32, 64),
    "height": (64, 96, 32, 48, 160, 224, 320),
    "width": (96, 64, 128, 160, 224, 320),
    "channels": (3, 1, 4),
    "depth": (16, 24, 32),
    "other": (5, 16, 8, 1, 2, 3, 32, 64, 128),
}
_NAMED = (
    ("batch", r"batch|bsz?|n"),
    ("height", r"height|h|rows"),
    ("width", r"width|w|cols|columns"),
    ("channels", r"channels?|c"),
    ("samples", r"samples|audio|wav|waveform"),
    ("length", r"seq|sequence|len|length|time|t|l|s|tokens?|frames?|steps?|words?|chars?|seqlen|src|tgt|past"),
)


@dataclass(frozen=True)
class Recipe:
    """How generated inputs are made: the arguments of `feeds_for`, so that a golden can keep them in place of large arrays."""

    specs: tuple[TensorSpec, ...]
    sizes: Mapping[str, int]
    seed: int
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    choices: Mapping[str, int] = field(default_factory=dict)
    amplitude: float = 1.0

    def feeds(self) -> dict[str, Any]:
        return feeds_for(self.specs, self.sizes, self.seed, self.ranges, self.choices, self.amplitude)


@dataclass(frozen=True)
class Cases:
    """Inputs to validate on.

    feeds:     case name -> input name -> array
    recipes:   case name -> how its inputs are made, of generated ones
    only:      what of the free dimensions and choices ran with one value only, for the report
    """

    feeds: Mapping[str, Mapping[str, Any]]
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    only: Sequence[str] = ()

    def sizes(self) -> dict[str, dict[str, int]]:
        """Case name -> symbol -> size, of generated cases."""
        return {name: dict(recipe.sizes) for name, recipe in self.recipes.items()}


def candidate_sizes(specs: Sequence[TensorSpec]) -> Iterator[dict[str, int]]:
    """Assignments of sizes to the free dimensions, likeliest first. Dimensions that seem to be of one kind get one size."""
    roles = roles_of(specs)
    kinds = [role for role in SIZES if role in roles.values()]
    first = {role: SIZES[role][0] for role in kinds}
    seen = set()
    for chosen in (first, *_varied(first, kinds), *_pairs(first, kinds)):
        sizes = {symbol: chosen[role] for symbol, role in roles.items()}
        if tuple(sizes.items()) not in seen:
            seen.add(tuple(sizes.items()))
            yield sizes


def _varied(first: Mapping[str, int], kinds: Sequence[str]) -> Iterator[dict[str, int]]:
    for place in range(1, max((len(SIZES[role]) for role in kinds), default=0)):
        for role in kinds:
            if place < len(SIZES[role]):
                yield {**first, role: SIZES[role][place]}


def _pairs(first: Mapping[str, int], kinds: Sequence[str]) -> Iterator[dict[str, int]]:
    """Two kinds away from their likeliest: a signal of 512 samples and a batch of 1."""
    for i, a in enumerate(kinds):
        for b in kinds[i + 1 :]:
            yield from ({**first, a: x, b: y} for x in SIZES[a][1:] for y in SIZES[b][1:])


def roles_of(specs: Sequence[TensorSpec]) -> dict[str, str]:
    """Symbol -> what it seems to be, a key of SIZES: by its name, else by its place in the first input that has it."""
    roles: dict[str, str] = {}
    for spec in specs:
        for axis, symbol in enumerate(symbols(spec)):
            if isinstance(symbol, str) and symbol not in roles:
                roles[symbol] = _role(spec, axis, symbol)
    return roles


def _role(spec: TensorSpec, axis: int, symbol: str) -> str:
    long = kind_of(spec) == "signal" and axis == len(spec.shape) - 1 and len(spec.shape) < 3
    own = symbol if symbol in spec.shape else ""  # a name made of the input's says nothing about the axis
    words = set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", own).lower()))
    for role, pattern in _NAMED:
        if any(re.fullmatch(pattern, word) for word in words):
            return "samples" if role == "length" and long else role
    rank, fixed_last = len(spec.shape), spec.shape[-1:] in ((1,), (3,), (4,))
    if kind_of(spec) == "state" and rank == 3:  # layers, batch, hidden
        return ("other", "batch", "other")[axis]
    if axis == 0:
        return "length" if rank == 1 and kind_of(spec) != "lengths" else "batch"
    if rank == 4:
        return ("batch", "height", "width", "channels")[axis] if fixed_last else ("batch", "channels", "height", "width")[axis]
    if rank == 5:
        return ("batch", "channels", "depth", "height", "width")[axis]
    return "samples" if long else "length" if rank <= 3 else "other"


def find_cases(
    specs: Sequence[TensorSpec],
    run: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    *,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    wanted: int = 4,
) -> Cases:
    """Generated inputs that the original takes: each free dimension in two sizes where two run, several seeds, both sample rates.

    run:    the original, feeds -> outputs; InputError or RuntimeFailed mean that it does not take the feeds
    ranges: what integer inputs may hold, where the graph states it or it is likely
    wanted: cases at least
    raises: InputError when nothing that was tried runs, with what the original said
    """
    search = _Search(tuple(specs), run, dict(ranges or {}))
    base = search.first()
    found, only = [base], []
    for what, others in (*search.other_sizes(base), *search.other_rates(base)):
        other = next((r for r in others if search.runs(r)), None)
        if other is not None and other not in found:
            found.append(other if other.choices != base.choices else search.reseeded(other, len(found)))
        elif other is None and what:
            only.append(what)
    shapes = len(found)
    while len(found) < wanted:
        found.append(search.reseeded(found[len(found) % shapes], len(found)))
    for amplitude in AMPLITUDES[1:]:
        if not search.says_nothing(found):
            break
        louder = replace(base, amplitude=amplitude, seed=len(found))
        found += [louder] if search.runs(louder) else []
    named = {f"generated{i}": recipe for i, recipe in enumerate(found)}
    return Cases({name: recipe.feeds() for name, recipe in named.items()}, named, tuple(only))


class _Search:
    """What the original takes, each recipe tried once."""

    def __init__(
        self,
        specs: tuple[TensorSpec, ...],
        run: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        ranges: Mapping[str, tuple[int, int]],
    ) -> None:
        self.specs, self.run, self.ranges = specs, run, ranges
        self.roles = roles_of(specs)
        self.tried: dict[
            str, dict[str, Any] | None
        ] = {}  # recipe -> output -> its value where it is one everywhere; None: refused
        self.last = ""

    def first(self) -> Recipe:
        """The likeliest recipe that runs: sizes outermost, since they fail most; for each the choices, falling. raises: InputError"""
        divisors = {s.name: DIVISORS for s in self.specs if kind_of(s) == "integers" and s.name not in self.ranges}
        attempts = [self.ranges, *([{}] if self.ranges else []), *([{**self.ranges, **divisors}] if divisors else [])]
        for ranges in attempts:
            free = {s.name: CHOICES[kind_of(s)] for s in self.specs if kind_of(s) in CHOICES and s.name not in ranges}
            steps = max((len(v) for v in free.values()), default=1)
            until = len(self.tried) + ATTEMPTS
            for sizes in candidate_sizes(self.specs):
                for step in range(steps):
                    choices = {name: values[min(step, len(values) - 1)] for name, values in free.items()}
                    recipe = Recipe(self.specs, sizes, 0, ranges, choices)
                    if self.runs(recipe):
                        return recipe
                if len(self.tried) >= until:
                    break
        shown = printable(", ".join(str(s) for s in self.specs), 300)
        raise InputError(
            f"no generated input fits this model ({len(self.tried)} tried for {shown}); the last was refused: {self.last}",
            where="inputs for validation",
            next="give --inputs x.npz, with an array for each input",
        )

    def runs(self, recipe: Recipe) -> bool:
        key = _key(recipe)
        if key not in self.tried:
            try:
                outputs = self.run(recipe.feeds())
                self.tried[key] = {name: _one_value(value) for name, value in outputs.items()}
            except (InputError, RuntimeFailed) as error:
                self.last = printable(error.what, 400)
                self.tried[key] = None
        return self.tried[key] is not None

    def reseeded(self, recipe: Recipe, seed: int) -> Recipe:
        """Other values, where the original takes them."""
        other = replace(recipe, seed=seed)
        return other if self.runs(other) else recipe

    def other_sizes(self, base: Recipe) -> Iterator[tuple[str, Iterator[Recipe]]]:
        """For each free dimension what to say when it has one size only, and the others to try: first with all of its kind, then alone."""
        for symbol, role in self.roles.items():
            kin = [s for s, r in self.roles.items() if r == role]
            others = [n for n in SIZES[role] if n != base.sizes[symbol]]
            tried = [{**base.sizes, **dict.fromkeys(kin, n)} for n in others] + [{**base.sizes, symbol: n} for n in others]
            yield f"{symbol} = {base.sizes[symbol]}", (replace(base, sizes=sizes) for sizes in tried)
            if len(kin) > 1:  # and apart from its kind, so that a mix-up of both shows; most models refuse that
                yield "", (replace(base, sizes={**base.sizes, symbol: n}) for n in others[:2])

    def other_rates(self, base: Recipe) -> Iterator[tuple[str, Iterator[Recipe]]]:
        """The same for sample rates: with the sizes of `base`, or with half of each long one, as half the rate has."""
        halves = {s: n // 2 for s, n in base.sizes.items() if self.roles[s] in ("samples", "length") and n > 1}
        for name, value in base.choices.items():
            if kind_of(next(spec for spec in self.specs if spec.name == name)) == "rate":
                choices = [{**base.choices, name: n} for n in CHOICES["rate"] if n != value]
                sizes = [base.sizes, {**base.sizes, **halves}]
                yield f"{name} = {value}", (replace(base, choices=c, sizes=s) for c in choices for s in sizes)

    def says_nothing(self, recipes: Sequence[Recipe]) -> bool:
        """Whether some output is one and the same value in all of these."""
        seen = [found for found in (self.tried[_key(recipe)] for recipe in recipes) if found is not None]
        return any(value is not None and all(s.get(name) == value for s in seen) for name, value in seen[0].items())


def _key(recipe: Recipe) -> str:
    return repr(
        (sorted(recipe.sizes.items()), recipe.seed, sorted(recipe.choices.items()), recipe.amplitude, bool(recipe.ranges))
    )


def _one_value(output: Any) -> Any:
    """The value that an output has everywhere, None when it varies."""
    array = np.asarray(output) if not isinstance(output, (list, tuple)) else None
    if array is None or not array.size:
        return None
    first = array.reshape(-1)[0]
    return first.item() if (array == first).all() else None


# --- the user's own ---------------------------------------------------------------------------------------------------


def cases_from_npz(paths: Sequence[str | Path], specs: Sequence[TensorSpec]) -> Cases:
    """The user's cases, one file each: an array for every input, by name; the only input may come unnamed, as numpy.savez(f, x) writes it.

    raises: InputError naming the array that is missing, unknown, or of another dtype or shape
    """
    cases = {}
    for path in map(Path, paths):
        arrays = read_npz(path, text=True)
        if set(arrays) == {"arr_0"} and len(specs) == 1:
            arrays = {specs[0].name: arrays["arr_0"]}
        feeds = feeds_from_arrays(specs, arrays, str(path))
        require_feeds(feeds, specs, str(path))
        cases[path.stem if path.stem not in cases else str(path)] = feeds
    if not cases:
        raise InputError("no file with inputs", where="--inputs", next="give --inputs x.npz, with an array for each input")
    return Cases(cases)


def require_feeds(feeds: Mapping[str, Any], specs: Sequence[TensorSpec], where: str) -> None:
    """Every input is there, with its own dtype and shape, and nothing else. Symbols that inputs share have one size. raises: InputError"""
    known = [spec.name for spec in specs]
    for name in feeds:
        if name not in known:
            raise InputError(f"the model has no input {printable(name)!r}", where=where, next=nearest(name, known))
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if spec.name not in feeds:
            raise InputError(
                f"input {printable(str(spec))} is missing", where=where, next=f"the model's inputs: {', '.join(known)}"
            )
        for array in feeds[spec.name] if spec.dtype.startswith("sequence(") else [feeds[spec.name]]:
            _require_fit(np.asarray(array), spec, sizes, where)


def _require_fit(array: np.ndarray, spec: TensorSpec, sizes: dict[str, tuple[int, str]], where: str) -> None:
    wanted = spec.dtype.removeprefix("sequence(").removesuffix(")")
    right = array.dtype.kind in "OU" if wanted == "string" else array.dtype == dtype_of(wanted)
    if not right or array.ndim != len(spec.shape):
        raise InputError(
            f"input does not fit: expected {printable(str(spec))}, got {array.dtype}{list(array.shape)}",
            where=where,
            next="cast or reshape it; nothing is converted silently",
        )
    for axis, (symbol, size) in enumerate(zip(symbols(spec), array.shape, strict=True)):
        known, by = (symbol, "the model") if isinstance(symbol, int) else sizes.setdefault(symbol, (size, spec.name))
        if known != size:
            named = f" ({printable(symbol)})" if isinstance(symbol, str) else ""
            raise InputError(
                f"input {printable(spec.name)!r} has {size} in dimension {axis}{named}, where {printable(by)} has {known}",
                where=where,
                next=f"give arrays of one size there; {LYING.format(symbol=printable(symbol))}"
                if isinstance(symbol, str)
                else "",
            )


def feeds_hash(array: Any) -> str:
    """sha256 of an input's dtype, shape and bytes, by which a golden knows that it was made again as it was."""
    digest = hashlib.sha256()
    for part in array if isinstance(array, list) else [array]:
        part = np.asarray(part)
        digest.update(f"{part.dtype}{part.shape}".encode())
        digest.update(
            "\0".join(map(str, part.ravel())).encode() if part.dtype.kind in "OU" else np.ascontiguousarray(part).tobytes()
        )
    return digest.hexdigest()


__all__ = [
    "GENERATOR",
    "Cases",
    "Recipe",
    "candidate_sizes",
    "cases_from_npz",
    "feeds_for",
    "feeds_hash",
    "find_cases",
    "require_feeds",
    "shape_with",
]
