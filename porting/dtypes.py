"""Names of dtypes. A module of its own because a session needs it and must not wait for onnx-ir to be imported."""

from __future__ import annotations

import ml_dtypes
import numpy as np

STRING = "string"  # an object array of str: numpy has no dtype for it that every version knows
_NUMBERS = frozenset(("float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e5m2", "bool")) | frozenset(
    ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
)


def dtype_of(name: str) -> np.dtype:
    """numpy dtype from its name, ml_dtypes' included. raises: TypeError for a name that is none, "string" among them"""
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)


def sequence_element(name: str) -> str | None:
    """The dtype of the arrays in a sequence: "sequence(float32)" -> "float32"; None for what is no sequence."""
    return name[len("sequence(") : -1] if name.startswith("sequence(") and name.endswith(")") else None


def is_feedable(name: str) -> bool:
    """Whether a tensor of this name can be fed or returned: a number, a string, or a sequence of either."""
    element = sequence_element(name)
    return (name if element is None else element) in _NUMBERS | {STRING}


def is_array(name: str) -> bool:
    """Whether a value of this dtype is one array of numbers: no strings, no sequence."""
    return name != STRING and sequence_element(name) is None
