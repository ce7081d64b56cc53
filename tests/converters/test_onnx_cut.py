"""Parts of .onnx files: where they end, inputs that are constants, and that port and original are the same part."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from detectors import detector, switched
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_files import BIG, branch, choice, external, model, node, plain_run, relu, saved, tensor, value, weight

import porting
from porting.converters.checkpoints.onnx_file import OnnxFile, read_proto
from porting.cuts import Cut, parse_fix
from porting.errors import CheckpointError, PortingError, UnsupportedModel, UsageError
from porting.original_onnx import OnnxOriginal

IMAGE = np.random.default_rng(0).standard_normal((2, 3, 32, 48)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)


@pytest.fixture(scope="module")
def nms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("nms"), detector())


@pytest.fixture(scope="module")
def rate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("rate"), switched())


def names(source: OnnxFile) -> tuple[list[str], list[str]]:
    return [spec.name for spec in source.inputs], [spec.name for spec in source.outputs]


def ran(source: OnnxFile, **feeds: Any) -> dict[str, Any]:
    original = source.original()
    try:
        return original.run(feeds)
    finally:
        original.close()


def tapped(path: Path, outputs: list[str], feeds: dict[str, Any]) -> dict[str, Any]:
    """Values of the whole file in plain onnxruntime, made outputs by hand."""
    proto = onnx.load(path)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return {
        name: found for name, found in plain_run(saved(path.parent, proto, "tapped.onnx"), feeds).items() if name in outputs
    }


# --- outputs ------------------------------------------------------------------------------------------------------


def test_only_what_is_asked_for_is_left_in_the_order_asked(nms: Path) -> None:
    source = OnnxFile(nms, outputs=("scores", "boxes"))
    assert names(source) == (["image"], ["scores", "boxes"])
    assert [str(spec) for spec in source.outputs] == ["scores: float32[batch, 3, None]", "boxes: float32[batch, None, 4]"]
    graph = source.graph().model.graph
    assert not {"NonMaxSuppression", "Mul"} & {n.op_type for n in graph} and [v.name for v in graph.outputs] == [
        "scores",
        "boxes",
    ]
    assert {"scale", "most", "overlap", "least", "two"}.isdisjoint(graph.initializers)
    facts = {name: source.facts[name] for name in ("cut_outputs", "cut_inputs")}
    assert facts == {"cut_outputs": ["scores", "boxes"], "cut_inputs": ["unused"]} and "fixed_inputs" not in source.facts
    left_out = {entry["name"] for entry in source.accounting()["dropped"] if "cut down" in entry["reason"]}
    assert left_out == {"scale", "most", "overlap", "least", "two"}
    got = ran(source, image=IMAGE)
    wanted = tapped(nms, ["boxes", "scores"], {"image": IMAGE, "unused": np.zeros(1, np.float32)})
    assert list(got) == ["scores", "boxes"] and all(np.array_equal(got[n], wanted[n]) for n in wanted)


def test_a_node_stands_for_its_output(nms: Path) -> None:
    source = OnnxFile(nms, outputs=("turned",))
    assert names(source) == (["image"], ["scores"]) and source.facts["cut_outputs"] == ["scores"]
    with pytest.raises(UsageError, match="'heads' has 2 outputs") as caught:
        OnnxFile(nms, outputs=("heads",))
    assert "raw_boxes, raw_scores" in caught.value.next


def test_a_node_without_a_name_has_the_one_that_reports_give_it(tmp_path: Path) -> None:
    path = saved(tmp_path, model([relu(target="a"), node("Sigmoid", ["a"], ["y"])]))
    assert [n.name for n in read_proto(path).graph.node] == ["Relu/a", "Sigmoid/y"]
    assert names(OnnxFile(path, outputs=["Relu/a"]))[1] == ["a"]


def test_nothing_is_said_of_files_that_are_not_cut(nms: Path) -> None:
    source = OnnxFile(nms)
    assert not source.cut and not {"cut_outputs", "cut_inputs", "fixed_inputs"} & set(source.facts)
    assert names(source) == (["image", "unused"], ["result", "chosen"])
    assert OnnxOriginal(nms).description.endswith("on the untouched file, no graph optimisations")


def test_the_reference_says_what_it_is(rate: Path) -> None:
    source = OnnxFile(rate, outputs=("y",), fix={"rate": 16, "gain": 2.5})
    assert "on the untouched file up to y, with rate = 16, gain = 2.5, no graph" in source.original().description


@pytest.mark.parametrize(
    ("output", "says", "helps"),
    [
        ("boxs", "no value 'boxs'", "did you mean 'boxes'"),
        ("image", "'image' is an input", ""),
        ("w1", "'w1' is a weight", ""),
        ("", "no value ''", "known: "),
    ],
)
def test_what_is_no_output(nms: Path, output: str, says: str, helps: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        OnnxFile(nms, outputs=(output,))
    assert helps in caught.value.next and len(str(caught.value)) < 1000


def test_an_output_twice_is_refused(nms: Path) -> None:
    for outputs in (("boxes", "boxes"), ("scores", "turned")):
        with pytest.raises(UsageError, match="named twice"):
            OnnxFile(nms, outputs=outputs)
    with pytest.raises(UsageError, match="sequence of names"):
        OnnxFile(nms, outputs="boxes")


def test_a_graph_does_not_end_inside_a_branch(rate: Path) -> None:
    with pytest.raises(UsageError, match="'inner_Sub' is inside the If 'way'") as caught:
        OnnxFile(rate, outputs=("inner_Sub",))
    assert "chosen" in caught.value.next


def test_what_reads_nothing_that_is_fed_is_no_model(nms: Path, rate: Path) -> None:
    with pytest.raises(UsageError, match="is16: nothing that is fed reaches what is left once rate is fixed"):
        OnnxFile(rate, outputs=("is16",), fix={"rate": 16})
    assert names(OnnxFile(rate, outputs=("is16",)))[0] == ["rate"]


def test_what_a_branch_reads_stays(rate: Path) -> None:
    source = OnnxFile(rate, outputs=("chosen",))
    assert names(source) == (["x", "rate"], ["chosen"]) and source.facts["cut_inputs"] == ["gain", "flag"]
    whole = {"x": X, "rate": np.array(16), "gain": np.ones(1, np.float32), "flag": np.array(False)}
    assert np.array_equal(ran(source, x=X, rate=np.array(16))["chosen"], plain_run(rate, whole)["y"])


def test_what_is_cut_off_need_not_be_known(tmp_path: Path) -> None:
    """An operator of a vendor at the end, a weight that is not there, random numbers without a seed: none of it is in the part that is left."""
    nodes = [
        node("Add", ["x", "w"], ["a"]),
        node("Fancy_TRT", ["a"], ["b"], domain="TRT"),
        node("Add", ["b", "lost"], ["c"]),
        node("RandomNormalLike", ["c"], ["y"]),
    ]
    tensors = [weight("w"), external("lost", "nowhere.bin")]
    made = model(nodes, [value("x", BIG)], [value("y", BIG)], tensors, opsets=(("", 17), ("TRT", 1)))
    path = saved(tmp_path, made)
    with pytest.raises((CheckpointError, UnsupportedModel)):
        OnnxFile(path)
    source = OnnxFile(path, outputs=("a",))
    x = np.ones(BIG, np.float32)
    assert np.array_equal(ran(source, x=x)["a"], x + onnx.numpy_helper.to_array(made.graph.initializer[0]))
    assert [f.name for f in source.files] == ["m.onnx"]
    with pytest.raises((CheckpointError, UnsupportedModel)):
        OnnxFile(path, outputs=("c",))


def test_weights_stay_where_they_lie(tmp_path: Path) -> None:
    """Weights in two other files and in the file itself; the file of what is cut off is none of the port's."""
    rng = np.random.default_rng(0)
    held = {name: rng.standard_normal(BIG).astype(np.float32) for name in ("first", "last", "own")}
    for name in ("first", "last"):
        (tmp_path / f"{name}.bin").write_bytes(held[name].tobytes())
    tensors = [external(n, f"{n}.bin", offset=0, length=held[n].nbytes) for n in ("first", "last")] + [
        tensor("own", held["own"])
    ]
    nodes = [node("Add", ["x", "first"], ["a"]), node("Mul", ["a", "own"], ["b"]), node("Add", ["b", "last"], ["y"])]
    path = saved(tmp_path, model(nodes, [value("x", BIG)], [value("y", BIG)], tensors))
    source = OnnxFile(path, outputs=("b",))
    assert [f.name for f in source.files] == ["m.onnx", "first.bin"]
    x = rng.standard_normal(BIG).astype(np.float32)
    assert np.array_equal(ran(source, x=x)["b"], (x + held["first"]) * held["own"])
    assert sum(len(t.raw_data) for t in read_proto(path, source.cut).graph.initializer) == 0


