"""The forecast of overflows: what it names, that a second run with those kept holds, and that its roundings are the documented ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from porting.ascend import activations, overflow
from porting.ascend.half_formats import Magnitudes
from porting.ascend.overflow import forecast, forecasts
from porting.ascend.overflow_places import NodeForecast
from porting.ascend.soc import find_soc
from porting.backends.onnx_program import program_from_onnx
from porting.errors import InputError, UnsupportedModel, UsageError
from porting.types import Graph
from porting.weights import array_stream, tensors_of
from tests import overflowing_models as models
from tests.overflowing_models import WIDTH, feeds, model, program, tensor, value

P310, A2 = find_soc("Ascend310P3"), find_soc("Ascend910B3")
node = helper.make_node
MIDDLE = ("scale", "shift", "back")


# --- the model that overflows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("soc", [P310, A2], ids=["310P", "A2"])
def test_an_mlp_overflows_and_is_mended_by_what_the_forecast_names(soc) -> None:
    first = forecast(program(models.mlp()), feeds(), soc=soc)
    assert not first.passes and first.to_keep == MIDDLE
    assert [n.name for n in first.overflows] == list(MIDDLE)
    assert first.overflows[0].found.too_large > 40 and first.overflows[0].reads == ("big",)
    assert [(w.name, w.clipped) for w in first.weights] == [("big", 1)]
    assert not first.outputs[0].holds and (first.outputs[0].error == math.inf) == (soc is A2), "Inf on A2, 65504 on 310P"

    second = forecast(program(models.mlp()), feeds(), first.to_keep, soc=soc)
    assert second.passes and second.kept == MIDDLE and not second.overflows and not second.weights
    assert second.outputs[0].error == pytest.approx(second.outputs[0].significand), "in range the range costs nothing"


@pytest.mark.parametrize("left_out", MIDDLE)
def test_a_kept_node_whose_reader_is_not_kept_overflows_there(left_out: str) -> None:
    kept = [name for name in MIDDLE if name != left_out]
    found = forecast(program(models.mlp()), feeds(), kept, soc=P310)
    assert not found.passes and [n.name for n in found.overflows] == [left_out] and not found.outputs[0].holds
    assert found.to_keep == MIDDLE, "what is kept already stays named"


def test_exponentials() -> None:
    found = forecast(program(models.exponential()), feeds(), soc=P310)
    assert found.to_keep == ("exp", "square", "log") and not found.passes
    assert forecast(program(models.exponential()), feeds(), found.to_keep, soc=P310).passes


def test_a_matrix_product_cannot_be_kept_where_the_matrix_unit_takes_fp16_only() -> None:
    made = program(models.large_product())
    for keep in ((), ("product", "back")):
        found = forecast(made, feeds(), keep, soc=P310)
        assert not found.passes and "takes fp16 only" in found.cannot_be_kept["product"]
        assert "product" not in found.to_keep and "product" not in found.kept
    on_a2 = forecast(made, feeds(), soc=A2)
    assert on_a2.to_keep == ("product", "back") and not on_a2.cannot_be_kept
    assert forecast(made, feeds(), on_a2.to_keep, soc=A2).passes


def test_a_graph_with_streamed_weights_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("porting.weights.STRIPE_BYTES", 256)
    parsed = ir.serde.deserialize_model(models.mlp())
    for name, initial in parsed.graph.initializers.items():
        assert initial.const_value is not None
        initial.const_value = tensors_of(array_stream(name, initial.const_value.numpy()))[0]
    streamed, plain = forecast(Graph(parsed), feeds(), soc=P310), forecast(program(models.mlp()), feeds(), soc=P310)
    assert streamed.content() == plain.content()


def test_a_program_in_a_file_with_weights_beside_it(tmp_path: Path) -> None:
    onnx.save(models.mlp(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    made = program_from_onnx(tmp_path / "m.onnx")
    assert forecast(made, feeds(), soc=P310).content() == forecast(program(models.mlp()), feeds(), soc=P310).content()


def test_several_cases_are_looked_at_together() -> None:
    small = {"x": feeds()["x"] * np.float32(1e-3)}
    assert not forecast(program(models.large_product()), small, soc=A2).overflows
    found = forecast(program(models.large_product()), [small, feeds(rows=7)], soc=A2)
    assert [n.name for n in found.overflows] == ["product", "back"] and found.nodes[0].found.elements == (4 + 7) * 8


def test_slices_bound_what_is_in_memory_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = forecast(program(models.mlp()), feeds(), soc=P310)
    asked: list[int] = []
    real = activations._giving

    def counted(graph: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
        asked.append(sum(4 * 4 * (8 if name == "y" else 32) for name in names))
        return real(graph, names)

    monkeypatch.setattr(activations, "_giving", counted)
    monkeypatch.setattr(activations, "SLICE_BYTES", 1100)
    assert forecast(program(models.mlp()), feeds(), soc=P310).content() == whole.content()
    assert len(asked) == 3 and max(asked) <= 1100


def test_further_forecasts_do_not_look_at_float32_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [forecast(program(models.mlp()), feeds(), keep, soc=P310).content() for keep in ((), MIDDLE, ("back",))]
    looked: list[int] = []
    real = overflow.observed
    monkeypatch.setattr(overflow, "observed", lambda *a: looked.append(1) or real(*a))
    with forecasts(program(models.mlp()), feeds(), soc=P310) as run:
        assert [run(keep).content() for keep in ((), MIDDLE, ("back",))] == plain
    assert len(looked) == 1


# --- what is harmless, and what is lost ----------------------------------------------------------------------------


@pytest.mark.parametrize("soc", [P310, A2], ids=["310P", "A2"])
def test_a_mask_that_goes_to_a_softmax_is_no_overflow(soc) -> None:
    mask = np.ones((4, WIDTH), np.float32)
    mask[:, 10:] = 0
    found = forecast(program(models.masked_softmax()), {**feeds(), "m": mask}, soc=soc)
    assert found.content()["masks"] == ["mask", "masked"] and not found.to_keep
    # on A2 0 * -Inf is NaN, had the constant become Inf: it is clipped, and so nothing is lost
    assert found.passes


def test_a_mask_that_goes_elsewhere_too_is_an_overflow() -> None:
    made = models.masked_softmax()
    made.graph.output.append(value("b", ["n", WIDTH]))
    found = forecast(program(made), {**feeds(), "m": np.zeros((4, WIDTH), np.float32)}, soc=P310)
    assert found.to_keep == ("mask", "masked") and not found.passes


def test_large_numbers_above_zero_are_no_mask() -> None:
    found = forecast(program(models.masked_softmax(3.4e38)), {**feeds(), "m": np.zeros((4, WIDTH), np.float32)}, soc=P310)
    assert found.to_keep == ("mask", "masked", "softmax") and not found.content()["masks"]


def test_an_overflow_that_these_inputs_do_not_show_still_fails() -> None:
    nodes = [node("Mul", ["x", "k"], ["a"], name="large"), node("Clip", ["a", "low", "high"], ["y"], name="clip")]
    weights = [tensor("k", 6e4), tensor("low", -1), tensor("high", 1)]
    found = forecast(program(model(nodes, weights, outputs=[value("y", ["n", WIDTH])])), feeds(), soc=P310)
    assert found.outputs[0].holds and not found.passes and found.to_keep == ("large", "clip")


def test_what_is_lost_below_the_rounding_of_an_output_holds() -> None:
    made = model([node("Neg", ["x"], ["y"])], outputs=[value("y", ["n", WIDTH])])
    x = np.ones((2, WIDTH), np.float32)
    x[0, 0] = 2.0**-30
    found = forecast(program(made), {"x": x}, soc=A2).outputs[0]
    assert found.significand == 0.0 and 0 < found.error < 1e-9 and found.holds


def test_a_bound_is_twice_what_rounding_costs_and_no_more() -> None:
    """1e-6 is a subnormal number of fp16, and 40 times coarser than one: 3 % of the output, where rounding alone takes 0.1 %."""
    nodes = [node("Mul", ["x", "small"], ["a"], name="down"), node("Mul", ["a", "large"], ["y"], name="up")]
    made = program(model(nodes, [tensor("small", 2.0**-20), tensor("large", 1024)], outputs=[value("y", ["n", WIDTH])]))
    found = forecast(made, feeds(rows=64), soc=A2).outputs[0]
    rounding = 2.0**-11
    assert found.significand < 2 * rounding and found.bound <= 2 * 2 * rounding
    assert 5 * found.bound < found.error < 0.1 and not found.holds and not found.undecided
    assert found.bound >= 2 * found.significand


def test_an_output_of_another_shape_does_not_hold() -> None:
    made = program(model([node("NonZero", ["x"], ["y"])], outputs=[value("y", [2, "m"], TensorProto.INT64)]))
    x = np.ones((2, WIDTH), np.float32)
    assert forecast(made, {"x": x}, soc=A2).outputs[0].holds
    x[0, 0] = 2.0**-30
    found = forecast(made, {"x": x}, soc=A2).outputs[0]
    assert found.error == math.inf and not found.holds


def test_every_output_has_to_hold() -> None:
    nodes = [
        node("Neg", ["x"], ["z"], name="negated"),
        node("Mul", ["x", "small"], ["a"], name="down"),
        node("Mul", ["a", "large"], ["y"], name="up"),
    ]
    outputs = [value(name, ["n", WIDTH]) for name in "zy"]
    made = program(model(nodes, [tensor("small", 2.0**-20), tensor("large", 1024)], outputs=outputs))
    found = forecast(made, feeds(rows=64), soc=A2)
    assert {o.name: o.holds for o in found.outputs} == {"z": True, "y": False}
    assert not found.overflows and not found.passes


def test_a_row_that_is_masked_whole_fails_where_overflow_is_inf() -> None:
    nothing = {**feeds(), "m": np.zeros((4, WIDTH), np.float32)}
    made = models.masked_softmax(-6e4)
    made.graph.node[1].CopyFrom(node("Mul", ["a2", "least"], ["b"], name="mask"))
    made.graph.node.insert(
        1, node("Add", ["a", "one"], ["a2"], name="twice")
    )  # 2 * -6e4 overflows by computing, not by its constant
    assert forecast(program(made), nothing, soc=P310).outputs[0].error < math.inf
    found = forecast(program(made), nothing, soc=A2)
    assert found.outputs[0].error == math.inf and not found.passes, "softmax of -Inf alone is NaN"


def test_an_epsilon_that_vanishes_is_named() -> None:
    nodes = [
        node("Sub", ["x", "x"], ["a"], name="centred"),
        node("Add", ["a", "eps"], ["b"], name="add_eps"),
        node("Sqrt", ["b"], ["c"], name="root"),
        node("Div", ["a", "c"], ["d"], name="normalised"),
        node("Add", ["d", "x"], ["y"], name="residual"),
    ]
    made = program(model(nodes, [tensor("eps", 1e-12)], outputs=[value("y", ["n", WIDTH])]))
    found = forecast(made, feeds(), soc=A2)
    assert not found.passes and found.outputs[0].error == math.inf, "0 / 0"
    assert [n.name for n in found.overflows] == ["normalised"], "where only the rounded run goes over"
    assert [w.name for w in found.weights] == ["eps"] and set(found.to_keep) == {"add_eps", "root", "normalised"}
    assert forecast(made, feeds(), found.to_keep, soc=A2).passes


def test_numbers_that_vanish_without_effect_are_reported_and_pass() -> None:
    made = model([node("Mul", ["x", "tiny"], ["a"], name="tiny"), node("Add", ["a", "x"], ["y"])], [tensor("tiny", 1e-9)])
    made.graph.output[0].CopyFrom(value("y", ["n", WIDTH]))
    found = forecast(program(made), feeds(), soc=A2)
    assert found.passes and not found.to_keep and [n.name for n in found.lost] == ["tiny", "y"]
    assert found.nodes[0].found.zero_share == 1.0


# --- what is rounded, and what is not ------------------------------------------------------------------------------


def test_bf16_holds_the_range_and_costs_more() -> None:
    half, wide = (forecast(program(models.mlp()), feeds(), MIDDLE, soc=A2, precision=p) for p in ("fp16", "bf16"))
    assert wide.passes and not forecast(program(models.mlp()), feeds(), soc=A2, precision="bf16").overflows
    assert 4 < wide.outputs[0].error / half.outputs[0].error < 16, "3 bits fewer"


@pytest.mark.parametrize(("name", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_a_rounded_node_gives_what_numpy_rounds_to(name: str, dtype: type) -> None:
    made = model([node("Neg", ["x"], ["y"])], outputs=[value("y", ["n", WIDTH])])
    x = np.random.default_rng(0).standard_normal((200, WIDTH)).astype(np.float32)
    x *= np.float32(10) ** np.random.default_rng(1).uniform(-9, 4, x.shape).astype(np.float32)
    expected = np.linalg.norm(x.astype(dtype).astype(np.float64) - x) / np.linalg.norm(x.astype(np.float64))
    found = forecast(program(made), {"x": x}, soc=A2, precision=name)
    assert found.outputs[0].error == pytest.approx(float(expected), rel=1e-6) and found.passes


def test_roundings_of_the_significand_alone_have_no_range() -> None:
    x = np.float32(10) ** np.random.default_rng(1).uniform(-30, 30, (200, WIDTH)).astype(np.float32)
    made = program(model([node("Neg", ["x"], ["y"])], outputs=[value("y", ["n", WIDTH])]))
    found = forecast(made, {"x": x}, soc=A2)
    part, exponent = np.frexp(x.astype(np.float64))
    expected = np.ldexp(np.rint(part * 2**11) / 2**11, exponent)
    assert found.outputs[0].significand == pytest.approx(np.linalg.norm(expected - x) / np.linalg.norm(x.astype(np.float64)))
    assert found.outputs[0].error == math.inf
    exact = {"x": np.float32(2) ** np.arange(-100, 100, dtype=np.float32).repeat(WIDTH).reshape(-1, WIDTH)}
    assert forecast(made, exact, soc=A2).outputs[0].significand == 0.0, "powers of two have one bit"


def test_infinite_inputs_become_finite_where_the_soc_saturates() -> None:
    made = program(model([node("Neg", ["x"], ["y"])], outputs=[value("y", ["n", WIDTH])]))
    x = feeds()["x"]
    x[0, 0] = np.inf
    assert forecast(made, {"x": x}, soc=A2).passes
    found = forecast(made, {"x": x}, soc=P310)
    assert not found.passes and any("Inf or NaN in float32 already" in note for note in found.notes)


def test_nan_becomes_zero_where_the_soc_saturates() -> None:
    made = program(model([node("Sqrt", ["x"], ["y"])], outputs=[value("y", ["n", WIDTH])]))
    assert not forecast(made, feeds(), soc=P310).passes and forecast(made, feeds(), soc=A2).passes


def test_what_decides_shapes_is_left_alone() -> None:
    """2049 is no fp16 number: rounded, the size computed in floats would be 2048."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        node("Div", ["f", "two"], ["h"]),
        node("Mul", ["h", "two"], ["g"]),
        node("Cast", ["g"], ["i"], to=TensorProto.INT64),
        node("Reshape", ["x", "i"], ["r"]),
        node("Neg", ["r"], ["y"]),
    ]
    made = model(nodes, [tensor("two", 2)], [value("x", [2049, 1])], [value("y", [2049, 1])])
    found = forecast(program(made), {"x": np.ones((2049, 1), np.float32)}, soc=A2)
    assert found.passes and [n.name for n in found.nodes] == ["r", "y"]


