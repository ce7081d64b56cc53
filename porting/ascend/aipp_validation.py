"""Does a port give the same from what AIPP makes of an image as from the reference's numbers? From uint8 pixels to the outputs.

                 ┌─ insert_op.cfg as atc reads it, AIPP's documented roundings in fp16 ─┐
    uint8 pixels ┤                                                                      ├─ the port ─ compared
                 └─ the description, float64 rounded to float32 ────────────────────────┘

Two bounds, neither of them chosen. The model's input: the analysis of `rounding_limit`, number by number. The outputs: how far they move when each
of AIPP's roundings is a random one of MULTIPLE times its size, measured on the port itself; the method is that of numerics/graph_noise.py. A
rounding of a constant is one error for the whole image, and one of a pixel an error for all pixels of that level, as in the unit: independent
errors for each pixel would average out. SLACK MULTIPLE = 8 times the root mean square of uniform errors of one rounding lies above what any
signs of the twelve errors of a flat image of three channels do together (sqrt(12) sqrt(3) = 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from porting.ascend.aipp import AippOp, rounding_limit, run_aipp
from porting.ascend.image_cases import Case, numbers_of
from porting.ascend.image_inputs import ImageInputs
from porting.ascend.pixels import COLOUR_ROUNDINGS
from porting.ascend.preprocessing import ImageInput, Padding
from porting.ascend.preprocessing_reference import host_steps, model_bytes, model_input, padded_image
from porting.backends.ascend.om_images import program_of_pixels
from porting.compiled_precision import COMPILED, compiled_bounds, compiled_in
from porting.errors import InputError, RuntimeFailed
from porting.evidence import placement_check
from porting.graph_outputs import ExpectedArray, relative_error
from porting.graph_reference import NOISE_RUNS, SLACK
from porting.graph_runs import flat
from porting.numerics.graph_noise import MULTIPLE
from porting.pixel_inputs import takes_pixels
from porting.port_folder import Port
from porting.session import Session, open_session
from porting.types import TensorSpec
from porting.verdict import Check, printable

HALF = 2.0**-11
SEED = 20261123  # of the random roundings
INPUT_BOUND = "the roundings of AIPP's documented fp16, analysed number by number"
BOUND = (
    f"{SLACK:g} times how far this output moves when each of AIPP's documented roundings is a random one of {MULTIPLE} times its size, "
    f"root mean square of {NOISE_RUNS} runs"
)

UNDECIDED = (
    "AIPP's fp16 alone may change this output altogether on these images: feed numbers in place of pixels, or use other images"
)


def aipp_checks(port: Port, images: ImageInputs, cases: Mapping[str, Case], device: str) -> list[Check]:
    """The whole way, for each case: the model's input, every output, and of a classifier the largest element.

    A device whose compiled model holds AIPP is fed the pixels, and held to the port on the CPU: what its format may cost is added to the bound.

    cases:  name -> pixels of the described inputs, and what the port takes of any other
    raises: InputError (pixels that do not fit), DeviceUnavailable
    """
    ops = images.ops()
    checks = [_input_check(image, images, ops[image.input], cases) for image in images.images]
    worst: dict[str, _Output] = {}
    of_pixels = takes_pixels(images, device)
    narrow, allowed = compiled_in(port, device), compiled_bounds(port, device)
    with ExitStack() as stack:
        session = stack.enter_context(open_session(port.program(), "cpu" if of_pixels else device))
        compiled = stack.enter_context(open_session(program_of_pixels(port.program(), images), device)) if of_pixels else None
        if compiled is not None:
            checks.append(placement_check(compiled))
        for name, case in cases.items():
            try:
                seen = _Seen(session, images, ops, case, compiled)
            except (InputError, RuntimeFailed) as error:
                checks.append(
                    Check(
                        "runs on AIPP's numbers that the port refuses", "fail", printable(error.what), "none", printable(name)
                    )
                )
                continue
            for output in seen.wanted:
                worst.setdefault(output, _Output(output, allowed.get(output, 0.0), narrow)).add(name, seen)
    return [*checks, *(check for output in worst.values() for check in output.checks())]


# --- the model's input ------------------------------------------------------------------------------------------------


def _input_check(image: ImageInput, images: ImageInputs, op: AippOp, cases: Mapping[str, Case]) -> Check:
    name = f"error of what AIPP makes of {printable(image.input, 60)}, in its documented roundings"
    share, where = 0.0, ""
    for case, arrays in cases.items():
        for rounding in COLOUR_ROUNDINGS if image.colour is not None else COLOUR_ROUNDINGS[:1]:
            wanted = model_input(image, arrays[image.input], rounding)
            try:
                got = made_by_aipp(op, image, arrays[image.input], rounding)
            except InputError as error:
                return Check(name, "fail", printable(error.what), 1.0, printable(case), INPUT_BOUND)
            if got.shape != wanted.shape:
                problem = f"{list(got.shape)}, where the reference gives {list(wanted.shape)}"
                return Check(name, "fail", problem, 1.0, printable(case), INPUT_BOUND)
            off = np.abs(got.astype(np.float64) - wanted) / rounding_limit(image, wanted)
            place = np.unravel_index(int(np.argmax(off)), off.shape)  # numpy's argmax stops at the first NaN
            if not off[place] <= share or not where:
                share, where = float(off[place]), f"{case}: {image.input}[{', '.join(map(str, map(int, place)))}]"
    return Check.at_most(name, share, 1.0, printable(where), INPUT_BOUND)


def made_by_aipp(op: AippOp, image: ImageInput, pixels: np.ndarray, rounding: str = "down") -> np.ndarray:
    """What AIPP makes by its file of what the host hands it. returns: (N, C, H, W) float16. raises: InputError"""
    return run_aipp(op, pixels if image.source.startswith("NV") else host_steps(image, pixels), rounding)


def randomly_rounded(image: ImageInput, pixels: np.ndarray, rng: np.random.Generator, multiple: float = MULTIPLE) -> np.ndarray:
    """What AIPP would make with other roundings, each a random one of up to `multiple` times its size.

    returns: (N, C, H, W) float64
    """
    u = multiple * HALF
    planes = model_bytes(image, pixels)  # (N, H, W, C)
    mean, factor = np.array(image.mean), np.array(image.var_reci)
    least = (mean - np.floor(mean)) * (1 + rng.uniform(-u, u, image.channels))
    differences = (np.arange(256)[:, None] - np.floor(mean) - least) * (1 + rng.uniform(-u, u, (256, image.channels)))
    table = differences * (factor * (1 + rng.uniform(-u, u, image.channels))) * (1 + rng.uniform(-u, u, (256, image.channels)))
    pad = image.padding or Padding()
    value = pad.value * (1 + float(rng.uniform(-u, u)))
    made = padded_image(table[planes, np.arange(image.channels)], Padding(pad.left, pad.right, pad.top, pad.bottom, value))
    return np.ascontiguousarray(made.transpose(0, 3, 1, 2))


# --- the outputs ------------------------------------------------------------------------------------------------------


class _Seen:
    """The outputs of one case.

    wanted: from the reference's numbers
    got:    from AIPP's, a table for each way to round a conversion of colours; the documented formula's first
    noisy:  from numbers with random roundings
    rows:   images in the case
    """

    def __init__(
        self, session: Session, images: ImageInputs, ops: Mapping[str, AippOp], case: Case, compiled: Session | None
    ) -> None:
        """compiled: takes pixels, and gives `got`"""
        names = {spec.name for spec in session.inputs}
        numbers = {n: a for n, a in numbers_of(images.images, case, images.inputs).items() if n in names}

        def run(made: Callable[[ImageInput], np.ndarray]) -> dict[str, np.ndarray]:
            fed = {i.input: _as(made(i), images.spec(i.input)) for i in images.images}
            return flat(session.run({**numbers, **fed}))

        coloured = any(image.colour is not None for image in images.images)
        rng = np.random.default_rng(SEED)
        self.rows = len(case[images.names[0]])
        self.wanted = flat(session.run(numbers))
        self.got = (
            [flat(compiled.run(case))]
            if compiled is not None
            else [
                run(lambda i, r=rounding: made_by_aipp(ops[i.input], i, case[i.input], r))  # type: ignore[misc]
                for rounding in (COLOUR_ROUNDINGS if coloured else COLOUR_ROUNDINGS[:1])
            ]
        )
        self.noisy = [run(lambda i: randomly_rounded(i, case[i.input], rng)) for _ in range(NOISE_RUNS)]


def _as(made: np.ndarray, spec: TensorSpec) -> np.ndarray:
    return made.astype(np.float16 if spec.dtype == "float16" else np.float32)


@dataclass(frozen=True)
class _Found:
    """One output of one case.

    problem:   why it cannot be compared, "" when it can
    undecided: from a bound of 1 on an output of zeros would pass
    """

    error: float
    bound: float
    where: str
    problem: str = ""
    exact: bool = False
    undecided: bool = False

    @property
    def rank(self) -> tuple[int, float]:
        """What speaks for all cases: what cannot be compared, else the one nearest to its bound or furthest beyond, else what could not be decided."""
        share = self.error / self.bound if self.bound else math.inf if self.error else 0.0
        return 2 if self.problem else 0 if self.undecided else 1, math.inf if math.isnan(share) else share


@dataclass
class _Output:
    """One output over all cases: its worst error, and how often the largest element stays.

    may_cost: relative L2 error that the format may cost it which it is compiled in, `narrow`
    """

    name: str
    may_cost: float = 0.0
    narrow: str = ""
    worst: _Found | None = None
    otherwise: float | None = None  # the error where colours are rounded the other way
    rows: int = 0
    same: int = 0
    ties: int = 0
    lost: list[str] = field(default_factory=list)

    def add(self, case: str, seen: _Seen) -> None:
        wanted, got = seen.wanted[self.name], seen.got[0].get(self.name)
        noisy = [step[self.name] for step in seen.noisy if self.name in step and step[self.name].shape == wanted.shape]
        found = _found(f"{case}: {self.name}", wanted, got, noisy, self.may_cost)
        if self.worst is None or found.rank > self.worst.rank:
            self.worst = found
        if got is not None and not found.problem and not found.exact:
            self._add_otherwise(wanted, seen)
            self._add_largest(case, wanted, got, noisy, seen.rows)

    def _add_otherwise(self, wanted: np.ndarray, seen: _Seen) -> None:
        for other in seen.got[1:]:
            if self.name in other and other[self.name].shape == wanted.shape:
                self.otherwise = max(self.otherwise or 0.0, relative_error(wanted, other[self.name]))

    def _add_largest(self, case: str, wanted: np.ndarray, got: np.ndarray, noisy: Sequence[np.ndarray], rows: int) -> None:
        """Of (N, classes): the largest element of each image, and where it is another one whether roundings explain that."""
        if wanted.ndim != 2 or len(wanted) != rows or wanted.shape[1] < 2:
            return
        for row, (before, after) in enumerate(zip(wanted.argmax(1).tolist(), got.argmax(1).tolist(), strict=True)):
            self.rows += 1
            self.same += before == after
            if before == after:
                continue
            ahead = [float(a[row, before]) - float(a[row, after]) for a in (wanted, *noisy)]
            noise = math.sqrt(sum((other - ahead[0]) ** 2 for other in ahead[1:]) / NOISE_RUNS)
            if ahead[0] <= SLACK * noise + self.may_cost * float(np.linalg.norm(wanted[row])):
                self.ties += 1
            else:
                self.lost.append(f"{case}, image {row}: {before} becomes {after}")

    def checks(self) -> list[Check]:
        assert self.worst is not None
        name, where, found = printable(self.name), printable(self.worst.where), self.worst
        what = (
            f"{'elements of' if found.exact else 'relative error of'} {name} behind AIPP{' that differ' if found.exact else ''}"
        )
        if found.problem:
            return [Check(what, "fail", printable(found.problem), None, where, BOUND)]
        if found.undecided:
            return [Check(what, "error", found.error, None, where, UNDECIDED), *self._largest()]
        detail = BOUND + (COMPILED.format(self.narrow) if self.may_cost else "")
        if self.otherwise is not None:
            detail += f"; {self.otherwise:.1e} where a conversion of colours is rounded to the nearest level, which the documents leave open"
        return [Check.at_most(what, found.error, found.bound, where, detail), *self._largest()]

    def _largest(self) -> list[Check]:
        if not self.rows:
            return []
        where = "; ".join([f"the same in {self.same} of {self.rows} images", *self.lost])
        detail = f"{self.ties} others lie nearer to each other than the roundings" if self.ties else ""
        return [
            Check.equal(
                f"images whose largest element of {printable(self.name)} changes behind AIPP", len(self.lost), 0, where, detail
            )
        ]


def _found(
    place: str, wanted: np.ndarray, got: np.ndarray | None, noisy: Sequence[np.ndarray], may_cost: float = 0.0
) -> _Found:
    """One output of one case.

    noisy:    those of the runs with random roundings that have the shape of `wanted`
    may_cost: what a narrower format adds to the bound
    """
    if got is None or got.shape != wanted.shape:
        shape = "nothing" if got is None else str(list(got.shape))
        return _Found(math.inf, 0.0, place, f"{shape}, expected {list(wanted.shape)}")
    changed = np.any([one != wanted for one in noisy], axis=0) if noisy else np.zeros(wanted.shape, bool)
    expected = ExpectedArray(wanted, changed)
    difference = expected.compare(place, got)
    complete = len(noisy) == NOISE_RUNS  # else roundings decide how much comes out
    if expected.exact:
        return _Found(difference.value, 0.0, difference.where, exact=True, undecided=bool(difference.undecided) or not complete)
    noise = math.sqrt(sum(relative_error(wanted, one) ** 2 for one in noisy) / NOISE_RUNS) if complete else math.inf
    bound = SLACK * noise + may_cost
    return _Found(difference.value, bound, difference.where, undecided=bound >= 1 and not math.isnan(difference.value))
