"""From opset 19 to 24 down to 18, all nodes or none, and imports that nobody needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.clean_imports import clean_imports
from porting.converters.passes.ascend.lower_opset import HIGHEST_OPSET, IR_VERSION, lower_opset, obstacles
from porting.converters.passes.ascend.opset_steps import REVIEWED, STEPS
from porting.converters.passes.canonical import canonical
from porting.types import Graph
from tests.ascend.lowering_checks import in_branches, read, require_close
from tests.graph_bits import run, whole, written

NEWEST = 24  # that was reviewed


def opset_of(graph: Graph) -> int:
    return graph.model.graph.opset_imports[""]


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_every_step_of_the_standard_is_reviewed() -> None:
    """Of every operator that 18 has. A new onnx that changes one fails here first."""
    for schema in onnx.defs.get_all_schemas_with_history():
        version, name = schema.since_version, schema.name
        if schema.domain or not HIGHEST_OPSET < version <= NEWEST or schema.name not in BEFORE:
            continue
        assert (version in REVIEWED.get(name, ())) != ((name, version) in STEPS), (name, version)


BEFORE = {s.name for s in onnx.defs.get_all_schemas_with_history() if not s.domain and s.since_version <= HIGHEST_OPSET}


def test_reviewed_steps_add_types_and_nothing_else() -> None:
    for name, steps in REVIEWED.items():
        for version in steps:
            before, after = (onnx.defs.get_schema(name, v, "") for v in (version - 1, version))
            assert after.since_version == version, (name, version)
            assert {n: a.default_value for n, a in before.attributes.items()} == {
                n: a.default_value for n, a in after.attributes.items()
            }
            assert [i.name for i in before.inputs] == [i.name for i in after.inputs]
            for constraint in before.type_constraints:
                now = next((c for c in after.type_constraints if c.type_param_str == constraint.type_param_str), None)
                if name != "DequantizeLinear":  # which split one into two, and kept all types
                    assert now is not None and set(constraint.allowed_type_strs) <= set(now.allowed_type_strs), (name, version)


SAME: list[tuple[str, dict[str, Any]]] = [
    ("(float[1, 2, 8, 8] x) => (float y) { y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1>(x) }", {"x": numbers(1, 2, 8, 8)}),
    ("(float[1, 2, 8, 8] x) => (float y) { y = AveragePool<kernel_shape = [2, 2], dilations = [1, 1], count_include_pad = 1, pads = [1, 1, 0, 0]>(x) }", {"x": numbers(1, 2, 8, 8)}),
    ("(float[1, 2, 9, 9] x) => (float y) { y = MaxPool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(x) }", {"x": numbers(1, 2, 9, 9)}),
    ("(float[1, 2, 6, 6] x, float[1, 4, 4, 2] g) => (float y) { y = GridSample(x, g) }", {"x": numbers(1, 2, 6, 6), "g": numbers(1, 4, 4, 2)}),
    ('(float[1, 2, 6, 6] x, float[1, 4, 4, 2] g) => (float y) { y = GridSample<mode = "cubic", padding_mode = "border">(x, g) }', {"x": numbers(1, 2, 6, 6), "g": numbers(1, 4, 4, 2)}),
    ('(float[1, 2, 6, 6] x, float[1, 4, 4, 2] g) => (float y) { y = GridSample<mode = "nearest">(x, g) }', {"x": numbers(1, 2, 6, 6), "g": numbers(1, 4, 4, 2)}),
    ("(float[2, 3] x) => (int32 y) { y = Cast<to = 6, saturate = 1>(x) }", {"x": numbers(2, 3) * 9}),
    ('(float[2, 3] x) => (float y) { p = Constant<value_ints = [1, 0, 0, 2]>() y = Pad<mode = "reflect">(x, p) }', {"x": numbers(2, 3)}),
    ('(float[1, 1, 4, 4] x) => (float y) { s = Constant<value_floats = [1.0, 1.0, 2.0, 2.0]>() y = Resize<mode = "linear">(x, , s) }', {"x": numbers(1, 1, 4, 4)}),
    ("(float[4] x) => (uint8 q) { s = Constant<value_float = 0.1>() q = QuantizeLinear<saturate = 1>(x, s) }", {"x": numbers(4)}),
    ("(float[1, 8, 1] x) => (float y) { y = DFT(x) }", {"x": numbers(1, 8, 1)}),
    ("(float[3, 4] x) => (float v, int64 i) { k = Constant<value_ints = [2]>() v, i = TopK(x, k) }", {"x": numbers(3, 4)}),
    ("(float[3, 4] x) => (float y, bool z) { y = ReduceMax(x) z = IsInf(x) }", {"x": numbers(3, 4)}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "feeds"), SAME)
@pytest.mark.parametrize("opset", [20, 22, 24])
def test_it_computes_the_same(text: str, feeds: dict[str, Any], opset: int) -> None:
    graph = read(text, opset)
    for form, more in ((graph, {}), (in_branches(graph), {"choice": np.array(False)})):
        before = whole(form)
        lowered, changes = lower_opset(form)
        assert changes and not obstacles(lowered.model) and opset_of(lowered) == HIGHEST_OPSET
        assert lowered.model.ir_version == IR_VERSION and whole(form) == before and lower_opset(lowered)[1] == 0
        # the same kernels, but of AveragePool, which onnxruntime sums in another order from 19 on
        require_close(run(whole(lowered), feeds | more), run(before, feeds | more), 4 * 2.0**-23)


@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2), st.integers(4, 9), st.booleans(), st.booleans(),
    st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]), st.sampled_from(["AveragePool", "MaxPool"]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_windows(
    size: int, step: int, left: int, right: int, length: int, ceil: bool, counted: bool, auto: str, kind: str
) -> None:
    """Where it goes down, the numbers are the same, whatever the documentation said about the last window."""
    pads = f"pads = [{min(left, size - 1)}, {min(right, size - 1)}]" if auto == "NOTSET" else f'auto_pad = "{auto}"'
    count = f", count_include_pad = {int(counted)}" if kind == "AveragePool" else ""
    text = (
        f"(float[1, 2, {length}] x) => (float y)"
        f" {{ y = {kind}<kernel_shape = [{size}], strides = [{step}], ceil_mode = {int(ceil)}, {pads}{count}>(x) }}"
    )
    graph, feeds = read(text, 22), {"x": numbers(1, 2, length)}
    lowered, changes = lower_opset(graph)
    if changes and (kind == "AveragePool" or step <= size or auto in ("NOTSET", "VALID")):
        require_close(run(whole(lowered), feeds), run(whole(graph), feeds), 4 * 2.0**-23)


BLOCKED = [
    ("(float[1, 2, 8, 8] x) => (float y) { y = AveragePool<kernel_shape = [2, 2], dilations = [2, 2]>(x) }", "dilations"),
    ('(float[1, 2, 8, 8] x) => (float y) { y = AveragePool<kernel_shape = [2, 2], strides = [3, 3], auto_pad = "SAME_UPPER">(x) }', "auto_pad"),
    ("(float[1, 2, 4, 4, 4] x, float[1, 2, 2, 2, 3] g) => (float y) { y = GridSample(x, g) }", "plane"),
    ("(float x, float[1, 2, 2, 2] g) => (float y) { y = GridSample(x, g) }", "plane"),
    ('(float[2, 3] x, int64[4] p) => (float y) { y = Pad<mode = "wrap">(x, p) }', "mode=wrap"),
    ("(float[2, 3] x) => (float8e4m3fn y) { y = Cast<to = 17, saturate = 0>(x) }", "tensor(float8e4m3fn)"),
    ("(bfloat16[2, 3] x) => (bfloat16 y) { y = Sin(x) }", "tensor(bfloat16)"),
    ("(bool[2, 3] x) => (bool y) { y = ReduceMax(x) }", "tensor(bool)"),
    ("(float[2, 3] x) => (float y) { y = Gelu(x) }", "operator of opset 20"),
    ("(float[2, 6, 4] x, float[6] s) => (float y) { y = GroupNormalization<num_groups = 2>(x, s, s) }", "per group"),
    ('(float[1, 1, 4, 4] x, float[4] s) => (float y) { y = Resize<coordinate_transformation_mode = "half_pixel_symmetric">(x, , s) }', "half_pixel_symmetric"),
    ("(float[4] x, float s) => (int8 q) { q = QuantizeLinear<output_dtype = 3>(x, s) }", "output_dtype"),
    ("(float[4, 4] x, float[2, 4] s) => (uint8 q) { q = QuantizeLinear<axis = 0, block_size = 2>(x, s) }", "block_size"),
    ("(float[1, 8, 8, 1] x, int64 a) => (float y) { y = DFT(x, , a) }", "axis that is an input"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), BLOCKED)
def test_what_has_no_form_of_the_same_meaning_is_named_and_stays(text: str, reason: str) -> None:
    """The whole graph stays with it: half of it in another opset would mean something else."""
    graph = read(text.replace("{", "{ other = Identity(x) ", 1), 22)
    lowered, changes = lower_opset(graph)
    (found,) = obstacles(lowered.model)
    assert changes == 0 and opset_of(lowered) == 22 and reason in str(found) and found.op in text
    assert [node.op_type for node in lowered.model.graph] == [node.op_type for node in graph.model.graph]
    assert not obstacles(graph.model)


def test_all_that_is_in_the_way_is_named() -> None:
    graph = read("(float[2, 3] x) => (float y) { a = Gelu(x) b = Sin(a) y = Gelu(b) }", 22)
    lowered, _ = lower_opset(graph)
    assert [o.op for o in obstacles(lowered.model)] == ["Gelu", "Gelu"]


def test_a_graph_at_18_or_below_keeps_its_opset() -> None:
    for opset in (13, 18):
        graph = read("(float[2, 3] x) => (float y) { y = Relu(x) }", opset)
        assert lower_opset(graph)[1] == 1 and opset_of(lower_opset(graph)[0]) == opset  # the format, 10 -> 8


@pytest.mark.parametrize(("opset", "reached"), [(9, 18), (11, 18), (16, 18), (18, 18), (20, 20)])
def test_a_file_is_raised_to_what_is_asked_for(opset: int, reached: int) -> None:
    text = "(float[2, 3] x) => (float y) { a = Softmax<axis = 1>(x) y = Relu(a) }"
    graph, applied = canonical(written(text, opset), 18)
    assert opset_of(graph) == reached and applied[-1]["opset"] == reached and "kept" not in applied[-1]


def test_a_file_that_cannot_be_raised_so_far_names_why() -> None:
    graph, applied = canonical(written("(float[2, 3] x) => (float y) { y = Relu(x) }", 8, 3), 18)
    assert opset_of(graph) == 8 and applied[-1]["kept"] == ["opset 8: is below 9"]


def test_imports_that_no_node_needs_go() -> None:
    graph = read("(float[2, 3] x) => (float y) { y = Relu(x) }", 18, contrib=True)
    imports = graph.model.graph.opset_imports
    imports["ai.onnx.ml"], imports["ai.onnx"] = 3, imports.pop("")
    cleaned, changes = clean_imports(graph)
    assert changes == 3 and dict(cleaned.model.graph.opset_imports) == {"": 18} and clean_imports(cleaned)[1] == 0


def test_imports_that_a_branch_needs_stay() -> None:
    graph = in_branches(read("(float[2, 3] x) => (float[2, 3] y) { y = com.microsoft.Gelu(x) }", 18, contrib=True))
    assert clean_imports(graph)[1] == 0