def branching() -> onnx.ModelProto:
    """An If of two branches, one of which goes to 3e5; nested in it another, which does too."""
    deep = helper.make_graph(
        [node("Mul", ["t", "k"], ["u"], name="deep")], "deep", [], [value("u", ["n", WIDTH])], [tensor("k", 1e-4)]
    )
    flat = helper.make_graph([node("Neg", ["t"], ["v"], name="flat")], "flat", [], [value("v", ["n", WIDTH])])
    then = helper.make_graph(
        [
            node("Mul", ["x", "k1"], ["t"], name="inside"),
            node("If", ["d"], ["w"], name="inner", then_branch=deep, else_branch=flat),
        ],
        "then",
        [],
        [value("w", ["n", WIDTH])],
        [tensor("k1", 3e5)],
    )
    other = helper.make_graph([node("Neg", ["x"], ["e"], name="other")], "else", [], [value("e", ["n", WIDTH])])
    nodes = [
        node("If", ["c"], ["i"], name="if", then_branch=then, else_branch=other),
        node("Div", ["i", "k2"], ["y"], name="back"),
    ]
    inputs = [value("x", ["n", WIDTH]), value("c", [], TensorProto.BOOL), value("d", [1], TensorProto.BOOL)]
    return model(nodes, [tensor("k2", 3)], inputs, [value("y", ["n", WIDTH])])


