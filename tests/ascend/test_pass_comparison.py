"""A pass that changes what is computed is caught when it runs, by name; what is right is compared, in pieces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import porting
from porting.ascend.checking import judged
from porting.ascend.pass_comparison import PassComparison
from porting.ascend.soc import find_soc
from porting.conversion import canonical_graph
from porting.converters.passes.ascend import tables
from porting.converters.passes.ascend.tables import lower_for_ascend
from porting.converters.passes.rewriting import ModelPass, bodies_of
from porting.errors import UnsupportedModel
from porting.sources import open_source
from porting.types import Graph
from tests import tiny
from tests.ascend.lowering_checks import in_branches, read
from tests.graph_bits import whole

GELU = read("(float[2, 3] x) => (float[2, 3] z) { y = Gelu(x) z = Relu(y) }", 20)
NORM = read("(float[N, 8] x) => (float[N, 8] y) { y = RMSNormalization<epsilon = 0.001>(x, g) }", 23, g=np.ones(8, np.float32))
DYNAMIC = read(
    "(float[2, 300] x) => (int32[2, 400] i) { q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z) }",
    17,
    w=np.full((300, 400), 3, np.int8),
)


def entries(graph: Graph) -> dict[str, dict[str, Any]]:
    _, applied = lower_for_ascend(graph, PassComparison())
    return {str(entry["name"]): entry for entry in applied}


def broken(monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[ir.Model], Any]) -> None:
    """Let a pass do its work, and then something wrong."""

    def with_mistake(right: ModelPass) -> ModelPass:
        def change(model: ir.Model) -> int:
            changes = right.change(model)
            if changes:
                spoil(model)
            return changes

        return ModelPass(change)

    table = [(label, with_mistake(run) if label == name else run) for label, run in tables.PASSES]
    monkeypatch.setattr(tables, "PASSES", table)


def nodes(model: ir.Model, op: str) -> list[ir.Node]:
    return [node for body in bodies_of(model) for node in body if node.op_type == op]


def other_numbers(name: str) -> Callable[[ir.Model], None]:
    """Constants that a pass made, times two."""

    def spoil(model: ir.Model) -> None:
        for body in bodies_of(model):
            for value in body.initializers.values():
                if (
                    value.const_value is not None
                    and "constant" in str(value.name)
                    and value.const_value.dtype.is_floating_point()
                ):
                    value.const_value = ir.Tensor(value.const_value.numpy() * 2, name=value.name)

    return spoil


def other_operator(op: str, instead: str) -> Callable[[ir.Model], None]:
    def spoil(model: ir.Model) -> None:
        for node in nodes(model, op):
            node.op_type = instead

    return spoil


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "name", "spoil"),
    [
        (GELU, "gelu", other_numbers("")),
        (GELU, "gelu", other_operator("Erf", "Tanh")),
        (in_branches(GELU), "gelu", other_operator("Erf", "Tanh")),
        (NORM, "rms_normalization", other_operator("Add", "Sub")),
        (DYNAMIC, "dequantize", other_operator("Round", "Floor")),
        (
            read("(float[2, 3] x) => (float y) { a = Identity(x) y = Relu(a) }", 18),
            "drop_identities",
            other_operator("Relu", "Abs"),
        ),
        (read("(float[2, 3] x) => (float y) { a = Gelu(x) y = Sqrt(a) }", 20), "lower_opset", other_operator("Sqrt", "Abs")),
    ],
    ids=["constant", "operator", "in an If", "with free dimensions", "rounding", "beside what it changed", "the last of all"],
)
def test_a_mistake_is_caught_where_it_is_made(
    monkeypatch: pytest.MonkeyPatch, graph: Graph, name: str, spoil: Callable[[ir.Model], Any]
) -> None:
    assert all(entry.get("not_compared_alone", 0) == 0 for entry in entries(graph).values())
    broken(monkeypatch, name, spoil)
    with pytest.raises(UnsupportedModel, match=f"the pass {name} changed what is computed") as caught:
        lower_for_ascend(graph, PassComparison())
    known = {str(node.name) for body in bodies_of(graph.model) for node in body}
    assert caught.value.where.removeprefix("node ") in known, "a node of the model is named"
    lower_for_ascend(graph)  # nobody compared


def test_a_small_difference_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epsilon of 1.1e-3 in place of 1e-3: 5e-5 of a number, of which roundings explain 2e-6."""

    def spoil(model: ir.Model) -> None:
        for value in model.graph.initializers.values():
            if value.const_value is not None and value.const_value.size == 1 and 0 < value.const_value.numpy().item() < 0.01:
                value.const_value = ir.Tensor(np.float32(1.1e-3), name=value.name)

    broken(monkeypatch, "rms_normalization", spoil)
    with pytest.raises(UnsupportedModel, match="rms_normalization"):
        lower_for_ascend(NORM, PassComparison())


