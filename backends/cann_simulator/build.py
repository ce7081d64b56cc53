"""The simulator's shared libraries, compiled at first use into the user's cache: the wheel itself holds only their sources."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from porting.errors import DeviceUnavailable

from . import opapi_stubs

SHIM = Path(__file__).with_name("shim")
FLAGS = ("-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
CORE = "libcannsim.so"
COMPILERS = ("c++", "g++", "clang++")
COMPILE_SECONDS = 300
WHERE = "the simulated CANN"


@dataclass(frozen=True)
class Library:
    """A shared library. sources: patterns of files in shim/, none for one that only lends its name; it links the core, which comes first"""

    soname: str
    sources: tuple[str, ...] = ()


# One real file per soname: a link to another library does not satisfy what was linked against the name.
LIBRARIES = (
    Library("libopapi.so"),
    Library("libascendcl.so"),
    Library("libacl_op_compiler.so"),
    Library("libacl_tdt_channel.so"),
    Library("libfmk_onnx_parser.so"),
    Library("libge_compiler.so"),
    Library("libge_runner.so"),
    Library("libgraph.so"),
    Library("libhccl.so"),
)


def library_folder() -> Path:
    """The folder that holds CORE and LIBRARIES, compiled now unless they are in the cache.

    raises: DeviceUnavailable where there is no compiler, no place to build in, or the sources do not compile
    """
    command = compiler()
    folder = cache_root() / _key(command)
    if folder.is_dir():
        return folder
    return put_in_place(folder, lambda building: _build(command, building))


def put_in_place(folder: Path, make) -> Path:
    """A folder that appears whole or not at all: made beside its place and renamed; who comes second throws his own away."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise DeviceUnavailable(
            f"nowhere to build: {error}", where=WHERE, next="set XDG_CACHE_HOME to a folder you may write in"
        ) from error
    try:
        make(building)
        building.chmod(0o755)
        try:
            building.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    except OSError as error:
        raise DeviceUnavailable(
            f"cannot build: {error}", where=f"{WHERE}, {folder}", next="free disk space, or set XDG_CACHE_HOME"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def cache_root() -> Path:
    """Where what was compiled is kept, per user."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "porting" / "cann_simulator"


def compiler() -> str:
    """The C++ compiler's path. raises: DeviceUnavailable saying what to install"""
    if not sys.platform.startswith("linux"):
        raise DeviceUnavailable(
            f"the simulated CANN runs on Linux, this is {sys.platform}", where=WHERE, next="use --device cpu"
        )
    named = os.environ.get("CXX", "")
    for name in (named,) if named else COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    what = f"CXX names {named!r}, which is not there" if named else f"no C++ compiler ({', '.join(COMPILERS)}) was found"
    raise DeviceUnavailable(
        what, where=WHERE, next="install one (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++), or set CXX"
    )


@cache
def _version(compiler: str) -> str:
    return _run([compiler, "--version"])


def _key(compiler: str) -> str:
    digest = hashlib.sha256(repr((compiler, _version(compiler), FLAGS, LIBRARIES)).encode())
    for path in sorted(SHIM.iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update("".join(_generated().values()).encode())
    return digest.hexdigest()[:24]


def _generated() -> dict[str, str]:
    """Sources that are no files: name -> text."""
    return {opapi_stubs.FILE: opapi_stubs.source()} if (SHIM / "opapi.h").is_file() else {}


def _build(compiler: str, folder: Path) -> None:
    of_libraries = {
        library: sorted({path for pattern in library.sources for path in SHIM.glob(pattern)}) for library in LIBRARIES
    }
    taken = {path for paths in of_libraries.values() for path in paths}
    core = sorted(path for path in SHIM.glob("*.cpp") if path not in taken)
    for name, text in _generated().items():
        (folder / name).write_text(text, encoding="utf-8")
        core.append(folder / name)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        objects = dict(
            zip([*core, *taken], pool.map(lambda path: _compile(compiler, path, folder), [*core, *taken]), strict=True)
        )
        _link(compiler, folder, CORE, (objects[path] for path in core), ("-ldl", "-lpthread"))
        linked = pool.map(
            lambda entry: _link(compiler, folder, entry[0].soname, (objects[p] for p in entry[1]), BESIDE_CORE),
            of_libraries.items(),
        )
        list(linked)
    for path in (*objects.values(), *(folder / name for name in _generated())):
        path.unlink()


BESIDE_CORE = ("-Wl,--no-as-needed", "-L.", "-lcannsim", "-Wl,-rpath,$ORIGIN", "-ldl", "-lpthread")


def _compile(compiler: str, source: Path, folder: Path) -> Path:
    target = folder / f"{source.stem}.o"
    _run([compiler, *FLAGS, f"-I{SHIM}", "-c", str(source), "-o", str(target)])
    return target


def _link(compiler: str, folder: Path, soname: str, objects: Iterable[Path], options: tuple[str, ...]) -> None:
    _run([compiler, "-shared", f"-Wl,-soname,{soname}", "-o", soname, *map(str, objects), *options], folder)


def _run(command: list[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMPILE_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceUnavailable(
            f"the C++ compiler does not run: {error}", where=WHERE, next="install a C++ compiler, or set CXX"
        ) from error
    if done.returncode:
        last = " / ".join(done.stderr.strip().splitlines()[-5:])
        raise DeviceUnavailable(
            f"the C++ compiler refused {Path(command[-1]).name if command else ''}: {last}",
            where=f"{WHERE}, {command[0]}",
            next="install a C++ compiler that knows C++17 and its standard library, or set CXX",
        )
    return done.stdout
