"""What cannot go to Ascend, through the command line: a clear error, or a blocker that is named, with the exit code for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import parser

from porting.cli import main
from tests.converters.test_onnx_places import SHA1, outside


def saved(folder: Path, text: str, opset: int, **weights: np.ndarray) -> Path:
    proto = parser.parse_model(f'<ir_version: {8 if opset < 19 else 10}, opset_import: ["" : {opset}]>\ntest {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    onnx.save(proto, str(folder / "m.onnx"))
    return folder / "m.onnx"


RELU = "(float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }"


def called(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `porting`."""
    code = 0
    try:
        main([str(a) for a in arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def blocked_by(capsys: pytest.CaptureFixture[str], path: Path, target: str = "Ascend910B3") -> dict[str, set[str]]:
    """Rule -> the nodes that it blocks; `check` says 1 for them, and `port` writes nothing."""
    code, out, _ = called(capsys, "check", path, "--target", target, "--json", "--quiet")
    found: dict[str, Any] = json.loads(out)
    assert code == 1 and found["verdict"] == "fail" and found["details"]["portability"] == "blocked"
    port = path.parent / "m.port"
    assert called(capsys, "port", path, "-o", port, "--target", target, "--quiet")[0] == 1 and not port.exists()
    rules: dict[str, set[str]] = {}
    for finding in found["details"]["findings"]:
        if finding["status"] == "blocks":
            rules.setdefault(finding["rule"], set()).add(finding["node"])
            assert finding["why"], "what mends it, or why nothing does"
            assert any(c["name"].startswith(finding["rule"]) and finding["why"] in c["detail"] for c in found["checks"])
    for check in found["checks"]:
        assert check["verdict"] == "fail" and check["where"] and check["detail"]
    return rules


# --- blockers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "opset", "rule", "node"),
    [
        (
            "(int64 n, float[2] x) => (float[2] y) { c = Constant<value = bool {1}>() y = Loop(n, c, x) <body = b (int64 i, bool a, float[2] s)"
            " => (bool d, float[2] t) { d = Identity(a) t = Relu(s) }> }",
            18,
            "missing-loop",
            "Loop_1",
        ),
        ("(float[2] x, float[2] m) => (float[2] y) { y = Mod<fmod = 1>(x, m) }", 17, "mod-fmod", "Mod_0"),
        (
            "(float[S, 1, 2] x, float[1, 3, 2] w, float[1, 3, 1] r) => (float h) { y, h = GRU<hidden_size = 1, linear_before_reset = 1>(x, w, r) }",
            17,
            "gru-reset",
            "GRU_0",
        ),
        (
            "(float[2, 3] x, int64[2] axes) => (float y) { s = ReduceL1<noop_with_empty_axes = 1>(x, axes) y = DFT(s) }",
            20,
            "missing-spectra",
            "DFT_1",
        ),
        (
            '(float[2, 3] x) => (float y) { g = Gelu(x) p = Constant<value = int64[4] {0, 1, 0, 1}>() y = Pad<mode = "wrap">(g, p) q = Constant<value = int64[2] {3, 2}>() z = Reshape(g, q) }',
            22,
            "opset-too-high",
            "Pad_2",
        ),
        ("(float[2, 3] x) => (float y) { y = Relu(x) }", 7, "opset-too-low", "Relu_0"),
    ],
    ids=[
        "a Loop of a computed count",
        "a divisor that is fed",
        "a GRU of any length",
        "no entry",
        "only what has no form at 18",
        "an opset below 8",
    ],
)
def test_a_blocker_names_its_nodes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, opset: int, rule: str, node: str
) -> None:
    found = blocked_by(capsys, saved(tmp_path, text, opset))
    assert found[rule] == {node}


def test_nodes_of_a_newer_opset_are_rewritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = saved(tmp_path, "(float[2, 3] x) => (float[2, 3] y) { g = Gelu(x) y = Relu(g) }", 22)
    code, out, _ = called(capsys, "check", path, "--target", "Ascend910B3", "--json", "--quiet")
    assert code == 0 and json.loads(out)["details"]["portability"] == "portable after rewrites"


