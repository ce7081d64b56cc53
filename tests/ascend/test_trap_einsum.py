"""Einsum in primitives, any equation, against numpy and onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.ascend.rule_predicates import PUBLISHED_EQUATIONS
from porting.converters.passes.ascend.einsum import einsum
from porting.types import Graph
from tests.ascend.lowering_checks import FLOAT32, kinds, read, require_lowered
from tests.graph_bits import run, whole

SIZES = dict(zip("abcdefgh", (2, 3, 1, 4, 2, 3, 2, 1), strict=True))
# Sums of up to 72 products in two orders.
BOUND = 72 * FLOAT32


def text_of(equation: str, shapes: list[tuple[int, ...]], free: bool) -> str:
    terms = equation.replace(" ", "").split("->")[0].split(",")
    inputs = []
    for i, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        names = [f"n_{label}" for label in term] if free else [str(size) for size in shape]
        inputs.append(f"float{'[' + ', '.join(names) + ']' if names else ''} x{i}")
    feeds = ", ".join(f"x{i}" for i in range(len(shapes)))
    return f'({", ".join(inputs)}) => (float y) {{ y = Einsum<equation="{equation}">({feeds}) }}'


def arrays(shapes: list[tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"x{i}": rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)}


@st.composite
def equations(draw: st.DrawFn) -> str:
    terms = draw(st.lists(st.lists(st.sampled_from("abcde"), max_size=4, unique=True), min_size=1, max_size=3))
    labels = sorted({label for term in terms for label in term})
    result = draw(st.lists(st.sampled_from(labels), unique=True)) if labels else []
    return ",".join("".join(term) for term in terms) + draw(st.sampled_from(["->" + "".join(result), ""]))


def require_as_numpy(graph: Graph, equation: str, feeds: dict[str, np.ndarray]) -> None:
    lowered, count = einsum(graph)
    assert count == 1 and einsum(lowered)[1] == 0 and kinds(lowered)["Einsum"] == 0
    wanted = np.einsum(equation, *(value.astype(np.float64) for value in feeds.values()))
    got = run(whole(lowered), feeds)[0]
    assert got.shape == wanted.shape and np.abs(got - wanted).max(initial=0) < BOUND * max(np.abs(wanted).max(initial=0), 1)


@settings(max_examples=60, deadline=None)
@given(equations(), st.booleans())
def test_any_equation(equation: str, free: bool) -> None:
    shapes = [tuple(SIZES[label] for label in term) for term in equation.split("->")[0].split(",")]
    feeds = arrays(shapes)
    require_as_numpy(read(text_of(equation, shapes, free), 17), equation, feeds)


@pytest.mark.parametrize("equation", [*PUBLISHED_EQUATIONS.split(), "bhwc,hkc->bhwk", "bnd,ndh,nhe->bne", "abc->cab", "a,b"])
def test_equations_of_models(equation: str) -> None:
    shapes = [tuple(SIZES[label if label in SIZES else "a"] for label in term) for term in equation.split("->")[0].split(",")]
    require_lowered(einsum, read(text_of(equation, shapes, False), 17), arrays(shapes), BOUND)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("...ij,...jk->...ik", [(2, 3, 4, 5), (3, 5, 2)]),
        ("...ij,...jk", [(4, 5), (2, 5, 2)]),
        ("i...,i...->...", [(3, 2, 4), (3, 2, 4)]),
        ("a...b->b...a", [(2, 3, 4)]),
        ("ab,ab->ab", [(1, 3), (2, 3)]),
        ("ab,bc->ac", [(2, 1), (3, 4)]),
        (" a b , b c -> a c ", [(2, 3), (3, 4)]),
    ],
)
def test_ellipsis_and_broadcasting(equation: str, shapes: list[tuple[int, ...]]) -> None:
    """onnxruntime refuses some of them and breaks on others."""
    terms = equation.replace(" ", "").split("->")[0].split(",")
    inputs = ", ".join(f"float[{', '.join(map(str, shape))}] x{i}" for i, shape in enumerate(shapes))
    operands = ", ".join(f"x{i}" for i in range(len(terms)))
    text = f'({inputs}) => (float y) {{ y = Einsum<equation="{equation}">({operands}) }}'
    require_as_numpy(read(text, 17), equation, arrays(shapes))


@pytest.mark.parametrize(("equation", "dims"), [("ii->i", "3, 3"), ("ab->ba", "0, 3")])
def test_what_has_no_exact_form_is_left(equation: str, dims: str) -> None:
    graph = read(f'(float[{dims}] x) => (float y) {{ y = Einsum<equation="{equation}">(x) }}', 17)
    assert einsum(graph)[1] == 0
