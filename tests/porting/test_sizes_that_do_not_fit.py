"""Sizes that a port does not take: the message names inputs and sizes, and how to port the model so that it does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import porting
from porting.errors import InputError
from porting.session import load
from porting.sources import parse_input


def test_inputs_that_a_name_says_are_alike(tmp_path: Path) -> None:
    text = "g (float[N,3] x, float[N,3] z) => (float[A,3] y, float[B,3] w) { y = Relu(x) w = Abs(z) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> {text}'), tmp_path / "m.onnx")
    feeds = {"x": np.ones((2, 3), np.float32), "z": np.ones((4, 3), np.float32)}
    np.savez(tmp_path / "x.npz", **feeds)
    assert porting.port(tmp_path / "m.onnx", tmp_path / "port").ok
    with load(tmp_path / "port") as session, pytest.raises(InputError) as run:
        session.run(feeds)
    assert run.value.what == "x [2, 3] and z [4, 3] disagree about N"
    with pytest.raises(InputError) as ported:
        porting.port(tmp_path / "m.onnx", tmp_path / "other", inputs=tmp_path / "x.npz")
    assert ported.value.what == "input 'z' has 4 in dimension 0 (N), where x has 2"
    for caught in (run, ported):
        assert "by the name N that they are equal" in caught.value.next and "dim_param" in caught.value.next
    # what is advised works
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "M"
    onnx.save(model, tmp_path / "mended.onnx")
    assert porting.port(tmp_path / "mended.onnx", tmp_path / "mended", inputs=tmp_path / "x.npz").ok
    with load(tmp_path / "mended") as session:
        assert session.run(feeds)["w"].shape == (4, 3)


def test_a_module_is_validated_on_the_sizes_of_its_port(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3), torch.nn.ReLU()).eval()
    example = (torch.randn(2, 1, 20),)
    porting.port(net, tmp_path / "port", example_inputs=example, dynamic={"input": {0: "batch"}}).require()
    np.savez(tmp_path / "longer.npz", input=np.random.default_rng(0).normal(size=(3, 1, 30)).astype(np.float32))
    np.savez(tmp_path / "right.npz", input=np.random.default_rng(0).normal(size=(3, 1, 20)).astype(np.float32))
    with pytest.raises(InputError, match=r"input is \[3, 1, 30\], and the port takes .*: dimension 2 is fixed at 20") as caught:
        porting.validate(tmp_path / "port", net, inputs=tmp_path / "longer.npz")
    assert "longer.npz" in caught.value.where
    assert porting.validate(tmp_path / "port", net, inputs=tmp_path / "right.npz").ok
    # what is advised works
    advised = ast.literal_eval(caught.value.next.partition("dynamic=")[2])
    assert advised == {"input": {0: "batch", 2: "size2"}}
    spec = parse_input(re.findall(r'--input "(.*?)"', caught.value.next)[0])
    assert str(spec) == "input: float32[batch, 1, size2]"
    porting.port(net, tmp_path / "freer", example_inputs=example, dynamic=advised).require()
    assert porting.validate(tmp_path / "freer", net, inputs=tmp_path / "longer.npz").ok
