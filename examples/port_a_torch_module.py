"""Port a torch module with its weights file, and run it: any batch, any length of the sound.

    python examples/port_a_torch_module.py [PORT] [--weights FILE]

FILE is what `torch.save(module.state_dict(), FILE)` wrote; without one, seeded random weights are saved first. On the command line, in this folder:

    porting port --model port_a_torch_module:net --weights net.pth --input "sound: float32[batch, 1, samples]" -o net.port
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import porting


class Net(nn.Module):
    """Tells ten kinds of sound apart: two convolutions, the mean over time, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 16, 9, stride=4),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Conv1d(16, 32, 9, stride=4),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(32, 10)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        """(batch, 1, samples) -> (batch, 10)"""
        found = self.features(sound).mean(dim=2)  # (B, 32, T) -> (B, 32)
        return self.head(self.dropout(found))


def net() -> nn.Module:
    """The factory that `--model port_a_torch_module:net` calls: no arguments, and eval mode. A net with dropout on would be refused."""
    return Net().eval()


def loaded(weights: Path) -> nn.Module:
    """The net with the weights of a file. Every name has to fit."""
    module = net()
    module.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    return module


def random_weights(path: Path) -> Path:
    """A stand-in for what training would have given."""
    torch.manual_seed(0)
    torch.save(net().state_dict(), path)
    return path


def port_and_run(weights: Path, port: Path) -> None:
    """Port, look at the verdict, and run on sizes that were in no example."""
    module = loaded(weights)
    verdict = porting.port(
        module,
        port,
        # One tensor for each argument of forward(). Every example is run through the module and through the port, and compared.
        example_inputs=[(torch.randn(2, 1, 800),), (torch.randn(1, 1, 1200),)],
        dynamic={"sound": {0: "batch", 2: "samples"}},  # the dimensions that may vary, and what to call them
        force=True,
    )
    print(verdict.line())
    verdict.require()  # raises when a check does not hold

    sound = np.random.default_rng(0).normal(size=(5, 1, 4000)).astype(np.float32)
    with porting.load(port, device="cpu") as session:
        for spec in (*session.inputs, *session.outputs):
            print(spec)
        (scores,) = session.run({"sound": sound}).values()
    with torch.no_grad():
        difference = np.abs(scores - module(torch.from_numpy(sound)).numpy()).max()
    print(f"{sound.shape} -> {scores.shape}, {difference:.1e} from torch")


def main() -> None:
    """Without a weights file, in a folder that is gone afterwards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("port", type=Path, nargs="?", default=Path("net.port"))
    parser.add_argument("--weights", type=Path, help="a file with the net's state_dict (default: random weights)")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        port_and_run(wanted.weights or random_weights(Path(folder, "net.pth")), wanted.port)


if __name__ == "__main__":
    try:
        main()
    except porting.PortingError as error:
        sys.exit(str(error))
