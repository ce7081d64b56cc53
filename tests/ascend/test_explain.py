"""`porting explain`: codes and logs of Ascend's tools, offline."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.ascend import explanations
from porting.ascend.explained_text import LABELS, explanation_text, report_text
from porting.ascend.explanations import (
    FINDINGS_KEPT,
    KINDS,
    LINES_KEPT,
    ROLES,
    STATUSES,
    codes_of_line,
    explain_code,
    explain_log,
    known_codes,
    looks_like_code,
)
from porting.ascend.log_lines import LONGEST, SEAM, numbered_lines
from porting.cli import _exit_code
from porting.errors import InputError, UsageError

DATA = json.loads((Path(explanations.__file__).parent / "data" / "codes.json").read_text(encoding="utf-8"))
PLOG = """ATC start working now, please wait for a moment.
ATC run failed, Please check the detail log, Try 'atc --help' for more information
[WARNING] GE(41,atc.bin): W11001: Op [a] does not hit the high-priority operator information library
EZ3002: [PID: 7] 2026-01-01 Optype [Conv2D] of Ops kernel [AIcoreEngine] is unsupported. Reason: dtype
EZ3003: No supported Ops kernel and engine are found for [c], optype [Conv2D].
EZ3003: No supported Ops kernel and engine are found for [d], optype [Conv2D].
        E19019: something that no table has
