"""The small models that README names beside the language model: an encoder, two .onnx files, a torch factory with its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny_encoders import make_encoder

NETS = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, image):
        return self.head(torch.relu(self.conv(image)).mean((2, 3)))


def make():
    return Net().eval()
"""


def write_other_models(folder: Path, tokenizer: Path) -> None:
    """encoder/, vision.onnx, vad.onnx, nets.py, net.pth and image.npz, as README calls them."""
    make_encoder(
        folder / "encoder", "BertModel", hidden_size=64, num_attention_heads=4, vocab_size=260, max_position_embeddings=64
    )
    shutil.copyfile(tokenizer, folder / "encoder" / "tokenizer.json")
    _write_vision(folder / "vision.onnx")
    _write_vad(folder / "vad.onnx")
    _write_net(folder)


def _write_vision(path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)), "b": rng.normal(size=4)}
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["features"]),
    ]
    _write(path, nodes, weights, {"image": ["batch", 3, "height", "width"]}, {"features": ["batch", 4, 1, 1]})


def _write_vad(path: Path) -> None:
    """(batch, time, 40) float32 -> (batch, time, 1), with h and c of an LSTM of 16 carried along, both (1, batch, 16)."""
    rng = np.random.default_rng(1)
    weights = {"w": rng.normal(size=(1, 64, 40)), "r": rng.normal(size=(1, 64, 16)) / 4, "out": rng.normal(size=(16, 1))}
    nodes = [
        helper.make_node("Transpose", ["audio"], ["x"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["x", "w", "r", "", "", "h", "c"], ["y", "hn", "cn"], hidden_size=16),
        helper.make_node("Squeeze", ["y", "axis"], ["steps"]),
        helper.make_node("Transpose", ["steps"], ["rows"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["rows", "out"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["speech"]),
    ]
    state = [1, "batch", 16]
    inputs = {"audio": ["batch", "time", 40], "h": state, "c": state}
    _write(path, nodes, weights, inputs, {"speech": ["batch", "time", 1], "hn": state, "cn": state}, axis=np.asarray([1]))


def _write(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    **constants: np.ndarray,
) -> None:
    arrays = {name: array.astype(np.float32) for name, array in weights.items()} | constants
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _write_net(folder: Path) -> None:
    import torch

    (folder / "nets.py").write_text(NETS)
    scope: dict[str, object] = {}
    exec(NETS, scope)
    torch.manual_seed(0)
    torch.save({"epoch": 3, "model_state_dict": scope["make"]().state_dict(), "optimizer": {"lr": 1e-3}}, folder / "net.pth")  # type: ignore[operator]
    np.savez(folder / "image.npz", image=np.random.default_rng(0).normal(size=(2, 3, 24, 40)).astype(np.float32))
