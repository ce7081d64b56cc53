"""Values for one input of a model, made from nothing but its name, dtype and shape: deterministic, and within what such an input may be.

`GENERATOR` names this code in goldens, beside a hash of what it made: a change of a value here, or of numpy's streams (NEP 19), is seen.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from porting.dtypes import dtype_of
from porting.errors import InputError
from porting.types import TensorSpec

GENERATOR = "porting.feeds/1"
RATES = (16000, 8000)  # of speech models, in Hz; the first is tried first
IDS = (30000, 4000, 1000, 256, 100, 30, 8, 2)  # how many ids to draw from: the size of a vocabulary is not in an input's shape
BYTES = (256, 128, 64, 8)  # as IDS
INTEGERS = (8, 2)  # as IDS, for integers of unknown meaning
WORDS = ("the", "harbour", "was", "quiet", "before", "dawn", "2026", "Paris", "naïve", "人工智能")
STROKES = 24  # and blocks in a picture
LONG = 200  # samples from which on a last axis of floats is taken for a signal in time
CHANNELS = (1, 3, 4)

# kinds whose draw can be too large for the model, and the numbers to try in turn
CHOICES: Mapping[str, tuple[int, ...]] = {"ids": IDS, "bytes": BYTES, "integers": INTEGERS, "rate": RATES}


def kind_of(spec: TensorSpec) -> str:
    """What an input seems to hold.

    returns: "sequence", "text", "rate", "mask", "lengths", "segments", "positions", "state", "ids", "bytes", "integers", "truth", "image",
             "signal" or "numbers"
    """
    if spec.dtype.startswith("sequence("):
        return "sequence"
    if spec.dtype == "string":
        return "text"
    words = _words(spec.name)
    integral = dtype_of(spec.dtype).kind in "iu"
    if words & {"sr", "rate", "samplerate"} and len(spec.shape) <= 1:
        return "rate"
    if "mask" in words or words >= {"attention", "mask"}:
        return "mask"
    if words & {"length", "lengths", "len", "lens"} and (integral or len(spec.shape) <= 1):
        return "lengths"
    if dtype_of(spec.dtype) == np.bool_:
        return "truth"
    if integral:
        if words & {"segment", "segments"} or words >= {"token", "type"}:
            return "segments"
        if words & {"position", "positions", "pos"}:
            return "positions"
        if words & {"byte", "bytes"}:
            return "bytes"
        if words & {"id", "ids", "token", "tokens"} or (len(spec.shape) >= 2 and not _pictorial(spec)):
            return "ids"
        return "image" if _pictorial(spec) else "integers"
    if words & {"state", "hidden", "cell", "h", "c", "h0", "c0", "hx", "cx", "past", "cache", "mem", "memory"}:
        return "state"
    if _pictorial(spec) or words & {"image", "images", "pixel", "pixels", "img"}:
        return "image"
    last = spec.shape[-1] if spec.shape else 1
    if len(spec.shape) <= 3 and (not isinstance(last, int) or last >= LONG) and len(spec.shape) >= 1:
        return "signal"
    return "numbers"


def feeds_for(
    specs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    seed: int,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    choices: Mapping[str, int] | None = None,
    amplitude: float = 1.0,
) -> dict[str, Any]:
    """Values for every input.

    sizes:   symbol -> size, see `symbols`
    seed:    each gives other values; with an even one, state is zero
    ranges:  input name -> (low, high), low <= value < high, of inputs that hold integers, where the graph states it
    choices: input name -> sample rate, or how many integers to draw from, for inputs whose kind is in CHOICES
    amplitude: factor of floats of unknown meaning: what saturates every output shows nothing
    returns: input name -> array; a list of arrays for a sequence
    """
    shapes = {spec.name: shape_with(spec, sizes) for spec in specs}
    length = _length(specs, shapes)
    feeds = {}
    for spec in specs:
        key = hashlib.sha256(f"{seed}\0{spec.name}".encode()).digest()
        draw = _Draw(np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little"))), seed, length, amplitude)
        kind = kind_of(spec)
        low, high = (ranges or {}).get(spec.name, (0, (choices or {}).get(spec.name, CHOICES.get(kind, (2,))[0])))
        if spec.name in (ranges or {}) and kind in ("numbers", "signal", "state", "integers", "image"):
            kind = "ids"  # a graph that looks something up by it knows better than its name; some exporters take ids as floats
        feeds[spec.name] = draw.value(kind, spec, shapes[spec.name], low, high)
    return feeds


def symbols(spec: TensorSpec) -> tuple[int | str, ...]:
    """The shape with a name for every free dimension: its own where that says something, else made of the input's name and the axis."""
    return tuple(d if isinstance(d, int) else _symbol(spec.name, axis, d) for axis, d in enumerate(spec.shape))


