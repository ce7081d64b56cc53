"""Graphs for rules about attributes, inputs and sizes of operators, see probe_table.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from porting.ascend.probe_graphs import ProbeGraph
from porting.ascend.probe_plain import RELU, Pair

X2, X3, X4, X5 = "(float[2,3] x)", "(float[2,3,4] x)", "(float[1,2,8,8] x)", "(float[1,2,4,4,4] x)"


def _one(inputs: str, hit: str, miss: str, *, held: str = "", outputs: str = "y", **fields: Any) -> Pair:
    """Two graphs of one node. inputs: "(float[2,3] x)"; hit, miss: "Relu(x)"; held: constants of both, as ONNX's text form has them"""
    hit, miss = (f"{inputs} => ({outputs}) {held and f'<{held}>'} {{ {outputs} = {call} }}" for call in (hit, miss))
    return ProbeGraph(hit, **fields), ProbeGraph(miss, **fields)


def _lone(text: str, control: ProbeGraph = RELU, **fields: Any) -> Pair:
    return ProbeGraph(text, **fields), control


def _recurrent(op: str, hit: str, miss: str = "", b: bool = False) -> Pair:
    gates = {"LSTM": 4, "GRU": 3}[op] * 4
    shapes: dict[str, Any] = {"w": (1, gates, 3), "r": (1, gates, 4), "b": (1, 2 * gates)}
    shapes = {name: shape for name, shape in shapes.items() if b or name != "b"}
    more = "".join(f", float[{','.join(map(str, shape))}] {name}" for name, shape in shapes.items())
    calls = (f"{op}<hidden_size = 4{extra and ', ' + extra}>(x, {', '.join(shapes)})" for extra in (hit, miss))
    return _one(f"(float[2,3,3] x{more})", *calls, constants=shapes)


def _resize(attributes: str, miss: str = 'mode = "linear"', scales: str = "1, 1, 2, 2", **fields: Any) -> Pair:
    held = f"float[4] s = {{{scales}}}"
    return _one(X4, f"Resize<{attributes}>(x, , s)", f"Resize<{miss}>(x, , s)", held=held, **fields)


def _pool(op: str, hit: str, miss: str, inputs: str = X4) -> Pair:
    return _one(inputs, f"{op}<{hit}>(x)", f"{op}<{miss}>(x)")


def _conv(op: str, hit: str, miss: str, inputs: str = "(float[1,2,8,8] x, float[2,2,3,3] w)", **fields: Any) -> Pair:
    hits, misses = (f"{op}{extra and f'<{extra}>'}(x, w)" for extra in (hit, miss))
    return _one(inputs, hits, misses, **fields)


NEAREST = 'mode = "nearest", nearest_mode = "{}"'
CEIL = NEAREST.format("round_prefer_ceil")
CUBIC = 'mode = "cubic"'
K2, K3 = "kernel_shape = [2, 2]", "kernel_shape = [3, 3]"
PAST_THE_END = f"{K2}, strides = [2, 2], pads = [0, 0, 1, 1]"  # of 8: a fifth window would read padding alone
CONV_3D = "(float[1,2,4,4,4] x, float[2,2,3,3,3] w)"
NORMALISED = "(float[1,2,4,4] x, float[2] s, float[2] b, float[2] m, float[2] v)"
STATISTICS = {"s": [1, 2], "b": [0, 1], "m": [0, 0], "v": [1e-4, 1e-4]}
FRACTIONS = {"x": [7.5, -7.5, 7.5, -7.5], "z": [2.0, 2.0, -2.0, -2.0]}
BRANCHES = "(float[2] x, bool c) => (float[2] y) {{ y = If(c) <then_branch = t () => (float[2] a) {} , else_branch = e () => (float[2] b) {{ b = Neg(x) }}> }}"
INNER = "{ a = If(c) <then_branch = p () => (float[2] d) { d = Abs(x) }, else_branch = q () => (float[2] f) { f = Exp(x) }> }"
PLAIN_IF = ProbeGraph(BRANCHES.format("{ a = Relu(x) }"), feeds={"c": True})
SMALL_WEIGHT = ProbeGraph(BRANCHES.format("<float[2] w = {1, 2}> { a = Add(x, w) }"), feeds={"c": True}, outside=None)

