"""TensorScatter and RotaryEmbedding: what a decoder does at every step, against onnxruntime's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.rotary_embedding import rotary_embedding
from porting.converters.passes.ascend.tensor_scatter import tensor_scatter
from porting.converters.passes.rewriting import ModelPass
from tests.ascend.lowering_checks import FLOAT32, kinds, read, require_lowered
from tests.graph_bits import whole

KINDS = {"float": np.float32, "float16": np.float16, "int64": np.int64, "bool": np.bool_}


def declared(kind: str, shape: list[int], names: dict[int, str], name: str) -> str:
    return f"{kind}[{', '.join(names.get(i, str(d)) for i, d in enumerate(shape))}] {name}"


@given(
    st.integers(1, 3),
    st.lists(st.integers(1, 3), max_size=2),
    st.lists(st.integers(1, 3), min_size=0, max_size=2),
    st.integers(1, 4),
    st.sampled_from(sorted(KINDS)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_tensor_scatter_moves_every_bit(
    batch: int,
    between: list[int],
    behind: list[int],
    count: int,
    kind: str,
    circular: bool,
    given_: bool,
    free: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    axis, most = 1 + len(between), count + int(rng.integers(0, 4))
    shape, update = [batch, *between, most, *behind], [batch, *between, count, *behind]
    begin = rng.integers(0, 3 * most if circular else most - count + 1, batch)
    names = {0: "B", axis: "M"} if free else {}
    steps = {0: "B", axis: "S"} if free and count > 1 else {0: "B"} if free else {}
    inputs = [declared(kind, shape, names, "x"), declared(kind, update, steps, "u")]
    inputs += [declared("int64", [batch], {0: "B"} if free else {}, "w")] if given_ else []
    mode = "circular" if circular else "linear"
    node = f'TensorScatter<axis = {axis - len(shape)}, mode = "{mode}">(x, u{", w" if given_ else ""})'
    feeds: dict[str, Any] = {
        "x": (rng.standard_normal(shape) * 9).astype(KINDS[kind]),
        "u": (rng.standard_normal(update) * 9).astype(KINDS[kind]),
        "w": begin,
    }
    text = f"({', '.join(inputs)}) => ({declared(kind, shape, names, 'y')}) {{ y = {node} }}"
    lowered = require_lowered(tensor_scatter, read(text, 24), feeds)
    one = count == 1 and kind in ("float", "float16")
    assert ("Where" in kinds(lowered)) == one and ("ScatterND" in kinds(lowered)) != one


@given(
    st.sampled_from([3, 4]),
    st.integers(1, 3),
    st.sampled_from([4, 6, 8]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_rotary_embedding(rank: int, heads: int, size: int, part: bool, interleaved: bool, looked_up: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    turned = size - 2 if part else size
    x = [2, 5, heads * size] if rank == 3 else [2, heads, 5, size]
    cache = [9, turned // 2] if looked_up else [2, 5, turned // 2]
    feeds: dict[str, Any] = {"x": rng.standard_normal(x).astype(np.float32), "p": rng.integers(0, 9, (2, 5))}
    feeds |= {name: rng.uniform(-1, 1, cache).astype(np.float32) for name in "cs"}
    names = {0: "B", 1 if rank == 3 else 2: "S"}
    inputs = [declared("float", x, names, "x"), *(declared("float", cache, {}, n) for n in "cs")]
    inputs += ["int64[B, S] p"] if looked_up else []
    attributes = f"num_heads = {heads}, interleaved = {int(interleaved)}, rotary_embedding_dim = {turned if part else 0}"
    text = f"({', '.join(inputs)}) => (float y) {{ y = RotaryEmbedding<{attributes}>(x, c, s{', p' if looked_up else ''}) }}"
    # two products and their sum, which onnxruntime may round once less
    lowered = require_lowered(rotary_embedding, read(text, 23), feeds, 4 * FLOAT32)
    assert "RotaryEmbedding" not in kinds(lowered)


@pytest.mark.parametrize(
    ("change", "text", "opset"),
    [
        (rotary_embedding, "(float[2, 5, H] x, float[9, 2] c, float[9, 2] s, int64[2, 5] p) => (float y) { y = RotaryEmbedding<num_heads = 2>(x, c, s, p) }", 23),
        (tensor_scatter, "(float[B, N, M, 4] x, float[B, N, 2, 4] u) => (float y) { y = TensorScatter(x, u) }", 24),
        (tensor_scatter, "(float[2, 3] x, int64[1, 1] i, float[1, 3] u) => (float y) { y = ScatterND(x, i, u) }", 24),
    ],
)  # fmt: skip
def test_others_stay(change: ModelPass, text: str, opset: int) -> None:
    graph = read(text, opset)
    lowered, changes = change(graph)
    assert changes == 0 and whole(lowered) == whole(graph)
