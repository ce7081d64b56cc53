"""Both graphs of W8A8: the same integers in each, near the float graph, and what stays in float, with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.ascend.graph_at_hand import at_hand
from porting.ascend.vendor_integers import computed, vendor_layers
from porting.ascend.w8a8 import Quantised, quantised
from porting.errors import InputError, UnsupportedModel, UsageError
from porting.types import Graph
from tests.ascend.lowering_checks import kinds, read
from tests.ascend.vendor_evaluator import run_deploy
from tests.graph_bits import run, whole

FEW = settings(max_examples=25, deadline=None)
Feeds = Mapping[str, np.ndarray]


def feeds(shape: Sequence[int], count: int = 4, seed: int = 0, shift: float = 0.0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": (rng.standard_normal(shape) + shift).astype(np.float32)} for _ in range(count)]


def weights(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def require_same(made: Quantised, graph: Graph, cases: Sequence[Feeds], names: Sequence[str], least_db: float = 30) -> None:
    """The deploy graph, evaluated apart, has the bits of the reference graph; both are near the float graph."""
    for case in cases:
        wanted, got = run(whole(graph), case), run(whole(made.reference), case)
        values = run_deploy(made.deploy, case)
        for name, float_value, integer_value in zip(names, wanted, got, strict=True):
            assert values[name].dtype == np.float32 and values[name].tobytes() == integer_value.tobytes(), name
            signal, noise = (float_value**2).mean(), ((integer_value - float_value) ** 2).mean()
            assert noise <= signal * 10 ** (-least_db / 10)
    optimised = run(whole(made.reference), cases[0], optimised=True)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(optimised, run(whole(made.reference), cases[0]), strict=True))


def require_formulas(made: Quantised, case: Feeds) -> None:
    """What the port's own check works out for its one layer is what the evaluator of these tests does."""
    with at_hand(made.deploy) as deploy:
        (layer,) = vendor_layers(deploy.model)
        assert computed(layer, deploy, case["x"]).tobytes() == run_deploy(made.deploy, case)[layer.output].tobytes()


@FEW
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    group = data.draw(st.sampled_from([1, 2, 4]))
    channels, outputs = 4, group * data.draw(st.integers(1, 3))
    kernel = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    dilations = [1 if rank == 3 else data.draw(st.integers(1, 2)) for _ in range(rank)]
    attributes = {
        "kernel_shape": kernel,
        "pads": [data.draw(st.integers(0, 2)) for _ in range(2 * rank)],
        "strides": [data.draw(st.integers(1, 2)) for _ in range(rank)],
        "dilations": dilations,
    }
    written = ", ".join(f"{name} = {value}" for name, value in attributes.items())
    bias = data.draw(st.booleans())
    shape = [2, channels, *[7] * rank]
    graph = read(
        f"(float{shape} x) => (float y) {{ y = Conv<{written}, group = {group}>(x, w{', b' if bias else ''}) }}",
        17,
        w=weights(outputs, channels // group, *kernel),
        **({"b": 10 * weights(outputs)} if bias else {}),
    )
    cases = feeds(shape, shift=data.draw(st.sampled_from([0.0, 2.0, -3.0])))
    made = quantised(graph, cases)
    require_same(made, graph, cases, ["y"], 20)
    require_formulas(made, cases[0])
    (row,) = made.report
    assert row["quantised"] and row["weight_scales"] == outputs
    assert (row["offset"] == 0) == (rank == 3) or rank != 3  # 3-D convolutions are symmetric
    assert kinds(made.deploy) == Counter(AscendQuant=1, Conv=1, AscendDequant=1)


@FEW
@given(st.data())
def test_matrix_products(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["Gemm", "MatMul"]))
    rows, inner, outputs = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 6))
    given_weights = {}
    if kind == "Gemm":
        turned, shape = data.draw(st.booleans()), [rows, inner]
        given_weights["w"] = weights(*([outputs, inner] if turned else [inner, outputs]))
        bias = data.draw(st.sampled_from([None, (), (1,), (outputs,), (1, outputs)]))
        if bias is not None:
            given_weights["b"] = np.asarray(weights(*bias))
        alpha, beta = data.draw(st.sampled_from([1.0, 0.5, -2.0])), data.draw(st.sampled_from([1.0, 3.0]))
        node = f"Gemm<alpha = {alpha}, beta = {beta}, transB = {int(turned)}>(x, w{', b' if bias is not None else ''})"
    else:
        shape = [*data.draw(st.sampled_from([[], [2], [2, 3]])), rows, inner]
        given_weights["w"] = weights(inner, outputs)
        node = "MatMul(x, w)"
    given_weights["w"][:, 0] *= 0.01  # a channel that one scale for all would lose
    graph = read(f"(float{shape} x) => (float y) {{ y = {node} }}", 17, **given_weights)
    cases = feeds(shape, shift=1.0)
    made = quantised(graph, cases, clip="min-max")
    require_same(made, graph, cases, ["y"], -np.inf)
    require_formulas(made, cases[0])
    for case in cases:
        off = np.abs(run(whole(made.reference), case)[0] - run(whole(graph), case)[0])
        assert np.all(off <= largest_error(made, case["x"]))
    found = kinds(made.deploy)
    assert found.pop("Mul", 0) <= 1 and found == Counter({"AscendQuant": 1, kind: 1, "AscendDequant": 1})
    assert all(size == 1 for size in _sizes_of_parameters(made.deploy))  # one number for all channels, as the vendor has it