def test_a_file_in_a_cache_of_links(tmp_path: Path) -> None:
    """As download caches keep models: every name is a link to a blob, and weights are read through that."""
    ones = np.ones(BIG, np.float32)
    tensors = [weight("w"), external("v", "v.bin", length=ones.nbytes)]
    nodes = [node("Add", ["x", "w"], ["b"]), node("Add", ["b", "v"], ["a"]), relu("a")]
    saved(tmp_path / "blobs", model(nodes, [value("x", BIG)], [value("y", BIG)], tensors), "1f2e")
    (tmp_path / "blobs" / "3c4d").write_bytes(ones.tobytes())
    (tmp_path / "snapshot").mkdir()
    os.symlink("../blobs/3c4d", tmp_path / "snapshot" / "v.bin")
    path = tmp_path / "snapshot" / "m.onnx"
    os.symlink("../blobs/1f2e", path)
    got = ran(OnnxFile(path, outputs=("a",)), x=ones)["a"]
    assert np.array_equal(np.maximum(got, 0), plain_run(path, {"x": ones})["y"])
    assert porting.port(path, tmp_path / "whole.port").ok  # its noise is measured on the file, read through the links


def test_a_value_inside_a_function_has_its_name_once_it_is_inlined(tmp_path: Path) -> None:
    body = [node("Sigmoid", ["p"], ["q"]), node("Relu", ["q"], ["r"])]
    function = onnx.helper.make_function("own", "Two", ["p"], ["r"], body, [onnx.helper.make_opsetid("", 17)])
    made = model([node("Two", ["x"], ["y"], domain="own", name="call")], opsets=(("", 17), ("own", 1)), functions=[function])
    path = saved(tmp_path, made)
    inner = next(n.output[0] for n in read_proto(path).graph.node if n.op_type == "Sigmoid")
    x = np.ones((2, 3), np.float32)
    source = OnnxFile(path, outputs=(inner,))
    assert [n.op_type for n in source.graph().model.graph] == ["Sigmoid"]
    assert np.allclose(ran(source, x=x)[inner], 1 / (1 + np.exp(-1)))
    assert np.allclose(ran(OnnxFile(path, outputs=("call",)), x=x)["y"], 1 / (1 + np.exp(-1)))


