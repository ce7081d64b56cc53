"""Conditions of rules that need arithmetic. Each takes facts and gives what it found, None where it does not hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from porting.ascend.graph_facts import BodyFacts, GraphFacts, NodeFacts, ValueFacts
from porting.ascend.operators import registered_opsets
from porting.converters.passes.pool_windows import axes_of

# Einsum equations that Huawei's operator page lists (CANN 9.0, atlasoxol_09_0052), letters in the order in which they appear
PUBLISHED_EQUATIONS = """
    abc,cde->abde abcd,aecd->aceb abcd,adbe->acbe abcd,cde->abe abc,cd->abd abc,dc->abd abc,abd->dc
    abc,dec->abde abc,abde->dec abcd,aecd->acbe abcd,acbe->aecd abcd,ecd->abe abcd,abe->ecd abcd,acbe->adbe
    abcd,abde->abce abcd,abce->abde abcd,aebd->aebc abcd,abce->acde abc,abd->acd ab,cb->ac
"""
# ONNX operators whose operators of the graph engine do not take double (prototypes of hicann/ops-nn e5c3fa932, ops-math c41933244, ops-cv 6ae87653)
NO_DOUBLE = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "MatMul",
        "Gemm",
        "Einsum",
        "LayerNormalization",
        "InstanceNormalization",
        "MaxPool",
        "GridSample",
        "Sqrt",
        "Expand",
    ]
)
SELU = {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}
ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh")}

# limits of Huawei's operator pages (CANN 9.0: Conv 0040, AveragePool 0022, MaxPool 0094)
WIDTH = 4096
CONV = {"strides": 63, "pads": 255, "dilations": 255, "kernel_shape": 255}
POOL_STRIDE, POOL_SIDE, POOL_AREA = 63, 255, 256


# --- graphs -------------------------------------------------------------------------------------------------------


def duplicate_names(facts: GraphFacts) -> str | None:
    counts = Counter(node.name for node in facts.nodes if node.name)
    return next((f"{count} nodes are called {name!r}" for name, count in counts.most_common(1) if count > 1), None)


def names_that_options_split(facts: GraphFacts) -> str | None:
    names = [v.name for v in (*facts.inputs, *facts.outputs) if ";" in v.name]
    return ", ".join(map(repr, names[:5])) or None


def outputs_with_a_colon(facts: GraphFacts) -> str | None:
    return ", ".join([repr(v.name) for v in facts.outputs if ":" in v.name][:5]) or None


def inputs_that_are_no_tensors(facts: GraphFacts) -> str | None:
    names = [f"{v.name}: {v.dtype}" for v in (*facts.inputs, *facts.outputs) if v.dtype is not None and v.dtype.endswith(")")]
    return ", ".join(names[:5]) or None


# --- any node -----------------------------------------------------------------------------------------------------


def has_entry(node: NodeFacts) -> str | None:
    versions = registered_opsets(node.op, node.domain)
    return f"there are entries for {min(versions)} to {max(versions)}" if versions else None


def keeps_its_opset(node: NodeFacts) -> str | None:
    """Of a graph that nothing was done to yet: every node above opset 18."""
    return node.held


def is_foreign(node: NodeFacts) -> str | None:
    return f"domain {node.domain}" if node.domain else None


def takes_nothing(node: NodeFacts) -> str | None:
    return "no inputs" if node.op != "Constant" and not any(node.inputs) else None


def takes_double(node: NodeFacts) -> str | None:
    return "" if node.domain or node.op not in NO_DOUBLE else None


def takes_no_double(node: NodeFacts) -> str | None:
    return f"{node.op} takes no double" if not node.domain and node.op in NO_DOUBLE else None


def mixed_dtypes(node: NodeFacts) -> str | None:
    dtypes = [v.dtype for v in node.inputs if v is not None]
    return " and ".join(map(str, dtypes)) if None not in dtypes and len(set(dtypes)) > 1 else None


# --- shapes, indices, reductions ----------------------------------------------------------------------------------


def part_of_shape(node: NodeFacts) -> str | None:
    rank = _rank(node)
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    whole = start == 0 or (rank is not None and start <= -rank)
    if whole and (end is None or (rank is not None and end >= rank)):
        return None
    return f"start={start}, end={end}"


def indices_are_unknown(node: NodeFacts) -> str | None:
    indices = _input(node, 1)
    return "indices are computed" if indices is not None and indices.constant is None else None


def reduces_without_axes(node: NodeFacts) -> str | None:
    axes = _input(node, 1)
    given = len(node.attributes.get("axes", ())) if axes is None else 1 if axes.constant is None else axes.constant.size
    return None if given else f"no axes, noop_with_empty_axes={node.attributes.get('noop_with_empty_axes', 0)}"


def flattens_more_than_the_last_axis(node: NodeFacts) -> str | None:
    rank, axis = _rank(node), node.attributes.get("axis", 1)
    return (
        None
        if axis in (-1, None if rank is None else rank - 1)
        else f"axis {axis} of rank {'unknown' if rank is None else rank}"
    )


def strides_over_the_last_axis(node: NodeFacts) -> str | None:
    steps, axes, rank = _ints(_input(node, 4)), _ints(_input(node, 3)), _rank(node)
    if steps is None or rank is None:
        return None
    along = range(len(steps)) if axes is None else axes
    return next((f"step {s}" for s, a in zip(steps, along, strict=False) if a in (-1, rank - 1) and s != 1), None)


def splits_off_one(node: NodeFacts) -> str | None:
    sizes = node.attributes.get("split") or _ints(_input(node, 1))
    if sizes is None:
        size = _dim(_input(node, 0), node.attributes.get("axis", 0))
        sizes = None if size is None or not node.outputs else [size // len(node.outputs)]
    return f"sizes {list(sizes)[:8]}" if sizes is not None and any(s <= 1 for s in sizes) else None


def splits_unevenly(node: NodeFacts) -> str | None:
    parts, size = node.attributes.get("num_outputs", len(node.outputs)), _dim(_input(node, 0), node.attributes.get("axis", 0))
    even = size is not None and parts == len(node.outputs) and parts > 0 and size % parts == 0
    return None if even else f"{parts} parts of {'an unknown size' if size is None else size}"


def pads_with_a_number(node: NodeFacts) -> str | None:
    if node.opset < 11:
        value = node.attributes.get("value", 0.0)
        return f"value {value}" if value != 0 else None
    given = _input(node, 2)
    if given is None:
        return None
    return (
        "a computed value"
        if given.constant is None
        else f"value {given.constant.reshape(-1)[:1]}"
        if given.constant.any()
        else None
    )


# --- convolution and pooling --------------------------------------------------------------------------------------


def conv_beyond_its_page(node: NodeFacts) -> str | None:
    beyond = [
        f"{k}={list(node.attributes[k])}" for k, most in CONV.items() if max(node.attributes.get(k, ()), default=0) > most
    ]
    return ", ".join(beyond) or wider_than_documented(node)


def wider_than_documented(node: NodeFacts) -> str | None:
    width = _dim(_input(node, 0), -1)
    return f"width {width}" if width is not None and width > WIDTH else None


def large_window(node: NodeFacts) -> str | None:
    window, strides = node.attributes.get("kernel_shape", ()), node.attributes.get("strides", ())
    large = any(n > POOL_SIDE for n in window) or math.prod(window) > POOL_AREA or any(n > POOL_STRIDE for n in strides)
    return f"window {list(window)}, strides {list(strides)}" if large else None


def window_in_padding(node: NodeFacts) -> str | None:
    """A pool with ceil_mode that has, or at some size has, a window that reads nothing but padding."""
    x, axes = _input(node, 0), axes_of(node.attributes)
    for i, axis in enumerate(axes or ()):
        size = None if x is None else _dim(x, i + 2)
        if size is None and axis.may_drop():
            return f"axis {i + 2} of an unknown size, {axis.end} of padding behind"
        if size is not None and axis.kept(size) != axis.counted(size):
            return f"axis {i + 2}: {axis.counted(size)} windows are counted, {axis.kept(size)} read the input"
    return None


def not_of_rank_four(node: NodeFacts) -> str | None:
    rank = _rank(node)
    return f"rank {rank}" if rank not in (None, 4) else None


def even_size(node: NodeFacts) -> str | None:
    size = node.attributes.get("size", 0)
    return f"size {size}" if size % 2 == 0 else None


# --- resize -------------------------------------------------------------------------------------------------------


def fewer_than_three_inputs(node: NodeFacts) -> str | None:
    return f"{len(node.inputs)} inputs" if len(node.inputs) < 3 else None


def resizes_beyond_two_axes(node: NodeFacts) -> str | None:
    x, rank = _input(node, 0), _rank(node)
    if rank is not None and rank != 4:
        return f"rank {rank}"
    scales = _numbers(_input(node, 1 if node.opset < 11 else 2))
    sizes = _numbers(_input(node, 3))
    if scales is not None and len(scales) == 4 and any(s != 1 for s in scales[:2]):
        return f"scales {scales}"
    changes = (
        sizes is not None and len(sizes) == 4 and x is not None and any(_dim(x, i) not in (None, sizes[i]) for i in (0, 1))
    )
    return f"sizes {sizes}" if changes else None


def resize_without_constant(node: NodeFacts) -> str | None:
    names = {1: "scales"} if node.opset < 11 else {2: "scales", 3: "sizes"}
    computed = [n for place, n in names.items() if (v := _input(node, place)) is not None and not v.is_constant]
    return f"{' and '.join(computed)} are computed" if computed else None


# --- others -------------------------------------------------------------------------------------------------------


def other_activations(node: NodeFacts) -> str | None:
    written = [str(a) for a in node.attributes.get("activations", ())]
    usual = ACTIVATIONS[node.op]
    same = all(a.lower() == usual[i % len(usual)] for i, a in enumerate(written))
    parameters = [k for k in ("activation_alpha", "activation_beta") if node.attributes.get(k)]
    return None if same and not parameters else ", ".join((*written, *parameters))


def asks_for_one_infinity(node: NodeFacts) -> str | None:
    asked = {k: node.attributes.get(k, 1) for k in ("detect_negative", "detect_positive")}
    return None if all(asked.values()) else ", ".join(f"{k}={v}" for k, v in asked.items())


def selu_of_its_own(node: NodeFacts) -> str | None:
    own = [f"{k}={v}" for k, usual in SELU.items() if np.float32(v := node.attributes.get(k, usual)) != np.float32(usual)]
    return ", ".join(own) or None


def equation_not_published(node: NodeFacts) -> str | None:
    written = str(node.attributes.get("equation", "")).replace(" ", "")
    letters: dict[str, str] = {}
    for letter in written:
        if letter.isalpha():
            letters.setdefault(letter, chr(ord("a") + len(letters)))
    renamed = "".join(letters.get(letter, letter) for letter in written)
    return None if renamed in PUBLISHED_EQUATIONS.split() else f"equation {written}"


def branch_returns_outer(node: NodeFacts) -> str | None:
    return _of_branches(node, lambda body: body.returned)


def branch_captures_deeper(node: NodeFacts) -> str | None:
    return _of_branches(node, lambda body: body.captured_deeper)


def branch_holds_large_weights(node: NodeFacts) -> str | None:
    return _of_branches(node, lambda body: body.outside)


def _of_branches(node: NodeFacts, names_in: Callable[[BodyFacts], Sequence[str]]) -> str | None:
    names = [name for body in _bodies(node) for name in names_in(body)]
    return ", ".join(names[:5]) or None


def _bodies(node: NodeFacts) -> Iterator[BodyFacts]:
    return (value for value in node.attributes.values() if isinstance(value, BodyFacts))


def _input(node: NodeFacts, place: int) -> ValueFacts | None:
    return node.inputs[place] if place < len(node.inputs) else None


def _rank(node: NodeFacts) -> int | None:
    first = _input(node, 0)
    return None if first is None else first.rank


def _dim(value: ValueFacts | None, axis: int) -> int | None:
    """A fixed dimension, None where it is not fixed or not there."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def _numbers(value: ValueFacts | None) -> list[Any] | None:
    return None if value is None or value.constant is None else value.constant.reshape(-1).tolist()


