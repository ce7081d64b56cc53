"""Detectors cut before what an Ascend SoC does not take: what the hint says works when it is typed, and the part is a port like any other."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detectors import detector, switched

import porting
from porting.ascend.cuts import last_values, value_names
from porting.ascend.handoff import handoffs_of
from porting.conversion import canonical_graph
from porting.converters.checkpoints.onnx_file import OnnxFile
from porting.errors import InputError, UnsupportedModel, UsageError
from tests.graph_models import constant, model, node, weight

P310 = "Ascend310P3"
GEARS = "batch=1,height=32,width=32; batch=1,height=64,width=64"
Run = Callable[..., tuple[int, str, str]]


def saved(proto: onnx.ModelProto, path: Path) -> Path:
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="module")
def nms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(detector(), tmp_path_factory.mktemp("nms") / "nms.onnx")


@pytest.fixture(scope="module")
def cut(nms: Path) -> Path:
    """The detector up to its boxes and scores, with two gears."""
    port = nms.parent / "cut.port"
    porting.port(nms, port, P310, gears=GEARS, outputs=("boxes", "scores")).require()
    return port


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`porting` in this process: exit code, stdout, stderr."""
    from porting import cli

    def command(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            cli.main([str(a) for a in arguments])
        assert isinstance(done.value.code, int)
        return done.value.code, *capsys.readouterr()

    return command


def options_in(text: str) -> list[str]:
    """What a hint says to type."""
    words = shlex.split(text[text.index("--") :].split(";")[0].splitlines()[0])
    assert set(words[::2]) <= {"--outputs", "--fix"}
    return words


def test_gears_are_refused_with_what_to_type_which_then_works(nms: Path, tmp_path: Path, run: Run) -> None:
    shapes = ["--batch", 1, "--image-size", "32,32; 64,64", "--target", P310, "-o", tmp_path / "m.port", "--quiet"]
    code, out, said = run("port", nms, *shapes)
    assert code == 1 and "unsized-output: nodes 1 > 0 at nms" in out
    typed = options_in(out[out.index("host:") :])
    assert typed == ["--outputs", "boxes", "--outputs", "scores"] and not (tmp_path / "m.port").exists()
    code, out, said = run("port", nms, *shapes, *typed)
    assert code == 0, said + out
    assert "on the untouched file up to boxes, scores, no graph optimisations" in " ".join(out.split())
    assert "inputs that nothing needs any more: unused" in out
    (handoff,) = handoffs_of(tmp_path / "m.port")
    handoff.verify()
    assert handoff.command.value("dynamic_image_size") == "32,32;64,64"
    code, out, _ = run("validate", tmp_path / "m.port", "--against", nms, "--quiet")
    assert code == 0 and "up to boxes, scores" in " ".join(out.split())


def test_a_part_is_a_port(nms: Path, cut: Path) -> None:
    port = porting.open_port(cut)
    config = port.manifest["config"]
    assert (config["cut_outputs"], config["cut_inputs"]) == (["boxes", "scores"], ["unused"]) and "fixed_inputs" not in config
    (handoff,) = handoffs_of(cut)
    handoff.verify()
    assert handoff.command.value("dynamic_image_size") == "32,32;64,64"
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    with porting.load(cut) as session:
        got = session.run({"image": image})
    proto = onnx.load(nms)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("boxes", "scores"))
    original = (
        OnnxFile(saved(proto, nms.parent / "tapped.onnx")).original().run({"image": image, "unused": np.zeros(1, np.float32)})
    )
    assert list(got) == ["boxes", "scores"]
    for name, array in got.items():
        np.testing.assert_allclose(array, original[name], rtol=1e-5, atol=1e-6)


def test_a_port_is_held_against_its_part_of_the_file_and_against_a_golden(nms: Path, cut: Path, tmp_path: Path) -> None:
    against = porting.validate(cut, nms).require()
    assert "up to boxes, scores" in against.details["compared_with"]
    assert porting.validate(cut).require().reference == "golden"
    with pytest.raises(InputError, match="another model"):
        porting.validate(cut, nms, outputs=("scores", "boxes"))
    porting.convert(nms, tmp_path / "cpu.port", outputs=("boxes", "scores"))
    golden = tmp_path / "golden.json"
    porting.record(nms, golden, outputs=("boxes", "scores"))
    assert porting.validate(tmp_path / "cpu.port", golden).require().reference == "golden"
    porting.record(nms, golden, outputs=("boxes", "likely"), force=True)
    with pytest.raises(InputError, match="another model"):
        porting.validate(tmp_path / "cpu.port", golden)


