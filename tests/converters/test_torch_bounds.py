"""The bounds that a .pt2 was exported with are bounds of its port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.export import Dim

import porting
from porting.errors import InputError, UnsupportedModel


class Places(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.place = torch.nn.Parameter(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + self.place[: x.shape[1]], y * 2


def exported(path: Path, batch: Any, time: Any, of_y: Any = None) -> Path:
    example = (torch.randn(2, 5, 4), torch.randn(2, 5))
    sizes = {"x": {0: batch, 1: time}, "y": of_y or {0: batch, 1: time}}
    torch.export.save(torch.export.export(Places().eval(), example, dynamic_shapes=sizes), path)
    return path


def feeds(batch: int, time: int) -> dict[str, np.ndarray]:
    return {"x": np.ones((batch, time, 4), np.float32), "y": np.ones((batch, time), np.float32)}


def test_a_bound_is_enforced_by_name_and_size(tmp_path: Path) -> None:
    path = exported(tmp_path / "net.pt2", Dim("batch"), Dim("time", max=9))
    verdict = porting.port(path, tmp_path / "port", allow_pickle=True, dynamic={"x": {0: "batch", 1: "time"}})
    assert verdict.ok
    with porting.load(tmp_path / "port") as session:
        for time in (1, 5, 9):
            assert session.run(feeds(30, time))["output_0"].shape == (30, time, 4)
        with pytest.raises(InputError, match=r"input 'x' is too long: 10 along axis 1, at most 9 \(time of net\.pt2"):
            session.run(feeds(30, 10))
    assert porting.validate(tmp_path / "port", path, allow_pickle=True).ok


def test_two_bounds_go_to_two_inputs(tmp_path: Path) -> None:
    path = exported(tmp_path / "net.pt2", Dim("batch", max=7), Dim("time", max=9))
    porting.convert(path, tmp_path / "port", allow_pickle=True)
    with porting.load(tmp_path / "port") as session:
        session.run(feeds(7, 9))
        for wrong in ((8, 9), (7, 10)):
            with pytest.raises(InputError, match=r"is too long"):
                session.run(feeds(*wrong))


def test_the_bound_with_least_choice_comes_first(tmp_path: Path) -> None:
    """The batch is a size of both inputs, the time of x alone."""
    batch = Dim("batch", max=7)
    path = exported(tmp_path / "net.pt2", batch, Dim("time", max=9), {0: batch})
    porting.convert(path, tmp_path / "port", allow_pickle=True)
    with porting.load(tmp_path / "port") as session:
        for size, wrong in (("x", (7, 10)), ("y", (8, 9))):
            with pytest.raises(InputError, match=rf"input '{size}' is too long"):
                session.run({**feeds(*wrong), "y": np.ones((wrong[0], 5), np.float32)})


def test_a_bound_that_no_input_is_left_for_is_refused(tmp_path: Path) -> None:
    sizes = ({0: Dim("batch", max=8), 1: Dim("width", max=8)},)
    program = torch.export.export(torch.nn.ReLU(), (torch.randn(2, 3),), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(UnsupportedModel, match=r"at most 8 \(s\d+\), and no input is left") as caught:
        porting.convert(tmp_path / "net.pt2", tmp_path / "port", allow_pickle=True)
    assert "without max" in caught.value.next
