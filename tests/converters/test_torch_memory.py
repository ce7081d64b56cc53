"""Modules that remember, TorchScript in training mode, sizes that torch.export takes as bounded, masks of -inf: nothing passes wrongly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import porting
from porting.errors import CheckpointError, InputError, UnsupportedModel


class Remembers(torch.nn.Module):
    def __init__(self, first: Any) -> None:
        super().__init__()
        self.last = first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.last is None:
            self.last = x.mean(0)
        elif isinstance(self.last, dict):
            self.last["x"] = x.clone()
            return x + 1
        else:
            result = x + self.last
            self.last = x.clone()
            return result
        return x - self.last


@pytest.mark.parametrize("first", [torch.zeros(2, 4), None, {}], ids=["tensor", "none", "dict"])
def test_what_a_module_keeps_in_an_attribute_is_seen(first: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"changes attributes of its own when it runs|it remembers something between calls"):
        porting.port(Remembers(first).eval(), tmp_path / "port", example_inputs=(torch.randn(2, 4),))


class Branches(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] < 17 else x * 3


def test_a_size_that_holds_up_to_a_bound_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="above 16"):
        porting.convert(Branches().eval(), tmp_path / "port", example_inputs=(torch.randn(3, 4),), dynamic={"x": {0: "b"}})
    assert porting.port(Branches().eval(), tmp_path / "port", example_inputs=(torch.randn(3, 4),)).ok, "fixed, it is what it is"


def test_a_causal_mask_of_minus_infinity(tmp_path: Path) -> None:
    class Causal(torch.nn.Module):
        def forward(self, q: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)

    verdict = porting.port(Causal().eval(), tmp_path / "port", example_inputs=(torch.randn(1, 2, 5, 4),))
    assert verdict.ok and 0 < verdict.checks[-1].bound < 1e-4
    assert porting.validate(tmp_path / "port").ok


def test_torchscript_in_training_mode_is_refused_and_frozen_is_not(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    torch.jit.script(net.train()).save(tmp_path / "training.pt")
    given: dict[str, Any] = {"allow_pickle": True, "example_inputs": (torch.randn(2, 4),)}
    with pytest.raises(InputError, match="training mode"):
        porting.port(tmp_path / "training.pt", tmp_path / "port", **given)
    torch.jit.freeze(torch.jit.script(net.eval())).save(str(tmp_path / "frozen.pt"))
    assert porting.port(tmp_path / "frozen.pt", tmp_path / "port", **given).ok


def test_what_torch_prints_itself_is_not_on_stdout(tmp_path: Path) -> None:
    """The second exporter writes the graph that it refuses to the file descriptor; stdout is one JSON object."""
    (tmp_path / "nets.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return torch.linalg.inv(x)\n\n\n"
        "def make():\n    return Net().eval()\n"
    )
    arguments = ["port", "--model", "nets:make", "--input", "x: float32[3, 3]", "-o", "port", "--json", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "porting", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["error"]["exit_code"] == 2


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("differ", [False, True])
def test_two_tensors_for_one_of_the_module_have_to_be_equal(differ: bool, tmp_path: Path) -> None:
    from porting.converters.torch_weights import load_weights

    state = {name: tensor.clone() for name, tensor in Tied().state_dict().items()}
    state["second.weight"] += float(differ)
    torch.save(state, tmp_path / "w.pth")
    if not differ:
        assert "second.weight" in load_weights(Tied(), tmp_path / "w.pth", "Tied").used
        return
    with pytest.raises(CheckpointError, match=r"one tensor for first\.weight and second\.weight"):
        load_weights(Tied(), tmp_path / "w.pth", "Tied")
