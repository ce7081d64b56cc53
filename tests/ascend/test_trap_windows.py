"""Convolutions and pooling with what the parser wants written out, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.avg_pool import avg_pool
from porting.converters.passes.ascend.conv_kernel_shape import conv_kernel_shape
from porting.converters.passes.ascend.conv_transpose import conv_transpose
from porting.converters.passes.ascend.max_pool_indices import max_pool_indices
from porting.converters.passes.ascend.pool_windows import pool_windows
from porting.converters.passes.pool_windows import Axis
from porting.types import Graph
from porting.weights import array_stream, stream_of, tensors_of
from tests.ascend.lowering_checks import read, require_lowered
from tests.graph_bits import run, whole

FEW = settings(max_examples=40, deadline=None)
AXES = st.lists(
    st.tuples(st.integers(3, 7), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3
)  # size, window, stride


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def first(graph: Graph, kind: str) -> ir.Node:
    return next(node for node in graph.model.graph if node.op_type == kind)


def written(attributes: dict[str, Any]) -> str:
    parts = [f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}" for k, v in attributes.items()]
    return f"<{', '.join(parts)}>" if parts else ""


def dims(sizes: list[int], free: bool) -> str:
    return ", ".join(["1", "2", *(f"d{i}" if free else str(n) for i, n in enumerate(sizes))])


@FEW
@given(AXES, st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]), st.booleans(), st.booleans(), st.data())
def test_conv_says_its_window_and_padding(axes: Any, how: str, free: bool, say: bool, data: st.DataObject) -> None:
    sizes, kernel, strides = (list(t) for t in zip(*axes, strict=True))
    attributes: dict[str, Any] = {} if how == "NOTSET" and not say else {"auto_pad": how}
    if say:
        attributes |= {"strides": strides, "kernel_shape": kernel}
    else:
        strides = [1] * len(sizes)
    text = f"(float[{dims(sizes, free)}] x) => (float y) {{ y = Conv{written(attributes)}(x, w) }}"
    known = not free or not how.startswith("SAME") or all(s == 1 for s in strides)
    changes = int((how != "NOTSET" and "auto_pad" in attributes and known) or not say)
    graph = read(text, 17, w=random(3, 2, *kernel))
    node = first(require_lowered(conv_kernel_shape, graph, {"x": random(1, 2, *sizes)}, changes=changes), "Conv")
    assert list(node.attributes["kernel_shape"].as_ints()) == kernel
    assert not known or "auto_pad" not in node.attributes or how == "NOTSET"


@FEW
@given(
    AXES,
    st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]),
    st.sampled_from([0, 1]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_average_pool_counts_as_it_says(axes: Any, how: str, count: int, free: bool, pads: bool, ceil: bool) -> None:
    sizes, kernel, strides = (list(t) for t in zip(*axes, strict=True))
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "count_include_pad": count}
    assume(
        not how.startswith("SAME") or all(k >= s for k, s in zip(kernel, strides, strict=True))
    )  # onnxruntime refuses others
    given_pads = [n // 2 for n in kernel] * 2 if pads and how == "NOTSET" else []
    if given_pads:
        attributes["pads"] = given_pads
    if how != "NOTSET":
        attributes["auto_pad"] = how
    if ceil and how == "NOTSET":
        attributes["ceil_mode"] = 1
    text = f"(float[{dims(sizes, free)}] x) => (float y) {{ y = AveragePool{written(attributes)}(x) }}"
    graph = read(text, 17)
    lowered, changes = avg_pool(graph)
    assume(changes)
    lowered = require_lowered(avg_pool, graph, {"x": random(1, 2, *sizes)}, changes=changes)
    node = first(lowered, "AveragePool")
    known = not free or all(s == 1 for s in strides)
    if known:
        assert "auto_pad" not in node.attributes or node.attributes["auto_pad"].as_string() != "SAME_LOWER"
    if count and known and "ceil_mode" not in attributes:
        assert "count_include_pad" not in node.attributes


def test_average_pool_that_says_nothing_ignored_is_left() -> None:
    graph = read("(float[1, 2, 5] x) => (float y) { y = AveragePool<kernel_shape=[3], pads=[1, 1]>(x) }", 17)
    assert avg_pool(graph)[1] == 0


@pytest.mark.parametrize("how", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [5, 6])
def test_max_pool_of_same_size(how: str, size: int) -> None:
    text = f'(float[1, 2, {size}] x) => (float y) {{ y = MaxPool<auto_pad="{how}", kernel_shape=[2], strides=[2]>(x) }}'
    graph = read(text, 17)
    require_lowered(avg_pool, graph, {"x": random(1, 2, size) - 5}, changes=int(how == "SAME_LOWER"))


def test_indices_that_nobody_reads_go() -> None:
    text = "(float[1, 2, 4, 4] x) => (float y) { y, i = MaxPool<kernel_shape=[2, 2], storage_order=1>(x) }"
    lowered = require_lowered(max_pool_indices, read(text, 17), {"x": random(1, 2, 4, 4)})
    node = first(lowered, "MaxPool")
    assert len(node.outputs) == 1 and "storage_order" not in node.attributes


def test_indices_that_are_read_stay() -> None:
    text = "(float[1, 2, 4, 4] x) => (float y, int64 i) { y, i = MaxPool<kernel_shape=[2, 2], storage_order=1>(x) }"
    assert max_pool_indices(read(text, 17))[1] == 0


@st.composite
def transposed(draw: st.DrawFn) -> tuple[str, dict[str, np.ndarray], list[int], bool]:
    axes = draw(st.lists(st.tuples(st.integers(2, 5), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=2))
    sizes, kernel, strides = (list(t) for t in zip(*axes, strict=True))
    how, free = draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID", "shape"])), draw(st.booleans())
    attributes: dict[str, Any] = {"strides": strides}
    more = [draw(st.integers(0, s - 1)) for s in strides]
    dilations = [draw(st.integers(1, 2)) for _ in strides]
    if draw(st.booleans()):
        attributes |= {"output_padding": more, "dilations": dilations}
    else:
        more, dilations = [0] * len(more), [1] * len(more)
    reach = [(n - 1) * s + m + (k - 1) * d + 1 for n, k, s, m, d in zip(sizes, kernel, strides, more, dilations, strict=True)]
    if how == "shape":
        attributes["output_shape"] = [draw(st.integers(1, r)) for r in reach]
    elif how != "NOTSET":
        assume(not how.startswith("SAME") or all(r >= n * s for r, n, s in zip(reach, sizes, strides, strict=True)))
        attributes["auto_pad"] = how
    elif draw(st.booleans()):
        attributes["pads"] = [draw(st.integers(0, (r - 1) // 2)) for r in reach] * 2
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    weights = {"w": random(2, 3, *kernel), "b": random(6)}
    attributes["group"] = 2
    text = f"(float[{dims(sizes, free)}] x) => (float y) {{ y = ConvTranspose{written(attributes)}(x, w, b) }}"
    known = how in ("NOTSET", "VALID") or (not free and (how == "shape" or not any(more)))
    return text, weights, sizes, known


@FEW
@given(transposed())
def test_conv_transpose_says_everything(case: tuple[str, dict[str, np.ndarray], list[int], bool]) -> None:
    text, weights, sizes, known = case
    graph = read(text, 17, **weights)
    if "SAME" in text and not known:  # onnxruntime and ONNX's inference have two opinions of some of them
        assert "auto_pad" in first(conv_transpose(graph)[0], "ConvTranspose").attributes
        return
    _, changes = conv_transpose(graph)
    branches = (
        "output_shape" not in text
    )  # ONNX's inference gives such a node a wrong rank, which onnxruntime believes in a branch
    feeds = {"x": random(1, 2, *sizes)}
    lowered = require_lowered(conv_transpose, graph, feeds, changes=changes, branches=branches) if changes else graph
    node = first(lowered, "ConvTranspose")
    assert "kernel_shape" in node.attributes
    if known:
        assert not {"auto_pad", "output_shape"} & set(node.attributes)
        assert node.inputs[1] is not None and node.inputs[1].shape is not None and len(node.inputs[1].shape) == 4


def test_weights_of_a_sequence_stay_a_stream() -> None:
    weights = random(2, 3, 5)
    graph = read("(float[1, 2, n] x) => (float y) { y = ConvTranspose<strides=[2]>(x, w) }", 17, w=weights)
    graph.model.graph.initializers["w"].const_value = tensors_of(array_stream("w", weights))[0]
    lowered = require_lowered(conv_transpose, graph, {"x": random(1, 2, 4)}, changes=2)
    value = first(lowered, "ConvTranspose").inputs[1]
    assert value is not None and stream_of(value.const_value) is not None
    assert value.const_value is not None and np.array_equal(value.const_value.numpy(), weights[:, :, None, :])
    assert run(whole(lowered), {"x": random(1, 2, 4)})[0].shape == (1, 3, 11)


@FEW
@given(
    st.lists(
        st.tuples(*[st.integers(1, 9), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2), st.integers(0, 2)]),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["MaxPool", "AveragePool"]),
    st.sampled_from([0, 1]),
)
def test_no_window_is_left_that_reads_padding_alone(axes: Any, op: str, count: int) -> None:
    sizes, kernel, strides, begins, ends = (list(t) for t in zip(*axes, strict=True))
    assume(all(b < k and e < k and n + b + e >= k for n, k, _, b, e in axes))
    attributes: dict[str, Any] = {"ceil_mode": 1, "kernel_shape": kernel, "strides": strides, "pads": begins + ends}
    if op == "AveragePool":
        attributes["count_include_pad"] = count
    found = [Axis(*axis[1:]) for axis in axes]
    dropped = any(a.kept(n) != a.counted(n) for a, n in zip(found, sizes, strict=True))
    graph = read(f"(float[{dims(sizes, False)}] x) => (float y) {{ y = {op}{written(attributes)}(x) }}", 17)
    _, changes = pool_windows(graph)
    assert not changes or dropped
    event(f"{dropped} {changes}")
    if changes:
        node = first(
            require_lowered(pool_windows, graph, {"x": random(1, 2, *sizes) - 5}, branches=False), op
        )  # onnxruntime takes none inside an If
        pads, ceil = node.attributes["pads"].as_ints(), "ceil_mode" in node.attributes
        left = [Axis(k, s, *pads[i :: len(axes)]) for i, (k, s) in enumerate(zip(kernel, strides, strict=True))]
        assert not ceil or all(a.kept(n) == a.counted(n) for a, n in zip(left, sizes, strict=True))
    elif dropped:  # one axis keeps a window that reaches behind the padding, another has strides over its windows
        assert len(axes) > 1 and any(k < s for _, k, s, _, _ in axes)


def test_a_window_in_padding_of_a_free_size_stays() -> None:
    pool = "MaxPool<ceil_mode=1, kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1]>(x)"
    assert pool_windows(read(f"(float[1, 2, h, w] x) => (float y) {{ y = {pool} }}", 17))[1] == 0
