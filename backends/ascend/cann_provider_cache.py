"""Where the CANN provider keeps what it compiles: a folder per graph, weights, options, SoC and toolkit, and never one that others write to.

The provider reads and writes `<graph name>_<hash of names>_<hash of shapes>.om` in the current folder, whatever computed it: an Add and a Mul with
inputs of the same names take each other's. So the process's current folder becomes a scratch folder of its own:

    cache/cann_provider/<key>/<name>.<sha256>.om   what earlier processes compiled; whole, or its hash differs and it is not taken
      │ copied in before the first run             ▲ moved in after a run that came through, under another name first
      ▼                                            │
    scratch folder, the current folder, which goes with the process
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from porting.scratch import ScratchFolder

SUFFIX = ".om"
_BLOCK = 1 << 20


def cache_root() -> Path:
    """Of this user: $XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else Path.home() / ".cache") / "porting" / "cann_provider"


class CompiledModels:
    """The compiled models of one graph, and the current folder for as long as it is open.

    folder: in the user's cache
    """

    def __init__(self, model: bytes, identity: Mapping[str, str]) -> None:
        """
        model:    the graph with its weights
        identity: what else a compiled model depends on
        """
        key = hashlib.sha256(json.dumps(sorted(identity.items())).encode())
        key.update(hashlib.sha256(model).digest())
        self.folder = cache_root() / key.hexdigest()
        self._scratch: ScratchFolder | None = None
        self._before = ""
        self._known: set[str] = set()

    def __enter__(self) -> CompiledModels:
        self._before = os.getcwd()
        self._scratch = ScratchFolder()
        self._take()
        # modules are looked for in the folder that was the current one, not in one where a stranger's library writes
        sys.path[:] = [os.path.join(self._before, part) if not os.path.isabs(part) else part for part in sys.path]
        os.chdir(self._scratch.name)
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the folder. Safe to call twice."""
        if self._scratch is not None:
            os.chdir(self._before if os.path.isdir(self._before) else "/")
            self._scratch.cleanup()
            self._scratch = None

    def keep(self) -> None:
        """Put what the provider has written since into the cache. Called after a run that came through: what failed to load is not kept."""
        assert self._scratch is not None
        for path in sorted(Path(self._scratch.name).glob(f"*{SUFFIX}")):
            if path.name not in self._known:
                self._known.add(path.name)
                with contextlib.suppress(
                    OSError
                ):  # a full or read-only cache costs the next process the compilation, and nothing else
                    self._publish(path)

    def _take(self) -> None:
        assert self._scratch is not None
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            name, _, digest = path.name.removesuffix(SUFFIX).rpartition(".")
            target = Path(self._scratch.name, name + SUFFIX)
            try:
                shutil.copyfile(path, target)
                whole = bool(name) and sha256_of(target) == digest
                if not whole:
                    path.unlink()
            except OSError:  # another process cleans up, or no room: it is compiled again
                whole = False
            if whole:
                self._known.add(target.name)
            else:
                target.unlink(missing_ok=True)

    def _publish(self, path: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        target = self.folder / f"{path.name.removesuffix(SUFFIX)}.{sha256_of(path)}{SUFFIX}"
        fd, name = tempfile.mkstemp(dir=self.folder, prefix="writing-")
        try:
            with open(fd, "wb") as copy, open(path, "rb") as source:
                shutil.copyfileobj(source, copy, _BLOCK)
            os.replace(name, target)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
