"""kill -9 and Ctrl-C at any moment: nothing half-written loads, and a resumed run ends with identical bytes."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from porting import port_staging, port_writer, weights
from porting.errors import CheckpointError, PortError, UsageError
from porting.port_folder import open_port
from porting.port_sources import WatchedFiles
from tests import small_ports
from tests.small_ports import convert_folder, random_tensors, start_child, tree, write_folder

ROOT = str(Path(small_ports.__file__).resolve().parents[1])
# every call by which the writer changes the disk; the child is killed before the n-th of them
STEPS = ("mkdir", "link", "open", "ftruncate", "pwrite", "fdatasync", "fsync", "rename", "unlink", "rmdir", "utime")


@pytest.fixture(autouse=True)
def _small_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "STRIPE_BYTES", 16384)
    monkeypatch.setattr(port_writer, "JOURNAL_EVERY", 49152)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """300 kB, of which a part is linked and a part quantised."""
    return write_folder(tmp_path / "source", random_tensors({"a": (300, 96), "b": (500,), "c": (400, 96), "d": ()}))


def require_nothing_half(port: Path, running: bool = False) -> bool:
    """Neither the port nor what is being made of it loads, or it is whole. Returns whether the port is there.

    running: the child lives, and may rename its partial port between two looks at it
    """
    there = False
    hidden = [] if running else [port.with_name(f".{port.name}.partial"), port.with_name(f".{port.name}.replaced")]
    for path in (port, *hidden):
        try:
            opened = open_port(path)
        except PortError:
            continue
        opened.verify()
        there = there or path == port
    return there


def kill_before(step: int) -> None:
    """Make this process die without a word before its `step`-th call that changes the disk."""
    counter = itertools.count()
    for name in STEPS:

        def dying(*args, _real=getattr(os, name), **kwargs):
            if next(counter) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return _real(*args, **kwargs)

        setattr(os, name, dying)


def killed_at(step: int, convert: Callable[[], object]) -> bool:
    """Run `convert` in a child that dies before its `step`-th call. False when it needs fewer."""

    def run() -> None:
        kill_before(step)
        convert()

    _, status = os.waitpid(start_child(run), 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.mark.parametrize(
    ("options", "stride"),
    [
        ({"quantize": True}, 5),
        pytest.param({"quantize": True}, 1, marks=pytest.mark.slow),
        pytest.param({"weights": "copy"}, 1, marks=pytest.mark.slow),
    ],
)
def test_killed_at_every_step(tmp_path: Path, source: Path, options: dict, stride: int) -> None:
    """Every step in the slow suite, every fifth in the quick one."""
    port = tmp_path / "port"
    convert_folder(source, tmp_path / "whole", **options)
    whole = tree(tmp_path / "whole")
    for step in itertools.count(0, stride):
        killed = killed_at(step, lambda: convert_folder(source, port, **options))
        there = require_nothing_half(port)
        assert killed or there
        if not there:
            convert_folder(source, port, resume=True, **options)
        assert tree(port) == whole
        shutil.rmtree(port)
        shutil.rmtree(tmp_path / ".port.partial", ignore_errors=True)
        if not killed:
            break
    assert step > 30  # it went through all of them


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two-steps"])
def test_a_killed_force_run_never_loses_the_old_port(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(port_staging, "_exchange", lambda one, other: False)
    port, new_source = tmp_path / "port", write_folder(tmp_path / "new", random_tensors({"a": (4, 96)}, seed=9))
    convert_folder(source, port)
    convert_folder(new_source, tmp_path / "new-whole")
    old, new = tree(port), tree(tmp_path / "new-whole")
    outcomes = []
    for step in itertools.count():
        killed = killed_at(step, lambda: convert_folder(new_source, port, force=True))
        if require_nothing_half(port):
            outcomes.append("old" if tree(port) == old else "new")
            assert tree(port) in (old, new)
        else:  # between the two renames: whole, under its other name, until the next run brings it back
            outcomes.append("aside")
            assert tree(tmp_path / ".port.replaced") == old
            with pytest.raises(UsageError, match="already exists"):
                convert_folder(new_source, port, resume=True)
            assert tree(port) == old
        if not killed:
            break
        if outcomes[-1] == "new":
            convert_folder(source, port, force=True)
            assert tree(port) == old
            assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert outcomes.count("old") > 15
    assert outcomes.count("new") > 3
    assert outcomes.count("aside") == (0 if exchange else 1)


def kill_at_random(tmp_path: Path, source: Path, kills: int, seed: int, **options: object) -> int:
    """Kill a conversion at random moments and resume it, until it is through; all the while its port is opened.

    returns: how many children died before they were through
    """
    port = tmp_path / "port"
    start = time.perf_counter()
    convert_folder(source, tmp_path / "whole", **options)
    seconds = time.perf_counter() - start
    whole, rng, died = tree(tmp_path / "whole"), random.Random(seed), 0
    for _ in range(kills):
        child = start_child(lambda: convert_folder(source, port, resume=True, **options))
        deadline = time.perf_counter() + rng.uniform(0.05, 1.0) * seconds
        ended, status = 0, 0
        while not ended and time.perf_counter() < deadline:
            require_nothing_half(port, running=True)
            ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        died += os.WIFSIGNALED(status)
        if require_nothing_half(port):
            assert tree(port) == whole
            shutil.rmtree(port)
    if not port.exists():
        convert_folder(source, port, resume=True, **options)
    assert tree(port) == whole
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []
    return died


def test_killed_at_random_moments(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", random_tensors({f"w{i}": (1000, 192) for i in range(4)}))
    assert kill_at_random(tmp_path, source, kills=6, seed=1, quantize=True) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "options"), [(2, {"weights": "copy"}), (3, {"quantize": True})], ids=["copied", "quantised"])
def test_killed_at_random_moments_at_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, options: dict) -> None:
    """200 MB, with the stripes of an installed porting and a journal every 8 MB."""
    monkeypatch.undo()
    monkeypatch.setattr(port_writer, "JOURNAL_EVERY", 8 << 20)
    source = write_folder(tmp_path / "source", random_tensors({f"w{i}": (6500, 1024) for i in range(8)}))
    assert kill_at_random(tmp_path, source, kills=25, seed=seed, **options) > 3


def killed_late(tmp_path: Path, source: Path, **options: object) -> Path:
    """A partial port whose journal has a point to go on from, at .port.partial."""
    partial = tmp_path / ".port.partial"
    for step in itertools.count(30, 3):
        assert killed_at(step, lambda: convert_folder(source, tmp_path / "port", **options))
        if (partial / "journal.json").exists() and json.loads((partial / "journal.json").read_bytes())["stream"] >= 1:
            return partial
        shutil.rmtree(partial)
    raise AssertionError


def test_a_resumed_run_does_not_repeat_what_is_on_the_disk(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = killed_late(tmp_path, source, weights="copy")
    written: list[int] = []
    pwrite = os.pwrite
    point = json.loads((partial / "journal.json").read_bytes())
    monkeypatch.setattr(os, "pwrite", lambda fd, view, offset: written.append(offset) or pwrite(fd, view, offset))
    convert_folder(source, tmp_path / "port", weights="copy", resume=True)
    assert (point["stream"], point["row"]) > (0, 0)
    assert min(written) >= 300 * 96 * 4  # all of "a" was there


def test_what_the_journal_says_is_on_the_disk_is_enough(tmp_path: Path) -> None:
    """A power cut may lose all that came after the journal's point: here it is overwritten."""
    sizes = {"a": (300, 96), "b": (512, 1), "c": (400, 96)}  # all of whole cache lines: no gaps between them
    source = write_folder(tmp_path / "source", random_tensors(sizes))
    convert_folder(source, tmp_path / "whole", weights="copy")
    whole, points = tree(tmp_path / "whole"), set()
    starts = [0, 300 * 96 * 4, 300 * 96 * 4 + 512 * 4]
    for step in itertools.count(10, 2):
        if not killed_at(step, lambda: convert_folder(source, tmp_path / "port", weights="copy")):
            break
        partial = tmp_path / ".port.partial"
        journal = json.loads((partial / "journal.json").read_bytes()) if (partial / "journal.json").exists() else {"stream": 99}
        point = journal["stream"], journal.get("row")
        if point[0] < len(starts) and point not in points:
            points.add(point)
            done = starts[point[0]] + point[1] * [*sizes.values()][point[0]][1] * 4
            file = partial / "weights/weights.bin"
            file.write_bytes(file.read_bytes()[:done] + b"\xff" * (file.stat().st_size - done))
            convert_folder(source, tmp_path / "port", weights="copy", resume=True)
            assert tree(tmp_path / "port") == whole, point
            shutil.rmtree(tmp_path / "port")
        else:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(tmp_path / "port", ignore_errors=True)
    assert len(points) > 3


