"""What is known of integers without running anything: how large they are, and whether they are negative, against what a run gives."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx.reference
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.converters.passes.ascend.int_div import int_div
from porting.converters.passes.ascend.magnitudes import AXIS, largest
from porting.converters.passes.ascend.mod_fmod import mod_fmod
from porting.converters.passes.ascend.negative_indices import negative_indices
from porting.converters.passes.ascend.nonnegative import is_nonnegative
from porting.converters.passes.rewriting import ModelPass
from porting.types import Graph
from tests.ascend.lowering_checks import read, require_lowered
from tests.graph_bits import whole

TYPES = {"int8": 3, "uint8": 2, "int16": 5, "int32": 6, "uint32": 12, "int64": 7, "uint64": 13, "float": 1, "bool": 9}
NUMPY = {"float": "float32"}
# casts of floats that are out of range are undefined: what is cast from one holds no large numbers
FED = {
    "int8": [-128, -1, 0, 7],
    "uint8": [0, 1, 200, 255],
    "int16": [-32768, -3, 5, 32767],
    "int32": [-(2**31), -2, 3, 2**31 - 1],
}
FED |= {"uint32": [0, 5, 2**31, 2**32 - 1], "float": [-2.5, -0.5, 0.25, 100.0], "bool": [0, 1, 1, 0]}
UNARY = ("Abs", "Neg", "Sign", "Identity", "Relu", "Floor")
BINARY = ("Add", "Sub", "Mul", "Max", "Min", "Mod", "Where", "Concat")
EXACT: dict[str, Callable[[Any, Any], Any]] = {"Add": operator.add, "Mul": operator.mul, "Sub": operator.sub}
EXACT |= {"Abs": lambda a, _: abs(a), "Neg": lambda a, _: -a}
SIGNED_ONLY = ("Abs", "Neg", "Sign", "Relu")


@st.composite
def chains(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """(text, feeds): a few nodes, each of what is there."""
    kinds = draw(st.lists(st.sampled_from(list(FED)), min_size=1, max_size=2))
    have = [(f"x{i}", kind) for i, kind in enumerate(kinds)]
    feeds = {name: np.array(FED[kind], NUMPY.get(kind, kind)) for name, kind in have}
    lines = []
    for i in range(draw(st.integers(1, 6))):
        name, kind = draw(st.sampled_from(have))
        others = [n for n, k in have if k == kind]
        ops = ["Cast"] if kind == "bool" else ["Cast", *BINARY, *UNARY]
        op = draw(st.sampled_from([o for o in ops if not (kind.startswith("u") and o in SIGNED_ONLY)]))
        if op in ("Relu", "Floor") and kind != "float":
            op = "Identity"
        made = f"v{i}"
        if op == "Cast":
            to = draw(st.sampled_from([k for k in TYPES if kind != "float" or k in ("int32", "int64", "float", "bool")]))
            lines.append(f"{made} = Cast<to={TYPES[to]}>({name})")
            have.append((made, to))
            continue
        other = draw(st.sampled_from(others))
        if op == "Mod":
            divisor = draw(st.sampled_from([3, 7] if kind.startswith("u") else [3, -3]))
            flag = "<fmod=1>" if kind == "float" or draw(st.booleans()) else ""
            lines += [f"d{i} = Constant<value = {kind}[1] {{{divisor}}}>()", f"{made} = Mod{flag}({name}, d{i})"]
        elif op == "Where":
            lines += [f"e{i} = Equal({name}, {other})", f"{made} = Where(e{i}, {name}, {other})"]
        elif op == "Concat":
            if len(lines) > 3:
                continue
            lines += [f"w{i} = Concat<axis=0>({name}, {other})", f"{made} = Slice(w{i}, b{i}, f{i})"]
            lines[-1:-1] = [f"b{i} = Constant<value_ints=[0]>()", f"f{i} = Constant<value_ints=[4]>()"]
        else:
            lines.append(f"{made} = {op}({name}, {other})" if op in BINARY else f"{made} = {op}({name})")
        have.append((made, kind))
    inputs = ", ".join(f"{kind}[4] x{i}" for i, kind in enumerate(kinds))
    shown = [(n, k) for n, k in have if n.startswith("v")] or have[:1]
    lines += [f"y_{n} = Identity({n})" for n, _ in shown]
    return f"({inputs}) => ({', '.join(f'{k} y_{n}' for n, k in shown)}) {{ {' '.join(lines)} }}", feeds


def wrapped(graph: Graph, found: dict[str, np.ndarray]) -> bool:
    """Whether a sum, a product or an absolute value did not fit its type: such is no index."""
    for node in graph.model.graph:
        read_ = [found.get(v.name) for v in node.inputs if v is not None]
        if node.op_type in ("Add", "Mul", "Abs", "Neg", "Sub") and all(v is not None for v in read_):
            wide = [v.astype(object) if v.dtype.kind in "iu" else v.astype(np.float64) for v in read_ if v is not None]
            exact = EXACT[node.op_type](wide[0], wide[-1])
            got = found[str(node.outputs[0].name)]
            if got.dtype.kind in "iu" and any(int(g) != int(w) for g, w in zip(got, exact, strict=True)):
                return True
    return False


@settings(max_examples=150, deadline=None)
@given(chains())
def test_no_number_is_larger_or_negative_than_what_is_known(case: tuple[str, dict[str, Any]]) -> None:
    text, feeds = case
    graph = read(text, 17)
    values = {v.name: v for node in graph.model.graph for v in node.outputs}
    proto = onnx.load_from_string(whole(graph))
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
    with np.errstate(all="ignore"):
        evaluator = onnx.reference.ReferenceEvaluator(proto)
        found = {**feeds, **dict(zip(values, evaluator.run(None, feeds), strict=True))}
    numbers = {name: [float(n) for n in found[str(name)].reshape(-1)] for name in values}
    for name, value in values.items():
        most = max((abs(n) for n in numbers[name]), default=0.0)
        assert most <= largest(value) * (1 + 1e-6), (name, text)
        assert not is_nonnegative(value) or min(numbers[name], default=0) >= 0, (name, text)
    if not wrapped(graph, found):
        for name, value in values.items():
            assert not is_nonnegative(value, index=[4]) or min(numbers[name], default=0) >= 0, (name, text)


def value(text: str, name: str = "v", **weights: np.ndarray) -> ir.Value:
    graph = read(text, 17, **weights)
    return next(v for node in graph.model.graph for v in node.outputs if v.name == name)


@pytest.mark.parametrize(
    ("kinds", "known", "most"),
    [
        ("uint32 6", False, 2**31),  # 3e9 comes out negative
        ("uint32 7", True, 2**32),
        ("uint64 7", False, 2**63),
        ("uint8 3", False, 128),
        ("uint8 6", True, 256),
        ("int8 12", True, 2**32),  # -1 comes out large
        ("int8 13", True, 2**64),
        ("int8 6", False, 128),
        ("float 9", True, 1),  # 0.5 is true
        ("float 7", False, 2**63),
        ("uint16 1", True, 2**16),
        ("uint16 10", True, math.inf),  # 65535 is rounded to what float16 does not have
        ("int64 6", False, 2**31),
    ],
)
def test_a_cast_keeps_what_fits(kinds: str, known: bool, most: float) -> None:
    kind, to = kinds.split()
    output = {
        "1": "float",
        "3": "int8",
        "6": "int32",
        "7": "int64",
        "9": "bool",
        "10": "float16",
        "12": "uint32",
        "13": "uint64",
    }[to]
    found = value(f"({kind}[4] x) => ({output} v) {{ v = Cast<to={to}>(x) }}")
    assert is_nonnegative(found) is known
    assert largest(found) == most


def test_half_a_number_is_true() -> None:
    found = value("(float[1] x) => (int64 v) { b = Cast<to=9>(half) v = Cast<to=7>(b) }", half=np.array([0.5], np.float32))
    assert largest(found) == 1.0


@pytest.mark.parametrize("make", ["Shape(x)", "ArgMax<axis=0, keepdims=0>(x)", "NonZero(x)"])
def test_places_that_are_kept_in_32_bits_stay_known(make: str) -> None:
    found = value(f"(float[a, b] x) => (int32 v) {{ s = {make} v = Cast<to=6>(s) }}")
    assert is_nonnegative(found) and largest(found) == AXIS


def test_an_index_that_wraps_around_in_a_cast_is_brought_forward() -> None:
    """4294967295 is -1 in 32 bits: the last row."""
    graph = read("(float[3] d, uint32[2] x) => (float y) { i = Cast<to=6>(x) y = Gather(d, i) }", 17)
    feeds = {"d": np.arange(3, dtype=np.float32), "x": np.array([2**32 - 1, 1], np.uint32)}
    lowered = require_lowered(negative_indices, graph, feeds)
    assert [node.op_type for node in lowered.model.graph].count("Where") == 1


def test_a_division_by_what_wrapped_around() -> None:
    """-1 is 2^64 - 1 without a sign: no double holds what it is divided by."""
    graph = read("(int8[3] x) => (uint64 y) { u = Cast<to=13>(x) y = Div(u, k) }", 17, k=np.array([3], np.uint64))
    assert int_div(graph)[1] == 0


def test_a_product_is_as_large_as_its_factors_together() -> None:
    """2^16 * 2^16 does not fit a float32's significand: the division is one of doubles."""
    text = "(uint16[3] a) => (int64 y) { w = Cast<to=7>(a) v = Mul(w, w) y = Div(v, k) }"
    graph = read(text, 17, k=np.array([7], np.int64))
    assert largest(value(text, k=np.array([7], np.int64))) == 2.0**32
    lowered = require_lowered(int_div, graph, {"a": np.array([65535, 65533, 40001], np.uint16)})
    divisions = [node for node in lowered.model.graph if node.op_type == "Div"]
    assert [node.inputs[0].dtype for node in divisions if node.inputs[0]] == [ir.DataType.DOUBLE]