def _ints(value: ValueFacts | None) -> list[int] | None:
    return _numbers(value) if value is not None and value.constant is not None and value.constant.dtype.kind in "iu" else None


OF_GRAPHS: Mapping[str, Callable[[GraphFacts], str | None]] = {
    f.__name__: f for f in (duplicate_names, names_that_options_split, outputs_with_a_colon, inputs_that_are_no_tensors)
}
OF_NODES: Mapping[str, Callable[[NodeFacts], str | None]] = {
    f.__name__: f
    for f in (
        has_entry,
        keeps_its_opset,
        is_foreign,
        takes_nothing,
        takes_double,
        takes_no_double,
        mixed_dtypes,
        part_of_shape,
        indices_are_unknown,
        reduces_without_axes,
        flattens_more_than_the_last_axis,
        strides_over_the_last_axis,
        splits_off_one,
        splits_unevenly,
        pads_with_a_number,
        conv_beyond_its_page,
        wider_than_documented,
        large_window,
        window_in_padding,
        not_of_rank_four,
        even_size,
        fewer_than_three_inputs,
        resizes_beyond_two_axes,
        resize_without_constant,
        other_activations,
        asks_for_one_infinity,
        selu_of_its_own,
        equation_not_published,
        branch_returns_outer,
        branch_captures_deeper,
        branch_holds_large_weights,
    )
}
