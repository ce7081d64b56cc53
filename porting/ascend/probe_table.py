"""For every rule of the base a graph that it speaks of, and a control beside it that it does not: what a probe compiles and runs.

A refusal shows the rule only where the control is taken; a wrong number only where the control's is right. Rules on the dtype of a first input
get their graphs from TEMPLATES, in a dtype that the rule names and ONNX takes.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from porting.ascend.probe_attributes import OF_ATTRIBUTES
from porting.ascend.probe_dtypes import CONTROL_DTYPES, OF_DTYPES, TEMPLATES
from porting.ascend.probe_graphs import ProbeGraph, fits_dtype
from porting.ascend.probe_plain import RELU, Pair
from porting.ascend.rules import Rule, rules

X2 = "(float[2,3] x)"


def _relu(**fields: object) -> ProbeGraph:
    return ProbeGraph(f"{X2} => (y) {{ y = Relu(x) }}", **fields)  # type: ignore[arg-type]


def _lone(text: str, control: ProbeGraph = RELU, **fields: object) -> Pair:
    return ProbeGraph(text, **fields), control  # type: ignore[arg-type]


def _foreign(domain: str, call: str, imported: str = "") -> ProbeGraph:
    """A node of another domain, the only one that the model imports."""
    text = f"{X2} => (float[2,3] y) {{ y = {domain}.{call} }}"
    return ProbeGraph(text, opset=0, imports={imported or domain: 1})


OF_GRAPHS: Mapping[str, Pair] = {
    "several-imports": (_relu(imports={"com.microsoft": 1}), RELU),
    "local-functions": _lone(
        f"{X2} => (float[2,3] y) {{ y = mine.f(x) }}",
        imports={"mine": 1},
        functions='<opset_import: ["": 18], domain: "mine"> f (a) => (b) { b = Relu(a) }',
    ),
    "no-inputs": _lone("() => (y) <float[3] c = {1, 2, 3}> { y = Identity(c) }"),
    "ir-version": (_relu(ir_version=9), RELU),
    "external-key": (
        ProbeGraph(
            "(float[2,3] x, float[2,3] c) => (y) { y = Add(x, c) }", constants={"c": (2, 3)}, outside={"checksum": "00"}
        ),
        ProbeGraph("(float[2,3] x, float[2,3] c) => (y) { y = Add(x, c) }", constants={"c": (2, 3)}, outside={}),
    ),
    "duplicate-names": _lone(f"{X2} => (y) {{ a = Relu(x) y = Neg(a) }}", twins=True),
    "io-names": (_relu(renamed={"x": "a;b"}), RELU),
    "output-names": (_relu(renamed={"y": "y:0"}), RELU),
    "input-default": _lone(
        "(float[2,3] x, float[2,3] c) => (y) { y = Mul(x, c) }",
        constants={"c": (2, 3)},
        defaults=("c",),
        feeds={"c": [[5, 5, 5], [-5, -5, -5]]},
    ),
    "input-unranked": _lone(
        "(float[2,3] x, float[3] b) => (float[2,3] y) { y = Add(x, b) }", unranked=("b",), feeds={"b": [1, 2, 3]}
    ),
    "input-dtype": _lone("(int64[2] x) => (y) { y = Add(x, x) }"),
    "input-rank": _lone("(float[1,2,2,2,3] x) => (y) { y = Relu(x) }"),
    "no-tensor": _lone("(seq(float[2,3]) s, int64 i) => (float[2,3] y) { y = SequenceAt(s, i) }"),
    "opset-of-old-cann": (_relu(opset=17), _relu(opset=13)),
    "bf16-precision": (RELU, RELU),
    "bf16-precision-unknown": (RELU, RELU),
}

NORM = "(float[2,6] x, float[6] w) => (float[2,6] y) {{ y = {}(x, w) }}"
IMAGE = "(float[1,4,6,6] x, float[4] s, float[4] b) => (float[1,4,6,6] y) { y = GroupNormalization<num_groups = 2>(x, s, b) }"
MISSING: Mapping[str, Pair] = {
    "missing-rms-normalization": _lone(NORM.format("RMSNormalization"), opset=23, constants={"w": (6,)}),
    "missing-rotary-embedding": _lone(
        "(float[1,2,3,4] x, float[1,3,2] c, float[1,3,2] s) => (float[1,2,3,4] y) { y = RotaryEmbedding(x, c, s) }", opset=23
    ),
    "missing-attention": _lone(
        "(float[1,2,3,4] q, float[1,2,3,4] k, float[1,2,3,4] v) => (float[1,2,3,4] y) { y = Attention(q, k, v) }", opset=23
    ),
    "missing-gelu": _lone(f"{X2} => (y) {{ y = Gelu(x) }}", opset=20),
    "missing-group-normalization": _lone(IMAGE, opset=21, constants={"s": (4,), "b": (4,)}),
    "missing-swish": _lone(f"{X2} => (y) {{ y = Swish(x) }}", opset=24),
    "missing-tensor-scatter": _lone(
        "(float[1,4,3] x, float[1,1,3] u, int64[1] at) => (float[1,4,3] y) { y = TensorScatter(x, u, at) }", opset=24
    ),
    "missing-layer-normalization": (
        ProbeGraph(NORM.format("LayerNormalization"), opset=16, constants={"w": (6,)}),
        ProbeGraph(NORM.format("LayerNormalization"), opset=17, constants={"w": (6,)}),
    ),
    "missing-rnn": _lone(
        "(float[2,1,3] x, float[1,4,3] w, float[1,4,4] r) => (y) { y = RNN<hidden_size = 4>(x, w, r) }",
        constants={"w": (1, 4, 3), "r": (1, 4, 4)},
    ),
    "missing-loop": _lone(
        "(float[2,3] x, int64 m) => (float[2,3] y) { c = Constant<value = bool {1}>() y = Loop(m, c, x) <body = b "
        "(int64 i, bool k, float[2,3] a) => (bool k2, float[2,3] a2) { k2 = Identity(k) a2 = Neg(a) }> }"
    ),
    "missing-reduce-norms": (
        ProbeGraph(f"{X2} => (y) <int64[1] a = {{1}}> {{ y = ReduceL2(x, a) }}"),
        ProbeGraph(f"{X2} => (y) {{ y = ReduceL2<axes = [1]>(x) }}", opset=17),
    ),
    "missing-quantized": _lone(f"{X2} => (y) <float s = {{0.1}}, uint8 z = {{3}}> {{ y = QuantizeLinear(x, s, z) }}"),
    "missing-scan": _lone(
        "(float[2] s, float[3,2] x) => (float[2] t, float[3,2] y) { t, y = Scan<num_scan_inputs = 1, body = b "
        "(float[2] a, float[2] e) => (float[2] a2, float[2] o) { a2 = Add(a, e) o = Neg(e) }>(s, x) }"
    ),
    "missing-sequence-map": _lone(
        "(float[2,3] x, int64 i) => (float[2,3] y) { s = SequenceConstruct(x, x) t = SequenceMap<body = b (float[2,3] a) => "
        "(float[2,3] o) { o = Neg(a) }>(s) y = SequenceAt(t, i) }"
    ),
    "missing-optional": _lone(f"{X2} => (y) {{ o = Optional(x) y = OptionalHasElement(o) }}"),
    "missing-strings": _lone("(string[2] x) => (y) { y = StringConcat(x, x) }", opset=20),
    "missing-image-decoder": _lone("(uint8[9] x) => (uint8[h,w,3] y) { y = ImageDecoder(x) }", opset=20),
    "missing-spectra": _lone("(float[1,8,1] x, int64 n) => (y) { y = DFT<axis = 1>(x) }", opset=17),
    "missing-deform-conv": _lone(
        "(float[1,1,4,4] x, float[1,1,2,2] w, float[1,8,3,3] o) => (float[1,1,3,3] y) { y = DeformConv(x, w, o) }", opset=19
    ),
    "missing-affine-grid": _lone("(float[1,2,3] x) => (y) <int64[4] s = {1, 1, 4, 4}> { y = AffineGrid(x, s) }", opset=20),
    "missing-center-crop-pad": _lone(f"{X2} => (y) <int64[2] s = {{4, 2}}> {{ y = CenterCropPad(x, s) }}"),
    "missing-losses": _lone("(float[2,3] x, int64[2] t) => (y) { y = NegativeLogLikelihoodLoss(x, t) }"),
    "missing-later": _lone(f"{X2} => (y) <int64 a = {{1}}> {{ y = CumProd(x, a) }}", opset=26),
    "missing-dynamic-lstm": (_foreign("com.microsoft", "DynamicQuantizeLSTM(x)"), RELU),
    "contrib-rewritten": (_foreign("com.microsoft", "QuickGelu(x)"), RELU),
    "contrib": (_foreign("com.microsoft", "QAttention(x)"), RELU),
    "missing-ml": (_foreign("ai.onnx.ml", "Normalizer(x)"), RELU),
    "missing-training": (_foreign("ai.onnx.preview.training", "Gradient(x)"), RELU),
    "missing-npu": (_foreign("npu", "NPUGeGlu(x)"), RELU),
    "missing-domain": (_foreign("mine", "Mine(x)"), RELU),
    "opset-too-high": (_relu(opset=19), RELU),
    "opset-too-low": (_relu(opset=6), RELU),
    "opset-without-entry": _lone(f"{X2} => (float[2,3] y) {{ y = Mish(x) }}", opset=17),
    "no-parser": _lone(f"{X2} => (float[2,3] y) {{ y = Nonsense(x) }}"),
    "not-published": _lone(f"{X2} => (y) {{ y = Mish(x) }}"),
    "layer-normalization-old-cann": _lone(NORM.format("LayerNormalization"), constants={"w": (6,)}),
}

# rules that no small graph decides
NOT_PROBED: Mapping[str, str] = {
    "output-names": "--out_nodes splits names at a colon, and the probe does not give that option",
    "cast-saturate": "saturate says something of 8-bit floats only, and those have rules of their own",
    "sized-by-values": "it is about speed, and what runs for microseconds shows none",
    "fp16-documented": "pages name fp16 for some inputs: the graphs of other rules compute all of these operators in float32",
    "indices-unknown": "whether indices count from the end is a matter of what is fed: see negative-indices",
    "if-returns-outer": "ONNX wants a node for what a branch gives back, and files without one run nowhere else",
    "resize-sizes": "with fixed shapes the sizes are constants when the model is compiled",
}
CANDIDATES = ("int32", "int64", "int8", "uint8", "int16", "uint16", "bool", "bfloat16", "double", "uint32", "uint64")


def pair_of(rule: Rule) -> Pair | str:
    """The graph that a rule speaks of and its control, or why there is none."""
    if rule.id in NOT_PROBED:
        return NOT_PROBED[rule.id]
    if rule.id in TEMPLATES:
        return _of_first_dtype(rule)
    return {**OF_GRAPHS, **MISSING, **OF_DTYPES, **OF_ATTRIBUTES}.get(rule.id, "there is no graph for this rule")


def unlisted() -> list[str]:
    """Rules that have neither a graph nor a reason for none."""
    return [rule.id for rule in rules() if pair_of(rule) == "there is no graph for this rule"]


def _of_first_dtype(rule: Rule) -> Pair | str:
    """A template in the first dtype that the rule names and ONNX takes; float32 is on every page."""
    template = TEMPLATES[rule.id]
    op = str(rule.match["op"])
    named = rule.match["inputs"]["0"]["not_dtype"]
    schema = onnx.defs.get_schema(op, template.opset)
    first = schema.inputs[0].type_str
    taken = next((c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == first), [])
    for dtype in CANDIDATES:
        if {"double": "float64"}.get(dtype, dtype) not in named and f"tensor({dtype})" in taken:
            control = CONTROL_DTYPES.get(rule.id, "float")
            hit, miss = (
                ProbeGraph(fits_dtype(template.text, d), template.opset, feeds=template.feeds) for d in (dtype, control)
            )
            return hit, miss
    return f"ONNX's {op} takes no dtype beside those that its page names"
