"""What pip installs: all of it under one name, importable without anything heavy, and extras that are named when they are missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

import pytest
import tiny
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
CODE = {"porting": "porting", "backends": "porting/backends", "converters": "porting/converters"}  # folder -> in the wheel
HEAVY = (
    "numpy",
    "onnx",
    "onnx_ir",
    "ml_dtypes",
    "torch",
    "transformers",
    "onnxruntime",
    "openvino",
    "acl",
    "torch_npu",
    "rich",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree, built from a copy: setuptools leaves `build/` where it works."""
    source = tmp_path_factory.mktemp("source")
    for folder in CODE:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    made = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "-qq", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "-w", str(made), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (found,) = made.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip would lay it out."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


@pytest.fixture(scope="module")
def base_only(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links: the installed wheel and what it requires, followed to the end, and nothing of any extra."""
    site = tmp_path_factory.mktemp("base")
    wanted, seen = base_requirements(installed), set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        package = distribution(name)
        wanted |= {r.name for r in map(Requirement, package.requires or []) if r.marker is None or r.marker.evaluate()}
        for top in {f.parts[0] for f in package.files or [] if f.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(package.locate_file(top))))
    for top in installed.iterdir():
        (site / top.name).symlink_to(top)
    return site


def base_requirements(installed: Path) -> set[str]:
    """Names that the wheel requires without any extra."""
    (info,) = installed.glob("porting-*.dist-info")
    lines = [
        line.partition(": ")[2] for line in (info / "METADATA").read_text().splitlines() if line.startswith("Requires-Dist: ")
    ]
    return {r.name for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"extra": ""})}


def python(code: str, site: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that sees `site` and the standard library, and no environment."""
    start = f"import sys; sys.path.insert(0, {str(site)!r})\n"
    command = [sys.executable, "-I", "-S", "-c", start + code, *arguments]
    return subprocess.run(command, cwd=cwd or site, capture_output=True, text=True, timeout=120)


def porting(arguments: Sequence[str], site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line out of `site`."""
    return python("from porting.cli import main; main(sys.argv[1:])", site, *arguments, cwd=cwd)


def test_the_wheel_holds_every_file_and_nothing_else_at_its_top(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if not n.endswith("/")}
    assert {n.partition("/")[0] for n in names} == {"porting", f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}
    expected = {
        f"{packed}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, packed in CODE.items()
        for file in ROOT.joinpath(folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {"porting/py.typed", "porting/targets.json", "porting/numerics/limits.json"} <= expected
    assert {n for n in names if n.startswith("porting/")} == expected


def test_the_installed_package_works_without_its_source(base_only: Path) -> None:
    code = """
import porting, porting.registry, porting.backends.null, porting.converters.architectures.llama
from porting.targets import find_target
from porting.numerics.quality import quality_limits
assert find_target("ascend910b3").memory == 64 * 2**30
assert quality_limits("int8", parameters=135_000_000).mean_kl > 0
print(porting.__file__)
"""
    ran = python(code, base_only)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == str(base_only / "porting" / "__init__.py")


def test_version_is_the_same_everywhere(wheel: Path) -> None:
    import porting

    assert wheel.name.split("-")[1] == porting.__version__


@pytest.mark.parametrize("code", ["import porting", "import porting.cli; porting.cli._exit_code(['--help'])"])
def test_importing_and_help_load_nothing_heavy(code: str) -> None:
    ask = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    loaded = json.loads(run.stdout.splitlines()[-1])
    assert "porting" in loaded
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []


def test_base_requirements_are_enough_to_convert(base_only: Path, tmp_path: Path) -> None:
    tiny.make(tmp_path / "model", "LlamaForCausalLM")
    for arguments in (["inspect", "model"], ["plan", "model"], ["convert", "model", "-o", "model.port", "-p", "int8"]):
        ran = porting(arguments, base_only, tmp_path)
        assert ran.returncode == 0, ran.stderr


def test_a_missing_extra_is_named(base_only: Path, tmp_path: Path) -> None:
    made = tiny.make(tmp_path / "model", "LlamaForCausalLM")
    assert made.folder.is_dir()
    assert porting(["convert", "model", "-o", "model.port"], base_only, tmp_path).returncode == 0
    bench = ["bench", "model.port", "--prompt-tokens", "8", "--new-tokens", "8"]
    for arguments, extra in (
        ([*bench, "--device", "cuda"], "porting[cuda]"),
        (["port", "model", "-o", "other.port"], "porting[cpu]"),
        (bench, "porting[cpu]"),
        (["record", "model", "-o", "golden.json"], "porting[torch]"),
    ):
        ran = porting(arguments, base_only, tmp_path)
        assert (ran.returncode, extra in ran.stderr) == (3, True), ran.stderr
    assert not (tmp_path / "other.port").exists()


@pytest.mark.slow
def test_a_missing_gguf_package_is_named(base_only: Path, smollm2_gguf: Path, tmp_path: Path) -> None:
    ran = porting(["convert", str(smollm2_gguf), "-o", "model.port"], base_only, tmp_path)
    assert (ran.returncode, 'pip install "porting[gguf]"' in ran.stderr) == (3, True), ran.stderr
    assert not (tmp_path / "model.port").exists()


def test_every_extra_that_the_code_names_exists() -> None:
    (provided,) = [distribution("porting").metadata.get_all("Provides-Extra")]
    named = {
        piece.partition("]")[0]
        for folder in (*CODE, "examples", "docs", "README.md")
        for file in ([ROOT / folder] if (ROOT / folder).is_file() else ROOT.joinpath(folder).rglob("*"))
        if file.suffix in (".py", ".md", ".yml")
        for piece in file.read_text(encoding="utf-8").split("porting[")[1:]
    }
    extras = {extra for names in named for extra in names.split(",") if "{" not in extra}
    assert extras >= {"cpu", "gguf", "torch"}
    assert extras <= set(provided or [])


@pytest.mark.slow
def test_the_constraints_for_cann_resolve(tmp_path: Path) -> None:
    """pip finds a set of versions for the numpy<2 world; nothing is installed."""
    if sys.version_info[:2] not in ((3, 10), (3, 11)):
        pytest.skip("the CANN wheels are made for Python 3.10 and 3.11")
    report = tmp_path / "report.json"
    options = ["--dry-run", "--ignore-installed", "-qq", "--report", str(report), "-c", str(ROOT / "constraints-cann.txt")]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([sys.executable, "-m", "pip", "install", *options, f"{ROOT}[ascend,gguf]"], check=True, env=environment)
    versions = {i["metadata"]["name"].lower(): i["metadata"]["version"] for i in json.loads(report.read_text())["install"]}
    assert versions["numpy"].startswith("1.")
    assert "onnxruntime" not in versions
