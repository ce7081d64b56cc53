"""How long `porting --help` takes, the interpreter's own start included.

    python benchmarks/cli_startup.py [--runs 15]

Prints the median beside that of an empty Python program, and exits 1 when the bar is missed. A busy machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

BAR_MS = 250.0


def median_ms(code: str, runs: int) -> float:
    """Milliseconds of wall clock for `python -c code`, median; one run before warms the page cache."""
    samples = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        samples.append((time.perf_counter() - start) * 1e3)
    return statistics.median(samples[1:])


def main() -> int:
    """Print both medians and the verdict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    empty = median_ms("pass", runs)
    found = median_ms("from porting.cli import main; main(['--help'])", runs)
    held = found <= BAR_MS
    print(f"{'PASS' if held else 'FAIL'} porting --help: {found:.0f} ms (bar {BAR_MS:.0f} ms); python alone: {empty:.0f} ms")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
