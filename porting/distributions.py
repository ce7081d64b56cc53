"""Installed distributions as their metadata tells it: nothing is imported, so nothing can crash."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distributions, version

# all onnxruntime flavours have names that start so; reading every distribution's file list would take a second
_RUNTIME_NAMES = ("onnxruntime", "ort-")


def runtime_owners() -> list[str]:
    """Distributions that put files into the folder `onnxruntime/`, "name version" each, sorted.

    The flavours for CPU, CUDA and CANN share that folder: each overwrites the one before, without a word from pip.
    """
    found = set()
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith(_RUNTIME_NAMES):
            files = distribution.files or []
            if any(file.parts[:2] == ("onnxruntime", "__init__.py") for file in files):
                found.add(f"{name} {distribution.version}")
    return sorted(found)


def installed_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Name -> version, None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
