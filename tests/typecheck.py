"""mypy over the whole package, and the check that it saw every file.

    python tests/typecheck.py

The folders `backends/` and `converters/` are `porting.backends` and `porting.converters` only once installed, and mypy does not follow
an editable install: from the root it checks a few files and says "success". So it runs on a tree of links that looks as installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Exit code: mypy's, or 1 when it saw another number of files than there are."""
    with tempfile.TemporaryDirectory(prefix="porting-types-") as folder:
        package = Path(folder, "porting")
        package.mkdir()
        for entry in (*ROOT.joinpath("porting").iterdir(), ROOT / "backends", ROOT / "converters"):
            if entry.is_dir() or entry.suffix in (".py", ".typed"):
                package.joinpath(entry.name).symlink_to(entry)
        options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
        command = [sys.executable, "-m", "mypy", *options, "porting"]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    print(run.stdout, run.stderr, sep="", end="")
    if run.returncode:
        return run.returncode
    there = sum(1 for part in ("porting", "backends", "converters") for _ in ROOT.joinpath(part).rglob("*.py"))
    seen = re.search(r"no issues found in (\d+) source files", run.stdout)
    if seen is None or int(seen[1]) != there:
        print(f"mypy saw {seen[1] if seen else 'an unknown number of'} files, and there are {there}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
