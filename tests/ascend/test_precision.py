"""The precision mode of each SoC and precision: never the compiler's own default."""

from __future__ import annotations

import pytest

from porting.ascend.precision import MODE_CONFIDENCES, SIDE_FILES, cannot_keep, cube_takes_fp32, in_release, mode_for
from porting.ascend.soc import find_soc
from porting.errors import UsageError
from porting.targets import PRECISIONS, all_targets

A2, A3, P310, B310, A910, S950 = "Ascend910B3", "Ascend910_9392", "Ascend310P3", "Ascend310B4", "Ascend910A", "Ascend950PR_9599"


@pytest.mark.parametrize("soc", [A2, A3])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_graph_rules_where_all_dtypes_compute(soc: str, precision: str) -> None:
    mode = mode_for(find_soc(soc), precision, stored=precision)
    assert (mode.argument, mode.confidence, mode.blocker) == ("--precision_mode_v2=origin", "documented", "")
    assert "keep_dtype" not in mode.honours and "modify_mixlist" not in mode.honours and "customize_dtypes" in mode.honours


@pytest.mark.parametrize("soc", [A2, A3, S950])
def test_a_graph_in_float32_is_not_left_in_it_where_less_was_asked_for(soc: str) -> None:
    fp16, bf16 = (mode_for(find_soc(soc), p) for p in ("fp16", "bf16"))
    assert (fp16.argument, fp16.blocker) == ("--precision_mode_v2=fp16", "") and "keep_dtype" in fp16.honours
    assert (bf16.argument, bf16.blocker) == ("--precision_mode_v2=mixed_bfloat16", "") and "modify_mixlist" in bf16.honours


@pytest.mark.parametrize("soc", [P310, A910, "Ascend310", "Ascend910B"])
def test_fp16_only_matrix_units(soc: str) -> None:
    found = find_soc(soc)
    fp16 = mode_for(found, "fp16")
    assert (fp16.argument, fp16.blocker) == ("--precision_mode_v2=fp16", "") and "keep_dtype" in fp16.honours
    fp32 = mode_for(found, "fp32")
    assert (
        "takes fp16 only" in fp32.blocker and "AI CPU" in fp32.blocker and found.name in fp32.blocker and "-p fp16" in fp32.next
    )
    assert "bf16" in mode_for(found, "bf16").blocker


@pytest.mark.parametrize(
    ("soc", "precision"), [(B310, "fp32"), (B310, "bf16"), (S950, "fp32"), ("Ascend031", "bf16"), ("Ascend031", "fp16")]
)
def test_what_is_unknown_says_so(soc: str, precision: str) -> None:
    mode = mode_for(find_soc(soc), precision)
    assert mode.confidence == "unknown" and any("unknown" in note for note in mode.notes) and not mode.blocker


def test_950_computes_in_the_graphs_dtypes_as_far_as_documents_say() -> None:
    assert [mode_for(find_soc(S950), p, stored=p).value for p in ("fp32", "fp16", "bf16")] == ["origin"] * 3
    assert [mode_for(find_soc(S950), p, stored=p).confidence for p in ("fp16", "bf16")] == ["documented"] * 2


def test_every_target_and_precision_is_explicit() -> None:
    for target in all_targets():
        if target.kind != "ascend":
            continue
        for precision in PRECISIONS:
            mode = mode_for(find_soc(target.name), precision)
            assert mode.option == "precision_mode_v2" and mode.value in ("origin", "fp16", "mixed_bfloat16")
            assert mode.confidence in MODE_CONFIDENCES and mode.source and set(mode.honours) <= set(SIDE_FILES)
            assert bool(mode.blocker) == bool(mode.next), "what blocks says what to take instead"
            assert any("--precision_mode=" in note for note in mode.notes)
            assert ("keep_dtype" in mode.honours) == (not mode.keeps_graph)


@pytest.mark.parametrize(("release", "told"), [(None, True), ("6.3.RC2", False), ("8.5.0", False)])
def test_the_older_spelling_is_told_where_the_release_is_not(release: str | None, told: bool) -> None:
    for soc, precision in ((A2, "fp32"), (P310, "fp16")):
        mode = mode_for(find_soc(soc), precision)
        spelt = in_release(mode, release)
        assert any("--precision_mode=" in note for note in spelt.notes) == told
        assert set(spelt.notes) <= set(mode.notes) and len(mode.notes) - len(spelt.notes) == (not told)
        assert spelt.argument == mode.argument


def test_a_release_without_the_newer_option_gets_the_older_one() -> None:
    fp16, fp32 = (in_release(mode_for(find_soc(soc), p), "6.0.1") for soc, p in ((P310, "fp16"), (A2, "fp32")))
    assert (fp16.argument, fp32.argument) == ("--precision_mode=force_fp16", "--precision_mode=must_keep_origin_dtype")
    assert fp32.keeps_graph and not fp16.keeps_graph
    mixed = in_release(mode_for(find_soc(A2), "fp16", mixed=True), "5.0.4")
    assert mixed.argument == "--precision_mode=allow_mix_precision" and mixed.honours == SIDE_FILES
    assert "makes bf16" in in_release(mode_for(find_soc(A2), "bf16"), "6.3.RC1").blocker
    assert not in_release(mode_for(find_soc(A2), "bf16"), "6.3.RC2").blocker


def test_quantised_layers_are_not_combined_with_a_high_precision() -> None:
    for soc in (A2, A3, P310, S950):
        assert mode_for(find_soc(soc), "w8a8").value == "fp16"
    assert "no operator" in mode_for(find_soc(A2), "int4").blocker


def test_mixed_modes_read_every_file() -> None:
    assert mode_for(find_soc(P310), "fp16", mixed=True).argument == "--precision_mode_v2=mixed_float16"
    assert mode_for(find_soc(A2), "bf16", mixed=True).value == "mixed_bfloat16"
    assert mode_for(find_soc(A2), "fp16", mixed=True).honours == SIDE_FILES
    assert mode_for(find_soc(P310), "bf16", mixed=True).blocker
    assert mode_for(find_soc(B310), "bf16", mixed=True).confidence == "unknown"
    with pytest.raises(UsageError, match="no mixed mode lowers to fp32"):
        mode_for(find_soc(A2), "fp32", mixed=True)


def test_what_can_be_kept_in_fp32() -> None:
    assert [cube_takes_fp32(find_soc(s)) for s in (P310, A910, A2, A3, B310, S950)] == [False, False, True, True, None, None]
    assert "MatMul cannot be kept" in cannot_keep(find_soc(P310), "MatMul")
    assert not cannot_keep(find_soc(P310), "Mul") and not cannot_keep(find_soc(A2), "MatMul")


def test_an_unknown_precision() -> None:
    with pytest.raises(UsageError, match="unknown precision 'fp61'") as error:
        mode_for(find_soc(A2), "fp61")
    assert "did you mean 'fp16'" in error.value.next
