"""Names of dtypes. A module of its own because a session needs it and must not wait for onnx-ir to be imported."""

from __future__ import annotations

import ml_dtypes
import numpy as np


def dtype_of(name: str) -> np.dtype:
    """numpy dtype from its name, ml_dtypes' included."""
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)