def test_integers_are_of_both_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = read("(int64[2, 3] x, int64[2, 3] d) => (int64[2, 3] y) { y = Mod<fmod = 1>(x, d) }", 18)
    assert entries(graph)["mod_fmod"]["compared"] == 1
    broken(monkeypatch, "mod_fmod", other_operator("And", "Or"))
    with pytest.raises(UnsupportedModel, match="mod_fmod"):
        lower_for_ascend(graph, PassComparison())


@pytest.mark.parametrize("spoil", ["Cast", "Unsqueeze"])
def test_other_types_and_shapes_are_differences(spoil: str) -> None:
    """As numbers all of them are the same."""
    before = read("(float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }", 18)
    more = "y = Cast<to = 11>(a)" if spoil == "Cast" else "i = Constant<value_ints = [0]>() y = Unsqueeze(a, i)"
    kind = "double[2, 3]" if spoil == "Cast" else "float[1, 2, 3]"
    after = read(f"(float[2, 3] x) => ({kind} y) {{ a = Relu(x) {more} }}", 18)
    compare = PassComparison()
    compare.begin(before)
    with pytest.raises(UnsupportedModel, match="y is off by inf"):
        compare("a pass", after)


def test_a_graph_that_runs_no_more_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "gelu", other_operator("Erf", "NoSuchOperator"))
    with pytest.raises(UnsupportedModel, match=r"gelu .*does not run any more"):
        lower_for_ascend(GELU, PassComparison())


def test_judging_compares_when_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "compared" not in judged(GELU, find_soc("Ascend910B3")).applied[0]
    result = judged(GELU, find_soc("Ascend910B3"), compared=True)
    (entry,) = [one for one in result.applied if one["name"] == "gelu"]
    assert entry["compared"] == 1 and 0 <= entry["worst_error"] <= entry.get("bound", 0)
    broken(monkeypatch, "gelu", other_operator("Erf", "Tanh"))
    with pytest.raises(UnsupportedModel, match="the pass gelu"):
        judged(GELU, find_soc("Ascend910B3"), compared=True)


# --- what is compared ---------------------------------------------------------------------------------------------


def test_what_is_alike_is_compared_once() -> None:
    graph = read(
        '(float[2, 3] x) => (float[2, 3] z) { a = Gelu(x) b = Relu(a) c = Gelu(b) d = Relu(c) z = Gelu<approximate = "tanh">(d) }',
        20,
    )
    entry = entries(graph)["gelu"]
    assert (entry["changes"], entry["compared"], entry["alike"]) == (3, 2, 1)


def test_constants_that_say_what_is_computed_tell_pieces_apart() -> None:
    text = "(float[1, 1, 4, 4] x) => (float y, float z) {{ y = Mod<fmod = 1>(x, {}) z = Mod<fmod = 1>(x, {}) }}"
    weights = {"a": np.float32(2), "b": np.float32(4)}
    alike = entries(read(text.format("a", "a"), 18, **weights))["mod_fmod"]
    apart = entries(read(text.format("a", "b"), 18, **weights))["mod_fmod"]
    assert (alike["compared"], alike["alike"]) == (1, 1) and (apart["compared"], apart["alike"]) == (2, 0)


