"""How many windows a pool with ceil_mode has: what shape inference says, against onnxruntime and against a count one by one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from porting.converters.passes.infer_shapes import infer_shapes
from porting.converters.passes.pool_windows import Axis
from tests.graph_bits import run, whole, written

AXIS = st.tuples(
    st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3), st.integers(1, 2)
)


def kept_one_by_one(size: int, axis: Axis) -> int:
    """Windows start every stride, as long as one reads something before it, and start in front of the padding behind."""
    starts = [i * axis.stride for i in range(99)]
    whole_axis = size + axis.begin + axis.end
    fitting = [s for s in starts if s + axis.window < whole_axis + axis.stride]
    return sum(s < size + axis.begin for s in fitting)


@settings(max_examples=300, deadline=None)
@given(AXIS)
def test_windows_are_those_that_start_in_the_input(drawn: tuple[int, ...]) -> None:
    size, window, stride, begin, end, _ = drawn
    axis = Axis(window, stride, begin, end)
    assume(begin < window and end < window and size + begin + end >= window)
    assert axis.kept(size) == kept_one_by_one(size, axis)
    assert axis.may_drop() or axis.kept(size) == axis.counted(size)
    drops = [n for n in range(max(window - begin - end, 1), 40) if axis.kept(n) != axis.counted(n)]
    assert bool(drops) == axis.may_drop()


@pytest.mark.parametrize("opset", [12, 18, 22])
@settings(max_examples=25, deadline=None)
@given(st.lists(AXIS, min_size=1, max_size=2), st.sampled_from(["MaxPool", "AveragePool"]), st.booleans())
def test_inferred_sizes_are_those_that_come_out(opset: int, axes: list[tuple[int, ...]], op: str, twice: bool) -> None:
    sizes, kernel, strides, begins, ends, dilations = (list(t) for t in zip(*axes, strict=True))
    dilations = dilations if op == "MaxPool" else [1] * len(axes)
    for i, size in enumerate(sizes):
        assume(begins[i] < kernel[i] and ends[i] < kernel[i])
        assume(size + begins[i] + ends[i] >= (kernel[i] - 1) * dilations[i] + 1)
    dilated = f", dilations={dilations}" if op == "MaxPool" else ""
    pool = f"{op}<ceil_mode=1, kernel_shape={kernel}, strides={strides}, pads={begins + ends}{dilated}>"
    again = f"{op}<ceil_mode=1, kernel_shape={[1] * len(sizes)}, strides={[2] * len(sizes)}>" if twice else "Identity"
    dims = ", ".join(map(str, [1, 1, *sizes]))
    graph = written(f"(float[{dims}] x) => (float y) {{ p = {pool}(x) y = {again}(p) }}", opset)
    infer_shapes.change(graph.model)
    shape = graph.model.graph.outputs[0].shape
    (found,) = run(whole(graph), {"x": np.ones([1, 1, *sizes], np.float32)})
    assert isinstance(shape, ir.Shape) and list(shape) == list(found.shape)
