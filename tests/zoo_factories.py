"""The torch modules of the zoo as factories, for `--model tests.zoo_factories:NAME`: upstream's own code, with fresh weights, in eval mode.

The code is loaded from the unpacked packages of `model_zoo`. What it imports beside torch and does not need for the forward pass (tokenizers,
image and CLI libraries) is replaced by empty modules while it loads.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import nn

from tests.model_zoo import file, package


def _import(name: str, folder: Path, stubs: Mapping[str, Any] | None = None) -> Any:
    """A module of an unpacked package, with `stubs` in place of modules it does not need. It stays imported: exporters look it up."""
    for stub, module in (stubs or {}).items():
        sys.modules.setdefault(stub, module)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def _namespace(name: str, folder: Path) -> types.ModuleType:
    """A package whose submodules can be imported without running its __init__."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder / name)]
    return module


def _mtcnn(name: str) -> nn.Module:
    """One stage of the face detector; its file imports torchvision below the part that holds the nets."""
    path = file("facenet-pytorch", "facenet_pytorch/models/mtcnn.py")
    nets = path.read_text(encoding="utf-8").split("class MTCNN")[0].replace("from .utils", "# from .utils")
    module = sys.modules.setdefault("mtcnn", types.ModuleType("mtcnn"))
    if not hasattr(module, name):
        exec(compile(nets, str(path), "exec"), module.__dict__)
    return getattr(module, name)(pretrained=False).eval()


def pnet() -> nn.Module:
    """(batch, 3, height, width) -> boxes (batch, 4, h, w), probabilities (batch, 2, h, w)."""
    return _mtcnn("PNet")


def rnet() -> nn.Module:
    """(batch, 3, 24, 24) -> boxes (batch, 4), probabilities (batch, 2)."""
    return _mtcnn("RNet")


def onet() -> nn.Module:
    """(batch, 3, 48, 48) -> boxes (batch, 4), landmarks (batch, 10), probabilities (batch, 2)."""
    return _mtcnn("ONet")


def _crepe(size: str) -> nn.Module:
    folder = package("torchcrepe")
    constants = _namespace("torchcrepe", folder)
    constants.PITCH_BINS = 360  # type: ignore[attr-defined]
    return _import("torchcrepe.model", folder, {"torchcrepe": constants}).Crepe(size).eval()


def crepe_tiny() -> nn.Module:
    """(frames, 1024) -> pitch probabilities (frames, 360)."""
    return _crepe("tiny")


def crepe_full() -> nn.Module:
    """(frames, 1024) -> pitch probabilities (frames, 360)."""
    return _crepe("full")


def efficientnet_lite0() -> nn.Module:
    """(batch, 3, 224, 224) -> logits (batch, 1000)."""
    upstream = _import("efficientnet_lite_pytorch", package("efficientnet-lite-pytorch"))
    return upstream.EfficientNet.from_name("efficientnet-lite0").eval()


def pocketnet() -> nn.Module:
    """types (atoms,) int64, xyz (atoms, 3), points (points, 3), features (points, 39) -> (points,), (atoms,)."""
    folder = package("pocketnet")
    return _import("pocketnet.model", folder, {"pocketnet": _namespace("pocketnet", folder)}).PocketNet(128, 6).eval()


def khmer_ocr() -> nn.Module:
    """(batch, 1, 48, width) -> logits (time, batch, 984)."""
    folder = package("khmer-ocr-ocm")
    return _import("khmer_ocr_ocm.model", folder, {"khmer_ocr_ocm": _namespace("khmer_ocr_ocm", folder)}).CRNN().eval()


def attacut() -> nn.Module:
    """Characters and syllables (1, 2, length) int64 -> logits of a word starting there (length,)."""
    folder = package("attacut")
    base = _namespace("attacut", folder)
    logger, dataloaders = MagicMock(), MagicMock()  # the latter needs a syllable tokenizer
    base.logger, base.dataloaders = logger, dataloaders  # type: ignore[attr-defined]
    stubs = {"attacut": base, "attacut.logger": logger, "attacut.dataloaders": dataloaders}
    tagger = _import("attacut.models.seq_sy_ch_conv_concat", folder, stubs).Model

    class Tagger(tagger):  # type: ignore[misc, valid-type]
        """Upstream's takes a tuple of the features and their lengths, which it does not use."""

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return super().forward((features, None))

    sizes = {"num_char_tokens": 139, "num_tokens": 6227}
    return Tagger(sizes, "embc:32|embs:16|conv:64|l1:32|do:0.0").eval()


class SileroVad(nn.Module):
    """The net whose weights are silero_vad_16k.safetensors: a spectrum as a convolution, four convolutions, an LSTM cell, a probability.

    Written from the shapes of its 15 tensors and what the published ONNX graph computes.
    """

    CONTEXT, CHUNK, STRIDE, BINS = 64, 512, 128, 129

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * self.BINS, 256, stride=self.STRIDE, bias=False)
        self.conv1 = nn.Conv1d(self.BINS, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, input: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A chunk with its context (batch, 64 + 512) and the state (2, batch, 128) -> probability (batch, 1), next state."""
        samples = nn.functional.pad(input, (0, self.CONTEXT), "reflect")[:, None]
        real, imaginary = self.stft_conv(samples).split(self.BINS, dim=1)  # (B, 129, 4) each
        x = torch.sqrt(real * real + imaginary * imaginary)
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = torch.relu(convolution(x))
        h, c = self.lstm_cell(x[:, :, 0], (state[0], state[1]))  # (B, 128, 1) -> (B, 128)
        probability = torch.sigmoid(self.final_conv(torch.relu(h)[:, :, None]))[:, :, 0]
        return probability, torch.stack([h, c])


def silero_vad() -> nn.Module:
    """See SileroVad."""
    return SileroVad().eval()
