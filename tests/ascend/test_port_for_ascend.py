"""Ports for Ascend: the lowered graph is written, computes what the source does on the CPU, and claims no more than that."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny import make
from tiny_encoders import make_encoder

import porting
from porting.ascend.handoff import handoffs_of
from porting.errors import EvidenceUnavailable, UnsupportedModel
from porting.verdict import Verdict
from tests.graph_models import model, node, weight


def graph_of(port: Path) -> onnx.GraphProto:
    return onnx.load(str(port / "model.onnx"), load_external_data=False).graph


@pytest.fixture(scope="module")
def norm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that the parser does not take as it is: GELU of opset 20, and a Shape of which it would read all."""
    folder = tmp_path_factory.mktemp("norm")
    nodes = [
        node("MatMul", "x w", "p"),
        node("Gelu", "p", "g"),
        node("Shape", "x", "rows", start=0, end=1),
        node("Cast", "rows", "count", to=1),
    ]
    nodes.append(node("Mul", "g count", "y"))
    proto = model(nodes, {"x": ["batch", 8]}, {"y": ["batch", 8]}, [weight("w", 8, 8)])
    proto.opset_import[0].version = 20
    path = folder / "m.onnx"
    onnx.save(proto, str(path))
    return path


@pytest.mark.parametrize("target", ["Ascend310P3", "Ascend910B3"])
def test_a_graph_is_lowered_and_computes_the_same(norm: Path, tmp_path: Path, target: str) -> None:
    verdict = porting.port(norm, tmp_path / "m.port", target).require()
    assert verdict.evidence_level == "static" and verdict.target == target and verdict.reference == "upstream"
    port = porting.open_port(tmp_path / "m.port")
    about = port.manifest["ascend"]
    assert about["portability"] == "portable after rewrites" and about["precision_mode"].startswith("--precision_mode_v2=")
    assert about["precision"] == ("fp16" if target == "Ascend310P3" else "fp32")
    model_ = onnx.load(str(tmp_path / "m.port" / "model.onnx"), load_external_data=False)
    assert [(o.domain, o.version <= 18) for o in model_.opset_import] == [("", True)]
    assert "Gelu" not in {n.op_type for n in model_.graph.node}
    assert not any(a.name in ("start", "end") for n in model_.graph.node if n.op_type == "Shape" for a in n.attribute)
    with pytest.raises(EvidenceUnavailable, match="cpu gives static evidence"):
        porting.validate(tmp_path / "m.port", norm, require_level="hardware")
    with pytest.raises(EvidenceUnavailable, match="cpu gives static evidence"):
        porting.port(norm, tmp_path / "n.port", target, require_level="simulated")
    assert not (tmp_path / "n.port").exists()


@pytest.mark.parametrize("target", ["Ascend310P3", "Ascend910B3"])
def test_a_port_is_compared_on_the_cpu_and_then_on_the_simulated_chip(norm: Path, tmp_path: Path, target: str) -> None:
    """The hand-off comes of the first comparison, and the second runs what is compiled from it."""
    verdict = porting.port(
        norm, tmp_path / "m.port", target, device="ascend-sim", gears="batch=2", require_level="simulated"
    ).require()
    assert verdict.evidence_level == "simulated" and verdict.device == "ascend-sim"
    assert ("forecast" in verdict.details) is (target == "Ascend310P3")
    assert Verdict.from_json((tmp_path / "m.port" / "evidence" / "verdict.json").read_bytes()).checks == verdict.checks
    (handoff,) = handoffs_of(tmp_path / "m.port")
    assert handoff.manifest["evidence"]["level"] == "static"
    assert porting.validate(tmp_path / "m.port", norm, "ascend-sim").ok


def test_what_is_blocked_is_a_verdict_and_no_port(tmp_path: Path) -> None:
    onnx.save(
        model([node("DFT", "x", "y", axis=1)], {"x": ["batch", 4, 1]}, {"y": ["batch", 4, 2]}, []), str(tmp_path / "m.onnx")
    )
    verdict = porting.port(tmp_path / "m.onnx", tmp_path / "m.port", "Ascend910B3")
    assert verdict.exit_code == 1 and verdict.details["portability"] == "blocked" and not (tmp_path / "m.port").exists()
    with pytest.raises(UnsupportedModel, match="blocked for Ascend910B3"):
        porting.convert(tmp_path / "m.onnx", tmp_path / "m.port", "Ascend910B3")
    assert not (tmp_path / "m.port").exists()


def test_an_encoder(tmp_path: Path) -> None:
    make_encoder(tmp_path / "bert", "BertModel")
    verdict = porting.port(tmp_path / "bert", tmp_path / "bert.port", "Ascend910B3").require()
    assert verdict.evidence_level == "static"
    assert not {"LayerNormalization", "Gelu", "Attention"} & {n.op_type for n in graph_of(tmp_path / "bert.port").node} - {
        "LayerNormalization"
    }


def test_a_language_model(tmp_path: Path) -> None:
    make(tmp_path / "llama", "LlamaForCausalLM")
    verdict = porting.port(tmp_path / "llama", tmp_path / "llama.port", "Ascend910B3")
    assert verdict.ok, json.dumps([vars(c) for c in verdict.checks if c.verdict != "pass"], indent=1, default=str)
    kinds = {n.op_type for n in graph_of(tmp_path / "llama.port").node}
    assert not {"RMSNormalization", "RotaryEmbedding", "Attention", "TensorScatter", "Swish"} & kinds


def test_weights_of_int8_are_blocked(tmp_path: Path) -> None:
    make(tmp_path / "llama", "LlamaForCausalLM")
    verdict = porting.port(tmp_path / "llama", tmp_path / "llama.port", "Ascend910B3", "int8")
    assert verdict.exit_code == 1 and "no operator with int8 weights" in json.dumps(verdict.to_dict())
    assert not (tmp_path / "llama.port").exists()


def test_the_rest_is_as_for_any_port(norm: Path, tmp_path: Path) -> None:
    porting.port(norm, tmp_path / "m.port", "Ascend310P3").require()
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    with porting.load(tmp_path / "m.port") as session:
        assert session.run({"x": x})["y"].shape == (3, 8)
