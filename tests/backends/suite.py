"""The backend suite: one table of cases, held against every backend, plug-ins included.

A case is a graph, feeds, a NumPy reference and a bound; a check is a promise of the contract. `run_suite(device)` runs both and
returns what went wrong, so that a plug-in in another process can be held against the same table:

    python -c "import tests.backends.suite as s; print(s.run_suite('mydevice'))"

What a backend cannot do is one line in UNSUPPORTED. A listed case that starts to pass is a failure, so the list only shrinks.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from porting.backends.onnx_program import program_from_onnx
from porting.session import open_session
from porting.types import Program, StateSpec
from tests.backends.contract import CHECKS
from tests.backends.stateful import STATE_CHECKS

# (backend, case or check): why not
UNSUPPORTED: dict[tuple[str, str], str] = {
    ("null", "conv"): "the output's size follows from the kernel, not from the feeds",
    ("null", "an_unknown_operator_is_refused_by_name"): "it computes nothing, so it lacks no operator",
    ("openvino", "int64_above_2_to_53"): "its CPU device computes int64 in int32; the backend refuses larger numbers",
    ("ascend-sim", "rms_norm"): "ATC's parser ends before the opset that has it; a port's passes write it out",
    ("ascend-sim", "uint8_dequantised"): "ATC's parser knows no quantisation of ONNX",
    ("ascend-sim", "empty_dimension"): "ATC takes no gear of size 0",
    **{
        ("ascend-sim", name): "a compiled model's cache does not grow; what it keeps is tested in test_ascend_sim_state.py"
        for name in STATE_CHECKS
    },
    **{
        ("openvino", name): "no conversion rule for TensorScatter"
        for name in STATE_CHECKS
        if name.startswith("attention_cache")
    },
}

COMPUTES_NOTHING = ("null",)  # held to names, dtypes and shapes only
COMPILED = ("ascend-sim", "ascend")  # know only the shapes that they were told when a model was compiled
SAME_LIMITS = {"ascend": "ascend-sim"}  # what the compiler does not take
MOST_COMPILED = 18  # opset


@dataclass(frozen=True)
class Case:
    """One graph with feeds and reference.

    graph:     ONNX text without header
    runs:      feeds of one or more runs in the same session
    reference: the feeds by name -> the outputs in order, computed in float64 where `terms` is not 0
    terms:     roundings that an output goes through one after the other: the bound is terms * eps of its dtype * the largest
               output (gamma_n of Higham, Accuracy and Stability of Numerical Algorithms, section 3.1, with terms of the
               largest output's size, which the feeds are chosen for). 0 means equal to the last bit
    """

    name: str
    graph: str
    runs: tuple[dict[str, np.ndarray], ...]
    reference: Callable[..., tuple]
    terms: int
    opset: int = 21
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    external: bool = False
    defaults: Mapping[str, float] = field(default_factory=dict)

    def program(self, folder: Path, compiled: bool = False) -> Program:
        """compiled: for a device that knows only the shapes that it was told, in an opset that a compiler takes"""
        opset = min(self.opset, MOST_COMPILED) if compiled else self.opset
        model = onnx.parser.parse_model(f'<ir_version: {8 if compiled else 10}, opset_import: ["": {opset}]> g {self.graph}')
        for name, array in self.constants.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        kept = [value for value in model.graph.input if value.name not in self.constants]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        if not self.external:
            made = program_from_onnx(model.SerializeToString(), defaults=self.defaults)
        else:
            path = folder / "model.onnx"
            onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
            made = program_from_onnx(path, state=StateSpec(), defaults=self.defaults)
        return replace(made, gears=self.gears(made)) if compiled else made

    def gears(self, program: Program) -> tuple[Mapping[str, tuple[int, ...]], ...]:
        """The shapes of the runs, each once; () for one that is in the graph."""
        if all(isinstance(dim, int) for spec in program.inputs for dim in spec.shape):
            return ()
        shapes = [{s.name: np.shape(feeds.get(s.name, 0)) for s in program.inputs} for feeds in self.runs]
        return tuple(gear for place, gear in enumerate(shapes) if gear not in shapes[:place])


# --- feeds and references -------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def whole(*shape: int, seed: int = 0, dtype: str = "int64", low: int = -50, high: int = 50) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(low, high, shape).astype(dtype)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * scale + bias


def rms_norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def conv2d(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Stride 2, padding 1, straight from the definition."""
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = (x.shape[2] - w.shape[2]) // 2 + 1, (x.shape[3] - w.shape[3]) // 2 + 1
    out = np.empty((x.shape[0], w.shape[0], rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = x[:, None, :, 2 * i : 2 * i + w.shape[2], 2 * j : 2 * j + w.shape[3]]
            out[:, :, i, j] = (window * w[None]).sum((2, 3, 4)) + b
    return out


NASTY = np.array([[np.nan, np.inf, -np.inf, 0.0], [-0.0, 1e-45, 3.4e38, -1.0]], np.float32)

CASES = (
    Case(
        "elementwise",
        "(float[N,4] x, float[N,4] y) => (float[N,4] z) { s = Add(x, y) d = Sub(s, x) z = Mul(d, y) }",
        ({"x": normal(3, 4), "y": normal(3, 4, seed=1)},),
        lambda x, y: (((x + y) - x) * y,),
        terms=0,
    ),
    Case(
        "broadcast",
        "(float[N,1,4] x, float[3,1] y) => (float[N,3,4] z) { z = Add(x, y) }",
        ({"x": normal(2, 1, 4), "y": normal(3, 1)},),
        lambda x, y: (x + y,),
        terms=0,
    ),
    Case(
        "dynamic_batch",
        "(float[N,4] x) => (float[N,4] y) { y = Neg(x) }",
        ({"x": normal(2, 4)}, {"x": normal(7, 4)}, {"x": normal(1, 4)}),
        lambda x: (-x,),
        terms=0,
    ),
    Case(
        "matmul_2d",
        "(float[M,16] a, float[16,5] b) => (float[M,5] c) { c = MatMul(a, b) }",
        ({"a": normal(3, 16), "b": normal(16, 5)},),
        lambda a, b: (a.astype(float) @ b,),
        terms=16,
    ),
    Case(
        "matmul_batched",
        "(float[B,H,M,16] a, float[B,H,16,5] b) => (float[B,H,M,5] c) { c = MatMul(a, b) }",
        ({"a": normal(2, 3, 4, 16), "b": normal(2, 3, 16, 5)},),
        lambda a, b: (a.astype(float) @ b,),
        terms=16,
    ),
    Case(
        "matmul_broadcast_vector",
        "(float[B,M,16] a, float[16] b) => (float[B,M] c) { c = MatMul(a, b) }",
        ({"a": normal(2, 4, 16), "b": normal(16)},),
        lambda a, b: (a.astype(float) @ b,),
        terms=16,
    ),
    Case(
        "gemm_transposed",
        "(float[M,16] x, float[5,16] w, float[5] b) => (float[M,5] y) { y = Gemm<transB=1>(x, w, b) }",
        ({"x": normal(3, 16)},),
        lambda x: (x.astype(float) @ normal(5, 16).T.astype(float) + normal(5),),
        terms=17,
        constants={"w": normal(5, 16), "b": normal(5)},
    ),
    Case(
        "softmax",
        "(float[N,9] x) => (float[N,9] y) { y = Softmax<axis=-1>(x) }",
        ({"x": 10 * normal(4, 9)},),
        lambda x: (softmax(x),),
        terms=9 + 3 + 30,  # sum, exp and quotient; exp multiplies the rounding of its argument, up to 30 here, by that size
    ),
    Case(
        "layer_norm",
        "(float[N,8] x, float[8] s, float[8] b) => (float[N,8] y) { y = LayerNormalization<axis=-1>(x, s, b) }",
        ({"x": normal(4, 8), "s": normal(8, seed=1), "b": normal(8, seed=2)},),
        lambda x, s, b: (layer_norm(x, s, b),),
        terms=2 * 8 + 6,  # two sums of 8, difference, square root, quotient, product, sum
    ),
    Case(
        "rms_norm",
        "(float[N,8] x, float[8] s) => (float[N,8] y) { y = RMSNormalization<axis=-1, epsilon=1e-6>(x, s) }",
        ({"x": normal(4, 8), "s": normal(8, seed=1)},),
        lambda x, s: (rms_norm(x, s),),
        terms=8 + 5,
        opset=23,
    ),
    Case(
        "conv",
        "(float[N,2,H,W] x, float[3,2,3,3] w, float[3] b) => (float[N,3,P,Q] y) "
        "{ y = Conv<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x, w, b) }",
        ({"x": normal(2, 2, 7, 6)},),
        lambda x: (conv2d(x, normal(3, 2, 3, 3), normal(3)),),
        terms=2 * 9 + 1,
        constants={"w": normal(3, 2, 3, 3), "b": normal(3)},
    ),
    Case(
        "reduce",
        "(float[N,12] x, int64[1] a) => (float[N] total, float[N] top) "
        "{ total = ReduceSum<keepdims=0>(x, a) top = ReduceMax<keepdims=0>(x, a) }",
        ({"x": normal(3, 12)},),
        lambda x: (x.astype(float).sum(1), x.max(1)),
        terms=12,
        constants={"a": np.array([1])},
    ),
    Case(
        "gather",
        "(float[6,3] table, int64[N,T] ids) => (float[N,T,3] rows) { rows = Gather<axis=0>(table, ids) }",
        ({"table": normal(6, 3), "ids": whole(2, 4, low=0, high=6)},),
        lambda table, ids: (table[ids],),
        terms=0,
    ),
    Case(
        "int64",
        "(int64[N] x, int64[N] y) => (int64[N] z) { s = Mul(x, y) z = Sub(s, y) }",
        ({"x": whole(9), "y": whole(9, seed=1)},),
        lambda x, y: (x * y - y,),
        terms=0,
    ),
    Case(
        "int64_above_2_to_53",
        "(int64[N] x, int64[1] one) => (int64[N] y) { y = Add(x, one) }",
        ({"x": np.array([2**53, 2**62, -(2**62) - 1])},),
        lambda x: (x + 1,),
        terms=0,
        constants={"one": np.array([1])},
    ),
    Case(
        "bool",
        "(bool[N] x, bool[N] y, int64[N] k) => (bool[N] z) { a = And(x, y) n = Not(a) m = Equal(k, k) z = Xor(n, m) }",
        ({"x": whole(9) > 0, "y": whole(9, seed=1) > 0, "k": whole(9)},),
        lambda x, y, k: (x & y,),
        terms=0,
    ),
    Case(
        "float16",
        "(float16[N,4] x, float16[N,4] y) => (float16[N,4] z) { z = Mul(x, y) }",
        ({"x": normal(3, 4, dtype="float16"), "y": normal(3, 4, seed=1, dtype="float16")},),
        lambda x, y: (x * y,),  # NumPy computes it in float32 and rounds once: correctly rounded, so there is one right answer
        terms=0,
    ),
    Case(
        "uint8_dequantised",
        "(uint8[N,4] x, float s, uint8 z) => (float[N,4] y) { y = DequantizeLinear(x, s, z) }",
        ({"x": whole(3, 4, dtype="uint8", low=0, high=255)},),
        lambda x: ((x.astype(np.float32) - 7) * np.float32(0.25),),
        terms=0,
        constants={"s": np.float32(0.25), "z": np.uint8(7)},
    ),
    Case(
        "scalar",
        "(float x, float[N] y) => (float[N] z, float w) { z = Mul(x, y) w = Neg(x) }",
        ({"x": np.array(3.0, np.float32), "y": normal(4)},),
        lambda x, y: (x * y, -x),
        terms=0,
    ),
    Case(
        "empty_dimension",
        "(float[N,4] x, float[4,3] w) => (float[N,3] y) { y = MatMul(x, w) }",
        ({"x": normal(0, 4), "w": normal(4, 3)}, {"x": normal(2, 4), "w": normal(4, 3)}),
        lambda x, w: (x.astype(float) @ w,),
        terms=4,
    ),
    Case(
        "several_outputs",
        "(float[N,6] x, int64[2] parts) => (float[N,2] a, float[N,4] b, float[N,6] c) "
        "{ a, b = Split<axis=1>(x, parts) c = Abs(x) }",
        ({"x": normal(3, 6)},),
        lambda x: (x[:, :2], x[:, 2:], abs(x)),
        terms=0,
        constants={"parts": np.array([2, 4])},
    ),
    Case(
        "output_is_an_input",
        "(float[N] x) => (float[N] y, float[N] z) { y = Identity(x) z = Neg(x) }",
        ({"x": normal(5)},),
        lambda x: (x, -x),
        terms=0,
    ),
    Case(
        "unused_input",
        "(float[N] x, float[N,3] nobody) => (float[N] y) { y = Neg(x) }",
        ({"x": normal(5), "nobody": normal(5, 3)},),
        lambda x, nobody: (-x,),
        terms=0,
    ),
    Case(
        "default_input",
        "(float[N] x, float k) => (float[N] y) { y = Mul(x, k) }",
        ({"x": normal(5)}, {"x": normal(5), "k": np.array(3.0, np.float32)}, {"x": normal(5)}),
        lambda x, k=np.float32(2.5): (x * k,),
        terms=0,
        defaults={"k": 2.5},
    ),
    Case(
        "external_data",
        "(float[N,16] x, float[16,5] w) => (float[N,5] y) { y = MatMul(x, w) }",
        ({"x": normal(3, 16)},),
        lambda x: (x.astype(float) @ normal(16, 5),),
        terms=16,
        constants={"w": normal(16, 5)},
        external=True,
    ),
    Case(
        "nan_and_inf_propagate",
        "(float[N,4] x, float[4] one) => (float[N,4] y, float[N,4] z) { y = Add(x, one) z = Mul(x, x) }",
        ({"x": NASTY},),
        lambda x: (x + np.float32(1), x * x),
        terms=0,
        constants={"one": np.ones(4, np.float32)},
    ),
    Case(
        "nan_reaches_every_product",
        "(float[2,4] x, float[4,3] w) => (float[2,3] y) { y = MatMul(x, w) }",
        ({"x": NASTY[:, [0, 3, 3, 3]], "w": np.ones((4, 3), np.float32)},),
        lambda x, w: (x @ w,),
        terms=0,
    ),
    Case(
        "control_flow",
        "(float[N] x, bool c) => (float[N] y) { y = If(c) <then_branch = t () => (float[N] p) { p = Neg(x) }, "
        "else_branch = e () => (float[N] q) { q = Abs(x) }> }",
        ({"x": normal(5), "c": np.array(True)}, {"x": normal(5), "c": np.array(False)}),
        lambda x, c: (-x if c else abs(x),),
        terms=0,
    ),
)


# --- running --------------------------------------------------------------------------------------------------------


def require_close(got: np.ndarray, want: np.ndarray, terms: int, dtype: str, label: str) -> None:
    """Same dtype and shape; NaN and Inf in the same places; equal for 0 terms, else within the bound of `Case.terms`."""
    assert type(got) is np.ndarray, f"{label}: {type(got).__name__} is no numpy array"
    assert got.dtype == dtype, f"{label}: dtype {got.dtype}, expected {dtype}"
    assert got.shape == want.shape, f"{label}: shape {got.shape}, expected {want.shape}"
    if terms == 0:
        np.testing.assert_array_equal(got, want.astype(dtype), err_msg=label)  # NaN equals NaN here
        return
    assert np.isfinite(want).all(), f"{label}: a reference with a bound must be finite"
    assert np.isfinite(got).all(), f"{label}: not finite: {got}"
    if got.size:
        error = float(abs(got.astype(np.float64) - want).max())
        bound = terms * float(np.finfo(dtype).eps) * float(abs(want).max())
        assert error <= bound, f"{label}: max abs error {error:.2e} > {bound:.2e}"


def run_case(case: Case, device: str) -> None:
    """Run one case; raises AssertionError or whatever the backend raises."""
    name = device.split(",")[0].partition(":")[0]
    compute = name not in COMPUTES_NOTHING
    with (
        tempfile.TemporaryDirectory() as folder,
        open_session(case.program(Path(folder), name in COMPILED), device) as session,
    ):
        for number, feeds in enumerate(case.runs):
            before = {name: array.copy() for name, array in feeds.items()}
            with np.errstate(all="ignore"):
                expected = case.reference(**feeds)
            outputs = session.run(feeds)
            assert list(outputs) == [spec.name for spec in session.outputs], f"outputs {list(outputs)}"
            for spec, want in zip(session.outputs, expected, strict=True):
                got = outputs[spec.name]
                want = np.asarray(want) if compute else np.zeros(np.shape(want))
                require_close(got, want, case.terms, spec.dtype, f"{case.name} run {number} {spec.name}")
            for name, array in before.items():
                np.testing.assert_array_equal(feeds[name], array, err_msg=f"feed {name} was changed")


ALL: dict[str, Callable[[str], None]] = {
    **{case.name: (lambda device, case=case: run_case(case, device)) for case in CASES},
    **CHECKS,
    **STATE_CHECKS,
}


def run_one(name: str, device: str) -> str:
    """Empty when a case or check holds, or is listed as unsupported and fails; else what went wrong."""
    kind = device.partition(",")[0].partition(":")[0]
    listed = UNSUPPORTED.get((SAME_LIMITS.get(kind, kind), name))
    try:
        ALL[name](device)
    except (Exception, pytest.fail.Exception):  # `pytest.raises` that sees nothing raised fails outside of Exception
        return "" if listed else traceback.format_exc(limit=-3)
    return f"listed as unsupported ({listed}) and passes: remove the line" if listed else ""


def run_suite(device: str) -> dict[str, str]:
    """Name -> what went wrong, for everything that went wrong on `device`."""
    results = {name: run_one(name, device) for name in ALL}
    return {name: result for name, result in results.items() if result}
