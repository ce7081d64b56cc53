"""Shapes that a port is compiled for: from what a user types to ATC's options and back, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from porting.ascend.gear_options import shapes_of
from porting.ascend.gears import Gears, Request, from_json, gears_for, gears_of_sizes
from porting.ascend.graph_facts import GraphFacts, facts_of
from porting.ascend.soc import find_soc
from porting.errors import InputError, PortingError, UnsupportedModel, UsageError
from porting.types import ANY_SHAPE, Graph, TensorSpec

P310, A2, S950 = find_soc("Ascend310P3"), find_soc("Ascend910B3"), find_soc("Ascend950PR_9599")
IMAGE = TensorSpec("x", "float32", ("n", 3, "h", "w"))
BERT = (TensorSpec("ids", "int64", ("batch", "seq")), TensorSpec("mask", "int64", ("batch", "seq")))
SCALAR = TensorSpec("alpha", "float32", ())


def gears(inputs: Sequence[TensorSpec], named: str = "", **request: str) -> Gears:
    return gears_for(inputs, P310, Request(named=named, **request))


# --- what comes out ----------------------------------------------------------------------------------------------


def test_batches_of_images_and_their_sizes() -> None:
    info = TensorSpec("info", "float32", ("n", 4))
    made = gears([TensorSpec("data", "float32", ("n", 3, 416, 416)), info], batch="1,2,4,8")
    assert made.kind == "dynamic_batch_size"
    assert made.options == {
        "input_shape": "data:-1,3,416,416;info:-1,4",
        "input_format": "NCHW",
        "dynamic_batch_size": "1,2,4,8",
    }
    assert made.shapes[2] == {"data": (4, 3, 416, 416), "info": (4, 4)}
    assert made.largest == made.shapes[3]


def test_image_sizes() -> None:
    made = gears([TensorSpec("x", "float32", (8, 3, "h", "w"))], image_size="416,416; 832,832")
    assert made.options["dynamic_image_size"] == "416,416;832,832" and made.options["input_shape"] == "x:8,3,-1,-1"
    assert made.options["input_format"] == "NCHW" and made.shapes[1] == {"x": (8, 3, 832, 832)}


def test_a_batch_beside_image_sizes_is_fixed() -> None:
    made = gears([IMAGE], batch="2", image_size="224,224;448,448")
    assert made.kind == "dynamic_image_size" and made.options["input_shape"] == "x:2,3,-1,-1"
    made = gears([IMAGE], batch="1,2", image_size="224,224")
    assert made.kind == "dynamic_batch_size" and made.options["input_shape"] == "x:-1,3,224,224"


def test_dims_are_one_number_per_free_dimension_in_order() -> None:
    inputs = [
        TensorSpec("data", "float32", (1, 1, 40, "t")),
        TensorSpec("label", "int64", (1, "u")),
        TensorSpec("mask", "int64", ("v", "v")),
    ]
    made = gears(inputs, dims="20,20,1,1;40,40,2,2;80,60,4,4")
    assert made.options == {
        "input_shape": "data:1,1,40,-1;label:1,-1;mask:-1,-1",
        "input_format": "ND",
        "dynamic_dims": "20,20,1,1;40,40,2,2;80,60,4,4",
    }
    assert made.shapes[2] == {"data": (1, 1, 40, 80), "label": (1, 60), "mask": (4, 4)}


def test_by_name_what_never_differs_is_fixed() -> None:
    made = gears([*BERT, SCALAR], "batch=1,seq=64; batch=1,seq=128;seq = 384 ,batch=1")
    assert made.kind == "dynamic_dims" and made.options["input_shape"] == "ids:1,-1;mask:1,-1;alpha:"
    assert made.options["dynamic_dims"] == "64,64;128,128;384,384"
    assert made.shapes[0] == {"ids": (1, 64), "mask": (1, 64), "alpha": ()}


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        ("n=1,h=2,w=3", "fixed"),
        ("n=1,h=2,w=3;n=2,h=2,w=3", "dynamic_batch_size"),
        ("n=1,h=2,w=3;n=1,h=2,w=4", "dynamic_image_size"),  # the height is -1 too, and always 2
        ("n=1,h=2,w=3;n=2,h=2,w=4", "dynamic_dims"),
    ],
)
def test_by_name_the_narrowest_kind_is_taken(named: str, kind: str) -> None:
    made = gears([IMAGE], named)
    assert made.kind == kind and shapes_of(made.options) == (kind, made.shapes)


def test_image_sizes_beside_an_input_of_another_rank() -> None:
    other = TensorSpec("rows", "float32", ("n", 4, "c"))  # free at axis 2, and no image
    assert gears([IMAGE, other], "n=1,c=5,h=2,w=3;n=1,c=5,h=4,w=3").kind == "dynamic_image_size"


def test_a_width_that_differs_alone_is_dynamic_dims() -> None:
    made = gears([TensorSpec("x", "float32", (1, 3, 48, "w"))], "w=160;w=320")
    assert made.options == {"input_shape": "x:1,3,48,-1", "input_format": "ND", "dynamic_dims": "160;320"}


def test_one_shape_is_no_gear() -> None:
    made = gears([TensorSpec("x", "float32", (1, 3, 8, 8)), SCALAR])
    assert made.kind == "fixed" and made.options == {"input_shape": "x:1,3,8,8;alpha:", "input_format": "NCHW"}
    assert gears(BERT, "batch=1,seq=64").options == {"input_shape": "ids:1,64;mask:1,64", "input_format": "ND"}


def test_how_many_gears_hangs_on_the_chip() -> None:
    batches = ",".join(str(n) for n in range(1, 257))
    x = [TensorSpec("x", "float32", ("n", 4))]
    assert len(gears_for(x, S950, Request(batch=batches)).shapes) == 256
    with pytest.raises(UsageError, match=r"256 gears, and ATC takes 100 at most \(ATC: E10036\)"):
        gears_for(x, A2, Request(batch=batches))


def test_advice() -> None:
    assert "2048" in gears([TensorSpec("x", "float32", ("n",))], batch="1,4096").advice()[0]
    assert "3 or 4 gears" in gears(BERT, ";".join(f"batch=1,seq={n}" for n in range(1, 7))).advice()[0]
    assert gears(BERT, "batch=1,seq=8;batch=1,seq=9").advice() == ()


# --- a run is a gear, or refused ---------------------------------------------------------------------------------


def test_a_run_that_is_no_gear_is_refused() -> None:
    made = gears(BERT, "batch=1,seq=64;batch=1,seq=128")
    feeds = {"ids": np.zeros((1, 64), np.int64), "mask": np.zeros((1, 64), np.int64)}
    assert made.gear_for(feeds) == {"ids": (1, 64), "mask": (1, 64)}
    with pytest.raises(
        InputError, match=r"no gear has the shapes ids \[1, 65\].* compiled for ids \[1, 64\].* \| ids \[1, 128\]"
    ):
        made.gear_for({"ids": (1, 65), "mask": (1, 65)})
    with pytest.raises(InputError, match="no gear"):  # each alone is in a gear, and together they are in none
        made.gear_for({"ids": (1, 64), "mask": (1, 128)})
    with pytest.raises(InputError, match="'mask' differs"):
        made.gear_for({"ids": (1, 64)})


# --- refused -----------------------------------------------------------------------------------------------------

SQUARE = [TensorSpec("x", "float32", (1, 3, "s", "s"))]
REFUSED = {
    "left open": ([IMAGE], Request(), "axis 0 .n. of input 'x' is left open"),
    "left open beside a batch": ([IMAGE], Request(batch="1,2"), "axis 2 .h. of input 'x' is left open"),
    "two options": ([IMAGE], Request(batch="1", dims="1,2,3"), "--batch and --dims exclude each other .ATC: E10009"),
    "two gears each": ([IMAGE], Request(batch="1,2", image_size="1,1;2,2"), "exclude each other .ATC: E10009"),
    "names and sizes": ([IMAGE], Request(image_size="1,1", named="n=1"), "--image-size and --gears exclude"),
    "batch elsewhere": ([TensorSpec("m", "float32", ("n", "n"))], Request(batch="1,2"), "only axis 0 may be -1.*E10018"),
    "no batch": ([TensorSpec("x", "float32", (1, "s"))], Request(batch="1,2"), "no input leaves that open"),
    "no image": (BERT, Request(image_size="1,1;2,2"), "no input leaves that open"),
    "height is fixed": (
        [TensorSpec("x", "float32", (1, 3, 48, "w"))],
        Request(image_size="32,160;32,320"),
        "axis 2 .* to be 32",
    ),
    "only the width": ([TensorSpec("x", "float32", (1, 3, 48, "w"))], Request(image_size="48,160;48,320"), "E10019"),
    "not square": (SQUARE, Request(image_size="224,448;448,448"), "s is 224 in x.2. and 448 in x.3."),
    "contradiction": (BERT, Request(dims="1,64,1,128;1,64,1,64"), "seq is 64 in ids.1. and 128 in mask.1."),
    "twice": (BERT, Request(named="batch=1,seq=8;seq=8,batch=1"), "twice.*E10039"),
    "too few numbers": (BERT, Request(dims="1,64;1,128"), "2 numbers, the inputs have 4 free dimensions"),
    "unknown name": (BERT, Request(named="batch=1,sequence=8"), "no input has a free dimension 'sequence'"),
    "name missing": (BERT, Request(named="batch=1;batch=2"), "seq. of input 'ids' is left open"),
    "name twice": (BERT, Request(named="batch=1,seq=3,seq=4"), "twice in a gear"),
    "zero": ([TensorSpec("x", "float32", ("n",))], Request(batch="0,1"), "'0' is no size"),
    "negative": ([TensorSpec("x", "float32", ("n",))], Request(batch="-1,1"), "'-1' is no size"),
    "no number": (BERT, Request(named="batch=1,seq=x"), "'x' is no size"),
    "a range": ([TensorSpec("x", "float32", ("n",))], Request(batch="1~8"), "'1~8' is no size"),
    "other digits": ([TensorSpec("x", "float32", ("n",))], Request(batch="²"), "is no size"),
    "three sizes": ([IMAGE], Request(batch="1", image_size="1,2,3"), "height,width .ATC: E10020"),
    "an empty gear": (BERT, Request(named="batch=1,seq=8;"), "is no name=size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    inputs, request, message = REFUSED[case]
    with pytest.raises(UsageError, match=message):
        gears_for(inputs, P310, request)


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("x", "string", ("n",)),
        TensorSpec("x", "float32", ANY_SHAPE),
        TensorSpec("x", "sequence(float32)", ("n",)),
        TensorSpec("x", "float32", ("n", 0)),
        TensorSpec("a;b", "float32", ("n",)),
        TensorSpec("a b", "float32", ("n",)),
    ],
)
def test_inputs_that_cannot_have_gears(spec: TensorSpec) -> None:
    with pytest.raises(InputError):
        gears([spec], batch="1,2")


def test_aipp_and_quantised_graphs_do_not_go_with_every_kind() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        gears_for(BERT, P310, Request(named="batch=1,seq=8;batch=1,seq=9"), aipp=["ids"])
    with pytest.raises(UsageError, match="AMCT"):
        gears_for(BERT, P310, Request(named="batch=1,seq=8;batch=2,seq=8"), quantised=True)
    assert gears_for([IMAGE], P310, Request(batch="1,2", image_size="8,8"), aipp=["x"]).kind == "dynamic_batch_size"
    assert gears_for(BERT, P310, Request(named="batch=1,seq=8"), quantised=True).kind == "fixed"


def facts_with(op: str) -> GraphFacts:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    out = helper.make_tensor_value_info("y", TensorProto.INT64 if op == "NonZero" else TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], name="culprit")], "g", [x], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return facts_of(Graph(ir.from_proto(model)))


def test_sizes_that_hang_on_numbers_take_no_gears() -> None:
    x = [TensorSpec("x", "float32", ("n", 4))]
    with pytest.raises(UnsupportedModel, match=r"culprit .NonZero."):
        gears_for(x, P310, Request(batch="1,2"), facts_with("NonZero"))
    assert gears_for(x, P310, Request(batch="1"), facts_with("NonZero")).kind == "fixed"
    assert gears_for(x, P310, Request(batch="1,2"), facts_with("Relu")).kind == "dynamic_batch_size"


# --- the options mean the shapes ---------------------------------------------------------------------------------

NAMES = ("a", "b", "c", "d")
INPUTS = st.lists(
    st.tuples(
        st.sampled_from(("float32", "int64")), st.lists(st.one_of(st.sampled_from(NAMES), st.integers(1, 9)), max_size=5)
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(INPUTS, st.lists(st.lists(st.integers(1, 3), min_size=4, max_size=4), min_size=1, max_size=6, unique_by=tuple))
def test_every_gear_comes_back_from_the_options(drawn: list[tuple[str, list[object]]], rows: list[list[int]]) -> None:
    inputs = [TensorSpec(f"in:{i}", dtype, tuple(shape)) for i, (dtype, shape) in enumerate(drawn)]  # type: ignore[arg-type]
    used = {d for spec in inputs for d in spec.shape if isinstance(d, str)}
    sizes = [dict(zip(NAMES, row, strict=True)) for row in rows]
    sizes = [{name: size for name, size in gear.items() if name in used} for gear in sizes]
    unique = [gear for i, gear in enumerate(sizes) if gear not in sizes[:i]]
    made = gears_of_sizes(inputs, P310, unique)
    expected = tuple({s.name: tuple(d if isinstance(d, int) else gear[d] for d in s.shape) for s in inputs} for gear in unique)  # type: ignore[index]
    assert made.shapes == expected == shapes_of(made.options)[1]
    assert made.kind == ("fixed" if len(unique) == 1 else made.kind) and [
        k for k in made.options if k.startswith("dynamic")
    ] == ([] if made.kind == "fixed" else [made.kind])
    assert from_json(json.loads(json.dumps(made.to_json()))) == made
    for gear in made.shapes:
        assert made.gear_for(gear) == gear
    assert list(made.sizes_of(inputs).values()) == unique


OPTIONS = {
    "E10009": {"input_shape": "x:-1", "dynamic_batch_size": "1,2", "dynamic_dims": "1;2"},
    "E10002": {"input_shape": "x:1,,2"},
    "no name:dims": {"input_shape": "x"},
    "twice": {"input_shape": "x:1;x:1"},
    "E10040": {"input_shape": "x:1~3", "dynamic_batch_size": "1,2"},
    "E10018": {"input_shape": "x:2,-1", "dynamic_batch_size": "1,2"},
    "E10031": {"input_shape": "x:2,1", "dynamic_batch_size": "1,2"},
    "E10035": {"input_shape": "x:-1", "dynamic_batch_size": "1"},
    "E10036": {"input_shape": "x:-1", "dynamic_batch_size": ",".join(str(n) for n in range(1, 300))},
    "E10039": {"input_shape": "x:-1", "dynamic_batch_size": "1,1"},
    "E10003": {"input_shape": "x:-1", "dynamic_batch_size": "1, 2"},
    "E10020": {"input_shape": "x:1,3,-1,-1", "dynamic_image_size": "1,2,3;1,2,4"},
    "E10019": {"input_shape": "x:1,3,4,-1", "dynamic_image_size": "4,2;4,4"},
    "one number per -1": {"input_shape": "x:-1,-1", "input_format": "ND", "dynamic_dims": "1,2;3"},
    "needs --input_format=ND": {"input_shape": "x:-1,-1", "dynamic_dims": "1,2;3,4"},
    "it needs NCHW": {"input_shape": "x:1,3,-1,-1", "input_format": "ND", "dynamic_image_size": "1,2;1,3"},
    "E10001": {"input_shape": "x:1", "input_format": "NHWC"},
    "a dynamic shape": {"input_shape": "x:-1"},
    "no option of gears": {"input_shape": "x:1", "log": "debug"},
}


@pytest.mark.parametrize("message", OPTIONS)
def test_options_that_atc_refuses(message: str) -> None:
    with pytest.raises(UsageError) as caught:
        shapes_of(OPTIONS[message])
    assert message in str(caught.value)


MADE = gears(BERT, "batch=1,seq=64;batch=1,seq=128").to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "dynamic_batch_size"}, "mean other gears"),
        ({"more": 1}, "unknown key 'more'"),
        ({"shapes": MADE["shapes"][:1]}, "mean other gears"),
        ({"shapes": []}, "expected 1 to 256 gears"),
        ({"shapes": [{"ids": [1, 0], "mask": [1, 64]}, MADE["shapes"][1]]}, "expected an integer"),
        ({"shapes": [{"ids": [1, True], "mask": [1, 64]}, MADE["shapes"][1]]}, "expected an integer"),
        ({"options": {**MADE["options"], "log": "debug"}}, "none that ATC takes"),
        ({"options": {**MADE["options"], "dynamic_dims": 3}}, "expected a text"),
        ({"options": None}, "expected an object"),
    ],
)
def test_json_fails_closed(change: Mapping[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_json({**MADE, **change})


def test_json_without_a_key() -> None:
    with pytest.raises(InputError, match="missing key 'options'"):
        from_json({key: MADE[key] for key in ("kind", "shapes")})


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda v: (
        st.lists(v, max_size=3)
        | st.dictionaries(st.sampled_from(("kind", "shapes", "options", "ids", "mask", "input_shape")), v, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(JSON, st.sampled_from(("kind", "shapes", "options")))
def test_damaged_json_is_refused(value: object, key: str) -> None:
    if value == MADE[key]:
        return
    with pytest.raises(InputError):
        from_json({**MADE, key: value})
    with pytest.raises(InputError):
        from_json(value)


TEXT = st.text(alphabet="0123456789,;:=-~ abnsx²\x00", max_size=24)


@settings(max_examples=400, deadline=None)
@given(TEXT, st.sampled_from(("batch", "image_size", "dims", "named")), TEXT)
def test_texts_are_read_or_refused(text: str, option: str, shape: str) -> None:
    try:
        made = gears_for([IMAGE, *BERT], P310, Request(**{option: text}))
    except PortingError:
        pass
    else:
        assert shapes_of(made.options) == (made.kind, made.shapes)
    try:
        kind, shapes = shapes_of({"input_shape": shape, "input_format": "ND", "dynamic_dims": text})
    except UsageError:
        return
    assert kind == "dynamic_dims" and len(shapes) >= 2
