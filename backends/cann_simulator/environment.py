"""The environment of a process that finds the simulated CANN where it looks for the vendor's."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import sys
from pathlib import Path

from .build import cache_root, library_folder, put_in_place
from .machine import Machine

MACHINE = "PORTING_CANN_SIMULATOR"  # the variable that holds the machine as JSON

# The stand-in of atc: the interpreter and the modules of whoever made the toolkit.
_ATC = "import sys; sys.path[:] = {path!r}; from porting.backends.cann_simulator.atc import main; sys.exit(main(sys.argv[1:]))"


def simulated_environment(machine: Machine) -> dict[str, str]:
    """Variables for a child process, which take the place of its own: the rest of the environment stays.

    raises: DeviceUnavailable where the libraries cannot be built
    """
    home = toolkit(machine)
    return {
        "ASCEND_HOME_PATH": str(home),
        "ASCEND_TOOLKIT_HOME": str(home),
        "ASCEND_OPP_PATH": str(home / "opp"),
        "LD_LIBRARY_PATH": _first(home / "lib64", "LD_LIBRARY_PATH"),
        "PATH": _first(home / "bin", "PATH"),
        MACHINE: machine.to_json(),
    }


def toolkit(machine: Machine) -> Path:
    """A folder that looks like an installed toolkit of the machine's release, in the user's cache. raises: DeviceUnavailable"""
    libraries = library_folder()
    path = [str(Path(entry).absolute()) for entry in sys.path]
    digest = hashlib.sha256(repr((libraries.name, machine.cann, sys.executable, path, _ATC)).encode())
    folder = cache_root() / "toolkits" / digest.hexdigest()[:24]
    if folder.is_dir() and (folder / "lib64" / "libascendcl.so").is_file():
        return folder
    return put_in_place(folder, lambda building: _furnish(building, machine, libraries, path))


def _furnish(folder: Path, machine: Machine, libraries: Path, path: list[str]) -> None:
    """The places where the wheels and the backend look; what the vendor's files hold besides is left out."""
    info = f"{platform.machine()}-linux"
    for name in ("bin", "compiler", "runtime", "opp", "tools", info):
        (folder / name).mkdir()
    for name in ("lib64", "runtime/lib64", "compiler/lib64"):
        (folder / name).symlink_to(libraries, target_is_directory=True)
    (folder / "version.cfg").write_text(
        f"# version: 1.0\ntoolkit_running_version=[{machine.cann}:{machine.cann}]\n", encoding="utf-8"
    )
    for place in (info, "runtime", "compiler", "opp"):
        (folder / place / "version.info").write_text(f"Version={machine.cann}\n", encoding="utf-8")
    (folder / info / "ascend_toolkit_install.info").write_text(
        f"package_name=Ascend-cann-toolkit\nversion={machine.cann}\n", encoding="utf-8"
    )
    atc = folder / "bin" / "atc"
    atc.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(_ATC.format(path=path))} "$@"\n', encoding="utf-8"
    )
    atc.chmod(0o755)


def _first(folder: Path, variable: str) -> str:
    before = os.environ.get(variable, "")
    return f"{folder}{os.pathsep}{before}" if before else str(folder)
