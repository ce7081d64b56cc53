"""A file is judged as it lies on the disk too: what reading it and the canonical passes mend is named, with what mended it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

import porting
from porting.ascend.compilation import Wishes, judged_for
from porting.ascend.file_facts import THE_PORT, file_facts
from porting.conversion import canonical_graph
from porting.cuts import Cut
from porting.sources import opened
from porting.targets import find_target

TARGET = "Ascend910B3"
FLOAT = onnx.TensorProto.FLOAT


def parsed(text: str, opset: int = 17, names: bool = True, imports: str = "") -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}{imports}]> {text}')
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}" if names else ""
    return model


def of_nodes(*nodes: onnx.NodeProto, opset: int = 17, shape: tuple[int, ...] = (2, 3, 4), y: str = "y") -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, FLOAT, shape) for name in ("x", y)]
    graph = helper.make_graph(list(nodes), "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def with_function() -> onnx.ModelProto:
    text = 'g (float[3] x) => (float[3] y) { y = my.f(x) } <domain: "my", opset_import: ["" : 17]> f (a) => (b) { b = Relu(a) }'
    return parsed(text, imports=', "my" : 1')


def twice_one_name() -> onnx.ModelProto:
    return of_nodes(helper.make_node("Relu", ["x"], ["h"], name="a"), helper.make_node("Tanh", ["h"], ["y"], name="a"))


def several_imports() -> onnx.ModelProto:
    return parsed("g (float[3] x) => (float[3] y) { y = Relu(x) }", imports=', "com.microsoft" : 1')


def constant_as_a_number(name: str = "c") -> onnx.ModelProto:
    number = helper.make_node("Constant", [], ["c"], name=name, value_float=2.0)
    return of_nodes(number, helper.make_node("Mul", ["x", "c"], ["y"], name="m"))


def softmax_of_two_axes() -> onnx.ModelProto:
    return of_nodes(helper.make_node("Softmax", ["x"], ["y"], name="s", axis=1), opset=11)


def einsum_of_three() -> onnx.ModelProto:
    return parsed(
        'g (float[2, 3] x, float[3, 4] a, float[4, 5] b) => (float[2, 5] y) { y = Einsum<equation = "ij,jk,kl->il">(x, a, b) }'
    )


def default_input() -> onnx.ModelProto:
    model = parsed("g (float[3] x, float[3] w) => (float[3] y) { y = Add(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "w"))
    return model


CASES: list[tuple[Callable[[], onnx.ModelProto], str, str]] = [
    (with_function, "local-functions", "reading the file"),
    (twice_one_name, "duplicate-names", "reading the file"),
    (several_imports, "several-imports", "remove_unused"),
    (constant_as_a_number, "constant-form", "constants_to_initializers"),
    (softmax_of_two_axes, "softmax-axis", "convert_version"),
    (einsum_of_three, "einsum-equation", "einsum"),
    (default_input, "input-default", "reading the file"),
]


@pytest.mark.parametrize(("made", "rule", "by"), CASES, ids=[case[1] for case in CASES])
def test_what_reading_mends_is_named(tmp_path: Path, made: Callable[[], onnx.ModelProto], rule: str, by: str) -> None:
    onnx.save(made(), tmp_path / "m.onnx")
    found = porting.check(tmp_path / "m.onnx", TARGET)
    assert found.ok and found.details["portability"] == "portable after rewrites"
    findings = [f for f in found.details["findings"] if f["rule"] == rule]
    assert findings and all((f["status"], f["rewrite"]) == ("mended", by) for f in findings)
    assert found.details["rewrites"][by] >= 1
    port = porting.convert(tmp_path / "m.onnx", tmp_path / "m.port", TARGET)
    about = port.manifest["ascend"]
    assert about["portability"] == "portable after rewrites" and rule in about["mended"]
    (handoff,) = (tmp_path / "m.port" / "targets").iterdir()
    assert rule in json.loads((handoff / "handoff.json").read_text())["rules"]


def test_a_file_that_has_nothing_is_portable_as_it_is(tmp_path: Path) -> None:
    for opset, names in ((17, True), (17, False), (13, True)):
        onnx.save(parsed("g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }", opset, names), tmp_path / "m.onnx")
        found = porting.check(tmp_path / "m.onnx", TARGET)
        assert found.details["portability"] == "portable" and not found.details["rewrites"]


def test_a_node_without_a_name_is_called_as_reading_calls_it(tmp_path: Path) -> None:
    onnx.save(constant_as_a_number(name=""), tmp_path / "m.onnx")
    assert [(f["node"]) for f in porting.check(tmp_path / "m.onnx", TARGET).details["findings"] if f["status"] == "mended"] == [
        "Constant/c"
    ]


def test_a_rank_that_the_file_does_not_say_follows_from_its_inputs(tmp_path: Path) -> None:
    """Softmax over the last axis of two is no trap below opset 13, and only inference says that there are two."""
    model = of_nodes(
        helper.make_node("Relu", ["x"], ["h"], name="r"),
        helper.make_node("Softmax", ["h"], ["y"], name="s", axis=1),
        opset=11,
        shape=(2, 3),
    )
    onnx.save(model, tmp_path / "m.onnx")
    assert porting.check(tmp_path / "m.onnx", TARGET).details["portability"] == "portable"


def test_weights_that_lie_in_the_file_are_not_outside_of_it(tmp_path: Path) -> None:
    """Large ones of a branch: refused where the file holds them elsewhere, not where they are in it; and none is read."""
    branch = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["t"], name="a")],
        "b",
        [],
        [helper.make_tensor_value_info("t", FLOAT, [1000])],
        [numpy_helper.from_array(np.ones(1000, np.float32), "w")],
    )
    plain = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["f"], name="p")], "p", [], [helper.make_tensor_value_info("f", FLOAT, [1000])]
    )
    node = helper.make_node("If", ["c"], ["y"], name="i", then_branch=branch, else_branch=plain)
    values = [helper.make_tensor_value_info("x", FLOAT, [1000]), helper.make_tensor_value_info("y", FLOAT, [1000])]
    given = [helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []), values[0]]
    model = helper.make_model(
        helper.make_graph([node], "g", given, values[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, tmp_path / "m.onnx")
    onnx.save(
        model, tmp_path / "o.onnx", save_as_external_data=True, location="o.bin", size_threshold=100, convert_attribute=True
    )
    for name, outside in (("m.onnx", ()), ("o.onnx", ("w",))):
        (found,) = [n for n in file_facts(tmp_path / name, Cut()).facts.nodes if n.op == "If"]
        assert found.attributes["then_branch"].outside == outside


@pytest.mark.parametrize("outside", [False, True])
def test_numbers_of_a_file_with_several_links_are_read(tmp_path: Path, outside: bool) -> None:
    """As package managers keep them. 200 indices lie outside the message that is looked at, wherever the file has them."""
    model = parsed("g (float[300] x) => (float[200] y) { y = Gather(x, i) }")
    model.graph.initializer.append(numpy_helper.from_array(-np.arange(1, 201), "i"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=outside, location="m.bin")
    for name in ("m.onnx", "m.bin") if outside else ("m.onnx",):
        (tmp_path / f"second {name}").hardlink_to(tmp_path / name)
    (node,) = file_facts(tmp_path / "m.onnx", Cut()).facts.nodes
    assert node.inputs[1].constant.tolist() == [*range(-1, -201, -1)]


def test_keys_of_external_data(tmp_path: Path) -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = Add(x, w) }")
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", "w.bin"), ("offset", "0"), ("checksum", "abc")):
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer.append(tensor)
    (tmp_path / "w.bin").write_bytes(bytes(8))
    onnx.save(model, tmp_path / "m.onnx")
    found = file_facts(tmp_path / "m.onnx", Cut())
    assert found.facts.external_keys == {"location", "offset", "checksum"} and found.mended_by("external-key") == THE_PORT


def test_what_was_cut_off_is_not_in_the_file_that_is_judged(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="r"),
        helper.make_node("Constant", [], ["c"], name="k", value_float=2.0),
    ]
    onnx.save(of_nodes(*nodes, helper.make_node("Mul", ["h", "c"], ["y"], name="m")), tmp_path / "m.onnx")
    assert porting.check(tmp_path / "m.onnx", TARGET).details["portability"] == "portable after rewrites"
    assert porting.check(tmp_path / "m.onnx", TARGET, outputs=("h",)).details["portability"] == "portable"
    onnx.save(with_function(), tmp_path / "f.onnx")
    inside = file_facts(tmp_path / "f.onnx", Cut(outputs=("of no graph",)))
    assert not inside.facts.nodes and inside.facts.functions == ("my::f",)


def test_a_rule_that_still_speaks_of_the_graph_is_not_told_twice(tmp_path: Path) -> None:
    onnx.save(parsed("g (float[2, 3] x) => (float[2, 3] y) { g = Gelu(x) y = Relu(g) }", 22), tmp_path / "m.onnx")
    with opened(tmp_path / "m.onnx") as source:
        judged = judged_for(canonical_graph(source, 18), find_target(TARGET), None, Wishes()).judged
    assert len({(f.rule.id, f.node) for f in judged.mended}) == len(judged.mended) and not judged.blocking
