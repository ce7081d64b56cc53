"""Which shapes a language model is compiled for: one cache, a step, and prompts in buckets."""

from __future__ import annotations

import pytest

from porting.ascend.gear_requests import Request
from porting.ascend.gears import Gears
from porting.ascend.language_gears import language_gears
from porting.ascend.soc import find_soc
from porting.errors import UsageError
from porting.types import TensorSpec

SOC = find_soc("Ascend310P3")
INPUTS = (
    TensorSpec("input_ids", "int64", ("batch", "sequence")),
    TensorSpec("past_length", "int64", ("batch",)),
    TensorSpec("past.0.key", "float32", ("batch", 2, "capacity", 8)),
)


def made(named: str = "", context: int | None = 4096, **request: str) -> Gears:
    return language_gears(INPUTS, SOC, Request(named=named, **request), context)


def lengths(gears: Gears) -> list[int]:
    return [gear["input_ids"][1] for gear in gears.shapes]


def test_decode_and_buckets_are_gears_of_one_capacity() -> None:
    gears = made("sequence=16,capacity=256; sequence=1,capacity=256; sequence=64,capacity=256")
    assert gears.options["input_shape"] == "input_ids:1,-1;past_length:1;past.0.key:1,2,256,8"
    assert gears.options["dynamic_dims"] == "1;16;64"
    assert [gear["input_ids"] for gear in gears.shapes] == [(1, 1), (1, 16), (1, 64)]


def test_what_is_not_said_has_a_default() -> None:
    assert lengths(language_gears(INPUTS, SOC)) == [1, 64, 256]
    assert made().shapes[0]["past.0.key"] == (1, 2, 1024, 8)
    assert made(context=40).shapes[0]["past.0.key"] == (1, 2, 40, 8) and lengths(made(context=40)) == [1]
    assert lengths(made("capacity=100")) == [1, 64] and made("capacity=100").shapes[0]["past.0.key"][2] == 100
    assert made(batch="3").shapes[1]["past.0.key"] == (3, 2, 1024, 8)
    alone = made("sequence=1")
    assert alone.kind == "fixed" and alone.shapes == (
        {"input_ids": (1, 1), "past_length": (1,), "past.0.key": (1, 2, 1024, 8)},
    )


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("sequence=8", "no gear is for one token"),
        ("sequence=1; sequence=1", "of another"),
        ("sequence=1; batch=1", "of another|batch differs"),
        ("sequence=1,capacity=64; sequence=8,capacity=128", "capacity differs"),
        ("sequence=1,batch=1; sequence=8,batch=2", "batch differs"),
        ("sequence=1,capacity=16; sequence=17,capacity=16", "a gear of 17 tokens, and a cache of 16"),
        ("capacity=5000", "made for 4096"),
        ("sequenc=1", "no input has a free dimension 'sequenc'"),
        ("capacity=0", "is no size"),
        ("; ".join(f"sequence={n}" for n in range(1, 200)), "ATC takes 100 at most"),
    ],
)
def test_numbers_that_cannot_be_meant(named: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        made(named)


def test_options_that_a_language_model_does_not_have() -> None:
    for request in ({"image_size": "4,4"}, {"dims": "1,1"}, {"batch": "1,2"}, {"batch": "x"}):
        with pytest.raises(UsageError):
            made(**request)
    with pytest.raises(UsageError, match="one batch"):
        made("batch=1,sequence=1", batch="2")
