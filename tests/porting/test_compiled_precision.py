"""Ports that are compiled in fp16, validated on the simulated Ascend: held to what their own forecast allows, and to no more. Not hardware."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny import make

import porting
from porting.compiled_precision import compiled_bounds, compiled_in
from porting.golden import Golden
from porting.graph_outputs import relative_error
from porting.language_validation import judge
from porting.numerics.metrics import compare
from porting.port_folder import open_port
from porting.reference import GoldenReference
from tests import overflowing_models as models
from tests.overflowing_models import feeds


@pytest.fixture
def source(tmp_path: Path) -> Path:
    onnx.save(models.mlp(), str(tmp_path / "mlp.onnx"))
    np.savez(tmp_path / "x.npz", **feeds())
    return tmp_path / "mlp.onnx"


def test_a_port_in_fp16_is_held_to_its_forecast_and_saturates_without_its_exceptions(source: Path, tmp_path: Path) -> None:
    """With keep_dtype.cfg the model holds on the simulated 310P; without it the middle layer saturates, and validation fails."""
    rows = len(next(iter(feeds().values())))
    made = porting.port(source, tmp_path / "kept.port", "Ascend310P3", inputs=tmp_path / "x.npz", gears=f"n={rows}")
    assert made.verdict == "pass"
    kept = porting.validate(tmp_path / "kept.port", against=source, device="ascend-sim", inputs=tmp_path / "x.npz")
    assert (kept.verdict, kept.evidence_level) == ("pass", "simulated"), kept.reason
    (check,) = [c for c in kept.checks if "relative error" in c.name]
    allowed = compiled_bounds(open_port(tmp_path / "kept.port"), "ascend-sim")
    assert check.bound in allowed.values() and 1e-5 < float(str(check.value)) < float(str(check.bound))
    porting.convert(source, tmp_path / "bare.port", "Ascend310P3", gears=f"n={rows}")  # looks at no activations
    bare = porting.validate(tmp_path / "bare.port", against=source, device="ascend-sim", inputs=tmp_path / "x.npz")
    assert bare.verdict == "fail" and any(c.verdict == "fail" and "relative error" in c.name for c in bare.checks)
    (worst,) = [c.value for c in bare.checks if "relative error" in c.name]
    assert float(str(worst)) > 100 * float(str(check.value))  # not roundings
    (named,) = [c for c in bare.checks if c.name == "nodes that fp16 does not hold"]
    assert (named.verdict, named.value) == ("fail", 3), "the layer between the two products"
    assert named.where.startswith("scale (Mul, up to ") and "shift (Add, " in named.where and "back (Div, " in named.where
    assert not [c for c in kept.checks if c.name == named.name], "nothing failed, so nothing is looked for"


def test_only_a_device_that_runs_the_compiled_model_is_allowed_more(source: Path, tmp_path: Path) -> None:
    porting.port(source, tmp_path / "m.port", "Ascend310P3", inputs=tmp_path / "x.npz")
    port = open_port(tmp_path / "m.port")
    assert compiled_in(port, "ascend:0") == compiled_in(port, "ascend-sim,seed=3") == "fp16" and compiled_in(port, "cpu") == ""
    assert compiled_bounds(port, "cpu") == {}
    path = port.path / "evidence" / "verdict.json"
    verdict = json.loads(path.read_text())
    last = verdict["details"]["forecast"]["with_exceptions"]
    last["outputs"][0]["holds"] = False
    path.write_text(json.dumps(verdict))
    assert compiled_bounds(port, "ascend:0") == {}, "an output that did not hold is allowed nothing"
    path.unlink()
    assert compiled_bounds(port, "ascend:0") == {}
    porting.port(source, tmp_path / "a2.port", "Ascend910B3", inputs=tmp_path / "x.npz")
    assert compiled_in(open_port(tmp_path / "a2.port"), "ascend") == ""


def test_a_device_that_is_told_a_format_is_held_to_a_forecast_made_then(source: Path, tmp_path: Path) -> None:
    porting.port(source, tmp_path / "m.port", "Ascend910B3", inputs=tmp_path / "x.npz")
    port, asked = open_port(tmp_path / "m.port"), "ascend-sim,route=cann,precision="
    assert [compiled_in(port, asked + p) for p in ("fp32", "fp16", "mixed_fp16", "bf16")] == ["", "fp16", "fp16", "bf16"]
    assert compiled_bounds(port, asked + "fp16", [feeds()]) == {}, "it overflows, and so nothing is allowed"
    assert compiled_bounds(port, asked + "fp32", [feeds()]) == {} == compiled_bounds(port, asked + "bf16")
    (allowed,) = compiled_bounds(port, asked + "bf16", [feeds()]).values()
    assert 2**-10 < allowed < 2**-3, "a few roundings of 8 bits"
    porting.port(source, tmp_path / "half.port", "Ascend310P3", inputs=tmp_path / "x.npz")
    half = open_port(tmp_path / "half.port")
    assert compiled_in(half, "ascend-sim") == "fp16" and compiled_bounds(half, "ascend-sim,route=npu,precision=fp32") == {}


def test_a_language_model_in_fp16_is_held_to_its_forecast_and_to_the_quality_of_fp16(tmp_path: Path) -> None:
    make(tmp_path / "llama", "LlamaForCausalLM")
    gears = "sequence=1,capacity=64; sequence=32,capacity=64"
    made = porting.port(tmp_path / "llama", tmp_path / "kept.port", "Ascend310P3", gears=gears)
    assert made.verdict == "pass" and made.details["computed_in"] == "fp32", (
        "judged on the CPU, which computes the graph as it is"
    )
    kept = porting.validate(tmp_path / "kept.port", device="ascend-sim")
    assert (kept.verdict, kept.evidence_level, kept.details["computed_in"]) == ("pass", "simulated", "fp16"), kept.reason
    allowed = compiled_bounds(open_port(tmp_path / "kept.port"), "ascend-sim")["logits"]
    errors = [c for c in kept.checks if "relative error of logits" in c.name]
    assert len(errors) == 4 and all(c.bound == allowed and 1e-3 < float(str(c.value)) < allowed for c in errors)
    (kl,) = [c for c in kept.checks if "KL divergence" in c.name]
    assert 5e-7 < float(str(kl.value)) < float(str(kl.bound)), "beyond what fp32 may cost, within what fp16 may"
    porting.convert(tmp_path / "llama", tmp_path / "bare.port", "Ascend310P3", gears=gears)  # looks at no activations
    golden = tmp_path / "kept.port" / "evidence" / "golden.json"
    bare = porting.validate(tmp_path / "bare.port", against=golden, device="ascend-sim")
    assert bare.verdict == "fail", "nothing was forecast, so nothing is allowed"


def test_a_wrong_language_model_in_fp16_fails(tmp_path: Path) -> None:
    """Another epsilon shows above fp16's roundings, and only against the reference: the port computes what its own graph says."""
    make(tmp_path / "llama", "LlamaForCausalLM")
    gears = "sequence=1,capacity=64; sequence=32,capacity=64"
    porting.port(tmp_path / "llama", tmp_path / "right.port", "Ascend310P3", gears=gears)
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    (tmp_path / "llama" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": config["rms_norm_eps"] * 50}))
    wrong = porting.port(tmp_path / "llama", tmp_path / "wrong.port", "Ascend310P3", gears=gears)
    assert wrong.verdict == "pass", "right for its own source"
    golden = Golden.load(tmp_path / "right.port" / "evidence" / "golden.json")
    reference = GoldenReference(golden, "golden")
    reference.require_model = lambda *_: None  # type: ignore[method-assign]  # another epsilon is another model, and would be refused
    verdict = judge(open_port(tmp_path / "wrong.port"), reference, "ascend-sim")
    failed = [c.name for c in verdict.checks if c.verdict == "fail"]
    assert (
        "fidelity to the reference: relative error of logits" in failed and "fidelity: relative error of logits" not in failed
    )


def test_a_forecast_and_a_validation_measure_the_same() -> None:
    generator = np.random.default_rng(0)
    array = generator.normal(size=(2, 3, 50)).astype(np.float32)
    other = array + generator.normal(size=array.shape).astype(np.float32) * 1e-3
    assert relative_error(array, other) == pytest.approx(compare(array, other).rel_l2, rel=1e-6)
