"""What route `cann` needs on the machine: one flavour of onnxruntime, numpy 1, and a whole toolkit that the loader finds.

Told by metadata and by files: nothing of the vendor's is loaded by looking.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from porting.backends.ascend.acl import load_acl
from porting.backends.ascend.acl_codes import AclError, error_of
from porting.backends.onnxruntime import availability
from porting.devices import require_index
from porting.distributions import installed_versions, runtime_owners
from porting.errors import DeviceUnavailable
from porting.types import Availability

EXTRA = "ascend"
PROVIDER = "CANNExecutionProvider"
WHEEL = "onnxruntime-cann"
INSTALL = 'pip install -c constraints-cann.txt "porting[ascend]"'
SOURCE = "source <toolkit>/set_env.sh in this shell"
# what the provider's library links; readelf -d of onnxruntime-cann 1.24.4
LIBRARIES = ("libascendcl.so", "libacl_op_compiler.so", "libfmk_onnx_parser.so")
# files in which a toolkit says what it is, newer and older layouts
VERSION_FILES = ("version.cfg", "version.info", "compiler/version.info", "*/ascend_toolkit_install.info")


def installation() -> Availability:
    """Whether the route can start here. Never raises."""
    detail: dict[str, str] = {}
    try:
        detail.update(_require_wheel())
        detail.update(_require_toolkit())
    except DeviceUnavailable as error:
        return Availability(False, error.what, error.next, detail)
    except OSError as error:
        return Availability(False, f"the toolkit cannot be read: {error}", SOURCE, detail)
    found = availability(EXTRA, PROVIDER)
    return Availability(found.usable, found.reason, found.next, {**detail, **found.detail})


def _require_wheel() -> dict[str, str]:
    """The wheel, alone, beside a numpy that it was built for. raises: DeviceUnavailable"""
    owners = runtime_owners()
    names = [owner.split()[0] for owner in owners]
    if WHEEL not in names:
        also = f"; {owners[0]} is, which has no {PROVIDER}" if owners else ""
        remove = f"pip uninstall -y {' '.join(names)}, then " if names else ""
        raise DeviceUnavailable(f"{WHEEL} is not installed{also}", next=remove + INSTALL)
    if len(owners) > 1:
        raise DeviceUnavailable(
            f"{' and '.join(owners)} are in one environment: they overwrite each other's files",
            next=f"pip uninstall -y {' '.join(names)}, then {INSTALL}",
        )
    numpy = installed_versions(["numpy"])["numpy"] or "0"
    if int(numpy.partition(".")[0]) >= 2:
        raise DeviceUnavailable(
            f"{WHEEL} needs numpy 1, and numpy {numpy} is installed", next=f'pip install "numpy<2", or {INSTALL}'
        )
    return {"wheel": owners[0], "numpy": numpy}


def _require_toolkit() -> dict[str, str]:
    """raises: DeviceUnavailable"""
    home = os.environ.get("ASCEND_HOME_PATH", "")
    if not home:
        raise DeviceUnavailable("ASCEND_HOME_PATH is not set: no CANN toolkit is in use", next=SOURCE)
    root = Path(home)
    if not root.is_dir():
        raise DeviceUnavailable(f"ASCEND_HOME_PATH={home} is no folder", next=SOURCE)
    lost = [name for name in LIBRARIES if not any((folder / name).is_file() for folder in _library_folders(root))]
    if lost:
        raise DeviceUnavailable(
            f"the toolkit in {home} is not whole: {', '.join(lost)} missing",
            next="install the toolkit that fits the driver, whole (runtime, compiler and opp), and " + SOURCE,
        )
    searched = [Path(part) for part in os.environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    unseen = [name for name in LIBRARIES if not any((folder / name).is_file() for folder in searched)]
    if unseen:
        raise DeviceUnavailable(
            f"the loader would not find {', '.join(unseen)}: LD_LIBRARY_PATH does not lead there", next=SOURCE
        )
    return {"toolkit": home}


def _library_folders(root: Path) -> list[Path]:
    return [root / "lib64", root / "runtime/lib64", root / "compiler/lib64"]


def toolkit_identity() -> Mapping[str, str]:
    """What tells one toolkit from another: its version files, and the library that the provider talks to."""
    root = Path(os.environ["ASCEND_HOME_PATH"])
    digest = hashlib.sha256()
    for path in _version_files(root):
        digest.update(path.read_bytes())
    for folder in _library_folders(root):
        for name in LIBRARIES:
            if (folder / name).is_file():
                real = (folder / name).resolve()
                digest.update(f"{real} {real.stat().st_size} {real.stat().st_mtime_ns}\n".encode())
    return {"toolkit": digest.hexdigest()}


def _version_files(root: Path) -> Iterator[Path]:
    for pattern in VERSION_FILES:
        yield from sorted(path for path in root.glob(pattern) if path.is_file())


def device_index(options: Mapping[str, str]) -> int:
    """raises: DeviceUnavailable for a device that is not there"""
    try:
        return require_index("ascend", options, load_acl().device_count())
    except AclError as error:
        raise error_of(error, "ascend, route=cann") from error


def soc_name() -> str:
    """What the device calls itself. raises: DeviceUnavailable"""
    try:
        name = load_acl().soc_name()
    except AclError as error:
        raise error_of(error, "ascend, route=cann") from error
    if not name:
        raise DeviceUnavailable(
            "the device does not say which SoC it is", where="aclrtGetSocName", next="`npu-smi info` shows it"
        )
    return name
