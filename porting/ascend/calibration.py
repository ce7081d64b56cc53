"""From which to which number each value of a float32 graph goes, on inputs that the user gives.

A histogram of each value is kept, with bins a power of two wide, around zero, that double when a number does not fit: one pass over the inputs,
and memory that does not grow with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from porting.ascend.activations import runs
from porting.ascend.graph_at_hand import AtHand, at_hand
from porting.ascend.int8_numbers import HIGHEST, LOWEST, Step, step_for
from porting.errors import InputError, nearest
from porting.types import Graph, Program
from porting.verdict import printable

HALF = 1 << 13  # bins on each side of zero: at least 16 to a step of int8, whose range reaches over one side's half or more
SLICE_BYTES = 256 << 20  # of inner values that are in memory at once, beside what the run itself needs; tests lower it
WHERE = "calibration"
MIN_MAX, LEAST_ERROR = "min-max", "least-error"
CLIPS = (MIN_MAX, LEAST_ERROR)
SHRINK = tuple(
    round(1 - 0.01 * n, 2) for n in range(71)
)  # of both ends: AMCT searches in steps of 0.01 too (search_step, its default)

Cases = Sequence[Mapping[str, np.ndarray]]


@dataclass
class Range:
    """What a value holds, over all cases.

    low, high: the least and the largest number; inf and -inf before there is one
    exponent:  bins are 2**exponent wide
    counts:    (2 * HALF,) int64, from -HALF bins to HALF bins
    """

    low: float = math.inf
    high: float = -math.inf
    exponent: int = -200
    counts: np.ndarray = field(default_factory=lambda: np.zeros(2 * HALF, np.int64))

    def add(self, numbers: np.ndarray) -> None:
        """Finite float32 numbers."""
        if not numbers.size:
            return
        low, high = float(numbers.min()), float(numbers.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach(max(-low, high))
        places = np.floor(numbers.reshape(-1).astype(np.float64) * 2.0**-self.exponent).astype(np.int64)
        self.counts += np.bincount(np.clip(places + HALF, 0, 2 * HALF - 1), minlength=2 * HALF)

    def _reach(self, magnitude: float) -> None:
        """Double the bins until a number fits."""
        wanted = math.frexp(magnitude / HALF)[1] if magnitude else self.exponent
        if not self.counts.any():
            self.exponent = max(wanted, self.exponent)
        while self.exponent < wanted:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts[:] = 0
            self.counts[HALF // 2 : HALF // 2 + HALF] = pairs
            self.exponent += 1

    @property
    def centres(self) -> np.ndarray:
        """(2 * HALF,) float64: the middle of each bin."""
        return (np.arange(-HALF, HALF) + 0.5) * 2.0**self.exponent

    def error(self, step: Step) -> float:
        """Sum of squares of what is lost, as the histogram shows it."""
        held = self.counts.nonzero()[0]
        numbers = (held - HALF + 0.5) * 2.0**self.exponent
        q = np.clip(np.rint(numbers / step.size) + step.offset, LOWEST, HIGHEST)
        return float((((q - step.offset) * step.size - numbers) ** 2 * self.counts[held]).sum())

    def clipped(self, step: Step) -> float:
        """Share of the numbers that lie outside of what int8 stands for, by more than half a step."""
        outside = (self.centres < step.lowest - step.size / 2) | (self.centres > step.highest + step.size / 2)
        return float(self.counts[outside].sum() / max(self.counts.sum(), 1))

    def step(self, symmetric: bool, clip: str) -> Step:
        """How these numbers become int8.

        clip: "min-max": none is clipped; "least-error": both ends are moved towards zero together, to where the sum of squares is least
        raises: InputError where no step does
        """
        widest = step_for(self.low, self.high, symmetric)
        if clip == MIN_MAX or self.low == self.high:
            return widest
        steps = [widest]
        for share in SHRINK[1:]:
            try:
                steps.append(step_for(self.low * share, self.high * share, symmetric))
            except InputError:
                break  # smaller ones do not fit either
        return min(steps, key=self.error)


def calibrate(source: Graph | Program | AtHand, cases: Cases, names: Sequence[str]) -> dict[str, Range]:
    """Run a float32 graph on the CPU provider, and look at these values.

    cases: one table per run: input -> array
    names: of values of the main graph, its inputs among them, all float32
    raises: InputError (no cases, feeds that do not fit, NaN or Inf in an input or in one of the values), RuntimeFailed, OutOfResources
    """
    require_calibration(cases)
    if not isinstance(source, AtHand):
        with at_hand(source) as found:
            return calibrate(found, cases, names)
    _require_feeds(source.model, cases)
    ranges = {name: Range() for name in names}
    fed = {value.name for value in source.model.graph.input}
    for case in cases:
        for name in (n for n in names if n in fed):
            ranges[name].add(case[name])
    makers = {output: node for node in source.model.graph.node for output in node.output}
    inner = [name for name in names if name not in fed]
    for group in grouped(source.model, inner):
        for number, values in enumerate(runs(giving(source.model, group), source, cases)):
            for name in group:
                _require_finite(values[name], name, makers.get(name), number)
                ranges[name].add(values[name])
            values.clear()
    return ranges


def require_calibration(cases: Cases) -> None:
    """raises: InputError without cases, and for NaN or Inf in one"""
    if not cases:
        raise InputError(
            "W8A8 needs inputs to calibrate on, and there is no default for them",
            where="--calibration",
            next="--calibration x.npz, with arrays by input name as the model is fed in use; repeat it for more",
        )
    for number, case in enumerate(cases):
        for name, array in case.items():
            if np.asarray(array).dtype.kind == "f" and not np.isfinite(array).all():
                raise InputError(
                    f"input {printable(name)!r} holds {_first_bad(array)} in calibration case {number}",
                    where="--calibration",
                    next="leave the case out, or mend it",
                )


def giving(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with these values for outputs."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    del asked.graph.output[:]
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    return asked


def _require_feeds(model: onnx.ModelProto, cases: Cases) -> None:
    initial = {tensor.name for tensor in model.graph.initializer}
    known = [value.name for value in model.graph.input if value.name not in initial]
    for case in cases:
        for name in case:
            if name not in known:
                raise InputError(f"the graph has no input {printable(name)!r}", where=WHERE, next=nearest(name, known))
        missing = [name for name in known if name not in case]
        if missing:
            raise InputError(f"input {printable(missing[0])!r} is not fed", where=WHERE, next="give an array for every input")


def _require_finite(array: np.ndarray, name: str, maker: onnx.NodeProto | None, case: int) -> None:
    if np.isfinite(array).all():
        return
    node = f"node {printable(maker.name)!r} ({maker.op_type})" if maker is not None else f"value {printable(name)!r}"
    raise InputError(
        f"{node} gives {_first_bad(array)} in calibration case {case}: a layer reads that, and it has no integer",
        where=WHERE,
        next="calibrate on other inputs, or keep the layers that read it in float (--keep-float NODE)",
    )


def _first_bad(array: np.ndarray) -> str:
    bad = np.argwhere(~np.isfinite(array))[0]
    return f"{array[tuple(bad)]} at {[int(i) for i in bad]}"


def _sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of the inner values whose shape is known."""
    found = {}
    for value in (*model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim] if kind.HasField("shape") else [0]
        if all(dims):
            found[value.name] = 4 * math.prod(dims)
    return found


def grouped(model: onnx.ModelProto, names: Sequence[str]) -> Iterator[list[str]]:
    """Values that fit into SLICE_BYTES together, in order; one that does not fit, or whose size is not known, is one alone."""
    sizes = _sizes(model)
    group: list[str] = []
    held = 0
    for name in names:
        nbytes = sizes.get(name, SLICE_BYTES)
        if group and held + nbytes > SLICE_BYTES:
            yield group
            group, held = [], 0
        group.append(name)
        held += nbytes
    if group:
        yield group
