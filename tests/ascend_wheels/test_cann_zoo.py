"""Real models through the real CANN wheel over a simulated CANN, each against the golden of its port. Not hardware.

Ports are made with the interpreter that PORTING_PORTS_WITH names, as `make test` does: see zoo_ports.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import porting
from porting.fidelity import run_whole
from porting.golden import Golden
from porting.port_folder import open_port
from porting.reference import GoldenReference
from tests.ascend_wheels.cann_children import ROOT, use_own_cache

ELSEWHERE = os.environ.get("PORTING_PORTS_WITH", "")
DEVICE = "ascend-sim,route=cann,precision=fp32"
SAID = {"prompt": "Write a short story about a fox and a river.", "chat": True, "max_new_tokens": 64}
SECONDS = 600  # to make all ports, which takes one minute
pytestmark = [
    pytest.mark.cann_wheel,
    pytest.mark.slow,
    pytest.mark.skipif(
        not ELSEWHERE, reason="PORTING_PORTS_WITH names no interpreter with torch and onnxruntime, to make ports with"
    ),
]
TOKENS = """
import json, sys, porting
print(json.dumps(list(porting.generate(sys.argv[1], **json.loads(sys.argv[2])).token_ids)))
"""


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ports")
    command = [ELSEWHERE, "-m", "tests.ascend_wheels.zoo_ports", str(folder)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert ran.returncode == 0, f"{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_own_cache(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("name", "checks"),
    [("recogniser", 5), ("detector", 4), ("boxes", 3), ("bert", 11), ("voice", 18), ("classifier", 7)],
)
def test_each_model_of_the_hand_offs_against_its_golden(ports: Path, name: str, checks: int) -> None:
    """Of the classifier the provider takes numbers, as it knows nothing of AIPP: what AIPP would make of pixels is emulated."""
    verdict = porting.validate(ports / f"{name}.port", device=DEVICE, require_level="simulated").require()
    assert verdict.reference == "golden" and len(verdict.checks) == checks
    (placed,) = [check for check in verdict.checks if check.name == "nodes on another device"]
    assert placed.value == 0


def test_fp16_is_held_to_what_it_costs_and_names_the_layer_that_it_does_not_hold(ports: Path) -> None:
    half = DEVICE.replace("fp32", "fp16")
    boxes = porting.validate(ports / "boxes.port", device=half, require_level="simulated").require()
    (error,) = [check for check in boxes.checks if check.name.startswith("relative error of")]
    assert 1e-4 < float(str(error.value)) < float(str(error.bound)) < 0.05
    detector = porting.validate(ports / "detector.port", device=half)
    (named,) = [check for check in detector.checks if check.name == "nodes that fp16 does not hold"]
    assert detector.verdict == "fail" and "up to" in named.where


def test_smollm2_against_its_golden_and_64_tokens(ports: Path) -> None:
    """The graph that fidelity is judged by needs a later onnxruntime: logits are held against the golden alone."""
    port = ports / "smollm2.port"
    golden = GoldenReference(Golden.load(port / "evidence" / "golden.json"), "golden")
    with porting.load(port, DEVICE) as session:
        for case, ids in golden.cases.items():
            assert golden.compare(case, run_whole(session, ids)).rel_l2 < 1e-4, case
    written = porting.generate(port, device=DEVICE, **SAID).token_ids
    command = [ELSEWHERE, "-c", TOKENS, str(port), json.dumps(SAID)]
    expected = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert len(expected) == 64 and list(written) == expected


def test_a_validation_that_needs_a_later_onnxruntime_says_so(ports: Path) -> None:
    with pytest.raises(porting.PortingError, match=r"needs onnxruntime 1\.2") as caught:
        porting.validate(ports / "smollm2.port", device=DEVICE)
    assert caught.value.exit_code == 3


def test_a_shape_without_a_gear_is_refused(ports: Path) -> None:
    assert len(open_port(ports / "recogniser.port").program().gears) == 3
    with (
        porting.load(ports / "recogniser.port", DEVICE) as session,
        pytest.raises(porting.PortingError, match="no gear has the shapes"),
    ):
        session.run({"x": np.zeros((1, 3, 48, 400), np.float32)})
