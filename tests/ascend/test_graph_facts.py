"""What rules can ask about a graph."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from porting.ascend.graph_facts import SMALL, BodyFacts, GraphFacts, NodeFacts, ValueFacts, facts_of
from porting.ascend.rules import judge
from porting.ascend.soc import find_soc
from porting.conversion import canonical_graph
from porting.converters.passes.infer_shapes import infer_shapes
from porting.sources import opened
from porting.types import Graph
from tests.ascend.rule_cases import made_if
from tests.model_zoo import file


def facts(text: str, opset: int = 18, more: str = "") -> GraphFacts:
    """Facts of a graph in ONNX's text format: `(inputs) => (outputs) { nodes }`."""
    return facts_of(Graph(ir.from_proto(parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}{more}]> g {text}'))))


def inferred(text: str) -> GraphFacts:
    """The same of a graph whose shapes are worked out, as a canonical one's are."""
    model = ir.from_proto(parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g {text}'))
    infer_shapes.change(model)
    return facts_of(Graph(model))


def sized(text: str) -> list[str]:
    return [node.op for node in inferred(text).nodes if node.sized_by_values]


def test_values() -> None:
    (node,) = facts("(float[n, 3] x) => (float[?, 3] y) <int64[2] s = {1, -1}> { y = Reshape <allowzero = 1> (x, s) }").nodes
    x, shape = node.inputs
    assert x is not None and shape is not None
    assert (x.name, x.dtype, x.shape, x.rank, x.constant, x.is_constant) == ("x", "float32", ("n", 3), 2, None, False)
    assert shape.is_constant and shape.dtype == "int64" and shape.constant is not None and shape.constant.tolist() == [1, -1]
    assert node.outputs[0].shape == (None, 3) and node.outputs[0].used
    assert (node.op, node.domain, node.opset, node.attributes) == ("Reshape", "", 18, {"allowzero": 1})


def test_inputs_and_outputs_that_are_left_out() -> None:
    (node,) = facts("(float[3] x) => (float[3] y) <float h = {1}> { y, m = Dropout(x) }").nodes
    assert [(v.name, v.used) for v in node.outputs] == [("y", True), ("m", False)]
    (node,) = facts("(float[3] x) => (float[3] y) <float h = {1}> { y = Clip(x, , h) }").nodes
    assert [None if v is None else v.name for v in node.inputs] == ["x", None, "h"]


def test_an_input_with_a_default_is_a_constant_to_the_parser() -> None:
    found = facts("(float[3] x, float[1] w) => (float[3] y) <float[1] w = {2}> { y = Mul(x, w) }")
    assert [(v.name, v.is_constant) for v in found.inputs] == [("x", False), ("w", True)]


def test_constants_that_are_nodes() -> None:
    found = facts(
        "(float[3] x) => (float[3] y) { c = Constant <value_floats = [1.0, 2.0]> () d = Constant <value = int64 {7}> () y = Mul(x, c) }"
    )
    assert found.nodes[0].attributes == {"value_floats": (1.0, 2.0)}
    value = found.nodes[1].attributes["value"]
    assert isinstance(value, ValueFacts) and value.constant is not None and value.constant.item() == 7
    factor = found.nodes[2].inputs[1]
    assert factor is not None and factor.is_constant and factor.constant is not None and factor.constant.tolist() == [1, 2]


def test_domains_and_versions() -> None:
    found = facts(
        "(float[3] x) => (float[3] y) { z = com.microsoft.Gelu(x) y = Nothing.Known(z) }", 17, ', "com.microsoft" : 1'
    )
    assert found.opsets == {"": 17, "com.microsoft": 1} and found.ir_version == 8
    assert [(n.op, n.domain, n.opset) for n in found.nodes] == [("Gelu", "com.microsoft", 1), ("Known", "Nothing", 0)]


def test_no_weight_is_read() -> None:
    def refused() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    x, y = (ir.Value(name=n, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([64, 64])) for n in "xy")
    weights = [
        ir.LazyTensor(refused, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name="w")
        for shape in ([64, 64], [64], [SMALL + 1])
    ]
    values = [ir.Value(name=f"w{i}", const_value=w, shape=w.shape, type=ir.TensorType(w.dtype)) for i, w in enumerate(weights)]  # type: ignore[arg-type]
    node = ir.Node("", "Sum", [x, *values], outputs=[y], name="n")
    graph = ir.Graph([x], [y], nodes=[node], initializers=values, opset_imports={"": 18}, name="g")
    (found,) = facts_of(Graph(ir.Model(graph, ir_version=8))).nodes
    assert [(v.is_constant, v.constant, v.shape) for v in found.inputs[1:] if v is not None] == [
        (True, None, (64, 64)),
        (True, None, (64,)),
        (True, None, (SMALL + 1,)),
    ]


def test_small_constants_only() -> None:
    for size, read in ((SMALL, True), (SMALL + 1, False)):
        tensor = onnx.numpy_helper.from_array(np.zeros(size, np.float32), "w")
        model = parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : 18]> g (float[{size}] x) => (float[{size}] y) {{ y = Add(x, w) }}'
        )
        model.graph.initializer.append(tensor)
        weight = facts_of(Graph(ir.from_proto(model))).nodes[0].inputs[1]
        assert weight is not None and weight.is_constant and (weight.constant is not None) == read


