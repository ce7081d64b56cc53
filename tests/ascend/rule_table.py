"""Rule -> (a graph that it speaks of, one beside it that it does not)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from ml_dtypes import float8_e5m2

from porting.ascend.graph_facts import GraphFacts
from tests.ascend.rule_cases import D2, D3, D4, D5, F, One, floats, ints, made_if

Case = One | GraphFacts
RELU = One("Relu")
I2, L2, M64 = "int32[2,3]", "int64[2,3]", "float64[3,3]"
P3, B3, OLD = "Ascend310P3", "Ascend310B1", "8.0.0"


def resize(mode: str = "nearest", inputs=(D4, None, floats(1, 1, 2, 2)), opset: int = 18, **attributes: object) -> One:
    """A Resize, rounding as the plugin does unless said."""
    return One("Resize", inputs, {"mode": mode, "nearest_mode": "round_prefer_ceil", **attributes}, [D4], opset=opset)


def recurrent(op: str, **attributes: object) -> One:
    return One(op, [D3, D3, D3], attributes, ["float32[2,1,3,4]"])


def pool(op: str = "AveragePool", x: str = D4, outputs=(D4,), **attributes: object) -> One:
    return One(op, [x], {"kernel_shape": [2, 2], **attributes}, outputs)


def conv(op: str = "Conv", x: str = D4, w: str = D4, **attributes: object) -> One:
    return One(op, [x, w], {"kernel_shape": [3, 3], **attributes}, [D4])


def with_axes(op: str, axes: np.ndarray | None, opset: int = 18) -> One:
    return One(op, [D2, axes], {}, [F], opset=opset)


OF_GRAPHS: Mapping[str, tuple[Case, Case]] = {
    "several-imports": (replace(RELU, imports={"com.microsoft": 1}), RELU),
    "local-functions": (replace(RELU, change={"functions": ("my::f",)}), RELU),
    "no-inputs": (One("Identity", [floats(1)], outputs=[F]), RELU),
    "ir-version": (replace(RELU, ir_version=9), RELU),
    "external-key": (
        replace(RELU, change={"external_keys": frozenset(("location", "checksum"))}),
        replace(RELU, change={"external_keys": frozenset(("location", "offset", "length"))}),
    ),
    "duplicate-names": (replace(RELU, change={"nodes": RELU.facts().nodes * 2}), RELU),
    "io-names": (replace(RELU, names="a;b"), replace(RELU, names="a/b:c")),
    "output-names": (replace(RELU, change={"outputs": (replace(RELU.facts().outputs[0], name="y:0"),)}), RELU),
    "input-default": (replace(RELU, change={"inputs": One("Relu", [floats(1)]).facts().nodes[0].inputs}), RELU),
    "input-unranked": (One("Relu", ["float32"]), RELU),
    "input-dtype": (One("Relu", ["int64[2]"]), One("Relu", ["uint8[2]"])),
    "input-rank": (One("Relu", [D5]), One("Relu", [D4])),
    "no-tensor": (replace(RELU, change={"inputs": (replace(RELU.facts().inputs[0], dtype="sequence(float32)"),)}), RELU),
    "opset-of-old-cann": (replace(RELU, cann="6.0.1"), replace(RELU, opset=13)),
    "bf16-precision": (replace(RELU, precision="bf16", soc=P3), replace(RELU, precision="bf16")),
    "bf16-precision-unknown": (replace(RELU, precision="bf16", soc=B3), replace(RELU, precision="bf16")),
}

MISSING: Mapping[str, tuple[Case, Case]] = {
    "missing-rms-normalization": (One("RMSNormalization", opset=23), RELU),
    "missing-rotary-embedding": (One("RotaryEmbedding", opset=23), RELU),
    "missing-attention": (One("Attention", opset=23), RELU),
    "missing-gelu": (One("Gelu", opset=20), RELU),
    "missing-group-normalization": (One("GroupNormalization", opset=21), RELU),
    "missing-swish": (One("Swish", opset=24), RELU),
    "missing-tensor-scatter": (One("TensorScatter", opset=24), RELU),
    "missing-layer-normalization": (One("LayerNormalization", opset=16), One("LayerNormalization", opset=17)),
    "missing-rnn": (One("RNN"), One("LSTM")),
    "missing-loop": (One("Loop"), made_if()),
    "missing-reduce-norms": (with_axes("ReduceL2", ints(1)), with_axes("ReduceL2", ints(1), 17)),
    "missing-quantized": (One("DequantizeLinear"), One("AscendDequant")),
    "missing-scan": (One("Scan"), RELU),
    "missing-sequence-map": (One("SequenceMap"), One("SequenceAt")),
    "missing-optional": (One("OptionalHasElement"), RELU),
    "missing-strings": (One("StringConcat", opset=20), RELU),
    "missing-image-decoder": (One("ImageDecoder", opset=20), RELU),
    "missing-spectra": (One("STFT"), RELU),
    "missing-deform-conv": (One("DeformConv", opset=19), One("DeformableConv2D", opset=16)),
    "missing-affine-grid": (One("AffineGrid", opset=20), One("AffineGrid", opset=16)),
    "missing-center-crop-pad": (One("CenterCropPad"), RELU),
    "missing-losses": (One("NegativeLogLikelihoodLoss"), One("SoftmaxCrossEntropyLoss")),
    "missing-later": (One("CumProd", opset=26), One("CumSum")),
    "missing-dynamic-lstm": (
        One("DynamicQuantizeLSTM", domain="com.microsoft"),
        One("DynamicQuantizeMatMul", domain="com.microsoft"),
    ),
    "contrib-rewritten": (One("BiasGelu", domain="com.microsoft"), One("BiasGelu", domain="mine")),
    "contrib": (One("QAttention", domain="com.microsoft"), One("BiasGelu", domain="com.microsoft")),
    "missing-ml": (One("TreeEnsemble", domain="ai.onnx.ml"), RELU),
    "missing-training": (One("Gradient", domain="ai.onnx.preview.training"), RELU),
    "missing-npu": (One("NPUGeGlu", domain="npu"), One("NPUGeglu", domain="npu")),
    "missing-domain": (One("Mine", domain="mine"), One("NMSRotated", domain="mmdeploy")),
    "opset-too-high": (replace(RELU, opset=19), RELU),
    "opset-too-low": (replace(RELU, opset=7), replace(RELU, opset=8)),
    "opset-without-entry": (One("Mish", opset=17), One("Mish", opset=18)),
    "no-parser": (One("Nonsense"), RELU),
    "not-published": (One("CastLike", [D2, I2], {}, [I2]), One("CastLike", [D2, I2], {}, [I2], cann="9.2.0")),
    "layer-normalization-old-cann": (One("LayerNormalization", cann="7.0.0"), One("LayerNormalization", cann="8.0.0")),
}

OF_DTYPES: Mapping[str, tuple[Case, Case]] = {
    "bf16": (One("Relu", ["bfloat16[2]"], soc=P3), One("Relu", ["bfloat16[2]"])),
    "bf16-unknown": (One("Relu", ["bfloat16[2]"], soc=B3), One("Relu", ["bfloat16[2]"])),
    "double": (One("Cast", [D2], outputs=["float64[2,3]"]), One("MatMul", [M64, M64], outputs=[M64])),
    "double-kept": (
        One("MatMul", [M64, M64], outputs=[M64]),
        One("MatMul", [M64, M64], outputs=[M64], soc=P3, precision="fp16"),
    ),
    "double-lowered": (
        One("Conv", [f"float64{D4[7:]}", f"float64{D4[7:]}"], soc=P3, precision="fp16"),
        One("Add", [M64, M64], outputs=[M64], soc=P3, precision="fp16"),
    ),
    "double-gather-nd": (
        One("GatherND", [M64, L2]),
        One("GatherND", [M64, L2], precision="fp16"),
    ),
    "fp8": (One("Relu", ["float8_e4m3fn[2]"]), One("Relu", ["float8_e4m3fn[2]"], soc="Ascend950PR_9599")),
    "fp8-constant": (
        One("Add", [np.zeros(2, float8_e5m2), F], soc="Ascend950PR_9599"),
        One("Add", ["float8_e5m2[2]", F], soc="Ascend950PR_9599"),
    ),
    "fp8-unknown": (One("Relu", ["float8_e5m2[2]"], soc="Ascend950PR_9599"), One("Relu", soc="Ascend950PR_9599")),
    "unmapped-dtype": (One("Relu", ["uint4[2]"]), RELU),
    "int4-old": (One("Relu", ["int4[2]"], cann="9.1.0"), One("Relu", ["int4[2]"], cann="9.2.0")),
    "int4": (One("Relu", ["int4[2]"], cann="9.2.0"), One("Relu", ["int4[2]"], cann="9.1.0")),
    "complex": (One("Identity", ["complex64[2]"]), RELU),
    "strings": (One("Identity", ["string[2]"], outputs=["string[2]"]), RELU),
    "zero-sized": (One("Relu", outputs=["float32[0,3]"]), One("Relu", outputs=["float32[n,3]"])),
    "infinite-constant": (One("Add", [F, floats(-np.inf)], soc=P3), One("Add", [F, floats(-np.inf)])),
    "saturation": (One("IsNaN", soc=P3), One("IsNaN")),
    "fp16-constant": (One("Add", [F, floats(1e5)], precision="fp16"), One("Add", [F, floats(1e5)])),
    "fp16-constant-negative": (
        One("Add", [F, floats(-1e9)], precision="fp16"),
        One("Add", [F, floats(-6e4)], precision="fp16"),
    ),
    "fp32-cube": (One("MatMul", [D2, D2], soc=P3), One("MatMul", [D2, D2], soc=P3, precision="fp16")),
    "fp16-documented": (One("MatMul", [D2, D2]), One("MatMul", [D2, D2], soc=P3)),
    "conv-3d-fp32": (conv(x=D5), conv()),
    "conv-transpose-fp32": (conv("ConvTranspose"), conv("ConvTranspose", "float16[1,3,8,8]")),
    "bf16-prototype": (One("GridSample", ["bfloat16[1,3,8,8]", D4]), One("GridSample", [D4, D4])),
    "einsum-prototype": (One("Einsum", [L2], {"equation": "ij->ji"}), One("Einsum", [D2], {"equation": "ij->ji"})),
    "dtype-where": (One("Where", ["bool[2,3]", L2, L2]), One("Where", ["bool[2,3]", D2, D2])),
    "cast-target": (One("Cast", outputs=[L2]), One("Cast", outputs=[I2])),
    "cast-int8": (One("Cast", [I2], outputs=["int8[2,3]"]), One("Cast", outputs=["int8[2,3]"])),
    "cast-int16": (One("Cast", ["float16[2]"], outputs=["int16[2]"]), One("Cast", outputs=["int16[2]"])),
    "cast-undefined": (One("Cast", outputs=["float8_e4m3fn[2]"]), One("Cast", outputs=["bfloat16[2]"])),
    "cast-saturate": (One("Cast", [D2], {"saturate": 0}), One("Cast", [D2], {"saturate": 1})),
    "pow-mixed": (One("Pow", [D2, L2]), One("Pow", [D2, D2])),
    "integer-division": (One("Div", [L2, L2]), One("Div", [D2, D2])),
}

OF_ATTRIBUTES: Mapping[str, tuple[Case, Case]] = {
    "shape-slice": (One("Shape", [D3], {"end": -1}), One("Shape", [D3], {"start": 0, "end": 3})),
    "mod-fmod": (One("Mod", [D2, D2], {"fmod": 1}), One("Mod", [I2, I2], {"fmod": 0})),
    "gemm-alpha": (One("Gemm", [D2, D2], {"alpha": 0.5}), One("Gemm", [D2, D2, F], {"alpha": 0.5})),
    "gemm-documents": (One("Gemm", [D2, D2, F], cann="9.0.0"), One("Gemm", [D2, D2, F], cann="9.1.0")),
    "gemm-fp32-old-opset": (One("Gemm", [D2, D2], opset=10), One("Gemm", [D2, D2], opset=11)),
    **{
        f"{op.lower()}-{name}": (recurrent(op, **hit), recurrent(op, **miss))
        for op in ("LSTM", "GRU")
        for name, hit, miss in (
            ("layout", {"layout": 1}, {"layout": 0}),
            (
                "activations",
                {"activations": ["Tanh", "Tanh", "Tanh"]},
                {"activations": ["Sigmoid", "Tanh", "Tanh"][: 3 if op == "LSTM" else 2]},
            ),
            ("clip", {"clip": 3.0}, {}),
        )
    },
    "lstm-input-forget": (recurrent("LSTM", input_forget=1), recurrent("LSTM", input_forget=0)),
    "gru-reset": (recurrent("GRU", linear_before_reset=1), recurrent("GRU", linear_before_reset=0)),
    "resize-few-inputs": (resize(inputs=(D4,)), resize()),
    "resize-nearest": (resize(nearest_mode="floor"), resize("linear", nearest_mode="floor")),
    "resize-nearest-space": (resize(inputs=(D4, None, floats(1, 2, 2, 2))), resize(inputs=(D4, None, None, ints(1, 3, 9, 9)))),
    "resize-cubic": (resize("cubic"), resize("linear")),
    "resize-cubic-coefficient": (resize("cubic", cubic_coeff_a=-0.5), resize("cubic", cubic_coeff_a=-0.75)),
    "resize-exclude-outside": (resize("cubic", exclude_outside=1), resize("cubic")),
    "resize-crop": (resize("linear", coordinate_transformation_mode="tf_crop_and_resize"), resize("linear")),
    "resize-antialias": (resize("linear", antialias=1), resize("linear", antialias=0)),
    "resize-axes": (resize("linear", axes=[2, 3]), resize("linear")),
    "resize-aspect-ratio": (resize(keep_aspect_ratio_policy="not_larger"), resize(keep_aspect_ratio_policy="stretch")),
    "resize-sizes": (resize(inputs=(D4, None, None, "int64[4]")), resize()),
    "resize-3d": (resize("linear", (D5, None, floats(1, 1, 2, 2, 2))), resize("linear")),
    "pad-axes": (One("Pad", [D2, ints(1, 1), None, ints(1)]), One("Pad", [D2, ints(0, 1, 0, 1)])),
    "pad-wrap": (One("Pad", [D2, ints(0, 1, 0, 1)], {"mode": "wrap"}), One("Pad", [D2, ints(0, 1, 0, 1)], {"mode": "edge"})),
    "pad-value": (One("Pad", [D2, ints(0, 1, 0, 1), floats(1)]), One("Pad", [D2, ints(0, 1, 0, 1), floats(0)])),
    "reduce-axes": (with_axes("ReduceSum", None), with_axes("ReduceSum", ints(0))),
    "negative-indices": (One("Gather", [D2, ints(0, -1)]), One("Gather", [D2, ints(0, 1)])),
    "indices-unknown": (One("ScatterND", [D2, "int64[1,1]", D2]), One("ScatterND", [D2, ints(1).reshape(1, 1), D2])),
    "gather-nd-batch": (One("GatherND", [D2, L2], {"batch_dims": 1}), One("GatherND", [D2, L2])),
    "scatter-nd-reduction": (
        One("ScatterND", [D2, L2, D2], {"reduction": "add"}, cann="9.1.0"),
        One("ScatterND", [D2, L2, D2], {"reduction": "add"}, cann="9.2.0"),
    ),
    "scatter-nd-mul": (
        One("ScatterND", [D2, L2, D2], {"reduction": "mul"}, cann="9.2.0"),
        One("ScatterND", [D2, L2, D2], {"reduction": "max"}, cann="9.2.0"),
    ),
    "scatter-elements-reduction": (
        One("ScatterElements", [D2, L2, D2], {"reduction": "add"}),
        One("ScatterElements", [D2, L2, D2]),
    ),
    "clip-bounds": (One("Clip"), One("Clip", [D2, None, floats(1).reshape(())])),
    "is-inf": (One("IsInf", [D2], {"detect_negative": 0}), One("IsInf")),
    "transpose-perm": (One("Transpose"), One("Transpose", [D2], {"perm": [1, 0]})),
    "constant-form": (One("Constant", [], {"value_floats": [1.0]}), RELU),
    "batch-norm-epsilon": (One("BatchNormalization", [D4]), One("BatchNormalization", [D4], {"epsilon": 1e-5})),
    "batch-norm-rank": (One("BatchNormalization", [D3], {"epsilon": 1e-5}), One("BatchNormalization", [D4])),
    "batch-norm-training": (One("BatchNormalization", [D4], {"training_mode": 1}), One("BatchNormalization", [D4])),
    "dropout-mask": (One("Dropout", outputs=[D2, "bool[2,3]"], change={}), One("Dropout")),
    "dropout-training": (One("Dropout", [D2, None, np.array(True)]), One("Dropout", [D2, None, np.array(False)])),
    "softmax-axis": (One("Softmax", [D3], {"axis": 1}, opset=12), One("Softmax", [D3], {"axis": 2}, opset=12)),
    "arg-last": (One("ArgMax", [D2], {"select_last_index": 1}), One("ArgMax")),
    "selu": (One("Selu", [D2], {"alpha": 1.5}), One("Selu", [D2], {"alpha": 1.6732631921768188})),
    "lrn-size": (One("LRN", [D4], {"size": 4}), One("LRN", [D4], {"size": 5})),
    "conv-bare": (One("Conv", [D4, D4]), conv()),
    "conv-3d-pad": (conv(x=D5, auto_pad="SAME_UPPER"), conv(x=D5, auto_pad="VALID")),
    "conv-group": (conv(group=3), conv(group=1)),
    "conv-limits": (conv(strides=[64, 1]), conv(strides=[63, 1])),
    "conv-transpose-rank": (conv("ConvTranspose", D3, D3), conv("ConvTranspose")),
    "conv-transpose-kernel": (One("ConvTranspose", [D4, D4]), conv("ConvTranspose")),
    "conv-transpose-pad": (conv("ConvTranspose", auto_pad="VALID"), conv("ConvTranspose", auto_pad="NOTSET")),
    "conv-transpose-old-cann": (replace(conv("ConvTranspose", D5), cann="7.0.1"), replace(conv("ConvTranspose", D5), cann=OLD)),
    "conv-transpose-dilations": (
        conv("ConvTranspose", dilations=[1, 2]),
        replace(conv("ConvTranspose", dilations=[1, 2]), cann=OLD),
    ),
    "max-pool-indices": (pool("MaxPool", outputs=[D4, D4]), pool("MaxPool")),
    "max-pool-order": (pool("MaxPool", storage_order=1), pool("MaxPool")),
    "max-pool-dilations": (pool("MaxPool", dilations=[1, 2]), pool("MaxPool", dilations=[1, 1])),
    "max-pool-valid": (pool("MaxPool", auto_pad="VALID", ceil_mode=1), pool("MaxPool", auto_pad="VALID")),
    "max-pool-fp32": (replace(pool("MaxPool"), cann=OLD), replace(pool("MaxPool"), cann="8.1.RC1")),
    "pool-rank": (pool(x="float32[1,1,2,2,2,2]"), pool(x=D5)),
    "average-pool-same-lower": (pool(auto_pad="SAME_LOWER"), pool(auto_pad="SAME_UPPER")),
    "average-pool-dilations": (pool(dilations=[2, 2]), pool(dilations=[1, 1])),
    "average-pool-count-pad": (pool(count_include_pad=1, pads=[0, 0, 1, 1]), pool(count_include_pad=1, pads=[0, 0, 0, 0])),
    "average-pool-ceil": (pool(ceil_mode=1, auto_pad="VALID"), pool(ceil_mode=1)),
    "pool-width": (pool(x="float32[1,3,8,4097]"), pool(x="float32[1,3,8,4096]")),
    "pool-window": (pool(kernel_shape=[17, 16]), pool(kernel_shape=[16, 16])),
    "lp-pool": (pool("LpPool", ceil_mode=1), pool("LpPool")),
    "lp-pool-dilations": (pool("LpPool", dilations=[2, 1]), pool("LpPool")),
    "matmul-rank": (One("MatMul", ["float32[1,1,1,1,1,2,2]", D2]), One("MatMul", [D5, D2])),
    "upsample-mode": (One("Upsample", [D4], {"mode": "cubic"}, opset=9), One("Upsample", [D4], {"mode": "linear"}, opset=9)),
    "eye-like-dtype": (One("EyeLike", outputs=["int8[2,3]"]), One("EyeLike")),
    "constant-of-shape-dtype": (One("ConstantOfShape", [ints(2)], outputs=["uint16[2]"]), One("ConstantOfShape", [ints(2)])),
    "random-normal-dtype": (One("RandomNormal", [], outputs=["bfloat16[2]"]), One("RandomNormal", [])),
    "random-uniform-dtype": (One("RandomUniform", [], outputs=["float64[2]"]), One("RandomUniform", [])),
    "dropped-node": (One("RandomNormal", [], cann="9.1.0"), One("RandomNormal", [], cann="9.2.0")),
    "grid-sample-rank": (One("GridSample", [D5, D5]), One("GridSample", [D4, D4])),
    "grid-sample-mode": (One("GridSample", [D4, D4], {"mode": "bicubic"}), One("GridSample", [D4, D4], {"mode": "nearest"})),
    "slice-rank": (One("Slice", [F, ints(0), ints(1)]), One("Slice", [D2, ints(0), ints(1)])),
    "slice-last-step": (
        One("Slice", [D2, ints(0), ints(2), ints(-1), ints(2)]),
        One("Slice", [D2, ints(0), ints(2), ints(0), ints(2)]),
    ),
    "split-sizes": (One("Split", [D2, ints(1, 2)], {"axis": 1}), One("Split", ["float32[2,4]", ints(2, 2)], {"axis": 1})),
    "split-uneven": (
        One("Split", [D2], {"axis": 1, "num_outputs": 2}, [D2, D2]),
        One("Split", [D2], {"num_outputs": 2}, [D2, D2]),
    ),
    "expand-shape": (One("Expand", [D2, "int64[3]"]), One("Expand", [D2, ints(2, 2, 3)])),
    "top-k-order": (One("TopK", [D2, ints(1)]), One("TopK", [D2, ints(1)], {"sorted": 0})),
    "top-k-unwritten": (One("TopK", [D2, ints(1)]), One("TopK", [D2, ints(1)], {"sorted": 1})),
    "einsum-equation": (
        One("Einsum", [D2, D2], {"equation": "ij,jk->ik"}),
        One("Einsum", [D2, D2], {"equation": "ij, kj -> ik"}),
    ),
    "documented-opset": (One("Clip", opset=17), One("Clip", opset=16)),
    "grid-sample-opset": (One("GridSample", [D4, D4], opset=18), One("GridSample", [D4, D4], opset=16)),
    "resize-opset-13": (resize(opset=13), resize(opset=14)),
    "pad-opset-12": (One("Pad", [D2, ints(0, 1, 0, 1)], opset=12), One("Pad", [D2, ints(0, 1, 0, 1)], opset=13)),
    "if-returns-outer": (made_if(returned=True), made_if()),
    "if-captures-deeper": (made_if(deeper=True), made_if()),
    "if-weights-outside": (made_if(weight=1000), made_if(weight=10)),
    "unsized-output": (
        One("NonZero", outputs=["int64[2,n]"]),
        One("ConstantOfShape", [ints(3, 2)], outputs=["float32[3,2]"]),
    ),
    "sized-by-values": (One("NonZero", outputs=["int64[2,n]"]), One("Reshape", [D2, ints(3, 2)], outputs=["float32[3,2]"])),
}

CASES = {**OF_GRAPHS, **MISSING, **OF_DTYPES, **OF_ATTRIBUTES}
