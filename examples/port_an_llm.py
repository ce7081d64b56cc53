"""Port a language model, look at the evidence, and ask it something: the Python API from end to end.

    python examples/port_an_llm.py CHECKPOINT PORT [--precision int8] [--against GOLDEN] [--prompt "Hello"]

CHECKPOINT is a Hugging Face folder or a GGUF file. Without a golden the reference is transformers, which must then be installed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import porting


def main() -> int:
    """Exit code 0 when every check holds, 1 when one does not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("port", type=Path)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--prompt", default="What is the capital of France?")
    wanted = parser.parse_args()

    verdict = porting.port(wanted.checkpoint, wanted.port, precision=wanted.precision, against=wanted.against, force=True)
    print(verdict.line())
    for check in verdict.checks:  # each has name, verdict, value, bound and where
        print(f"  {check.verdict}  {check.name}: {check.value}, bound {check.bound}, at {check.where}")
    if not verdict.ok:
        return 1

    answer = porting.generate(wanted.port, wanted.prompt, device="cpu", max_new_tokens=48)
    print(answer.text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except porting.PortingError as error:  # what went wrong, where, and what to do next
        sys.exit(str(error))
