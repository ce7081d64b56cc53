"""Rotary position embedding: inverse frequencies for every scaling that Llama, Mistral and Qwen checkpoints use.

Papers: RoPE arXiv 2104.09864; YaRN arXiv 2309.00071 (sections 3.2 to 3.4); linear and dynamic NTK scaling were published as posts by
their authors and are defined by transformers' modeling_rope_utils.py (5.23), which is the reference here; "llama3" is defined there too.

cos and sin are computed in the graph from the positions, as upstream does: no table limits the context.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from porting.errors import CheckpointError, UnsupportedModel

from ..graph_builder import GraphBuilder

CONFIG_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")  # what an architecture passes to `read_rope`

_COMMON = {"rope_type", "type", "rope_theta"}
_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
    "freq_factors": set(),  # GGUF: one divisor per frequency, in the tensor rope_freqs.weight
}
_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
}


@dataclass(frozen=True)
class Rope:
    """Parameters of the rotary embedding of one model.

    dim:           head_dim, all of which is rotated
    theta:         base of the frequencies
    kind:          "default", "linear", "dynamic", "llama3", "yarn" or "freq_factors"
    max_positions: max_position_embeddings, positions
    parameters:    the scaling's own keys
    """

    dim: int
    theta: float
    kind: str
    max_positions: int
    parameters: Mapping[str, Any]


def read_rope(config: Mapping[str, Any], head_dim: int) -> Rope:
    """Read rope_parameters (transformers 5) or rope_theta + rope_scaling (before) from config.json.

    raises: UnsupportedModel for an unknown scaling or key, CheckpointError for a missing or senseless value
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise CheckpointError(f"rope scaling should be an object, got {scaling!r}", where="config.json")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _KEYS:
        raise UnsupportedModel(
            f"rope scaling {kind!r} is not covered",
            where="config.json",
            next=f"covered: {', '.join(sorted(_KEYS))}",
        )
    unknown = set(scaling) - _COMMON - _KEYS[kind]
    if kind == "default":  # upstream ignores every other key there; a factor that is not 1 would still be a contradiction
        unknown = {k for k in unknown if scaling[k] not in (None, 1, 1.0)}
    if unknown:
        raise UnsupportedModel(
            f"rope scaling {kind!r} has keys that are not covered: {', '.join(sorted(unknown))}", where="config.json"
        )
    if scaling.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UnsupportedModel("a partial rotary embedding is not covered", where="config.json")
    missing = [k for k in _REQUIRED.get(kind, ()) if scaling.get(k) is None]
    if missing:
        raise CheckpointError(f"rope scaling {kind!r} lacks {', '.join(missing)}", where="config.json")
    numbers = {k: v for k, v in scaling.items() if k in _KEYS[kind] and k != "truncate" and v is not None}
    numbers["rope_theta"] = scaling.get("rope_theta", config.get("rope_theta", 10000.0))
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf):
            raise CheckpointError(f"rope key {key!r} should be a positive number, got {value!r}", where="config.json")
    if head_dim % 2:
        raise CheckpointError(f"rotary embedding needs an even head_dim, got {head_dim}", where="config.json")
    if kind == "dynamic" and head_dim < 4:
        raise CheckpointError(f"dynamic scaling needs a head_dim of at least 4, got {head_dim}", where="config.json")
    return Rope(head_dim, float(numbers["rope_theta"]), kind, int(config["max_position_embeddings"]), dict(scaling))


def inverse_frequencies(rope: Rope, freq_factors: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """Inverse frequencies and the factor on cos and sin, for every scaling whose frequencies do not depend on the input.

    freq_factors: (dim / 2,) float32 divisors, for kind "freq_factors"
    returns:      (dim / 2,) float32, attention factor
    """
    exponents = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
    plain = (np.float32(1) / np.power(np.float32(rope.theta), exponents, dtype=np.float32)).astype(np.float32)
    p = rope.parameters
    if rope.kind in ("default", "dynamic"):
        return plain, 1.0
    if rope.kind == "linear":
        return plain / np.float32(p["factor"]), 1.0
    if rope.kind == "freq_factors":
        assert freq_factors is not None
        return (plain / freq_factors).astype(np.float32), 1.0
    if rope.kind == "llama3":
        return _llama3(plain, p), 1.0
    return _yarn(rope, exponents)


def _llama3(plain: np.ndarray, p: Mapping[str, Any]) -> np.ndarray:
    """Long waves are divided by the factor, short ones kept, those between blended (transformers `_compute_llama3_parameters`)."""
    length, low, high, factor = (
        float(p[k]) for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "factor")
    )
    if high <= low:
        raise CheckpointError(f"rope llama3: high_freq_factor {high} must exceed low_freq_factor {low}", where="config.json")
    wavelength = 2 * math.pi / plain
    divided = np.where(wavelength > length / low, plain / factor, plain)
    blend = (length / wavelength - low) / (high - low)
    between = (wavelength >= length / high) & (wavelength <= length / low)
    return np.where(between, (1 - blend) * divided / factor + blend * divided, divided).astype(np.float32)


