"""Resize in the form that the plugin reads, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.nearest_places import COORDINATES, ROUNDINGS, nearest_places
from porting.converters.passes.ascend.resize_rounding import resize_rounding
from porting.types import Graph
from tests.ascend.lowering_checks import kinds, read, require_lowered

FEW = settings(max_examples=40, deadline=None)


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def resizes(graph: Graph) -> list[ir.Node]:
    return [node for node in graph.model.graph if node.op_type == "Resize"]


def read_rightly(node: ir.Node) -> bool:
    """Whether what the plugin does not read says what the plugin does."""
    x = node.inputs[0]
    assert x is not None and x.shape is not None
    nearest = node.attributes["mode"].as_string() == "nearest" if "mode" in node.attributes else True
    rounding = node.attributes["nearest_mode"].as_string() if "nearest_mode" in node.attributes else "round_prefer_floor"
    unread = {"axes", "antialias", "keep_aspect_ratio_policy"} & set(node.attributes)
    return not unread and len(node.inputs) >= 3 and (not nearest or (rounding == "round_prefer_ceil" and len(x.shape) == 4))


@FEW
@given(
    st.sampled_from(COORDINATES),
    st.sampled_from(list(ROUNDINGS)),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 14)), min_size=1, max_size=2),
    st.booleans(),
    st.integers(2, 3),
)
def test_nearest_of_fixed_sizes(how: str, rounding: str, axes: list[tuple[int, int]], by_sizes: bool, before: int) -> None:
    sizes = [2] * (before - 1) + [1] + [n for n, _ in axes]
    wanted = sizes[: -len(axes)] + [n for _, n in axes]
    factors = np.array([w / n for w, n in zip(wanted, sizes, strict=True)], np.float32)
    assume(by_sizes or np.array_equal(np.floor(factors.astype(np.float64) * sizes), wanted))  # no size hangs on a rounding
    weights = {"s": np.array(wanted, np.int64) if by_sizes else factors}
    dims = ", ".join(map(str, sizes))
    text = (
        f'(float[{dims}] x) => (float y) {{ y = Resize<coordinate_transformation_mode="{how}", nearest_mode="{rounding}", '
        f'mode="nearest">(x, , {", s" if by_sizes else "s"}) }}'
    )
    feeds = {"x": ramp(*sizes)}
    graph = read(text, 18, **weights)
    stays = len(sizes) == 4 and rounding == "round_prefer_ceil"
    lowered = require_lowered(resize_rounding, graph, feeds, changes=int(not stays))
    assert all(read_rightly(node) for node in resizes(lowered))


@FEW
@given(st.integers(1, 7), st.integers(1, 6), st.sampled_from([3, 4]), st.sampled_from([13, 18]))
def test_whole_factors_need_no_fixed_size(size: int, factor: int, rank: int, opset: int) -> None:
    """What PyTorch exports for an upsampling."""
    dims, factors = ", ".join("abcd"[:rank]), np.array([1, 1, factor, factor + 1][:rank], np.float32)
    text = (
        f'(float[{dims}] x) => (float y) {{ y = Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
        "(x, , s) }"
    )
    x = ramp(*[2, 1, size, 3][:rank])
    lowered = require_lowered(resize_rounding, read(text, opset, s=factors), {"x": x})
    assert kinds(lowered)["Gather"] == 0 and all(read_rightly(node) for node in resizes(lowered))


def test_whole_factors_at_every_place() -> None:
    for factor in range(1, 65):
        places = [i // factor for i in range(500 * factor)]
        for how, rounding in (
            ("asymmetric", "floor"),
            ("half_pixel", "round_prefer_ceil"),
            ("half_pixel", "round_prefer_floor"),
        ):
            assert nearest_places(500, 500 * factor, factor, how, rounding) == places


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
@pytest.mark.parametrize("batch", ["n", "2"])
@pytest.mark.parametrize("by_sizes", [False, True])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_axes_and_policies(policy: str, batch: str, by_sizes: bool, mode: str) -> None:
    if policy != "stretch" and not by_sizes:
        return  # it is about sizes
    text = (
        f"(float[{batch}, 3, 6, 4] x) => (float y) "
        f'{{ y = Resize<axes=[3, 2], keep_aspect_ratio_policy="{policy}", mode="{mode}">(x, , {", s" if by_sizes else "s"}) }}'
    )
    weights = {"s": np.array([7, 9], np.int64) if by_sizes else np.array([1.75, 1.5], np.float32)}
    graph = read(text, 18, **weights)
    left = policy != "stretch" and mode == "linear"
    lowered = require_lowered(resize_rounding, graph, {"x": ramp(2, 3, 6, 4)}, changes=int(not left))
    assert left or all(read_rightly(node) for node in resizes(lowered))


@pytest.mark.parametrize(("factor", "count"), [(2.0, 1), (0.5, 0)])
def test_antialias_means_something_only_where_an_axis_gets_smaller(factor: float, count: int) -> None:
    text = '(float[1, 1, 4, 4] x) => (float y) { y = Resize<mode="linear", antialias=1>(x, , s) }'
    graph = read(text, 18, s=np.array([1, 1, factor, factor], np.float32))
    assert resize_rounding(graph)[1] == count
    if count:
        require_lowered(resize_rounding, graph, {"x": ramp(1, 1, 4, 4)}, bound=2.0**-22)  # a weight may round otherwise


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_what_is_read_as_it_stands_is_left(mode: str) -> None:
    text = f'(float[1, 1, 4, 4] x) => (float y) {{ y = Resize<mode="{mode}">(x, , s) }}'
    assert resize_rounding(read(text, 18, s=np.array([1, 1, 2, 2], np.float32)))[1] == 0


@pytest.mark.parametrize(
    "text",
    [
        "(float[a, b, c, d] x, float[4] s) => (float y) { y = Resize(x, , s) }",
        "(float[a, b, c, d] x, int64[4] s) => (float y) { y = Resize(x, , , s) }",
        "(float[a, b, c, d] x) => (float y) { y = Resize(x, , f) }",
        '(float[a, b, c, d] x) => (float y) { y = Resize<coordinate_transformation_mode="asymmetric", nearest_mode="ceil">(x, , t) }',
        '(float[a, b, c, d] x) => (float y) { y = Resize<nearest_mode="floor">(x, , t) }',
        '(float[a, b, c, d] x) => (float y) { y = Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , h) }',
        '(float[a, b, c, d] x) => (float y) { y = Resize<nearest_mode="round_prefer_floor">(x, , h) }',
        '(float[1, 1, 4, 4] x) => (float y) { y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(x, r, f) }',
    ],
)
def test_what_is_not_known_is_left(text: str) -> None:
    weights = {
        "t": np.array([1, 1, 2, 3], np.float32),
        "f": np.array([1, 1, 1.3, 0.7], np.float32),
        "h": np.array([1, 1, 1, 1.5], np.float32),
        "r": np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32),
    }
    assert resize_rounding(read(text, 18, **weights))[1] == 0
