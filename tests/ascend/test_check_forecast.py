"""`porting check` with inputs, sizes and a card: what overflows, what is kept and written, and what fits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny import make
from tiny_encoders import make_encoder

import porting
from porting import cli
from porting.ascend.exceptions import Exceptions
from porting.ascend.overflow import forecast
from porting.ascend.side_file_formats import read_keep_dtype
from porting.ascend.side_files import SideFiles
from porting.ascend.soc import find_soc
from porting.errors import InputError, UsageError
from tests import overflowing_models as models
from tests.overflowing_models import WIDTH, feeds

MIDDLE = ["scale", "shift", "back"]


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    onnx.save(models.mlp(), str(tmp_path / "mlp.onnx"))
    np.savez(tmp_path / "x.npz", **feeds())
    return tmp_path / "mlp.onnx"


@pytest.fixture
def tiny_tokenizer() -> bytes:
    """Bytes are tokens."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as tokenizer_models

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str().encode()


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        cli.main([str(a) for a in arguments])
    return int(str(done.value.code))


def test_large_activations_are_forecast_named_in_files_and_mended_by_them(mlp: Path, tmp_path: Path) -> None:
    files, sarif = tmp_path / "exceptions", tmp_path / "f.sarif"
    options = ("--inputs", tmp_path / "x.npz", "--write-exceptions", files, "--sarif", sarif, "--quiet")
    assert run("check", mlp, "--target", "Ascend310P3", *options) == 0
    assert read_keep_dtype((files / "keep_dtype.cfg").read_text())[0] == MIDDLE
    verdict = porting.check(mlp, "Ascend310P3", inputs=tmp_path / "x.npz")
    forecast = verdict.details["forecast"]
    assert not forecast["first"]["passes"] and [n["node"] for n in forecast["first"]["overflows"]] == MIDDLE
    assert forecast["with_exceptions"]["passes"] and forecast["with_exceptions"]["kept"] == MIDDLE
    assert {c.name: c.verdict for c in verdict.checks}["forecast of fp16: nodes that overflow"] == "pass"
    results = json.loads(sarif.read_text())["runs"][0]["results"]
    kept = {r["locations"][0]["logicalLocations"][0]["name"] for r in results if r["ruleId"] == "forecast-overflow"}
    assert kept == set(MIDDLE)


def test_what_cannot_be_kept_fails_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A matrix product beyond fp16: the 310P's matrix unit takes nothing else. On A2 it can be kept."""
    onnx.save(models.large_product(), str(tmp_path / "m.onnx"))
    np.savez(tmp_path / "x.npz", **feeds())
    options = ("--inputs", tmp_path / "x.npz", "--quiet")
    assert run("check", tmp_path / "m.onnx", "--target", "Ascend310P3", *options) == 1
    said = capsys.readouterr().out
    assert "product" in said and "FAIL" in said
    verdict = porting.check(tmp_path / "m.onnx", "Ascend310P3", inputs=tmp_path / "x.npz")
    (failed,) = [c for c in verdict.checks if c.name.endswith("nodes that overflow")]
    assert failed.verdict == "fail" and "takes fp16 only" in failed.detail
    assert run("check", tmp_path / "m.onnx", "--target", "Ascend910B3", "-p", "fp16", *options) == 0


def test_a_port_hands_its_exceptions_over(mlp: Path, tmp_path: Path) -> None:
    from porting.ascend.handoff import handoffs_of

    verdict = porting.port(
        mlp, tmp_path / "m.port", "Ascend310P3", gears=f"n={len(feeds()['x'])}", inputs=tmp_path / "x.npz"
    ).require()
    (handoff,) = handoffs_of(tmp_path / "m.port")
    assert (
        handoff.command.value("keep_dtype") == "keep_dtype.cfg"
        and (handoff.path / "keep_dtype.cfg").read_text().split() == MIDDLE
    )
    assert verdict.details["forecast"]["with_exceptions"]["kept"] == MIDDLE
    porting.port(mlp, tmp_path / "n.port", "Ascend910B3", gears="n=2").require()
    assert handoffs_of(tmp_path / "n.port")[0].command.value("keep_dtype") is None, "origin computes in fp32"