RESIZES: Mapping[str, Pair] = {
    "resize-few-inputs": (ProbeGraph(f"{X4} => (float[1,2,8,8] y) {{ y = Resize(x) }}"), _resize(CEIL)[0]),
    "resize-nearest": _resize(NEAREST.format("floor"), CEIL),
    "resize-nearest-space": (_resize(CEIL, scales="1, 2, 2, 2")[0], _resize(CEIL)[0]),
    "resize-cubic": _resize(CUBIC),
    "resize-cubic-coefficient": _resize(f"{CUBIC}, cubic_coeff_a = -0.25", f"{CUBIC}, cubic_coeff_a = -0.75"),
    "resize-exclude-outside": _one(
        "(float[1,1,2,2] x)",
        f"Resize<{CUBIC}, exclude_outside = 1>(x, , s)",
        f"Resize<{CUBIC}>(x, , s)",
        held="float[4] s = {1, 1, 2, 2}",
        feeds={"x": [[[[1, -2], [-3, 5]]]]},
    ),
    "resize-crop": _one(
        X4,
        'Resize<mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize", extrapolation_value = 5.0>(x, r, s)',
        'Resize<mode = "linear">(x, , s)',
        held="float[8] r = {0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5}, float[4] s = {1, 1, 2, 2}",
    ),
    "resize-antialias": _resize('mode = "linear", antialias = 1', 'mode = "linear", antialias = 0', "1, 1, 0.25, 0.25"),
    "resize-axes": _resize('mode = "linear", axes = [0, 1, 3, 2]', scales="1, 1, 2, 1"),
    "resize-aspect-ratio": _one(
        X4,
        'Resize<mode = "linear", keep_aspect_ratio_policy = "not_larger">(x, , , n)',
        'Resize<mode = "linear", keep_aspect_ratio_policy = "stretch">(x, , , n)',
        held="int64[4] n = {1, 2, 16, 12}",
    ),
    "resize-3d": (
        ProbeGraph(f'{X5} => (y) <float[5] s = {{1, 1, 2, 2, 2}}> {{ y = Resize<mode = "linear">(x, , s) }}'),
        _resize('mode = "linear"')[0],
    ),
    "resize-opset-13": (_resize(CEIL, opset=13)[0], _resize(CEIL, opset=14)[0]),
}

POOLS: Mapping[str, Pair] = {
    "max-pool-indices": _lone(f"{X4} => (y, i) {{ y, i = MaxPool<{K2}>(x) }}"),
    "max-pool-order": _pool("MaxPool", f"{K2}, storage_order = 1", K2),
    "max-pool-dilations": _pool("MaxPool", f"{K2}, dilations = [2, 2]", K2),
    "max-pool-valid": _pool(
        "MaxPool", f'{K3}, strides = [2, 2], auto_pad = "VALID", ceil_mode = 1', f'{K2}, auto_pad = "VALID"'
    ),
    "max-pool-fp32": _pool("MaxPool", K2, "")[:1] + _pool("MaxPool", K2, "", "(float16[1,2,8,8] x)")[:1],
    "pool-rank": (*_pool("AveragePool", "kernel_shape = [2, 2, 2, 2]", "", "(float[1,1,3,3,3,3] x)")[:1], RELU),
    "average-pool-same-lower": _pool("AveragePool", f'{K2}, auto_pad = "SAME_LOWER"', f'{K2}, auto_pad = "SAME_UPPER"'),
    "average-pool-dilations": (
        ProbeGraph(f"{X4} => (float[1,2,6,6] y) {{ y = AveragePool<{K2}, dilations = [2, 2]>(x) }}", written_at=19),
        ProbeGraph(f"{X4} => (y) {{ y = AveragePool<{K2}>(x) }}"),
    ),
    "average-pool-count-pad": _pool(
        "AveragePool", f"{K2}, count_include_pad = 1, pads = [0, 0, 1, 1]", f"{K2}, pads = [0, 0, 1, 1]"
    ),
    "average-pool-ceil": _pool("AveragePool", f'{K2}, ceil_mode = 1, auto_pad = "VALID"', f"{K2}, ceil_mode = 1"),
    "average-pool-ceil-window": _pool("AveragePool", f"{PAST_THE_END}, ceil_mode = 1", PAST_THE_END),
    "max-pool-ceil-window": _pool("MaxPool", f"{PAST_THE_END}, ceil_mode = 1", PAST_THE_END),
    "pool-width": (*_pool("AveragePool", K2, K2, "(float[1,1,4,4097] x)")[:1], _pool("AveragePool", K2, K2)[0]),
    "pool-window": _pool("AveragePool", "kernel_shape = [17, 16]", "kernel_shape = [16, 16]", "(float[1,1,20,20] x)"),
    "lp-pool": _pool("LpPool", f"{K3}, strides = [2, 2], ceil_mode = 1", f"{K3}, strides = [2, 2]"),
    "lp-pool-dilations": _pool("LpPool", f"{K2}, dilations = [2, 1]", K2),
}