def _yarn(rope: Rope, exponents: np.ndarray) -> tuple[np.ndarray, float]:
    """NTK-by-parts interpolation and the attention temperature (YaRN sections 3.2, 3.4; transformers `_compute_yarn_parameters`)."""
    p = rope.parameters
    factor = float(p["factor"])
    original = p.get("original_max_position_embeddings") or rope.max_positions
    attention = p.get("attention_factor")
    if attention is None:
        mscale, mscale_all = p.get("mscale"), p.get("mscale_all_dim")
        attention = _mscale(factor, mscale) / _mscale(factor, mscale_all) if mscale and mscale_all else _mscale(factor)

    def dimension_of(rotations: float) -> float:
        """The dimension that turns `rotations` times over the original context."""
        return rope.dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_of(p.get("beta_fast") or 32), dimension_of(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001  # upstream's guard against dividing by zero
    ramp = np.clip((np.arange(rope.dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    waves = np.power(np.float32(rope.theta), exponents, dtype=np.float32)
    interpolated, extrapolated = 1 / (np.float32(factor) * waves), 1 / waves
    return (interpolated * ramp + extrapolated * (1 - ramp)).astype(np.float32), float(attention)


def _mscale(scale: float, mscale: float = 1.0) -> float:
    return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0


def rotation(
    g: GraphBuilder, rope: Rope, positions: ir.Value, total: ir.Value, freq_factors: np.ndarray | None = None
) -> tuple[ir.Value, ir.Value]:
    """cos and sin of every position.

    positions: (batch, sequence) int64
    total:     () int64, positions known after this run: what dynamic scaling looks at
    returns:   two of (batch, sequence, dim / 2) float32
    """
    frequencies, attention_factor = inverse_frequencies(rope, freq_factors)
    with g.scope("model.rotary_emb"):
        if rope.kind == "dynamic":
            inverse = _dynamic_frequencies(g, rope, total)  # (dim/2,)
        else:
            inverse = g.constant(frequencies, "float32")
        turns = g.op("Unsqueeze", g.op("Cast", positions, to=ir.DataType.FLOAT), g.constant([2]))  # (B, S) -> (B, S, 1)
        angles = g.op("Mul", turns, inverse)  # (B, S, dim/2)
        cos, sin = g.op("Cos", angles), g.op("Sin", angles)
        if attention_factor != 1.0:
            scale = g.constant(attention_factor, "float32")
            cos, sin = g.op("Mul", cos, scale), g.op("Mul", sin, scale)
    return cos, sin


def _dynamic_frequencies(g: GraphBuilder, rope: Rope, total: ir.Value) -> ir.Value:
    """NTK scaling whose base grows with the length: base * (factor * length / max - (factor - 1)) ** (dim / (dim - 2))."""
    factor = float(rope.parameters["factor"])
    length = g.op("Cast", g.op("Max", total, g.constant(rope.max_positions)), to=ir.DataType.FLOAT)
    grown = g.op("Div", g.op("Mul", length, g.constant(factor, "float32")), g.constant(float(rope.max_positions), "float32"))
    stretch = g.op(
        "Pow", g.op("Sub", grown, g.constant(factor - 1, "float32")), g.constant(rope.dim / (rope.dim - 2), "float32")
    )
    base = g.op("Mul", stretch, g.constant(rope.theta, "float32"))
    exponents = g.constant(np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim), "float32")
    return g.op("Reciprocal", g.op("Pow", base, exponents))
