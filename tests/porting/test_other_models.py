"""Graphs, torch modules and encoders from source to verdict, by the public functions and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import porting
import porting.conversion
from porting.errors import EvidenceUnavailable, InputError, UsageError
from porting.graph_golden import GraphGolden
from porting.graph_judgement import stretched
from porting.pipeline import port as make_port
from porting.types import Graph, TensorSpec
from tests.other_models import write_other_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "tokenizer.json").write_text("{}")
    write_other_models(folder, folder / "tokenizer.json")
    (folder / "encoder" / "tokenizer.json").unlink()  # seeded ids
    return folder


def checks(verdict: Any) -> dict[str, str]:
    return {check.name: check.verdict for check in verdict.checks}


# --- graphs ---------------------------------------------------------------------------------------------------------


def test_an_onnx_file_from_end_to_end(models: Path, tmp_path: Path) -> None:
    verdict = porting.port(models / "vision.onnx", tmp_path / "port")
    assert verdict.ok and verdict.reference == "upstream"
    assert {tuple(v["image"]) for v in verdict.details["sizes"].values()} >= {(2, 3, 64, 96), (1, 3, 64, 96)}
    found = porting.open_port(tmp_path / "port").manifest
    assert (found["kind"], found["precision"], found["opset"][""]) == ("graph", "fp32", 24)
    again = porting.validate(tmp_path / "port")
    assert again.ok and again.reference == "golden" and len(again.checks) == len(verdict.checks)
    assert porting.validate(tmp_path / "port", models / "vision.onnx").ok
    itself = porting.validate(tmp_path / "port", tmp_path / "port")
    assert not itself.ok and itself.reference == "self"


def test_a_port_of_a_changed_file_fails(models: Path, tmp_path: Path) -> None:
    """Not the port is changed, but what it is held against: one weight of 108, by one per cent."""
    porting.convert(models / "vision.onnx", tmp_path / "port")
    proto = onnx.load(models / "vision.onnx")
    weights = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weights[1, 2, 1, 1] *= 1.01
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(proto, tmp_path / "changed.onnx")
    verdict = porting.validate(tmp_path / "port", tmp_path / "changed.onnx")
    assert verdict.exit_code == 1 and checks(verdict)["relative error of features"] == "fail"


def test_a_golden_of_the_original_judges_its_port(models: Path, tmp_path: Path) -> None:
    porting.record(models / "vad.onnx", tmp_path / "golden.json", state={"h": "hn", "c": "cn"})
    verdict = porting.port(
        models / "vad.onnx", tmp_path / "port", against=tmp_path / "golden.json", state={"h": "hn", "c": "cn"}
    )
    assert verdict.ok and verdict.reference == "golden"
    assert "state carried over 3 steps: relative error of speech" in checks(verdict)
    other = porting.convert(models / "vision.onnx", tmp_path / "other")
    with pytest.raises(InputError, match="another model"):
        porting.validate(other.path, tmp_path / "golden.json")


def test_a_port_is_recorded_like_an_original_and_never_passes_by_it(models: Path, tmp_path: Path) -> None:
    port = porting.convert(models / "vision.onnx", tmp_path / "port")
    golden = porting.record(port.path, tmp_path / "golden.json")
    assert isinstance(golden, GraphGolden) and golden.reference.startswith("port ")
    verdict = porting.validate(port.path, tmp_path / "golden.json")
    assert verdict.reference == "self" and verdict.exit_code == 1


def test_state_in_chunks_equals_the_whole(models: Path, tmp_path: Path) -> None:
    verdict = porting.port(models / "vad.onnx", tmp_path / "port", state={"h": "hn", "c": "cn"})
    assert verdict.ok and verdict.details["chunks_equal_the_whole"] is True
    audio = np.random.default_rng(0).normal(size=(2, 12, 40)).astype(np.float32)
    with porting.load(tmp_path / "port") as session:
        whole = session.run({"audio": audio})["speech"]
        state = session.new_state(batch=2)
        pieces = [session.run({"audio": audio[:, i : i + 4]}, state)["speech"] for i in (0, 4, 8)]
        fresh = session.run({"audio": audio[:, 4:8]})["speech"]
    assert np.abs(np.concatenate(pieces, 1) - whole).max() < 1e-6  # sigmoids of one layer: a few units of 2^-24
    assert np.abs(fresh - whole[:, 4:8]).max() > 1e-3, "the state makes a difference"


def test_half_floats_stay_and_other_precisions_are_refused(models: Path, tmp_path: Path) -> None:
    proto = onnx.load(models / "vision.onnx")
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(proto, tmp_path / "half.onnx")
    assert porting.port(tmp_path / "half.onnx", tmp_path / "port").ok
    assert porting.open_port(tmp_path / "port").precision == "source"
    for source, precision in (("half.onnx", "fp32"), ("half.onnx", "int8")):
        with pytest.raises(UsageError, match="keeps what it computes in"):
            porting.convert(tmp_path / source, tmp_path / "other", precision=precision)
    with pytest.raises(UsageError, match="keeps what it computes in"):
        porting.convert(models / "vision.onnx", tmp_path / "other", precision="int4")


def test_inputs_that_show_nothing_are_an_error(models: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "zeros.npz", image=np.full((1, 3, 8, 8), np.nan, np.float32))
    with pytest.raises(InputError, match="these inputs show nothing"):
        porting.port(models / "vision.onnx", tmp_path / "port", inputs=tmp_path / "zeros.npz")
    assert not (tmp_path / "port").exists()


def test_the_users_inputs_are_stretched_and_state_is_zeros(models: Path, tmp_path: Path) -> None:
    audio = np.random.default_rng(0).normal(size=(1, 5, 40)).astype(np.float32)
    np.savez(tmp_path / "a.npz", audio=audio)
    verdict = porting.port(models / "vad.onnx", tmp_path / "port", inputs=[tmp_path / "a.npz"], state={"h": "hn", "c": "cn"})
    assert verdict.ok
    assert verdict.details["sizes"]["a"] == {"audio": [1, 5, 40], "h": [1, 1, 16], "c": [1, 1, 16]}
    assert verdict.details["sizes"]["a, time doubled"]["audio"] == [1, 10, 40]
    np.savez(tmp_path / "b.npz", audio=audio[0])
    with pytest.raises(InputError, match="input does not fit"):
        porting.port(models / "vad.onnx", tmp_path / "other", inputs=tmp_path / "b.npz", state={"h": "hn", "c": "cn"})


def test_what_the_original_does_not_take_is_said() -> None:
    class Fixed:
        def run(self, feeds: dict[str, np.ndarray]) -> None:
            if feeds["x"].shape[0] != 2:
                raise InputError("two rows only")

    cases = stretched({"a": {"x": np.ones((2, 3))}}, [TensorSpec("x", "float64", ("n", "m"))], Fixed())
    assert list(cases.feeds) == ["a", "a, other values", "a, m doubled"] and list(cases.only) == ["n = 2"]


def test_plan_of_a_graph_is_what_convert_writes(models: Path, tmp_path: Path) -> None:
    forecast = porting.plan(models / "vision.onnx")
    port = porting.convert(models / "vision.onnx", tmp_path / "port")
    size = sum(f["size"] for f in port.manifest["files"] if not f["linked"])
    assert forecast["written_bytes"] == pytest.approx(size, abs=64)
    assert forecast["linked_bytes"] == port.manifest["weights"]["linked_bytes"]


# --- torch modules ----------------------------------------------------------------------------------------------------


def test_a_module_from_end_to_end(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).eval()
    examples = [(torch.randn(2, 6),), (torch.randn(5, 6),)]
    verdict = make_port(net, tmp_path / "port", example_inputs=examples)
    assert verdict.ok and "in eager mode" in verdict.details["compared_with"]
    with porting.load(tmp_path / "port") as session:
        (spec,) = session.inputs
        assert isinstance(spec.shape[0], str) and spec.shape[1] == 6, "two sizes make a free dimension"
        x = torch.randn(7, 6)
        assert torch.allclose(session.run({spec.name: x})[session.outputs[0].name], net(x), atol=1e-6)
    with torch.no_grad():
        net[0].weight[0, 0] += 1e-3
    assert porting.validate(tmp_path / "port", net, example_inputs=examples).exit_code == 1


def command(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "porting", *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


def test_a_factory_with_its_weights_on_the_command_line(models: Path) -> None:
    named = ("--model", "nets:make", "--weights", "net.pth")
    spec = ("--input", "image: float32[batch, 3, height, width]")
    code, out, err = command(models, "port", *named, *spec, "-o", "net.port", "--json", "--quiet")
    assert code == 0, err
    assert json.loads(out)["verdict"] == "pass"
    code, out, err = command(models, "validate", "net.port", *named, "--inputs", "image.npz", "--json", "--quiet")
    assert code == 0, err
    assert next(iter(json.loads(out)["details"]["sizes"])).startswith("example")
    code, _, err = command(models, "validate", "net.port", *named, "--against", "vision.onnx", "--quiet")
    assert code == 2 and "given twice" in err
    code, _, err = command(models, "convert", "vision.onnx", "--weights", "net.pth", "-o", "other", "--quiet")
    assert code == 2 and "belongs to --model" in err


# --- encoders -----------------------------------------------------------------------------------------------------------


def test_an_encoder_from_end_to_end(models: Path, tmp_path: Path) -> None:
    verdict = porting.port(models / "encoder", tmp_path / "port")
    assert verdict.ok and verdict.details["compared_with"].startswith("transformers")
    names = checks(verdict)
    assert {"relative error of last_hidden_state", "relative error of pooler_output"} <= set(names)
    assert porting.open_port(tmp_path / "port").manifest["kind"] == "encoder"
    again = porting.validate(tmp_path / "port")
    assert again.ok and again.reference == "golden"
    itself = porting.validate(tmp_path / "port", tmp_path / "port")
    assert itself.reference == "self" and itself.exit_code == 1


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_encoder_gone_wrong_fails(precision: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epsilon of a layer norm that is four times what it should be, built into port and canonical graph alike."""
    build: Callable[..., Graph] = porting.conversion.load_architecture("BertModel").build  # type: ignore[union-attr]
    monkeypatch.setattr(
        "porting.converters.architectures.bert.build",
        lambda config, weights: build({**config, "layer_norm_eps": 4 * config["layer_norm_eps"]}, weights),
    )
    verdict = porting.port(models / "encoder", tmp_path / "port", precision=precision)
    assert verdict.exit_code == 1
    failed = [name for name, found in checks(verdict).items() if found == "fail"]
    assert any("last_hidden_state" in name for name in failed), failed