CONVOLUTIONS: Mapping[str, Pair] = {
    "conv-bare": _conv("Conv", "", K3),
    "conv-3d-pad": _conv("Conv", 'kernel_shape = [3, 3, 3], auto_pad = "SAME_UPPER"', "kernel_shape = [3, 3, 3]", CONV_3D),
    "conv-group": (
        _conv("Conv", f"{K3}, group = 2", K3, "(float[1,2,8,8] x, float[2,1,3,3] w)")[0],
        _conv("Conv", K3, K3)[0],
    ),
    "conv-limits": _conv(
        "Conv", f"{K3}, strides = [64, 1]", f"{K3}, strides = [63, 1]", "(float[1,1,70,4] x, float[1,1,3,3] w)"
    ),
    "conv-transpose-rank": (
        _conv("ConvTranspose", "kernel_shape = [3]", "", "(float[1,2,8] x, float[2,2,3] w)")[0],
        _conv("ConvTranspose", K3, K3)[0],
    ),
    "conv-transpose-kernel": _conv("ConvTranspose", "", K3),
    "conv-transpose-pad": _conv("ConvTranspose", f'{K3}, strides = [2, 2], auto_pad = "SAME_UPPER"', K3),
    "conv-transpose-old-cann": (
        _conv("ConvTranspose", "kernel_shape = [3, 3, 3]", "", CONV_3D)[0],
        _conv("ConvTranspose", K3, K3)[0],
    ),
    "conv-transpose-dilations": _conv("ConvTranspose", f"{K3}, dilations = [1, 2]", K3),
}

RECURRENT: Mapping[str, Pair] = {
    **{
        f"{op.lower()}-{name}": _recurrent(op, hit)
        for op, default in (("LSTM", '"Tanh", "Tanh", "Relu"'), ("GRU", '"Tanh", "Relu"'))
        for name, hit in (("layout", "layout = 1"), ("activations", f"activations = [{default}]"), ("clip", "clip = 0.1"))
    },
    "lstm-input-forget": _recurrent("LSTM", "input_forget = 1", "input_forget = 0"),
    "gru-reset": _recurrent("GRU", "linear_before_reset = 1", "linear_before_reset = 0", b=True),
}

