"""`porting port -p w8a8`: the port, its verdict and its hand-off, by Python and by the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import porting
from porting.ascend.graph_at_hand import at_hand
from porting.ascend.handoff import handoffs_of
from porting.ascend.vendor_integers import vendor_layers
from porting.cli import main
from porting.errors import InputError, PortError, UnsupportedModel, UsageError
from porting.port_folder import open_port
from porting.types import Program
from porting.verdict import Verdict
from tests import zoo_inputs
from tests.model_zoo import file
from tests.tiny_encoders import make_encoder

SOC = "Ascend310P3"


def weights(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(1).standard_normal(shape) * scale).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """x: (n, 3, 8, 8) -> y: (n, 5)"""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "v"], ["y"], "dense", transB=1),
    ]
    given = {"w": weights(16, 3, 3, 3), "b": weights(16), "v": weights(5, 16)}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(array, name) for name, array in given.items()],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def arrays(folder: Path, name: str, count: int, seed: int, change: float = 1.0) -> list[Path]:
    rng = np.random.default_rng(seed)
    paths = [folder / f"{name}{number}.npz" for number in range(count)]
    for path in paths:
        np.savez(path, x=(rng.standard_normal((1, 3, 8, 8)) * change).astype(np.float32))
    return paths


def ported(model: Path, calibration: Sequence[Path], inputs: Sequence[Path] | None = None, **more: object) -> Verdict:
    out = model.with_suffix(".port")
    return porting.port(model, out, SOC, "w8a8", inputs=inputs, calibration=calibration, gears=more.pop("gears", "n=1"), **more)  # type: ignore[arg-type]


def test_a_port_in_w8a8(model: Path, tmp_path: Path) -> None:
    verdict = ported(model, arrays(tmp_path, "c", 4, 0), arrays(tmp_path, "h", 2, 9))
    assert verdict.ok, verdict.reason
    names = [check.name for check in verdict.checks]
    assert sum(name.startswith("fidelity: elements") for name in names) == 2
    assert sum(name.startswith("quality: relative error of y") for name in names) == 1
    assert verdict.evidence_level == "static" and verdict.details["held_out"]
    assert [row["node"] for row in verdict.details["w8a8"]] == ["conv", "dense"]
    port = open_port(model.with_suffix(".port"))
    assert port.precision == "w8a8" and port.manifest["passes"][-1] == {"name": "quantise_w8a8", "changes": 2, "rules": []}
    assert "ConvInteger" in {node.op_type for node in onnx.load(port.path / "model.onnx").graph.node}
    (handoff,) = handoffs_of(port.path)
    handoff.verify()
    assert handoff.manifest["quantised"] is True
    assert "--precision_mode_v2=fp16" in handoff.command.arguments
    assert "never compiled and never run on hardware" in (handoff.path / "README.txt").read_text()
    with at_hand(Program(handoff.path / "model.onnx", (), ())) as deploy:
        assert [layer.name for layer in vendor_layers(deploy.model)] == ["conv", "dense"]
        assert {t.data_type for t in deploy.model.graph.initializer} <= {
            TensorProto.INT8,
            TensorProto.INT32,
            TensorProto.UINT64,
            TensorProto.FLOAT,
        }
    assert porting.validate(port.path, against=model, inputs=arrays(tmp_path, "h", 2, 9)).ok


def test_another_graph_in_the_hand_off_is_found(model: Path, tmp_path: Path) -> None:
    assert ported(model, arrays(tmp_path, "c", 2, 0)).ok
    port = model.with_suffix(".port")
    (handoff,) = handoffs_of(port)
    with (handoff.path / "model.onnx").open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)
        stream.seek(-1, 2)
        stream.write(bytes([last[0] ^ 1]))
    with pytest.raises(PortError):
        porting.validate(port)


def test_what_was_calibrated_on_is_not_held_out(model: Path, tmp_path: Path) -> None:
    calibration = arrays(tmp_path, "c", 2, 0)
    verdict = ported(model, calibration, gears="n=1")
    assert verdict.ok and not verdict.details["held_out"]
    assert verdict.reason.startswith("NOT shown: inputs that were not calibrated on")
    shutil.rmtree(model.with_suffix(".port"))
    again = ported(model, calibration, calibration, gears="n=1")
    for one in (verdict, again):
        assert any("measured on the calibration's own inputs" in note for note in one.details["notes"])
    shutil.rmtree(model.with_suffix(".port"))
    others = ported(model, calibration, arrays(tmp_path, "h", 1, 9), gears="n=1")
    assert not any("calibration's own inputs" in note for note in others.details["notes"])


def test_inputs_far_from_the_calibration_fail(model: Path, tmp_path: Path) -> None:
    verdict = ported(model, arrays(tmp_path, "c", 4, 0, change=0.01), arrays(tmp_path, "h", 2, 9))
    assert verdict.verdict == "fail" and verdict.reason.startswith("quality: relative error of y in W8A8")
    assert verdict.details["handoff"].startswith("no hand-off: the verdict is 'fail'")
    assert not handoffs_of(model.with_suffix(".port"))


def test_layers_in_float_are_in_the_report(model: Path, tmp_path: Path) -> None:
    verdict = ported(model, arrays(tmp_path, "c", 2, 0), keep_float=["conv"])
    assert verdict.ok and [row["quantised"] for row in verdict.details["w8a8"]] == [False, True]


@pytest.mark.parametrize("soc", [SOC, "Ascend910B3"])
def test_numbers_beyond_fp16_around_the_integers_are_refused(model: Path, tmp_path: Path, soc: str) -> None:
    """Integers are multiplied exactly, and what becomes of them is stored in fp16."""
    proto = onnx.load(model)
    next(t for t in proto.graph.initializer if t.name == "v").CopyFrom(numpy_helper.from_array(weights(5, 16) * 1e5, "v"))
    onnx.save(proto, model)
    with pytest.raises(
        UnsupportedModel, match=r"forecast-overflow: W8A8 computes in fp16 .* changes y on the calibration; .*dense"
    ):
        porting.port(model, tmp_path / "o.port", soc, "w8a8", calibration=arrays(tmp_path, "c", 2, 0), gears="n=1")
    assert not (tmp_path / "o.port").exists()


def test_what_is_refused(model: Path, tmp_path: Path) -> None:
    calibration = arrays(tmp_path, "c", 1, 0)
    out = model.with_suffix(".port")
    with pytest.raises(InputError, match="needs inputs to calibrate on"):
        ported(model, [])
    with pytest.raises(UsageError, match="takes no gears"):
        ported(model, calibration, gears="n=1; n=2")
    with pytest.raises(UsageError, match="compiled for one shape"):
        ported(model, calibration, gears=None)
    with pytest.raises(UsageError, match="no Conv, Gemm or MatMul is called 'con'"):
        ported(model, calibration, keep_float=["con"])
    with pytest.raises(UsageError, match="only W8A8 is calibrated"):
        porting.port(model, out, SOC, "fp16", calibration=calibration, gears="n=1")
    with pytest.raises(UsageError, match="not compiled with CANN"):
        porting.port(model, out, "cpu", calibration=calibration)
    for bad in (np.nan, np.inf, -np.inf):
        np.savez(tmp_path / "bad.npz", x=np.full((1, 3, 8, 8), bad, np.float32))
        with pytest.raises(InputError, match=f"input 'x' holds {bad}"):
            ported(model, [tmp_path / "bad.npz"])
    np.savez(tmp_path / "zeros.npz", x=np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(InputError, match="layer 'conv' reads nothing but zeros"):
        ported(model, [tmp_path / "zeros.npz"], arrays(tmp_path, "h", 1, 9))
    np.savez(tmp_path / "other.npz", z=np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(InputError, match="'z'"):
        ported(model, [tmp_path / "other.npz"])
    assert not out.exists()


def test_a_model_with_state_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "h"], ["hn"])],
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "h")],
        [helper.make_tensor_value_info("hn", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(weights(3, 3), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "s.onnx")
    np.savez(tmp_path / "c.npz", x=np.ones((1, 3), np.float32), h=np.ones((1, 3), np.float32))
    with pytest.raises(UsageError, match="without state"):
        porting.port(tmp_path / "s.onnx", tmp_path / "s.port", SOC, "w8a8", state={"h": "hn"}, calibration=tmp_path / "c.npz")


def test_a_classifier_of_text_lines_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of text upright and upside down: every decision is kept, on words that were not calibrated on."""
    source = file("rapidocr-onnxruntime", "*/models/*cls*.onnx")

    def lines(name: str, words: str) -> list[Path]:
        found = []
        for word in words.split():
            canvas = np.ones((1, 3, 48, 192), np.float32)
            drawn = zoo_inputs.drawn_text(word)[..., :192]
            canvas[..., : drawn.shape[-1]] = drawn
            for turned in (False, True):
                found.append(tmp_path / f"{name}-{word}-{turned}.npz")
                np.savez(found[-1], x=np.ascontiguousarray(canvas[..., ::-1, ::-1]) if turned else canvas)
        return found

    calibration = [part for path in lines("c", "Hello invoice Total Please Lisbon") for part in ("--calibration", str(path))]
    held_out = lines("h", "morning street coffee")
    inputs = [part for path in held_out for part in ("--inputs", str(path))]
    options = ["-o", str(tmp_path / "cls.port"), "--target", SOC, "-p", "w8a8", "--dims", "1,48,192", "--json", "--quiet"]
    with pytest.raises(SystemExit) as ended:
        main(["port", str(source), *options, *calibration, *inputs])
    assert ended.value.code == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["verdict"] == "pass" and len(verdict["details"]["w8a8"]) == 54
    with porting.load(tmp_path / "cls.port") as session:
        for path in held_out:
            (decided,) = session.run(dict(np.load(path))).values()
            assert decided.argmax() == ("True" in path.name)
    with pytest.raises(SystemExit) as ended:
        main(["port", str(source), *options, "--force", "--calibration", str(tmp_path / "none.npz")])
    assert ended.value.code == 2


def test_an_encoder_from_its_checkpoint(tmp_path: Path) -> None:
    """Its products with constants in integers, those of attention in float; judged on its own texts, and from its golden again."""
    make_encoder(tmp_path / "bert", "BertModel")
    rng = np.random.default_rng(0)
    for number in range(3):
        ids = rng.integers(0, 100, (1, 8))
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        np.savez(tmp_path / f"c{number}.npz", **given)
    calibration = sorted(tmp_path.glob("c*.npz"))
    out = tmp_path / "bert.port"
    verdict = porting.port(tmp_path / "bert", out, SOC, "w8a8", gears="batch=1,sequence=8", calibration=calibration)
    kinds = {check.name.partition(":")[0] for check in verdict.checks}
    assert {"quality", "fidelity"} <= kinds and verdict.details["held_out"]
    report = verdict.details["w8a8"]
    assert {row["reason"] for row in report if not row["quantised"]} == {"its weight is no constant"}
    assert any(row["quantised"] and row["op"] == "MatMul" for row in report)
    again = porting.validate(out)
    assert again.verdict == verdict.verdict and again.details["w8a8"] == report