def test_functions_that_others_call_stay(tmp_path: Path) -> None:
    opset = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("own", 1)]
    inner = onnx.helper.make_function("own", "Inner", ["p"], ["q"], [node("Neg", ["p"], ["q"])], opset)
    outer = onnx.helper.make_function("own", "Outer", ["p"], ["q"], [node("Inner", ["p"], ["q"], domain="own")], opset)
    nodes = [node("Outer", ["x"], ["a"], domain="own"), relu("a")]
    path = saved(tmp_path, model(nodes, opsets=(("", 17), ("own", 1)), functions=[inner, outer]))
    x = np.ones((2, 3), np.float32)
    assert (ran(OnnxFile(path, outputs=("a",)), x=x)["a"] == -1).all()


def test_functions_that_nothing_calls_any_more_need_not_be_known(tmp_path: Path) -> None:
    strange = onnx.helper.make_function(
        "own", "Strange", ["p"], ["q"], [node("What", ["p"], ["q"], domain="who")], [onnx.helper.make_opsetid("who", 1)]
    )
    made = model(
        [relu(target="a"), node("Strange", ["a"], ["y"], domain="own")], opsets=(("", 17), ("own", 1)), functions=[strange]
    )
    path = saved(tmp_path, made)
    with pytest.raises(UnsupportedModel, match="who"):
        OnnxFile(path)
    assert names(OnnxFile(path, outputs=("a",)))[1] == ["a"]


def test_the_dtype_of_a_value_behind_an_operator_of_onnxruntime(tmp_path: Path) -> None:
    """ONNX's inference knows nothing of it, and the file says nothing: onnxruntime does."""
    nodes = [node("Gelu", ["x"], ["a"], domain="com.microsoft"), node("Cast", ["a"], ["h"], to=10), relu("h", "b")]
    nodes += [node("Cast", ["b"], ["y"], to=1)]
    path = saved(
        tmp_path, model(nodes, [value("x", ["n", 3])], [value("y", ["n", 3])], opsets=(("", 17), ("com.microsoft", 1)))
    )
    source = OnnxFile(path, outputs=("a", "b"))
    assert [(s.name, s.dtype, len(s.shape)) for s in source.outputs] == [("a", "float32", 2), ("b", "float16", 2)]
    assert source.graph().model.graph.outputs[1].dtype.numpy() == np.float16


