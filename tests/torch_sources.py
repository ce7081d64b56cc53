"""Inputs for torch modules, and that an exported file gives what its module gives."""

from __future__ import annotations

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime")

ROUNDING = 1e-5  # float32 sums of at most some hundred terms of size 1 in another order


def x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def require_same(source, feeds) -> None:
    """The exported file in plain onnxruntime gives what the module gives, under the same names."""
    session = ort.InferenceSession(str(source.onnx_path), providers=["CPUExecutionProvider"])
    expected = source.original().run(feeds)
    got = dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feeds)), strict=True))
    assert list(got) == list(expected) == [o.name for o in source.outputs]
    for name, reference in expected.items():
        assert got[name].shape == reference.shape and got[name].dtype == reference.dtype
        np.testing.assert_allclose(got[name], reference, atol=ROUNDING, rtol=ROUNDING)
