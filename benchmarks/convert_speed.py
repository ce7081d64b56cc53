"""What converting a real language model costs: SmolLM2-135M-Instruct in fp32 (538 MB) to a port for the CPU, weights linked.

    python benchmarks/convert_speed.py [--repeats 3]

Each conversion is a process of its own, started as a user would start Python: interpreter, imports, reading, checking and
hashing all count. Bars, held against the best repeat (the others tell how busy the machine is): 3 seconds, 300 MB peak RSS,
5 MB written. Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.models import smollm2_folder  # noqa: E402

SECONDS_BAR = 3.0
PEAK_BAR_BYTES = 300_000_000
WRITTEN_BAR_BYTES = 5_000_000
CONVERT = "import sys, porting; porting.convert(sys.argv[1], sys.argv[2], target='cpu', precision='fp32', weights='link')"


@dataclass(frozen=True)
class Cost:
    """Of one conversion."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    written_bytes: int


def measure(source: Path, port: Path) -> Cost:
    """Convert in a child process.

    The child is waited for by its own id, so its peak memory is not mixed with that of other children.
    """
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", CONVERT, str(source), str(port)], cwd=ROOT)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"the conversion ended with {child.returncode}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, written_bytes(port))


def written_bytes(port: Path) -> int:
    """Bytes on the disk of files that are in no other folder: a hard link to the source takes none."""
    return sum(found.st_blocks * 512 for p in port.rglob("*") if p.is_file() and (found := p.lstat()).st_nlink == 1)


def bar(label: str, value: float, limit: float, unit: str) -> bool:
    """Print a number beside its bar; whether it holds."""
    held = value <= limit
    print(f"{'PASS' if held else 'FAIL'} {label}: {value:.2f} {unit} (bar {limit:.0f} {unit})")
    return held


def main() -> int:
    """Print every number with its bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats

    source = smollm2_folder()
    costs = []
    # beside the source: a hard link does not cross file systems
    with tempfile.TemporaryDirectory(prefix="convert-speed-", dir=source.parent) as work:
        for number in range(repeats):
            costs.append(measure(source, Path(work) / f"port-{number}"))
            print(f"run {number}: {costs[-1].seconds:.2f} s ({costs[-1].cpu_seconds:.2f} s of CPU time)")
    held = [
        bar("time", min(c.seconds for c in costs), SECONDS_BAR, "s"),
        bar("peak RSS", max(c.peak_bytes for c in costs) / 1e6, PEAK_BAR_BYTES / 1e6, "MB"),
        bar("written", max(c.written_bytes for c in costs) / 1e6, WRITTEN_BAR_BYTES / 1e6, "MB"),
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