def test_branches() -> None:
    (outer, *_) = made_if(returned=True).nodes
    assert outer.attributes == {"then_branch": BodyFacts(returned=("x",)), "else_branch": BodyFacts()}
    (outer, *_) = made_if(deeper=True).nodes
    assert outer.attributes["then_branch"] == BodyFacts(captured_deeper=("x",))
    (outer, *_) = made_if(weight=1000).nodes
    assert outer.attributes["then_branch"] == BodyFacts(outside=("w",))


def test_functions_are_named() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18, "my" : 1]> g (float[3] x) => (float[3] y) { y = my.f(x) }
    <domain: "my", opset_import: ["" : 18]> f (a) => (b) { b = Relu(a) }"""
    found = facts_of(Graph(ir.from_proto(parser.parse_model(text))))
    assert found.functions == ("my::f",)
    assert [n.op for n in found.nodes] == ["f"]


# --- sizes that hang on numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "(float[n, 4] x, float[?, ?] z) => (float[?, ?] y) { s = Shape(x) y = Reshape(z, s) }",
        "(float[n, 4] x) => (float[?, ?] y) <int64 one = {1}> { s = Shape(x) t = Add(s, one) y = Expand(x, t) }",
        "(float[n, 4] x) => (int64[?] y) <int64 a = {0}, int64 b = {1}> { s = Size(x) y = Range(a, s, b) }",
        "(float[n] x, int64[1] i) => (float[?] y) { y = Gather(x, i) }",
        "(float[n] x, bool c) => (float[n] y) { y = If <then_branch = t () => (float[n] p) { p = Neg(x) }, "
        "else_branch = e () => (float[n] q) { q = Relu(x) }> (c) }",
        "(float[n] x) => (float[?] y) { y = com.other.NonZero(x) }",
    ],
)
def test_sizes_that_shapes_alone_fix(text: str) -> None:
    assert sized(text) == []


@pytest.mark.parametrize(
    ("text", "ops"),
    [
        ("(float[n] x, int64[1] s) => (float[?] y) { y = Reshape(x, s) }", ["Reshape"]),
        (
            "(float[n] x, int64[1] s) => (float[4] y) { y = Reshape(x, s) }",
            ["Reshape"],
        ),  # a compiler infers, whatever is declared
        ("(float[n] x) => (int64[1, ?] y) { y = NonZero(x) }", ["NonZero"]),
        (
            "(float[n] x) => (float[?] y) <int64 a = {0}> { i = NonZero(x) s = Shape(i) y = Expand(x, s) }",
            ["NonZero", "Expand"],
        ),
        ("(float[n] x, int64[1] k) => (float[?] y, int64[?] i) { y, i = TopK(x, k) }", ["TopK"]),
        ("(float[n] x, int64[1] s) => (float[?] y) { t = Abs(s) y = Slice(x, t, t) }", ["Slice"]),
        ("(float[n] x) => (float[?] y) { r = RandomUniform <shape = [1]> () i = Cast <to = 7> (r) y = Tile(x, i) }", ["Tile"]),
        (
            "(float[n] x, bool c) => (float[?] y) { y = If <then_branch = t () => (float[?] p) { p = Concat <axis = 0> (x, x) }, "
            "else_branch = e () => (float[?] q) { q = Relu(x) }> (c) }",
            ["If"],
        ),
    ],
)
def test_sizes_that_hang_on_numbers(text: str, ops: list[str]) -> None:
    assert sized(text) == ops


def test_a_loop_of_unknown_length_has_no_size() -> None:
    text = """(int64 n, float[3] x) => (float[?, 3] y) <bool go = {1}> {
        y = Loop <body = b (int64 i, bool c) => (bool d, float[3] o) { d = Identity(c) o = Neg(x) }> (%s, go) }"""
    assert sized(text % "n") == ["Loop"]
    assert sized((text % "k").replace("bool go = {1}", "bool go = {1}, int64 k = {4}")) == []


# --- real graphs --------------------------------------------------------------------------------------------------


def ops_of(found: GraphFacts) -> Counter[str]:
    return Counter(node.op for node in found.nodes)


def rules_of(found: GraphFacts, soc: str) -> dict[str, list[str]]:
    told: dict[str, list[str]] = {}
    for finding in judge(found, find_soc(soc)):
        told.setdefault(finding.rule.id, []).append(finding.node)
    return told


def test_smollm2(smollm2_gguf: Path) -> None:
    with opened(smollm2_gguf) as source:
        graph = canonical_graph(source).graph
        start = time.perf_counter()
        found = facts_of(graph)
        told = rules_of(found, "Ascend310P3")
        assert time.perf_counter() - start < 1
    ops = ops_of(found)
    assert (ops["Attention"], ops["RMSNormalization"], ops["RotaryEmbedding"], ops["TensorScatter"]) == (30, 61, 60, 60)
    assert len(told["missing-attention"]) == 30 and len(told["missing-rms-normalization"]) == 61
    assert len(told["missing-rotary-embedding"]) == 60 == len(told["missing-tensor-scatter"])
    refused = sum(len(nodes) for rule, nodes in told.items() if rule.startswith(("missing-", "opset-too-high")))
    assert refused == len(found.nodes), "of opset 24 nothing has an entry"
    assert len(told["shape-slice"]) > 0 and told["sized-by-values"] == ["lm_head/Slice"], (
        "logits_to_keep is a number that is fed"
    )
    weights = {v.name: v for n in found.nodes for v in n.inputs if v is not None and v.is_constant and v.rank == 2}
    assert len(weights) > 200 and all(v.constant is None for v in weights.values() if v.dtype == "float32")


def test_outputs_that_a_node_sizes() -> None:
    """Up to where a shape says all sizes again; a dimension that an input has too is one, what a node makes of numbers is none."""

    def reached(text: str) -> dict[str, tuple[str, ...]]:
        return {node.op: node.sizes_outputs for node in inferred(text).nodes if node.sizes_outputs}

    assert reached("(float[2, 3] x) => (int64[2, n] y) { y = NonZero(x) }") == {"NonZero": ("y",)}
    assert reached("(float[n, 3] x) => (int64[2, n] y) { y = NonZero(x) }") == {"NonZero": ("y",)}, (
        "a name that happens to be the same"
    )
    assert reached("(float[2, 3] x) => (int64[n, 2] y, float[2, 3] z) { a = NonZero(x) y = Transpose(a) z = Relu(x) }") == {
        "NonZero": ("y",)
    }
    assert reached("(float[4] x, int64[1] a, int64[1] b) => (float[2] y) { y = Slice(x, a, b) }") == {"Slice": ("y",)}, (
        "declared, and known to nobody"
    )
    assert reached("(float[4] x, int64[1] a, int64[1] b) => (float[2] y) { s = Slice(x, a, b) y = Relu(s) }") == {
        "Slice": ("y",)
    }
    assert not reached("(float[n, 3] x) => (int64[n, 1] y) { a = NonZero(x) y = Custom.Node(a) }")
    assert not reached("(float[2, 3] x) => (int64[2] y) { a = NonZero(x) y = ReduceMax(a) }")
    branches = "<then_branch = a () => (int64[2, n] t) {{ {then} }}, else_branch = b () => (int64[2, m] e) {{ e = Shape(x) }}>"
    inside = branches.format(then="t = NonZero(x)")
    assert reached(f"(bool c, float[2, 3] x) => (int64[2, k] y) {{ y = If(c) {inside} }}") == {"NonZero": ("y",)}
    plain = branches.format(then="t = Shape(x)")
    assert not reached(f"(bool c, float[2, 3] x) => (int64[2, k] y) {{ y = If(c) {plain} }}"), (
        "shapes that nobody knows are less"
    )


def test_a_text_recogniser() -> None:
    with opened(file("rapidocr-onnxruntime", "**/ch_PP-OCRv4_rec_infer.onnx")) as source:
        found = facts_of(canonical_graph(source).graph)
    convolutions = [n for n in found.nodes if n.op == "Conv"]
    assert len(found.nodes) == 425 and len(convolutions) == 38
    assert all(v is not None and v.shape is not None and v.is_constant for n in convolutions for v in n.inputs[1:])
    assert all(n.outputs[0].rank == 4 for n in convolutions)
    on_310p, on_a2 = rules_of(found, "Ascend310P3"), rules_of(found, "Ascend910B3")
    assert {n.name for n in found.nodes if n.op in ("Conv", "MatMul")} == set(on_310p["fp32-cube"]) and "fp32-cube" not in on_a2
    assert "sized-by-values" not in on_a2, "the width is an input's, whatever is computed from it"


def test_a_model_with_branches() -> None:
    with opened(file("silero-vad", "**/silero_vad.onnx")) as source:
        found = facts_of(canonical_graph(source).graph)
    branching = next(n for n in found.nodes if n.op == "If" and not n.inside)
    assert isinstance(branching, NodeFacts) and branching.attributes["then_branch"].outside
    assert Counter(n.inside for n in found.nodes)[("If",)] > 100
    told = rules_of(found, "Ascend910B3")
    assert told["if-weights-outside"] == [branching.name] and len(told["negative-indices"]) == 2
