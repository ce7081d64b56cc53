"""The files of exceptions: what is in them for which mode, and that each is read back as it was written."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from porting.ascend.graph_facts import GraphFacts, facts_of
from porting.ascend.overflow import forecast
from porting.ascend.precision import mode_for
from porting.ascend.side_file_formats import (
    OP_MODES,
    Custom,
    customize_dtypes_text,
    keep_dtype_text,
    mixlist_text,
    op_precision_text,
    read_customize_dtypes,
    read_keep_dtype,
    read_mixlist,
    read_op_precision,
    unsayable,
)
from porting.ascend.side_files import SideFiles, side_files
from porting.ascend.soc import find_soc
from porting.errors import InputError
from porting.types import Graph
from tests import overflowing_models as models
from tests.overflowing_models import WIDTH, feeds, model, program, tensor, value

P310, A2 = find_soc("Ascend310P3"), find_soc("Ascend910B3")
MIDDLE = ["scale", "shift", "back"]
node = helper.make_node


def facts(made) -> GraphFacts:
    from porting.converters.passes.infer_shapes import infer_shapes

    return facts_of(infer_shapes(Graph(ir.serde.deserialize_model(made)))[0])


def files_of(made, soc, precision: str = "fp16", mixed: bool = False, stored: str = "fp32") -> SideFiles:
    found = forecast(program(made), feeds(), soc=soc)
    return side_files(mode_for(soc, precision, mixed, stored), soc, facts(made), precision, found)


# --- what is in them -----------------------------------------------------------------------------------------------


def test_the_fp16_mode_reads_keep_dtype() -> None:
    made = files_of(models.mlp(), P310)
    assert [f.argument for f in made.files] == ["--keep_dtype=keep_dtype.cfg"] and not made.left_out
    assert made.files[0].text == "scale\nshift\nback\n" and made.files[0].nodes == tuple(MIDDLE)


def test_what_is_in_the_file_passes_the_forecast_when_it_is_kept() -> None:
    names, _ = read_keep_dtype(files_of(models.mlp(), P310).files[0].text)
    assert forecast(program(models.mlp()), feeds(), names, soc=P310).passes
    lines = read_customize_dtypes(files_of(models.mlp(), A2, stored="fp16").files[0].text)
    assert forecast(program(models.mlp()), feeds(), [line.key for line in lines], soc=A2).passes


def test_origin_ignores_keep_dtype_and_reads_customize_dtypes() -> None:
    assert [f.option for f in files_of(models.mlp(), A2).files] == ["keep_dtype"], (
        "a graph in float32 is compiled in the mode fp16"
    )
    made = files_of(models.mlp(), A2, stored="fp16")
    assert [f.option for f in made.files] == ["customize_dtypes"] and any("ignores --keep_dtype" in n for n in made.notes)
    assert made.files[0].text.splitlines()[0] == "scale::InputDtype:float32,float32,OutputDtype:float32"


def test_other_dtypes_stay_in_customize_dtypes() -> None:
    nodes = [
        node("Mul", ["x", "k"], ["a"], name="large"),
        node("Greater", ["x", "zero"], ["c"], name="positive"),
        node("Where", ["c", "a", "x"], ["b"], name="choose"),
        node("Div", ["b", "k"], ["y"], name="back"),
    ]
    made = files_of(model(nodes, [tensor("k", 6e4), tensor("zero", 0)], outputs=[value("y", ["n", WIDTH])]), A2, stored="fp16")
    assert "choose::InputDtype:bool,float32,float32,OutputDtype:float32" in made.files[0].text.splitlines()


def test_only_mixed_modes_read_a_mixlist() -> None:
    made = files_of(models.mlp(), P310, mixed=True)
    assert [f.option for f in made.files] == ["keep_dtype", "modify_mixlist"]
    assert json.loads(made.files[1].text) == {"black-list": {"to-add": ["Mul", "Add", "RealDiv"]}}
    assert any("every Mul, Add, RealDiv" in n for n in made.notes)
    assert "modify_mixlist" not in [f.option for f in files_of(models.mlp(), P310).files]


def test_what_cannot_be_kept_is_left_out_with_its_reason() -> None:
    made = files_of(models.large_product(), P310)
    assert made.files[0].nodes == ("back",) and "takes fp16 only" in made.left_out["product"]
    on_a2 = files_of(models.large_product(), A2, stored="fp16")
    assert on_a2.files[0].nodes == ("back",) and "in the graph itself" in on_a2.left_out["product"]


def test_names_that_no_file_can_hold_are_left_out() -> None:
    made = models.mlp()
    made.graph.node[1].name = "scope::scale"
    found = files_of(made, P310)
    assert found.files[0].nodes == ("shift", "back") and "characters" in found.left_out["scope::scale"]


def test_nodes_in_branches_are_left_out() -> None:
    large = helper.make_graph([node("Mul", ["x", "k"], ["t"], name="inside")], "then", [], [value("t", ["n", WIDTH])])
    plain = helper.make_graph([node("Neg", ["x"], ["e"], name="other")], "else", [], [value("e", ["n", WIDTH])])
    nodes = [node("If", ["c"], ["i"], then_branch=large, else_branch=plain), node("Div", ["i", "k"], ["y"], name="back")]
    weights = [tensor("k", 3e5), onnx.numpy_helper.from_array(np.array(True), "c")]
    found = files_of(model(nodes, weights, outputs=[value("y", ["n", WIDTH])]), P310)
    assert found.files[0].nodes == ("back",) and "body of a control flow" in found.left_out["inside"]


def test_sums_that_may_overflow_inside_ask_for_high_precision() -> None:
    nodes = [
        node("Mul", ["x", "k"], ["a"], name="enlarge"),
        node("LayerNormalization", ["a", "g"], ["l"], name="norm"),
        node("ReduceMean", ["x"], ["m"], name="small", axes=[1]),
        node("Add", ["l", "m"], ["y"], name="add"),
    ]
    made = model(nodes, [tensor("k", 300), tensor("g", [1] * WIDTH)], outputs=[value("y", ["n", WIDTH])])
    found = files_of(made, P310)
    assert [f.text for f in found.files] == ["[ByNodeName]\nnorm=high_precision\n"], (
        "300 squared; sums of 16 small numbers are no risk"
    )
    assert any("was not read" in n for n in found.notes)


def test_convolutions_in_fp32_ask_for_fp32_where_hf32_is_named_as_the_default() -> None:
    nodes = [node("Conv", ["x", "w"], ["a"], name="conv", kernel_shape=[1, 1]), node("Relu", ["a"], ["y"], name="relu")]
    made = model(nodes, [tensor("w", [[[[1.0]]]])], [value("x", [1, 1, 4, 4])], [value("y", [1, 1, 4, 4])])
    found = side_files(mode_for(A2, "fp32"), A2, facts(made), "fp32")
    assert [(f.argument, f.text) for f in found.files] == [
        ("--op_precision_mode=op_precision.ini", "[ByNodeName]\nconv=enable_float_32_execution\n")
    ]
    b4 = find_soc("Ascend310B4")
    assert not side_files(mode_for(b4, "fp32"), b4, facts(made), "fp32").files, "its page lists A2, A3 and 950"


def test_nothing_to_say_makes_no_file() -> None:
    made = model([node("Neg", ["x"], ["y"])], outputs=[value("y", ["n", WIDTH])])
    for soc in (P310, A2):
        assert files_of(made, soc) == SideFiles((), {}, ())


# --- round trips ---------------------------------------------------------------------------------------------------

NAMES = st.text(min_size=1, max_size=20).filter(lambda name: not unsayable(name) and not name.startswith("OpType::"))
TYPES = st.from_regex(r"[A-Z][a-zA-Z0-9]{0,9}", fullmatch=True)
DTYPES = st.lists(st.sampled_from(["float16", "float32", "bfloat16", "int64"]), min_size=1, max_size=4).map(tuple)
MODES = st.sampled_from(sorted(OP_MODES))


@given(st.lists(NAMES, max_size=6), st.lists(TYPES, max_size=6))
def test_keep_dtype_is_read_back(names: list[str], types: list[str]) -> None:
    assert read_keep_dtype(keep_dtype_text(names, types)) == (names, types)


@given(st.lists(st.builds(Custom, NAMES | TYPES.map("OpType::{}".format), DTYPES, DTYPES), max_size=6))
def test_customize_dtypes_is_read_back(lines: list[Custom]) -> None:
    assert read_customize_dtypes(customize_dtypes_text(lines)) == lines


@given(st.lists(TYPES, max_size=4), st.lists(TYPES, max_size=4))
def test_mixlist_is_read_back(black: list[str], white: list[str]) -> None:
    found = read_mixlist(mixlist_text(black, white))
    assert found.get("black-list", {}).get("to-add", []) == black and found.get("white-list", {}).get("to-add", []) == white


@given(st.dictionaries(TYPES, MODES, max_size=4), st.dictionaries(NAMES, MODES, max_size=4))
def test_op_precision_is_read_back(types: dict[str, str], names: dict[str, str]) -> None:
    assert read_op_precision(op_precision_text(types, names)) == (types, names)


def test_the_documented_examples_are_read() -> None:
    assert read_keep_dtype("Opname1\n\nOpType::Relu\n") == (["Opname1"], ["Relu"])
    assert read_customize_dtypes("fp32_vars/Relu::InputDtype:float16,OutputDtype:int8\n") == [
        Custom("fp32_vars/Relu", ("float16",), ("int8",))
    ]
    assert read_customize_dtypes("OpType::Relu:InputDtype:float16,OutputDtype:int8") == [
        Custom("OpType::Relu", ("float16",), ("int8",))
    ]
    assert read_mixlist('{"black-list": {"to-remove": ["OpTypeA"], "to-add": ["OpTypeB"]}}')["black-list"]["to-remove"] == [
        "OpTypeA"
    ]
    text = "[ByOpType]\noptype1=high_precision\n"
    with pytest.raises(InputError, match="no operator type"):  # the page's placeholder is no type: those are in PascalCase
        read_op_precision(text)
    assert read_op_precision("[ByNodeName]\nnodename1=high_performance\n") == ({}, {"nodename1": "high_performance"})


READERS = [read_keep_dtype, read_customize_dtypes, read_mixlist, read_op_precision]


@pytest.mark.parametrize("reader", READERS)
@given(
    text=st.text(max_size=60)
    | st.sampled_from(["[", "{}", "null", "[ByOpType]\nA", '{"black-list": 1}', "OpType::a", "a::b", "["])
)
def test_readers_take_anything_or_say_why_not(reader, text: str) -> None:
    with suppress(InputError):
        reader(text)


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a::b", "a=b", "[a", "#a", ";a", "a\u2028b", "a\x1c"])
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    for write in (keep_dtype_text, lambda n: customize_dtypes_text([Custom(*n, ("float32",), ("float32",))])):
        with pytest.raises(InputError):
            write([name])
    with pytest.raises(InputError):
        op_precision_text(by_name={name: "high_precision"})


def test_modes_and_types_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="no precision mode"):
        op_precision_text(by_name={"a": "highest"})
    for write in (lambda t: keep_dtype_text(types=t), mixlist_text):
        with pytest.raises(InputError, match="no operator type"):
            write(["batch_matmul"])
