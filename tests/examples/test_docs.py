"""What README and docs show is run: every command, every Python block, and the architecture that docs/architectures.md adds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).resolve().parents[2]


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def environment(**variables: str) -> dict[str, str]:
    """This environment, with its commands first in PATH."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **variables}


def test_the_architecture_of_the_docs_matches_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/architectures.md, followed to the letter; installed by what pip would leave behind."""
    (code,) = blocks("docs/architectures.md", "python")
    (project,) = blocks("docs/architectures.md", "toml")
    (command,) = blocks("docs/architectures.md", "sh")
    site = tmp_path / "site"
    info = site / "porting_olmo2-0.1.0.dist-info"
    info.mkdir(parents=True)
    (site / "porting_olmo2.py").write_text(code)
    ((group, name, value),) = re.findall(r'^\[project\.entry-points\."(.*)"\]\n(\w+) = "(.*)"$', project, re.MULTILINE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: porting-olmo2\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    monkeypatch.setitem(tiny.OWN, name, {})
    tiny.make(tmp_path / "tiny-olmo2", name)

    without = subprocess.run(command, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert (without.returncode, "'Olmo2ForCausalLM' is not covered" in without.stderr) == (2, True), without.stderr
    ran = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment(PYTHONPATH=str(site)), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "fidelity to the reference" in ran.stdout