def test_resume_without_a_partial_port_starts(tmp_path: Path, source: Path) -> None:
    convert_folder(source, tmp_path / "whole")
    convert_folder(source, tmp_path / "port", resume=True)
    assert tree(tmp_path / "port") == tree(tmp_path / "whole")


def test_resume_of_another_conversion_is_refused_and_destroys_nothing(tmp_path: Path, source: Path) -> None:
    partial = killed_late(tmp_path, source, weights="copy")
    before = tree(partial)
    # same names, shapes, sizes and times, as two models out of two archives have them
    other = write_folder(tmp_path / "other", random_tensors({"a": (300, 96), "b": (500,), "c": (400, 96), "d": ()}, seed=8))
    for file in source.iterdir():
        found = file.stat()
        os.utime(other / file.name, ns=(found.st_atime_ns, found.st_mtime_ns))
    for folder, options in ((other, {"weights": "copy"}), (source, {"weights": "link"}), (source, {"quantize": True})):
        with pytest.raises(UsageError, match="made from other files, with other options"):
            convert_folder(folder, tmp_path / "port", resume=True, **options)
    kept = ("journal.json", "weights/weights.bin")
    assert {name: tree(partial)[name] for name in kept} == {name: before[name] for name in kept}
    convert_folder(source, tmp_path / "port", weights="copy", resume=True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"fingerprint": 1}',
        b"[" * 100_000,
        "stream -1",
        "row 10**9",
        "stream 10**9",
        "row null",
    ],
    ids=lambda content: str(content[:20]),
)
def test_a_damaged_journal_starts_again(tmp_path: Path, source: Path, content: bytes | str) -> None:
    partial = killed_late(tmp_path, source, weights="copy")
    convert_folder(source, tmp_path / "whole", weights="copy")
    if isinstance(content, str):
        key, value = content.split()
        journal = json.loads((partial / "journal.json").read_bytes())
        content = json.dumps({**journal, key: {"-1": -1, "10**9": 10**9, "null": None}[value]}).encode()
    (partial / "journal.json").write_bytes(content)
    (partial / "weights/weights.bin").write_bytes(b"\1" * (partial / "weights/weights.bin").stat().st_size)
    convert_folder(source, tmp_path / "port", weights="copy", resume=True)
    assert tree(tmp_path / "port") == tree(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "grown", "gone", "link", "hard link", "folder"])
