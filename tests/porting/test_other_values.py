"""What one set of values cannot show: constants computed from the example, and elements that roundings decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import porting
from porting.errors import InputError
from porting.graph_judgement import _other_values
from porting.graph_outputs import ExpectedArray
from porting.types import TensorSpec
from tests.graph_models import constant, judged, model, node, only

torch = pytest.importorskip("torch")


class Baked(torch.nn.Module):
    """`.data` is not followed by the exporter: the sum becomes a constant of the example."""

    def forward(self, x: Any) -> Any:
        return x * x.data.sum()


class Packed(torch.nn.Module):
    """The longest length of the example becomes the length of every output."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = torch.nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: Any, lengths: Any) -> Any:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        padded, _ = torch.nn.utils.rnn.pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)
        return padded.mean(1)


@pytest.mark.parametrize(
    ("module", "example"),
    [(Baked, (torch.ones(3, 7),)), (Packed, (torch.randn(3, 7, 4), torch.tensor([7, 3, 5])))],
    ids=["data", "packed"],
)
def test_what_an_export_computed_from_the_example_is_no_pass(tmp_path: Path, module: Any, example: Any) -> None:
    torch.manual_seed(0)
    verdict = porting.port(module().eval(), example, output=tmp_path / "m.port")
    assert verdict.verdict == "fail" and "example0, other values" in verdict.reason


class PointNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.head = torch.nn.Linear(3, 16), torch.nn.Linear(16, 4)

    def forward(self, points: Any) -> Any:
        return self.head(torch.relu(self.lift(points)).amax(1))


def test_a_maximum_along_a_free_axis_is_no_output_that_stays_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    verdict = porting.port(
        PointNet().eval(), (torch.randn(2, 9, 3),), output=tmp_path / "m.port", dynamic={"points": {0: "b", 1: "n"}}
    )
    assert set(verdict.require().details["sizes"]) == {
        "example0",
        "example0, other values",
        "example0, b doubled",
        "example0, n doubled",
    }


class Takes:
    """An original that takes what `refuses` does not say no to."""

    def __init__(self, refuses: Any = lambda feeds: False) -> None:
        self.refuses = refuses

    def run(self, feeds: Any) -> dict[str, Any]:
        if self.refuses(feeds):
            raise InputError("no")
        return {}


def test_other_values_keep_order_range_and_dtype() -> None:
    specs = [TensorSpec("x", "float32", (2, 3)), TensorSpec("lengths", "int64", (3,)), TensorSpec("mask", "bool", (2,))]
    feeds = {"x": np.ones((2, 3), np.float32), "lengths": np.asarray([7, 1, 0]), "mask": np.asarray([True, False])}
    found = _other_values(feeds, specs, Takes())
    assert found is not None and found["x"].dtype == np.float32 and (found["x"] < 1).all() and (found["x"] >= 0.5).all()
    np.testing.assert_array_equal(found["lengths"], [6, 1, 0])
    np.testing.assert_array_equal(found["mask"], feeds["mask"])
    picky = _other_values(feeds, specs, Takes(lambda fed: fed["lengths"][0] != 7))
    assert picky is not None and picky["lengths"][0] == 7 and (picky["x"] < 1).all()
    assert _other_values(feeds, specs, Takes(lambda fed: True)) is None
    still = {"x": np.zeros((2, 3), np.float32), "lengths": np.asarray([1, 1, 0]), "mask": feeds["mask"]}
    assert _other_values(still, specs, Takes()) is None


def test_an_output_of_which_roundings_decide_everything_is_undecided() -> None:
    array = np.asarray([[1, 2], [3, 4]])
    every = ExpectedArray(array, np.ones(array.shape, bool))
    assert every.compare("y", array).value == 0 and not every.compare("y", array).undecided
    assert "roundings alone change every element" in every.compare("y", array + 5).undecided
    some = ExpectedArray(array, np.asarray([[True, False], [False, False]]))
    assert some.compare("y", np.asarray([[9, 2], [3, 4]])).value == 0
    assert some.compare("y", np.asarray([[9, 2], [3, 5]])).value == 1


# --- interpolation: its weights come from rounded coordinates ---------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(17, 29), (22, 26), (7, 9)])
def test_interpolation_passes_by_itself(tmp_path: Path, mode: str, align_corners: bool, size: tuple[int, int]) -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.interpolate(x, size=size, mode=mode, align_corners=align_corners)

    torch.manual_seed(1)
    porting.port(Net(), (torch.randn(2, 3, 11, 13),), output=tmp_path / "m.port").require()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("align_corners", [False, True])
def test_sampling_a_grid_passes_by_itself(tmp_path: Path, seed: int, align_corners: bool) -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Any, grid: Any) -> Any:
            return torch.nn.functional.grid_sample(x, grid, padding_mode="zeros", align_corners=align_corners)

    torch.manual_seed(seed)
    porting.port(Net(), (torch.randn(2, 3, 11, 13), torch.randn(2, 5, 6, 2) * 0.7), output=tmp_path / "m.port").require()


def test_a_wrong_mode_of_interpolation_still_fails(tmp_path: Path) -> None:
    """The bound of an interpolation is wider than that of a product, and far from what a wrong one does."""
    nodes = [node("Resize", "x   scales", "y", mode="linear", coordinate_transformation_mode="half_pixel")]
    nodes[0].input[:] = ["x", "", "scales"]
    proto = model(nodes, {"x": [2, 3, 11, 13]}, {"y": [2, 3, 18, 22]}, [constant("scales", [1, 1, 1.7, 1.7])])

    def other(wrong: Any) -> None:
        next(a for a in wrong.graph.node[0].attribute if a.name.startswith("coordinate")).s = b"asymmetric"

    x = np.random.default_rng(0).standard_normal((2, 3, 11, 13)).astype(np.float32)
    assert judged(tmp_path, proto, cases=only(x=x)).ok
    (tmp_path / "wrong").mkdir()
    assert judged(tmp_path / "wrong", proto, other, cases=only(x=x)).verdict == "fail"


@pytest.mark.parametrize("op", ["CumSum", "Einsum"])
def test_sums_of_what_has_no_known_shape_are_judged(tmp_path: Path, op: str) -> None:
    nodes = [node("Greater", "x zero", "keep"), node("Compress", "x keep", "some")]
    nodes.append(node("CumSum", "some axis", "y") if op == "CumSum" else node("Einsum", "some some", "y", equation="i,j->ij"))
    shape = ["m"] if op == "CumSum" else ["m", "m"]
    proto = model(nodes, {"x": ["n"]}, {"y": shape}, [constant("zero", 0.0), constant("axis", 0, np.int64)])
    x = np.random.default_rng(0).standard_normal(20).astype(np.float32)
    judged(tmp_path, proto, cases=only(x=x)).require()
