"""Block quantisation against formulas written anew and against onnxruntime's own operator."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from porting.converters.passes.quantize_linear import (
    ACCURACY_LEVEL_INT8,
    SCHEMES,
    SMALLEST,
    dequantize_rows,
    quantize_rows,
    quantized_stream,
)
from porting.types import TensorSpec
from porting.weights import Stream

WIDTHS = (1, 31, 32, 33, 64, 80, 96, 100)  # below, at and above a block; odd and even numbers of blocks; partial last blocks


def weights(rows: int, n_in: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, n_in)).astype(np.float32)


def restored(w: np.ndarray, precision: str) -> np.ndarray:
    """What the codes of `w` stand for."""
    codes, scales, *points = quantize_rows(w, SCHEMES[precision])
    return dequantize_rows(codes, scales, points[0] if points else None, w.shape[1], SCHEMES[precision].bits)


def by_the_book(w: np.ndarray, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights after rounding to nearest, and the step of each, by plain loops; nothing here is shared with the code under test."""
    out, steps = np.zeros_like(w), np.zeros_like(w)
    for row in range(w.shape[0]):
        for start in range(0, w.shape[1], 32):
            block = w[row, start : start + 32]
            if precision == "int8":
                scale = np.float32(max(abs(block.max()), abs(block.min()))) / np.float32(127)
                lowest, highest, zero = -127, 127, 0
            else:
                low, high = min(np.float32(0), block.min()), max(np.float32(0), block.max())
                scale = (high - low) / np.float32(15)
                zero = round(float(-low / scale)) if scale else 0
                lowest, highest = -zero, 15 - zero
            for i, value in enumerate(block):
                code = min(max(round(float(value / scale)), lowest), highest) if scale else 0
                out[row, start + i], steps[row, start + i] = np.float32(code) * scale, scale
    return out, steps


@pytest.mark.parametrize("n_in", WIDTHS)
@pytest.mark.parametrize("precision", SCHEMES)
def test_rounding_is_by_the_book(precision, n_in):
    w = weights(5, n_in)
    w[1] = 0  # nothing to scale by
    w[2] = 0.7  # constant: one sign only, so zero has to be kept beside it
    w[3] = -np.abs(w[3])
    expected, _ = by_the_book(w, precision)
    np.testing.assert_array_equal(restored(w, precision), expected)
    assert not restored(w, precision)[1].any()


@pytest.mark.parametrize("precision", SCHEMES)
def test_shapes_and_packing(precision):
    scheme = SCHEMES[precision]
    w = weights(3, 80)  # 3 blocks, the last one half full
    codes, scales, *points = quantize_rows(w, scheme)
    assert (codes.shape, codes.dtype) == ((3, 3, 4 * scheme.bits), np.uint8)
    assert (scales.shape, scales.dtype) == ((3, 3), np.float32)
    assert [p.shape for p in points] == ([(3, 2)] if precision == "int4" else [])
    assert len(quantize_rows(weights(1, 1), scheme)[0]) == 1


def require_half_a_step(w: np.ndarray, precision: str) -> np.ndarray:
    """Hold every restored weight against the step of its block; returns the scales."""
    codes, scales, *points = quantize_rows(w, SCHEMES[precision])
    assert np.isfinite(scales).all()
    got = dequantize_rows(codes, scales, points[0] if points else None, w.shape[1], SCHEMES[precision].bits)
    step = np.repeat(scales, 32, axis=1)[:, : w.shape[1]].astype(np.float64)
    # a step is itself rounded to float32, and up to 127 of them are counted: half a step and 127 roundings of one
    assert (np.abs(got.astype(np.float64) - w) <= step * (0.5 + 127 * 2.0**-23)).all()
    assert (got[w == 0] == 0).all()
    return scales


finite = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-(2.0**-123), 2.0**-123, width=32)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), precision=st.sampled_from(sorted(SCHEMES)), n_in=st.integers(1, 70))
def test_each_weight_is_off_by_half_a_step_at_most(data, precision, n_in):
    require_half_a_step(np.array([data.draw(st.lists(finite, min_size=n_in, max_size=n_in))], np.float32), precision)


