"""Programs from any ONNX model: strings, sequences, unknown sizes and ranks, old-style graphs, symbols that must agree, kernels."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import porting
from porting import run
from porting.backends import onnxruntime_kernels
from porting.backends.onnx_program import program_from_onnx
from porting.backends.onnxruntime_kernels import missing_kernels
from porting.errors import InputError, PortError, PortingError, RuntimeFailed
from porting.npz import read_npz, write_npz
from porting.port_folder import read_manifest
from porting.run import arrays_from_outputs, feeds_from_arrays
from porting.session import open_session
from porting.types import ANY_SHAPE, Program, StatePair, StateSpec, TensorSpec
from porting.worker import Arena
from tests.backends.contract import program

HERE_AND_THERE = ["cpu", "cpu,process=worker"]
TEXTS = np.array([["", "naïve"], ["人工智能", "a\0b "]], object)
ECHO = "(string[N,2] x) => (string[N,2] y) { y = Identity(x) }"
REVERSED = (
    "(seq(float[N]) x) => (seq(float[N]) y, int64 n) "
    "{ zero = Constant<value_int=0>() n = SequenceLength(x) last = SequenceAt(x, zero) e = SequenceErase(x, zero) "
    "y = SequenceInsert(e, last) }"
)


def of(*nodes: onnx.NodeProto, inputs: list, outputs: list, opset: int = 17, initial: dict | None = None) -> Program:
    """A program from nodes; inputs and outputs are value_infos."""
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in (initial or {}).items()]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=min(10, 3 + opset // 3))
    return program_from_onnx(model.SerializeToString())


def value(name: str, dtype: int = TensorProto.FLOAT, shape: list | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


# --- strings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", HERE_AND_THERE)
def test_strings_go_in_and_out(device: str) -> None:
    with open_session(program(ECHO), device) as session:
        assert session.inputs == (TensorSpec("x", "string", ("N", 2)),)
        fixed = np.array([["a", "bé"]])
        for fed in (TEXTS, TEXTS[::-1], TEXTS[:0], fixed):
            got = session.run({"x": fed})["y"]
            assert got.dtype == object and got.shape == fed.shape
            assert got.tolist() == fed.tolist()


def test_a_scalar_string() -> None:
    with open_session(program("(string x) => (string y) { y = Identity(x) }")) as session:
        assert session.run({"x": np.array("one", object)})["y"].item() == "one"
        assert session.run({"x": np.str_("two")})["y"].item() == "two"


@pytest.mark.parametrize(
    ("fed", "message"),
    [
        (np.array([[b"a", b"b"]]), r"expected x: string\[N, 2\], got \|S1\[1, 2\]"),
        (np.array([[1, 2]]), r"expected x: string\[N, 2\], got int64\[1, 2\]"),
        (np.array([["a", 7]], object), r"x\[0, 1\] is a int, expected str"),
        (np.array([["a", b"b"]], object), r"x\[0, 1\] is a bytes, expected str"),
        (np.array([["a", "\ud800"]], object), r"x\[0, 1\] is no text"),
        (np.array(["a", "b"], object), r"expected x: string\[N, 2\], got object\[2\]"),
        (np.array([["a"]], object), r"expected x: string\[N, 2\], got object\[1, 1\]"),
        ([["a", "b"]], "'x' is a list"),
    ],
)
def test_what_is_no_string_is_refused(fed: object, message: str) -> None:
    with open_session(program(ECHO)) as session, pytest.raises(InputError, match=message) as caught:
        session.run({"x": fed})
    assert caught.value.next


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=6), max_size=4))
@example(["a\0"])
@example(["", "\0b", "a\0b"])
def test_any_text_survives_a_run_and_a_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    array = np.empty(len(texts), object)
    array[:] = texts
    with open_session(program("(string[N] x) => (string[N] y) { y = Identity(x) }"), "cpu,threads=1") as session:
        got = session.run({"x": array})["y"]
    assert got.tolist() == texts
    path = tmp_path_factory.getbasetemp() / "text.npz"
    if any(text.endswith("\0") for text in texts):
        with pytest.raises(InputError, match="NUL"):
            write_npz(path, {"x": got})
    else:
        write_npz(path, {"x": got})
        assert read_npz(path, text=True)["x"].tolist() == texts


def test_text_in_a_file_is_taken_only_where_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array(["a", "b"]))
    with pytest.raises(InputError, match="no number"):
        read_npz(tmp_path / "x.npz")
    bad = np.array(["ab"])
    bad.view(np.uint32)[1] = 0x110000
    np.savez(tmp_path / "bad.npz", x=bad)
    with pytest.raises(InputError, match="no characters"):
        read_npz(tmp_path / "bad.npz", text=True)
    np.savez(tmp_path / "pickle.npz", x=np.array(["a", None], object))
    with pytest.raises(InputError):
        read_npz(tmp_path / "pickle.npz", text=True)


# --- sequences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", HERE_AND_THERE)
def test_sequences_go_in_and_out(device: str) -> None:
    parts = [np.arange(n, dtype=np.float32) for n in (3, 0, 2)]
    with open_session(program(REVERSED), device) as session:
        assert session.inputs == (TensorSpec("x", "sequence(float32)", ("N",)),)
        got = session.run({"x": parts})
        assert got["n"] == 3
        assert [p.tolist() for p in got["y"]] == [[], [0.0, 1.0], [0.0, 1.0, 2.0]]
        with pytest.raises(RuntimeFailed):
            session.run({"x": []})  # the graph looks at its first


@pytest.mark.parametrize("device", HERE_AND_THERE)
def test_sequences_of_strings_and_empty_ones(device: str) -> None:
    with open_session(program("(seq(string[N]) x) => (seq(string[N]) y) { y = Identity(x) }"), device) as session:
        assert session.run({"x": []})["y"] == []
        got = session.run({"x": (np.array(["a"]), np.array(["b", "人"], object))})["y"]
        assert [p.tolist() for p in got] == [["a"], ["b", "人"]]


@pytest.mark.parametrize(
    ("fed", "message"),
    [
        (np.ones((2, 3), np.float32), "'x' is a ndarray: expected x: sequence"),
        ([np.ones(3, np.float32), np.ones(3)], r"expected x\[1\] of x: float32\[N\], got float64\[3\]"),
        ([np.ones((3, 1), np.float32)], r"expected x\[0\] of x: float32\[N\], got float32\[3, 1\]"),
        ([[1.0, 2.0]], r"'x\[0\]' is a list"),
    ],
)
def test_every_element_of_a_sequence_is_checked(fed: object, message: str) -> None:
    with open_session(program(REVERSED)) as session, pytest.raises(InputError, match=message):
        session.run({"x": fed})


def test_torch_sequences_come_back_as_torch() -> None:
    torch = pytest.importorskip("torch")
    with open_session(program(REVERSED)) as session:
        got = session.run({"x": [torch.ones(2), torch.zeros(1)]})
    assert [type(p) for p in got["y"]] == [torch.Tensor] * 2
    assert got["y"][0].tolist() == [0.0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=12))
def test_a_sequence_through_a_file_is_the_same(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    path = tmp_path_factory.getbasetemp() / "sequence.npz"
    wanted = {"a.b": [np.full(n, n, np.float32) for n in sizes], "other": np.ones(2)}
    write_npz(path, arrays_from_outputs(wanted))
    specs = [TensorSpec("a.b", "sequence(float32)", ()), TensorSpec("other", "float64", (2,))]
    got = feeds_from_arrays(specs, read_npz(path), "x.npz")
    assert [p.tolist() for p in got["a.b"]] == [p.tolist() for p in wanted["a.b"]]
    assert list(got) == ["other", "a.b"]


@pytest.mark.parametrize(
    "arrays", [{"x/1": 1}, {"x/0": 1, "x/2": 1}, {"x/0": 1, "x/length": 2}, {"x/length": 1}, {"x/0": 1, "x/00": 1}], ids=str
)
def test_a_sequence_with_gaps_is_refused(arrays: dict) -> None:
    with pytest.raises(InputError, match="sequence 'x' are not complete"):
        feeds_from_arrays([TensorSpec("x", "sequence(int64)", ())], {k: np.array(v) for k, v in arrays.items()}, "x.npz")


def test_arena_carries_strings_and_sequences() -> None:
    writer = Arena.create()
    values = {"s": TEXTS, "q": [np.arange(3), TEXTS[0], np.zeros((2, 0))], "e": []}
    got = writer.read(writer.write(values))
    assert got["s"].tolist() == TEXTS.tolist() and got["e"] == []
    for a, b in zip(got["q"], values["q"], strict=True):
        assert a.dtype == b.dtype and a.tolist() == b.tolist()
    writer.close()


@pytest.mark.parametrize("graph", [ECHO, REVERSED])
def test_null_says_that_it_cannot(graph: str) -> None:
    with pytest.raises(RuntimeFailed, match="null has no zeros for x"):
        open_session(program(graph), "null")


def test_strings_beside_a_cache_are_refused() -> None:
    graph = (
        "(string[batch] s, float[batch,step,3] x, int64[batch] length, float[batch,cap,3] cache) "
        "=> (string[batch] t, float[batch,cap,3] next) { t = Identity(s) next = TensorScatter<axis=1>(cache, x, length) }"
    )
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 24]> g {graph}')
    state = StateSpec((StatePair("cache", "next", 1),), "length", ("x", 1))
    with pytest.raises(RuntimeFailed, match="cannot be fed or returned beside state"):
        open_session(program_from_onnx(model.SerializeToString(), state=state))


# --- port.json --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "fits"), [("string", True), ("sequence(string)", True), ("sequence(sequence(int8))", False), ("object", False)]
)
def test_dtypes_in_a_manifest(tmp_path: Path, dtype: str, fits: bool) -> None:
    entry = {"name": "x", "dtype": dtype, "shape": list(ANY_SHAPE)}
    empty: dict = {name: {} for name in ("config", "source", "tensors", "state", "defaults", "min_runtime", "tools")}
    texts = {"kind": "graph", "architecture": "", "target": "cpu", "precision": "fp32", "schema": "porting.port/1"}
    file = {"path": "model.onnx", "size": 1, "mtime_ns": 1, "sha256": "0" * 64}
    manifest = {**empty, **texts, "passes": [], "inputs": [entry], "outputs": [entry], "files": [file]}
    (tmp_path / "port.json").write_text(json.dumps(manifest))
    if fits:
        assert read_manifest(tmp_path / "port.json")["inputs"] == [entry]
    else:
        with pytest.raises(PortError, match="no dtype"):
            read_manifest(tmp_path / "port.json")


# --- shapes and dtypes of old and odd graphs --------------------------------------------------------------------------


def test_sizes_that_are_not_known() -> None:
    minus = value("x", shape=[None, None, 2])
    minus.type.tensor_type.shape.dim[0].dim_value = -1
    wanted = of(helper.make_node("Neg", ["x"], ["y"]), inputs=[minus], outputs=[value("y")])
    assert wanted.inputs[0].shape == (None, None, 2)
    with open_session(wanted) as session:
        for shape in ((1, 5, 2), (0, 3, 2), (4, 0, 2)):
            assert session.run({"x": np.ones(shape, np.float32)})["y"].shape == shape


def test_outputs_whose_type_or_rank_the_file_leaves_out() -> None:
    neg = helper.make_node("Neg", ["x"], ["y"])
    wanted = of(neg, inputs=[value("x", shape=["N", 2])], outputs=[onnx.ValueInfoProto(name="y")])
    assert wanted.outputs == (TensorSpec("y", "float32", ("N", 2)),)
    # a shape that is data: no inference knows its rank
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"])
    inputs = [value("x", shape=["N"]), value("shape", TensorProto.INT64, ["R"])]
    wanted = of(reshape, inputs=inputs, outputs=[value("y")])
    assert wanted.outputs == (TensorSpec("y", "float32", ANY_SHAPE),)
    assert str(wanted.outputs[0]) == "y: float32[...]"
    for device in HERE_AND_THERE:
        with open_session(wanted, device) as session:
            x = np.arange(6, dtype=np.float32)
            assert session.run({"x": x, "shape": np.array([2, 3])})["y"].shape == (2, 3)
            assert session.run({"x": x, "shape": np.array([6])})["y"].shape == (6,)
    with open_session(wanted, "null") as session, pytest.raises(RuntimeFailed, match="null cannot know"):
        session.run({"x": np.ones(1, np.float32), "shape": np.array([1])})


def test_an_input_of_unknown_rank_takes_any() -> None:
    wanted = of(helper.make_node("Neg", ["x"], ["y"]), inputs=[value("x")], outputs=[value("y")])
    assert wanted.inputs[0].shape == ANY_SHAPE
    with open_session(wanted) as session:
        for shape in ((), (3,), (2, 0, 1)):
            assert session.run({"x": np.ones(shape, np.float32)})["y"].shape == shape
        with pytest.raises(InputError, match=r"expected x: float32\[...\], got int64\[\]"):
            session.run({"x": np.array(3)})


def test_initializers_that_are_inputs_are_no_inputs_of_the_user() -> None:
    """IR 3 lists every weight among the inputs."""
    add = helper.make_node("Add", ["x", "w"], ["y"])
    wanted = of(
        add,
        inputs=[value("x", shape=[2]), value("w", shape=[2])],
        outputs=[value("y", shape=[2])],
        opset=9,
        initial={"w": np.array([1, 2], np.float32)},
    )
    with open_session(wanted) as session:
        assert [i.name for i in session.inputs] == ["x"]
        assert session.run({"x": np.zeros(2, np.float32)})["y"].tolist() == [1, 2]


@pytest.mark.parametrize("device", HERE_AND_THERE)
@pytest.mark.parametrize("dtype", ["float16", "float64", "uint8", "int32", "int8", "uint16", "bool", "bfloat16"])
def test_dtypes_and_scalars(device: str, dtype: str) -> None:
    wanted = program(f"({'float' if dtype == 'float32' else dtype.replace('float64', 'double')} x, float[N] n) => (float[M] y) "
                     "{ a = Constant<value_ints=[1]>() c = Cast<to=1>(x) r = Reshape(c, a) y = Add(r, n) }")  # fmt: skip
    scalar = np.ones((), dtype if dtype != "bfloat16" else ml_dtypes.bfloat16)
    with open_session(wanted, device) as session:
        assert session.run({"x": scalar, "n": np.arange(3, dtype=np.float32)})["y"].tolist() == [1, 2, 3]
        assert session.run({"x": scalar[()], "n": np.zeros(0, np.float32)})["y"].shape == (0,)


@pytest.mark.parametrize(
    ("wanted", "fed", "cast"),
    [
        ("float", np.float64, "numpy.float32"),
        ("float16", np.float32, "numpy.float16"),
        ("int64", np.int32, "numpy.int64"),
        ("int32", np.int64, "numpy.int32"),
        ("bfloat16", np.float32, "ml_dtypes.bfloat16"),
        ("bool", np.int64, "numpy.bool"),
    ],
)
def test_a_wrong_dtype_says_what_to_cast_to(wanted: str, fed: type, cast: str) -> None:
    with open_session(program(f"({wanted}[N] x) => ({wanted}[N] y) {{ y = Identity(x) }}")) as session:
        with pytest.raises(InputError) as caught:
            session.run({"x": np.ones(2, fed)})
        assert f"cast it with .astype({cast}" in caught.value.next
        words = caught.value.next.split("(")[1].split(")")[0].split(".")
        dtype = getattr({"numpy": np, "ml_dtypes": ml_dtypes}[words[0]], words[1])
        session.run({"x": np.ones(2, fed).astype(dtype)})  # what it says helps


# --- symbols ----------------------------------------------------------------------------------------------------------


def ids(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int64)


def test_named_sizes_must_agree() -> None:
    wanted = program(
        "(int64[b,sequence] input_ids, int64[b,sequence] mask) => (int64[b,sequence] y) { y = Add(input_ids, mask) }"
    )
    for device in ("cpu", "null"):
        with open_session(wanted, device) as session:
            session.run({"mask": ids(1, 7), "input_ids": ids(1, 7)})
            with pytest.raises(InputError, match=r"input_ids \[1, 7\] and mask \[1, 9\] disagree about sequence"):
                session.run({"input_ids": ids(1, 7), "mask": ids(1, 9)})
            with pytest.raises(InputError, match=r"input_ids \[1, 7\] and mask \[2, 7\] disagree about b"):
                session.run({"mask": ids(2, 7), "input_ids": ids(1, 7)})


def test_a_symbol_twice_in_one_input() -> None:
    with open_session(program("(float[N,N] x) => (float[N,N] y) { y = Neg(x) }")) as session:
        session.run({"x": np.ones((2, 2), np.float32)})
        with pytest.raises(InputError, match=r"the axes of x \[2, 3\] that are N differ"):
            session.run({"x": np.ones((2, 3), np.float32)})


@pytest.mark.parametrize("dim", ["?", "-1", "None", "unknown", "*", "dynamic", "unk"])
def test_what_exporters_write_for_unknown_is_no_name(dim: str) -> None:
    x = value("x", shape=[dim, 3, dim])
    with open_session(of(helper.make_node("Neg", ["x"], ["y"]), inputs=[x], outputs=[value("y")])) as session:
        assert session.run({"x": np.ones((2, 3, 5), np.float32)})["y"].shape == (2, 3, 5)


def test_a_default_agrees_with_what_was_fed() -> None:
    wanted = program(
        "(int64[B,S] a, int64[B,S] m) => (int64[B,S] y) { y = Add(a, m) }",
        defaults={"m": 3},
    )
    with open_session(wanted) as session:
        assert session.run({"a": ids(2, 3)})["y"].tolist() == [[3] * 3] * 2
        with pytest.raises(InputError, match="disagree about S"):
            session.run({"a": ids(2, 3), "m": ids(2, 4)})


# --- kernels ----------------------------------------------------------------------------------------------------------


def takes(model: str | bytes) -> bool:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


def missing(model: Path | bytes) -> list:
    return missing_kernels(onnxruntime, Program(model, (), ()), "CPUExecutionProvider")


def test_onnx_files_are_refused_exactly_when_onnxruntime_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model of onnx's own test data, opsets 6 and up, without the safety net of asking for the whole model."""
    monkeypatch.setattr(onnxruntime_kernels, "_takes", lambda *_: False)
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data"
    models = sorted(folder.glob("**/*.onnx"))
    assert len(models) > 100
    refused = 0
    for path in models:
        fits, found = takes(str(path)), missing(path)
        assert not (fits and found), f"{path.parent.name}: {found[:1]}"
        refused += bool(found)
        if not fits and not found:  # what is no matter of kernels is refused by prepare, in words of ours
            with pytest.raises(PortingError):
                open_session(program_from_onnx(path))
    assert refused > 20


