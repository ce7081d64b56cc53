"""Generated inputs: what they hold, that they are the same everywhere, and how sizes are found by asking the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from porting.errors import InputError, RuntimeFailed
from porting.feed_values import kind_of
from porting.feeds import candidate_sizes, cases_from_npz, feeds_for, feeds_hash, find_cases, roles_of
from porting.types import TensorSpec

B, T = "batch", "seq"


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "kind"),
    [
        ("input_ids", "int64", (B, T), "ids"),
        ("decoderInputIds", "int32", (B, T), "ids"),
        ("attention_mask", "int64", (B, T), "mask"),
        ("src_key_padding_mask", "bool", (B, T), "mask"),
        ("token_type_ids", "int64", (B, T), "segments"),
        ("position_ids", "int64", (B, T), "positions"),
        ("lengths", "int64", (B,), "lengths"),
        ("wav_lens", "float32", (B,), "lengths"),
        ("sr", "int64", (), "rate"),
        ("sample_rate", "int64", (1,), "rate"),
        ("h0", "float32", (2, B, 64), "state"),
        ("state", "float32", (2, None, 128), "state"),
        ("pixel_values", "float32", (B, 3, "h", "w"), "image"),
        ("x", "float32", (1, 1, 64, "width"), "image"),
        ("input", "uint8", (B, "h", "w", 3), "image"),
        ("waveform", "float32", (B, "samples"), "signal"),
        ("bytes", "int32", (None, 2048), "bytes"),
        ("features", "float32", (B, 21), "numbers"),
        ("flag", "bool", (), "truth"),
        ("text", "string", (B,), "text"),
        ("boxes", "sequence(float32)", (4,), "sequence"),
        ("count", "int64", (), "integers"),
    ],
)
def test_what_an_input_holds_is_told_by_name_dtype_and_shape(name: str, dtype: str, shape: Any, kind: str) -> None:
    assert kind_of(TensorSpec(name, dtype, shape)) == kind


IDS = TensorSpec("input_ids", "int64", (B, T))
MASK = TensorSpec("attention_mask", "int64", (B, T))
LENGTHS = TensorSpec("lengths", "int64", (B,))
ALL = (
    IDS,
    MASK,
    LENGTHS,
    TensorSpec("token_type_ids", "int64", (B, T)),
    TensorSpec("position_ids", "int64", (B, T)),
    TensorSpec("state", "float32", (2, B, 5)),
    TensorSpec("image", "float32", (B, 3, "height", "width")),
    TensorSpec("photo", "uint8", (B, "height", "width", 3)),
    TensorSpec("audio", "float32", (B, "samples")),
    TensorSpec("half", "float16", (B, 7)),
    TensorSpec("flags", "bool", (B,)),
    TensorSpec("words", "string", (B,)),
    TensorSpec("parts", "sequence(float32)", (3,)),
    TensorSpec("sr", "int64", ()),
)


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 5), time=st.integers(1, 40), seed=st.integers(0, 1000), pixels=st.integers(1, 40))
def test_values_are_sane_whatever_the_sizes(batch: int, time: int, seed: int, pixels: int) -> None:
    sizes = {B: batch, T: time, "height": pixels, "width": pixels + 1, "samples": 10 * time}
    feeds = feeds_for(ALL, sizes, seed, ranges={"input_ids": (3, 50)})
    assert feeds["input_ids"].shape == (batch, time) and feeds["input_ids"].min() >= 3 and feeds["input_ids"].max() < 50
    mask, lengths = feeds["attention_mask"], feeds["lengths"]
    assert set(np.unique(mask)) <= {0, 1} and (mask.sum(1) >= 1).all() and mask[0].all()
    assert (np.diff(mask, axis=1) <= 0).all()  # no hole
    assert (mask.sum(1) == lengths).all() and lengths.max() == time  # one story, told twice
    assert set(np.unique(feeds["token_type_ids"])) <= {0, 1}
    assert (feeds["position_ids"] == np.arange(time)).all()
    assert (feeds["state"] == 0).all() == (seed % 2 == 0)
    assert feeds["image"].dtype == np.float32 and np.abs(feeds["image"]).max() < 1.5
    assert feeds["photo"].dtype == np.uint8
    assert np.abs(feeds["audio"]).max() < 0.5
    assert feeds["half"].dtype == np.float16 and np.isfinite(feeds["half"]).all()
    assert feeds["words"].dtype == object and all(isinstance(w, str) for w in feeds["words"])
    assert [p.shape for p in feeds["parts"]] == [(3,)] * 3
    assert feeds["sr"] == 16000 and feeds["sr"].shape == ()


def test_values_are_the_same_in_every_process_and_other_for_every_seed() -> None:
    """The hashes are in goldens: a change of a value here is a new GENERATOR."""
    sizes = {B: 2, T: 5, "height": 8, "width": 9, "samples": 300}
    feeds = feeds_for(ALL, sizes, 1)
    again = feeds_for(ALL[::-1], sizes, 1)
    assert {n: feeds_hash(v) for n, v in feeds.items()} == {n: feeds_hash(v) for n, v in again.items()}
    other = feeds_for(ALL, sizes, 3)
    same = {n for n in feeds if feeds_hash(feeds[n]) == feeds_hash(other[n])}
    assert same <= {"token_type_ids", "position_ids", "sr", "flags", "lengths", "attention_mask"}
    assert feeds["input_ids"].tolist() == [[5006, 19589, 14945, 12601, 5770], [12404, 17666, 20335, 24181, 3092]]


def test_a_float_input_that_a_table_is_looked_up_by_holds_ids() -> None:
    feeds = feeds_for([TensorSpec("input_1", "float32", (B, 21))], {B: 4}, 0, ranges={"input_1": (0, 12)})
    assert feeds["input_1"].dtype == np.float32
    assert set(np.unique(feeds["input_1"])) <= set(range(12)) and len(np.unique(feeds["input_1"])) > 6


def test_dimensions_of_one_kind_get_one_size_first() -> None:
    specs = [
        TensorSpec("a", "float32", ("unk__1", 21)),
        TensorSpec("b", "float32", ("unk__2", 21)),
        TensorSpec("c", "float32", (None, "?")),
    ]
    roles = roles_of(specs)
    assert set(roles) == {"unk__1", "unk__2", "c.0", "c.1"} and list(roles.values())[:3] == ["batch"] * 3
    first, second = list(candidate_sizes(specs))[:2]
    assert len({first["unk__1"], first["unk__2"], first["c.0"]}) == 1 and first != second


def takes(check: Any) -> Any:
    """A model that takes feeds for which `check` holds."""

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        if not check(feeds):
            raise RuntimeFailed("the sizes do not fit")
        first = next(iter(feeds.values()))
        return {"y": np.asarray(first, np.float64) + 1}

    return run


def test_cases_vary_every_dimension_that_can_vary_and_name_the_others() -> None:
    specs = [TensorSpec("x", "float32", (B, "samples")), TensorSpec("h", "float32", (2, B, 4)), TensorSpec("sr", "int64", ())]
    found = find_cases(specs, takes(lambda f: f["x"].shape[1] == (512 if f["sr"] == 16000 else 256)))
    assert found.only == ("samples = 512",)
    assert {f["x"].shape for f in found.feeds.values()} >= {(2, 512), (1, 512), (2, 256)}
    assert {int(f["sr"]) for f in found.feeds.values()} == {16000, 8000}
    assert len(found.feeds) >= 4 and len({feeds_hash(f["x"]) for f in found.feeds.values()}) == len(found.feeds)
    assert {bool(f["h"].any()) for f in found.feeds.values()} == {True, False}
    assert all(feeds_hash(recipe.feeds()["x"]) == feeds_hash(found.feeds[name]["x"]) for name, recipe in found.recipes.items())


def test_ids_come_down_until_they_fit_the_table() -> None:
    found = find_cases([IDS], takes(lambda f: f["input_ids"].max() < 140))
    assert all(f["input_ids"].max() < 100 for f in found.feeds.values())


def test_ranges_that_do_not_hold_are_given_up() -> None:
    found = find_cases([IDS], takes(lambda f: f["input_ids"].max() < 20), ranges={"input_ids": (500, 600)})
    assert all(f["input_ids"].max() < 20 for f in found.feeds.values())


def test_integers_that_are_divided_by_are_not_zero() -> None:
    specs = [TensorSpec("a", "int64", (8,)), TensorSpec("b", "int64", (8,))]
    found = find_cases(specs, takes(lambda f: f["b"].min() > 0))
    assert len(found.feeds) >= 4 and all(f["b"].max() > 1 for f in found.feeds.values())


def test_a_model_that_saturates_is_fed_less() -> None:
    spec = TensorSpec("x", "float32", (B, 5))

    def saturated(feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": (np.abs(feeds["x"]).max(keepdims=True) > 0.5).astype(np.float32)}

    found = find_cases([spec], saturated)
    assert any(np.abs(f["x"]).max() < 0.5 for f in found.feeds.values())


def test_when_nothing_fits_the_original_is_quoted() -> None:
    with pytest.raises(
        InputError, match=r"no generated input fits this model \(\d+ tried for input_ids.*the sizes do not fit"
    ) as error:
        find_cases([IDS], takes(lambda f: False))
    assert "--inputs x.npz" in error.value.next


# --- the user's own -----------------------------------------------------------------------------------------------------


def npz(folder: Path, name: str = "x.npz", **arrays: np.ndarray) -> Path:
    np.savez(folder / name, **arrays)
    return folder / name


def test_one_file_is_one_case(tmp_path: Path) -> None:
    ids, mask = np.ones((2, 3), np.int64), np.ones((2, 3), np.int64)
    paths = [
        npz(tmp_path, "a.npz", input_ids=ids, attention_mask=mask),
        npz(tmp_path, "b.npz", attention_mask=mask, input_ids=2 * ids),
    ]
    found = cases_from_npz(paths, [IDS, MASK])
    assert list(found.feeds) == ["a", "b"]
    np.testing.assert_array_equal(found.feeds["b"]["input_ids"], 2 * ids)


def test_the_only_input_may_be_unnamed(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.ones((2, 3), np.int64))
    assert cases_from_npz([tmp_path / "x.npz"], [IDS]).feeds["x"]["input_ids"].shape == (2, 3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"input_ids": np.ones((2, 3), np.int64)}, "input attention_mask.* is missing"),
        ({"input_ids": np.ones((2, 3), np.int64), "mask": np.ones((2, 3), np.int64)}, "has no input 'mask'"),
        (
            {"input_ids": np.ones((2, 3), np.int32), "attention_mask": np.ones((2, 3), np.int64)},
            "expected input_ids.*got int32",
        ),
        (
            {"input_ids": np.ones(3, np.int64), "attention_mask": np.ones((2, 3), np.int64)},
            r"expected input_ids.*got int64\[3\]",
        ),
        (
            {"input_ids": np.ones((2, 3), np.int64), "attention_mask": np.ones((2, 4), np.int64)},
            r"has 4 in dimension 1 \(seq\), where input_ids has 3",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cases_from_npz([npz(tmp_path, **arrays)], [IDS, MASK])


def test_a_fixed_dimension_is_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 4 in dimension 1, where the model has 3"):
        cases_from_npz([npz(tmp_path, x=np.ones((2, 4), np.float32))], [TensorSpec("x", "float32", (B, 3))])