def shape_with(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape with its symbols replaced. raises: InputError for a symbol without a size"""
    missing = [s for s in symbols(spec) if isinstance(s, str) and s not in sizes]
    if missing:
        raise InputError(f"no size for {missing[0]!r} of {spec}", where="inputs for validation")
    return tuple(sizes[s] if isinstance(s, str) else s for s in symbols(spec))


def _symbol(name: str, axis: int, dim: str | None) -> str:
    return dim if dim and dim != "?" else f"{name}.{axis}"  # some exporters write "?" for every unknown


def _words(name: str) -> set[str]:
    """`encoder.attentionMask:0` -> {"encoder", "attention", "mask", "0"}"""
    return set(re.findall(r"[a-z]+\d?|\d+", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()))


def _pictorial(spec: TensorSpec) -> bool:
    return len(spec.shape) == 4 and (spec.shape[1] in CHANNELS or spec.shape[3] in CHANNELS)


def _length(specs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Positions that lengths and masks may count: the last axis of masks and ids, else the second of a signal, else of numbers."""
    kinds = {spec.name: kind_of(spec) for spec in specs}
    for wanted, axis in ((("mask", "ids"), -1), (("signal",), 1), (("numbers", "image"), 1)):
        found = [shapes[name][axis] for name, kind in kinds.items() if kind in wanted and len(shapes[name]) > 1]
        if found:
            return max(1, min(found))
    return 1


class _Draw:
    """One input's values."""

    def __init__(self, rng: np.random.Generator, seed: int, length: int, amplitude: float) -> None:
        self.rng, self.seed, self.length, self.amplitude = rng, seed, length, amplitude

    def value(self, kind: str, spec: TensorSpec, shape: tuple[int, ...], low: int, high: int) -> Any:
        if kind == "sequence":
            element = TensorSpec(spec.name, spec.dtype[len("sequence(") : -1], spec.shape)
            return [self.value(kind_of(element), element, shape, low, high) for _ in range(3)]
        made: dict[str, Callable[[tuple[int, ...]], Any]] = {
            "text": lambda s: np.asarray(self.rng.choice(np.asarray(WORDS), s), object),
            "rate": lambda s: np.full(s, high),
            "mask": self._mask,
            "lengths": self._lengths,
            "segments": lambda s: np.broadcast_to(np.arange(s[-1] if s else 1) >= max(1, (s[-1] if s else 1) // 2), s),
            "positions": lambda s: np.broadcast_to(np.arange(s[-1] if s else 1), s),
            "state": lambda s: np.zeros(s) if self.seed % 2 == 0 else 0.1 * self.rng.standard_normal(s),
            "ids": lambda s: self.rng.integers(low, high, s),
            "bytes": lambda s: self.rng.integers(low, high, s),
            "integers": lambda s: self.rng.integers(low, high, s),
            "truth": lambda s: self.rng.integers(0, 2, s),
            "image": lambda s: self._image(s, dtype_of(spec.dtype).kind in "iu"),
            "signal": self._signal,
            "numbers": lambda s: self.amplitude * self.rng.standard_normal(s),
        }
        array = made[kind](shape)
        if kind == "text":
            return array
        return np.ascontiguousarray(np.asarray(array).astype(dtype_of(spec.dtype))).reshape(shape)

    def _counts(self, rows: int) -> np.ndarray:
        """Filled positions of each row: the first is full, the others at least half. The same for masks and lengths of one case."""
        shared = np.random.Generator(np.random.PCG64(self.seed))
        counts = shared.integers(-(-self.length // 2), self.length + 1, max(rows, 1))
        counts[0] = self.length
        return counts[:rows]

    def _lengths(self, shape: tuple[int, ...]) -> np.ndarray:
        return (
            np.broadcast_to(self._counts(shape[0]).reshape(-1, *[1] * (len(shape) - 1)), shape)
            if shape
            else np.full((), self.length)
        )

    def _mask(self, shape: tuple[int, ...]) -> np.ndarray:
        """Ones, then zeros, along the last axis: one row of it for each row of the first."""
        if len(shape) < 2:
            return np.ones(shape)
        filled = np.minimum(self._counts(shape[0]), shape[-1]).reshape(-1, *[1] * (len(shape) - 1))
        return np.broadcast_to(np.arange(shape[-1]) < filled, shape)

    def _image(self, shape: tuple[int, ...], integral: bool) -> np.ndarray:
        """A smooth picture with strokes and blocks on it, as print and edges have them, and a little noise; about [-1, 1], or [0, 255] for
        integers."""
        places = np.meshgrid(*[np.linspace(0, 1, n) for n in shape], indexing="ij", sparse=True)
        frequency, phase = self.rng.uniform(0.5, 2.5, (2, len(shape)))
        angle = sum((2 * np.pi * f * x + 3 * p for f, p, x in zip(frequency, phase, places, strict=True)), np.zeros(shape))
        picture = 0.5 * np.sin(angle) + 0.05 * self.rng.standard_normal(shape)
        if len(shape) == 4:
            rows, columns = (1, 2) if shape[3] in CHANNELS and shape[1] not in CHANNELS else (2, 3)
            for image in picture:
                for _ in range(STROKES):
                    corner = self.rng.uniform(0, 0.9, 2) * (shape[rows], shape[columns])
                    size = 1 + self.rng.uniform(0, 1, 2) ** 2 * (0.2 * shape[rows], 0.3 * shape[columns])
                    (top, left), (bottom, right) = corner.astype(int), (corner + size).astype(int) + 1
                    place = (
                        (..., slice(top, bottom), slice(left, right)) if rows == 2 else (slice(top, bottom), slice(left, right))
                    )
                    image[place] = self.rng.choice((-0.95, 0.95))
        picture = self.amplitude * picture
        return np.clip(127.5 + 127.5 * picture, 0, 255).astype(np.uint8) if integral else picture

    def _signal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Along the last axis, below 0.5: three sines and noise, or with an odd seed a voice: harmonics of one pitch that swell and fade, with
        breath. Each row has its own."""
        rows = int(np.prod(shape[:-1], dtype=np.int64))
        time = np.arange(shape[-1]) / RATES[0]
        noise = np.clip(self.rng.standard_normal((rows, shape[-1])), -3, 3)
        phase = self.rng.uniform(0, 2 * np.pi, (rows, 12, 1))
        if self.seed % 2 == 0:
            pitch = self.rng.uniform(80, 1200, (rows, 3, 1))
            return (0.12 * np.sin(2 * np.pi * pitch * time + phase[:, :3]).sum(1) + 0.02 * noise).reshape(shape)
        harmonics = np.arange(1, 13)[:, None]
        voice = (np.sin(2 * np.pi * self.rng.uniform(90, 250, (rows, 1, 1)) * harmonics * time + phase) / harmonics).sum(1)
        swell = 0.5 + 0.5 * np.sin(2 * np.pi * self.rng.uniform(2, 9, (rows, 1)) * time + phase[:, 0])
        return (np.clip(0.2 * voice, -0.4, 0.4) * swell + 0.03 * noise).reshape(shape)