def test_state_of_a_part(tmp_path: Path) -> None:
    nodes = [node("Add", ["x", "h"], ["hn"]), relu("hn", "a"), relu("a", "y")]
    path = saved(tmp_path, model(nodes, [value("x"), value("h")], [value("y"), value("hn")]))
    source = OnnxFile(path, state={"h": "hn"}, outputs=("a", "hn"))
    assert [(p.input, p.output) for p in source.graph().state.pairs] == [("h", "hn")]
    with pytest.raises(UsageError, match="no output 'hn'"):
        OnnxFile(path, state={"h": "hn"}, outputs=("a",))
    with pytest.raises(UsageError, match="no input 'rate'"):
        OnnxFile(saved(tmp_path, switched(), "other.onnx"), state={"rate": "y"}, fix={"rate": 16})


# --- fixed inputs -------------------------------------------------------------------------------------------------


def test_inputs_that_are_fixed_are_constants_in_graph_and_original(rate: Path) -> None:
    source = OnnxFile(rate, fix={"rate": 16, "gain": 2, "flag": True})
    assert names(source) == (["x"], ["y", "z"])
    assert source.facts["fixed_inputs"] == {"rate": 16, "gain": 2, "flag": True} and "cut_outputs" not in source.facts
    whole = {"x": X, "rate": np.array(16), "gain": np.full(1, 2, np.float32), "flag": np.array(True)}
    wanted, got = plain_run(rate, whole), ran(source, x=X)
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted)
    other = ran(OnnxFile(rate, fix={"rate": np.int32(8), "gain": np.array([2.0]), "flag": False}), x=X)
    assert not np.array_equal(other["y"], wanted["y"]) and not np.array_equal(other["z"], wanted["z"])


@pytest.mark.parametrize("ir_version", [3, 8])
def test_a_default_of_the_file_is_another_number(tmp_path: Path, ir_version: int) -> None:
    inputs = [value("x"), value("k", [1])]
    made = model(
        [node("Mul", ["x", "k"], ["y"])], inputs, tensors=[tensor("k", np.full(1, 3, np.float32))], ir_version=ir_version
    )
    path = saved(tmp_path, made)
    x = np.ones((2, 3), np.float32)
    assert (ran(OnnxFile(path), x=x)["y"] == 3).all()
    source = OnnxFile(path, fix={"k": 5.0})
    assert (ran(source, x=x)["y"] == 5).all() and names(source)[0] == ["x"] and source.facts["constant_inputs"] == []


@pytest.mark.parametrize(
    ("name", "number", "says"),
    [
        ("rat", 16, "no input 'rat'"),
        ("y", 16, "no input 'y'"),
        ("rate", 16.0, "16.0 is no int64"),
        ("rate", True, "true is no int64"),
        ("rate", 2**63, "out of range for int64"),
        ("gain", False, "false is no float"),
        ("gain", 1e39, "out of range for float"),
        ("flag", 1, "1 is no bool"),
        ("x", 1.0, r"one number can be fixed, and this is \[rows, 40\]"),
        ("rate", float("nan"), "no finite number"),
        ("rate", "16", "no finite number"),
        ("rate", [1, 2], "no finite number"),
        ("rate", None, "no finite number"),
    ],
)
def test_what_cannot_be_fixed(rate: Path, name: str, number: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        OnnxFile(rate, fix={name: number})
    assert name != "rat" or "did you mean 'rate'" in caught.value.next


def test_an_input_of_unknown_size_or_kind_is_not_fixed(tmp_path: Path) -> None:
    nodes = [node("Add", ["x", "k"], ["y"])]
    for shape, says in ((["n"], r"\[n\]"), ([None], r"\[\?\]"), (None, "unknown rank"), ([0], r"\[0\]")):
        path = saved(tmp_path, model(nodes, [value("x"), value("k", shape)]))
        with pytest.raises(UsageError, match=says):
            OnnxFile(path, fix={"k": 1.0})
    path = saved(
        tmp_path, model([node("Identity", ["t"], ["s"]), relu()], [value("x"), value("t", [1], onnx.TensorProto.STRING)])
    )
    with pytest.raises(UsageError, match="only an input of numbers"):
        OnnxFile(path, fix={"t": 1})


@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16", "DOUBLE", "UINT8", "INT8", "UINT64", "INT16", "BOOL"])
def test_a_fixed_input_keeps_its_dtype(tmp_path: Path, dtype: str) -> None:
    kind = onnx.TensorProto.DataType.Value(dtype)
    path = saved(
        tmp_path,
        model([node("Cast", ["k"], ["c"], to=1), node("Add", ["x", "c"], ["y"])], [value("x"), value("k", [1, 1], kind)]),
    )
    source = OnnxFile(path, fix={"k": dtype == "BOOL" or 3})
    (made,) = (n for n in source.graph().model.graph if n.op_type == "Constant")
    assert made.attributes["value"].as_tensor().dtype.name == dtype and tuple(made.attributes["value"].as_tensor().shape) == (
        1,
        1,
    )
    assert (ran(source, x=np.zeros((2, 3), np.float32))["y"] == (1 if dtype == "BOOL" else 3)).all()


def test_a_condition_that_is_fixed_with_weights_in_the_branches(tmp_path: Path) -> None:
    """The If stays in the original: onnxruntime crashes where it puts a branch with weights of a file in its place."""
    big = np.ones(BIG, np.float32)
    ways = [branch([node("Add", ["x", f"w{i}"], [f"o{i}"])], f"o{i}", [tensor(f"w{i}", big * i)]) for i in (1, 2)]
    made = model([choice(*ways)], [value("x", BIG), value("c", [], onnx.TensorProto.BOOL)], [value("y", BIG)])
    path = saved(tmp_path, made)
    for flag, wanted in ((True, 1), (False, 2)):
        source = OnnxFile(path, fix={"c": flag})
        assert (ran(source, x=big * 0)["y"] == wanted).all()
        forced = OnnxOriginal(path, {"If/y": not flag}, cut=source.cut)
        assert (forced.run({"x": big * 0})["y"] == 3 - wanted).all() and forced.description.endswith("1 If nodes forced")


# --- any names and numbers ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_part_computes_what_the_whole_does_there(nms: Path, data: st.DataObject) -> None:
    values = [o for n in onnx.load(nms).graph.node for o in n.output]
    chosen = data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=4, unique=True))
    source = OnnxFile(nms, outputs=chosen)
    assert names(source) == (["image"], chosen)
    got = ran(source, image=IMAGE)
    wanted = _every_value(nms)
    assert all(np.array_equal(got[name], wanted[name]) for name in chosen)
    makes = {o for n in source.graph().model.graph for o in (v.name for v in n.outputs)}
    assert set(chosen) <= makes


