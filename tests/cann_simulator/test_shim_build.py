"""The simulator's build: once per user and content, whole or not at all, and what a machine without a compiler is told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from porting.backends.cann_simulator import build
from porting.backends.cann_simulator.environment import simulated_environment
from porting.backends.cann_simulator.machine import Machine
from porting.errors import DeviceUnavailable
from tests.cann_simulator.acl_client import ROOT, run_client

TINY = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A shim of one line, in a cache of its own: quick to compile."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shim = tmp_path / "shim"
    shim.mkdir()
    (shim / "answer.cpp").write_text(TINY)
    monkeypatch.setattr(build, "SHIM", shim)
    monkeypatch.setattr(build, "LIBRARIES", (build.Library("libextra.so", ("extra*.cpp",)), build.Library("libascendcl.so")))
    return shim


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_is_built_once_and_again_when_a_source_changes(tiny, monkeypatch):
    first = build.library_folder()
    assert _files(first) == {"libcannsim.so", "libascendcl.so", "libextra.so"}
    with monkeypatch.context() as quiet:
        quiet.setattr(build, "_build", lambda *_: pytest.fail("built again"))
        assert build.library_folder() == first
    (tiny / "extra_one.cpp").write_text(TINY.replace("answer", "extra"))
    second = build.library_folder()
    assert second != first and first.is_dir()
    names = [
        subprocess.run(["nm", "-D", "--defined-only", second / f"lib{n}.so"], capture_output=True, text=True).stdout
        for n in ("cannsim", "extra")
    ]
    assert [("T answer" in said, "T extra" in said) for said in names] == [(True, False), (False, True)]


def test_every_soname_is_a_file_of_its_own_that_needs_the_core(tiny):
    folder = build.library_folder()
    for name in ("libascendcl.so", "libextra.so"):
        assert not (folder / name).is_symlink()
        said = subprocess.run(["readelf", "-d", folder / name], capture_output=True, text=True, check=True).stdout
        assert f"soname: [{name}]" in said and "[libcannsim.so]" in said and "$ORIGIN" in said


def test_two_processes_may_build_at_once(tiny, tmp_path):
    code = (
        "import sys; from pathlib import Path; from porting.backends.cann_simulator import build\n"
        f"build.SHIM = Path({str(tiny)!r}); build.LIBRARIES = (build.Library('libascendcl.so'),)\n"
        "print(build.library_folder())"
    )

    def run(_: int) -> str:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with ThreadPoolExecutor(4) as pool:
        (folder,) = set(pool.map(run, range(4)))
    assert _files(Path(folder.strip())) == {"libcannsim.so", "libascendcl.so"}
    assert [path.name for path in Path(folder.strip()).parent.iterdir()] == [Path(folder.strip()).name]


def test_a_build_that_fails_leaves_nothing_and_says_what_the_compiler_said(tiny):
    (tiny / "wrong.cpp").write_text("int main( {")
    with pytest.raises(DeviceUnavailable, match="expected") as error:
        build.library_folder()
    assert "CXX" in error.value.next
    assert not list(build.cache_root().iterdir())


def test_without_a_compiler_it_says_what_to_install(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(DeviceUnavailable, match="no C\\+\\+ compiler") as error:
        build.library_folder()
    assert "apt-get install g++" in error.value.next
    monkeypatch.setenv("CXX", "nonesuch++")
    with pytest.raises(DeviceUnavailable, match="CXX names 'nonesuch\\+\\+'"):
        build.library_folder()


def test_a_cache_that_cannot_be_written_is_named(tiny, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(DeviceUnavailable, match="nowhere to build") as error:
        build.library_folder()
    assert "XDG_CACHE_HOME" in error.value.next


def test_the_sources_compile_without_a_warning_and_depend_on_no_interpreter():
    folder = build.library_folder()
    needed = subprocess.run(["readelf", "-d", folder / "libcannsim.so"], capture_output=True, text=True, check=True).stdout
    assert not [name for name in re.findall(r"\[(lib[^]]+)\]", needed) if "python" in name]


def test_the_environment_looks_like_an_installed_toolkit_and_keeps_the_rest():
    environment = simulated_environment(Machine(cann="8.5.0"))
    home = Path(environment["ASCEND_HOME_PATH"])
    assert "8.5.0" in (home / "version.cfg").read_text()
    assert {"lib64", "bin", "compiler", "runtime", "opp"} <= _files(home)
    assert shutil.which("atc", path=environment["PATH"]) == str(home / "bin" / "atc")
    assert environment["PATH"].endswith(os.environ["PATH"])
    assert (home / "lib64" / "libascendcl.so").is_file() and Path(environment["ASCEND_OPP_PATH"]).is_dir()
    assert home != Path(simulated_environment(Machine())["ASCEND_HOME_PATH"])
    assert Machine.from_json(environment["PORTING_CANN_SIMULATOR"]).cann == "8.5.0"


def test_a_client_is_told_the_machine():
    code = """
count, a, b, c = C.c_uint32(), C.c_int32(), C.c_int32(), C.c_int32()
acl.ok("aclInit", None)
acl.ok("aclrtGetDeviceCount", C.byref(count))
version = C.create_string_buffer(1024)
acl.ok("aclsysGetCANNVersion", 0, version)
acl.ok("aclGetCannAttribute", 0, C.byref(a)); acl.ok("aclGetCannAttribute", 2, C.byref(b))
acl.ok("aclrtSetDevice", 0)
modes = [acl.aclrtSetDeviceSatMode(mode) for mode in (0, 1)]
show([acl.text("aclrtGetSocName"), count.value, version.value.decode(), a.value, b.value, modes])
"""
    saturating = simulated_environment(Machine("Ascend310P3", "8.3.RC1", devices=3))
    assert run_client(code, saturating) == ["Ascend310P3", 3, "8.3.RC1", 0, 0, [0, 207000]]
    assert run_client(code, simulated_environment(Machine())) == ["Ascend910B3", 1, "9.2.0", 1, 0, [207000, 0]]


@pytest.mark.slow
def test_an_installed_wheel_holds_the_sources_and_builds_from_them(tmp_path):
    """From outside the root: there the folder `porting` would shadow what is installed."""
    source = tmp_path / "source"  # a copy: setuptools leaves `build/` where it works
    for folder in ("porting", "backends", "converters"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-qq",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "installed", "zip")
    code = "from porting.backends.cann_simulator import build; print(build.__file__, build.library_folder())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    file, folder = done.stdout.split()
    assert file.startswith(str(tmp_path / "installed")) and Path(folder) == build.library_folder()
