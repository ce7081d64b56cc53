"""The command line of ATC: what it holds, and what it refuses."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.ascend.atc_command import (
    EXCLUSIVE,
    MIXED,
    NEEDS,
    AtcCommand,
    atc_command,
    checked_command,
    parse_arguments,
    parse_text,
)
from porting.ascend.atc_options import NOT_HERE, OPTIONS
from porting.ascend.gear_requests import Request
from porting.ascend.gears import gears_for
from porting.ascend.precision import mode_for
from porting.ascend.soc import find_soc
from porting.errors import UsageError
from porting.targets import all_targets
from porting.types import TensorSpec

A2, P3, B1 = find_soc("Ascend910B3"), find_soc("Ascend310P3"), find_soc("Ascend310B1")
FIXED = {"input_shape": "x:1,3,8,8;scale:", "input_format": "NCHW"}
BATCH = {"input_shape": "x:-1,3,8,8", "input_format": "NCHW", "dynamic_batch_size": "1,2,4"}
DIMS = {"input_shape": "ids:1,-1", "input_format": "ND", "dynamic_dims": "8;16"}
ORIGIN, FP16 = ("precision_mode_v2", "origin"), ("precision_mode_v2", "fp16")


def made(soc: str = "Ascend910B3", without: str = "", **options: str) -> AtcCommand:
    given = {
        "framework": "5",
        "model": "model.onnx",
        "output": "model",
        "soc_version": soc,
        **FIXED,
        "precision_mode_v2": "fp16",
    }
    given.update(options)
    return checked_command([(n, v) for n, v in given.items() if n != without])


def test_the_command_says_everything_that_atc_would_choose_in_silence() -> None:
    command = atc_command(A2, ORIGIN, FIXED, host_cpu="aarch64", deterministic=True)
    assert command.arguments == (
        "--framework=5",
        "--model=model.onnx",
        "--output=model",
        "--soc_version=Ascend910B3",
        "--input_shape=x:1,3,8,8;scale:",
        "--input_format=NCHW",
        "--precision_mode_v2=origin",
        "--host_env_os=linux",
        "--host_env_cpu=aarch64",
        "--deterministic=1",
        "--log=error",
    )
    assert command.host_cpu == "aarch64" and atc_command(A2, ORIGIN, FIXED).host_cpu == "any"
    assert command.files == {"model": "model.onnx"}


def test_what_gears_and_precision_make_is_taken() -> None:
    spec = TensorSpec("x", "float32", ("batch", 3, 8, 8))
    for soc in (A2, P3):
        gears = gears_for([spec], soc, Request(batch="1,2"))
        mode = mode_for(soc, "fp16")
        command = atc_command(
            soc, (mode.option, mode.value), gears.options, side_files={"customize_dtypes": "customize_dtypes.cfg"}
        )
        assert command.value("dynamic_batch_size") == "1,2"
        assert command.files == {"model": "model.onnx", "customize_dtypes": "customize_dtypes.cfg"}


def test_every_ascend_target_can_be_named() -> None:
    for target in all_targets():
        if target.kind == "ascend":
            assert atc_command(find_soc(target.name), FP16, FIXED).value("soc_version") == target.name


def test_text_is_what_bash_reads_back() -> None:
    command = atc_command(
        A2, FP16, {"input_shape": "a b$(x)'\":-1,2;c\\:1", "input_format": "NCHW", "dynamic_batch_size": "1,2"}
    )
    printed = subprocess.run(
        ["bash", "-c", 'atc() { printf "%s\\n" "$@"; }\n' + command.text()], capture_output=True, text=True, check=True
    )
    assert tuple(printed.stdout.splitlines()) == command.arguments
    assert parse_text(command.text()) == command


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters=";~"), min_size=1, max_size=20))
def test_any_name_of_an_input_is_quoted_or_refused(name: str) -> None:
    try:
        command = atc_command(A2, FP16, {"input_shape": f"{name}:1,2", "input_format": "ND"})
    except UsageError:
        assert not name.isprintable()
        return
    assert parse_text(command.text()) == command
    assert shlex.split(command.text())[0] == "atc"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=12), st.sampled_from([f"--{o}" for o in OPTIONS])), max_size=8))
def test_any_arguments_are_a_command_or_refused(arguments: list[str]) -> None:
    for read in (lambda: parse_arguments(arguments), lambda: parse_text(" ".join(["atc", *arguments]))):
        with pytest.raises(UsageError):
            read()  # never whole: framework, model, ... are missing


# --- refused ------------------------------------------------------------------------------------------------------

CONTRADICTIONS: list[tuple[Mapping[str, str], str]] = [
    ({"precision_mode": "force_fp16"}, "exclude each other.*E10047"),
    ({"op_precision_mode": "a.ini", "op_select_implmode": "high_precision"}, "exclude each other"),
    ({**BATCH, "dynamic_image_size": "8,8;9,9"}, "exclude each other.*E10009"),
    ({**DIMS, "dynamic_batch_size": "1,2"}, "exclude each other.*E10009"),
    ({**DIMS, "insert_op_conf": "aipp.cfg"}, "exclude each other: AIPP"),
    ({"insert_op_conf": "aipp.cfg", "input_format": "ND"}, "E10052"),
    ({"optypelist_for_implmode": "Pooling"}, "needs --op_select_implmode"),
    ({"host_env_cpu": "aarch64"}, "needs --host_env_os"),
    ({"deterministic_level": "2"}, "needs --deterministic=1"),
    ({"output_type": "node:0:FP16"}, "needs --out_nodes"),
    ({"compression_optimize_conf": "q.cfg", **BATCH}, "quantised model takes no gears"),
    ({"compression_optimize_conf": "q.cfg", "precision_mode_v2": "origin"}, "does not go with"),
    ({"precision_mode_v2": "origin", "keep_dtype": "k.cfg"}, "is ignored under"),
    ({"modify_mixlist": "m.json"}, "mixed modes only"),
    ({"input_shape": "x:-1,3,8,8"}, "dynamic shape"),
    ({**BATCH, "dynamic_batch_size": "1"}, "E10035"),
    ({**BATCH, "dynamic_batch_size": ",".join(map(str, range(1, 102)))}, "E10036"),
    ({**DIMS, "input_format": "NCHW"}, "needs --input_format=ND|dynamic_dims with"),
    ({"input_shape": "x:1~4,3"}, "range"),
]
VALUES: list[tuple[str, str, str]] = [
    ("framework", "0", "no such value"),
    ("mode", "1", "no such value"),
    ("log", "trace", "E10010"),
    ("precision_mode_v2", "fp32", "no such value"),
    ("keep_dtype", "", "empty"),
    ("keep_dtype", "/etc/passwd", "outside its folder"),
    ("keep_dtype", "../k.cfg", "outside its folder"),
    ("keep_dtype", "a b.cfg", "letters, digits"),
    ("output", "a\nb", "not printable"),
    ("host_env_cpu", "arm", "no such value"),
    ("input_format", "NHWC", "no such value"),
    ("static_model_ops_lower_limit", "-2", "whole number"),
    ("output_type", "FP8E5M2", "no type of an output"),
    ("output_type", "FP16;FP32", "one type, or node:0"),
    ("external_weight", "3", "no such value"),
]


@pytest.mark.parametrize(("options", "match"), CONTRADICTIONS, ids=[m for _, m in CONTRADICTIONS])
def test_contradictions_are_refused(options: Mapping[str, str], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        made(**options)


@pytest.mark.parametrize(("option", "value", "match"), VALUES)
def test_values_that_no_option_takes_are_refused(option: str, value: str, match: str) -> None:
    options = {option: value, **({"host_env_os": "linux"} if option == "host_env_cpu" else {})}
    with pytest.raises(UsageError, match=match) as refused:
        made(**options)
    assert "ATC: E" in str(refused.value)


@pytest.mark.parametrize("option", ["framework", "model", "output", "soc_version", "input_shape", "input_format"])
def test_what_is_needed_may_not_be_missing(option: str) -> None:
    with pytest.raises(UsageError, match=f"--{option} is missing"):
        made(without=option)


def test_a_command_without_a_precision_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no precision mode is given.*silence"):
        made(without="precision_mode_v2")


def test_unknown_doubled_and_foreign_options_are_refused() -> None:
    with pytest.raises(UsageError, match="no option 'presicion_mode'") as refused:
        made(presicion_mode="fp16")
    assert "did you mean 'precision_mode'" in refused.value.next
    for name in NOT_HERE:
        with pytest.raises(UsageError, match="has no place in a hand-off"):
            made(**{name: "1"})
    with pytest.raises(UsageError, match="given twice"):
        checked_command([("log", "error"), ("log", "null")])
    with pytest.raises(UsageError, match="spells it Ascend910B3"):
        made(soc="ascend910b3")
    with pytest.raises(UsageError, match="no Ascend SoC"):
        made(soc="cuda")
    assert not OPTIONS.keys() & NOT_HERE.keys()


@pytest.mark.parametrize(
    ("soc", "options", "fits"),
    [
        ("Ascend910B3", {"precision_mode_v2": "mixed_bfloat16"}, True),
        ("Ascend310P3", {"precision_mode_v2": "mixed_bfloat16"}, False),
        ("Ascend950PR_9599", {"precision_mode_v2": "cube_hif8"}, True),
        ("Ascend910B3", {"precision_mode_v2": "cube_hif8"}, False),
        ("Ascend310B1", {"deterministic": "1"}, False),
        ("Ascend310P3", {"deterministic": "1"}, True),
        ("Ascend310P3", {"sparsity": "1"}, False),
        ("Ascend310B1", {"sparsity": "1"}, True),
        ("Ascend950PR_9599", {"output_type": "HIF8"}, True),
        ("Ascend950PR_9599", {**BATCH, "dynamic_batch_size": ",".join(map(str, range(1, 257)))}, True),
    ],
)
def test_what_only_some_families_take(soc: str, options: Mapping[str, str], fits: bool) -> None:
    if fits:
        made(soc, **options)
    else:
        with pytest.raises(UsageError, match="documented for"):
            made(soc, **options)


def test_quantised_graphs_take_neither_gears_nor_high_precision() -> None:
    with pytest.raises(UsageError, match="takes no --dynamic_batch_size"):
        atc_command(A2, FP16, BATCH, quantised=True)
    with pytest.raises(UsageError, match="does not go with"):
        atc_command(A2, ORIGIN, FIXED, quantised=True)
    assert atc_command(A2, FP16, FIXED, quantised=True)


def test_the_tables_speak_of_options_that_there_are() -> None:
    named = {name for pair in (*(e[:2] for e in EXCLUSIVE), *NEEDS) for name in pair}
    assert named <= OPTIONS.keys()
    modes = OPTIONS["precision_mode"].values.keys() | OPTIONS["precision_mode_v2"].values.keys()
    assert set(MIXED) <= modes
    for one, other, code, _ in EXCLUSIVE:
        values = {n: ("a.cfg" if OPTIONS[n].kind == "file" else next(iter(OPTIONS[n].values), "1,2")) for n in (one, other)}
        if one == "precision_mode":
            values.pop("precision_mode_v2")
        with pytest.raises(UsageError, match="exclude each other") as refused:
            made(**values)
        assert code in refused.value.what


def test_both_spellings_of_arguments_are_read() -> None:
    words = list(made().arguments)
    apart = [part for word in words for part in word.split("=", 1)]
    assert parse_arguments(words) == parse_arguments(apart) == made()
    for wrong in (["x"], ["--log"], ["--=1"], ["-log=error"]):
        with pytest.raises(UsageError):
            parse_arguments(words + wrong)
    for text in ("", "atc 'x", "ls -l"):
        with pytest.raises(UsageError):
            parse_text(text)
