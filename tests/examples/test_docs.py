"""What README and docs show is run: every command, every Python block, and the architecture that docs/architectures.md adds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from tests.other_models import write_other_models

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


SET_UP = ("make ", "pip ")  # lines that are run by CI and by the tests further down, not here


@pytest.mark.parametrize(("document", "least"), [("README.md", 20), ("docs/ascend.md", 8)])
def test_commands_and_python_of_the_documents(document: str, least: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Every line of every `sh` block and every `python` block, in order, in one folder, on a tiny checkpoint."""
    (tmp_path / "model").symlink_to(tiny_checkpoint)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    write_other_models(tmp_path, tiny_checkpoint / "tokenizer.json")
    text = (ROOT / document).read_text(encoding="utf-8")
    ran = 0
    for language, block in re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        pieces = [["python", "-c", block]] if language == "python" else [["bash", "-c", x] for x in block.splitlines()]
        for command in pieces:
            if not command[-1].startswith(SET_UP):
                done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
                assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"
                ran += 1
    assert ran >= least


def test_readme_shows_every_command_and_exit_code() -> None:
    from porting.cli import COMMANDS
    from porting.errors import EXIT_CODES_HELP

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"porting (\w+)", "\n".join(blocks("README.md", "sh"))))
    assert documented == set(COMMANDS)
    table = set(re.findall(r"^\| (\d+) \|", readme, re.MULTILINE))
    assert table == set(re.findall(r"(\d+) ", EXIT_CODES_HELP))


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/README.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_make_knows_the_targets_of_the_readme() -> None:
    lines = [line for block in blocks("README.md", "sh") for line in block.splitlines() if line.startswith("make ")]
    assert lines
    for line in lines:
        planned = subprocess.run(["bash", "-c", line.replace("make", "make -n", 1)], cwd=ROOT, capture_output=True, text=True)
        assert planned.returncode == 0, planned.stderr
    assert [line.split()[:2] for line in lines] == [
        line.split() for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")
    ], "CI runs what README tells people to run"


@pytest.mark.slow
def test_pip_lines_of_the_readme_resolve() -> None:
    """pip finds versions for each line; nothing is installed."""
    index = {"TORCH_CPU_INDEX": os.environ.get("TORCH_CPU_INDEX", "")}
    for line in (line for block in blocks("README.md", "sh") for line in block.splitlines() if line.startswith("pip ")):
        if "$TORCH_CPU_INDEX" in line and not index["TORCH_CPU_INDEX"]:
            line = line.partition(" --index-url")[0]
        dry = line.replace(
            "pip install", "python -m pip install --dry-run --ignore-installed -qq --disable-pip-version-check", 1
        )
        done = subprocess.run(["bash", "-c", dry], cwd=ROOT, env=environment(**index), capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
