"""Operators of onnxruntime's own domain that have an exact form in the standard's.

    FusedMatMul(a, b, transB=1, alpha=s)  ->  Mul(MatMul(a, Transpose(b)), s)
    FusedConv, FusedGemm                  ->  Conv or Gemm, then the activation
    Gelu, BiasGelu, FastGelu, QuickGelu   ->  as gelu.py and swish.py, behind the addition of the bias
    [Skip][Simplified]LayerNormalization  ->  the addition, then LayerNormalization, or as rms_normalization.py
    RotaryEmbedding                       ->  as rotary_embedding.py

Why: CANN's parser knows nothing of com.microsoft. onnxruntime's optimiser leaves these in files that it saves.

Refuses (leaves the node) when a type, rank or size that is needed is not known, an output is read that has no form here (mean, deviation), batches
are transposed, an activation is not one of those below, or positions are counted from an offset.
Bound: the operators' definitions; onnxruntime's own kernels sum in another order, and approximate tanh and erf.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ..infer_shapes import infer_shapes
from ..rewriting import ModelPass
from .gelu import gelu_of, tanh_gelu_of
from .layer_normalization import STANDARD, layer_normalization_of
from .making import Maker, Refused, dimension, float_type, rank_of, rewriting
from .rms_normalization import normalised, rms_normalization_of
from .rotary_embedding import rotated
from .swish import swish_of

MICROSOFT = "com.microsoft"
ACTIVATIONS = {  # operator -> names of its parameters, and what they are when not given
    "Relu": {},
    "Sigmoid": {},
    "Tanh": {},
    "LeakyRelu": {"alpha": 0.01},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
}


def _fused_mat_mul(make: Maker) -> ir.Value:
    a, b = make.input(0), make.input(1)
    kind, alpha = float_type(a), make.float("alpha", 1.0)
    if make.int("transBatchA", 0) or make.int("transBatchB", 0):
        raise Refused("batches are transposed")
    a, b = (_transposed(make, v) if make.int(name, 0) else v for v, name in ((a, "transA"), (b, "transB")))
    product = make("MatMul", a, b)
    return product if alpha == 1 else make("Mul", product, make.scalar(alpha, kind))


def _transposed(make: Maker, value: ir.Value) -> ir.Value:
    """The last two axes change places."""
    rank = rank_of(value)
    if rank < 2:
        raise Refused("a vector")
    return make("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def _activated(make: Maker, value: ir.Value, kind: ir.DataType, parameters: list[float]) -> ir.Value:
    name = make.text("activation", "")
    if not name:
        return value
    if name == "Clip" and len(parameters) == 2:
        return make("Clip", value, *(make.scalar(p, kind) for p in parameters))
    if name not in ACTIVATIONS:
        raise Refused(f"activation {name}")
    given = dict(zip(ACTIVATIONS[name], parameters, strict=False))
    return make(name, value, **{**ACTIVATIONS[name], **given})


def _fused_conv(make: Maker) -> ir.Value:
    kind = float_type(make.input(0))
    attributes: dict[str, Any] = {
        name: attribute.value for name, attribute in make.node.attributes.items() if not name.startswith("activation")
    }
    bias, added = make.optional(2), make.optional(3)
    result = make("Conv", make.input(0), make.input(1), *([] if bias is None else [bias]), **attributes)
    result = result if added is None else make("Add", result, added)
    given = make.node.attributes["activation_params"].as_floats() if "activation_params" in make.node.attributes else ()
    return _activated(make, result, kind, list(given))


def _fused_gemm(make: Maker) -> ir.Value:
    kind, bias = float_type(make.input(0)), make.optional(2)
    attributes: dict[str, Any] = {
        n: make.node.attributes[n].value for n in ("alpha", "beta", "transA", "transB") if n in make.node.attributes
    }
    result = make("Gemm", make.input(0), make.input(1), *([] if bias is None else [bias]), **attributes)
    given = [f"activation_{name}" for name in ("alpha", "beta")]
    return _activated(make, result, kind, [make.float(n, 0.0) for n in given if n in make.node.attributes])


def _biased(make: Maker) -> tuple[ir.Value, ir.DataType]:
    x, bias = make.input(0), make.optional(1)
    kind = float_type(x)
    return (x if bias is None else make("Add", x, bias)), kind


def _gelu(make: Maker) -> ir.Value:
    return gelu_of(make, *_biased(make))


def _fast_gelu(make: Maker) -> ir.Value:
    return tanh_gelu_of(make, *_biased(make))


def _quick_gelu(make: Maker) -> ir.Value:
    return swish_of(make, make.input(0), make.float("alpha", 1.702))


def _summed(make: Maker, bias_place: int) -> tuple[ir.Value, ir.DataType]:
    """input + skip + bias, the second output of the Skip operators."""
    if make.used(1) or make.used(2):
        raise Refused("mean or deviation is read")
    x = make.input(0)
    kind, bias = float_type(x), make.optional(bias_place)
    total = make("Add", x, make.input(1))
    return (total if bias is None else make("Add", total, bias)), kind


def _skip_layer_normalization(make: Maker) -> list[ir.Value | None]:
    total, kind = _summed(make, 4)
    scale, bias, epsilon = make.input(2), make.optional(3), make.float("epsilon", 1e-12)
    if make.opset >= STANDARD:
        normal = make("LayerNormalization", total, scale, *([] if bias is None else [bias]), axis=-1, epsilon=epsilon)
    else:
        normal = layer_normalization_of(make, total, kind, [-1], epsilon, scale, bias)
    return [normal, None, None, total if make.used(3) else None]


def _skip_simplified(make: Maker) -> list[ir.Value | None]:
    total, kind = _summed(make, 3)
    normal = normalised(make, total, kind, [-1], make.float("epsilon", 1e-12))
    return [make("Mul", normal, make.input(2)), None, None, total if make.used(3) else None]


def _rotary_embedding(make: Maker) -> ir.Value:
    x, positions, cos, sin = (make.input(i) for i in range(4))
    if rank_of(positions) != 2 or make.float("scale", 1.0) != 1 or make.int("is_packed_batching", 0):
        raise Refused("positions are an offset, or packed")
    half = dimension(cos, 1)
    whole_head = not make.int("num_heads", 0) and half is not None  # then all of a head turns
    return rotated(make, x, cos, sin, positions, make.int("num_heads", 0), 2 * half if whole_head and half else None)


_sweep = rewriting(
    {
        (MICROSOFT, "FusedMatMul"): _fused_mat_mul,
        (MICROSOFT, "FusedConv"): _fused_conv,
        (MICROSOFT, "FusedGemm"): _fused_gemm,
        (MICROSOFT, "Gelu"): _gelu,
        (MICROSOFT, "BiasGelu"): _gelu,
        (MICROSOFT, "FastGelu"): _fast_gelu,
        (MICROSOFT, "QuickGelu"): _quick_gelu,
        (MICROSOFT, "SimplifiedLayerNormalization"): rms_normalization_of,
        ("", "SimplifiedLayerNormalization"): rms_normalization_of,  # where onnxruntime has it
        (MICROSOFT, "SkipLayerNormalization"): _skip_layer_normalization,
        (MICROSOFT, "SkipSimplifiedLayerNormalization"): _skip_simplified,
        (MICROSOFT, "RotaryEmbedding"): _rotary_embedding,
    }
)


@ModelPass
def linear_contrib(model: ir.Model) -> int:
    """Rewrite every one. Count: nodes rewritten. Types behind one are known once it is rewritten. Source: onnxruntime ContribOperators.md."""
    total = 0
    while changes := _sweep(model):
        total += changes
        infer_shapes.change(model)
    return total
