"""`porting check`: verdicts, exit codes, SARIF, and words that claim no more than was done."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

import porting
from porting.ascend.checking import BLOCKED, PORTABLE, REWRITTEN
from porting.ascend.soc import known_cann
from porting.cli import main
from porting.commands.check import command
from porting.errors import UsageError
from tests.graph_models import model, node, weight


def saved(folder: Path, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> Path:
    path = folder / "m.onnx"
    onnx.save(model(nodes, {"x": ["batch", 4]}, {"y": ["batch", 4]}, weights), str(path))
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return saved(tmp_path, [node("MatMul", "x w", "p"), node("Relu", "p", "y")], [weight("w", 4, 4)])


@pytest.fixture
def spectrum(tmp_path: Path) -> Path:
    """DFT has no entry, and no rewrite."""
    path = tmp_path / "m.onnx"
    nodes = [node("DFT", "x", "y", axis=1)]
    onnx.save(model(nodes, {"x": ["batch", 4, 1]}, {"y": ["batch", 4, 2]}, []), str(path))
    return path


def test_a_portable_graph(plain: Path) -> None:
    verdict = porting.check(plain, "Ascend310P3")
    assert verdict.ok and verdict.details["portability"] == PORTABLE and verdict.evidence_level == "static"
    assert verdict.details["precision"] == "fp16" and verdict.details["precision_mode"] == "--precision_mode_v2=fp16"
    assert "nothing ran on Ascend" in verdict.line() and "works on" not in json.dumps(verdict.to_dict())
    assert porting.check(plain, "Ascend910B3").details["precision"] == "fp32"


def test_rewrites_that_were_not_compared_are_told(tmp_path: Path, plain: Path) -> None:
    path = tmp_path / "mean.onnx"
    onnx.save(model([node("Selu", "x", "y", alpha=1.5)], {"x": [2, 4]}, {"y": [2, 4]}, []), str(path))
    found = porting.check(path, "Ascend910B3")
    assert found.details["portability"] == REWRITTEN and "no rewrite was run" in found.line()
    assert "no rewrite" not in porting.check(plain, "Ascend910B3").line()


def test_fp32_where_the_matrix_unit_takes_fp16_only(plain: Path) -> None:
    verdict = porting.check(plain, "Ascend310P3", "fp32")
    assert verdict.exit_code == 1 and verdict.details["portability"] == BLOCKED
    assert any("fp16 only" in str(c.value) + c.detail for c in verdict.checks if c.verdict == "fail")
    assert porting.check(plain, "Ascend910B3", "fp32").ok


@pytest.mark.parametrize(
    ("dtype", "soc", "precision", "chosen", "mode"),
    [
        ("FLOAT16", "Ascend910B3", None, "fp16", "origin"),
        ("FLOAT16", "Ascend310P3", None, "fp16", "fp16"),
        ("BFLOAT16", "Ascend910B3", None, "bf16", "origin"),
        ("BFLOAT16", "Ascend310P3", None, "fp16", "fp16"),
        ("FLOAT16", "Ascend910B3", "source", "fp16", "origin"),
        ("FLOAT", "Ascend910B3", "source", "fp32", "origin"),
        ("BFLOAT16", "Ascend910B3", "source", "bf16", "origin"),
        ("BFLOAT16", "Ascend910B3", "fp16", "fp16", "fp16"),
        ("FLOAT", "Ascend910B3", "fp16", "fp16", "fp16"),
        ("FLOAT", "Ascend910B3", "bf16", "bf16", "mixed_bfloat16"),
    ],
)
def test_what_a_graph_computes_in_decides(
    dtype: str, soc: str, precision: str | None, chosen: str, mode: str, tmp_path: Path
) -> None:
    kind = getattr(onnx.TensorProto, dtype)
    inputs, outputs = ([onnx.helper.make_tensor_value_info(name, kind, ["batch", 4])] for name in "xy")
    body = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"], name="negate")], "half", inputs, outputs)
    made = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(tmp_path / "m.onnx"))
    details = porting.check(tmp_path / "m.onnx", soc, precision).details
    assert (details["precision"], details["precision_mode"]) == (chosen, f"--precision_mode_v2={mode}")


def test_casts_at_the_ends_of_a_half_graph_make_it_no_other(tmp_path: Path) -> None:
    float16, cast = onnx.TensorProto.FLOAT16, onnx.helper.make_node
    nodes = [cast("Cast", ["x"], ["a"], name="in", to=float16), cast("Exp", ["a"], ["b"], name="exp")]
    nodes.append(cast("Cast", ["b"], ["y"], name="out", to=onnx.TensorProto.FLOAT))
    inputs, outputs = ([onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4])] for name in "xy")
    made = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "half", inputs, outputs),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(made, str(tmp_path / "m.onnx"))
    assert porting.check(tmp_path / "m.onnx", "Ascend910B3").details["precision"] == "fp16"


def test_half_floats_are_not_widened_and_it_says_so(tmp_path: Path) -> None:
    kind = onnx.TensorProto.FLOAT16
    inputs, outputs = ([onnx.helper.make_tensor_value_info(name, kind, [4])] for name in "xy")
    body = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"], name="negate")], "half", inputs, outputs)
    made = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, str(tmp_path / "m.onnx"))
    asked, left = (porting.check(tmp_path / "m.onnx", "Ascend910B3", p).details["precision_notes"] for p in ("fp32", None))
    assert "computes in fp16" in asked[0] and not any("widens" in note for note in left)


def test_what_has_no_entry_blocks_and_is_named(spectrum: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        command,
        [str(spectrum), "--target", "Ascend910B3", "--json", "--quiet", "--sarif", str(tmp_path / "f.sarif")],
        standalone_mode=False,
    )
    assert result.return_value == 1, result.output
    found = json.loads(result.stdout)
    blocking = [f for f in found["details"]["findings"] if f["status"] == "blocks"]
    assert {f["node"] for f in blocking} == {"y"} and all(f["source"] and f["confidence"] for f in blocking)
    sarif = json.loads((tmp_path / "f.sarif").read_text(encoding="utf-8"))
    (run,) = sarif["runs"]
    assert sarif["version"] == "2.1.0" and len(run["results"]) == len(found["details"]["findings"])
    for one in run["results"]:
        assert run["tool"]["driver"]["rules"][one["ruleIndex"]]["id"] == one["ruleId"]
    assert {r["level"] for r in run["results"]} >= {"error"}


def test_targets_and_releases_that_are_none(plain: Path) -> None:
    with pytest.raises(UsageError, match="has none"):
        porting.check(plain, "cpu")
    with pytest.raises(UsageError):
        porting.check(plain, "Ascend910B3", cann="1.2.3")
    with pytest.raises(UsageError, match="unknown target"):
        porting.check(plain, "Ascend310P9")


def test_without_a_release_the_verdict_says_so(plain: Path) -> None:
    assert "no --cann" in porting.check(plain, "Ascend910B3").details["sources"]
    release = known_cann()[-1]
    found = porting.check(plain, "Ascend910B3", cann=release)
    assert found.details["cann"] == release and "no --cann" not in found.details["sources"]


def test_the_help_claims_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    assert "Nothing here ever ran on Ascend" in " ".join(capsys.readouterr().out.split())


def test_what_a_person_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The words portable and blocked, the mode, each rule with its nodes, what mends it or why nothing does, the AI CPU and the notes."""

    def said(nodes: list, shape: list, *options: str) -> str:
        onnx.save(model(nodes, {"x": shape}, {"y": None}, []), str(tmp_path / "m.onnx"))
        with pytest.raises(SystemExit):
            main(["check", str(tmp_path / "m.onnx"), "--quiet", *options])
        return " ".join(capsys.readouterr().out.replace("\n", " ").split())

    blocked = said([node("DFT", "x", "y", axis=1)], ["n", 4, 1], "--target", "Ascend310P3")
    assert (
        "blocked, for Ascend310P3 (310P)" in blocked
        and "BLOCKS missing-spectra" in blocked
        and "--precision_mode_v2=fp16" in blocked
    )
    rewritten = said([node("Shape", "x", "s", start=1), node("Cast", "s", "y", to=1)], ["n", "m"], "--target", "Ascend910B")
    assert (
        "portable after rewrites (shape_slice 1), for Ascend910B (910A)" in rewritten
        and "rewritten by shape_slice" in rewritten
    )
    assert "first-generation 910, which has no bf16" in rewritten and "memory they have is not known" in rewritten
    unknown = said([node("Relu", "x", "y")], ["n", "m"], "--target", "Ascend310B4")
    assert "portable, for Ascend310B4" in unknown and "unknown" in unknown


@pytest.mark.parametrize("option", ["--sarif", "--junit"])
def test_a_report_takes_the_place_of_nothing_but_a_report(tmp_path: Path, plain: Path, option: str) -> None:
    before, report = plain.read_bytes(), tmp_path / "report"
    asked = [str(plain), "--target", "Ascend910B3", "--quiet", option]

    def told(place: Path) -> Result:
        return CliRunner().invoke(command, [*asked, str(place)], standalone_mode=False)

    refused = told(plain)
    assert isinstance(refused.exception, UsageError) and option in str(refused.exception) and plain.read_bytes() == before
    for _ in range(2):  # an old report is replaced
        assert told(report).return_value == 0 and report.stat().st_size
