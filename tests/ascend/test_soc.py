"""Ascend SoCs and releases of CANN."""

from __future__ import annotations

import pytest

from porting.ascend.soc import FAMILIES, GIB, Soc, find_cann, find_soc, judged_cann, known_cann, release_order, soc_in
from porting.errors import UsageError
from porting.targets import all_targets

FAMILY_OF = {
    "Ascend310": "310",
    "Ascend310P1": "310P",
    "Ascend310P3": "310P",
    "Ascend310B4": "310B",
    "Ascend910A": "910A",
    "Ascend910B": "910A",  # without a digit: the first generation
    "Ascend910ProB": "910A",
    "Ascend910PremiumA": "910A",
    "Ascend910B1": "A2",
    "Ascend910B2C": "A2",
    "Ascend910B4-1": "A2",
    "Ascend910_9392": "A3",
    "Ascend950PR_9599": "950",
    "Ascend950DT_950x": "950",
    "Ascend350_354f": "950",
    "Ascend031": "other",
}


@pytest.mark.parametrize(("name", "family"), FAMILY_OF.items())
def test_family(name: str, family: str) -> None:
    assert find_soc(name).family == family


def test_every_ascend_target_is_a_soc() -> None:
    socs = [find_soc(t.name) for t in all_targets() if t.kind == "ascend"]
    assert len(socs) > 60
    assert {s.family for s in socs} <= set(FAMILIES)
    assert all((s.bf16, s.saturates) == (True, False) for s in socs if s.family in ("A2", "A3", "950"))
    assert all((s.bf16, s.saturates) == (False, True) for s in socs if s.family in ("310", "310P", "910A"))
    assert all(s.bf16 is None and s.notes for s in socs if s.family in ("310B", "other"))


def test_the_name_of_a_soc_does_not_fix_its_memory() -> None:
    assert find_soc("ascend310p3").boards == (21 * GIB, 44 * GIB)
    assert find_soc("Ascend910B4").boards == (32 * GIB,)
    assert find_soc("Ascend910A").boards == ()


def test_a_soc_that_is_easily_mistaken_is_said() -> None:
    soc = find_soc("Ascend910B")
    assert isinstance(soc, Soc)
    assert any("Ascend910B1" in note for note in soc.notes)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_other_targets_are_no_soc(name: str) -> None:
    with pytest.raises(UsageError, match="no Ascend SoC"):
        find_soc(name)


def test_an_unknown_soc_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown target") as refused:
        find_soc("Ascend310P4")
    assert "Ascend310P" in refused.value.next


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("8.5.0", "8.5.0"),
        ("8.5", "8.5.0"),
        ("8.0", "8.0.0"),
        ("8.2", "8.2.RC1"),
        ("8.2.rc1", "8.2.RC1"),
        ("8.0.RC3.beta1", "8.0.RC3"),
        ("8.5.0.alpha002", "8.5.0"),
        ("9.1.0-beta.3", "9.1.0"),
        (" 7.0.1 ", "7.0.1"),
        (None, None),
    ],
)
def test_find_cann(text: str | None, release: str | None) -> None:
    assert find_cann(text) == release


@pytest.mark.parametrize("text", ["", "8", "8.4.0", "10.0", "latest", "8.5.0.1", "8..5"])
def test_an_unknown_release_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="CANN release") as refused:
        find_cann(text)
    assert "9.1.0" in refused.value.next


def test_a_train_with_several_releases_has_to_be_named_in_full() -> None:
    with pytest.raises(UsageError, match="several CANN releases") as refused:
        find_cann("6.3")
    assert "6.3.RC2" in refused.value.next


@pytest.mark.parametrize(
    ("name", "release", "first"),
    [
        ("Ascend950PR_9599", "8.0.0", "9.0.0"),
        ("Ascend950PR_9599", "8.5", "9.0.0"),
        ("Ascend950DT_9591", "9.0.0", "9.1.0"),
    ],
)
def test_a_release_that_is_older_than_the_chip_is_refused(name: str, release: str, first: str) -> None:
    with pytest.raises(UsageError, match=f"is older than {name}.*came with {first}") as refused:
        soc_in(find_soc(name), find_cann(release))
    assert "release notes" in refused.value.next and f"--cann {first}" in refused.value.next


@pytest.mark.parametrize(
    ("name", "release", "first"),
    [("Ascend910_9392", "5.0.4", "8.1.RC1"), ("Ascend910B3", "5.0.4", "8.0.0"), ("Ascend350_354f", "8.5.0", "9.0.0")],
)
def test_where_no_document_says_since_when_that_is_said(name: str, release: str, first: str) -> None:
    plain = find_soc(name)
    notes = soc_in(plain, find_cann(release)).notes
    assert notes[:-1] == plain.notes and "is unknown" in notes[-1] and f"is of {first}" in notes[-1]


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("Ascend950PR_9599", "9.0.0"),
        ("Ascend950DT_9591", "9.1.0-beta.3"),
        ("Ascend910B3", "8.0.0"),
        ("Ascend910B", "5.0.4"),
        ("Ascend310P3", "5.0.4"),
        ("Ascend950DT_9591", None),
        ("Ascend910_9392", "8.1.RC1"),
    ],
)
def test_a_chip_that_its_release_knows(name: str, release: str | None) -> None:
    soc = find_soc(name)
    assert soc_in(soc, find_cann(release)) == soc


def test_releases_are_in_order() -> None:
    assert [release_order(r) for r in known_cann()] == list(range(len(known_cann())))
    assert release_order("8.0.RC3") < release_order("8.0.0") < release_order("8.1.RC1") < release_order("9.0.0")
    assert judged_cann() == known_cann()[-1]
