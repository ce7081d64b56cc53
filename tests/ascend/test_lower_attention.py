"""Attention in primitives: every form of mask, cache and heads against onnxruntime's own operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from porting.ascend.overflow import forecast
from porting.ascend.soc import find_soc
from porting.converters.passes.ascend.attention import LOWEST_FP16, attention
from porting.converters.passes.infer_shapes import infer_shapes
from porting.types import Graph
from tests.ascend.lowering_checks import FLOAT32, kinds, read, require_close, require_lowered
from tests.graph_bits import run, whole

# Scores of size 3 and sums of up to 16 products, softmax of up to 13 numbers: two orders of summing differ by some units in the last place.
BOUND = 32 * FLOAT32


def dims(*sizes: int | str) -> str:
    return f"[{', '.join(map(str, sizes))}]"


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """The text of a graph with one Attention, and feeds."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    shared, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads, batch, size, value_size = (
        shared * group,
        draw(st.integers(1, 2)),
        draw(st.sampled_from([4, 8])),
        draw(st.sampled_from([4, 6])),
    )
    queries, new = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    flat, cached = draw(st.booleans()), draw(st.sampled_from(["no", "past", "filled"]))
    past = draw(st.integers(1, 4)) if cached == "past" else 0
    if past and queries == 1:
        new = 1  # onnxruntime 1.31 lets one query behind a past see all new keys, where the standard hides those behind it
    free = draw(st.booleans())  # sizes of the batch and the positions are not known
    total = past + new

    def tensor(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 1.5).astype(np.float32)

    def heads_of(count: int, positions: int, width: int) -> tuple[int, ...]:
        return (batch, positions, count * width) if flat else (batch, count, positions, width)

    feeds: dict[str, Any] = {
        "q": tensor(*heads_of(heads, queries, size)),
        "k": tensor(*heads_of(shared, new, size)),
        "v": tensor(*heads_of(shared, new, value_size)),
    }
    names = ["q", "k", "v", "", "", "", ""]
    mask = draw(st.sampled_from(["", "bool", "float"]))
    if mask:
        shape = draw(st.sampled_from([(queries, total), (batch, 1, queries, total), (1, heads, queries, total)]))
        allowed = rng.random(shape) > 0.4  # some rows see nothing
        feeds["m"] = allowed if mask == "bool" else np.where(allowed, tensor(*shape), np.float32(-np.inf)).astype(np.float32)
        names[3] = "m"
    if past:
        feeds["a"], feeds["b"] = tensor(batch, shared, past, size), tensor(batch, shared, past, value_size)
        names[4:6] = ["a", "b"]
    if cached == "filled":
        feeds["n"] = rng.integers(0, new + 1, batch)
        names[6] = "n"
    attributes = {"is_causal": draw(st.integers(0, 1)), "scale": draw(st.sampled_from([None, 0.3]))}
    attributes["softcap"] = draw(st.sampled_from([None, 1.5]))
    if flat:
        attributes |= {"q_num_heads": heads, "kv_num_heads": shared}
    given_ = ", ".join(f"{name} = {value}" for name, value in attributes.items() if value is not None)

    def declared(name: str, array: np.ndarray) -> str:
        kind = {"float32": "float", "int64": "int64", "bool": "bool"}[array.dtype.name]
        positions = {"q": "Q", "k": "T", "v": "T"}.get(name)
        sizes: list[int | str] = list(array.shape)
        if free and positions:
            sizes[0], sizes[1 if flat else 2] = "B", positions
        return f"{kind}{dims(*sizes)} {name}"

    inputs = ", ".join(declared(name, array) for name, array in feeds.items())
    outputs, results = "float y", "y"
    if past:
        outputs, results = "float y, float key, float value", "y, key, value"
    while not names[-1]:
        names.pop()
    return f"({inputs}) => ({outputs}) {{ {results} = Attention<{given_}>({', '.join(names)}) }}", feeds


@given(cases())
@settings(max_examples=80, deadline=None)
def test_it_computes_what_attention_computes(case: tuple[str, dict[str, Any]]) -> None:
    text, feeds = case
    require_lowered(attention, read(text, 24), feeds, BOUND, branches=False)


PLAIN = "float[1, 2, 3, 4] q, float[1, 2, 5, 4] k, float[1, 2, 5, 4] v"


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


FEEDS = {"q": numbers(1, 2, 3, 4), "k": numbers(1, 2, 5, 4), "v": numbers(1, 2, 5, 4)}


def test_inside_a_branch() -> None:
    graph = read(f"({PLAIN}) => (float[1, 2, 3, 4] y) {{ y = Attention<is_causal = 1>(q, k, v) }}", 23)
    lowered = require_lowered(attention, graph, FEEDS, BOUND)
    assert "Attention" not in kinds(lowered)