"""
# one line for every message of the table
SAMPLES = {
    "atc-failed": "ATC run failed, Please check",
    "atc-success": "ATC run success, welcome to the next use.",
    "library": "error while loading shared libraries: libascend_hal.so: cannot open shared object file",
    "atc-missing": "build.sh: line 12: atc: command not found",
    "module": "ModuleNotFoundError: No module named 'decorator'",
    "numpy": "A module that was compiled using NumPy 1.x cannot be run in NumPy 2.0",
    "protobuf": "TypeError: Descriptors cannot be created directly.",
    "dynamic-chip": "Reason: Dynamic shape is not supported on this chip!",
    "opp-version": "the opp version of the model does not match",
    "killed-by-system": "Out of memory: Killed process 1234 (atc.bin)",
    "host-memory": "terminate called after throwing an instance of 'std::bad_alloc'",
    "device-memory": "Call rtMalloc fail, purpose: page caching, type = 2, size:3221291008",
    "context": "rtGetDevMsg execute failed, reason=[context pointer null]",
    "aicore": "an aicore exception occurred, stream_id=3",
    "aicpu": "aicpu exception, kernel NonZero",
    "heartbeat": "device 0 lost heartbeat",
    "ecc": "HBM multi-bit ECC",
    "cqe": "error cqe status 12",
    "no-parser": "No parser is registered for Op [x, optype [y]]",
    "no-kernel": "No supported Ops kernel and engine are found",
    "slow-kernel": "Op x does not hit the high-priority operator information library",
    "device-file": "open device 2 failed, runtime",
    "disk": "write failed: No space left on device",
    "rights": "cannot open kernel_meta: Permission denied",
    "graph-failed": "GRAPH_FAILED in the engine",
    "segfault": "Segmentation fault (core dumped)",
    "zh-device-memory": "设备内存不足，请检查",
    "zh-compile": "算子编译失败：Conv2D",
    "zh-operator": "不支持的算子 NonZero",
    "zh-convert": "模型转换失败",
    "zh-load": "模型加载失败",
    "zh-timeout": "等待对端超时",
    "zh-aicore": "AICORE 异常",
    "zh-aicpu": "AICPU 执行异常",
    "zh-device": "设备 3 丢失",
    "zh-driver": "驱动版本过低",
    "zh-release": "软件包版本不配套",
    "zh-environment": "环境变量 ASCEND_OPP_PATH 未设置",
    "zh-dtype": "数据类型不支持",
    "zh-shape": "输入 shape 不匹配",
    "zh-overflow": "算子计算溢出",
    "zh-file": "文件 a.json 不存在",
    "zh-module": "缺少 decorator 模块",
    "zh-rights": "没有权限",
    "zh-disk": "磁盘空间不足",
    "zh-argument": "参数 soc_version 非法",
}


def log(text: str, encoding: str = "utf-8") -> explanations.LogReport:
    return explain_log(io.BytesIO(text.encode(encoding)))


# --- the table ----------------------------------------------------------------------------------------------------


def test_every_entry_is_whole_in_both_languages_and_says_how_it_is_known() -> None:
    assert len(DATA["codes"]) > 600
    for entry in (*DATA["codes"].values(), *DATA["texts"]):
        assert entry["en"] and re.search("[一-鿿]", entry["zh"]), entry
        assert entry["kind"] in KINDS and entry["advice"] in DATA["advice"]
    for entry in (*DATA["codes"].values(), *DATA["texts"], *DATA["series"], *DATA["advice"].values()):
        assert entry["status"] in STATUSES
        assert (entry["source"] in DATA["sources"]) if entry["status"] != "guess" else entry["source"] == ""
    for advice in DATA["advice"].values():
        assert all(advice[lang][part] for lang in ("en", "zh") for part in ("cause", "do"))
        assert advice["status"] != "documented"  # what to do is at least partly ours
    used = {entry["advice"] for entry in (*DATA["codes"].values(), *DATA["texts"])}
    assert used == DATA["advice"].keys()
    assert all(labels.keys() == LABELS["en"].keys() for labels in LABELS.values())
    assert set(ROLES) | set(STATUSES) <= LABELS["en"].keys()


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("E10016", "not in the model"),
        ("E10009", "more than one of dynamic_batch_size"),
        ("EZ3003", "no engine"),
        ("W11001", "fast kernel library"),
        ("145013", "no compiled gear"),
        ("107002", "no context"),
        ("207001", "out of device memory"),
        ("507015", "AI Core failed"),
        ("507008", "SoC is another"),
        ("100002", "initialised already"),
        ("EI0006", "timed out"),
        ("E40020", "Python module"),
        ("E16005", "opset domains"),
    ],
)
def test_codes_that_the_documents_explain(code: str, word: str) -> None:
    told = explain_code(code)
    assert word in told.means and told.means_status == "documented" and told.means_source
    assert explain_code(code.lower()) == told
    assert explain_code(code, "zh").means != told.means


def test_a_constant_names_its_code() -> None:
    assert explain_code("acl_error_rt_context_null") == explain_code("107002")
    assert explain_code("ACL_SUCCESS").code == "0"
    assert explain_code("EE9999").means_status == "guess"


def test_an_unknown_code_is_refused_with_its_series() -> None:
    with pytest.raises(UsageError) as refused:
        explain_code("EI0999")
    assert "HCCL" in refused.value.next and "in no table" in refused.value.what
    with pytest.raises(UsageError, match="unknown language"):
        explain_code("E10016", "fr")
    for text in ("", "\x1b[2J", "E" * 10_000, "E1001६"):
        with pytest.raises(UsageError):
            explain_code(text)
        assert not looks_like_code(text)


# --- lines --------------------------------------------------------------------------------------------------------


def test_every_message_of_the_table_is_met_by_a_line_of_its_own() -> None:
    assert SAMPLES.keys() == {text["id"] for text in DATA["texts"]}
    assert {name: codes_of_line(line) for name, line in SAMPLES.items()} == {name: [name] for name in SAMPLES}


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        ("E10016: Opname x", ["E10016"]),
        ("Memory_Allocation_Failure(EL0004): Failed", ["EL0004"]),
        ("错误码E19999表示内部错误", ["E19999"]),
        ("错误码：507011", ["507011"]),
        ("open device 2 failed, runtime result = 507033.[FUNC:x]", ["507033"]),
        ("error code is 507011, then errorCode: 500002", ["507011", "500002"]),
        ("retCode=107002", ["107002"]),
        ("(External) ACL error, the error code is : 500002", ["500002"]),
        ("returned ACL_ERROR_RT_CONTEXT_NULL", ["107002"]),
        ("aclrtSetDevice(deviceId) failed: 507033 (main.cpp:72)", ["507033"]),
        ("EG1234: a code of no table", ["EG1234"]),
        ("ret 107999 of no table", ["107999"]),
        ("size 507011 bytes, pid=107002, 507011", []),  # numbers that nobody calls a code
        ("tensor E12345_w, block-E10016, 0xE10016AB, XE10016, E100160", []),
        ("part number E76543 in stock", []),
        ("E10016 and E10016", ["E10016", "E10016"]),
        ("[INFO] waiting: no out of memory here", []),
        ("[INFO] GE: E10016: but a code is read there too", ["E10016"]),
    ],
)
def test_codes_of_a_line(line: str, codes: list[str]) -> None:
    assert codes_of_line(line) == codes


def test_a_log_gives_the_first_cause_first_then_all_in_order() -> None:
    report = log(PLOG)
    assert [(f.code, f.role, f.count, f.lines) for f in report.findings] == [
        ("EZ3002", "first cause", 1, (4,)),
        ("atc-failed", "generic", 1, (2,)),
        ("W11001", "warning", 1, (3,)),
        ("EZ3003", "follows", 2, (5, 6)),
        ("E19019", "unknown", 1, (7,)),
    ]
    assert report.lines == 7 and report.encodings == ("ascii",) and report.more == 0
    text = report_text(report)
    assert text.index("EZ3002") < text.index("atc-failed") < text.index("E19019: in no table that was read")
    assert "a guess" in text and "nothing here was checked on hardware" in text


def test_messages_that_a_log_tells_without_a_code() -> None:
    lines = (
        "[ERROR] RUNTIME(1,python): [npu_driver.cc] [drv api] halMemAlloc failed: device_id=0, size=17179869184, ret=6",
        "[ERROR] RUNTIME(1): ReportExceptProc:[EXEC]Task exception! device_id=0, retCode=0x91, [the model stream execute failed].",
        "算子 Conv 编译失败",
    )
    for line, wanted in zip(lines, ("device-memory", "aicore", "zh-compile"), strict=True):
        found = log(f"{line}\n[ERROR] HCCL(1,python): EI0006\n").findings
        assert {f.code for f in found} == {wanted, "EI0006"}, line


def test_errors_without_a_code_are_counted() -> None:
    lines = [
        "[ERROR] GE(1,atc): something else\x1b[2J",
        "[INFO] GE: all is well",
        "[ERROR] GE: E10016 wrong",
        "  [ERROR] TBE: and more",
    ] * 12
    report = explain_log(io.BytesIO("\n".join(lines).encode()))
    assert (
        report.unexplained == 24 and report.unexplained_lines[:3] == (1, 4, 5) and len(report.unexplained_lines) == LINES_KEPT
    )
    assert report.unexplained_sample.startswith("[ERROR] GE(1,atc): something else") and "\x1b" not in report.unexplained_sample
    assert "24 lines that are marked as errors" in report_text(report) and "24 行标记为错误" in report_text(report, "zh")
    assert "marked as errors" not in report_text(explain_log(io.BytesIO(b"[ERROR] E10016: wrong\nerrors\n")))


def test_a_wrapper_is_the_first_cause_only_where_nothing_else_is() -> None:
    assert [f.role for f in log("EZ9999: inner\nW11001: slow\n").findings] == ["first cause", "warning"]
    assert [f.code for f in log("EZ9999: inner\nE40020: no module\n").findings] == ["E40020", "EZ9999"]
    assert [f.role for f in log("W11001: slow\nATC run success\n").findings] == ["warning", "note"]


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "utf-16", "utf-8-sig"])
def test_encodings(encoding: str) -> None:
    report = log("第一行\n错误码E10016：节点不存在\r\n设备内存不足\n", encoding)
    assert [(f.code, f.lines) for f in report.findings] == [("E10016", (2,)), ("zh-device-memory", (3,))]
    assert "节点不存在" in report.findings[0].sample
    assert report.encodings == (("gbk",) if encoding == "gbk" else ("utf-8",))


def test_control_characters_of_a_log_reach_no_terminal() -> None:
    report = log("E10016: \x1b[31mred\x07 \u202e back\n")
    assert report.findings[0].sample.isprintable() and "\\x1b[31mred" in report.findings[0].sample
    assert "\x1b" not in report_text(report) and "\u202e" not in report_text(report)


def test_a_line_of_many_megabytes_is_read_in_pieces_and_no_code_is_cut() -> None:
    filler = "x" * 60 + " "
    for shift in range(0, 40, 7):
        line = filler * (3 * LONGEST // len(filler)) + "y" * shift + " E10016: " + filler * (LONGEST // len(filler))
        (found,) = log(f"first\n{line}\nlast\n").findings
        assert (found.code, found.count, found.lines) == ("E10016", 1, (2,))
    pieces = list(numbered_lines(io.BytesIO(b"z" * (5 * LONGEST) + b"\nend")))
    assert max(len(piece) for _, piece in pieces) <= LONGEST + SEAM
    assert {number for number, _ in pieces} == {1, 2}
    assert b"".join(piece for number, piece in pieces if number == 1) == b"z" * (5 * LONGEST)


def test_what_a_log_can_make_us_keep_is_bounded() -> None:
    many = "\n".join(f"E1{n:04d}: a" for n in range(8000))
    report = log(many)
    assert len(report.findings) == FINDINGS_KEPT and report.more == FINDINGS_KEPT
    (found,) = log("E10016: x\n" * 5000).findings
    assert found.count == 5000 and len(found.lines) == LINES_KEPT


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=3000), st.lists(st.sampled_from([b"E10016: a", b"\n", b"EZ9999", b"\xff\xfe", b"\xb2\xe2", b"507011"]))
)
def test_any_bytes_are_a_log(noise: bytes, pieces: list[bytes]) -> None:
    report = explain_log(io.BytesIO(b"".join(pieces) + noise))
    assert all(f.sample.isprintable() and f.count >= len(f.lines) >= 1 and f.role in ROLES for f in report.findings)
    json.dumps(report.to_dict())
    for lang in ("en", "zh"):
        assert report_text(report, lang)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(sorted(known_codes())), st.just("word")), max_size=30))
def test_every_known_code_of_a_log_is_counted_where_it_stands(codes: list[str]) -> None:
    lines = [f"error code: {c}, more" if c != "word" else "an ordinary line" for c in codes]
    report = log("\n".join(lines))
    six = [c for c in codes if c != "word" and c != "0"]
    assert {f.code: f.count for f in report.findings} == {c: six.count(c) for c in six}
    for found in report.findings:
        assert found.lines == tuple(n for n, c in enumerate(codes, 1) if c == found.code)[:LINES_KEPT]


# --- the command --------------------------------------------------------------------------------------------------


def test_command_explains_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["explain", "EZ3003"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("EZ3003 (operators): no engine") and "likely cause" in out and "documented in part" in out
    assert _exit_code(["explain", "EZ3003", "--lang", "zh", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["schema"] == "porting.explain/1"
        and found["of"] == "code"
        and found["kind"] == "error"
        and "引擎" in found["means"]
    )


def test_command_reads_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "E10016"  # spelled like a code: the file that is there is meant
    file.write_text(PLOG)
    assert _exit_code(["explain", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["findings"][0]["code"] == "EZ3002" and found["lines"] == 7
    assert _exit_code(["explain", str(file), "--lang", "zh"]) == 0
    assert "首要原因" in capsys.readouterr().out


def test_command_refuses_what_is_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["explain", "E10999"]) == 2
    assert "graph engine" in capsys.readouterr().err
    assert _exit_code(["explain", str(tmp_path / "nothing.log")]) == 2
    assert "neither a file nor spelled like a code" in capsys.readouterr().err
    assert _exit_code(["explain", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    with pytest.raises(InputError, match="cannot be read"):
        explain_log(tmp_path)


def test_text_of_every_code_is_whole() -> None:
    for code in known_codes():
        for lang in ("en", "zh"):
            text = explanation_text(explain_code(code, lang), lang)
            assert text.count("\n") == 4 and LABELS[lang]["cause"] in text


@pytest.mark.parametrize("code", ["561002", "107999", "E99998", "W19999"])
def test_a_code_that_is_in_no_table_is_not_taken_for_its_neighbour(code: str) -> None:
    """What 561002 means is not what W11002 means: only its series is told."""
    with pytest.raises(UsageError, match="is in no table") as raised:
        explain_code(code)
    assert "did you mean" not in str(raised.value)


def test_a_constant_that_is_spelled_wrongly_is_told() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'ACL_ERROR_RT_CONTEXT_NULL'"):
        explain_code("ACL_ERROR_RT_CONTEXTNULL")
