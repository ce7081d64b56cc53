"""The table of targets: names as the vendor spells them, in any case, and what each can be given."""

from __future__ import annotations

import pytest

from porting.errors import UsageError
from porting.targets import PRECISIONS, all_targets, find_target, resolve_precision


def test_every_row_can_be_used() -> None:
    names = [t.name for t in all_targets()]
    assert len(names) == len({n.lower() for n in names}), "names that differ in case only could not be told apart"
    for target in all_targets():
        assert find_target(target.name.upper()) == target
        assert target.kind in ("cpu", "cuda", "ascend") and set(target.precisions) <= set(PRECISIONS)
        assert target.memory is None or target.memory > 1 << 20
        assert bool(target.precisions) == (target.kind != "ascend"), "what convert can write in this version"


def test_names_that_stand_for_others() -> None:
    assert find_target("ascend").name == "Ascend910B3" and find_target("ASCEND").notes == ("'ascend' stands for Ascend910B3",)
    assert not find_target("Ascend910B3").notes
    assert "no bf16" in find_target("Ascend910B").notes[0]


@pytest.mark.parametrize(("name", "meant"), [("asend", "ascend"), ("ASCEND910B9", "Ascend910B"), ("cdua", "cuda")])
def test_the_nearest_is_named(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match="unknown target") as error:
        find_target(name)
    assert f"did you mean '{meant}" in error.value.next and len(error.value.next) < 200


def test_precisions() -> None:
    cpu, ascend = find_target("cpu"), find_target("ascend")
    assert resolve_precision(cpu, None, {"BF16"}) == "fp32"
    assert resolve_precision(cpu, "source", {"F32"}) == "fp32"
    for precision, stored, said in (
        ("source", {"F32", "F16"}, "mixes fp16, fp32"),
        ("source", {"F16"}, "fp16"),
        ("fp8", set(), "fp8"),
    ):
        with pytest.raises(UsageError, match=said):
            resolve_precision(cpu, precision, stored)
    with pytest.raises(UsageError, match="is not written in"):
        resolve_precision(ascend, "fp16", set())


@pytest.mark.parametrize(
    ("name", "expected", "not_expected"),
    [
        ("Ascend910C", "Ascend910_9392", "Ascend910B2C"),
        ("ascend310p", "Ascend310P3", "did you mean"),
        ("Ascend910_93", "Ascend910_9381", "did you mean"),
        ("Ascend910", "and", "did you mean"),
    ],
)
def test_a_name_that_several_chips_have_lists_them(name: str, expected: str, not_expected: str) -> None:
    with pytest.raises(UsageError) as raised:
        find_target(name)
    assert expected in str(raised.value) and not_expected not in str(raised.value)