def test_another_part_of_the_file_is_another_model(nms: Path, cut: Path, tmp_path: Path) -> None:
    """Ports are told from each other by what they give, and a wrong weight in the part shows."""
    proto = onnx.load(nms)
    array = onnx.numpy_helper.to_array(proto.graph.initializer[-2]).copy()
    array[0] += 0.25
    proto.graph.initializer[-2].CopyFrom(onnx.numpy_helper.from_array(array, proto.graph.initializer[-2].name))
    changed = saved(proto, tmp_path / "changed.onnx")
    assert not porting.validate(cut, changed).ok


def test_one_shape_is_blocked_too_with_a_hint(nms: Path, run: Run) -> None:
    """A model of fixed shapes has no size for what NonMaxSuppression chooses; the report says how to leave it to the host."""
    code, out, _ = run("check", nms, "--target", P310, "--batch", 1, "--image-size", "32,32", "--quiet")
    assert code == 1 and options_in(out[out.index("host:") :]) == ["--outputs", "boxes", "--outputs", "scores"]
    code, out, _ = run(
        "check",
        nms,
        "--target",
        P310,
        "--batch",
        1,
        "--image-size",
        "32,32; 64,64",
        "--outputs",
        "boxes",
        "--outputs",
        "scores",
        "--json",
    )
    found = json.loads(out)
    assert code == 0 and found["details"]["cut_here"] == [] and found["details"]["cut_outputs"] == ["boxes", "scores"]


def blocked_at_the_end() -> onnx.ModelProto:
    """A spectrum of what a layer gives, which the rules block."""
    nodes = [
        node("MatMul", "x w", "p"),
        node("Relu", "p", "strong"),
        node("Unsqueeze", "strong last", "wide"),
        node("DFT", "wide", "waves", axis=1),
        node("Neg", "strong", "other"),
    ]
    shapes = {"other": [2, 8], "waves": [2, 8, 2]}
    return model(nodes, {"x": [2, 40]}, shapes, [weight("w", 40, 8), constant("last", [2], np.int64)])


def test_what_is_blocked_at_the_end_is_cut_off(tmp_path: Path, run: Run) -> None:
    path = saved(blocked_at_the_end(), tmp_path / "m.onnx")
    code, out, _ = run("port", path, "-o", tmp_path / "m.port", "--target", P310, "--quiet")
    assert code == 1
    typed = options_in(out[out.index("host:") :])
    assert typed == ["--outputs", "other", "--outputs", "wide"]
    with pytest.raises(UnsupportedModel) as caught:
        porting.convert(path, tmp_path / "m.port", P310)
    assert options_in(caught.value.next) == typed
    code, out, said = run("port", path, "-o", tmp_path / "m.port", "--target", P310, "--quiet", *typed)
    assert code == 0, said + out
    assert list(porting.open_port(tmp_path / "m.port").manifest["config"]["cut_outputs"]) == ["other", "wide"]


def test_a_fixed_input_stays_in_the_hint(tmp_path: Path) -> None:
    proto = detector()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("k", onnx.TensorProto.FLOAT, []))
    proto.graph.node[1].CopyFrom(node("Mul", "f k", "r"))
    with pytest.raises(UnsupportedModel) as caught:
        porting.convert(saved(proto, tmp_path / "m.onnx"), tmp_path / "m.port", P310, gears=GEARS, fix={"k": 0.5, "unused": 1})
    assert options_in(caught.value.next) == ["--fix", "k=0.5", "--fix", "unused=1", "--outputs", "boxes", "--outputs", "scores"]


# --- where a graph can end ----------------------------------------------------------------------------------------


def ends(proto: onnx.ModelProto, tmp_path: Path, *in_the_way: str, state: dict[str, str] | None = None) -> list[str]:
    source = OnnxFile(saved(proto, tmp_path / "m.onnx"), state=state)
    return last_values(canonical_graph(source).graph, in_the_way, value_names(source.graph()))