def _every_value(path: Path) -> dict[str, Any]:
    if path not in _values:
        made = [o for n in onnx.load(path).graph.node for o in n.output if o not in ("result", "chosen")]
        feeds = {"image": IMAGE, "unused": np.zeros(1, np.float32)}
        _values[path] = {**tapped(path, made, feeds), **plain_run(path, feeds)}
    return _values[path]


_values: dict[Path, dict[str, Any]] = {}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.text(max_size=12), max_size=3),
    st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=3)), max_size=2),
)
def test_any_names_are_a_cut_or_an_error_of_ours(rate: Path, outputs: list[str], fix: dict[str, Any]) -> None:
    if not outputs and not fix:
        return
    with pytest.raises(PortingError) as caught:
        OnnxFile(rate, outputs=outputs, fix=fix)
    assert caught.value.exit_code == 2 and all(line.isprintable() for line in str(caught.value).split("\n"))


@settings(max_examples=60, deadline=None)
@given(st.integers(-(2**70), 2**70))
def test_any_whole_number_fits_or_is_refused(rate: Path, number: int) -> None:
    if -(2**63) <= number < 2**63:
        graph = OnnxFile(rate, fix={"rate": number}).graph().model.graph
        made = next(n for n in graph if n.op_type == "Constant" and n.outputs[0].name == "rate")
        assert made.attributes["value"].as_tensor().numpy().item() == number
    else:
        with pytest.raises(UsageError, match="out of range"):
            OnnxFile(rate, fix={"rate": number})


@settings(max_examples=100, deadline=None)
@given(
    st.text("ab=", min_size=1, max_size=5).filter(lambda n: n.strip()),
    st.one_of(st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False), st.booleans()),
)
def test_what_is_typed_is_what_is_meant(name: str, number: Any) -> None:
    shown = str(Cut((), {name: number})).removeprefix(f"with {name} = ")
    found = parse_fix([f"{name}={shown}"])
    assert found == {name: number} and type(found[name]) is type(number)


@pytest.mark.parametrize("text", ["", "a", "=1", "a=", "a=x", "a=nan", "a=inf", "a=1_0", "a=0x10", "a=True", "a=1,2"])
def test_what_is_typed_and_means_nothing(text: str) -> None:
    with pytest.raises(UsageError, match="not an input and a number"):
        parse_fix([text])
    with pytest.raises(UsageError, match="given twice"):
        parse_fix(["a=1", "a=2"])