@pytest.mark.parametrize("precision", SCHEMES)
def test_denormals_are_off_by_half_a_step_that_is_no_denormal(precision):
    """A scale of one or two units of the smallest float would be off by a third, and miss its weights by many steps."""
    w = (weights(4, 64) * np.array([[1e-38], [1e-40], [1e-43], [3e-45]])).astype(np.float32)
    assert np.abs(w).max(axis=1).all()
    assert require_half_a_step(w, precision).min() == SMALLEST == 2.0**-126


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", SCHEMES)
def test_what_is_no_number_shows_in_the_scales(precision, wrong):
    """Where the writer of ports looks; codes are integers and cannot show it."""
    w = weights(3, 64)
    w[1, 40] = wrong
    with np.errstate(all="raise"):
        _, scales, *_ = quantize_rows(w, SCHEMES[precision])
    assert np.argwhere(~np.isfinite(scales)).tolist() == [[1, 1]]


@pytest.mark.parametrize("precision", SCHEMES)
def test_a_stream_in_stripes_gives_the_same_codes(precision, monkeypatch):
    w = weights(37, 80)
    source = Stream([TensorSpec("w", "float32", w.shape)], 37, ["w"], lambda start, stop: (w[start:stop],))
    stream = quantized_stream(source, SCHEMES[precision])
    monkeypatch.setattr("porting.weights.STRIPE_BYTES", 600)
    stripes = list(stream.stripes())
    assert len(stripes) > 3
    for i, whole in enumerate(quantize_rows(w, SCHEMES[precision])):
        np.testing.assert_array_equal(np.concatenate([arrays[i] for _, _, arrays in stripes]), whole)
        assert stream.outputs[i].shape == whole.shape
        assert stream.outputs[i].dtype == whole.dtype.name


# --- the operator ---------------------------------------------------------------------------------------------------


def operator(w: np.ndarray, precision: str, accuracy_level: int) -> onnxruntime.InferenceSession:
    """onnxruntime's MatMulNBits over the codes of `w` (n_out, n_in)."""
    scheme = SCHEMES[precision]
    names = ("codes", "scales", "points")
    arrays = dict(zip(names, quantize_rows(w, scheme), strict=False))
    n_out, n_in = w.shape
    node = helper.make_node(
        "MatMulNBits",
        ["x", *arrays],
        ["y"],
        domain="com.microsoft",
        N=n_out,
        K=n_in,
        bits=scheme.bits,
        block_size=scheme.block,
        accuracy_level=accuracy_level,
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", n_in])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", n_out])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("n_in", WIDTHS)
@pytest.mark.parametrize("precision", SCHEMES)
def test_onnxruntime_reads_the_codes_as_we_do(precision, n_in):
    """One input at a time picks one column of the weights: no sum hides a wrong block, zero point or nibble."""
    w = weights(7, n_in)
    w[1] = 0
    w[2] = 0.7
    expected = restored(w, precision).T
    for level in (0, 1):
        (got,) = operator(w, precision, level).run(None, {"x": np.eye(n_in, dtype=np.float32)})
        # the kernel may compute code * scale - zero * scale: two roundings of at most 255 * scale
        scale = np.abs(w).max() / (127 if precision == "int8" else 7)
        np.testing.assert_allclose(got, expected, rtol=0, atol=255 * scale * 2.0**-23)


@pytest.mark.parametrize("n_in", WIDTHS)
@pytest.mark.parametrize("precision", SCHEMES)
def test_the_accuracy_level_of_a_port_costs_what_its_definition_allows(precision, n_in):
    """Level 4 rounds the input to 8 bits in blocks of 32: off by half a step of max / 127 in each element."""
    w, x = weights(7, n_in), weights(3, n_in, seed=1)
    used = restored(w, precision).astype(np.float64)
    (got,) = operator(w, precision, ACCURACY_LEVEL_INT8).run(None, {"x": x})
    blocks = range(0, n_in, 32)
    half_steps = np.concatenate(
        [np.abs(x[:, b : b + 32]).max(1, keepdims=True) / 254 * np.ones_like(x[:, b : b + 32]) for b in blocks], 1
    )
    allowed = half_steps @ np.abs(used).T + 1e-5 * math.sqrt(n_in)  # and the rounding of a float32 sum of this length
    assert (np.abs(got - x @ used.T) <= allowed).all()