def test_a_port_that_would_overflow_fails_and_hands_nothing_over(tmp_path: Path) -> None:
    onnx.save(models.large_product(), str(tmp_path / "m.onnx"))
    np.savez(tmp_path / "x.npz", **feeds())
    verdict = porting.port(tmp_path / "m.onnx", tmp_path / "m.port", "Ascend310P3", gears="n=4", inputs=tmp_path / "x.npz")
    assert verdict.exit_code == 1 and "forecast of fp16" in verdict.reason
    assert not (tmp_path / "m.port" / "targets").exists()


def test_nothing_is_forecast_where_nothing_is_asked_or_needed(mlp: Path, tmp_path: Path) -> None:
    assert "not asked for" in porting.check(mlp, "Ascend310P3").details["forecast"]
    assert "none is needed" in porting.check(mlp, "Ascend910B3", inputs=tmp_path / "x.npz").details["forecast"]
    with pytest.raises(UsageError, match="nothing says how it reads a text"):
        porting.check(mlp, "Ascend310P3", text="hello")
    assert run("check", mlp, "--write-exceptions", tmp_path / "new") == 2
    (tmp_path / "old").mkdir()
    assert run("check", mlp, "--write-exceptions", tmp_path / "old", "--inputs", tmp_path / "x.npz") == 2


def test_inputs_that_hold_nothing_or_do_not_fit(mlp: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "nan.npz", x=np.full((2, WIDTH), np.nan, np.float32))
    with pytest.raises(InputError, match="NaN"):
        porting.check(mlp, "Ascend310P3", inputs=tmp_path / "nan.npz")
    np.savez(tmp_path / "wide.npz", x=np.zeros((2, WIDTH + 1), np.float32))
    with pytest.raises(InputError):
        porting.check(mlp, "Ascend310P3", inputs=tmp_path / "wide.npz")
    with pytest.raises(InputError, match="has 4 in dimension 0, where the model has 3"):
        porting.check(mlp, "Ascend310P3", gears="n=3", inputs=tmp_path / "x.npz")
    with pytest.raises(InputError, match="no gear has the shapes"):
        porting.check(mlp, "Ascend310P3", gears="n=3; n=5", inputs=tmp_path / "x.npz")


def test_texts_of_a_language_model_and_an_encoder(tiny_tokenizer: bytes, tmp_path: Path) -> None:
    make(tmp_path / "llama", "LlamaForCausalLM", vocab_size=260)
    make_encoder(tmp_path / "bert", "BertModel", vocab_size=260)
    for folder in ("llama", "bert"):
        (tmp_path / folder / "tokenizer.json").write_bytes(tiny_tokenizer)
        verdict = porting.check(tmp_path / folder, "Ascend310P3", text=["some words", "and more of them"])
        assert verdict.details["forecast"]["first"]["outputs"], folder
    with pytest.raises(InputError):
        porting.check(tmp_path / "llama", "Ascend310P3", text="")


def test_a_text_that_the_cache_does_not_hold(tiny_tokenizer: bytes, tmp_path: Path) -> None:
    make(tmp_path / "llama", "LlamaForCausalLM", vocab_size=260)
    (tmp_path / "llama" / "tokenizer.json").write_bytes(tiny_tokenizer)
    gears = "sequence=1,capacity=8; sequence=4,capacity=8"
    assert porting.check(tmp_path / "llama", "Ascend310P3", text="8 tokens", gears=gears).details["forecast"]["first"]
    with pytest.raises(InputError, match="has 9 tokens, and a run from an empty cache takes 8"):
        porting.check(tmp_path / "llama", "Ascend310P3", text="9 tokens.", gears=gears)
    with pytest.raises(InputError, match="takes 1"):
        porting.check(tmp_path / "llama", "Ascend310P3", text="two", gears="sequence=1,capacity=8")