def test_a_mask_that_is_shown_to_be_finite_costs_no_more_than_an_addition() -> None:
    text = f"({PLAIN}, bool[3, 5] s) => (float[1, 2, 3, 4] y) {{ m = Where(s, zero, low) y = Attention(q, k, v, m) }}"
    weights = {"zero": np.float32(0), "low": np.float32(-1e9)}
    seen = np.array([[True] * 5, [False] * 5, [True, False] * 2 + [True]])
    lowered = require_lowered(attention, read(text, 23, **weights), {**FEEDS, "s": seen}, BOUND)
    assert kinds(lowered)["Where"] == 1 and kinds(lowered)["Add"] == 1


def test_no_infinity_and_no_number_beyond_fp16_in_a_graph_of_fp16() -> None:
    text = "(float16[1, 2, 3, 4] q, float16[1, 2, 5, 4] k, float16[1, 2, 5, 4] v, bool[3, 5] m) => (float16[1, 2, 3, 4] y)"
    feeds = {name: array.astype(np.float16) for name, array in FEEDS.items()} | {"m": np.tril(np.ones((3, 5), bool), 1)}
    graph = read(f"{text} {{ y = Attention(q, k, v, m) }}", 23)
    lowered = require_lowered(attention, graph, feeds, 16 * 2.0**-10)  # half numbers: a rounding per operator
    constants = [v.const_value.numpy() for v in lowered.model.graph.initializers.values() if v.const_value is not None]
    assert LOWEST_FP16 in [float(c) for c in constants if c.size == 1 and c.dtype == np.float16]
    assert all(np.isfinite(c.astype(np.float64)).all() for c in constants)


F32_LOWEST = float(np.finfo(np.float32).min)


@pytest.mark.parametrize("low", [-np.inf, F32_LOWEST, -65504.0, -1e4, -1.0, 0.0, 1e4])
def test_what_a_mask_of_floats_may_hold(low: float) -> None:
    """Some of a row masked, one of it left, and all of it: only minus infinity hides a whole row."""
    mask = np.zeros((3, 5), np.float32)
    mask[0, 2:], mask[1, 1:], mask[2] = low, low, low
    feeds = {**FEEDS, "m": mask}
    graph = read(f"({PLAIN}, float[3, 5] m) => (float[1, 2, 3, 4] y) {{ y = Attention(q, k, v, m) }}", 24)
    lowered, _ = attention(graph)
    infer_shapes.change(lowered.model)
    found = run(whole(lowered), feeds)
    require_close(found, ReferenceEvaluator(onnx.load_from_string(whole(graph))).run(None, feeds), BOUND)
    if low != F32_LOWEST:  # of which onnxruntime 1.31's Attention takes a whole row for hidden
        require_close(found, run(whole(graph), feeds), BOUND)
    assert bool((found[0][:, :, 2] == 0).all()) == (low == -np.inf)


@pytest.mark.parametrize("low", [-np.inf, -1e4, -65504.0])
@pytest.mark.parametrize("soc", ["Ascend310P3", "Ascend910B3"])
def test_the_forecast_of_fp16_finds_nothing_in_how_a_mask_is_read(soc: str, low: float) -> None:
    graph = read(f"({PLAIN}, float[3, 5] m) => (float[1, 2, 3, 4] y) {{ y = Attention(q, k, v, m) }}", 24)
    lowered, _ = attention(graph)
    infer_shapes.change(lowered.model)
    found = forecast(lowered, {**FEEDS, "m": np.triu(np.full((3, 5), low, np.float32), 2)}, soc=find_soc(soc))
    assert found.passes and not found.to_keep and not found.overflows
    largest = [float(np.abs(v.const_value.numpy()).max()) for v in lowered.model.graph.initializers.values() if v.const_value]
    assert sorted(largest)[-2] < 65504, "all but what is written where nothing is seen, which only Softmax reads"


def _left(text: str, opset: int = 24) -> Graph:
    graph = read(text, opset)
    lowered, changes = attention(graph)
    assert changes == 0 and whole(lowered) == whole(graph)
    return lowered


def test_it_leaves_what_it_has_no_exact_form_for() -> None:
    _left(f"({PLAIN}) => (float y, float s) {{ y, , , s = Attention(q, k, v) }}")
    _left(
        "(float[1, 3, D] q, float[1, 5, 8] k, float[1, 5, 8] v) => (float y) {y = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v)}"
    )
    _left(f"({PLAIN}, bool[3, 4] m) => (float y) {{ y = Attention(q, k, v, m) }}")
    _left(f"({PLAIN}) => (float y) {{ y = Attention<softmax_precision = 11>(q, k, v) }}")
    _left("(float[N, 3] x) => (float y) { y = Softmax(x) }")


def test_a_mistake_in_a_mask_would_show() -> None:
    """The bound is far below what one position more or less changes."""
    causal = read(f"({PLAIN}) => (float y) {{ y = Attention<is_causal = 1>(q, k, v) }}", 24)
    free = read(f"({PLAIN}) => (float y) {{ y = Attention(q, k, v) }}", 24)
    lowered, _ = attention(causal)
    infer_shapes.change(lowered.model)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(run(whole(lowered), FEEDS)[0], run(whole(free), FEEDS)[0], atol=1e-2)