def test_weights_that_are_not_what_the_journal_says_are_written_again(tmp_path: Path, source: Path, damage: str) -> None:
    partial = killed_late(tmp_path, source, weights="copy")
    convert_folder(source, tmp_path / "whole", weights="copy")
    file, precious = partial / "weights/weights.bin", tmp_path / "precious"
    precious.write_bytes(b"\1" * file.stat().st_size)
    if damage == "cut":
        os.truncate(file, 1000)
    elif damage == "grown":
        os.truncate(file, file.stat().st_size + 1)
    else:
        file.unlink()
    if damage == "link":
        file.symlink_to(precious)
    elif damage == "hard link":
        os.link(precious, file)
    elif damage == "folder":
        file.mkdir()
    convert_folder(source, tmp_path / "port", weights="copy", resume=True)
    assert tree(tmp_path / "port") == tree(tmp_path / "whole")
    assert set(precious.read_bytes()) == {1}


def test_a_killed_run_that_is_not_resumed_is_cleaned_up(tmp_path: Path, source: Path) -> None:
    killed_late(tmp_path, source, weights="copy")
    convert_folder(source, tmp_path / "whole", quantize=True)
    convert_folder(source, tmp_path / "port", quantize=True)
    assert tree(tmp_path / "port") == tree(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["port", "source", "whole"]


def test_damage_found_late_leaves_no_partial_port(tmp_path: Path, source: Path) -> None:
    tensors = random_tensors({"a": (300, 96), "z": (300, 96)})
    tensors["z"][-1, -1] = np.nan
    with pytest.raises(CheckpointError, match=r"tensor 'z' holds nan at \[299, 95\]"):
        convert_folder(write_folder(tmp_path / "bad", tensors), tmp_path / "port", weights="copy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "source"]


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------

CONVERT = """
import sys, time
sys.path.insert(0, {root!r})
from contextlib import contextmanager
from pathlib import Path
from tests.small_ports import convert_folder
from porting import port_writer, weights
weights.STRIPE_BYTES, port_writer.JOURNAL_EVERY = 16384, 49152

@contextmanager
def slow(label, total, unit="bytes"):
    yield lambda amount: time.sleep(0.05)

try:
    convert_folder(Path({source!r}), Path({port!r}), weights="copy", progress=slow)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise
"""


@pytest.mark.parametrize("after", ["weights/weights.bin", "journal.json"])
def test_ctrl_c_leaves_nothing_that_loads(tmp_path: Path, source: Path, after: str) -> None:
    """`after`: what must be there before the key is pressed. Without a journal there is nothing to keep."""
    port, partial = tmp_path / "port", tmp_path / ".port.partial"
    script = CONVERT.format(root=ROOT, source=str(source), port=str(port))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        while not (partial / after).exists() and child.poll() is None:
            time.sleep(0.002)
        child.send_signal(signal.SIGINT)
        stdout, stderr = child.communicate(timeout=60)
    assert stdout == "interrupted\n", stderr
    assert child.returncode in (-signal.SIGINT, 130)
    assert not port.exists()
    if partial.exists():
        assert (partial / "journal.json").exists()
    assert not require_nothing_half(port)
    convert_folder(source, port, weights="copy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["port", "source"]


def test_ctrl_c_does_not_wait_for_a_hash(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(1 << 40)  # takes no disk, and would take minutes
    with pytest.raises(KeyboardInterrupt), WatchedFiles([large, large.parent / "large"]):
        raise KeyboardInterrupt