def test_a_model_that_onnxruntime_takes_as_a_whole_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_kernels, "_refusal", lambda *_: "no kernel, it seems")
    fine = program("(float[N] x) => (float[N] y) { y = Neg(x) }")
    assert isinstance(fine.model, bytes)
    assert missing(fine.model) == []
    bad = program("(float[N] x) => (float[N] y) { [odd] y = Frobnicate(x) }")
    assert isinstance(bad.model, bytes)
    assert [u.node for u in missing(bad.model)] == ["odd"]


def test_nodes_in_bodies_are_looked_at() -> None:
    graph = (
        "(bool c, double[N] x) => (double[N] y) { y = If(c) <then_branch = t () => (double[N] a) { [deep] a = Swish(x) }, "
        "else_branch = e () => (double[N] b) { b = Identity(x) }> }"
    )
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 24]> g {graph}').SerializeToString()
    assert takes(model) == (missing(model) == [])
    assert takes(model) or [u.node for u in missing(model)] == ["deep"]


def test_a_sequence_runs_from_file_to_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `porting run` does, with a program in place of a port."""
    monkeypatch.setattr(run, "load", lambda port, device: open_session(program(REVERSED), device))
    write_npz(tmp_path / "x.npz", {"x/0": np.ones(2, np.float32), "x/1": np.zeros(3, np.float32)})
    report = run.run_file("any", tmp_path / "x.npz", tmp_path / "y.npz")
    assert report["outputs"] == {"y": [[3], [2]], "n": []}
    with np.load(tmp_path / "y.npz") as got:
        assert sorted(got) == ["n", "y/0", "y/1", "y/length"]


RESHAPED = "(float[N] x, int64[R] s) => (float[A] y) { z = Reshape(x, s) y = Neg(z) }"


@pytest.mark.parametrize(
    ("graph", "inputs", "outputs"),
    [
        (ECHO, ["x: string[N, 2]"], ["y: string[N, 2]"]),
        (REVERSED, ["x: sequence(float32)[N]"], ["y: sequence(float32)[N]", "n: int64[]"]),
        (RESHAPED, ["x: float32[None]", "s: int64[R]"], ["y: float32[...]"]),
    ],
    ids=["strings", "sequences", "ranks"],
)
def test_a_port_keeps_what_its_file_takes(tmp_path: Path, graph: str, inputs: list[str], outputs: list[str]) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {graph}')
    if graph == RESHAPED:
        model.graph.output[0].type.tensor_type.ClearField("shape")
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    porting.convert(tmp_path / "m.onnx", tmp_path / "m.port")
    with porting.load(tmp_path / "m.port") as session:
        assert [str(i) for i in session.inputs] == inputs
        assert [str(o) for o in session.outputs] == outputs
        if graph == ECHO:
            assert session.run({"x": TEXTS})["y"].tolist() == TEXTS.tolist()
        elif graph == REVERSED:
            assert session.run({"x": [np.ones(2, np.float32)]})["n"] == 1
        else:
            assert session.run({"x": np.ones(6, np.float32), "s": np.array([2, 3])})["y"].shape == (2, 3)
