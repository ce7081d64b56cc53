"""Temporary folders: gone with their process however that ends, and never taken from one that lives."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_encoders import make_encoder

from porting import scratch
from porting.converters.checkpoints.folder import FolderCheckpoint
from porting.fidelity import canonical_session
from porting.scratch import PREFIX, ScratchFolder, remove_abandoned

OWNER = """
import sys, pathlib
from porting.scratch import ScratchFolder
folder = ScratchFolder()
inner = pathlib.Path(folder.name, "inner")
inner.mkdir()
inner.joinpath("weights.bin").write_bytes(b"x" * 1000)
print(folder.name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def _owner(place: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert folder.parent == place
    return process, folder


def test_a_killed_owner_s_folder_goes_and_a_living_one_s_stays(place: Path) -> None:
    (dead, of_dead), (living, of_living) = _owner(place), _owner(place)
    try:
        dead.kill()
        dead.wait()
        assert (of_dead / "inner" / "weights.bin").exists()
        with ScratchFolder() as name:
            assert sorted(place.iterdir()) == sorted([of_living, Path(name)])
            assert (of_living / "inner" / "weights.bin").exists()
    finally:
        living.communicate("")
    assert list(place.iterdir()) == []  # ended by itself: gone without anybody's help


def test_a_stopped_owner_lives(place: Path) -> None:
    process, folder = _owner(place)
    try:
        process.send_signal(signal.SIGSTOP)
        remove_abandoned()
        assert folder.exists()
    finally:
        process.kill()
        process.wait()


def test_nothing_else_is_removed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = place / "mine"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    (place / f"{PREFIX}abcdefgh").symlink_to(elsewhere)
    (place / f"{PREFIX}12345678").write_text("a file")
    for name in (f"{PREFIX}longer_than_8", "porting-abcdefgh", f"x{PREFIX}abcdefgh"):
        (place / name).mkdir(0o700)
    (place / f"{PREFIX}readable").mkdir(0o755)
    kept = sorted(place.rglob("*"))
    remove_abandoned()
    assert sorted(place.rglob("*")) == kept
    (place / f"{PREFIX}of_other").mkdir(0o700)
    real = os.geteuid()
    with monkeypatch.context() as patched:
        patched.setattr(scratch.os, "geteuid", lambda: real + 1)
        remove_abandoned()
        assert (place / f"{PREFIX}of_other").exists()
    remove_abandoned()
    assert not (place / f"{PREFIX}of_other").exists()


def test_a_folder_lost_before_it_was_locked_is_made_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only moment at which another process may take it for abandoned."""
    locked, lost = ScratchFolder._locked, []

    def late(self: ScratchFolder) -> bool:
        if not lost:
            remove_abandoned()
            lost.append(self.name)
        return locked(self)

    monkeypatch.setattr(ScratchFolder, "_locked", late)
    with ScratchFolder() as name:
        assert Path(name).is_dir() and name not in lost and not Path(lost[0]).exists()


def test_many_at_once_keep_their_own(place: Path) -> None:
    missing: list[Any] = []

    def work() -> None:
        for _ in range(40):
            with ScratchFolder() as name:
                Path(name, "x").write_text("x")
                remove_abandoned()
                if not Path(name, "x").exists():
                    missing.append(name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not missing and list(place.iterdir()) == []


def test_where_nothing_can_be_locked_nothing_is_swept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    with monkeypatch.context() as patched:
        patched.setattr(scratch.fcntl, "flock", refuses)
        folder = ScratchFolder()
    remove_abandoned()
    assert Path(folder.name).is_dir()
    folder.cleanup()
    assert list(place.iterdir()) == []


def test_a_killed_validation_leaves_nothing_for_the_next(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tmp_path_factory.mktemp("source")
    make_encoder(source, "BertModel")
    script = (
        "import os, signal, sys\n"
        "from porting.converters.checkpoints.folder import FolderCheckpoint\n"
        "from porting.fidelity import canonical_session\n"
        "with canonical_session(FolderCheckpoint(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(source)], check=False).returncode == -signal.SIGKILL
    (left,) = place.glob(f"{PREFIX}*")
    with canonical_session(FolderCheckpoint(source)):
        assert not left.exists() and len(list(place.glob(f"{PREFIX}*"))) == 1
    assert not list(place.glob("porting-*"))
