"""What every test folder shares. Tests are not packages: shared modules are imported by name from this folder."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

# A shell that runs a job in the background has it ignore SIGINT, and children inherit that: the tests of Ctrl-C would wait forever.
signal.signal(signal.SIGINT, signal.default_int_handler)

sys.path.append(str(Path(__file__).parent))  # last: the folder tests/porting must not hide the package


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as GGUF, downloaded once."""
    import models

    return models.smollm2_gguf()


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder in fp32, made once."""
    import models

    return models.smollm2_folder()
