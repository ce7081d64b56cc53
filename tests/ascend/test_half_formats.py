"""What a narrow format makes of numbers: counts that are those of rounding, in chunks and at the edges."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from porting.ascend.half_formats import FORMATS, Magnitudes, magnitudes


@pytest.mark.parametrize(("form", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_formats_are_those_of_numpy(form: str, dtype: type) -> None:
    found, known = FORMATS[form], ml_dtypes.finfo(dtype)
    assert found.largest == float(known.max) and found.smallest_normal == float(known.smallest_normal)
    assert found.smallest == float(known.smallest_subnormal) and found.unit_roundoff == float(known.eps) / 2
    edge = np.array([found.overflows_from], np.float32)
    with np.errstate(over="ignore"):
        assert np.isinf(edge.astype(dtype)[0]) and not np.isinf(np.nextafter(edge, np.float32(0)).astype(dtype)[0])


@settings(max_examples=200, deadline=None)
@given(arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32)), st.sampled_from(["fp16", "bf16"]))
def test_counts_are_those_of_rounding(array: np.ndarray, form: str) -> None:
    dtype = np.dtype(np.float16 if form == "fp16" else ml_dtypes.bfloat16)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = array.astype(dtype).astype(np.float64)
    found = magnitudes(array, FORMATS[form])
    finite = np.isfinite(array)
    assert found.elements == array.size and found.nonzero == np.count_nonzero(array)
    assert found.zeros == np.count_nonzero((array != 0) & (rounded == 0))
    assert found.too_large == np.count_nonzero(finite & np.isinf(rounded))
    smallest = FORMATS[form].smallest_normal
    assert found.subnormals == np.count_nonzero((np.abs(rounded) > 0) & (np.abs(rounded) < smallest))
    assert (found.infinite, found.nan) == (np.count_nonzero(np.isinf(array)), np.count_nonzero(np.isnan(array)))
    assert found.largest == float(np.abs(array[finite]).max(initial=0.0))


@pytest.mark.parametrize(("form", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_counts_at_the_edges(form: str, dtype: type) -> None:
    known = FORMATS[form]
    edges = np.array([known.smallest / 2, known.smallest_normal - known.smallest / 2, known.overflows_from], np.float32)
    for edge in edges:
        for number in (np.nextafter(edge, np.float32(0)), edge, np.nextafter(edge, np.float32(np.inf))):
            test_counts_are_those_of_rounding.hypothesis.inner_test(np.array([number, -number]), form)


def test_chunks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    array = (np.random.default_rng(0).standard_normal((33, 7)) * 1e5).astype(np.float32)
    whole = magnitudes(array, FORMATS["fp16"])
    monkeypatch.setattr("porting.ascend.half_formats.CHUNK", 10)
    assert magnitudes(array, FORMATS["fp16"]) == whole and whole.elements == 231
    assert whole + Magnitudes() == whole