def case(c: bool, d: bool, seed: int = 1) -> dict[str, np.ndarray]:
    return {**feeds(seed), "c": np.array(c), "d": np.array([d])}


def test_branches_are_looked_into_where_inputs_take_them() -> None:
    made = program(branching())
    assert forecast(made, case(False, True), soc=P310).passes, "the large branch is not taken"
    deep = forecast(made, case(True, True), soc=P310)
    assert deep.to_keep == ("inside", "deep") and [w.name for w in deep.weights] == ["k1"] and not deep.unseen
    assert forecast(made, case(True, True), deep.to_keep, soc=P310).passes
    assert not forecast(made, case(True, True), ["deep"], soc=P310).outputs[0].holds
    flat = forecast(made, case(True, False), soc=P310)
    assert flat.to_keep == ("inside", "flat", "back")


def test_cases_that_take_different_branches_are_put_together() -> None:
    made = program(branching())
    cases = [case(True, True), case(False, True, 2), case(True, False, 3), case(True, True, 4)]
    found = forecast(made, cases, soc=P310)
    assert set(found.to_keep) == {"inside", "deep", "flat", "back"} and not found.passes
    assert {n.name: n.found.elements for n in found.nodes} == {"inside": 192, "deep": 128, "flat": 64, "other": 64, "back": 256}
    assert len(found.outputs) == 1 and found.outputs[0].error == max(
        forecast(made, one, soc=P310).outputs[0].error for one in (cases[:1], cases[1:2], cases[2:3], cases[3:])
    )
    assert forecast(made, cases, found.to_keep, soc=P310).passes


