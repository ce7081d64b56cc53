"""The examples that are no language models, run as their readers would: as programs, and the command lines that they show."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import porting
from tests.model_zoo import file, speech_wav

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
OCR = "rapidocr_onnxruntime/models/ch_PP-OCRv4_{}_infer.onnx"
MODELS = {
    "silero_vad": ("silero-vad", "silero_vad/data/silero_vad.onnx"),
    "text_detector": ("rapidocr-onnxruntime", OCR.format("det")),
    "text_recogniser": ("rapidocr-onnxruntime", OCR.format("rec")),
}


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program with this environment's commands and the examples in reach; its output, whatever its exit code."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(EXAMPLES)}
    return subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)


def example(name: str, *arguments: object, cwd: Path) -> str:
    """stdout of an example that succeeds."""
    done = run(sys.executable, EXAMPLES / name, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shown_command(name: str) -> list[str]:
    """The `porting port` line in an example's docstring."""
    (line,) = re.findall(r"porting port .*$", (EXAMPLES / name).read_text(encoding="utf-8"), re.MULTILINE)
    return shlex.split(line)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the models that get_models.py would have put there."""
    for name, (package, path) in MODELS.items():
        shutil.copyfile(file(package, path), tmp_path / f"{name}.onnx")
    return tmp_path


def test_port_a_torch_module(tmp_path: Path) -> None:
    printed = example("port_a_torch_module.py", "net.port", cwd=tmp_path)
    assert printed.startswith("PASS")
    assert "(5, 1, 4000) -> (5, 10)" in printed
    assert float(re.findall(r"(\S+) from torch", printed)[0]) < 1e-5


@pytest.mark.slow
def test_port_a_torch_module_by_its_command_line(tmp_path: Path) -> None:
    """With weights of this net, and with those of another."""
    import torch

    sys.path.append(str(EXAMPLES))
    import port_a_torch_module as shown

    command = shown_command("port_a_torch_module.py")
    shown.random_weights(tmp_path / "net.pth")
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    with porting.load(tmp_path / "net.port") as session:
        (scores,) = session.run({"sound": np.ones((3, 1, 500), np.float32)}).values()
    with torch.no_grad():
        expected = shown.loaded(tmp_path / "net.pth")(torch.ones(3, 1, 500)).numpy()
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)  # sums of at most 144 products of about 0.1

    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "net.pth")
    refused = run(*command, "--force", cwd=tmp_path)
    assert refused.returncode == 2
    assert "head.weight" in refused.stderr


def test_ocr_reads_what_it_drew(folder: Path) -> None:
    assert example("ocr.py", "--folder", folder, cwd=folder) == "Hello World 42\nported, not guessed\n"


@pytest.mark.slow
def test_ocr_reads_a_picture_in_two_columns(folder: Path) -> None:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (640, 96), "#ddeeff")
    draw = ImageDraw.Draw(picture)
    draw.text((20, 30), "left 123", font=ImageFont.load_default(32), fill="black")
    draw.text((400, 30), "right 456", font=ImageFont.load_default(32), fill="darkred")
    picture.save(folder / "picture.png")
    assert example("ocr.py", "picture.png", "--folder", folder, cwd=folder) == "left 123\nright 456\n"


def test_streaming_vad_hears_the_made_up_voice(folder: Path) -> None:
    printed = example("streaming_vad.py", "--folder", folder, cwd=folder)
    begins, ends = re.findall(r"^speech (?:begins|ends) at (\S+) s$", printed, re.MULTILINE)
    assert 0.55 < float(begins) < 0.7  # silence lasts 0.625 s, a chunk 0.032 s
    assert 1.3 < float(ends) < 1.5  # the voice ends at 1.375 s
    assert len(printed.splitlines()) == 2 + 63


@pytest.mark.slow
def test_streaming_vad_hears_a_recording(folder: Path) -> None:
    """Two words, with a breath between them."""
    printed = example("streaming_vad.py", speech_wav(), "--folder", folder, cwd=folder)
    assert re.findall(r"^speech (begins|ends)", printed, re.MULTILINE)[:3] == ["begins", "ends", "begins"]


@pytest.mark.slow
def test_streaming_vad_by_its_command_line(folder: Path) -> None:
    example("streaming_vad.py", "--folder", folder, cwd=folder)
    shutil.rmtree(folder / "silero_vad.port")
    (folder / "silero_vad.npz").rename(folder / "example.npz")
    done = run(*shown_command("streaming_vad.py"), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_streaming_vad_refuses_a_recording_it_cannot_use(folder: Path) -> None:
    import wave

    with wave.open(str(folder / "stereo.wav"), "wb") as stereo:
        stereo.setnchannels(2)
        stereo.setsampwidth(2)
        stereo.setframerate(44100)
    refused = run(sys.executable, EXAMPLES / "streaming_vad.py", "stereo.wav", "--folder", folder, cwd=folder)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "expected 16-bit mono at a multiple of 16000 Hz" in refused.stderr


@pytest.mark.parametrize("name", ["port_a_torch_module.py", "ocr.py", "streaming_vad.py", "get_models.py"])
def test_help_works(name: str, tmp_path: Path) -> None:
    assert example(name, "--help", cwd=tmp_path).startswith("usage: ")


@pytest.mark.slow
def test_get_models_downloads_what_the_examples_take(tmp_path: Path) -> None:
    for name, (package, path) in MODELS.items():
        printed = example("get_models.py", name, "--into", "models", cwd=tmp_path)
        assert (tmp_path / printed.strip()).read_bytes() == file(package, path).read_bytes()