def test_outputs_of_the_file_that_stay_come_first(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "a"), node("NonZero", "a", "places"), node("Neg", "a", "b"), node("Mul", "b two", "y")]
    proto = model(nodes, {"x": [3]}, {"places": ([1, None], onnx.TensorProto.INT64), "y": [3]}, [constant("two", [2.0])])
    assert ends(proto, tmp_path, "places") == ["y", "a"]


def test_what_is_no_tensor_of_numbers_of_its_own_size_is_walked_past(tmp_path: Path) -> None:
    """A mask of truths, and what was chosen by numbers, are no outputs: what they are made of is."""
    nodes = [
        node("Relu", "x", "a"),
        node("Greater", "a zero", "mask"),
        node("NonZero", "mask", "places"),
        node("Cast", "places", "y", to=1),
    ]
    proto = model(nodes, {"x": [3]}, {"y": [1, None]}, [constant("zero", 0)])
    assert ends(proto, tmp_path, "places") == ["a"]
    unsized = [
        node("Relu", "x", "a"),
        node("NonZero", "a", "n"),
        node("Cast", "n", "f", to=1),
        node("Unique", "f", "y"),
    ]
    assert ends(model(unsized, {"x": [3]}, {"y": [None]}, []), tmp_path, "y") == ["a"]


def test_what_hangs_on_shapes_alone_is_no_output(tmp_path: Path) -> None:
    nodes = [
        node("Relu", "x", "a"),
        node("Shape", "a", "size"),
        node("NonZero", "a", "places"),
        node("Add", "places size", "y"),
    ]
    proto = model(nodes, {"x": ["n"]}, {"y": ([1, None], onnx.TensorProto.INT64)}, [])
    assert ends(proto, tmp_path, "places") == ["a"]


def test_what_a_branch_gives_back_as_it_is_is_read(tmp_path: Path) -> None:
    """A branch without a node, which passes make of one with an Identity."""
    ways = []
    for name in ("a", "b"):
        end = onnx.helper.make_tensor_value_info(f"same_{name}", onnx.TensorProto.FLOAT, [3])
        ways.append(onnx.helper.make_graph([node("Identity", name, f"same_{name}")], name, [], [end]))
    nodes = [
        node("Relu", "x", "a"),
        node("Neg", "a", "b"),
        node("If", "c", "y", name="way", then_branch=ways[0], else_branch=ways[1]),
    ]
    proto = model(nodes, {"x": [3], "c": ([], onnx.TensorProto.BOOL)}, {"y": [3]}, [])
    source = OnnxFile(saved(proto, tmp_path / "m.onnx"))
    graph = canonical_graph(source).graph
    (way,) = (found for found in graph.model.graph if found.op_type == "If")
    for body in (attribute.as_graph() for attribute in way.attributes.values()):
        for inner in list(body):
            body.outputs[0] = inner.inputs[0]
            body.remove(inner)
    assert last_values(graph, ["way"], value_names(source.graph())) == ["a", "b"]


def test_what_the_file_does_not_name_is_walked_past(tmp_path: Path) -> None:
    """Values that a pass made: nobody can type them."""
    nodes = [node("Relu", "x", "a"), node("Neg", "a", "b"), node("NonZero", "b", "places")]
    source = OnnxFile(saved(model(nodes, {"x": [3]}, {"places": ([1, None], onnx.TensorProto.INT64)}, []), tmp_path / "m.onnx"))
    graph = canonical_graph(source).graph
    assert last_values(graph, ["places"], {"a", "b"}) == ["b"] and last_values(graph, ["places"], {"a"}) == ["a"]


def test_no_cut_that_costs_the_model(tmp_path: Path) -> None:
    """Behind it lie the weights: a cut would leave nothing of worth."""
    nodes = [node("Relu", "x", "a"), node("NonMaxSuppression", "boxes a", "chosen"), node("Gather", "chosen two", "i", axis=1)]
    nodes += [node("Cast", "i", "f", to=1), node("Unsqueeze", "f last", "u"), node("MatMul", "u w", "y")]
    weights = [weight("boxes", 1, 5, 4), constant("two", 2, np.int64), constant("last", [1], np.int64), weight("w", 1, 500)]
    proto = model(nodes, {"x": [1, 2, 5]}, {"y": [None, 500]}, weights)
    assert ends(proto, tmp_path, "chosen") == []


