"""Rotary position embedding: inverse frequencies for every scaling that Llama, Mistral and Qwen checkpoints use.

Papers: RoPE arXiv 2104.09864; YaRN arXiv 2309.00071 (sections 3.2 to 3.4); linear and dynamic NTK scaling were published as posts by
their authors and are defined by transformers' modeling_rope_utils.py (5.23), which is the reference here; "llama3" is defined there too.

cos and sin are computed in the graph from the positions, as upstream does: no table limits the context.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

import numpy as np
import onnx_ir as ir

from porting.errors import CheckpointError, UnsupportedModel

from ..config import require_positive
from ..graph_builder import GraphBuilder

CONFIG_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")  # what an architecture passes to `read_rope`

TOO_LARGE = 2.0**40  # above every base and factor in use (published bases end near 5e10); 1 / TOO_LARGE is below every one
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

    raises: UnsupportedModel for an unknown scaling or key, CheckpointError for a missing, senseless or contradictory value
    """
    scaling = _scaling(config)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    _require_known(scaling, kind)
    missing = [k for k in _REQUIRED.get(kind, ()) if scaling.get(k) is None]
    if missing:
        raise CheckpointError(f"rope scaling {kind!r} lacks {', '.join(missing)}", where="config.json")
    thetas = [t for t in (scaling.get("rope_theta"), config.get("rope_theta")) if t is not None] or [10000.0]
    if thetas[0] != thetas[-1]:
        raise CheckpointError(f"rope_theta is given twice and differs: {thetas[0]!r}, {thetas[-1]!r}", where="config.json")
    for key in sorted(_KEYS[kind] - {"truncate"}):
        if scaling.get(key) is not None:
            require_positive(key, scaling[key], TOO_LARGE)
            if scaling[key] < 1 / TOO_LARGE:
                raise CheckpointError(f"rope key {key!r} is senselessly small: {scaling[key]!r}", where="config.json")
    require_positive("rope_theta", thetas[0], TOO_LARGE)
    if thetas[0] <= 1:
        raise CheckpointError(f"rope_theta should be above 1, got {thetas[0]!r}", where="config.json")
    if not isinstance(scaling.get("truncate", True), bool):
        raise CheckpointError(f"rope key 'truncate' should be a bool, got {scaling['truncate']!r}", where="config.json")
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise CheckpointError("rope llama3: high_freq_factor must exceed low_freq_factor", where="config.json")
    if head_dim % 2:
        raise CheckpointError(f"rotary embedding needs an even head_dim, got {head_dim}", where="config.json")
    if kind == "dynamic" and head_dim < 4:
        raise CheckpointError(f"dynamic scaling needs a head_dim of at least 4, got {head_dim}", where="config.json")
    return Rope(head_dim, float(thetas[0]), kind, int(config["max_position_embeddings"]), dict(scaling))


def _scaling(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one object that describes the scaling; {} for none."""
    given = [config[k] for k in ("rope_parameters", "rope_scaling") if config.get(k) is not None]
    for scaling in given:
        if not isinstance(scaling, Mapping):
            raise CheckpointError(f"rope scaling should be an object, got {short(scaling)}", where="config.json")
    given = [scaling for scaling in given if scaling]
    if len(given) == 2 and given[0] != given[1]:
        raise CheckpointError("rope_parameters and rope_scaling are both given and differ", where="config.json")
    return given[0] if given else {}


def _require_known(scaling: Mapping[str, Any], kind: Any) -> None:
    if not isinstance(kind, str) or kind not in _KEYS:
        raise UnsupportedModel(
            f"rope scaling {short(kind)} is not covered",
            where="config.json",
            next=f"covered: {', '.join(sorted(_KEYS))}",
        )
    if scaling.get("type", kind) != kind:  # upstream reads rope_type and forgets the other; which one was trained is not known
        raise CheckpointError(
            f"rope scaling is {kind!r} by rope_type and {short(scaling['type'])} by type", where="config.json: rope_scaling"
        )
    neutral = {"partial_rotary_factor"}  # a part of head_dim is rotated; 1 is all of it
    if kind == "default":  # upstream ignores every other key there; a factor that is not 1 would still be a contradiction
        neutral = set(scaling)
    unknown = set(scaling) - _COMMON - _KEYS[kind]
    unknown -= {k for k in unknown & neutral if scaling[k] in (None, 1)}
    if unknown:
        raise UnsupportedModel(
            f"rope scaling {kind!r} has keys that are not covered: {', '.join(sorted(map(short, unknown)))}",
            where="config.json",
        )


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
