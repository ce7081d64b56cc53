"""Ports that are compiled in fp16, validated on the simulated Ascend: held to what their own forecast allows, and to no more. Not hardware."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import porting
from porting.compiled_precision import compiled_bounds, compiled_in
from porting.port_folder import open_port
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