def test_no_cut_that_loses_state_or_a_node_that_is_not_there(tmp_path: Path) -> None:
    nodes = [
        node("Add", "x h", "a"),
        node("NonZero", "a", "n"),
        node("Cast", "n", "y", to=1),
        node("ReduceSum", "y", "s", keepdims=0),
    ]
    nodes += [node("Mul", "h s", "hn")]
    proto = model(nodes, {"x": [3], "h": [3]}, {"y": [1, None], "hn": [3]}, [])
    assert ends(proto, tmp_path, "n", state={"h": "hn"}) == []
    assert ends(proto, tmp_path, "n") == ["a"] and ends(proto, tmp_path, "not there") == []


def test_nothing_is_left_where_the_first_node_is_in_the_way(tmp_path: Path) -> None:
    proto = model([node("NonZero", "x", "n"), node("Cast", "n", "y", to=1)], {"x": [3]}, {"y": [1, None]}, [])
    assert ends(proto, tmp_path, "n") == []


# --- fixed inputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [16, 8])
def test_an_input_that_chooses_a_branch_is_gone_and_so_is_the_other_branch(tmp_path: Path, rate: int, run: Run) -> None:
    path = saved(switched(), tmp_path / "m.onnx")
    port = tmp_path / "m.port"
    fixed = ["--fix", f"rate={rate}", "--fix", "gain=2.5", "--fix", "flag=true"]
    code, out, said = run("port", path, "-o", port, "--target", P310, "--dims", "4", "--quiet", *fixed)
    assert code == 0, said + out
    assert f"with rate = {rate}, gain = 2.5, flag = true" in " ".join(out.split())
    assert "If" not in {n.op_type for n in onnx.load(port / "model.onnx", load_external_data=False).graph.node}
    manifest = porting.open_port(port).manifest
    assert manifest["config"]["fixed_inputs"] == {"rate": rate, "gain": 2.5, "flag": True}
    assert len(handoffs_of(port)) == 1
    x = np.random.default_rng(0).standard_normal((4, 40)).astype(np.float32)
    with porting.load(port) as session:
        got = session.run({"x": x})
    w = onnx.numpy_helper.to_array(switched().graph.initializer[0])
    chosen = x @ w + (1 if rate == 16 else -1)
    np.testing.assert_allclose(got["y"], chosen * 2.5, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got["z"], chosen + 1, rtol=1e-4, atol=1e-4)
    porting.validate(port, path).require()
    assert not porting.validate(port, path, fix={"rate": 24 - rate, "gain": 2.5, "flag": True}).ok


def test_branches_of_a_part_are_all_taken(tmp_path: Path) -> None:
    """An If that stays: both branches of it, in the port and in the part of the file, which has no `flag` to be fed."""
    path = saved(switched(), tmp_path / "m.onnx")
    verdict = porting.port(path, tmp_path / "m.port", outputs=("y",), fix={"gain": 3}).require()
    assert verdict.details["not_reached"] == [] and verdict.details["cut_inputs"] == ["flag"]
    assert {"way = then", "way = else"} <= {run.split(",")[0] for run in verdict.details["runs"]}
    assert verdict.details["fixed_inputs"] == {"gain": 3}


def test_what_cannot_be_cut(tmp_path: Path, nms: Path, run: Run) -> None:
    torch = pytest.importorskip("torch")
    options: list[dict[str, Any]] = [{"outputs": ("y",)}, {"fix": {"x": 1}}]
    for given in options:
        with pytest.raises(UsageError, match=r"only an \.onnx file is cut"):
            porting.convert(torch.nn.Linear(2, 2), tmp_path / "m.port", example_inputs=(torch.zeros(1, 2),), **given)
        with pytest.raises(UsageError, match=r"only an \.onnx file is cut"):
            porting.convert(OnnxFile(nms), tmp_path / "m.port", **given)
        with pytest.raises(UsageError, match=r"only an \.onnx file is cut"):
            porting.check(tmp_path, P310, **given)
    code, _, said = run("convert", nms, "-o", tmp_path / "m.port", "--fix", "image")
    assert code == 2 and "--fix INPUT=NUMBER" in said
    code, _, said = run("record", nms, "-o", tmp_path / "g.json", "--outputs", "bokses")
    assert code == 2 and "did you mean 'boxes'" in said
    code, _, said = run("inspect", nms, "--outputs", "boxes")
    assert code == 2 and "No such option" in said