def test_large_weights_are_not_read_where_any_numbers_do() -> None:
    class Unread(ir.Tensor):  # type: ignore[type-arg]
        def numpy(self) -> np.ndarray:
            raise AssertionError("a weight was read")

    graph = read(
        "(float[2, 300] x) => (float y) { a = Gelu(x) y = Gemm<alpha = 0.5>(a, w) }", 20, w=np.ones((300, 300), np.float32)
    )
    value = graph.model.graph.initializers["w"]
    value.const_value = Unread(np.ones((300, 300), np.float32), name="w")
    found = entries(graph)
    assert found["gemm_bias"]["compared"] == 1 and found["gelu"]["compared"] == 1


def test_what_cannot_be_run_alone_is_told_with_the_reason() -> None:
    graph = read("(string[2] s, float[2] x) => (string[2] t, float[2] y) { a = Identity(s) t = Identity(a) y = Gelu(x) }", 20)
    found = entries(graph)
    assert found["gelu"]["compared"] == 1
    assert found["drop_identities"]["not_compared_alone"] == 1 and "s is of" in found["drop_identities"]["why"][0]


def test_a_language_model_is_compared_in_all_its_pieces(tmp_path: Path) -> None:
    """Sizes and positions are computed as in the model; a cache, free dimensions, layers that are alike."""
    tiny.make(tmp_path / "model", "LlamaForCausalLM")
    found = entries(canonical_graph(open_source(tmp_path / "model")).graph)
    changed = [entry for entry in found.values() if entry["changes"]]
    assert len(changed) > 8 and not any(entry.get("not_compared_alone") for entry in changed)
    assert found["attention"]["compared"] == 1 and found["attention"]["alike"] == 1
    assert all(entry["worst_error"] < 1e-5 for entry in changed)


def test_a_port_says_what_was_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(whole(GELU))
    port = porting.convert(tmp_path / "m.onnx", tmp_path / "m.port", target="Ascend910B3")
    (entry,) = [one for one in port.manifest["passes"] if one["name"] == "gelu"]
    assert entry["compared"] == 1 and entry["rules"] == ["missing-gelu"]
    broken(monkeypatch, "gelu", other_operator("Erf", "Tanh"))
    with pytest.raises(UnsupportedModel, match="the pass gelu"):
        porting.convert(tmp_path / "m.onnx", tmp_path / "other.port", target="Ascend910B3")
    assert not (tmp_path / "other.port").exists()
    assert porting.check(tmp_path / "m.onnx", "Ascend910B3").details["portability"] != "blocked", (
        "check compares nothing, and is quick"
    )


# --- how pieces are found and fed: a graph before and one after, without a pass between ---------------------------


def compared(before: Graph, after: Graph) -> dict[str, Any]:
    compare = PassComparison()
    compare.begin(before)
    return dict(compare("a pass", after))


def test_weights_of_another_form_are_the_models_own() -> None:
    """A large weight that only one side reads cannot be drawn: the other side's was made of it."""
    w = np.random.default_rng(0).standard_normal((200, 100)).astype(np.float32)
    text = "(float[2, {}] x) => (float y) {{ y = Gemm<transB = {}>(x, {}) }}"
    before = read(text.format(200, 0, "w"), 18, w=w)
    assert compared(before, read(text.format(200, 1, "t"), 18, t=np.ascontiguousarray(w.T)))["compared"] == 1
    with pytest.raises(UnsupportedModel, match="y is off"):
        compared(before, read(text.format(200, 1, "t"), 18, t=np.ascontiguousarray(w.T) + np.float32(0.01)))
    both = "(float[2, 200] x) => (float y) { a = Gemm<transB = 1>(x, t) b = Gemm(x, w) y = Mean(a, b) }"
    after = read(both, 18, w=w, t=np.ascontiguousarray(w.T))
    after.model.graph.initializers["w"].const_value = before.model.graph.initializers["w"].const_value
    assert compared(before, after)["compared"] == 1


