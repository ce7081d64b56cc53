"""What the rules speak of is gone after the lowering, where there is an exact form; where there is none they still speak."""

from __future__ import annotations

import numpy as np
import pytest

from porting.ascend.graph_facts import facts_of
from porting.ascend.rules import judge, rules
from porting.ascend.soc import find_soc
from porting.converters.passes.ascend.tables import PASSES, lower_for_ascend
from porting.types import Graph
from tests.ascend.lowering_checks import read

PAST_THE_END = "ceil_mode=1, kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1]"
IMAGE, WORDS = "float[1, 2, 4, 4] x", "float[3, 4] x"
GRU = "GRU<hidden_size=2, linear_before_reset=1>(s, w3, r3)"
# rule -> (inputs, opset, node)
MENDED = {
    "transpose-perm": (WORDS, 17, "Transpose(x)"),
    "shape-slice": ("float[n, 4] x", 17, "Shape<start=1>(x)"),
    "mod-fmod": ("int64[3] x", 17, "Mod<fmod=1>(x, three)"),
    "integer-division": ("int32[3] x", 17, "Div(x, four)"),
    "gemm-alpha": (WORDS, 17, "Gemm<alpha=0.3>(x, m)"),
    "gru-reset": ("float[3, n, 4] s", 17, GRU),
    "gru-layout": ("float[n, 3, 4] s", 17, "GRU<hidden_size=2, layout=1>(s, w3, r3)"),
    "gru-clip": ("float[3, n, 4] s", 17, "GRU<hidden_size=2, clip=0.5>(s, w3, r3)"),
    "gru-activations": ("float[3, n, 4] s", 17, 'GRU<hidden_size=2, activations=["Relu", "Tanh"]>(s, w3, r3)'),
    "lstm-layout": ("float[n, 3, 4] s", 17, "LSTM<hidden_size=2, layout=1>(s, w4, r4)"),
    "lstm-clip": ("float[3, n, 4] s", 17, "LSTM<hidden_size=2, clip=0.5>(s, w4, r4)"),
    "lstm-activations": ("float[3, n, 4] s", 17, 'LSTM<hidden_size=2, activations=["Relu", "Tanh", "Tanh"]>(s, w4, r4)'),
    "lstm-input-forget": ("float[3, n, 4] s", 17, "LSTM<hidden_size=2, input_forget=1>(s, w4, r4)"),
    "resize-nearest": (
        "float[n, 2, h, w] x",
        17,
        'Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , twice)',
    ),
    "resize-nearest-space": ("float[1, 2, 4] x", 17, 'Resize<nearest_mode="round_prefer_ceil">(x, , twice3)'),
    "resize-axes": (IMAGE, 18, 'Resize<axes=[2, 3], mode="linear">(x, , twice2)'),
    "resize-antialias": (IMAGE, 18, 'Resize<antialias=1, mode="linear">(x, , twice)'),
    "resize-aspect-ratio": (IMAGE, 18, 'Resize<keep_aspect_ratio_policy="not_larger">(x, , , sizes)'),
    "pad-axes": (WORDS, 18, "Pad(x, one_two, , axes)"),
    "pad-value": (WORDS, 17, "Pad(x, pads, half)"),
    "reduce-axes": (WORDS, 18, "ReduceMean(x)"),
    "negative-indices": (WORDS, 17, "Gather(x, last)"),
    "gather-nd-batch": (WORDS, 17, "GatherND<batch_dims=1>(x, rows)"),
    "scatter-nd-reduction": ("float[3] x, float[2] u", 18, 'ScatterND<reduction="add">(x, twice_there, u)'),
    "scatter-nd-mul": ("float[3] x, float[2] u", 18, 'ScatterND<reduction="mul">(x, twice_there, u)'),
    "clip-bounds": (WORDS, 17, "Clip(x)"),
    "is-inf": (WORDS, 17, "IsInf<detect_negative=0>(x)"),
    "pow-mixed": (WORDS, 17, "Pow(x, three)"),
    "batch-norm-epsilon": (IMAGE, 17, "BatchNormalization(x, two, two, two, two)"),
    "softmax-axis": ("float[2, 3, 4] x", 12, "Softmax(x)"),
    "arg-last": (WORDS, 17, "ArgMax<select_last_index=1>(x)"),
    "selu": (WORDS, 17, "Selu<alpha=1.5>(x)"),
    "average-pool-same-lower": (IMAGE, 17, 'AveragePool<auto_pad="SAME_LOWER", kernel_shape=[2, 2]>(x)'),
    "average-pool-count-pad": (IMAGE, 17, "AveragePool<count_include_pad=1, kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x)"),
    "average-pool-ceil-window": (IMAGE, 17, f"AveragePool<{PAST_THE_END}>(x)"),
    "max-pool-ceil-window": (IMAGE, 17, f"MaxPool<{PAST_THE_END}>(x)"),
    "conv-bare": (IMAGE, 17, "Conv(x, kernel)"),
    "conv-3d-pad": ("float[1, 2, 4, 4, 4] x", 17, 'Conv<auto_pad="SAME_UPPER", kernel_shape=[1, 2, 2]>(x, kernel5)'),
    "conv-transpose-kernel": (IMAGE, 17, "ConvTranspose(x, kernel)"),
    "conv-transpose-rank": ("float[1, 2, n] x", 17, "ConvTranspose<kernel_shape=[2]>(x, kernel3)"),
    "split-uneven": ("float[5, 2] x", 18, "Split<num_outputs=2>(x)"),
    "einsum-equation": ("float[2, 3, 4] x", 17, 'Einsum<equation="abc,cbd->dba">(x, cube)'),
    "slice-last-step": (WORDS, 17, "Slice(x, ones, big, ones, steps)"),
    "zero-sized": ("float[1, 4] x, float[0, 4] none", 17, "Concat<axis=0>(x, made)"),
    "expand-shape": ("float[1, 4] x, float[3, 1] like", 17, "Expand(x, size)"),
}
LEFT = {
    "integer-division": ("int64[3] x", 17, "Div(x, three)"),
    "mod-fmod": (WORDS, 17, "Mod<fmod=1>(x, half)"),
    "pow-mixed": ("float[3] x, int64[3] e", 17, "Pow(x, e)"),
    "gru-reset": ("float[t, n, 4] s", 17, GRU),
    "resize-nearest": (IMAGE.replace("4, 4", "h, w"), 17, "Resize(x, , odd)"),
    "max-pool-ceil-window": (IMAGE.replace("4, 4", "h, w"), 17, f"MaxPool<{PAST_THE_END}>(x)"),
    "gather-nd-batch": ("float[3, n] x, int64[n, 1] i", 17, "GatherND<batch_dims=1>(x, i)"),
    "conv-transpose-kernel": ("float[1, 2, 4, 4] x, float[2, 3, a, b] k", 17, "ConvTranspose(x, k)"),
}
F, INT = np.float32, np.int64
WEIGHTS = {
    **{"three": np.array([3], INT), "four": np.array([4], np.int32), "half": np.array(0.7, F), "two": np.ones(2, F)},
    **{"m": np.ones((4, 5), F), "w3": np.ones((1, 6, 4), F), "r3": np.ones((1, 6, 2), F)},
    **{"w4": np.ones((1, 8, 4), F), "r4": np.ones((1, 8, 2), F), "twice": np.array([1, 1, 2, 2], F)},
    **{"twice2": np.array([2, 2], F), "twice3": np.array([1, 1, 2], F), "odd": np.array([1, 1, 1.5, 1.3], F)},
    **{"sizes": np.array([1, 2, 8, 8], INT), "one_two": np.array([1, 2], INT), "axes": np.array([-1], INT)},
    **{"pads": np.array([0, 1, 1, 0], INT), "last": np.array([-1], INT), "rows": np.array([[0], [1], [2]], INT)},
    **{"twice_there": np.array([[1], [1]], INT), "kernel": np.ones((2, 2, 3, 3), F), "kernel5": np.ones((2, 2, 1, 2, 2), F)},
    **{"kernel3": np.ones((2, 2, 2), F), "cube": np.ones((4, 3, 5), F), "ones": np.array([1], INT)},
    **{"big": np.array([99], INT), "steps": np.array([2], INT)},
}