def test_a_port_for_one_token_is_forecast_on_one(tmp_path: Path) -> None:
    model = make(tmp_path / "llama", "LlamaForCausalLM")
    porting.port(model.folder, tmp_path / "m.port", "Ascend310P3", gears="sequence=1,capacity=40").require()
    (readme,) = (tmp_path / "m.port" / "targets").glob("*/README.txt")
    assert "the forecast looked at the first 1 of 32 tokens" in readme.read_text()


def test_a_graph_in_half_floats_needs_no_forecast_for_them(tmp_path: Path) -> None:
    inputs, outputs = ([models.value(name, ["n", WIDTH], onnx.TensorProto.FLOAT16)] for name in "xy")
    nodes = [onnx.helper.make_node("Exp", ["x"], ["y"])]
    onnx.save(models.model(nodes, inputs=inputs, outputs=outputs), str(tmp_path / "half.onnx"))
    np.savez(tmp_path / "x.npz", x=feeds()["x"].astype(np.float16))
    for soc, mode in (("Ascend310P3", "fp16"), ("Ascend910B3", "origin")):
        verdict = porting.check(tmp_path / "half.onnx", soc, "fp16", inputs=tmp_path / "x.npz")
        assert verdict.ok and verdict.details["precision_mode"] == f"--precision_mode_v2={mode}"
        assert verdict.details["forecast"].startswith("none is needed")


def test_what_no_file_can_name_is_rounded_in_the_second_forecast(tmp_path: Path) -> None:
    # of two nodes that overflow one lies in a branch: with both kept all would be well, and only one can be
    node, value = onnx.helper.make_node, models.value
    inside = [node("Mul", ["x", "k"], ["t"], name="inside")]
    large = onnx.helper.make_graph(inside, "then", [], [value("t", ["n", WIDTH])])
    plain = onnx.helper.make_graph([node("Neg", ["x"], ["e"], name="other")], "else", [], [value("e", ["n", WIDTH])])
    nodes = [node("If", ["c"], ["i"], name="if", then_branch=large, else_branch=plain)]
    nodes.append(node("Div", ["i", "k"], ["y"], name="back"))
    inputs, outputs = [value("x", ["n", WIDTH]), value("c", [], onnx.TensorProto.BOOL)], [value("y", ["n", WIDTH])]
    onnx.save(models.model(nodes, [models.tensor("k", 3e5)], inputs, outputs), str(tmp_path / "m.onnx"))
    np.savez(tmp_path / "x.npz", c=np.array(True), **feeds())
    files = tmp_path / "files"
    options = ("--inputs", tmp_path / "x.npz", "--write-exceptions", files, "--quiet")
    assert run("check", tmp_path / "m.onnx", "--target", "Ascend310P3", *options) == 1
    assert read_keep_dtype((files / "keep_dtype.cfg").read_text())[0] == ["back"]
    forecast = porting.check(tmp_path / "m.onnx", "Ascend310P3", inputs=tmp_path / "x.npz").details["forecast"]
    assert forecast["with_exceptions"]["kept"] == ["back"] and not forecast["with_exceptions"]["passes"]
    assert [n["node"] for n in forecast["with_exceptions"]["overflows"]] == ["inside"]


def test_what_is_not_kept_is_listed_with_its_reason_overflowing_or_not() -> None:
    again = forecast(models.program(models.large_product()), feeds(), soc=find_soc("Ascend310P3"))
    found = Exceptions(again, again, SideFiles((), {"other": "a reason"}, ())).details()["not_kept"]
    assert found.keys() == {"other", "product", "back"} and found["other"] == "a reason"
    assert "takes fp16 only" in found["product"] and "although others are kept" in found["back"]


