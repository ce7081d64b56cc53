"""No error leaves the user without a next step."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from porting import errors
from porting.errors import PortingError


def all_kinds(kind: type[PortingError] = PortingError) -> Iterator[type[PortingError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from all_kinds(child)


KINDS = list(all_kinds())
assert len(KINDS) >= 11, "the whole tree of porting/errors.py"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_next_step_of_its_own(kind: type[PortingError]) -> None:
    assert vars(kind).get("default_next"), "inherited: what to do for one kind is seldom right for another"
    assert str(kind("broken")).splitlines() == ["broken", f"  next:  {kind.default_next}"]
    assert str(kind("broken", where="x.json", next="better")).splitlines()[1:] == ["  where: x.json", "  next:  better"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_crosses_a_process_boundary_whole(kind: type[PortingError]) -> None:
    for error in (kind("broken"), kind("broken", where="x.json", next="better")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.exit_code) == (kind, str(error), error.exit_code)