@pytest.mark.parametrize(("change", "op"), [(int_div, "Div"), (mod_fmod, "Mod<fmod=1>")])
@pytest.mark.parametrize("made", ["Abs(x) m = Mul(a, c)", "Abs(x) m = Add(a, c)", "Identity(x) m = Abs(a)"])
def test_what_wraps_around_is_divided_as_the_negative_number_that_it_is(change: ModelPass, op: str, made: str) -> None:
    """|x| * c does not fit 32 bits and comes out negative; so does the absolute value of the least integer."""
    text = f"(int32[4] x) => (int32 y) {{ a = {made} y = {op}(m, d) }}"
    graph = read(text, 17, c=np.array(2**31 - 100, np.int32), d=np.array(1009, np.int32))
    require_lowered(change, graph, {"x": np.array([30000, -(2**31), 40001, 3], np.int32)})


@pytest.mark.parametrize(("attribute", "divisor", "known"), [("", 3, True), ("", -3, False), ("<fmod=1>", 3, False)])
def test_a_remainder_has_the_sign_of_its_divisor_but_with_fmod(attribute: str, divisor: int, known: bool) -> None:
    text = f"(float[4] d, int64[3] x) => (float y) {{ v = Mod{attribute}(x, b) y = Gather(d, v) }}"
    weights = {"b": np.array([divisor], np.int64)}
    assert is_nonnegative(value(text, **weights)) is known
    feeds = {"d": np.arange(4, dtype=np.float32), "x": np.array([-5, -1, 4])}
    require_lowered(negative_indices, read(text, 17, **weights), feeds, changes=int(not known))


def test_a_difference_without_a_sign_wraps_around() -> None:
    found = value("(uint8[3] x) => (uint64 v) { u = Cast<to=13>(x) v = Sub(u, k) }", k=np.array([3], np.uint64))
    assert largest(found) == 2.0**64


def test_of_nan_nothing_is_known() -> None:
    found = value(
        "(float[2] x) => (float v) { v = Max(one, bad) }", one=np.ones(1, np.float32), bad=np.array([np.nan], np.float32)
    )
    assert largest(found) == math.inf
