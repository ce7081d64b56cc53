"""Integers that are carried in floats stay in float32 whatever a forecast measures: what carries them, and what becomes of it on a 310P."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import porting
from porting.ascend.graph_facts import facts_of
from porting.ascend.overflow import forecast
from porting.ascend.soc import find_soc
from porting.ascend.whole_numbers import integer_carriers, integer_carriers_of
from porting.noisy_original import types_of
from tests.ascend.lowering_checks import read
from tests.overflowing_models import program

CASES = {
    "a division": ("a = Cast<to = 1>(i) q = Div(a, k) f = Floor(q) y = Cast<to = 7>(f)", ["a", "q", "f", "y"]),
    "by a computed constant": ("n = Neg(k) a = Cast<to = 1>(i) q = Div(a, n) y = Cast<to = 7>(q)", ["a", "q", "y"]),
    "in double": ("a = Cast<to = 11>(i) f = Sqrt(a) y = Cast<to = 7>(f)", ["a", "f", "y"]),
    "moved about": ("a = Cast<to = 1>(i) r = Neg(a) s = Identity(r) t = Abs(s) y = Cast<to = 7>(t)", ["a", "r", "t", "y"]),
    "a comparison": ("a = Cast<to = 1>(i) c = Less(a, k) y = Cast<to = 7>(c)", ["a", "c"]),
    "by floats that are fed": ("a = Cast<to = 1>(i) q = Mul(a, x) f = Floor(q) y = Cast<to = 7>(f)", []),
    "by a matrix product": ("a = Cast<to = 1>(i) q = MatMul(a, w) f = Floor(q) y = Cast<to = 7>(f)", []),
    "never integers again": ("a = Cast<to = 1>(i) b = Mul(a, k) c = Round(x) d = Cast<to = 7>(c) e = Cast<to = 1>(d) "
        "h = Add(b, e) f = Sigmoid(h) o = Add(x, f) y = Cast<to = 7>(o)", []),
    "of shapes alone": ("s = Shape(i) a = Cast<to = 1>(s) q = Div(a, k) p = Cast<to = 7>(q) y = Expand(i, p)", []),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_which_nodes_carry_integers(name: str, tmp_path: Path) -> None:
    nodes, expected = CASES[name]
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (int64[4] i, float[4] x) => (int64[4] y) {{ {nodes} }}'
    proto = onnx.parser.parse_model(text)
    weights = {"k": np.float32(3), "w": np.eye(4, dtype=np.float32)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items() if n in nodes)
    for made in proto.graph.node:
        made.name = made.output[0]
    feeds = {"i": np.arange(4), "x": np.zeros(4, np.float32)}
    assert list(integer_carriers(proto.graph, types_of(proto, tmp_path, feeds))) == expected


def test_the_facts_of_a_graph_say_the_same() -> None:
    nodes, expected = CASES["a division"]
    graph = read(f"(int64[4] i) => (int64[4] y) {{ {nodes} }}", 17, k=np.float32(3))
    made = {out.name: node.name for node in graph.model.graph for out in node.outputs}
    assert list(integer_carriers_of(facts_of(graph))) == [made[name] for name in expected]


def divided(path: Path, kind: str, high: int) -> tuple[Path, Path]:
    """x / 7 in integers."""
    number = onnx.TensorProto.DataType.Value(kind.upper())
    info = onnx.helper.make_tensor_value_info
    weights = [onnx.numpy_helper.from_array(np.array(7, kind), "k")]
    nodes = [onnx.helper.make_node("Div", ["x", "k"], ["y"], name="divide")]
    body = onnx.helper.make_graph(nodes, "divided", [info("x", number, [16])], [info("y", number, [16])], weights)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(body, opset_imports=opset, ir_version=8), str(path / "m.onnx"))
    np.savez(path / "x.npz", x=np.linspace(0, high, 16).astype(kind))
    return path / "m.onnx", path / "x.npz"


@pytest.mark.parametrize(
    ("kind", "high"), [("uint8", 255), ("int8", 20), ("int16", 30_000), ("int16", 20), ("int32", 3_000), ("int32", 20)]
)
def test_a_division_of_integers_stays_in_float32_on_a_310p(kind: str, high: int, tmp_path: Path) -> None:
    """Of numbers below 20 too, which fp16 divides rightly on these inputs; of int32 in double, which a forecast does not round."""
    model, inputs = divided(tmp_path, kind, high)
    verdict = porting.check(model, "Ascend310P3", inputs=inputs).require()
    carry = verdict.details["forecast"]["first"]["carry_integers"]
    assert len(carry) >= 4 and not verdict.details["forecast"]["first"]["passes"]
    kept = verdict.details["forecast"]["with_exceptions"]["kept"]
    assert kept == carry and verdict.details["forecast"]["files"]["keep_dtype.cfg"].split() == kept
    asked = porting.check(model, "Ascend310P3").details["forecast"]
    assert asked.startswith("not asked for") and f"{len(carry)} nodes carry integers in floats" in asked
    porting.port(model, tmp_path / "m.port", "Ascend310P3", inputs=inputs).require()
    (written,) = (tmp_path / "m.port" / "targets").glob("*/keep_dtype.cfg")
    assert written.read_text().split() == kept


def test_a_conversion_that_forecasts_nothing_says_so(tmp_path: Path) -> None:
    model, _ = divided(tmp_path, "int16", 20)
    porting.convert(model, tmp_path / "m.port", "Ascend310P3")
    (readme,) = (tmp_path / "m.port" / "targets").glob("*/README.txt")
    assert "nodes carry integers in floats and are not kept in fp32 here" in " ".join(readme.read_text().split())


def test_a_division_of_integers_that_may_be_large_is_blocked(tmp_path: Path) -> None:
    model, inputs = divided(tmp_path, "int64", 20)
    assert "integer-division" in porting.check(model, "Ascend310P3", inputs=inputs).reason


BODIES = {
    "loop": """y = Loop(times, , i) <body = b (int64 n, bool go, int64[4] s) => (bool go2, int64[4] t) {
        go2 = Identity(go) a = Cast<to = 1>(s) q = Div(a, k) f = Floor(q) t = Cast<to = 7>(f) }>""",
    "branch": """no = Cast<to = 9>(times) y = If(no) <
        then_branch = t () => (int64[4] t) { a = Cast<to = 1>(i) q = Div(a, k) f = Floor(q) t = Cast<to = 7>(f) },
        else_branch = e () => (int64[4] u) { u = Identity(i) }>""",
}


def in_a_body(which: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """On inputs on which nothing is wrong."""
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (int64 times, int64[4] i) => (int64[4] y) {{ {BODIES[which]} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(3), "k"))
    return proto, {"times": np.array(2), "i": np.arange(4)}


@pytest.mark.parametrize("which", BODIES)
def test_a_division_in_a_body_does_not_pass(which: str) -> None:
    proto, feeds = in_a_body(which)
    found = forecast(program(proto), feeds, soc=find_soc("Ascend310P3"))
    assert all(output.holds for output in found.outputs) and len(found.inexact) == 4 and not found.passes


def test_cases_that_take_different_branches_are_looked_at_together() -> None:
    proto, feeds = in_a_body("branch")
    cases = [{**feeds, "times": np.array(0)}, feeds]
    for order in (cases, cases[::-1]):
        assert len(forecast(program(proto), order, soc=find_soc("Ascend310P3")).inexact) == 4


def test_a_division_that_no_file_can_name_blocks_with_its_rule(tmp_path: Path) -> None:
    proto, feeds = in_a_body("branch")
    onnx.save(proto, str(tmp_path / "m.onnx"))
    np.savez(tmp_path / "x.npz", **feeds)
    verdict = porting.check(tmp_path / "m.onnx", "Ascend310P3", inputs=tmp_path / "x.npz")
    (failed,) = [check for check in verdict.checks if check.verdict == "fail"]
    assert verdict.exit_code == 1 and failed.value == 4 and failed.detail.startswith("forecast-integers: ")
    assert "body of a control flow" in failed.detail and list(verdict.details["forecast"]["broken"]) == ["forecast-integers"]