UNSIZED = [
    ("(float[2, 3] x) => (int64[2, N] y) { y = NonZero(x) }", "NonZero_0"),
    ("(float[2, 3] x) => (float[N] y) { y = Unique(x) }", "Unique_0"),
    ("(float[1, 8, 4] b, float[1, 2, 8] s) => (int64[N, 3] y) { y = NonMaxSuppression(b, s) }", "NonMaxSuppression_0"),
    ("(float[2, 3] x, bool[2] c) => (float[N, 3] y) { y = Compress<axis = 0>(x, c) }", "Compress_0"),
    (
        "(int64 n) => (int64[N] y) { z = Constant<value = int64 {0}>() o = Constant<value = int64 {1}>() y = Range(z, n, o) }",
        "Range_2",
    ),
    ("(float[2, 3] x) => (int64[N, 2] y) { n = NonZero(x) y = Transpose(n) }", "NonZero_0"),
]


@pytest.mark.parametrize(("text", "node"), UNSIZED, ids=lambda text: text if " " not in text else "")
def test_outputs_whose_sizes_hang_on_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, node: str) -> None:
    """`check` names the node and says where to end the graph, and `port` refuses in the same words."""
    path = saved(tmp_path, text, 17)
    rules = blocked_by(capsys, path)
    assert rules.pop("unsized-output") == {node} and set(rules) <= {"input-dtype"}
    code, *told = called(capsys, "port", path, "-o", tmp_path / "n.port", "--target", "Ascend910B3", "--quiet")
    said = " ".join("".join(told).split())
    assert code == 1 and "unsized-output" in said and node in said and "--outputs" in said
    assert "show nothing" not in said


def test_sizes_that_hang_on_numbers_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What is used up inside the graph is dynamic execution, which is slow: no output's size hangs on it."""
    path = saved(
        tmp_path,
        "(float[2, 3] x) => (float[2] y) { n = NonZero(x) f = Cast<to = 1>(n) y = ReduceMax<axes = [1], keepdims = 0>(f) }",
        17,
    )
    code, out, _ = called(capsys, "check", path, "--target", "Ascend910B3", "--json", "--quiet")
    told = [f for f in json.loads(out)["details"]["findings"] if "sized" in f["rule"]]
    assert code == 0 and [(f["node"], f["rule"], f["effect"]) for f in told] == [("NonZero_0", "sized-by-values", "slow")]


@pytest.mark.parametrize(
    ("text", "rule", "node"),
    [
        ('(float[3, 3] x) => (float[3] y) { y = Einsum<equation = "ii->i">(x) }', "einsum-equation", "Einsum_0"),
        (
            "(double[3, 3] x) => (double[5, 3] y) { p = Constant<value = int64[4] {1, 0, 1, 0}>() v = Constant<value = double {1.0}>()"
            " y = Pad(x, p, v) }",
            "pad-value",
            "Pad_2",
        ),
    ],
)
def test_what_no_page_names_and_no_pass_rewrites_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, rule: str, node: str
) -> None:
    path = saved(tmp_path, text, 17)
    code, out, _ = called(capsys, "check", path, "--target", "Ascend310P3", "--json", "--quiet")
    (found,) = [f for f in json.loads(out)["details"]["findings"] if f["rule"] == rule]
    assert code == 0 and (found["node"], found["effect"], found["status"]) == (node, "unknown", "noted")
    assert found["rewrite"] and found["why"] and "atlasoxol" in found["source"]


def test_products_in_double_are_not_promised_to_the_ai_cpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """No kernel takes them: `origin` keeps the dtype and refuses, fp16 casts down or refuses."""
    path = saved(tmp_path, "(double[2, 2] x) => (double[2, 2] y) { a = MatMul(x, x) y = Add(a, a) }", 17)
    assert blocked_by(capsys, path) == {"double-kept": {"MatMul_0"}}
    code, out, _ = called(capsys, "check", path, "--target", "Ascend310P3", "--json", "--quiet")
    details = json.loads(out)["details"]
    assert code == 0 and details["ai_cpu"]["nodes"] == ["Add_1"]
    assert [f["effect"] for f in details["findings"] if f["rule"] == "double-lowered"] == ["unknown"]