INDICES: Mapping[str, Pair] = {
    "negative-indices": (
        ProbeGraph(f"{X2} => (y) <int64[2] i = {{0, -1}}> {{ y = Gather(x, i) }}"),
        ProbeGraph(f"{X2} => (y) <int64[2] i = {{0, 1}}> {{ y = Gather(x, i) }}"),
    ),
    "gather-nd-batch": _one(X2, "GatherND<batch_dims = 1>(x, i)", "GatherND(x, i)", held="int64[2,1] i = {1, 0}"),
    **{
        f"scatter-nd-{name}": _one(
            "(float[4] x, float[2] u)",
            f'ScatterND<reduction = "{how}">(x, i, u)',
            "ScatterND(x, i, u)",
            held="int64[2,1] i = {1, 3}",
            feeds={"x": [1, 2, 3, 4], "u": [10, 20]},
        )
        for name, how in (("reduction", "add"), ("mul", "mul"))
    },
    "scatter-elements-reduction": _one(
        "(float[4] x, float[2] u)",
        'ScatterElements<reduction = "add">(x, i, u)',
        "ScatterElements(x, i, u)",
        held="int64[2] i = {1, 3}",
    ),
    "slice-rank": (
        ProbeGraph("(float[4] x) => (y) <int64[1] s = {1}, int64[1] e = {3}> { y = Slice(x, s, e) }"),
        ProbeGraph(f"{X2} => (y) <int64[1] s = {{0}}, int64[1] e = {{1}}> {{ y = Slice(x, s, e) }}"),
    ),
    "slice-last-step": _one(
        "(float[2,4] x)",
        "Slice(x, s, e, l, t)",
        "Slice(x, s, e, f, t)",
        held="int64[1] s = {0}, int64[1] e = {2}, int64[1] l = {-1}, int64[1] f = {0}, int64[1] t = {2}",
    ),
}