def test_a_text_gets_the_tokens_that_a_bare_prompt_gets(tiny_tokenizer: bytes, tmp_path: Path) -> None:
    make(tmp_path / "llama", "LlamaForCausalLM", vocab_size=260)
    described = json.loads(tiny_tokenizer)
    sequence = [{"SpecialToken": {"id": "!", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"!": {"id": "!", "ids": [0], "tokens": ["!"]}}
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": sequence,
        "pair": sequence,
        "special_tokens": special,
    }
    (tmp_path / "llama" / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="has 9 tokens"):
        porting.check(tmp_path / "llama", "Ascend310P3", text="8 tokens", gears="sequence=1,capacity=8; sequence=4,capacity=8")


def test_nodes_in_branches_are_named_one_by_one(tmp_path: Path) -> None:
    """No file can name them: each is reported with the reason, in the table, as JSON and as SARIF."""
    node, value = onnx.helper.make_node, models.value
    inside = [node("Mul", ["x", "k"], ["t"], name="up"), node("Div", ["t", "k"], ["u"], name="down")]
    large = onnx.helper.make_graph(inside, "then", [], [value("u", ["n", WIDTH])])
    plain = onnx.helper.make_graph([node("Neg", ["x"], ["e"], name="other")], "else", [], [value("e", ["n", WIDTH])])
    inputs = [value("x", ["n", WIDTH]), value("c", [], onnx.TensorProto.BOOL)]
    nodes = [node("If", ["c"], ["y"], name="choose", then_branch=large, else_branch=plain)]
    made = models.model(nodes, [models.tensor("k", 3e5)], inputs, [value("y", ["n", WIDTH])])
    onnx.save(made, str(tmp_path / "m.onnx"))
    np.savez(tmp_path / "x.npz", c=np.array(True), **feeds())
    options = ("--inputs", tmp_path / "x.npz", "--sarif", tmp_path / "f.sarif", "--quiet")
    assert run("check", tmp_path / "m.onnx", "--target", "Ascend310P3", *options) == 1
    results = json.loads((tmp_path / "f.sarif").read_text())["runs"][0]["results"]
    said = {r["locations"][0]["logicalLocations"][0]["name"]: r for r in results if r["ruleId"] == "forecast-overflow"}
    verdict = porting.check(tmp_path / "m.onnx", "Ascend310P3", inputs=tmp_path / "x.npz")
    assert said.keys() == verdict.details["forecast"]["not_kept"].keys() == {"up", "down"}
    assert all(r["level"] == "error" and "body of a control flow" in r["message"]["text"] for r in said.values())
    (failed,) = [c for c in verdict.checks if c.verdict == "fail" and "nodes that overflow" in c.name]
    assert failed.where == "up, down" and failed.detail.count("body of a control flow") == 2
    np.savez(tmp_path / "x.npz", c=np.array(False), **feeds())
    assert porting.check(tmp_path / "m.onnx", "Ascend310P3", inputs=tmp_path / "x.npz").ok, "the branch is not taken"


# --- memory and sizes -----------------------------------------------------------------------------------------------


def test_memory_of_a_language_model_is_a_lower_bound(tmp_path: Path) -> None:
    model = make(tmp_path / "llama", "LlamaForCausalLM")
    verdict = porting.check(model.folder, "Ascend310P3", gears="sequence=1,capacity=48; sequence=16,capacity=48")
    memory = verdict.details["memory"]
    assert memory["cache"] == 2 * 2 * 2 * 48 * 8 * 2, "2 layers, keys and values, 2 heads, 48 positions, 8 numbers, 2 bytes"
    assert list(memory["activations"]) == ["sequence=16"] and memory["at_least"] >= memory["weights"] + memory["cache"]
    assert [b["bytes"] >> 30 for b in memory["boards"]] == [21, 44] and all(b["cards_at_least"] == 1 for b in memory["boards"])
    assert "workspace of kernels" in memory["unknown"]


def test_a_card_that_is_too_small_fails(mlp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", mlp, "--target", "Ascend310P3", "--gears", "n=4", "--device-memory", "1kib", "--quiet") == 1
    assert "a lower bound" in porting.check(mlp, "Ascend310P3", gears="n=4", device_memory=1024).checks[-1].detail
    assert "bytes that the card needs at least" in capsys.readouterr().out
    assert run("check", mlp, "--target", "Ascend310P3", "--gears", "n=4", "--device-memory", "1GiB", "--quiet") == 0
    assert run("check", mlp, "--target", "Ascend310P3", "--device-memory", "much") == 2
    verdict = porting.check(mlp, "Ascend310P3")
    left_out = verdict.details["memory"]["values_left_out"]
    assert left_out and any(a["values_of_unknown_size"] == left_out for a in verdict.details["memory"]["activations"].values())
    open_sizes = porting.check(mlp, "Ascend310P3", device_memory=2**30).checks[-1]
    assert f"{left_out} values of unknown size left out" in open_sizes.where and "--gears" in open_sizes.detail
    closed = porting.check(mlp, "Ascend310P3", gears="n=4", device_memory=2**30)
    assert closed.details["memory"]["values_left_out"] == 0 and "left out" not in closed.checks[-1].where


# --- what rounding alone does to it ---------------------------------------------------------------------------------


def small(folder: Path, nodes: str, kind: str, x: np.ndarray, **constants: float | np.ndarray) -> Path:
    """x -> nodes -> y, each of 16 numbers, with its inputs beside it in x.npz."""
    text = f"<ir_version: 8, opset_import: ['' : 17]> g (float[16] x) => ({kind}[16] y) {{ {nodes} }}".replace("'", '"')
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(models.tensor(name, number) for name, number in constants.items())
    for made in proto.graph.node:
        made.name = made.name or made.output[0]
    onnx.save(proto, str(folder / "m.onnx"))
    np.savez(folder / "x.npz", x=x.astype(np.float32))
    return folder / "m.onnx"


@pytest.mark.parametrize(
    ("nodes", "kind", "constant", "numbers", "kept"),
    [
        ("n = Neg(x) s = Add(n, c) d = Sub(s, c) y = Tanh(d)", "float", 5000.0, np.linspace(-1, 1, 16), ["s", "d"]),
        ("n = Neg(x) s = Add(n, c) d = Sub(s, c) y = Tanh(d)", "float", 30000.0, np.linspace(-1, 1, 16), ["s", "d"]),
        ("n = Neg(x) s = Div(n, c) y = Cast<to = 7>(s)", "int64", 3.0, np.arange(20011, 20027), ["n", "s", "y"]),  # beyond 2048
    ],
)
def test_what_an_output_hangs_on_is_kept(
    nodes: str, kind: str, constant: float, numbers: np.ndarray, kept: list[str], tmp_path: Path
) -> None:
    """Nothing overflows, and the significand alone takes nine tenths of the result."""
    path = small(tmp_path, nodes, kind, numbers, c=constant)
    verdict = porting.check(path, "Ascend310P3", inputs=tmp_path / "x.npz").require()
    forecast = verdict.details["forecast"]
    assert not forecast["first"]["passes"] and not forecast["first"]["overflows"] and not forecast["broken"]
    assert forecast["with_exceptions"]["kept"] == kept and forecast["files"]["keep_dtype.cfg"].split() == kept
    assert any("hang on the rounding" in note for note in forecast["notes"])
    ported = porting.port(path, tmp_path / "m.port", "Ascend310P3", inputs=tmp_path / "x.npz").require()
    (written,) = (tmp_path / "m.port" / "targets").glob("*/keep_dtype.cfg")
    assert written.read_text().split() == kept and "handoff" in ported.details


def test_what_overflows_only_once_others_are_kept_is_kept_too(tmp_path: Path) -> None:
    """o leaves fp16's range in float32 already, e only when what it reads is rounded: it is seen in a second forecast."""
    nodes = "o = Mul(x, four) b = Div(o, eight) e = Mul(x, c) h = Div(e, eight) y = Add(b, h)"
    path = small(tmp_path, nodes, "float", np.full(16, 65480), c=1.00049, four=4, eight=8)
    forecast = porting.check(path, "Ascend310P3", inputs=tmp_path / "x.npz").require().details["forecast"]
    assert forecast["first"]["to_keep"] == ["o", "b"] and forecast["with_exceptions"]["kept"] == ["o", "b", "e"]


@pytest.mark.parametrize("order", ["yz", "zy"])
def test_one_output_that_does_not_hold_fails_whichever_it_is(order: str, tmp_path: Path) -> None:
    """A matrix product of subnormal numbers: nothing overflows, and no file keeps it."""
    node, value = onnx.helper.make_node, models.value
    nodes = [node("MatMul", ["x", "w"], ["a"], name="product"), node("Mul", ["a", "k"], ["y"]), node("Neg", ["x"], ["z"])]
    weights = [models.tensor("w", np.eye(WIDTH) * 2.0**-20), models.tensor("k", 1024)]
    made = models.model(nodes, weights, outputs=[value(name, ["n", WIDTH]) for name in order])
    onnx.save(made, str(tmp_path / "m.onnx"))
    np.savez(tmp_path / "x.npz", **feeds(rows=64))
    verdict = porting.check(tmp_path / "m.onnx", "Ascend310P3", inputs=tmp_path / "x.npz")
    assert verdict.verdict == "fail" and verdict.details["forecast"]["broken"] == {"forecast-range": ["y"]}
    (failed,) = [check for check in verdict.checks if check.verdict == "fail"]
    assert failed.name.endswith("of y") and failed.detail.startswith("forecast-range: 1 outputs lose more")


def test_what_no_keeping_mends_is_undecided_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cancellation follows a matrix product, which the matrix unit rounds: no file helps there."""
    nodes = "r = Reshape(x, s) p = MatMul(r, w) q = Reshape(p, t) y = Sub(q, c)"
    path = small(tmp_path, nodes, "float", np.linspace(1, 2, 16), w=np.eye(4) * 5000, c=np.linspace(1, 2, 16) * 5000 - 1)
    proto = onnx.load(str(path))
    for name, shape in (("s", [4, 4]), ("t", [16])):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape), name))
    onnx.save(proto, str(path))
    files, sarif = tmp_path / "files", tmp_path / "f.sarif"
    options = ("--inputs", tmp_path / "x.npz", "--quiet", "--write-exceptions", files, "--sarif", sarif)
    assert run("check", path, "--target", "Ascend310P3", *options) != 0
    assert "not enough by itself: forecast-undecided: y" in capsys.readouterr().err
    assert "forecast-undecided: y" in (files / "NOT_ENOUGH.txt").read_text()
    results = json.loads(sarif.read_text())["runs"][0]["results"]
    assert [r["level"] for r in results if r["ruleId"] == "forecast-undecided"] == ["error"]
    verdict = porting.check(path, "Ascend310P3", inputs=tmp_path / "x.npz")
    (check,) = [c for c in verdict.checks if "relative error" in c.name]
    assert verdict.details["portability"] == "undecided"
    assert verdict.verdict == check.verdict == "error" and "do not hold with all" in check.detail
    assert verdict.details["forecast"]["broken"] == {"forecast-undecided": ["y"]}
    ported = porting.port(path, tmp_path / "m.port", "Ascend310P3", inputs=tmp_path / "x.npz")
    assert not ported.ok and not (tmp_path / "m.port" / "targets").exists()


def test_what_an_output_hangs_on_in_a_branch_is_not_said_to_be_kept(tmp_path: Path) -> None:
    """Kept, these nodes would mend it; no file can name them."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[16] x, bool b) => (float[16] y) {
        i = If(b) <then_branch = t () => (float[16] d) { s = Add(x, c) d = Sub(s, c) },
                   else_branch = e () => (float[16] n) { n = Neg(x) }>
        y = Tanh(i)
    }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(models.tensor("c", 30000))
    onnx.save(proto, str(tmp_path / "m.onnx"))
    np.savez(tmp_path / "x.npz", x=np.linspace(-1, 1, 16).astype(np.float32), b=np.array(True))
    verdict = porting.check(tmp_path / "m.onnx", "Ascend310P3", inputs=tmp_path / "x.npz")
    assert verdict.verdict == "error" and verdict.details["forecast"]["broken"] == {"forecast-undecided": ["y"]}


def test_exceptions_that_are_not_enough_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(models.large_product(), str(tmp_path / "m.onnx"))
    np.savez(tmp_path / "x.npz", **feeds())
    options = ("--inputs", tmp_path / "x.npz", "--quiet", "--write-exceptions")
    assert run("check", tmp_path / "m.onnx", "--target", "Ascend310P3", *options, tmp_path / "files") == 1
    assert "not enough by itself: forecast-overflow: product" in capsys.readouterr().err
    assert "forecast-overflow: product" in (tmp_path / "files" / "NOT_ENOUGH.txt").read_text()
    assert run("check", tmp_path / "m.onnx", "--target", "Ascend910B3", "-p", "fp16", *options, tmp_path / "enough") == 0
    assert "keep_dtype.cfg" in (said := capsys.readouterr().err) and "not enough" not in said
    assert [file.name for file in (tmp_path / "enough").iterdir()] == ["keep_dtype.cfg"]


@pytest.mark.parametrize(
    ("soc", "said"),
    [
        ("Ascend910B3", "none is needed: "),
        ("Ascend910_9391", "none is needed: "),
        ("Ascend310B1", "none is made: --precision_mode_v2=origin asks for"),
        ("Ascend950PR_9599", "none is made: --precision_mode_v2=origin asks for"),
    ],
)
def test_origin_is_enough_only_where_the_sources_say_so(soc: str, said: str, mlp: Path, tmp_path: Path) -> None:
    forecast = porting.check(mlp, soc, inputs=tmp_path / "x.npz").details["forecast"]
    assert forecast.startswith(said) and ("is unknown" in forecast) == (
        said == "none is made: --precision_mode_v2=origin asks for"
    )


def test_a_verdict_that_fails_says_blocked_and_never_portable(mlp: Path, tmp_path: Path) -> None:
    """By what overflows, by a card too small; and what could not be told is not called portable."""
    onnx.save(models.large_product(), str(tmp_path / "m.onnx"))
    overflows = porting.check(tmp_path / "m.onnx", "Ascend310P3", inputs=tmp_path / "x.npz")
    small = porting.check(mlp, "Ascend310P3", device_memory=1024)
    assert [(v.verdict, v.details["portability"]) for v in (overflows, small)] == [("fail", "blocked")] * 2
    assert porting.check(mlp, "Ascend310P3").details["portability"].startswith("portable")


def test_sizes_that_are_left_open_are_told_with_what_to_type(mlp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", mlp, "--target", "Ascend310P3", "--quiet") == 0
    assert "sizes left open: x[0] n; a compiled model has fixed shapes; give --batch" in capsys.readouterr().out
    assert run("check", mlp, "--target", "Ascend310P3", "--gears", "n=4", "--quiet") == 0
    assert "left open" not in capsys.readouterr().out


def test_inputs_on_which_nothing_is_finite_show_nothing(mlp: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "inf.npz", **{name: np.full_like(array, np.inf) for name, array in feeds().items()})
    with pytest.raises(InputError, match=r"these inputs show nothing: output .* is nowhere finite"):
        porting.check(mlp, "Ascend310P3", inputs=tmp_path / "inf.npz")