def largest_error(made: Quantised, x: np.ndarray) -> np.ndarray:
    """Of a matrix product that clips nothing: half a step of each operand, and of the bias; and what float32 makes of numbers of that size."""
    (one,) = made.decisions
    step, product = one.step.size, one.product
    w = np.abs(one.layer.constants()[0]).astype(np.float64)
    rounded = (np.abs(x) + step).sum(-1, keepdims=True) * product.weight_scale / 2 + step / 2 * w.sum(0)
    size = (np.abs(x) @ w) + (0 if product.bias is None else np.abs(product.bias * product.deq_scale))
    return rounded * 1.001 + (0 if product.bias is None else product.weight_scale * step) + size * 2.0**-20


def _sizes_of_parameters(deploy: Graph) -> list[int]:
    return [int(np.prod(n.inputs[1].shape)) for n in deploy.model.graph if n.op_type == "AscendDequant"]


def network() -> Graph:
    return read(
        "(float[1, 3, 8, 8] x) => (float y, float z) {"
        " a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w1, b1) r = Relu(a)"
        " d = Conv<kernel_shape = [3, 3], group = 4>(r, w2) s = Add(d, one) f = Flatten(s)"
        " y = Gemm<transB = 1>(f, w3, b3) t = Transpose<perm = [1, 0]>(w4) z = MatMul(f, t) }",
        17,
        w1=weights(4, 3, 3, 3),
        b1=weights(4),
        w2=weights(4, 1, 3, 3),
        one=np.ones(1, np.float32),
        w3=weights(5, 144),
        b3=weights(5),
        w4=weights(7, 144),
    )


def test_a_network_in_integers_is_the_same_on_both_sides() -> None:
    graph, cases = network(), feeds([1, 3, 8, 8], 6)
    before = whole(graph)
    made = quantised(graph, cases)
    assert whole(graph) == before
    require_same(made, graph, feeds([1, 3, 8, 8], 3, seed=9), ["y", "z"], 25)
    assert [row["op"] for row in made.report] == ["Conv", "Conv", "Gemm", "MatMul"]
    assert all(row["quantised"] and row["sqnr_db"] > 25 and row["alone_sqnr_db"] >= row["sqnr_db"] - 3 for row in made.report)
    assert all(30 < row["weight_sqnr_db"] < 60 and row["clipped_share"] < 0.02 for row in made.report)
    assert not [v for v in made.deploy.model.graph.initializers.values() if v.name in ("w1", "w2", "w3", "w4")]


def test_layers_that_stay_in_float_by_name() -> None:
    graph, cases = network(), feeds([1, 3, 8, 8])
    made = quantised(graph, cases, keep_float=["Conv_0", "MatMul_7"])
    assert [row["node"] for row in made.report if not row["quantised"]] == ["Conv_0", "MatMul_7"]
    assert made.report[0]["reason"] == "asked for: --keep-float"
    assert kinds(made.deploy)["AscendQuant"] == 2 and kinds(made.reference)["ConvInteger"] == 1
    with pytest.raises(UsageError, match="no Conv, Gemm or MatMul is called 'Conv_9'") as error:
        quantised(graph, cases, keep_float=["Conv_9"])
    assert "Conv_" in error.value.next
    with pytest.raises(UnsupportedModel, match="no layer can be quantised: Conv_0: asked for"):
        quantised(graph, cases, keep_float=["Conv_0", "Conv_2", "Gemm_5", "MatMul_7"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[2, 3] x) => (float y) { y = MatMul(x, w3) }", "three dimensions|of 3 dimensions"),
        ("(float[2, 3] x) => (float y) { y = MatMul(w, x) }", "its weight is no constant"),
        ("(float[3, 2] x) => (float y) { y = Gemm<transA = 1>(x, w) }", "transA"),
        ("(float[2, 3] x) => (float y) { y = Gemm(x, w, m) }", "differs between rows"),
        ("(float[3] x) => (float y) { y = MatMul(x, w) }", "one dimension"),
        ("(float[3, 3] x) => (float y) { c = MatMul(w, w) y = Add(x, c) }", "both of its inputs are constants"),
        ("(float[1, 1, 5, 5, 5] x) => (float y) { y = Conv<dilations = [2, 1, 1]>(x, k) }", "dilates its first axis"),
        ("(float[2, 3] x) => (float y) { v = Relu(w) y = MatMul(x, v) }", "its weight is no constant"),
    ],
)
def test_reasons_to_stay_in_float(text: str, reason: str) -> None:
    used = {"w": weights(3, 3), "w3": weights(2, 3, 3), "m": weights(2, 3), "k": weights(1, 1, 2, 2, 2)}
    graph = read(text, 17, **{name: array for name, array in used.items() if name in text.replace("w3", "w3 ").split("{")[1]})
    shape = [int(n) for n in text[text.index("[") + 1 : text.index("]")].split(",")]
    with pytest.raises(UnsupportedModel, match=reason):
        quantised(graph, feeds(shape))