REST: Mapping[str, Pair] = {
    "shape-slice": _one(X3, "Shape<start = 1>(x)", "Shape(x)"),
    "mod-fmod": _one("(float[4] x, float[4] z)", "Mod<fmod = 1>(x, z)", "Sub(x, z)", feeds=FRACTIONS),
    "gemm-alpha": _one("(float[2,3] x, float[3,2] w)", "Gemm<alpha = 0.5>(x, w)", "Gemm(x, w)"),
    "gemm-documents": _one("(float[2,3] x, float[3,2] w, float[2] c)", "Gemm(x, w, c)", "Gemm(x, w)"),
    "gemm-fp32-old-opset": _one("(float[2,3] x, float[3,2] w, float[2] c)", "Gemm(x, w, c)", "MatMul(x, w)", opset=10),
    "pad-axes": _one(X2, "Pad(x, p, , a)", "Pad(x, p)", held="int64[4] p = {1, 0, 2, 0}, int64[2] a = {1, 0}"),
    "pad-wrap": _one(X2, 'Pad<mode = "wrap">(x, p)', 'Pad<mode = "edge">(x, p)', held="int64[4] p = {0, 1, 0, 1}")[:1]
    + _one(X2, 'Pad<mode = "edge">(x, p)', "", held="int64[4] p = {0, 1, 0, 1}")[:1],
    "pad-value": _one(X2, "Pad(x, p, v)", "Pad(x, p)", held="int64[4] p = {0, 1, 0, 1}, float v = {2}"),
    "pad-opset-12": (
        ProbeGraph(f"{X2} => (y) <int64[4] p = {{0, 1, 0, 1}}> {{ y = Pad(x, p) }}", opset=12),
        ProbeGraph(f"{X2} => (y) <int64[4] p = {{0, 1, 0, 1}}> {{ y = Pad(x, p) }}", opset=13),
    ),
    "reduce-axes": _one(X2, "ReduceSum(x)", "ReduceSum(x, a)", held="int64[1] a = {1}"),
    "clip-bounds": _one(X2, "Clip(x)", "Clip(x, , h)", held="float h = {0.5}"),
    "is-inf": _one(X2, "IsInf<detect_negative = 0>(x)", "Relu(x)"),
    "transpose-perm": _one(X2, "Transpose(x)", "Transpose<perm = [1, 0]>(x)"),
    "constant-form": (
        ProbeGraph("(float[1] x) => (y) { c = Constant<value_floats = [1.0]>() y = Add(x, c) }"),
        ProbeGraph("(float[1] x) => (y) { c = Constant<value = float[1] {1.0}>() y = Add(x, c) }"),
    ),
    "batch-norm-epsilon": _one(
        NORMALISED,
        "BatchNormalization(x, s, b, m, v)",
        "BatchNormalization<epsilon = 0.00001>(x, s, b, m, v)",
        feeds=STATISTICS,
    ),
    "batch-norm-rank": (
        ProbeGraph(
            NORMALISED.replace("1,2,4,4", "1,2,5") + " => (y) { y = BatchNormalization<epsilon = 0.001>(x, s, b, m, v) }",
            feeds=STATISTICS,
        ),
        ProbeGraph(f"{NORMALISED} => (y) {{ y = BatchNormalization<epsilon = 0.001>(x, s, b, m, v) }}", feeds=STATISTICS),
    ),
    "batch-norm-training": (
        ProbeGraph(
            f"{NORMALISED} => (y, n, w) {{ y, n, w = BatchNormalization<epsilon = 0.001, training_mode = 1>(x, s, b, m, v) }}",
            feeds=STATISTICS,
        ),
        ProbeGraph(f"{NORMALISED} => (y) {{ y = BatchNormalization<epsilon = 0.001>(x, s, b, m, v) }}", feeds=STATISTICS),
    ),
    "dropout-mask": _lone(f"{X2} => (y, m) {{ y, m = Dropout(x) }}"),
    "dropout-training": _lone(
        "(float[8,8] x) => (y) <float r = {0.5}, bool t = {1}> { y = Dropout(x, r, t) }",
        random=True,
        instead="(float[8,8] x) => (y) { y = Identity(x) }",
    ),
    "softmax-axis": _one(X3, "Softmax<axis = 1>(x)", "Softmax<axis = 2>(x)", opset=12),
    "arg-last": _one(X2, "ArgMax<axis = 1, select_last_index = 1>(x)", "ArgMax<axis = 1>(x)"),
    "selu": _one(X2, "Selu<alpha = 1.5>(x)", "Selu(x)"),
    "lrn-size": _one(X4, "LRN<size = 4>(x)", "LRN<size = 3>(x)"),
    "matmul-rank": (
        ProbeGraph("(float[1,1,1,1,1,2,2] x, float[2,2] w) => (y) { y = MatMul(x, w) }"),
        ProbeGraph("(float[1,2,2] x, float[2,2] w) => (y) { y = MatMul(x, w) }"),
    ),
    "upsample-mode": _one(
        X4, 'Upsample<mode = "cubic">(x, s)', 'Upsample<mode = "linear">(x, s)', held="float[4] s = {1, 1, 2, 2}", opset=9
    ),
    "eye-like-dtype": _one("(float[3,3] x)", "EyeLike<dtype = 7>(x)", "EyeLike(x)"),
    "constant-of-shape-dtype": (
        ProbeGraph(
            "(int32[2] x) => (y) <int64[1] n = {2}> { c = ConstantOfShape<value = uint16[1] {3}>(n) d = Cast<to = 6>(c) y = Add(x, d) }"
        ),
        ProbeGraph(
            "(int32[2] x) => (y) <int64[1] n = {2}> { c = ConstantOfShape<value = int32[1] {3}>(n) d = Cast<to = 6>(c) y = Add(x, d) }"
        ),
    ),
    "random-normal-dtype": _lone(
        f"{X2} => (float[2,3] y) <bfloat16[2,3] r> {{ r = RandomNormal<shape = [2, 3], dtype = 16>() c = Cast<to = 1>(r) y = Add(x, c) }}",
        random=True,
    ),
    "random-uniform-dtype": _lone(
        f"{X2} => (float[2,3] y) {{ r = RandomUniform<shape = [2, 3], dtype = 11>() c = Cast<to = 1>(r) y = Add(x, c) }}",
        random=True,
    ),
    "dropped-node": _lone(f"{X2} => (y) {{ r = RandomNormal<shape = [2, 3]>() y = Add(x, r) }}", random=True),
    "grid-sample-rank": _lone("(float[1,1,3,3,3] x, float[1,2,2,2,3] g) => (float[1,1,2,2,2] y) { y = GridSample(x, g) }"),
    "grid-sample-mode": _one(
        "(float[1,1,4,4] x, float[1,3,3,2] g)",
        'GridSample<mode = "bicubic">(x, g)',
        'GridSample<mode = "nearest">(x, g)',
        feeds={"g": np.linspace(-0.9, 0.9, 18).reshape(1, 3, 3, 2)},
    ),
    "grid-sample-opset": tuple(  # type: ignore[dict-item]
        ProbeGraph(
            "(float[1,1,4,4] x, float[1,3,3,2] g) => (y) { y = GridSample(x, g) }",
            opset=opset,
            feeds={"g": np.linspace(-0.9, 0.9, 18).reshape(1, 3, 3, 2)},
        )
        for opset in (18, 16)
    ),
    "split-sizes": (
        ProbeGraph("(float[2,3] x) => (y, z) <int64[2] s = {1, 2}> { y, z = Split<axis = 1>(x, s) }"),
        ProbeGraph("(float[2,4] x) => (y, z) <int64[2] s = {2, 2}> { y, z = Split<axis = 1>(x, s) }"),
    ),
    "split-uneven": (
        ProbeGraph("(float[2,3] x) => (y, z) { y, z = Split<axis = 1, num_outputs = 2>(x) }"),
        ProbeGraph("(float[2,4] x) => (y, z) { y, z = Split<axis = 1, num_outputs = 2>(x) }"),
    ),
    "expand-shape": (
        ProbeGraph("(float[1,3] x, int64[2] s) => (float[2,3] y) { y = Expand(x, s) }", feeds={"s": [2, 3]}),
        ProbeGraph("(float[1,3] x) => (y) <int64[2] s = {2, 3}> { y = Expand(x, s) }"),
    ),
    **{
        f"top-k-{name}": (
            ProbeGraph(f"(float[2,4] x) => (y, i) <int64[1] k = {{2}}> {{ y, i = TopK{hit}(x, k) }}"),
            RELU,
        )
        for name, hit in (("order", "<axis = 1, largest = 1, sorted = 1>"), ("unwritten", ""))
    },
    "einsum-equation": _one(
        "(float[2,3] x, float[3,2] w)",
        'Einsum<equation = "ij,jk->ik">(x, w)',
        'Einsum<equation = "ab,cb->ac">(x, v)',
        held="float[2,3] v = {1, 2, 3, 4, 5, 6}",
    ),
    "documented-opset": (
        ProbeGraph(f"{X2} => (y) <float h = {{0.5}}> {{ y = Clip(x, , h) }}", opset=17),
        ProbeGraph(f"{X2} => (y) <float h = {{0.5}}> {{ y = Clip(x, , h) }}", opset=16),
    ),
    "if-captures-deeper": (
        ProbeGraph(BRANCHES.format(INNER).replace("b = Neg(x)", "b = Constant<value = float[2] {1, 2}>()"), feeds={"c": True}),
        PLAIN_IF,
    ),
    "if-weights-outside": (
        ProbeGraph(
            BRANCHES.format(
                f"<float[600,2] w = {{{', '.join(['1'] * 1200)}}}> {{ s = ReduceSum<keepdims = 0>(w, z) a = Add(x, s) }}"
            ).replace("bool c)", "bool c, int64[1] z)"),
            feeds={"c": True},
            constants={"z": np.array([0])},
            outside={},
        ),
        PLAIN_IF,
    ),
    "unsized-output": (
        ProbeGraph("(float[2,3] x) => (int64[2,k] y) { y = NonZero(x) }"),
        RELU,
    ),
}

OF_ATTRIBUTES: Mapping[str, Pair] = {**RESIZES, **POOLS, **CONVOLUTIONS, **RECURRENT, **INDICES, **REST}