def graph_of(case: tuple[str, int, str]) -> Graph:
    inputs, opset, node = case
    outputs = "y, z" if node.startswith("Split") else ", yh" if node.startswith(("GRU", "LSTM")) else "y"
    kind = "int64" if node.startswith(("Shape", "Arg")) else "bool" if node.startswith("IsInf") else inputs.split("[")[0]
    declared = ", ".join(f"{kind} {name.strip()}" for name in outputs.split(",") if name.strip())
    before = "size = Shape(like) " if "like" in inputs else "made = Neg(none) " if "none" in inputs else ""
    return read(f"({inputs}) => ({declared}) {{ {before}{outputs} = {node} }}", opset, **WEIGHTS)


def speaking(graph: Graph) -> set[str]:
    return {f.rule.id for f in judge(facts_of(graph), find_soc("Ascend910B3"))}


@pytest.mark.parametrize("name", MENDED)
def test_a_rule_is_silent_after_the_lowering(name: str) -> None:
    graph = graph_of(MENDED[name])
    assert name in speaking(graph)
    lowered, applied = lower_for_ascend(graph)
    assert name not in speaking(lowered)
    assert not {f.rule.id for f in judge(facts_of(lowered), find_soc("Ascend910B3")) if f.rule.effect in ("refuses", "wrong")}
    assert sum(bool(entry["changes"]) for entry in applied)
    _, applied = lower_for_ascend(lowered)
    assert not [entry["name"] for entry in applied if entry["changes"]], "there is nothing left to do"


@pytest.mark.parametrize("name", LEFT)
def test_a_rule_still_speaks_where_no_form_is_exact(name: str) -> None:
    lowered, _ = lower_for_ascend(graph_of(LEFT[name]))
    assert name in speaking(lowered)


def test_rules_name_the_pass_that_mends_them() -> None:
    by_id, passes = {rule.id: rule for rule in rules()}, {name for name, _ in PASSES}
    for name in MENDED:
        assert by_id[name].rewrite in passes or by_id[name].effect == "unknown", name