def test_layers_in_a_body_stay_in_float() -> None:
    graph = read(
        "(float[2, 3] x, bool c) => (float[2, 3] y) { a = MatMul(x, w)"
        " y = If(c) <then_branch = t () => (float[2, 3] p) { p = MatMul(a, w) }, else_branch = e () => (float[2, 3] q) { q = Relu(a) }> }",
        17,
        w=weights(3, 3),
    )
    made = quantised(graph, [{**case, "c": np.array(True)} for case in feeds([2, 3])])
    assert [row["quantised"] for row in made.report] == [True, False]
    assert "body" in made.report[1]["reason"]


def test_numbers_that_hardly_are_any() -> None:
    graph = read(
        "(float[2, 3] x) => (float y, float z) { y = MatMul(x, w) t = Mul(x, tiny) z = MatMul(t, w) }",
        17,
        w=weights(3, 3),
        tiny=np.array(1e-9, np.float32),
    )
    made = quantised(graph, feeds([2, 3]))
    assert [row["quantised"] for row in made.report] == [True, False] and "does not fit" in made.report[1]["reason"]


def test_a_layer_that_reads_zeros_only_is_refused_by_name() -> None:
    """x is -1 at the highest: nothing comes through the Relu, and no scale follows from that."""
    text = "(float[2, 3] x) => (float a, float y) { a = MatMul(x, w) n = Neg(one) b = Mul(x, n) r = Relu(b) y = MatMul(r, w) }"
    graph = read(text, 17, w=weights(3, 3), one=np.array(1, np.float32))
    cases = [{"x": np.full((2, 3), 1.0 + number, np.float32)} for number in range(3)]
    with pytest.raises(InputError, match="layer 'MatMul_4' reads nothing but zeros on every calibration input") as error:
        quantised(graph, cases)
    assert "--keep-float MatMul_4" in error.value.next
    made = quantised(graph, cases, keep_float=["MatMul_4"])
    assert [row["quantised"] for row in made.report] == [True, False] and made.report[1]["reason"].startswith("asked for")
    quantised(graph, [*cases, {"x": -cases[0]["x"]}])  # one input that lets something through is enough


def test_a_constant_activation_and_a_channel_of_zeros() -> None:
    w = weights(4, 3, 1, 1)
    w[2] = 0
    graph = read("(float[1, 3, 4, 4] x) => (float y) { y = Conv<kernel_shape = [1, 1]>(x, w, b) }", 17, w=w, b=weights(4))
    cases = [{"x": np.full((1, 3, 4, 4), 2.5, np.float32)}]
    made = quantised(graph, cases)
    require_same(made, graph, cases, ["y"])
    assert made.report[0]["one_number_only"] and any("read 2.5 and no other number" in note for note in made.notes)
    more = quantised(graph, [*cases, {"x": cases[0]["x"] / 2}])
    assert not more.report[0]["one_number_only"] and not any("no other number" in note for note in more.notes)


def test_what_is_read_twice_is_quantised_once_here() -> None:
    graph = read(
        "(float[2, 3] x) => (float y, float z) { y = MatMul(x, w) z = MatMul(x, v) }", 17, w=weights(3, 3), v=weights(3, 2)
    )
    made = quantised(graph, feeds([2, 3]))
    assert kinds(made.reference)["Round"] == 1 and kinds(made.deploy)["AscendQuant"] == 2


def test_what_is_read_with_an_offset_and_without_is_quantised_twice() -> None:
    """A 3-D convolution is symmetric, a matrix product of the same numbers is not."""
    graph = read(
        "(float[1, 2, 3, 4, 5] x) => (float y, float z) { y = Conv<kernel_shape = [2, 2, 2]>(x, w) z = MatMul(x, v) }",
        17,
        w=weights(3, 2, 2, 2, 2),
        v=weights(5, 3),
    )
    cases = feeds([1, 2, 3, 4, 5], shift=3.0)
    made = quantised(graph, cases)
    require_same(made, graph, cases, ["y", "z"], 20)
    assert kinds(made.reference)["Round"] == 2 and [row["offset"] == 0 for row in made.report] == [True, False]


def test_large_weights_lie_beside_the_graph() -> None:
    graph = read("(float[2, 64] x) => (float y) { y = MatMul(x, w) }", 17, w=weights(64, 64))
    made = quantised(graph, feeds([2, 64]))
    require_same(made, graph, feeds([2, 64]), ["y"])
    from porting.weights import stream_of

    assert sum(stream_of(v.const_value) is not None for v in made.deploy.model.graph.initializers.values()) == 1


def test_nan_in_the_calibration() -> None:
    with pytest.raises(InputError, match="input 'x' holds nan"):
        quantised(network(), [{"x": np.full((1, 3, 8, 8), np.nan, np.float32)}])
    with pytest.raises(InputError, match="needs inputs"):
        quantised(network(), [])