def test_a_constant_that_is_written_anew_is_a_change() -> None:
    """No node changes, and one computes something else. Of the other one the constant is the same, in another tensor."""
    text = "(float[2, 3] x) => (float y, float z) { y = Add(x, a) z = Mul(x, b) }"
    before, same = (read(text, 18, a=np.float32(1), b=np.float32(2)) for _ in range(2))
    assert compared(before, same)["compared"] == 0
    with pytest.raises(UnsupportedModel, match="z is off"):
        compared(before, read(text, 18, a=np.float32(1), b=np.float32(3)))


def test_weights_that_differ_in_numbers_alone_are_alike() -> None:
    text = "(float[2, 32] x) => (float z) {{ y = {0}(x, a) z = {0}(y, b) }}"
    weights = {name: np.random.default_rng(i).standard_normal(32).astype(np.float32) for i, name in enumerate("ab")}
    graphs = (read(text.format(op), 18, **weights) for op in ("Add", "Sum"))
    assert {k: v for k, v in compared(*graphs).items() if k in ("compared", "alike")} == {"compared": 1, "alike": 1}


def test_an_operator_that_another_opset_defines_otherwise_is_a_change() -> None:
    """Softmax before opset 13 flattens what is behind its axis."""
    text = "(float[2, 3, 4] x) => (float y) { y = Softmax<axis = 1>(x) }"
    assert compared(read(text, 13), read(text, 18))["compared"] == 0, "as at 13"
    with pytest.raises(UnsupportedModel, match="y is off"):
        compared(read(text, 11), read(text, 13))


def test_what_comes_from_around_a_body_now_is_told() -> None:
    inside = "(float[2] x, bool c) => (float[2] y) { y = If(c) <then_branch = t () => (float[2] a) { s = Relu(x) a = Abs(s) }, else_branch = e () => (float[2] b) { b = Neg(x) }> }"
    outside = "(float[2] x, bool c) => (float[2] y) { s = Relu(x) y = If(c) <then_branch = t () => (float[2] a) { a = Abs(s) }, else_branch = e () => (float[2] b) { b = Neg(x) }> }"
    found = compared(read(inside, 18), read(outside, 18))
    assert found["not_compared_alone"] == 1 and "s comes from another part" in found["why"][0]


INDICES = {
    "int64": "i = Identity(x)",
    "float": "i = Cast<to = 7>(x)",
    "float of two ways": "s = Mul(x, n) t = Cast<to = 7>(x) a = Mul(t, m) b = Cast<to = 7>(s) i = Sub(a, b)",
}


@pytest.mark.parametrize("how", INDICES)
def test_indices_fit_what_they_look_up(how: str) -> None:
    """Of three rows: what is drawn first is too large, indices may come as floats, and two of them of one number."""
    kind, cast = how.split()[0], INDICES[how]
    text = f"({kind}[2, 3] x) => (float y) {{{{ {cast} y = {{}} }}}}"
    table = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "n": np.float32(9), "m": np.int64(9)}
    before = read(text.format("Gather(w, i)"), 18, **table)
    graphs = [read(text.format(f"Gather<axis = {axis}>(w, i)"), 18, **table) for axis in (0, 1)]
    for graph in graphs:
        graph.model.graph[-1].attributes["axis"] = ir.AttrInt64("axis", graph.model.graph[-1].attributes["axis"].as_int())
    assert compared(before, graphs[0])["compared"] == 1
    with pytest.raises(UnsupportedModel, match="y is off"):
        compared(before, graphs[1])