def test_an_int8_encoder_has_every_kind_of_check(models: Path, tmp_path: Path) -> None:
    verdict = porting.port(models / "encoder", tmp_path / "port", precision="int8")
    names = " ".join(checks(verdict))
    for kind in ("weights that are not", "source in fp32", "fidelity, float activations", "fidelity:", "quality: mean cosine"):
        assert kind in names
    assert not [c for c in verdict.checks if c.verdict != "pass" and not c.name.startswith("quality")]
    again = porting.validate(tmp_path / "port")
    assert [c.verdict for c in again.checks if not c.name.startswith("quality")] == ["pass"] * (
        len(again.checks) - sum(c.name.startswith("quality") for c in again.checks)
    )


def test_an_encoder_without_transformers_needs_a_golden(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    porting.record(models / "encoder", tmp_path / "golden.json")
    monkeypatch.setattr("porting.judgement.upstream_version", lambda: None)
    with pytest.raises(EvidenceUnavailable, match="not installed"):
        porting.port(models / "encoder", tmp_path / "port")
    assert porting.port(models / "encoder", tmp_path / "port", against=tmp_path / "golden.json").ok
    with pytest.raises(InputError, match="the port is a encoder, the reference a graph"):
        porting.validate(tmp_path / "port", models / "vision.onnx")


def test_recorded_noise_is_that_of_the_source(models: Path, tmp_path: Path) -> None:
    golden = porting.record(models / "encoder", tmp_path / "golden.json")
    assert isinstance(golden, GraphGolden)
    noise = [value for run in golden.recorded for step in run.noise or [] for value in step.values()]
    assert noise and all(0 < value < 1e-3 for value in noise)
    assert replace(golden, integrity="x").to_bytes() == golden.to_bytes()


def test_an_exporter_that_goes_wrong_does_not_hide_behind_its_own_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight of the exported file is a thousandth off: the bound, which is measured on that file, has no part in the error."""
    from porting.converters import torch_module

    export = torch_module.export_module

    def wrong(*arguments: Any) -> Any:
        exported = export(*arguments)
        proto = onnx.load(exported.path)
        tensor = next(t for t in proto.graph.initializer if t.name.endswith("weight"))
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[0] *= 1.001
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(proto, exported.path)
        return exported

    monkeypatch.setattr(torch_module, "export_module", wrong)
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 3).eval()
    verdict = make_port(net, tmp_path / "port", example_inputs=(torch.randn(4, 6),))
    assert verdict.exit_code == 1 and verdict.checks[-1].value > 10 * verdict.checks[-1].bound


def test_weights_that_a_file_does_not_have_are_named(models: Path) -> None:
    state = torch.load(models / "net.pth", weights_only=True)["model_state_dict"]
    torch.save({name: tensor for name, tensor in state.items() if name != "head.bias"}, models / "part.pth")
    named = (
        "--model",
        "nets:make",
        "--weights",
        "part.pth",
        "--input",
        "image: float32[1, 3, 8, 8]",
        "-o",
        "part.port",
        "--quiet",
    )
    code, _, err = command(models, "convert", *named)
    assert code == 2 and "head.bias" in err
    code, out, err = command(models, "port", *named, "--no-strict")
    assert code == 0, err
    assert "NOT in the weights file, left as the factory made them: head.bias" in out
