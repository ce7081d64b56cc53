"""Traps that no rule on a graph's nodes names: how numbers overflow, round and add up, what a compiled model does with gears, what atc ignores.

Where documents say how a trap goes, a probe confirms or refutes that; where none says, it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from porting.ascend.facts_file import OVERFLOW
from porting.ascend.precision import cube_takes_fp32
from porting.ascend.probe_facts import INFINITE, SATURATED
from porting.ascend.probe_graphs import ProbeGraph
from porting.ascend.probe_place import Seen
from porting.ascend.soc import Soc

FP16, ORIGIN = {"precision_mode_v2": "fp16"}, {"precision_mode_v2": "origin"}
TERMS = 4096  # of a sum
STEP = 2.0**-12  # fp16 has no number between 1 and 1 + 2^-10
LARGEST = float(np.finfo(np.float32).max)
BETWEEN_FP16 = 1 + 2.0**-12
OTHER = "otherwise"


@dataclass(frozen=True)
class Trap:
    """
    says:     what documents say, or that they say nothing
    expected: how it goes by them, "" where none says; None: it is not asked of this chip
    read:     outputs -> how it went; OTHER for what has no name here
    options:  of atc; files: option -> lines of its file
    gears:    of axis 0; () for the shapes of the graph
    other_soc, cut: the model is compiled for another chip, or cut in half; then it is only loaded
    """

    id: str
    says: str
    graph: ProbeGraph
    expected: Callable[[Soc], str | None]
    read: Callable[[Sequence[np.ndarray]], str]
    options: Mapping[str, str] = field(default_factory=lambda: FP16)
    files: Mapping[str, str] = field(default_factory=dict)
    gears: tuple[int, ...] = ()
    other_soc: bool = False
    cut: bool = False

    def behaviour(self, seen: Seen) -> str:
        """How it went, "" where nobody answered."""
        if not seen.answered:
            return ""
        if not seen.ran:
            return "refused"
        return "taken" if self.other_soc or self.cut or self.id == "unknown-option" else self.read(seen.outputs)


def _always(answer: str) -> Callable[[Soc], str | None]:
    return lambda soc: answer


def _of_overflow(finite: str, other: str) -> Callable[[Soc], str | None]:
    return lambda soc: "" if soc.saturates is None else finite if soc.saturates else other


def _where_cube_takes_fp32(answer: str) -> Callable[[Soc], str | None]:
    return lambda soc: None if cube_takes_fp32(soc) is False else answer


def _named(answers: Mapping[str, Sequence[float]]) -> Callable[[Sequence[np.ndarray]], str]:
    """The name of the numbers that came out, NaN being one."""

    def read(outputs: Sequence[np.ndarray]) -> str:
        got = np.asarray(outputs[0], np.float64).reshape(-1)
        found = [name for name, numbers in answers.items() if np.array_equal(got[: len(numbers)], numbers, equal_nan=True)]
        return found[0] if found else OTHER

    return read


def _width(outputs: Sequence[np.ndarray]) -> str:
    """How a sum in fp16 was added up: 1 and 4095 steps that fp16 loses one by one; 1 and one such step every 16 terms."""
    all_steps, few_steps = np.asarray(outputs[0], np.float64).reshape(-1)[:2]
    if abs(all_steps - (1 + (TERMS - 1) * STEP)) > 2.0**-8:
        return "fp16, term by term" if all_steps == 1 else "narrower than float32"
    return "float32 or wider" if abs(few_steps - (1 + (TERMS // 16 - 1) * STEP)) <= 2.0**-10 else "fp16 between blocks"


def _largest_gear(outputs: Sequence[np.ndarray]) -> str:
    rows = outputs[0].shape[0]
    return {4: "the largest gear", 1: "the gear that was fed"}.get(rows, OTHER)


def _terms() -> np.ndarray:
    sums = np.full((2, TERMS), STEP)
    sums[1, np.arange(TERMS) % 16 != 0] = 0
    sums[:, 0] = 1
    return sums


def _double(numbers: Sequence[float]) -> ProbeGraph:
    return ProbeGraph(f"(float[{len(numbers)}] x) => (y) {{ y = Add(x, x) }}", feeds={"x": numbers})


def _relu(*numbers: float) -> ProbeGraph:
    return ProbeGraph(f"(float[{len(numbers)}] x) => (y) {{ y = Relu(x) }}", feeds={"x": numbers})


SUMS = {"x": _terms()}
ONE_TERM = {"x": np.pad([[BETWEEN_FP16]], ((0, 0), (0, 15))), "w": 1.0 * np.ones((16, 1))}
ONE_PIXEL = {"x": np.pad([[BETWEEN_FP16]], ((0, 0), (0, 15))).reshape(1, 16, 1, 1), "w": np.ones((1, 16, 1, 1))}
SHORT: Mapping[str, Sequence[float]] = {"float32": [BETWEEN_FP16], "shortened": [1]}
NEAR_ONE = [1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-11 + 2.0**-13]
HALF_CAST = ProbeGraph("(float[3] x) => (y) { h = Cast<to = 10>(x) y = Cast<to = 1>(h) }", feeds={"x": NEAR_ONE})
HF32 = "ATC's page on --allow_hf32 calls it reserved, so that float32 stays whole; torch_npu shortens convolutions"
NOBODY = "no document says"

TRAPS: tuple[Trap, ...] = (
    Trap(
        OVERFLOW,
        "310, 310P, 310B and 910A give the largest number, A2, A3 and 950 Inf",
        _double([60000, -60000, 1]),
        _of_overflow(SATURATED, INFINITE),
        _named({INFINITE: [np.inf, -np.inf, 2], SATURATED: [65504, -65504, 2]}),
    ),
    Trap(
        "nan-fp16",
        "310, 310P, 310B and 910A make 0 of NaN, A2, A3 and 950 keep it",
        _double([np.nan, 1]),
        _of_overflow("zero", "NaN"),
        _named({"NaN": [np.nan, 2], "zero": [0, 2]}),
    ),
    Trap(
        "overflow-fp32",
        "how float32 overflows stands nowhere apart from fp16",
        ProbeGraph("(float[2] x) => (y) { y = Add(x, x) }", feeds={"x": [3e38, -3e38]}),
        _always(""),
        _named({INFINITE: [np.inf, -np.inf], SATURATED: [LARGEST, -LARGEST]}),
        ORIGIN,
    ),
    Trap(
        "max-of-nan",
        NOBODY,
        ProbeGraph("(float[2] x, float[2] z) => (y) { y = Max(x, z) }", feeds={"x": [np.nan, 1], "z": [1, np.nan]}),
        _always(""),
        _named(
            {"NaN": [np.nan, np.nan], "the number": [1, 1], "the second": [1, np.nan], "the first": [np.nan, 1], "zero": [0, 0]}
        ),
        ORIGIN,
    ),
    Trap(
        "subnormals-fp16",
        NOBODY,
        ProbeGraph("(float[2] x, float[2] z) => (y) { y = Mul(x, z) }", feeds={"x": [2.0**-12, 1], "z": [2.0**-12, 1]}),
        _always(""),
        _named({"kept": [2.0**-24, 1], "zero": [0, 1]}),
    ),
    Trap(
        "sum-matmul-fp16",
        "the matrix unit has fp16 and float32 accumulators; which is taken stands nowhere",
        ProbeGraph(
            f"(float[2,{TERMS}] x, float[{TERMS},1] w) => (y) {{ y = MatMul(x, w) }}", feeds={**SUMS, "w": np.ones((TERMS, 1))}
        ),
        _always(""),
        _width,
    ),
    Trap(
        "sum-conv-fp16",
        "the matrix unit has fp16 and float32 accumulators; which is taken stands nowhere",
        ProbeGraph(
            f"(float[2,{TERMS},1,1] x, float[1,{TERMS},1,1] w) => (y) {{ y = Conv<kernel_shape = [1, 1]>(x, w) }}",
            feeds={"x": _terms().reshape(2, TERMS, 1, 1), "w": np.ones((1, TERMS, 1, 1))},
        ),
        _always(""),
        _width,
    ),
    Trap(
        "sum-reduce-fp16",
        NOBODY,
        ProbeGraph(f"(float[2,{TERMS}] x) => (y) <int64[1] a = {{1}}> {{ y = ReduceSum(x, a) }}", feeds=SUMS),
        _always(""),
        _width,
    ),
    Trap(
        "hf32-matmul",
        HF32,
        ProbeGraph("(float[1,16] x, float[16,1] w) => (y) { y = MatMul(x, w) }", feeds=ONE_TERM),
        _where_cube_takes_fp32("float32"),
        _named(SHORT),
        ORIGIN,
    ),
    Trap(
        "hf32-conv",
        HF32,
        ProbeGraph("(float[1,16,1,1] x, float[1,16,1,1] w) => (y) { y = Conv<kernel_shape = [1, 1]>(x, w) }", feeds=ONE_PIXEL),
        _where_cube_takes_fp32("float32"),
        _named(SHORT),
        ORIGIN,
    ),
    Trap(
        "weights-not-clipped",
        "with --is_weight_clip=0 weights beyond 65504 become Inf, where the chip has it",
        ProbeGraph("(float[2] x) => (y) <float[2] c = {100000, 1}> { y = Add(x, c) }", feeds={"x": [0, 0]}),
        _of_overflow(SATURATED, INFINITE),
        _named({INFINITE: [np.inf, 1], SATURATED: [65504, 1]}),
        {**FP16, "is_weight_clip": "0"},
    ),
    Trap(
        "cast-to-fp16",
        "every forecast here takes it for rounding to the nearest, ties to even",
        HALF_CAST,
        _always("nearest, ties to even"),
        _named(
            {
                "nearest, ties to even": [1, 1 + 2.0**-9, 1 + 2.0**-10],
                "nearest, ties away": [1 + 2.0**-10, 1 + 2.0**-9, 1 + 2.0**-10],
                "towards zero": [1, 1 + 2.0**-10, 1],
            }
        ),
        ORIGIN,
    ),
    Trap(
        "cast-to-int",
        "ONNX cuts towards zero; no page says what the device does",
        ProbeGraph("(float[5] x) => (y) { y = Cast<to = 6>(x) }", feeds={"x": [2.5, -2.5, 2.7, -2.7, 3.5]}),
        _always(""),
        _named({"towards zero": [2, -2, 2, -2, 3], "nearest, ties to even": [2, -2, 3, -3, 4], "down": [2, -3, 2, -3, 3]}),
        ORIGIN,
    ),
    Trap(
        "mod-of-integers",
        "its page says that the sign follows the divisor, as ONNX does",
        ProbeGraph("(int32[3] x, int32[3] z) => (y) { y = Mod<fmod = 0>(x, z) }", feeds={"x": [-7, 7, -7], "z": [3, -3, -3]}),
        _always("as the divisor"),
        _named({"as the divisor": [2, -2, -1], "as the dividend": [-1, 1, -1]}),
        ORIGIN,
    ),
    Trap(
        "default-precision",
        "without a precision mode atc makes fp16 of float32",
        _relu(BETWEEN_FP16),
        _always("fp16"),
        _named({"fp16": [1], "float32": [BETWEEN_FP16]}),
        {},
    ),
    Trap(
        "keep-dtype",
        "a node that --keep_dtype names stays in float32",
        _relu(BETWEEN_FP16),
        _always("kept"),
        _named({"kept": [BETWEEN_FP16], "lowered": [1]}),
        FP16,
        {"keep_dtype": "n0\n"},
    ),
    Trap(
        "customize-dtypes",
        "--customize_dtypes wins over the mode: a node that it names is lowered under origin",
        _relu(BETWEEN_FP16),
        _always("lowered"),
        _named({"kept": [BETWEEN_FP16], "lowered": [1]}),
        ORIGIN,
        {"customize_dtypes": "n0::InputDtype:float16,OutputDtype:float16\n"},
    ),
    Trap(
        "gear-not-set",
        "a run that is told no gear takes the largest, in silence",
        ProbeGraph("(float[1,3] x) => (y) { y = Relu(x) }"),
        _always("the largest gear"),
        _largest_gear,
        gears=(1, 2, 4),
    ),
    Trap(
        "om-of-another-soc",
        "a model that was compiled for another chip does not load",
        _relu(1),
        _always("refused"),
        _named({}),
        other_soc=True,
    ),
    Trap("om-cut-short", "half a model does not load", _relu(1, 2), _always("refused"), _named({}), cut=True),
    Trap(
        "unknown-option",
        "atc refuses options that it does not have",
        _relu(1, 2, 3),
        _always("refused"),
        _named({}),
        {**FP16, "porting_has_no_such_option": "1"},
    ),
)