def test_a_node_on_more_cases() -> None:
    large, small = Magnitudes(elements=1, highest=1e5, too_large=1), Magnitudes(elements=2)
    one = NodeForecast("n", "Add", large, False, ("a",), (), False, True)
    other = NodeForecast("n", "Add", small, True, ("b",), ("c",), False, False)
    for both in (one.with_more(other), other.with_more(one)):
        assert (both.found.elements, both.driven, set(both.reads), both.vanishing, both.mask) == (
            3,
            True,
            {"a", "b"},
            ("c",),
            True,
        )
    assert not one.with_more(replace(one, mask=False)).mask and not other.with_more(other).mask


def test_an_exact_output_that_the_range_changes_does_not_hold() -> None:
    made = model(
        [node("Greater", ["x", "zero"], ["y"])], [tensor("zero", 0)], outputs=[value("y", ["n", WIDTH], TensorProto.BOOL)]
    )
    x = np.ones((256, WIDTH), np.float32)
    assert forecast(program(made), {"x": x}, soc=A2).passes
    x[0, 0] = 2.0**-30
    found = forecast(program(made), {"x": x}, soc=A2).outputs[0]
    assert (found.error, found.significand, found.holds) == (1 / 4096, 0.0, False)


def test_bodies_of_loops_are_rounded_and_said_to_be_unseen() -> None:
    inner = helper.make_graph(
        [node("Mul", ["s", "k"], ["t"], name="inside"), node("Identity", ["go"], ["on"])],
        "body",
        [value("n_", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("s", ["n", WIDTH])],
        [value("on", [], TensorProto.BOOL), value("t", ["n", WIDTH])],
        [tensor("k", 3e5)],
    )
    nodes = [node("Loop", ["times", "", "x"], ["i"], name="loop", body=inner), node("Div", ["i", "k2"], ["y"], name="back")]
    made = program(
        model(nodes, [tensor("k2", 3e5), numpy_helper.from_array(np.array(1), "times")], outputs=[value("y", ["n", WIDTH])])
    )
    taken = forecast(made, feeds(), soc=P310)
    assert not taken.outputs[0].holds and taken.unseen[0].node == "loop" and "2 nodes in its bodies" in taken.unseen[0].why
    assert not forecast(made, feeds(), ["back"], soc=P310).outputs[0].holds
    kept = forecast(made, feeds(), ["inside", "back"], soc=P310)
    assert kept.outputs[0].holds, "nodes in bodies can be kept too, and read the outer values"


def test_accumulations_are_said_to_be_unseen() -> None:
    nodes = [
        node("ReduceMean", ["x"], ["m"], name="mean", axes=[1]),
        node("LayerNormalization", ["x", "g"], ["l"], name="norm"),
        node("Add", ["l", "m"], ["y"], name="add"),
    ]
    made = program(model(nodes, [tensor("g", np.ones(WIDTH))], outputs=[value("y", ["n", WIDTH])]))
    x = {"x": feeds()["x"] + np.float32(10_000)}
    found = {u.node: u.reaches for u in forecast(made, x, soc=A2).unseen}
    assert found.keys() == {"mean", "norm"}
    assert found["mean"] == pytest.approx(16 * 1e4, rel=1e-3) and found["norm"] == pytest.approx(1e8, rel=1e-2)


def test_floats_that_are_not_float32_are_said_to_be_unseen() -> None:
    """A mode that makes fp16 of all floats makes it of these too."""
    nodes = [
        node("Cast", ["x"], ["d"], name="widen", to=TensorProto.DOUBLE),
        node("Mul", ["d", "d"], ["s"], name="square"),
        node("Cast", ["s"], ["n"], name="narrow", to=TensorProto.FLOAT),
        node("Neg", ["n"], ["y"], name="negate"),
    ]
    made = program(model(nodes, outputs=[value("y", ["n", WIDTH])]))
    found = {u.node: u.why for u in forecast(made, feeds(), soc=P310).unseen}
    assert found.keys() == {"widen", "square"} and "float64" in found["square"]


@pytest.mark.parametrize(("precision", "unseen"), [("fp16", {"shorten"}), ("bf16", set())])
def test_floats_that_are_in_the_asked_format_already_stay(precision: str, unseen: set[str]) -> None:
    nodes = [
        node("Cast", ["x"], ["b"], name="shorten", to=TensorProto.BFLOAT16),
        node("Cast", ["b"], ["f"], name="back", to=TensorProto.FLOAT),
        node("Neg", ["f"], ["y"], name="negate"),
    ]
    made = program(model(nodes, outputs=[value("y", ["n", WIDTH])]))
    assert {u.node for u in forecast(made, feeds(), soc=A2, precision=precision).unseen} == unseen


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_a_graph_without_float32_has_no_forecast(kind: int) -> None:
    nodes = [node("Neg", ["x"], ["y"])]
    made = program(model(nodes, inputs=[value("x", ["n", WIDTH], kind)], outputs=[value("y", ["n", WIDTH], kind)]))
    x = feeds()["x"].astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    with pytest.raises(UnsupportedModel, match="nothing in the graph computes in float32"):
        forecast(made, {"x": x}, soc=P310)


def test_a_node_that_only_rounding_drives_over_is_named() -> None:
    """65480 * 1.00049 is 65512; rounded, 65472 * 1.00098 is 65536."""
    made = program(
        model([node("Mul", ["x", "k"], ["y"], name="edge")], [tensor("k", 1.00049)], outputs=[value("y", ["n", WIDTH])])
    )
    x = {"x": np.full((1, WIDTH), 65480, np.float32)}
    found = forecast(made, x, soc=A2)
    assert not found.nodes[0].found.too_large and [n.name for n in found.overflows] == ["edge"]
    assert found.to_keep == ("edge",) and not found.passes
    assert forecast(made, x, ["edge"], soc=A2).passes


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors() -> None:
    made = program(models.mlp())
    with pytest.raises(UsageError, match="no forecast for 'int8'"):
        forecast(made, feeds(), precision="int8")
    with pytest.raises(UsageError, match="no node is called 'scales'") as error:
        forecast(made, feeds(), ["scales"])
    assert "did you mean 'scale'?" in error.value.next
    with pytest.raises(InputError, match="no inputs to run on"):
        forecast(made, [])
    with pytest.raises(InputError, match="no input 'z'"):
        forecast(made, {**feeds(), "z": np.zeros(1, np.float32)})
    with pytest.raises(InputError, match="input 'x' is not fed"):
        forecast(made, {})
    with pytest.raises(InputError, match="does not take the feeds"):
        forecast(made, {"x": np.zeros((2, 3), np.float32)})
    with pytest.raises(UnsupportedModel, match="opset 12"):
        forecast(program(model([node("Neg", ["x"], ["y"])], outputs=[value("y", ["n", WIDTH])], opset=12)), feeds())


def test_empty_values_are_no_trouble() -> None:
    made = program(model([node("Neg", ["x"], ["a"]), node("Exp", ["a"], ["y"])], outputs=[value("y", ["n", WIDTH])]))
    assert forecast(made, feeds(rows=0), soc=P310).passes


def test_the_content_is_json_and_says_what_is_not_modelled() -> None:
    content = json.loads(json.dumps(forecast(program(models.mlp()), feeds(), soc=A2).content(), allow_nan=False))
    assert content["to_keep"] == list(MIDDLE) and content["outputs"][0]["error"] == "inf"
    assert any("not modelled" in note for note in content["notes"]) and content["overflow_becomes"] == "Inf"


def test_a_weight_is_clipped_on_every_soc() -> None:
    """ATC's is_weight_clip: the constant becomes 65504, where a computed number becomes Inf."""
    made = program(
        model(
            [node("Div", ["x", "big"], ["y"])],
            [numpy_helper.from_array(np.float32(1e5).reshape(1), "big")],
            outputs=[value("y", ["n", WIDTH])],
        )
    )
    found = forecast(made, feeds(), soc=A2)
    assert found.outputs[0].error == pytest.approx(1e5 / 65504 - 1, rel=1e-2) and [w.name for w in found.weights] == ["big"]
