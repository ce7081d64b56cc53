"""The code in docs/backends.md runs and says what the page says; its table of options is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from porting.backends import cpu, cuda

PAGE = (Path(__file__).parents[2] / "docs" / "backends.md").read_text(encoding="utf-8")


def test_examples_run_in_order(capsys: pytest.CaptureFixture) -> None:
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    assert capsys.readouterr().out == "(3, 4) {'neg': 'cpu'}\n[6] 256\n[[2. 2.]]\n"


@pytest.mark.parametrize(("device", "options"), [("cpu", cpu.OPTIONS), ("cuda", cuda.OPTIONS)])
def test_every_option_is_in_the_table(device: str, options: tuple[str, ...]) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{device}"))
    assert re.findall(r"`(\w+)=", row) == list(options)