@pytest.mark.parametrize("op", ["IsNaN", "IsInf"])
def test_a_question_that_a_chip_without_nan_cannot_answer(capsys: pytest.CaptureFixture[str], tmp_path: Path, op: str) -> None:
    """Where Inf and NaN become finite numbers the answer is wrong in silence: blocked there, and not on A2."""
    path = saved(tmp_path, f"(float[2, 3] x) => (bool[2, 3] y) {{ y = {op}(x) }}", 17)
    for target in ("Ascend310", "Ascend310P3", "Ascend310B1", "Ascend910A"):
        assert blocked_by(capsys, path, target) == {"saturation": {f"{op}_0"}}
    assert called(capsys, "check", path, "--target", "Ascend910B3", "--quiet")[0] == 0


def test_a_junit_file_holds_every_finding(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A testcase for each node that a rule speaks of, with the rule and the effect; what blocks is a failure."""
    path = saved(
        tmp_path, "(float[2, 3] x, float[2, 3] m) => (float[2, 3] y) { a = Mod<fmod = 1>(x, m) y = Mod<fmod = 1>(a, m) }", 17
    )
    code, out, _ = called(capsys, "check", path, "--target", "Ascend910B3", "--json", "--quiet", "--junit", tmp_path / "j.xml")
    findings = json.loads(out)["details"]["findings"]
    root = ElementTree.parse(tmp_path / "j.xml").getroot()
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert code == 1 and {f"{f['rule']}: {f['node'] or 'the graph'}" for f in findings} <= set(cases)
    for node in ("Mod_0", "Mod_1"):
        failure = cases[f"mod-fmod: {node}"].find("failure")
        assert failure is not None and failure.get("message", "").startswith("wrong: ") and failure.text
        assert f"node: {node} (Mod)" in failure.text and "rewrite: mod_fmod" in failure.text and "source: " in failure.text
    noted = [f"{f['rule']}: {f['node'] or 'the graph'}" for f in findings if f["status"] == "noted"]
    assert noted and all(cases[name].find("failure") is None and cases[name].find("system-out") is not None for name in noted)
    assert int(root.get("failures", 0)) == sum(case.find("failure") is not None for case in cases.values())
    assert int(root.get("tests", 0)) == len(cases)


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("Ascend310P9", "did you mean 'Ascend310P"),
        ("310P3", "did you mean 'Ascend310P3"),
        ("Ascend910", "a soc_version says which one: Ascend910"),
    ],
)
def test_a_soc_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path, target: str, hint: str) -> None:
    code, _, err = called(capsys, "check", saved(tmp_path, RELU, 17), "--target", target)
    assert code == 2 and f"unknown target '{target}'" in err and hint in err


def test_an_older_chip_with_the_name_of_a_family(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Ascend910B is the first 910; who writes it mostly means an Ascend910B1 to B4."""
    path = saved(tmp_path, RELU, 17)
    code, out, _ = called(capsys, "check", path, "--target", "Ascend910B", "--json", "--quiet")
    details = json.loads(out)["details"]
    assert code == 0 and details["soc"] == "Ascend910B" and details["family"] == "910A"
    (note,) = details["notes"]
    assert "first-generation 910" in note and "Ascend910B1" in note
    code, out, _ = called(capsys, "check", path, "--target", "Ascend910B", "-p", "bf16", "--json", "--quiet")
    assert code == 1 and json.loads(out)["details"]["portability"] == "blocked"


@pytest.mark.parametrize("release", ["1.2.3", "latest", ""])
def test_a_release_that_the_base_does_not_know(capsys: pytest.CaptureFixture[str], tmp_path: Path, release: str) -> None:
    code, _, err = called(capsys, "check", saved(tmp_path, RELU, 17), "--target", "Ascend910B3", "--cann", release)
    assert code == 2 and "CANN" in err and "next:" in err


@pytest.mark.parametrize("command", ["check", "convert", "port"])
def test_a_chip_that_came_after_the_release(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    written = () if command == "check" else ("-o", tmp_path / "m.port")
    path = saved(tmp_path, RELU, 17)
    code, out, err = called(capsys, command, path, *written, "--target", "Ascend950PR_9599", "--cann", "8.0.0", "--quiet")
    assert code == 2 and "came with 9.0.0" in err and "release notes" in err and not (tmp_path / "m.port").exists()
    code, out, _ = called(capsys, "check", path, "--target", "Ascend910_9392", "--cann", "5.0.4", "--json", "--quiet")
    assert code == 0 and "oldest page" in json.loads(out)["details"]["notes"][-1]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_precision_of_the_cpu(capsys: pytest.CaptureFixture[str], tmp_path: Path, precision: str) -> None:
    """The vendor has an int8 of its own, and how to type it is said."""
    path = saved(tmp_path, RELU, 17)
    code, out, _ = called(capsys, "check", path, "--target", "Ascend310P3", "-p", precision, "--quiet")
    said = " ".join(out.split())
    assert code == 1 and "-p w8a8 --calibration x.npz" in said and f"-p {precision}" not in said


# --- files --------------------------------------------------------------------------------------------------------


def test_a_checksum_in_external_data_is_named_and_not_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = outside(tmp_path, checksum=SHA1)
    code, out, _ = called(capsys, "check", path, "--target", "Ascend910B3", "--json", "--quiet")
    details = json.loads(out)["details"]
    (finding,) = [f for f in details["findings"] if f["rule"] == "external-key"]
    assert code == 0 and finding["status"] == "mended" and "checksum" in finding["detail"]
    assert details["portability"] == "portable after rewrites" and "the files of the port" in details["rewrites"]
    assert called(capsys, "convert", path, "-o", tmp_path / "m.port", "--target", "Ascend910B3", "--quiet")[0] == 0
    written = onnx.load(str(tmp_path / "m.port" / "model.onnx"), load_external_data=False)
    assert {e.key for t in written.graph.initializer for e in t.external_data} <= {"location", "offset", "length"}


def test_a_checksum_of_another_file_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = outside(tmp_path, checksum="0" * 40)
    code, _, err = called(capsys, "check", path, "--target", "Ascend910B3")
    assert code == 2 and "is not the file" in err


def test_what_is_told_says_how_far_the_sources_reach(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Once each: what is placed off the fast path, of how many operators nothing is known, and how many rules name no release."""
    path = saved(
        tmp_path,
        "(double[2, 2] x, float[1, 1, 4, 4] p) => (double[2, 2] y, float[1, 1, 4, 4] q) { y = Add(x, x) r = Relu(p) q = Exp(r) }",
        17,
    )
    code, out, _ = called(capsys, "check", path, "--target", "Ascend910B3", "--cann", "9.0.0")
    said = " ".join(out.split())
    assert (
        code == 0
        and "a quiet fallback: 1 nodes with" in said
        and ": Add_0 (by the rules double, pool-window; of 3 of the 3 kinds" in said
    )
    assert re.search(r"of the (\d+) that speak here \1 come from sources that name no release", said)
    assert said.count("forecast of overflows") == 1 and said.count("quiet fallback") == 1
    pools = saved(
        tmp_path, "(float[1, 1, 4, 4] x) => (float[1, 1, 3, 3] y) { a = Relu(x) y = MaxPool<kernel_shape = [2, 2]>(a) }", 17
    )
    _, out, _ = called(capsys, "check", pools, "--target", "Ascend310P3")
    said = " ".join(out.split())
    assert "quiet fallback: no node (by the rules double, pool-window; of 1 of the 2 kinds" in said
    assert said.count("forecast of overflows") == 1


def test_branches_of_different_sizes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Which of them is taken is fed: no size can be compiled for the output. Of the same size, or inside of the graph alone, they may differ."""
    then = "then_branch = a () => (float[{0}, 3] t) {{ k = Constant<value_ints = [{0}, 3]>() m = ReduceMax<keepdims = 0>(x) t = Expand(m, k) }}"
    text = (
        "(float[4, 3] x, bool c) => (float[n, 3] y) {{ y = If(c) <"
        + then
        + ", else_branch = b () => (float[4, 3] u) {{ u = Relu(x) }}> }}"
    )
    assert blocked_by(capsys, saved(tmp_path, text.format(2), 17)) == {"unsized-output": {"If_0"}}
    same = saved(tmp_path, text.format(4), 17)
    assert called(capsys, "check", same, "--target", "Ascend910B3", "--quiet")[0] == 0
    inner = text.format(2).replace("(float[n, 3] y)", "(float z)").replace("> }", "> z = ReduceMax<keepdims = 0>(y) }")
    assert called(capsys, "check", saved(tmp_path, inner, 17), "--target", "Ascend910B3", "--quiet")[0] == 0
